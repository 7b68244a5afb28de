//! Durable processes and the deaths around them: of the broker, of a reaper, of the machine.

use std::fs;
use std::path::{Path, PathBuf};

use broker_proto::{AdminRequest, Selection};
use broker_tests::{Broker, Service, Setup, process_exists, processes_mentioning, trials, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{cancel, ended, gated, kill_hard, output, pid_of, reaper_of, run, running, sh, spec, wait_process};

trials![
    a_broker_killed_during_a_process_does_not_disturb_it,
    what_ended_while_no_broker_ran_is_not_run_again,
    a_broker_that_ends_well_leaves_its_processes_running,
    a_broker_that_hands_over_runs_nothing_again,
    a_lost_reaper_means_another_attempt,
    attempts_are_counted,
    an_interrupted_process_is_run_again,
    after_a_reboot_it_is_run_again,
    a_cancellation_outlives_the_broker,
    what_was_pending_is_run_by_the_next_broker,
    a_machine_that_goes_down_tells_command_and_reaper_at_once,
    a_damaged_store_is_put_together_again,
    a_store_of_a_newer_broker_is_left_alone,
    a_broker_is_used_as_long_as_its_processes_run,
];

fn events(broker: &Broker) -> Vec<String> {
    let request = AdminRequest::Events { selection: Selection::default(), after: None, wait_ms: None };
    let page = broker.session().admin(request).expect("own user");
    let all = page["events"].as_array().expect("a list").iter();
    all.filter_map(|event| Some(event["event"].as_str()?.to_owned())).collect()
}

fn kill_broker(broker: &mut Broker) {
    broker.signal(Signal::SIGKILL);
    broker.ended();
}

/// A script that notes its run and waits at the gate.
fn noted(broker: &Broker, rest: &str) -> (PathBuf, broker_proto::Work) {
    let runs = broker.path("runs");
    let work = gated(&broker.path("gate"), rest);
    let broker_proto::Work::Command { argv } = &work else { unreachable!("a command") };
    (runs.clone(), sh(&format!("echo $BROKER_PROCESS_ATTEMPT >> {}; {}", runs.display(), argv[2])))
}

/// Waits until a run is noted.
fn wait_noted(runs: &Path) {
    wait_until("its note", || fs::read_to_string(runs).is_ok_and(|text| text.ends_with('\n')));
}

fn a_broker_killed_during_a_process_does_not_disturb_it() {
    let mut broker = Broker::start(&[]);
    let (runs, work) = noted(&broker, "echo end; exit 9");
    run(&mut broker.session(), spec("x", work));
    let before = running(&mut broker.session(), "x");
    kill_broker(&mut broker);
    assert!(process_exists(before["pid"].as_u64().expect("a pid")));
    broker.start_again();
    let mut session = broker.session();
    let after = wait_process(&mut session, "x", "adopted", |process| process["adopted"] == true);
    assert_eq!((&after["pid"], &after["attempt"], &after["state"]), (&before["pid"], &1.into(), &"running".into()));
    assert_eq!(after["lease"]["mine"], true);
    broker.open_gate("gate");
    let process = ended(&mut session, "x");
    assert_eq!((&process["state"], &process["exit_code"]), (&"failed".into(), &9.into()), "its real status");
    assert_eq!((output(&process), fs::read_to_string(runs).expect("it ran")), ("end\n".to_owned(), "1\n".to_owned()));
    assert_eq!(events(&broker), ["process_adopted", "process_ended"]);
}

fn what_ended_while_no_broker_ran_is_not_run_again() {
    let mut broker = Broker::start(&[]);
    let (runs, work) = noted(&broker, "exit 9");
    run(&mut broker.session(), spec("x", work));
    running(&mut broker.session(), "x");
    kill_broker(&mut broker);
    broker.open_gate("gate");
    let folder = broker.path("state/processes/runs/x");
    wait_until("the reaper has ended", || processes_mentioning(&folder).is_empty());
    broker.start_again();
    let process = ended(&mut broker.session(), "x");
    assert_eq!((&process["exit_code"], &process["attempt"]), (&9.into(), &1.into()));
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n");
}

fn a_broker_that_ends_well_leaves_its_processes_running() {
    for order in ["term", "shutdown"] {
        let mut broker = Broker::start(&[]);
        let (runs, work) = noted(&broker, "exit 0");
        run(&mut broker.session(), spec("x", work));
        let before = running(&mut broker.session(), "x");
        match order {
            "term" => broker.signal(Signal::SIGTERM),
            _ => drop(broker.session().admin(AdminRequest::Shutdown)),
        }
        assert!(broker.ended().success());
        assert!(process_exists(before["pid"].as_u64().expect("a pid")), "{order}");
        broker.start_again();
        let mut session = broker.session();
        let after = wait_process(&mut session, "x", "adopted", |process| process["adopted"] == true);
        assert_eq!(after["pid"], before["pid"]);
        broker.open_gate("gate");
        assert_eq!(ended(&mut session, "x")["state"], "succeeded");
        assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n");
    }
}

fn a_broker_that_hands_over_runs_nothing_again() {
    let mut broker = Setup::new().service(&Service::fake("y", &[])).unstarted();
    broker.start_armed("stuck:before-flush");
    broker.wait_until_it_answers();
    let (_, work) = noted(&broker, "exit 0");
    run(&mut broker.session(), spec("x", work));
    let first = running(&mut broker.session(), "x");
    // Something to hand over.
    let _ = broker.resolve("y");
    let mut session = broker.session();
    broker.signal(Signal::SIGTERM);
    wait_until("it leaves", || broker.log().contains("shutting down"));
    kill_hard(reaper_of(&first));
    wait_until("it sees that", || broker.log().contains("an attempt was lost"));
    for _ in 0..20 {
        let _ = session.try_ping();
    }
    kill_broker(&mut broker);
    broker.start_again();
    let mut session = broker.session();
    let second = wait_process(&mut session, "x", "run again", |p| p["attempt"] == 2 && p["pid"].is_u64());
    assert_eq!(second["adopted"], false, "that is for the next broker: {second}");
    broker.open_gate("gate");
    assert_eq!(ended(&mut session, "x")["state"], "succeeded");
}

fn a_lost_reaper_means_another_attempt() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let children = broker.path("children");
    // What leaves the session and what stays in it must both be ended, though the kernel kills only the command.
    let rest = format!("exit $BROKER_PROCESS_ATTEMPT; : {}", children.display());
    let (runs, work) = noted(&broker, &rest);
    let broker_proto::Work::Command { argv } = work else { unreachable!("a command") };
    let start = format!(
        "sleep 1000 & echo $! >> {0}; sleep 1000 >/dev/null 2>&1 & echo $! >> {0}; \
             setsid sh -c 'echo $$ >> {0}; exec sleep 1000' >/dev/null 2>&1 & \
             while [ $(wc -l < {0}) -lt $((3 * BROKER_PROCESS_ATTEMPT)) ]; do sleep 0.01; done;",
        children.display()
    );
    run(&mut session, spec("x", sh(&format!("{start} {}", argv[2]))));
    let first = running(&mut session, "x");
    wait_noted(&runs);
    let started = fs::read_to_string(&children).map(|text| text.lines().count());
    assert_eq!(started.ok(), Some(3), "its children run");
    kill_hard(reaper_of(&first));
    let second = wait_process(&mut session, "x", "run again", |p| p["attempt"] == 2 && p["pid"].is_u64());
    assert_ne!(second["pid"], first["pid"]);
    assert!(!process_exists(first["pid"].as_u64().expect("a pid")));
    let text = fs::read_to_string(&children).expect("they were started");
    for pid in text.lines().take(3) {
        assert!(!process_exists(pid.parse().expect("a pid")), "{pid} of the first attempt is left");
    }
    broker.open_gate("gate");
    let process = ended(&mut session, "x");
    assert_eq!((&process["exit_code"], &process["attempt"]), (&2.into(), &2.into()), "{process}");
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n2\n");
    assert_eq!(
        events(&broker),
        ["registered", "started", "lost", "started", "ended"].map(|word| format!("process_{word}"))
    );
}

fn attempts_are_counted() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let (runs, work) = noted(&broker, "true");
    let mut twice = spec("x", work);
    twice.max_attempts = Some(2);
    run(&mut session, twice);
    for attempt in 1..=2 {
        let process = wait_process(&mut session, "x", "running", |p| p["attempt"] == attempt && p["pid"].is_u64());
        wait_until("its note", || fs::read_to_string(&runs).is_ok_and(|text| text.lines().count() == attempt));
        kill_hard(reaper_of(&process));
    }
    let process = ended(&mut session, "x");
    assert_eq!((&process["state"], &process["attempt"]), (&"failed".into(), &2.into()));
    assert_eq!(process["reason"], "lost 2 times, which is as often as it may be started");
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n2\n");
}

fn an_interrupted_process_is_run_again() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let (runs, work) = noted(&broker, "true");
    run(&mut session, spec("x", work));
    let first = running(&mut session, "x");
    wait_noted(&runs);
    kill(reaper_of(&first), Signal::SIGTERM).expect("it runs");
    wait_process(&mut session, "x", "run again", |p| p["attempt"] == 2 && p["pid"].is_u64());
    broker.open_gate("gate");
    assert_eq!(ended(&mut session, "x")["state"], "succeeded");
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n2\n");
}

fn after_a_reboot_it_is_run_again() {
    let mut broker = Broker::start(&[]);
    let (runs, work) = noted(&broker, "true");
    run(&mut broker.session(), spec("x", work));
    let first = running(&mut broker.session(), "x");
    wait_noted(&runs);
    kill_broker(&mut broker);
    // A machine that loses its power writes no outcome, and comes back with another boot id and other processes.
    kill_hard(reaper_of(&first));
    let folder = broker.path("state/processes/runs/x");
    wait_until("nothing of it runs", || processes_mentioning(&folder).is_empty());
    let attempt = folder.join("attempt.json");
    let mut document: Value = serde_json::from_str(&fs::read_to_string(&attempt).expect("it is there")).expect("JSON");
    let stranger = std::process::id();
    let stat = fs::read_to_string("/proc/self/stat").expect("own facts");
    let start_time: u64 =
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)).expect("it").parse().expect("ticks");
    for who in ["reaper", "command"] {
        document[who] = json!({ "pid": stranger, "start_time": start_time });
    }
    document["boot_id"] = json!("an-earlier-boot");
    fs::write(&attempt, document.to_string()).expect("it can be written");
    let store = rusqlite::Connection::open(broker.path("state/processes/processes.db")).expect("a database");
    let owner = json!({ "pid": stranger, "start_time": start_time, "boot_id": "an-earlier-boot", "pid_namespace": 1 });
    let changed = store.execute(
        "UPDATE processes SET boot_id = 'an-earlier-boot', expires_at = 9000000000000, owner = ?1",
        [owner.to_string()],
    );
    assert_eq!(changed, Ok(1));
    drop(store);
    broker.start_again();
    let mut session = broker.session();
    let second = wait_process(&mut session, "x", "run again", |p| p["attempt"] == 2 && p["pid"].is_u64());
    assert_eq!(second["adopted"], false);
    broker.open_gate("gate");
    assert_eq!(ended(&mut session, "x")["state"], "succeeded");
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n2\n");
}

fn a_cancellation_outlives_the_broker() {
    let mut broker = Broker::start(&[]);
    let work = sh("trap '' TERM; echo ready; while :; do sleep 0.02; done");
    run(&mut broker.session(), spec("x", work));
    let mut session = broker.session();
    wait_process(&mut session, "x", "ready", |process| process["stdout"].is_string() && output(process) == "ready\n");
    cancel(&mut session, "x", "enough").expect("it runs");
    kill_broker(&mut broker);
    broker.start_again();
    let process = ended(&mut broker.session(), "x");
    assert_eq!((&process["state"], &process["reason"]), (&"cancelled".into(), &"enough".into()), "{process}");
}

fn what_was_pending_is_run_by_the_next_broker() {
    let mut broker = Setup::new().config("[processes]\nconcurrent = 1\n").start();
    let (runs, work) = noted(&broker, "true");
    let mut session = broker.session();
    for id in ["a", "b", "c"] {
        run(&mut session, spec(id, work.clone()));
    }
    let a = running(&mut session, "a");
    wait_noted(&runs);
    kill_broker(&mut broker);
    broker.open_gate("gate");
    broker.start_again();
    let mut session = broker.session();
    for id in ["a", "b", "c"] {
        assert_eq!(ended(&mut session, id)["state"], "succeeded");
    }
    assert_eq!(fs::read_to_string(runs).expect("they ran"), "1\n1\n1\n");
    assert!(!process_exists(u64::try_from(pid_of(&a).as_raw()).expect("a pid")));
}

fn a_machine_that_goes_down_tells_command_and_reaper_at_once() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let (runs, work) = noted(&broker, "true");
    run(&mut session, spec("x", work));
    let first = running(&mut session, "x");
    wait_noted(&runs);
    let reaper = reaper_of(&first);
    // The command is quicker, which is the harder order: its end must not be taken for its own affair.
    kill(reaper, Signal::SIGSTOP).expect("it runs");
    kill(pid_of(&first), Signal::SIGTERM).expect("it runs");
    let command = first["pid"].as_u64().expect("a pid");
    wait_until("the command has ended", || !process_exists(command));
    kill(reaper, Signal::SIGTERM).expect("it runs");
    kill(reaper, Signal::SIGCONT).expect("it runs");
    wait_process(&mut session, "x", "run again", |p| p["attempt"] == 2 && p["pid"].is_u64());
    broker.open_gate("gate");
    assert_eq!(ended(&mut session, "x")["state"], "succeeded");
}

fn a_damaged_store_is_put_together_again() {
    let mut broker = Setup::new().config("[processes]\nconcurrent = 1\n").start();
    let (runs, work) = noted(&broker, "exit 5");
    let mut session = broker.session();
    run(&mut session, spec("ended", sh("exit 3")));
    ended(&mut session, "ended");
    run(&mut session, spec("runs", work));
    let before = running(&mut session, "runs");
    run(&mut session, spec("cancelled", sh("true")));
    cancel(&mut session, "cancelled", "not wanted").expect("it waits");
    run(&mut session, spec("waits", sh("exit 4")));
    kill_broker(&mut broker);
    let store = broker.path("state/processes");
    for companion in ["processes.db-wal", "processes.db-shm"] {
        let _ = fs::remove_file(store.join(companion));
    }
    fs::write(store.join("processes.db"), "this is no database, whatever its name says".repeat(50)).expect("written");
    broker.start_again();
    let mut session = broker.session();
    let after = wait_process(&mut session, "runs", "adopted", |process| process["adopted"] == true);
    assert_eq!((&after["pid"], &after["attempt"]), (&before["pid"], &1.into()));
    broker.open_gate("gate");
    let expected = [("ended", "failed", json!(3)), ("runs", "failed", json!(5)), ("waits", "failed", json!(4))];
    for (id, state, code) in expected {
        let process = ended(&mut session, id);
        assert_eq!((&process["state"], &process["exit_code"]), (&state.into(), &code), "{process}");
    }
    let cancelled = ended(&mut session, "cancelled");
    assert_eq!((&cancelled["state"], &cancelled["reason"]), (&"cancelled".into(), &"not wanted".into()));
    let all = session.admin(AdminRequest::Processes { id: None }).expect("own user");
    let ids: Vec<&str> = all["processes"].as_array().expect("a list").iter().filter_map(|p| p["id"].as_str()).collect();
    assert_eq!(ids, ["ended", "runs", "cancelled", "waits"]);
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "1\n");
    let files = fs::read_dir(&store).expect("it is there").flatten();
    assert!(files.map(|file| file.file_name()).any(|name| name.to_string_lossy().contains(".damaged-")), "kept");
}

fn a_store_of_a_newer_broker_is_left_alone() {
    let mut broker = Broker::start(&[]);
    let mut session = broker.session();
    run(&mut session, spec("x", sh("true")));
    ended(&mut session, "x");
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    let store = rusqlite::Connection::open(broker.path("state/processes/processes.db")).expect("a database");
    store.pragma_update(None, "user_version", 99).expect("it can be written");
    drop(store);
    let output = broker.daemon().output().expect("brokerd can be executed");
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("a newer broker wrote it"), "{said}");
}

fn a_broker_is_used_as_long_as_its_processes_run() {
    let mut broker = Setup::new().arguments(&["--idle-exit", "200ms"]).start();
    let (runs, work) = noted(&broker, "true");
    run(&mut broker.session(), spec("x", work));
    wait_noted(&runs);
    wait_until("it stays", || broker.log().contains("still in use: durable processes run"));
    broker.open_gate("gate");
    assert!(broker.ended().success(), "it leaves when nothing is left to do");
    broker.start_again();
    assert_eq!(ended(&mut broker.session(), "x")["state"], "succeeded");
}
