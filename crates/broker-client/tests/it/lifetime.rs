//! What dropping things tells the broker, and how a session ends.

use std::time::Duration;

use broker_client::{Client, Error, Request, SessionEvent};
use broker_proto::{AdminRequest, ClientMessage, Event, Exit, Reconnect, ServerMessage, State};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use crate::fake::{Broker, negotiated, progress, soon};

#[tokio::test]
async fn a_request_that_is_given_up_is_released() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let mut pending = client.resolve(Request::new("redis"));
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    peer.say(progress(request_id, State::Starting)).await;
    soon(pending.progress()).await.expect("progress");
    drop(pending);
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }));
    // The broker had granted it before it read the release.
    peer.say(negotiated(request_id)).await;
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }), "an answer that nobody took");
}

#[tokio::test]
async fn an_await_that_is_given_up_is_a_release_too() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.resolve(Request::new("redis")).await }
    });
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    waiting.abort();
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }));
}

#[tokio::test]
async fn an_answer_that_is_never_looked_at_is_released() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let mut pending = client.resolve(Request::new("redis"));
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    peer.say(negotiated(request_id)).await;
    assert_eq!(soon(pending.progress()).await, None, "the answer is in");
    drop(pending);
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }));
}

#[tokio::test]
async fn a_request_dropped_before_it_was_sent_is_never_heard_of() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    drop(client.resolve(Request::new("dropped")));
    let _kept = client.resolve(Request::new("kept"));
    peer.greet().await;
    assert_eq!(peer.hello().await.service, "kept");
}

#[tokio::test]
async fn a_dropped_hold_is_released_and_the_session_goes_on() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis"));
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    peer.say(negotiated(request_id)).await;
    drop(soon(pending).await.expect("granted"));
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }));
    let _pending = client.resolve(Request::new("next"));
    assert_eq!(peer.hello().await.service, "next");
}

#[tokio::test]
async fn the_session_lives_as_long_as_a_hold_and_no_longer() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis"));
    drop(client);
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    peer.say(negotiated(request_id)).await;
    let held = soon(pending).await.expect("granted");
    drop(held);
    // A release may come before the close, which is one as well.
    while peer.hear().await.is_some() {}
}

#[tokio::test]
async fn a_session_ends_even_if_the_broker_never_greets() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis"));
    let _ = peer.preamble().await;
    let _ = peer.hello().await;
    drop((pending, client));
    assert_eq!(peer.hear().await, None);
}

#[tokio::test]
async fn events_tell_of_holds_then_of_the_drain_then_of_the_end() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let mut events = client.events();
    let pending = client.resolve(Request::new("redis"));
    let waiting = client.resolve(Request::new("slow"));
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    let _ = peer.hello().await;
    peer.say(negotiated(request_id)).await;
    let event = Event::Exited { generation: 1, exit: Exit::Signal(9), lived_ms: 12 };
    peer.say(ServerMessage::Event { request_id, event: event.clone() }).await;
    peer.say(ServerMessage::GoAway { reconnect: Reconnect::After { ms: 50 } }).await;
    let held = soon(pending).await.expect("granted");
    assert_eq!(soon(events.next()).await, Some(SessionEvent::Backend { request_id, event }));
    assert_eq!(soon(events.next()).await, Some(SessionEvent::GoAway(Reconnect::After { ms: 50 })));
    let error = soon(client.admin(AdminRequest::Status)).await.expect_err("announced");
    assert_eq!(error.to_string(), "the broker is going away: connect again in 50 ms");
    drop(peer);
    assert_eq!(soon(events.next()).await, Some(SessionEvent::Closed));
    assert_eq!(soon(events.next()).await, None);
    soon(client.closed()).await;
    assert!(matches!(soon(waiting).await, Err(Error::GoingAway(Reconnect::After { ms: 50 }))));
    drop(held);
}

#[tokio::test]
async fn a_broker_that_does_not_accept_is_a_timeout_and_no_session() {
    let broker = Broker::new();
    let path = broker.path("busy.sock");
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &UnixAddr::new(&path).expect("short")).expect("bound");
    listen(&listener, Backlog::new(0).expect("a backlog")).expect("listening");
    let _first = std::os::unix::net::UnixStream::connect(&path).expect("room for one");
    let builder = Client::builder().socket(&path).connect_timeout(Duration::from_millis(30));
    let error = soon(builder.connect()).await.expect_err("no room");
    assert_eq!(error.to_string(), format!("connecting to the broker at `{}` took longer than 30ms", path.display()));
}
