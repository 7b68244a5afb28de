//! Preambles: what is said first, and what happens where two versions meet.

use broker_client::{Error, ProtocolError, Request};
use broker_proto::{Code, LENGTH_BYTES, Preamble, Refusal, ServerMessage};
use tokio::io::AsyncReadExt;

use crate::fake::{Broker, negotiated, soon};

#[tokio::test]
async fn preamble_and_first_message_are_one_write() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let _pending = client.resolve(Request::new("redis"));
    let mut bytes = vec![0; 4096];
    let count = soon(peer.stream.read(&mut bytes)).await.expect("read");
    assert_eq!(bytes[..Preamble::LENGTH], Preamble::writing(1).to_bytes());
    let prefix: [u8; LENGTH_BYTES] = bytes[Preamble::LENGTH..][..LENGTH_BYTES].try_into().expect("four bytes");
    assert_eq!(count, Preamble::LENGTH + LENGTH_BYTES + u32::from_le_bytes(prefix) as usize, "one read has it all");
}

#[tokio::test]
async fn a_newer_broker_that_reads_version_1_is_spoken_to() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis"));
    let _ = peer.preamble().await;
    peer.raw(&Preamble { lowest: 1, highest: 9, written: 1 }.to_bytes()).await;
    let id = peer.hello().await.request_id;
    peer.say(negotiated(id)).await;
    soon(pending).await.expect("granted");
}

#[tokio::test]
async fn a_broker_that_cannot_read_the_first_message_gets_it_again() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let (first, second) = (client.resolve(Request::new("first")), client.resolve(Request::new("second")));
    let _ = peer.preamble().await;
    let unread = peer.hello().await;
    peer.raw(&Preamble { lowest: 1, highest: 1, written: 0 }.to_bytes()).await;
    assert_eq!(peer.preamble().await, Preamble::writing(1));
    assert_eq!(peer.hello().await, unread, "the same message, and none between");
    peer.raw(&Preamble::writing(1).to_bytes()).await;
    let other = peer.hello().await;
    assert_eq!(other.service, "second");
    peer.say(negotiated(other.request_id)).await;
    peer.say(negotiated(unread.request_id)).await;
    soon(first).await.expect("granted");
    soon(second).await.expect("granted");
}

async fn greeted_with(preambles: &[Preamble]) -> Error {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let pending = client.resolve(Request::new("redis"));
    for preamble in preambles {
        let _ = (peer.preamble().await, peer.hello().await);
        peer.raw(&preamble.to_bytes()).await;
    }
    soon(pending).await.expect_err("no common version")
}

#[tokio::test]
async fn without_a_common_version_the_request_is_refused() {
    for written in [0, 7] {
        let error = greeted_with(&[Preamble { lowest: 7, highest: 9, written }]).await;
        let refusal = error.refusal().expect("a refusal");
        assert_eq!(refusal.code, Code::ProtocolUnsupported);
        assert_eq!(refusal.reason, "the broker speaks protocol versions 7 to 9, this client 1 to 1");
    }
}

#[tokio::test]
async fn a_broker_that_never_settles_on_a_version_is_left() {
    let undecided = Preamble { lowest: 1, highest: 1, written: 0 };
    let error = greeted_with(&[undecided, undecided]).await;
    assert!(matches!(error, Error::Protocol(ProtocolError::Version { version: 0 })), "{error:?}");
    let error = greeted_with(&[Preamble { lowest: 1, highest: 5, written: 5 }]).await;
    assert!(matches!(error, Error::Protocol(ProtocolError::Version { version: 5 })), "{error:?}");
}

#[tokio::test]
async fn a_broker_that_refuses_at_the_door_is_understood() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    let refusal = Refusal::new(Code::Overloaded, "4096 sessions are open").retry_after_ms(500);
    peer.raw(&Preamble::writing(1).to_bytes()).await;
    peer.say(ServerMessage::Refused { request_id: 0, refusal: refusal.clone() }).await;
    drop(peer);
    let error = soon(client.resolve(Request::new("redis"))).await.expect_err("refused");
    assert_eq!(error.refusal(), Some(&refusal), "{error:?}");
}

#[tokio::test]
async fn a_broker_that_greets_first_still_hears_the_clients_preamble() {
    let broker = Broker::new();
    let (client, mut peer) = broker.session().await;
    peer.raw(&Preamble::writing(1).to_bytes()).await;
    let pending = client.resolve(Request::new("redis"));
    assert_eq!(peer.preamble().await, Preamble::writing(1));
    let id = peer.hello().await.request_id;
    peer.say(negotiated(id)).await;
    soon(pending).await.expect("granted");
}
