//! Clients that connect straight to an endpoint whose socket the broker holds, while nothing runs behind it: they wait, and
//! that they do starts the backend as a Hello would.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use broker_tests::{Broker, Connection, Service, Setup, fake_backend, trials, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::recovery::kill_backend;

trials![
    a_connection_starts_what_crashed,
    a_connection_that_was_not_accepted_before_the_crash_is_served_after_it,
    a_connection_starts_what_was_stopped_for_idleness_and_keeps_it,
    a_connection_starts_what_an_operator_stopped,
    a_connection_starts_nothing_that_is_drained,
    a_crash_loop_ends_in_a_refusal_and_begins_again_after_it,
    what_ends_by_itself_while_somebody_waits_has_crashed,
    what_cannot_be_executed_is_not_tried_again_until_something_changes,
    a_socket_that_no_start_would_inherit_any_more_is_closed,
    a_port_that_no_start_would_inherit_any_more_is_free,
    a_port_that_nothing_defines_any_more_is_free,
    an_endpoint_that_changed_meanwhile_is_closed_once_its_daemon_rests,
    a_broker_that_leaves_starts_nothing,
    a_broker_that_hands_over_starts_nothing,
];

/// A service whose socket the broker holds.
fn held(name: &str, arguments: &[&str]) -> Service {
    Service::fake_on_passed_socket(name, arguments).toml("[readiness]\nprobe = \"socket\"")
}

fn endpoint(backend: &Value) -> String {
    backend["endpoint"].as_str().unwrap_or_else(|| panic!("it has no endpoint: {backend}")).to_owned()
}

/// Connects, whoever runs.
#[track_caller]
fn connect(endpoint: &str) -> Connection {
    Connection::to(endpoint).unwrap_or_else(|error| panic!("{endpoint} refuses: {error}"))
}

/// Resolves `x`, which has noted its start by then: it counts as ready from its exec on.
#[track_caller]
fn serving(broker: &Broker) -> Value {
    let backend = broker.resolve("x");
    let _ = connect(&endpoint(&backend)).pid();
    backend
}

#[track_caller]
fn down(broker: &Broker) {
    broker.wait_backend("x", "down", |backend| backend["state"] == "inactive");
}

/// Whether every thread of a process is stopped.
fn are_stopped(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    stats.into_iter().all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// What the broker has done by now it has done: whatever waits at a socket was seen before this was answered.
fn settle(broker: &Broker) {
    for _ in 0..20 {
        let _ = broker.status();
    }
}

fn a_connection_starts_what_crashed() {
    for kind in ["unix", "tcp"] {
        let broker = Broker::start(&[&held("x", &[]).toml(&format!("[endpoint]\nkind = {kind:?}"))]);
        let backend = serving(&broker);
        kill_backend(&backend);
        down(&broker);
        let mut client = connect(&endpoint(&backend));
        let pid = client.pid();
        let again = broker.wait_state("x", "ready");
        assert_eq!((&again["pid"], &again["generation"]), (&pid.into(), &2.into()));
        assert_eq!((&again["attempt"], &again["holds"]), (&1.into(), &0.into()), "it was the retry: {again}");
        assert_eq!(endpoint(&again), endpoint(&backend));
        assert_eq!(broker.starts("x").len(), 2);
    }
}

fn a_connection_that_was_not_accepted_before_the_crash_is_served_after_it() {
    let broker = Broker::start(&[&held("x", &[])]);
    let backend = serving(&broker);
    let pid = Pid::from_raw(i32::try_from(backend["pid"].as_i64().expect("it runs")).expect("a number"));
    kill(pid, Signal::SIGSTOP).expect("it runs");
    wait_until("no thread of it accepts", || are_stopped(pid));
    let mut clients: Vec<Connection> = (0..5).map(|_| connect(&endpoint(&backend))).collect();
    kill(pid, Signal::SIGKILL).expect("it runs");
    let pids: Vec<u64> = clients.iter_mut().map(Connection::pid).collect();
    let again = broker.wait_state("x", "ready");
    assert!(pids.iter().all(|pid| again["pid"] == *pid), "{pids:?}, {again}");
    assert_eq!((&again["generation"], broker.starts("x").len()), (&2.into(), 2));
}

fn a_connection_starts_what_was_stopped_for_idleness_and_keeps_it() {
    const IDLE: &str = "[lifecycle]\nidle_timeout = \"400ms\"";
    let broker = Broker::start(&[&held("x", &[]).toml(IDLE), &Service::fake("free", &[]).toml(IDLE)]);
    let backend = serving(&broker);
    down(&broker);
    for generation in 2..4 {
        let mut client = connect(&endpoint(&backend));
        let pid = client.pid();
        let again = broker.wait_state("x", "ready");
        assert_eq!((&again["pid"], &again["generation"]), (&pid.into(), &generation.into()), "{again}");
        assert_eq!(again["crashes_in_window"], 0);
        for _ in 0..3 {
            let _ = broker.resolve("free");
            broker.wait_state("free", "inactive");
        }
        assert_eq!(client.pid(), pid, "who is connected keeps it");
        drop(client);
        down(&broker);
    }
}

fn a_connection_starts_what_an_operator_stopped() {
    let broker = Broker::start(&[&held("x", &[])]);
    let backend = serving(&broker);
    let _ = broker.ctl(&["stop", "x"]).done();
    settle(&broker);
    assert_eq!(broker.starts("x").len(), 1, "nobody waits");
    let pid = connect(&endpoint(&backend)).pid();
    // The daemon may answer before the broker knows that it runs.
    assert_eq!(broker.wait_state("x", "ready")["pid"], pid);
}

fn a_connection_starts_nothing_that_is_drained() {
    let broker = Broker::start(&[&held("x", &[])]);
    let backend = serving(&broker);
    let _ = broker.ctl(&["drain", "x"]).done();
    down(&broker);
    let mut client = connect(&endpoint(&backend));
    settle(&broker);
    assert_eq!((&broker.backend("x")["state"], broker.starts("x").len()), (&"inactive".into(), 1));
    let _ = broker.ctl(&["start", "x"]).done();
    assert_eq!(client.pid(), broker.backend("x")["pid"]);
    assert_eq!(broker.starts("x").len(), 2);
}

fn a_crash_loop_ends_in_a_refusal_and_begins_again_after_it() {
    let setup = Setup::new();
    let gate = setup.path("bad");
    let window = 6000;
    let recovery = format!("[recovery]\nretry_backoff = \"10ms\"\nbudget_window = \"{window}ms\"");
    let broker = setup.service(&held("x", &["--exit", "3", "--when", &gate]).toml(&recovery)).start();
    let backend = serving(&broker);
    broker.open_gate("bad");
    down(&broker);
    let mut client = connect(&endpoint(&backend));
    // It was one crash before anybody waited, so a single start is left.
    let failed = broker.wait_state("x", "failed");
    assert_eq!((&failed["generation"], &failed["crashes_in_window"]), (&2.into(), &2.into()), "{failed}");
    settle(&broker);
    assert_eq!(broker.starts("x").len(), 2, "nobody is started while it is refused");
    wait_until("it is tried again, once and once more", || broker.starts("x").len() == 4);
    // The window began with the first crash, and that is later than its start.
    let starts = broker.starts("x");
    assert!(starts[2].1 - starts[0].1 >= window, "not before the refusal's time is over: {starts:?}");
    broker.wait_state("x", "failed");
    fs::remove_file(broker.path("bad")).expect("the gate");
    let pid = client.pid();
    assert_eq!(broker.wait_state("x", "ready")["pid"], pid);
    assert_eq!(broker.starts("x").len(), 5);
}

fn what_ends_by_itself_while_somebody_waits_has_crashed() {
    let setup = Setup::new();
    let gate = setup.path("bored");
    let tables = "[recovery]\nretry_backoff = \"10ms\"\nbudget_window = \"1h\"";
    let bored = held("x", &["--exit", "0", "--ready-when", &gate, "--when", &gate]).toml(tables);
    let broker = setup.service(&bored).start();
    // An operator holds nothing.
    let backend = broker.ctl_json(&["start", "x"]).done().json();
    let endpoint = endpoint(&broker.backend("x"));
    broker.open_gate("bored");
    let ended = broker.wait_backend("x", "at rest", |backend| backend["state"] == "inactive");
    assert_eq!(ended["crashes_in_window"], 0, "nobody wanted it: {backend}");
    let _client = connect(&endpoint);
    let failed = broker.wait_state("x", "failed");
    assert_eq!((&failed["crashes_in_window"], &failed["holds"]), (&2.into(), &0.into()), "{failed}");
    settle(&broker);
    assert_eq!(broker.starts("x").len(), 3, "it was started for who waits, and once more");
}

fn what_cannot_be_executed_is_not_tried_again_until_something_changes() {
    let setup = Setup::new();
    let program = setup.path("program");
    let copy = |program: &str| {
        fs::copy(fake_backend(), program).expect("a copy");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("own files can be changed");
    };
    copy(&program);
    let service = Service::named("x")
        .command("1.0.0", &[&program, "--log-start", "{starts}", "--listen-fds"])
        .toml("[readiness]\nprobe = \"socket\"");
    let broker = setup.service(&service).start();
    let backend = serving(&broker);
    let _ = broker.ctl(&["stop", "x"]).done();
    fs::remove_file(&program).expect("a copy");
    let mut client = connect(&endpoint(&backend));
    broker.wait_backend("x", "refused", |backend| backend["state"] == "inactive" && backend["generation"] == 2);
    settle(&broker);
    assert_eq!(broker.backend("x")["generation"], 2, "it is not tried again and again");
    copy(&program);
    broker.write_service(&service.toml("[lifecycle]\nstop_timeout = \"9s\""));
    let _ = broker.ctl(&["reload"]).done();
    let pid = client.pid();
    let again = broker.wait_state("x", "ready");
    assert_eq!((&again["pid"], &again["generation"]), (&pid.into(), &3.into()));
}

fn a_socket_that_no_start_would_inherit_any_more_is_closed() {
    let broker = Broker::start(&[&held("x", &[])]);
    let backend = serving(&broker);
    let _ = broker.ctl(&["stop", "x"]).done();
    broker.write_service(&Service::fake("x", &[]));
    let _ = broker.ctl(&["reload"]).done();
    assert!(Connection::to(&endpoint(&backend)).is_err(), "its daemon would bind one itself");
    assert_eq!(broker.starts("x").len(), 1);
    assert_eq!(endpoint(&broker.resolve("x")), endpoint(&backend));
}

/// A port that nobody has.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("ports are left").port()
}

fn at_port(service: Service, port: u16) -> Service {
    service.toml(&format!("[endpoint]\nkind = \"tcp\"\nport = {port}"))
}

/// Nobody listens there, and who tries starts nothing.
#[track_caller]
fn assert_closed(broker: &Broker, endpoint: &str) {
    settle(broker);
    assert!(Connection::to(endpoint).is_err(), "{endpoint} is still listened on");
    settle(broker);
    assert_eq!(broker.starts("x").len(), 1);
}

fn a_port_that_no_start_would_inherit_any_more_is_free() {
    let port = free_port();
    let broker = Broker::start(&[&at_port(held("x", &[]), port)]);
    let backend = serving(&broker);
    let _ = broker.ctl(&["stop", "x"]).done();
    broker.write_service(&at_port(Service::fake("x", &[]), port));
    let _ = broker.ctl(&["reload"]).done();
    assert_closed(&broker, &endpoint(&backend));
    assert_eq!(endpoint(&broker.resolve("x")), endpoint(&backend));
}

fn a_port_that_nothing_defines_any_more_is_free() {
    let port = free_port();
    let broker = Broker::start(&[&at_port(held("x", &[]), port)]);
    let backend = serving(&broker);
    let _ = broker.ctl(&["stop", "x"]).done();
    fs::remove_file(broker.path("services.d/x.toml")).expect("it was written");
    let _ = broker.ctl(&["reload"]).done();
    assert_closed(&broker, &endpoint(&backend));
    drop(TcpListener::bind(("127.0.0.1", port)).expect("the port is free"));
}

fn an_endpoint_that_changed_meanwhile_is_closed_once_its_daemon_rests() {
    let (before, after) = (free_port(), free_port());
    let broker = Broker::start(&[&at_port(held("x", &[]), before)]);
    let backend = serving(&broker);
    broker.write_service(&at_port(held("x", &[]), after));
    let _ = broker.ctl(&["reload"]).done();
    let _ = broker.ctl(&["stop", "x"]).done();
    assert_closed(&broker, &endpoint(&backend));
    assert_eq!(endpoint(&broker.resolve("x")), format!("tcp:127.0.0.1:{after}"));
}

fn a_broker_that_leaves_starts_nothing() {
    let slow = Service::fake("slow", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"1s\"");
    let mut broker = Broker::start(&[&held("x", &[]), &slow]);
    let backend = serving(&broker);
    let _ = broker.resolve("slow");
    let _ = broker.ctl(&["stop", "x"]).done();
    broker.signal(Signal::SIGINT);
    wait_until("it leaves", || broker.log().contains("shutting down"));
    // Refused if it is over by now.
    let _client = Connection::to(&endpoint(&backend));
    assert!(broker.ended().success());
    assert_eq!(broker.starts("x").len(), 1);
}

fn a_broker_that_hands_over_starts_nothing() {
    let mut broker = Setup::new().kept().service(&held("x", &[])).unstarted();
    broker.start_armed("stuck:before-flush");
    broker.wait_until_it_answers();
    let backend = serving(&broker);
    let _ = broker.ctl(&["stop", "x"]).done();
    let mut session = broker.session();
    broker.signal(Signal::SIGTERM);
    wait_until("it leaves", || broker.log().contains("shutting down"));
    let mut client = connect(&endpoint(&backend));
    for _ in 0..20 {
        let _ = session.try_ping();
    }
    drop(session);
    broker.kill();
    broker.start_again();
    let pid = client.pid();
    let ready = broker.wait_state("x", "ready");
    assert_eq!((&ready["pid"], &ready["generation"], &ready["adopted"]), (&pid.into(), &2.into(), &false.into()));
    assert_eq!(broker.starts("x").len(), 2, "who came was the next broker's");
}
