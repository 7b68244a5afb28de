//! From a grant to bytes: endpoints that are dialled, sockets that are delivered.

use std::os::unix::net::UnixStream as StdUnixStream;

use broker_client::{BackendStream, Error, ProtocolError, Request};
use broker_proto::{ClientMessage, Delivery, Endpoint, Negotiated, RequestId, ServerMessage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::fake::{Broker, backend, soon};

fn delivered(request_id: RequestId) -> ServerMessage {
    ServerMessage::Negotiated(Negotiated { connected: true, ..backend(request_id) })
}

fn at(request_id: RequestId, endpoint: Endpoint, generation: u64) -> ServerMessage {
    ServerMessage::Negotiated(Negotiated { endpoint, generation, ..backend(request_id) })
}

/// The far end of a delivered socket, and the near end to deliver.
fn pair() -> (UnixStream, StdUnixStream) {
    let (far, near) = StdUnixStream::pair().expect("a pair");
    far.set_nonblocking(true).expect("non-blocking");
    (UnixStream::from_std(far).expect("registered"), near)
}

async fn says(far: &mut (impl AsyncWriteExt + Unpin), near: &mut BackendStream, word: &[u8]) {
    soon(far.write_all(word)).await.expect("written");
    let mut heard = vec![0; word.len()];
    soon(near.read_exact(&mut heard)).await.expect("read");
    assert_eq!(heard, word);
}

#[tokio::test]
async fn delivered_sockets_go_to_the_requests_they_came_for() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let one = client.resolve(Request::new("one").connected());
    let two = client.resolve(Request::new("two").connected());
    peer.greet().await;
    let (a, b) = (peer.hello().await, peer.hello().await);
    assert_eq!(a.delivery, Delivery::Connected);
    let ((mut far_one, near_one), (mut far_two, near_two)) = (pair(), pair());
    peer.say_with(delivered(b.request_id), near_two);
    peer.say(crate::fake::progress(a.request_id, broker_proto::State::Starting)).await;
    peer.say_with(delivered(a.request_id), near_one);
    let mut one = soon(soon(one).await.expect("granted").connect()).await.expect("connected");
    let mut two = soon(soon(two).await.expect("granted").connect()).await.expect("connected");
    says(&mut far_one, &mut one, b"for one").await;
    says(&mut far_two, &mut two, b"for two").await;
}

#[tokio::test]
async fn a_second_connection_of_a_delivered_backend_is_asked_for() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("one").connected());
    peer.greet().await;
    let id = peer.hello().await.request_id;
    let ((_far, near), (mut far_again, near_again)) = (pair(), pair());
    peer.say_with(delivered(id), near);
    let held = soon(pending).await.expect("granted");
    let _stream = soon(held.connect()).await.expect("connected");
    let (again, ()) = tokio::join!(held.connect(), async {
        let hello = peer.hello().await;
        assert_eq!((hello.delivery, hello.found_dead), (Delivery::Connected, None));
        peer.say_with(delivered(hello.request_id), near_again);
    });
    says(&mut far_again, &mut again.expect("connected"), b"again").await;
}

#[tokio::test]
async fn a_delivered_socket_that_ended_before_its_use_is_replaced_once() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("one").connected());
    peer.greet().await;
    let id = peer.hello().await.request_id;
    let ((far, near), (far_again, near_again)) = (pair(), pair());
    peer.say_with(delivered(id), near);
    let held = soon(pending).await.expect("granted");
    drop((far, far_again));
    let (stream, ()) = tokio::join!(held.connect(), async {
        let hello = peer.hello().await;
        assert_eq!(hello.delivery, Delivery::Connected);
        peer.say_with(delivered(hello.request_id), near_again);
    });
    let mut stream = stream.expect("a backend that closes at once is the caller's to judge");
    assert_eq!(soon(stream.read(&mut [0])).await.expect("read"), 0);
}

#[tokio::test]
async fn a_last_word_in_a_delivered_socket_is_not_lost() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("one").connected());
    peer.greet().await;
    let id = peer.hello().await.request_id;
    let (mut far, near) = pair();
    peer.say_with(delivered(id), near);
    let held = soon(pending).await.expect("granted");
    soon(far.write_all(b"bye")).await.expect("written");
    drop(far);
    let mut stream = soon(held.connect()).await.expect("connected");
    let mut heard = Vec::new();
    soon(stream.read_to_end(&mut heard)).await.expect("read");
    assert_eq!(heard, b"bye");
}

#[tokio::test]
async fn an_announced_socket_that_does_not_come_is_a_protocol_error() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("one").connected());
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    peer.say(delivered(request_id)).await;
    let error = soon(pending).await.expect_err("no socket");
    assert!(matches!(error, Error::Protocol(ProtocolError::NoDescriptor { request_id: 1 })), "{error:?}");
}

#[tokio::test]
async fn descriptors_that_nobody_claims_are_closed() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let dropped = client.resolve(Request::new("dropped").connected());
    peer.greet().await;
    let request_id = peer.hello().await.request_id;
    let ((mut far, near), (mut far_stray, stray)) = (pair(), pair());
    drop(dropped);
    peer.say_with(delivered(request_id), near);
    peer.say_with(ServerMessage::Pong { nonce: 1 }, stray);
    assert_eq!(soon(far.read(&mut [0; 8])).await.expect("read"), 0, "the answer had no taker");
    assert_eq!(soon(far_stray.read(&mut [0; 8])).await.expect("read"), 0, "the message announced none");
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id }));
    drop(client);
}

#[tokio::test]
async fn a_half_close_reaches_the_backend_and_its_answer_comes_back() {
    let broker = Broker::new();
    let listener = UnixListener::bind(broker.path("backend.sock")).expect("a listener");
    let (client, mut peer) = broker.session().await;
    let connecting = tokio::spawn(async move { client.connect_backend("echo", "^1").await });
    peer.greet().await;
    let hello = peer.hello().await;
    assert_eq!((hello.service.as_str(), hello.version_requirement.as_str()), ("echo", "^1"));
    let path = broker.path("backend.sock").display().to_string();
    peer.say(at(hello.request_id, Endpoint::Unix { path }, 1)).await;
    let stream = soon(connecting).await.expect("no panic").expect("connected");
    assert_eq!(stream.held().request_id(), hello.request_id);
    let (mut backend, _) = soon(listener.accept()).await.expect("accepted");
    let (mut read, mut write) = stream.into_split();
    soon(write.write_all(b"question")).await.expect("written");
    soon(write.shutdown()).await.expect("half closed");
    let mut heard = Vec::new();
    soon(backend.read_to_end(&mut heard)).await.expect("read to the end");
    soon(backend.write_all(b"answer")).await.expect("the other half is open");
    let mut answer = [0; 6];
    soon(read.read_exact(&mut answer)).await.expect("read");
    assert_eq!((heard.as_slice(), &answer), (&b"question"[..], b"answer"));
    drop(write);
    drop(read);
    while peer.hear().await.is_some() {}
}

#[tokio::test]
async fn a_dead_endpoint_is_reported_and_asked_for_again_once() {
    let broker = Broker::new();
    let backend_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let alive =
        Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: backend_listener.local_addr().expect("an address").port() };
    let dead = Endpoint::Unix { path: broker.path("dead.sock").display().to_string() };
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis").version("^7"));
    peer.greet().await;
    let id = peer.hello().await.request_id;
    peer.say(at(id, dead.clone(), 4)).await;
    let held = soon(pending).await.expect("granted");
    let answer = async |peer: &mut crate::fake::Peer, endpoint: &Endpoint| {
        let hello = peer.hello().await;
        assert_eq!((hello.version_requirement.as_str(), hello.found_dead), ("7.0.15", Some(4)));
        peer.say(at(hello.request_id, endpoint.clone(), 5)).await;
        hello.request_id
    };

    let (stream, _) = tokio::join!(held.connect(), answer(&mut peer, &alive));
    let mut stream = soon(async { stream }).await.expect("connected");
    assert_eq!((held.generation(), stream.held().generation()), (4, 5));
    let (mut far, _) = soon(backend_listener.accept()).await.expect("accepted");
    says(&mut far, &mut stream, b"alive").await;

    let (result, again) = tokio::join!(held.connect(), answer(&mut peer, &dead));
    let Err(Error::Endpoint { endpoint, source }) = result else { panic!("{result:?}") };
    assert_eq!((endpoint, source.kind()), (dead, std::io::ErrorKind::NotFound));
    assert_eq!(peer.hear().await, Some(ClientMessage::Release { request_id: again }), "what could not be used");
}
