//! A broker that a service manager starts with sockets that are listened on already: at the first connection.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use broker_tests::{Broker, Service, Session, Setup, find_program, trials, wait_until};
use nix::sys::signal::Signal;

trials![
    who_connects_before_the_broker_runs_is_served,
    every_socket_that_was_passed_is_served_and_nothing_else,
    nothing_that_was_passed_gets_as_far_as_a_daemon,
];

const ACTIVATE: &str = "systemd-socket-activate";

/// Why these tests cannot run here, if they cannot.
pub(crate) fn hindrance() -> Option<&'static str> {
    find_program(ACTIVATE).is_none().then_some("needs systemd-socket-activate")
}

/// A broker whose sockets another program listens on, which becomes the broker at the first connection.
fn activated(setup: Setup, arguments: &[&str]) -> Broker {
    let socket = setup.path("run/broker.sock");
    let command = [&[ACTIVATE, "--listen", &socket], arguments].concat();
    setup.wrapper(&command).start()
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket())
}

fn who_connects_before_the_broker_runs_is_served() {
    // The wait for the broker's first answer is what starts it.
    let mut broker = activated(Setup::new().service(&Service::fake("x", &[])), &[]);
    let backend = broker.resolve("x");
    assert_eq!(broker.dial(&backend).pid(), backend["pid"]);
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success());
    assert!(is_socket(&broker.socket()), "a socket that somebody else listens on is not the broker's to remove");
}

fn every_socket_that_was_passed_is_served_and_nothing_else() {
    let setup = Setup::new().service(&Service::fake("x", &[]));
    let second = setup.path("run/second.sock");
    let names = "brokerd.socket:brokerd.socket:x@1.0.0~default.sock";
    let third = setup.path("run/third.sock");
    let more = ["--listen", &second, "--listen", &third, "--fdname", names];
    let mut broker = activated(setup, &more);
    let mut session = Session::open(Path::new(&second));
    let id = session.hello("x");
    assert!(session.answer(id).is_ok(), "the second socket leads to the same broker");
    wait_until("it names what it closes", || broker.log().contains("x@1.0.0~default.sock"));
    wait_until("nobody listens at what is not the broker's", || Session::try_open(Path::new(&third)).is_err());
    drop(session);
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success());
    assert!(is_socket(Path::new(&second)));
}

fn nothing_that_was_passed_gets_as_far_as_a_daemon() {
    let setup = Setup::new().service(&Service::fake("x", &[]));
    let broker = activated(setup, &["--fdname", "brokerd.socket"]);
    let facts = broker.dial(&broker.resolve("x")).facts();
    let descriptors = facts["descriptors"].as_object().expect("descriptors");
    let sockets = descriptors.values().filter(|fd| fd["target"].as_str().is_some_and(|t| t.starts_with("socket:")));
    // The one that it answers on, and the one that it listens on.
    assert_eq!(sockets.count(), 2, "{descriptors:?}");
    let names: Vec<_> = facts["environment"].as_object().expect("an environment").keys().collect();
    assert!(!names.iter().any(|name| name.starts_with("LISTEN_")), "{names:?}");
}
