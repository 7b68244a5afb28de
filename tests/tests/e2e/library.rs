//! The client library against a real broker: holds, streams, events, and backends that died behind its back.

use std::future::Future;
use std::thread;
use std::time::Duration;

use broker_client::{Client, Error, Request, SessionEvent};
use broker_proto::{AdminRequest, Code, Event, State};
use broker_tests::{Broker, Connection, Service, Setup, trials};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::recovery::kill_backend;

trials![
    one_call_gives_a_connected_stream,
    a_dropped_hold_is_released_and_a_stream_keeps_it,
    a_connection_to_a_backend_that_died_reaches_its_successor,
    a_pending_request_tells_its_progress_and_ends_by_its_deadline,
    a_refusal_is_typed,
    events_tell_of_restarts_and_stops,
    a_session_that_does_not_reconnect_ends_with_its_broker,
];

/// Runs the future here and the session's tasks in a thread of their own, so that a test may block between its steps.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    block_on_steps(async { tokio::time::timeout(broker_tests::BOUND, future).await.expect("an end within the bound") })
}

/// The same for a future of many steps, each of which has a bound of its own.
pub(crate) fn block_on_steps<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let _ = runtime.block_on(stopped);
    });
    let output = handle.block_on(future);
    drop(stop);
    thread.join().expect("the session's tasks end well");
    output
}

pub(crate) async fn client(broker: &Broker) -> Client {
    Client::builder().socket(broker.socket()).client_name("e2e", "1.0.0").connect().await.expect("the broker accepts")
}

fn one_call_gives_a_connected_stream() {
    let tcp = Service::fake("port", &["--cat"]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = Broker::start(&[&Service::fake("path", &["--cat"]), &tcp]);
    block_on(async {
        let client = client(&broker).await;
        for service in ["path", "port"] {
            let stream = client.connect_backend(service, "^1").await.expect("ready");
            let (mut input, mut output) = stream.into_split();
            output.write_all(b"hello").await.expect("served");
            output.shutdown().await.expect("half-closed");
            let mut text = String::new();
            input.read_to_string(&mut text).await.expect("served");
            assert_eq!(text, "helloEOF after 5 bytes");
        }
        let status: Value =
            serde_json::from_str(&client.admin(AdminRequest::Status).await.expect("own user")).expect("JSON");
        assert_eq!(status["backends"].as_array().map(Vec::len), Some(2));
    });
}

fn a_dropped_hold_is_released_and_a_stream_keeps_it() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let holds = |count: u64| {
        broker.wait_backend("x", &format!("held {count} times"), |b| b["holds"] == count);
    };
    block_on(async {
        let client = client(&broker).await;
        let held = client.resolve(Request::new("x")).await.expect("ready");
        let stream = client.connect_backend("x", "*").await.expect("ready");
        holds(2);
        drop(held);
        holds(1);
        drop(client);
        holds(1);
        drop(stream);
        holds(0);
    });
}

fn a_connection_to_a_backend_that_died_reaches_its_successor() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    block_on(async {
        let client = client(&broker).await;
        let held = client.resolve(Request::new("x")).await.expect("ready");
        let backend = broker.backend("x");
        kill_backend(&backend);
        // A process of several threads closes its sockets with the last of them, some time after it looks dead.
        broker_tests::wait_until("its socket is dead, or its successor's", || {
            let endpoint = backend["endpoint"].as_str().expect("an endpoint");
            Connection::to(endpoint).is_err() || broker.backend("x")["generation"] == 2
        });
        let mut stream = held.connect().await.expect("the library asks again for what it found dead");
        stream.write_all(b"hello\n").await.expect("served");
        let mut byte = [0];
        stream.read_exact(&mut byte).await.expect("the successor answers");
        assert_eq!(broker.backend("x")["generation"], 2);
    });
}

fn a_pending_request_tells_its_progress_and_ends_by_its_deadline() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("slow", &["--ready-when", &gate])).start();
    block_on(async {
        let client = client(&broker).await;
        let error =
            client.resolve(Request::new("slow").deadline(Duration::from_millis(50))).await.expect_err("too soon");
        assert!(matches!(&error, Error::Refused(refusal) if refusal.code == Code::StartTimeout), "{error:?}");

        let mut pending = client.resolve(Request::new("slow"));
        let progress = pending.progress().await.expect("it is not ready");
        assert_eq!(progress.state, State::Starting);
        let given_up = client.resolve(Request::new("slow"));
        broker.wait_backend("slow", "starting", |b| b["state"] == "starting");
        drop(given_up);
        broker.open_gate("gate");
        while pending.progress().await.is_some() {}
        let held = pending.await.expect("ready");
        assert_eq!(held.generation(), 1);
    });
}

fn a_refusal_is_typed() {
    let broker = Broker::start(&[&Service::fake("bad", &["--exit", "7"])]);
    block_on(async {
        let client = client(&broker).await;
        for (service, code) in [("nobody", Code::ServiceUnknown), ("bad", Code::BackendUnavailable)] {
            let error = client.resolve(Request::new(service)).await.expect_err("refused");
            assert!(matches!(&error, Error::Refused(refusal) if refusal.code == code), "{error:?}");
        }
    });
    let nowhere = Client::builder().socket(broker.path("nowhere"));
    let error = block_on(nowhere.connect()).expect_err("nobody listens");
    assert!(matches!(error, Error::NoBroker { .. }), "{error:?}");
}

fn events_tell_of_restarts_and_stops() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    block_on(async {
        let client = client(&broker).await;
        let mut events = client.events();
        let held = client.resolve(Request::new("x")).await.expect("ready");
        kill_backend(&broker.backend("x"));
        loop {
            let event = events.next().await.expect("the session goes on");
            if matches!(event, SessionEvent::Backend { event: Event::Ready { generation: 2, .. }, .. }) {
                break;
            }
        }
        let stop = broker.ctl_in_background(&["stop", "x"]);
        loop {
            let event = events.next().await.expect("the session goes on");
            if matches!(event, SessionEvent::Backend { event: Event::Stopped, .. }) {
                break;
            }
        }
        let _ = stop.finish().done();
        drop(held);
        assert_eq!(broker.starts("x").len(), 2, "a hold ended by a stop is not retaken");
    });
}

fn a_session_that_does_not_reconnect_ends_with_its_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    block_on(async {
        let client = Client::builder().socket(broker.socket()).no_reconnect().connect().await.expect("it accepts");
        let _held = client.resolve(Request::new("x")).await.expect("ready");
        broker.signal(nix::sys::signal::Signal::SIGINT);
        client.closed().await;
        let error = client.resolve(Request::new("x")).await.expect_err("the broker is gone");
        assert!(matches!(error, Error::Disconnected { .. } | Error::GoingAway(_)), "{error:?}");
    });
    assert!(broker.ended().success());
}
