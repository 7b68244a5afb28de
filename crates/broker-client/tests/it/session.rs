//! Requests and their answers, right and wrong.

use std::time::Duration;

use broker_client::{Client, Error, ProtocolError, Request};
use broker_proto::{
    AdminRequest, ClientInfo, ClientMessage, Code, Delivery, Endpoint, Evidence, FrameError, Hello, Refusal,
    ServerMessage, State,
};

use crate::fake::{Broker, backend, chain, negotiated, progress, soon};

#[tokio::test]
async fn a_request_arrives_as_it_was_made() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let request = Request::new("redis").version("^7").instance("ci").deadline(Duration::from_secs(20)).found_dead(3);
    let _pending = client.resolve(request);
    peer.greet().await;
    let expected = Hello {
        request_id: 1,
        instance: "ci".to_owned(),
        service: "redis".to_owned(),
        version_requirement: "^7".to_owned(),
        client: ClientInfo { name: "test".to_owned(), version: "1.0.0".to_owned() },
        deadline_ms: Some(20_000),
        delivery: Delivery::Endpoint,
        found_dead: Some(3),
    };
    assert_eq!(peer.hello().await, expected);
}

#[tokio::test]
async fn answers_out_of_order_find_their_requests() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let first = client.resolve(Request::new("first"));
    let second = client.resolve(Request::new("second"));
    let order = client.admin(AdminRequest::Status);
    peer.greet().await;
    let (a, b) = (peer.hello().await, peer.hello().await);
    assert_eq!((a.service.as_str(), b.service.as_str()), ("first", "second"));
    let Some(ClientMessage::Admin { request_id, request: AdminRequest::Status }) = peer.hear().await else {
        panic!("no order");
    };
    peer.say(ServerMessage::AdminReply { request_id, json: "{}".to_owned() }).await;
    let mut later = backend(b.request_id);
    later.endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 7000 };
    peer.say(ServerMessage::Negotiated(later)).await;
    peer.say(negotiated(a.request_id)).await;
    assert_eq!(soon(first).await.expect("granted").endpoint().to_string(), "unix:/nowhere/redis.sock");
    assert_eq!(soon(second).await.expect("granted").endpoint().to_string(), "tcp:127.0.0.1:7000");
    assert_eq!(soon(order).await.expect("answered"), "{}");
}

#[tokio::test]
async fn progress_comes_in_order_and_ends_with_the_answer() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let mut pending = client.resolve(Request::new("redis"));
    peer.greet().await;
    let id = peer.hello().await.request_id;
    for state in [State::Starting, State::Backoff, State::Starting] {
        peer.say(progress(id, state)).await;
    }
    peer.say(negotiated(id)).await;
    let mut seen = Vec::new();
    while let Some(progress) = soon(pending.progress()).await {
        seen.push(progress.state);
    }
    assert_eq!(seen, [State::Starting, State::Backoff, State::Starting]);
    let held = soon(pending).await.expect("granted");
    assert_eq!((held.generation(), held.pid(), held.request_id()), (1, Some(4242), id));
}

#[tokio::test]
async fn a_refusal_arrives_with_its_evidence() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis"));
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    let mut refusal = Refusal::new(Code::BackendUnavailable, "redis crashed twice").retry_after_ms(29_000);
    refusal.evidence = Evidence { exit_code: Some(1), attempt: Some(1), ..Evidence::default() };
    peer.say(ServerMessage::Refused { request_id, refusal: refusal.clone() }).await;
    let error = soon(pending).await.expect_err("refused");
    assert_eq!(error.refusal(), Some(&refusal));
    assert_eq!(error.to_string(), "refused: backend_unavailable: redis crashed twice");
}

#[tokio::test]
async fn a_refusal_of_the_whole_session_is_every_requests_answer() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let (one, two) = (client.resolve(Request::new("a")), client.resolve(Request::new("b")));
    peer.greet().await;
    let _ = peer.hello().await;
    let refusal = Refusal::new(Code::RateLimited, "user 1000 has 64 sessions");
    peer.say(ServerMessage::Refused { request_id: 0, refusal: refusal.clone() }).await;
    drop(peer);
    assert_eq!(soon(one).await.expect_err("refused").refusal(), Some(&refusal));
    assert_eq!(soon(two).await.expect_err("refused").refusal(), Some(&refusal));
    let late = soon(client.resolve(Request::new("c"))).await.expect_err("refused");
    assert_eq!(late.refusal(), Some(&refusal));
}

#[tokio::test]
async fn a_close_midway_fails_everything_that_waits() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let (one, two) = (client.resolve(Request::new("a")), client.admin(AdminRequest::Status));
    peer.greet().await;
    let _ = (peer.hello().await, peer.hear().await);
    peer.raw(&[20, 0, 0, 0, 1]).await;
    drop(peer);
    for error in [soon(one).await.expect_err("closed"), soon(two).await.expect_err("closed")] {
        assert_eq!(chain(&error), "the broker closed the connection: unexpected end of file");
    }
    let after = soon(client.resolve(Request::new("c"))).await.expect_err("closed");
    assert!(matches!(after, Error::Disconnected { source: Some(_) }));
}

#[tokio::test]
async fn a_clean_close_has_no_source() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("a"));
    peer.greet().await;
    let _ = peer.hello().await;
    drop(peer);
    assert!(matches!(soon(pending).await, Err(Error::Disconnected { source: None })));
}

/// Answers the first request with these bytes.
async fn answered_with(bytes: &[u8]) -> Error {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("a"));
    let _ = peer.preamble().await;
    peer.raw(bytes).await;
    soon(pending).await.expect_err("nonsense")
}

#[tokio::test]
async fn garbage_is_a_protocol_error() {
    let greeting = broker_proto::Preamble::writing(1).to_bytes();
    let after_greeting = |bytes: &[u8]| [&greeting, bytes].concat();

    let error = answered_with(b"HTTP/1.1 400 Bad Request\r\n").await;
    assert!(matches!(error, Error::Protocol(ProtocolError::Frame(FrameError::Magic(_)))), "{error:?}");
    let error = answered_with(&after_greeting(&[0xff; 4])).await;
    assert!(matches!(error, Error::Protocol(ProtocolError::Frame(FrameError::TooLong { .. }))), "{error:?}");
    let error = answered_with(&after_greeting(&[1, 0, 0, 0, 200])).await;
    assert!(matches!(error, Error::Protocol(ProtocolError::Message(_))), "{error:?}");
    let error = answered_with(&after_greeting(&[3, 0, 0, 0, 5, 1, 1])).await;
    assert_eq!(
        chain(&error),
        "the broker does not keep to the protocol: frame is no message: 1 bytes are left after the message"
    );
}

#[tokio::test]
async fn messages_that_concern_nobody_are_harmless() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("a"));
    peer.greet().await;
    let id = peer.hello().await.request_id;
    peer.say(progress(99, State::Starting)).await;
    peer.say(ServerMessage::Pong { nonce: 3 }).await;
    peer.say(ServerMessage::Refused { request_id: 98, refusal: Refusal::new(Code::Internal, "x") }).await;
    peer.say(negotiated(97)).await;
    peer.say(negotiated(id)).await;
    peer.say(negotiated(id)).await;
    let _held = soon(pending).await.expect("granted");
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id: 97 }), "nobody here asked for it");
}

#[tokio::test]
async fn a_silent_broker_is_given_a_second_more_than_the_deadline() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let mut pending = client.resolve(Request::new("redis").deadline(Duration::from_millis(20)));
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    assert_eq!(soon(pending.progress()).await, None);
    let error = soon(pending).await.expect_err("no answer");
    assert_eq!(error.to_string(), "the broker's answer for `redis@*/default` took longer than 20ms");
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }));
}

#[tokio::test]
async fn a_request_too_long_for_a_frame_is_refused_here() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let error = soon(client.resolve(Request::new("x".repeat(70_000)))).await.expect_err("too long");
    assert_eq!(error.refusal().map(|refusal| refusal.code), Some(Code::Malformed));
    let _pending = client.resolve(Request::new("short"));
    peer.greet().await;
    assert_eq!(peer.hello().await.service, "short");
}

#[tokio::test]
async fn more_requests_than_fit_the_queue_are_all_answered() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending: Vec<_> = (0..300).map(|_| client.resolve(Request::new("a"))).collect();
    let serve = tokio::spawn(async move {
        peer.greet().await;
        for _ in 0..300 {
            let id = peer.hello().await.request_id;
            peer.say(negotiated(id)).await;
        }
        peer
    });
    let mut held = Vec::new();
    for pending in pending {
        held.push(soon(pending).await.expect("granted"));
    }
    soon(serve).await.expect("served");
}

#[tokio::test]
async fn no_broker_lists_what_was_tried() {
    let broker = Broker::new();
    let absent = broker.path("absent.sock");
    let error = Client::builder().socket(&absent).connect().await.expect_err("nobody listens");
    let Error::NoBroker { tried } = &error else { panic!("{error:?}") };
    assert_eq!(tried.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&absent]);
}

#[tokio::test]
async fn a_pong_comes_after_what_was_told_before_it() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let mut events = client.events();
    let pending = client.ping();
    peer.greet().await;
    let Some(ClientMessage::Ping { nonce }) = peer.hear_any().await else { panic!("no ping") };
    peer.go_away(broker_proto::Reconnect::Never).await;
    peer.say(ServerMessage::Pong { nonce: nonce + 1 }).await;
    peer.say(ServerMessage::Pong { nonce }).await;
    soon(pending).await.expect("answered");
    let told = soon(events.next()).await;
    assert_eq!(told, Some(broker_client::SessionEvent::GoAway(broker_proto::Reconnect::Never)));
}
