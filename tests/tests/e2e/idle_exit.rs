//! A broker that leaves by itself: when nobody uses it, and not before.

use std::path::PathBuf;
use std::process::Command;

use broker_proto::{Reconnect, ServerMessage};
use broker_tests::{Broker, Running, Service, Setup, processes_mentioning, sibling, trials, wait_until};
use nix::sys::signal::Signal;

trials![
    a_client_that_is_connected_to_a_backend_keeps_the_broker,
    a_session_keeps_the_broker,
    a_backend_that_is_starting_keeps_the_broker,
    who_comes_while_it_leaves_is_told_to_come_back,
    a_broker_that_nobody_uses_ends_its_backends_and_leaves,
    a_broker_that_nobody_ever_used_leaves,
    the_time_needs_a_unit_and_is_not_zero,
];

/// Longer than a busy machine takes from one line of a test to the next. From one command to the next a session keeps the
/// broker.
const IDLE: &str = "2s";

fn setup(services: &[&Service]) -> Setup {
    let setup = services.iter().fold(Setup::new(), |setup, service| setup.service(service));
    setup.arguments(&["--idle-exit", IDLE])
}

/// How often the broker has looked and found this in use.
fn found_in_use(broker: &Broker, service: &str) -> usize {
    let name = format!("{service}@");
    broker.log().lines().filter(|line| line.contains("still in use") && line.contains(&name)).count()
}

fn left_well(mut broker: Broker, services: &[&str]) {
    let status = broker.ended();
    assert!(status.success(), "{status}");
    assert!(!broker.socket().exists(), "its socket is gone");
    assert!(broker.log().contains("nobody has used this broker for 2s"), "the log says why");
    services.iter().for_each(|service| broker.assert_gone(service));
}

fn a_broker_that_nobody_ever_used_leaves() {
    let setup = Setup::new();
    let mut command = Command::new(sibling("brokerd"));
    command.args(["--idle-exit", "200ms", "--socket", &setup.path("run/b.sock"), "--state-dir", &setup.path("state")]);
    let output = Running::start(&mut command).finish().done();
    assert!(output.stderr.contains("nobody has used this broker for 200ms"), "{}", output.stderr);
    assert!(!PathBuf::from(setup.path("run/b.sock")).exists());
    assert_eq!(processes_mentioning(setup.folder()), []);
}

fn a_broker_that_nobody_uses_ends_its_backends_and_leaves() {
    let config = Setup::new().config("idle_exit = \"2s\"\n");
    let broker = config.service(&Service::fake("x", &["--workers", "2"])).start();
    let session = broker.session();
    assert_eq!(broker.resolve("x")["state"], "ready", "which has no idle timeout");
    drop(session);
    left_well(broker, &["x"]);
}

fn a_session_keeps_the_broker() {
    let broker = setup(&[&Service::fake("x", &[])]).start();
    let mut session = broker.session();
    let _ = session.hold("x");
    // Two of them are further apart than the idle time is long.
    session.wait_heartbeats(2);
    session.ping();
    drop(session);
    left_well(broker, &["x"]);
}

fn a_client_that_is_connected_to_a_backend_keeps_the_broker() {
    let port = Service::fake("port", &[]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = setup(&[&Service::fake("path", &[]), &port]).start();
    for service in ["path", "port"] {
        let session = broker.session();
        let mut connection = broker.dial(&broker.resolve(service));
        let _ = connection.ask("hello").expect("served");
        drop(session);
        wait_until("the broker found it in use, twice", || found_in_use(&broker, service) >= 2);
        let _ = connection.ask("still there").expect("served");
    }
    left_well(broker, &["path", "port"]);
}

fn a_backend_that_is_starting_keeps_the_broker() {
    let setup = setup(&[]);
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("slow", &["--ready-when", &gate])).start();
    let session = broker.session();
    let client = broker.ctl_in_background(&["resolve", "slow"]);
    broker.wait_state("slow", "starting");
    drop(session);
    client.signal(Signal::SIGKILL);
    let _ = client.finish();
    wait_until("the broker found it in use", || found_in_use(&broker, "slow") >= 1);
    broker.open_gate("gate");
    left_well(broker, &["slow"]);
}

fn who_comes_while_it_leaves_is_told_to_come_back() {
    let deaf = Service::fake("deaf", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"10s\"");
    let broker = setup(&[&deaf]).start();
    let session = broker.session();
    let _ = broker.resolve("deaf");
    drop(session);
    wait_until("the broker leaves", || broker.log().contains("it leaves"));
    let mut late = broker.session();
    let comes_back = |message: &ServerMessage| match message {
        ServerMessage::GoAway { reconnect } => Some(matches!(reconnect, Reconnect::After { ms } if *ms > 0)),
        _ => None,
    };
    assert!(late.wait_message("the goodbye", comes_back));
    left_well(broker, &["deaf"]);
}

fn the_time_needs_a_unit_and_is_not_zero() {
    for (value, part) in [("10", "10s"), ("0s", "longer than zero"), ("soon", "10s")] {
        let output = Running::start(Command::new(sibling("brokerd")).args(["--idle-exit", value])).finish().exits(2);
        assert!(output.stderr.contains(part), "{value}: {}", output.stderr);
    }
}
