//! The broker's own end, its lock, and what it touches.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use broker_proto::{Reconnect, ServerMessage};
use broker_tests::{Broker, Running, Service, Setup, processes_mentioning, sibling, trials, wait_until};
use nix::sys::signal::Signal;

trials![
    demo_ends_and_leaves_nothing_behind,
    sigint_stops_the_backends_and_removes_their_endpoints,
    sigterm_leaves_the_backends_to_the_next_broker,
    a_second_signal_of_either_kind_ends_at_once,
    shutdown_stops_the_backends_then_the_broker,
    a_shutdown_ends_starts_and_waits_too,
    a_second_broker_says_who_holds_the_socket,
    a_second_broker_on_the_same_state_directory_says_who_holds_it,
    a_stale_socket_is_taken_over,
    a_file_that_is_no_socket_is_left_alone,
    what_outlives_a_killed_broker_is_ended_by_the_next,
    given_its_places_it_touches_nothing_else,
    the_log_can_be_json,
    a_bad_configuration_is_explained,
    demo_interrupted_leaves_nothing_behind,
];

fn sockets_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(sockets_below(&entry.path())),
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

fn of_many_kinds() -> Broker {
    let passed = Service::fake_on_passed_socket("passed", &[]).toml("[readiness]\nprobe = \"socket\"");
    let services = [Service::fake("x", &["--workers", "2"]), Service::fake("away", &["--fork-away"]), passed];
    Broker::start(&services.each_ref())
}

/// Has the broker leave while somebody holds a backend, and checks that he is told.
fn leave(broker: &mut Broker, signal: Signal) {
    let mut session = broker.session();
    let _ = session.hold("x");
    broker.signal(signal);
    let said = session.closed();
    let goes = said.iter().chain(&session.aside).any(|message| matches!(message, ServerMessage::GoAway { .. }));
    assert!(goes, "sessions are told: {said:?}");
    let status = broker.ended();
    assert!(status.success(), "{status}");
}

fn sigint_stops_the_backends_and_removes_their_endpoints() {
    let mut broker = of_many_kinds();
    let _ = (broker.resolve("x"), broker.resolve("away"), broker.resolve("passed"));
    leave(&mut broker, Signal::SIGINT);
    broker.assert_gone("x");
    broker.assert_gone("away");
    assert_eq!(sockets_below(broker.folder()), Vec::<std::path::PathBuf>::new());
}

fn sigterm_leaves_the_backends_to_the_next_broker() {
    let mut broker = of_many_kinds();
    let before = ["x", "away", "passed"].map(|service| {
        // What forked away is known by its launcher until that has ended.
        let main = broker.dial(&broker.resolve(service)).pid();
        let is_worker = service == "x";
        broker.wait_backend(service, "known as itself", |backend| is_worker || backend["pid"] == main);
        broker.resolve(service)
    });
    for _ in 0..2 {
        leave(&mut broker, Signal::SIGTERM);
        for backend in &before {
            let _ = broker.dial(backend);
        }
        broker.start_again();
        for backend in &before {
            let service = backend["service"].as_str().expect("a name");
            let now = broker.wait_state(service, "ready");
            assert_eq!(now["adopted"], true, "{now}");
            for field in ["pid", "generation", "endpoint"] {
                assert_eq!(now[field], backend[field], "{service}: {field}");
            }
            assert_eq!(broker.resolve(service), *backend);
        }
    }
}

fn a_second_signal_of_either_kind_ends_at_once() {
    let service = Service::fake("deaf", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"1h\"");
    for first in [Signal::SIGTERM, Signal::SIGINT] {
        for second in [Signal::SIGTERM, Signal::SIGINT] {
            let mut broker = Broker::start(&[&service]);
            let _ = broker.resolve("deaf");
            broker.may_leave_processes();
            let mut session = broker.session();
            let _ = session.hold("deaf");
            broker.signal(first);
            session.wait_message("the drain", |message| matches!(message, ServerMessage::GoAway { .. }).then_some(()));
            broker.signal(second);
            assert_eq!(broker.ended().code(), Some(128 + second as i32), "{second} after {first}");
        }
    }
}

fn shutdown_stops_the_backends_then_the_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &["--workers", "2"])]);
    let _ = broker.resolve("x");
    let mut session = broker.session();
    let _ = session.hold("x");
    let report = broker.ctl_json(&["shutdown"]).done().json();
    assert_eq!(report["stopping"], 1);
    broker.assert_gone("x"); // the command waits until all is gone
    let goes = |message: &ServerMessage| {
        matches!(message, ServerMessage::GoAway { reconnect: Reconnect::Never }).then_some(())
    };
    session.wait_message("the announcement", goes);
    assert!(broker.ended().success());
    assert!(!broker.socket().exists(), "its socket is gone");
    let _ = broker.ctl(&["status"]).exits(69);
}

fn a_shutdown_ends_starts_and_waits_too() {
    let service = Service::fake("stuck", &["--never-ready"]);
    let mut broker =
        Broker::start(&[&service, &Service::fake("bad", &["--exit", "7"]).toml("[recovery]\nretry_backoff = \"1h\"")]);
    let waiting = ["stuck", "bad"].map(|name| broker.ctl_in_background(&["resolve", name]));
    broker.wait_state("stuck", "starting");
    broker.wait_state("bad", "backoff");
    let _ = broker.ctl(&["shutdown"]).done();
    for client in waiting {
        let output = client.finish();
        assert!([69, 75].contains(&output.code), "told, and at once: {output:?}");
    }
    assert!(broker.ended().success());
    broker.assert_gone("stuck");
}

fn a_second_broker_says_who_holds_the_socket() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let before = broker.resolve("x");
    let output = Running::start(&mut broker.daemon()).finish().exits(75);
    assert!(output.stderr.contains(&broker.pid().to_string()), "{}", output.stderr);
    assert_eq!(broker.resolve("x"), before, "the first one did not notice");
}

fn a_second_broker_on_the_same_state_directory_says_who_holds_it() {
    let broker = Broker::start(&[]);
    let mut second = Command::new(sibling("brokerd"));
    second.arg("--socket").arg(broker.path("other/broker.sock")).arg("--state-dir").arg(broker.path("state"));
    let output = Running::start(&mut second).finish().exits(75);
    assert!(output.stderr.contains(&broker.pid().to_string()), "{}", output.stderr);
}

fn a_stale_socket_is_taken_over() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = broker.resolve("x");
    broker.may_leave_processes();
    broker.signal(Signal::SIGKILL);
    let _ = broker.ended();
    assert!(broker.socket().exists(), "SIGKILL leaves it there");
    for (pid, _) in processes_mentioning(broker.folder()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    }
    // One that is only about to end would be adopted.
    wait_until("nothing is left of them", || processes_mentioning(broker.folder()).is_empty());
    broker.start_again();
    let backend = broker.resolve("x");
    assert_eq!(broker.dial(&backend).pid(), backend["pid"], "a stale endpoint is taken over too");
}

fn what_outlives_a_killed_broker_is_ended_by_the_next() {
    let mut broker = Broker::start(&[&Service::fake("x", &["--workers", "2"])]);
    let before = broker.resolve("x");
    broker.signal(Signal::SIGKILL);
    let _ = broker.ended();
    broker.start_again();
    let backend = broker.resolve("x");
    assert_eq!(backend["endpoint"], before["endpoint"], "its workers do not keep the socket");
    let _ = broker.dial(&backend).ask("hello").expect("served");
}

fn a_file_that_is_no_socket_is_left_alone() {
    let mut broker = Broker::start(&[]);
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    fs::write(broker.socket(), "precious").expect("the folder takes a file");
    let output = Running::start(&mut broker.daemon()).finish();
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("broker.sock"), "{}", output.stderr);
    assert_eq!(fs::read_to_string(broker.socket()).expect("still there"), "precious");
    fs::remove_file(broker.socket()).expect("a file");

    let stranger = UnixListener::bind(broker.socket()).expect("a free path");
    let output = Running::start(&mut broker.daemon()).finish();
    assert_ne!(output.code, 0, "somebody else listens there");
    assert!(broker.socket().exists());
    drop(stranger);
    // A child that another test is just forking may have the listener for an instant yet.
    wait_until("nobody listens there", || UnixStream::connect(broker.socket()).is_err());
    broker.start_again();
}

fn given_its_places_it_touches_nothing_else() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = broker.resolve("x");
    let _ = broker.ctl(&["status"]).done();
    let home: Vec<_> = fs::read_dir(broker.path("home")).expect("a folder").flatten().map(|e| e.path()).collect();
    assert_eq!(home, Vec::<std::path::PathBuf>::new());
    let mode = |name: &str| fs::metadata(broker.path(name)).expect("made by the broker").permissions().mode() & 0o777;
    assert_eq!((mode("run"), mode("state")), (0o700, 0o700), "private folders");
}

fn the_log_can_be_json() {
    let broker = Setup::new().service(&Service::fake("x", &[])).arguments(&["--log-format", "json"]).start();
    let _ = broker.resolve("x");
    let log = broker.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(value["level"].is_string() || value["severity"].is_string(), "{line}");
    }
}

fn a_bad_configuration_is_explained() {
    let broker = Broker::start(&[]);
    let path = broker.path("bad.toml");
    fs::write(&path, "[limits]\nbackend = 1\n").expect("the folder takes a file");
    let mut second = Command::new(sibling("brokerd"));
    second.arg("--socket").arg(broker.path("other/s")).arg("--state-dir").arg(broker.path("other/state"));
    let output = Running::start(second.arg("--config").arg(&path)).finish();
    assert_ne!(output.code, 0);
    for part in ["bad.toml:2", "backend", "backends"] {
        assert!(output.stderr.contains(part), "`{part}` is missing: {}", output.stderr);
    }
}

/// A short folder for the demo's own temporary one; nothing may be left in it, and nobody may name it.
fn demo_in(folder: &Path) -> Command {
    let mut command = Command::new(sibling("brokerctl"));
    command.arg("demo").env("TMPDIR", folder).env_remove("BROKER_SOCKET").stdin(std::process::Stdio::null());
    command
}

fn assert_nothing_left(folder: &Path) {
    wait_until("no process is left", || processes_mentioning(folder).is_empty());
    let left: Vec<_> = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

fn demo_ends_and_leaves_nothing_behind() {
    let folder = tempfile::Builder::new().prefix("bd.").tempdir_in("/tmp").expect("a folder in /tmp");
    let output = Running::start(&mut demo_in(folder.path())).finish().done();
    assert!(output.stdout.lines().count() > 5, "it tells what happens:\n{}", output.stdout);
    assert_nothing_left(folder.path());
}

fn demo_interrupted_leaves_nothing_behind() {
    let folder = tempfile::Builder::new().prefix("bd.").tempdir_in("/tmp").expect("a folder in /tmp");
    let demo = Running::start(&mut demo_in(folder.path()));
    let own = demo.pid();
    wait_until("the demo runs its processes", || {
        processes_mentioning(folder.path()).iter().filter(|(pid, _)| pid.unsigned_abs() != own).count() > 1
    });
    demo.signal(Signal::SIGINT);
    let output = demo.finish();
    assert_ne!(output.code, 0, "{output:?}");
    assert_nothing_left(folder.path());
}
