//! Hellos of clients that found a backend dead which the broker still sees alive.

use broker_proto::{ClientMessage, Code, Hello};
use broker_tests::{Broker, Service, Session, trials};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::recovery::kill_backend;

trials![
    a_client_that_is_quicker_than_the_broker_waits_for_the_next_generation,
    a_backend_that_serves_no_more_and_lives_is_named_again_after_a_while,
    a_hello_that_waits_for_an_end_starts_nothing_in_a_broker_that_leaves,
    a_hello_that_waits_for_an_end_does_not_undo_a_stop,
    a_hello_that_waits_for_an_end_can_be_given_up,
];

/// A backend whose endpoint is gone while its process lives, as of a daemon that cleans up before it exits.
fn deaf(broker: &Broker) -> Value {
    let backend = broker.resolve("x");
    let path = backend["endpoint"].as_str().and_then(|endpoint| endpoint.strip_prefix("unix:")).expect("a path");
    std::fs::remove_file(path).expect("the socket is there");
    backend
}

/// Says that generation 1 was found dead; the broker has read it when this returns.
fn doubt(session: &mut Session) -> u64 {
    let hello = Hello { found_dead: Some(1), ..session.hello_for("x") };
    let id = hello.request_id;
    session.send(&ClientMessage::Hello(hello));
    session.ping();
    id
}

fn a_client_that_is_quicker_than_the_broker_waits_for_the_next_generation() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let backend = deaf(&broker);
    let mut session = broker.session();
    let id = doubt(&mut session);
    kill_backend(&backend);
    assert_eq!(session.answer(id).expect("it is started again").generation, 2);
}

fn a_backend_that_serves_no_more_and_lives_is_named_again_after_a_while() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = deaf(&broker);
    let mut session = broker.session();
    let id = doubt(&mut session);
    assert_eq!(session.answer(id).expect("no timeout ends what lives").generation, 1);
    assert_eq!(broker.starts("x").len(), 1);
}

fn a_hello_that_waits_for_an_end_starts_nothing_in_a_broker_that_leaves() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = deaf(&broker);
    let mut session = broker.session();
    let id = doubt(&mut session);
    broker.signal(Signal::SIGINT);
    if let Err(refusal) = session.answer(id) {
        assert_eq!(refusal.code, Code::ShuttingDown);
    }
    assert!(broker.ended().success());
    assert_eq!(broker.starts("x").len(), 1);
}

fn a_hello_that_waits_for_an_end_does_not_undo_a_stop() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = deaf(&broker);
    let mut session = broker.session();
    let id = doubt(&mut session);
    let _ = broker.ctl(&["stop", "x"]).done();
    if let Err(refusal) = session.answer(id) {
        assert_eq!(refusal.code, Code::ShuttingDown);
    }
    assert_eq!((broker.starts("x").len(), &broker.wait_state("x", "inactive")["pid"]), (1, &Value::Null));
}

fn a_hello_that_waits_for_an_end_can_be_given_up() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let backend = deaf(&broker);
    let mut session = broker.session();
    let id = doubt(&mut session);
    session.release(id);
    session.ping();
    kill_backend(&backend);
    broker.wait_state("x", "inactive");
    assert_eq!(broker.starts("x").len(), 1, "nobody wants it any more");
}
