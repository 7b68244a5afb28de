//! `[session] resume`: who is told that a connection may be taken up again.

use broker_proto::{AdminRequest, ClientMessage, Delivery, Event, Negotiated, RequestId, ServerMessage, Target};
use broker_tests::{Broker, Service, Session, trials};

use crate::recovery::{kill_backend, wait_event};

trials![
    a_resumable_backend_is_announced_after_each_answer,
    a_connected_socket_is_announced_too,
    nothing_is_announced_that_the_service_does_not_say,
];

fn resumable(name: &str) -> Service {
    Service::fake(name, &[]).toml("[session]\nresume = \"reconnect\"")
}

/// The next message, progress aside.
#[track_caller]
fn next(session: &mut Session) -> ServerMessage {
    loop {
        match session.receive().expect("the broker answers") {
            ServerMessage::Progress(_) => {}
            message => return message,
        }
    }
}

/// The answer to a Hello and the announcement behind it.
#[track_caller]
fn announced(session: &mut Session, id: RequestId) -> Negotiated {
    let ServerMessage::Negotiated(negotiated) = next(session) else { panic!("no answer to {id}") };
    assert_eq!(negotiated.request_id, id);
    assert_eq!(next(session), ServerMessage::Event { request_id: id, event: Event::Resumable });
    negotiated
}

fn announcements(session: &Session) -> usize {
    let is_one = |message: &&ServerMessage| matches!(message, ServerMessage::Event { event: Event::Resumable, .. });
    session.aside.iter().filter(is_one).count()
}

fn a_resumable_backend_is_announced_after_each_answer() {
    let broker = Broker::start(&[&resumable("x")]);
    let mut session = broker.session();
    for id in [session.hello("x"), session.hello("x")] {
        assert_eq!(announced(&mut session, id).generation, 1);
    }
    let warm = session.hello("x");
    announced(&mut session, warm);
    kill_backend(&broker.backend("x"));
    wait_event(&mut session, "the new generation", |event| {
        matches!(event, Event::Ready { generation: 2, .. }).then_some(())
    });
    session.ping();
    assert_eq!(announcements(&session), 0, "a hold is told once");
}

fn a_connected_socket_is_announced_too() {
    let broker = Broker::start(&[&resumable("path"), &resumable("port").toml("[endpoint]\nkind = \"tcp\"")]);
    let mut session = broker.session();
    for service in ["path", "port", "path", "port"] {
        let mut hello = session.hello_for(service);
        hello.delivery = Delivery::Connected;
        let id = hello.request_id;
        session.send(&ClientMessage::Hello(hello));
        assert!(announced(&mut session, id).connected, "{service}");
        assert!(session.passed_descriptor().is_some(), "{service}");
    }
}

fn nothing_is_announced_that_the_service_does_not_say() {
    let none = Service::fake("none", &[]).toml("[session]\nresume = \"none\"");
    let broker = Broker::start(&[&Service::fake("x", &[]), &none, &resumable("y")]);
    let mut session = broker.session();
    for service in ["x", "none"] {
        let _ = session.hold(service);
    }
    let (instance, version_requirement) = ("default".to_owned(), "*".to_owned());
    let target = Target { instance, service: "y".to_owned(), version_requirement };
    session.admin(AdminRequest::Start { target, deadline_ms: None }).expect("own user");
    session.ping();
    assert_eq!(announcements(&session), 0, "an operator's start holds nothing");

    broker.write_service(&resumable("x"));
    let _ = broker.ctl(&["reload"]).done();
    let _ = session.hold("x");
    session.ping();
    assert_eq!(announcements(&session), 0, "what runs keeps the definition that it was started with");
    let _ = broker.ctl(&["restart", "x"]).done();
    let _ = session.hold("x");
    session.ping();
    assert_eq!(announcements(&session), 1);
}
