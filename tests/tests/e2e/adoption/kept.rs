//! Sockets that a service manager keeps while no broker runs: nobody is refused meanwhile, and nothing is unheard.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use broker_tests::{Broker, Connection, Service, Setup, process_exists, trials, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{kill, kind, pid_of, served};

trials![
    what_is_held_and_listened_to_is_kept_as_long_as_it_is,
    who_connects_while_no_broker_runs_is_served_once_one_does,
    a_backend_that_lives_has_its_sockets_back,
    what_a_daemon_says_while_no_broker_listens_is_heard,
    what_has_said_nothing_is_not_ready_at_its_ceiling,
    a_hand_over_leaves_everything_kept,
    an_endpoint_whose_backend_lives_is_never_bound_again,
    what_belongs_to_nobody_is_forgotten,
    what_clients_would_not_find_is_forgotten,
    a_start_that_comes_to_nothing_leaves_nothing_kept,
];

const SOCKET: &str = "passed@1.0.0~default.sock";

fn passed_by_port() -> Service {
    Service::fake_on_passed_socket("port", &[]).toml("[readiness]\nprobe = \"socket\"\n[endpoint]\nkind = \"tcp\"")
}

fn endpoint(backend: &Value) -> &str {
    backend["endpoint"].as_str().unwrap_or_else(|| panic!("it has no endpoint: {backend}"))
}

/// The file of an endpoint: another one is another socket.
fn file(backend: &Value) -> u64 {
    let path = endpoint(backend).strip_prefix("unix:").expect("a path");
    fs::metadata(path).expect("a socket").ino()
}

/// Kills the process of `passed`, and waits until the broker knows.
fn end(broker: &Broker, pid: u64) {
    kill(pid);
    broker.wait_backend("passed", "down", |backend| backend["pid"] != pid);
}

#[track_caller]
fn assert_kept(broker: &Broker, names: &[&str]) {
    wait_until(format!("{names:?} is kept"), || broker.kept() == names);
}

fn what_is_held_and_listened_to_is_kept_as_long_as_it_is() {
    let notify = "[readiness]\nprobe = \"socket\"\nnotify = true";
    let both = Service::fake_on_passed_socket("both", &["--notify"]).toml(notify);
    let setup = Setup::new().kept().service(&kind("path")).service(&kind("says")).service(&both);
    let mut broker = setup.start();
    for service in ["path", "says", "both"] {
        let _ = broker.resolve(service);
    }
    let all = ["both@1.0.0~default.1.notify", "both@1.0.0~default.sock", "says@1.0.0~default.1.notify"];
    assert_kept(&broker, &all);
    let _ = broker.ctl(&["stop", "--all"]).done();
    assert_kept(&broker, &["both@1.0.0~default.sock"]);
    let backend = broker.resolve("both");
    assert_kept(&broker, &["both@1.0.0~default.2.notify", "both@1.0.0~default.sock"]);

    // Another endpoint is another socket.
    let elsewhere = format!("[endpoint]\npath = {:?}", broker.path("elsewhere.sock").display().to_string());
    broker.write_service(&both.toml(&elsewhere));
    let _ = broker.ctl(&["reload"]).done();
    let _ = broker.ctl(&["restart", "both"]).done();
    assert_ne!(endpoint(&broker.backend("both")), endpoint(&backend));
    assert_kept(&broker, &["both@1.0.0~default.3.notify", "both@1.0.0~default.sock"]);
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success());
    assert_kept(&broker, &[]);
}

fn who_connects_while_no_broker_runs_is_served_once_one_does() {
    for (name, service) in [("passed", kind("passed")), ("port", passed_by_port())] {
        let mut broker = Setup::new().kept().service(&service).start();
        let (pid, backend) = served(&broker, name);
        broker.kill();
        kill(pid);
        wait_until("it is gone", || !process_exists(pid));
        let mut early = Connection::to(endpoint(&backend)).expect("it waits");
        broker.start_again();
        // Nobody says Hello.
        let second = early.pid();
        let again = broker.wait_state(name, "ready");
        assert_eq!((pid_of(&again), &again["generation"]), (second, &2.into()));
        assert_eq!(endpoint(&again), endpoint(&backend));
    }
}

fn a_backend_that_lives_has_its_sockets_back() {
    let mut broker = Setup::new().kept().service(&kind("passed")).start();
    let (pid, backend) = served(&broker, "passed");
    for _ in 0..3 {
        broker.kill_and_start_again();
        assert_eq!(served(&broker, "passed").0, pid);
    }
    assert_kept(&broker, &[SOCKET]);
    // The broker holds it: it outlives the daemon that an earlier broker gave it to.
    end(&broker, pid);
    let (second, again) = served(&broker, "passed");
    assert_ne!(second, pid);
    assert_eq!(file(&again), file(&backend), "it was never bound again");
    assert_kept(&broker, &[SOCKET]);
}

fn what_a_daemon_says_while_no_broker_listens_is_heard() {
    let setup = Setup::new().kept();
    let gate = setup.path("gate");
    let says = ["--notify", "--ready-when", &gate, "--status", "on its way"];
    let service = Service::fake("says", &says).toml("[readiness]\nprobe = \"notify\"\nhard_ceiling = \"1h\"");
    let mut broker = setup.service(&service).start();
    let mut session = broker.session();
    session.hello("says");
    broker.wait_backend("says", "on its way", |b| b["status"] == "on its way");
    let pid = pid_of(&broker.backend("says"));
    broker.kill();
    broker.open_gate("gate");
    // It says so once it listens, and answers no sooner than it accepts.
    let path = broker.path("run/broker.sock.d/says@1.0.0~default.sock");
    let mut client = Connection::over_unix(UnixStream::connect(path).expect("it listens")).expect("a socket");
    assert_eq!(client.pid(), pid);
    broker.start_again();
    assert_eq!(pid_of(&broker.wait_state("says", "ready")), pid);
    assert_eq!(served(&broker, "says").0, pid);
}

/// One that a broker could not hear is looked at once more, for what it may have said to nobody.
fn what_has_said_nothing_is_not_ready_at_its_ceiling() {
    let setup = Setup::new().kept();
    let says = ["--notify", "--ready-when", &setup.path("gate")];
    let ceiling = "hard_ceiling = \"2s\"";
    let plain = Service::fake("says", &says).toml("[readiness]\nprobe = \"notify\"").toml(ceiling);
    let held = Service::fake_on_passed_socket("passed", &says).toml("[readiness]\nprobe = \"socket\"\nnotify = true");
    let mut broker = setup.service(&plain).service(&held.toml(ceiling)).start();
    let mut session = broker.session();
    for service in ["says", "passed"] {
        session.hello(service);
        wait_until("it listens", || broker.starts(service).len() == 1);
    }
    broker.kill_and_start_again();
    for service in ["says", "passed"] {
        broker.wait_backend(service, "crashed", |backend| backend["crashes_in_window"] == 1);
        assert_eq!(broker.starts(service).len(), 1);
    }
}

fn a_hand_over_leaves_everything_kept() {
    let resting = Service::fake_on_passed_socket("resting", &[]).toml("[readiness]\nprobe = \"socket\"");
    let mut broker = Setup::new().kept().service(&kind("passed")).service(&kind("says")).service(&resting).start();
    let (pid, _) = served(&broker, "passed");
    let (says, _) = served(&broker, "says");
    let (_, rested) = served(&broker, "resting");
    let _ = broker.ctl(&["stop", "resting"]).done();
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    assert_kept(&broker, &[SOCKET, "resting@1.0.0~default.sock", "says@1.0.0~default.1.notify"]);
    let mut early = Connection::to(endpoint(&rested)).expect("it waits");
    let notify = broker.path("run/broker.sock.d/says@1.0.0~default.1.notify");
    assert!(notify.exists(), "a daemon finds its notify socket as it was");
    broker.start_again();
    assert_eq!((served(&broker, "passed").0, served(&broker, "says").0), (pid, says));
    let (second, again) = served(&broker, "resting");
    assert_eq!((again["generation"].as_u64(), early.pid()), (Some(2), second));
}

fn an_endpoint_whose_backend_lives_is_never_bound_again() {
    let mut broker = Setup::new().kept().service(&kind("passed")).service(&kind("says")).start();
    let (pid, backend) = served(&broker, "passed");
    let (says, _) = served(&broker, "says");
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    broker.lose_kept();
    broker.start_again();
    let (again, adopted) = served(&broker, "passed");
    assert_eq!((again, file(&adopted)), (pid, file(&backend)));
    assert_eq!(served(&broker, "says").0, says);
    assert_kept(&broker, &["says@1.0.0~default.1.notify"]);
    // It went on without a socket of the broker's; when it has ended the next start binds one.
    end(&broker, pid);
    let (second, anew) = served(&broker, "passed");
    assert_ne!(second, pid);
    // It was not kept before, so it is another socket. The number of its file may be the one that has become free.
    assert_kept(&broker, &[SOCKET, "says@1.0.0~default.1.notify"]);
    let _ = broker.ctl(&["stop", "passed"]).done();
    assert_eq!(file(&served(&broker, "passed").1), file(&anew));
}

fn what_belongs_to_nobody_is_forgotten() {
    let mut broker = Setup::new().kept().service(&kind("passed")).service(&kind("says")).start();
    let (pid, backend) = served(&broker, "passed");
    let (says, _) = served(&broker, "says");
    broker.kill();
    [pid, says].into_iter().for_each(kill);
    wait_until("they are gone", || !process_exists(pid) && !process_exists(says));
    fs::remove_file(broker.path("services.d/passed.toml")).expect("a service file");
    // What ran is a crash of what it was; only its socket is nobody's any more once that is over.
    broker.start_again();
    assert_kept(&broker, &[]);
    assert!(Connection::to(endpoint(&backend)).is_err(), "nobody would serve it");
    let names = fs::read_dir(broker.path("run/broker.sock.d")).expect("a folder").flatten();
    assert_eq!(names.map(|entry| entry.file_name()).collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
}

fn what_clients_would_not_find_is_forgotten() {
    let mut broker = Setup::new().kept().service(&kind("passed")).start();
    let (pid, backend) = served(&broker, "passed");
    broker.kill();
    kill(pid);
    wait_until("it is gone", || !process_exists(pid));
    let path = endpoint(&backend).strip_prefix("unix:").expect("a path");
    fs::remove_file(path).expect("a socket");
    broker.start_again();
    wait_until("it says what it lets go", || broker.log().contains("of no use any more"));
    assert_kept(&broker, &[]);
    let (_, again) = served(&broker, "passed");
    assert_eq!(endpoint(&again), endpoint(&backend));
    assert_kept(&broker, &[SOCKET]);
}

fn a_start_that_comes_to_nothing_leaves_nothing_kept() {
    let port = "[readiness]\nprobe = \"socket\"\nnotify = true\n[endpoint]\nkind = \"tcp\"";
    let missing = Service::named("missing").command("1.0.0", &["/no/such/program"]).toml(port);
    let broker = Setup::new().kept().service(&missing).start();
    for _ in 0..2 {
        let _ = broker.ctl(&["resolve", "missing"]).exits(69);
        assert_kept(&broker, &[]);
    }
    let folder = fs::read_dir(broker.path("run/broker.sock.d")).expect("a folder");
    assert_eq!(folder.count(), 0);
}
