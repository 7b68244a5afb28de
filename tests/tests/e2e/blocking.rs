//! The client library for programs without a runtime, against a real broker.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use broker_client::blocking::{BackendStream, Client, Events};
use broker_client::{ReconnectConfig, Request, SessionEvent};
use broker_proto::{AdminRequest, Code, Event, State};
use broker_tests::{BOUND, Broker, Service, Setup, trials};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::recovery::kill_backend;

trials![
    it_goes_on_after_its_broker_was_restarted,
    progress_is_told_while_it_waits,
    bytes_go_both_ways_over_a_path_and_a_port,
    a_socket_that_the_broker_connected_is_talked_over,
    events_are_told_one_after_the_other,
    many_threads_share_a_session,
    when_all_is_dropped_the_session_ends,
];

fn connect(broker: &Broker) -> Client {
    assert!(tokio::runtime::Handle::try_current().is_err(), "there is no runtime here");
    let config = ReconnectConfig::new(Duration::from_millis(5), Duration::from_millis(50), u32::MAX);
    let builder = broker_client::Client::builder().socket(broker.socket()).deadline(BOUND);
    builder.reconnect(config.expect("sound settings")).connect_blocking().expect("the broker accepts")
}

fn on_a_path_and_a_port(arguments: &[&str]) -> Broker {
    let port = Service::fake("port", arguments).toml("[endpoint]\nkind = \"tcp\"");
    Broker::start(&[&Service::fake("path", arguments), &port])
}

/// Says something and checks who answers.
#[track_caller]
fn assert_served_by(stream: &mut BackendStream, backend: &Value) {
    stream.set_read_timeout(Some(BOUND)).expect("not zero");
    stream.write_all(b"hello\n").expect("it reads");
    let expected = format!("{} hello\n", backend["pid"]);
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(String::from_utf8_lossy(&answer), expected);
}

/// The events up to one, that one among them.
#[track_caller]
fn up_to(events: &mut Events, last: impl Fn(&SessionEvent) -> bool) -> Vec<SessionEvent> {
    let mut seen = Vec::new();
    while !seen.last().is_some_and(&last) {
        seen.push(events.next().expect("the session goes on"));
    }
    seen
}

fn progress_is_told_while_it_waits() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("slow", &["--ready-when", &gate])).start();
    let client = connect(&broker);
    let mut told = Vec::new();
    let held = client.resolve_with(Request::new("slow"), |progress| {
        told.push(progress.state);
        broker.open_gate("gate");
    });
    assert_eq!(held.expect("ready").generation(), 1);
    assert_eq!(told.first(), Some(&State::Starting));
    let error = client.resolve(Request::new("nobody")).expect_err("there is no such service");
    assert_eq!(error.refusal().map(|refusal| refusal.code), Some(Code::ServiceUnknown), "{error:?}");
}

fn bytes_go_both_ways_over_a_path_and_a_port() {
    const BYTES: usize = 4 << 20;
    let broker = on_a_path_and_a_port(&["--cat"]);
    let client = connect(&broker);
    for service in ["path", "port"] {
        let stream = client.connect_backend(service, "^1").expect("ready");
        stream.set_read_timeout(Some(BOUND)).expect("not zero");
        let bytes: Vec<u8> = (0..BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut echo = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                (&stream).write_all(&bytes).expect("it reads");
                stream.shutdown(Shutdown::Write).expect("a half-close");
            });
            (&stream).read_to_end(&mut echo).expect("the other direction stays open");
        });
        let (bytes_back, end) = echo.split_at(BYTES.min(echo.len()));
        assert!(bytes_back == bytes, "{service}: the bytes come back as they were");
        assert_eq!(String::from_utf8_lossy(end), format!("EOF after {BYTES} bytes"), "{service}");
        assert_eq!(broker.backend(service)["holds"], 1, "{service}: the stream holds it");
        drop(stream);
        broker.wait_backend(service, "held by nobody", |b| b["holds"] == 0);
    }
}

fn a_socket_that_the_broker_connected_is_talked_over() {
    let broker = on_a_path_and_a_port(&[]);
    let client = connect(&broker);
    for service in ["path", "port"] {
        let held = client.resolve(Request::new(service).connected()).expect("ready");
        assert!(held.negotiated().connected, "{service}");
        for _ in 0..2 {
            let mut stream = held.connect().expect("the first came with the answer, another is asked for");
            assert_served_by(&mut stream, &broker.backend(service));
        }
    }
}

fn events_are_told_one_after_the_other() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let client = connect(&broker);
    let mut events = client.events();
    let held = client.resolve(Request::new("x")).expect("ready");
    kill_backend(&broker.backend("x"));
    let is_ready = |event: &SessionEvent| matches!(event, SessionEvent::Backend { event: Event::Ready { .. }, .. });
    let seen = up_to(&mut events, is_ready);
    let all: Vec<Event> = seen
        .into_iter()
        .map(|event| match event {
            SessionEvent::Backend { request_id, event } if request_id == held.request_id() => event,
            other => panic!("{other:?}"),
        })
        .collect();
    let [Event::Exited { generation: 1, .. }, Event::Restarting { .. }, Event::Ready { generation: 2, .. }] = all[..]
    else {
        panic!("{all:?}")
    };
    assert_eq!(held.generation(), 2);
    assert_served_by(&mut held.connect().expect("it serves"), &broker.backend("x"));
    client.shutdown();
    assert_eq!(events.collect::<Vec<_>>(), [SessionEvent::Closed], "the iterator ends with the session");
    assert!(!held.is_held());
}

fn it_goes_on_after_its_broker_was_restarted() {
    let mut broker = on_a_path_and_a_port(&[]);
    let client = connect(&broker);
    let mut events = client.events();
    let held = ["path", "port"].map(|service| (service, client.resolve(Request::new(service)).expect("ready")));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut old = held[0].1.connect().expect("it serves");
        assert_served_by(&mut old, &broker.backend("path"));
        broker.signal(signal);
        let _ = broker.ended();
        // Asked while there is no broker, answered by the next.
        let waiting = thread::spawn({
            let client = client.clone();
            move || client.resolve(Request::new("port")).map(|held| held.pid())
        });
        broker.start_again();
        let pid = waiting.join().expect("no panic").expect("the next broker answers");
        let seen = up_to(&mut events, |event| *event == SessionEvent::Reconnected);
        let is_announced = seen.iter().any(|event| matches!(event, SessionEvent::GoAway(_)));
        assert_eq!(is_announced, signal == Signal::SIGTERM, "{seen:?}");
        // Its daemon outlives the broker.
        assert_served_by(&mut old, &broker.backend("path"));
        for (service, held) in &held {
            let backend = broker.backend(service);
            assert!(held.is_held() && backend["pid"] == Value::from(held.pid()), "{backend}");
            assert_served_by(&mut held.connect().expect("it serves"), &backend);
        }
        assert_eq!(Value::from(pid), broker.backend("port")["pid"]);
    }
}

fn many_threads_share_a_session() {
    let broker = on_a_path_and_a_port(&[]);
    let client = connect(&broker);
    let work = |number: usize| {
        let client = client.clone();
        let service = ["path", "port"][number % 2];
        thread::spawn(move || {
            (0..20).for_each(|_| assert_eq!(client.resolve(Request::new(service)).expect("ready").service(), service));
        })
    };
    let threads: Vec<_> = (0..16).map(work).collect();
    for thread in threads {
        thread.join().expect("every answer is for the one who asked");
    }
    let status: Value = serde_json::from_str(&client.admin(AdminRequest::Status).expect("own user")).expect("JSON");
    assert_eq!(status["broker"]["sessions"], 1, "{status}");
    for service in ["path", "port"] {
        assert_eq!(broker.starts(service).len(), 1, "{service}");
    }
}

fn when_all_is_dropped_the_session_ends() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let wait_sessions = |count: u64| {
        let what = format!("{count} sessions and the one that asks");
        broker_tests::wait_until(what, || broker.status()["broker"]["sessions"] == count + 1);
    };
    let client = connect(&broker);
    let events = client.events();
    let held = client.resolve(Request::new("x")).expect("ready");
    let mut stream = held.connect().expect("it serves");
    wait_sessions(1);
    drop((client, events, held));
    assert_served_by(&mut stream, &broker.backend("x"));
    // Those that asked for the status may not all be gone yet.
    wait_sessions(1);
    assert_eq!(broker.backend("x")["holds"], 1);
    drop(stream);
    wait_sessions(0);
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
}
