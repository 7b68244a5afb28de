//! Those that were on their way when their broker died: to readiness, to their end, or to another process.

use broker_proto::AdminRequest;
use broker_tests::{Broker, Connection, Service, Setup, fake_backend, process_exists, trials, wait_until};
use nix::sys::signal::Signal;

use super::{all_of, journal, kind, order, pid_of, settled};

trials![
    what_was_starting_gets_ready_under_the_next_broker,
    a_command_that_probes_goes_on_probing,
    a_start_past_its_ceiling_is_ended_as_a_crash,
    what_ignores_its_stop_is_killed_by_the_next_broker,
    a_daemon_that_forked_away_while_no_broker_ran_is_followed,
    a_daemon_that_forks_away_once_it_is_adopted_is_followed,
    a_daemon_that_got_ready_while_no_broker_ran_is_ready,
    a_daemon_that_ended_while_no_broker_ran_is_retried_for_whoever_asks,
    a_log_is_in_its_place_wherever_its_broker_died,
    a_log_that_was_never_made_is_not_named,
];

/// A service whose daemon waits for a gate.
fn gated(setup: &Setup, name: &str) -> Service {
    let gate = setup.path("gate");
    let fake = |more: &[&str]| Service::fake(name, &[&["--ready-when", &gate], more].concat());
    match name {
        "path" => fake(&[]),
        "port" => fake(&[]).toml("[endpoint]\nkind = \"tcp\""),
        "says" => fake(&["--notify"]).toml("[readiness]\nprobe = \"notify\""),
        "passed" => Service::fake_on_passed_socket(name, &["--ready-when", &gate, "--notify"])
            .toml("[readiness]\nprobe = \"socket\"\nnotify = true"),
        "away" => fake(&["--fork-away"]),
        "workers" => fake(&["--workers", "2"]),
        other => panic!("there is no kind {other}"),
    }
}

/// A broker whose backend is starting, and that the journal knows which process that is.
fn starting(setup: Setup, service: &str) -> (Broker, u64) {
    let broker = setup.start();
    let mut session = broker.session();
    session.hello(service);
    let is_known = || {
        let row = journal::row(&broker, service).ok().flatten();
        row.is_some_and(|row| row.phase == "starting" && row.pid.is_some())
    };
    wait_until("the journal knows the process", is_known);
    wait_until("the daemon has begun", || !broker.starts(service).is_empty());
    let pid = broker.starts(service)[0].0;
    broker.wait_backend(service, "starting, as that process", |b| b["state"] == "starting" && b["pid"] == pid);
    (broker, pid)
}

fn what_was_starting_gets_ready_under_the_next_broker() {
    for service in super::KINDS {
        let setup = Setup::new();
        let definition = gated(&setup, service);
        let (mut broker, pid) = starting(setup.service(&definition), service);
        broker.kill_and_start_again();
        let backend = broker.backend(service);
        assert_eq!((&backend["state"], &backend["adopted"]), (&"starting".into(), &true.into()), "{backend}");
        let client = broker.ctl_in_background(&["--json", "resolve", service]);
        broker.wait_backend(service, "waited for", |b| b["waiters"] == 1);
        broker.open_gate("gate");
        let backend = client.finish().done().json();
        assert_eq!((pid_of(&backend), &backend["generation"]), (pid, &1.into()));
        let _ = broker.dial(&backend).ask("hello").expect("served");
        assert_eq!(broker.starts(service).len(), 1);
    }
}

fn a_command_that_probes_goes_on_probing() {
    let setup = Setup::new();
    let look = format!("command = [\"test\", \"-e\", {:?}]", setup.path("healthy"));
    let service = Service::fake("asked", &[]).toml(&format!("[readiness]\nprobe = \"exec\"\n{look}"));
    let (mut broker, pid) = starting(setup.service(&service), "asked");
    broker.kill_and_start_again();
    let client = broker.ctl_in_background(&["--json", "resolve", "asked"]);
    broker.wait_backend("asked", "waited for", |b| b["waiters"] == 1);
    broker.open_gate("healthy");
    assert_eq!(pid_of(&client.finish().done().json()), pid);
}

fn a_start_past_its_ceiling_is_ended_as_a_crash() {
    let stuck = Service::fake("stuck", &["--never-ready", "--workers", "2"]);
    let (mut broker, pid) = starting(Setup::new().service(&stuck), "stuck");
    broker.kill();
    journal::alter_documents(&broker, "stuck", |memory, _| {
        let ceiling = &mut memory["machine"]["phase"]["starting"]["ceiling"];
        assert!(ceiling["secs"].is_u64());
        *ceiling = serde_json::json!({ "secs": 0, "nanos": 1 });
    });
    broker.start_again();
    let backend = broker.wait_state("stuck", "inactive");
    assert_eq!((&backend["crashes_in_window"], &backend["generation"]), (&1.into(), &1.into()), "{backend}");
    assert!(!process_exists(pid));
    broker.assert_gone("stuck");
}

fn what_ignores_its_stop_is_killed_by_the_next_broker() {
    let deaf = Service::fake("deaf", &["--ignore-term", "--workers", "2"]).toml("[lifecycle]\nstop_timeout = \"1s\"");
    let mut broker = Setup::new().service(&deaf).unstarted();
    broker.start_armed("after-stopping");
    broker.wait_until_it_answers();
    let pid = pid_of(&broker.resolve("deaf"));
    let _session = order(&broker, AdminRequest::Stop { selection: all_of("deaf"), deadline_ms: None });
    broker.dies();
    // The second is killed as well, once it has told it to end.
    broker.start_armed("after-terminate");
    broker.dies();
    assert!(process_exists(pid));
    broker.start_again();
    wait_until("it is killed", || broker.processes("deaf").is_empty());
    let backend = broker.wait_state("deaf", "inactive");
    assert!(backend.is_null() || backend["crashes_in_window"] == 0, "{backend}");
}

fn a_daemon_that_forked_away_while_no_broker_ran_is_followed() {
    for failpoint in ["child-after-record", "after-fork", "after-pid"] {
        let setup = Setup::new();
        let service = gated(&setup, "away");
        let mut broker = setup.service(&service).unstarted();
        broker.start_armed(failpoint);
        broker.wait_until_it_answers();
        let mut session = broker.session();
        session.hello("away");
        broker.dies();
        wait_until("it has forked away", || {
            let started = broker.starts("away");
            started.len() == 1 && broker.processes("away").len() == 1
        });
        let pid = broker.starts("away")[0].0;
        broker.start_again();
        let backend = broker.backend("away");
        assert_eq!((&backend["state"], &backend["pid"]), (&"starting".into(), &pid.into()), "{backend}");
        broker.open_gate("gate");
        assert_eq!(settled(&broker, "away"), pid);
        broker.hand_over();
        assert_eq!(pid_of(&broker.backend("away")), pid, "it is written down who it is");
        assert_eq!(broker.starts("away").len(), 1);
    }
}

fn a_daemon_that_forks_away_once_it_is_adopted_is_followed() {
    let setup = Setup::new();
    let (gate, note) = (setup.path("gate"), setup.path("starts/away"));
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; exec {} --fork-away --log-start {} --listen \"$0\"",
        gate,
        fake_backend().display(),
        note
    );
    let away = Service::named("away").command("1.0.0", &["/bin/sh", "-c", &script, "{endpoint}"]);
    let mut broker = setup.service(&away).start();
    let client = broker.ctl_in_background(&["--json", "resolve", "away"]);
    let launcher = pid_of(&broker.wait_backend("away", "started", |b| b["pid"].is_u64()));
    super::journal::wait_phase(&broker, "away", "starting");
    broker.hand_over();
    assert_eq!(pid_of(&broker.backend("away")), launcher);
    broker.open_gate("gate");
    assert_eq!(client.finish().done().json()["generation"], 1);
    let backend = broker.wait_backend("away", "known as itself", |b| pid_of(b) != launcher);
    assert_eq!((pid_of(&backend), &backend["crashes_in_window"]), (broker.starts("away")[0].0, &0.into()), "{backend}");
    let _ = broker.dial(&backend).ask("hello").expect("served");
}

fn a_daemon_that_got_ready_while_no_broker_ran_is_ready() {
    for service in ["path", "port", "away", "workers"] {
        let setup = Setup::new();
        let definition = gated(&setup, service);
        let (mut broker, pid) = starting(setup.service(&definition), service);
        broker.kill();
        broker.open_gate("gate");
        broker.start_again();
        let backend = broker.wait_state(service, "ready");
        assert_eq!((pid_of(&backend), &backend["generation"]), (pid, &1.into()));
    }
    // What was said to nobody is made good when its time is over.
    let setup = Setup::new();
    let passed = gated(&setup, "passed").toml("hard_ceiling = \"3s\"");
    let (mut broker, pid) = starting(setup.service(&passed), "passed");
    broker.kill();
    broker.open_gate("gate");
    // It answers once it has said so.
    let endpoint = format!("unix:{}", broker.path("run/broker.sock.d/passed@1.0.0~default.sock").display());
    assert_eq!(Connection::to(&endpoint).expect("it listens").pid(), pid);
    broker.start_again();
    let backend = broker.resolve("passed");
    assert_eq!((pid_of(&backend), &backend["generation"]), (pid, &1.into()));
    let mut broker = Setup::new().service(&kind("says")).unstarted();
    broker.start_armed("child-after-record");
    broker.wait_until_it_answers();
    let mut session = broker.session();
    session.hello("says");
    broker.dies();
    wait_until("it has begun", || !broker.starts("says").is_empty());
    broker.start_again();
    assert_eq!(broker.resolve("says")["generation"], 1);
    assert_eq!(broker.starts("says").len(), 1);
}

fn a_daemon_that_ended_while_no_broker_ran_is_retried_for_whoever_asks() {
    for is_handed_over in [false, true] {
        let setup = Setup::new();
        let definition = gated(&setup, "path");
        let (mut broker, pid) = starting(setup.service(&definition), "path");
        broker.signal(if is_handed_over { Signal::SIGTERM } else { Signal::SIGKILL });
        let _ = broker.ended();
        super::kill(pid);
        wait_until("it is gone", || !process_exists(pid));
        broker.open_gate("gate");
        broker.start_again();
        let backend = broker.resolve("path");
        assert_eq!(backend["generation"], 2);
        let backend = broker.backend("path");
        assert_eq!((&backend["attempt"], &backend["crashes_in_window"]), (&1.into(), &1.into()), "{backend}");
    }
}

fn a_log_is_in_its_place_wherever_its_broker_died() {
    for failpoint in ["child-after-record", "after-fork", "after-log"] {
        let mut broker = Setup::new().service(&Service::fake("x", &["--stderr", "first words"])).unstarted();
        broker.start_armed(failpoint);
        broker.wait_until_it_answers();
        let mut session = broker.session();
        session.hello("x");
        broker.dies();
        let files = |broker: &Broker, folder: &str| -> Vec<String> {
            let files = std::fs::read_dir(broker.path(folder)).into_iter().flatten().flatten();
            files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
        };
        let (records, logs) = ("state/starts", "state/backends/default/x/1.0.0/logs");
        // A key that is new has no folder for it until its daemon runs.
        let is_aside = failpoint != "after-log";
        assert_eq!(
            (files(&broker, records).len(), files(&broker, logs).len()),
            if is_aside { (2, 0) } else { (1, 1) },
            "{failpoint}"
        );
        broker.start_again();
        let _ = settled(&broker, "x");
        assert_eq!(broker.starts("x").len(), 1);
        assert_eq!(
            (files(&broker, records), files(&broker, logs).len()),
            (vec!["x@1.0.0~default.1".to_owned()], 1),
            "{failpoint}"
        );
        wait_until("its words are read", || broker.ctl(&["logs", "x"]).done().stdout.contains("first words"));
    }
}

/// What is written down of a start before anything of it is made names its log.
fn a_log_that_was_never_made_is_not_named() {
    let mut broker = Setup::new().service(&kind("path")).unstarted();
    broker.start_armed("after-intent");
    broker.wait_until_it_answers();
    let mut session = broker.session();
    session.hello("path");
    broker.dies();
    let lies_aside = |path: &std::path::Path| path.extension().is_some_and(|extension| extension == "log");
    let files = std::fs::read_dir(broker.path("state/starts")).expect("a folder of records").flatten();
    let logs: Vec<_> = files.map(|file| file.path()).filter(|path| lies_aside(path)).collect();
    assert_eq!(logs.len(), 1);
    std::fs::remove_file(&logs[0]).expect("its log");
    broker.start_again();
    assert_eq!(broker.backend("path")["log_path"], serde_json::Value::Null);
    let _ = broker.resolve("path");
    let backend = broker.backend("path");
    assert!(std::path::Path::new(backend["log_path"].as_str().expect("a log")).exists(), "{backend}");
}
