//! What ends a session, and what its callers see of that.

use std::time::Duration;

use broker_client::{Error, ReconnectConfig, SessionEvent};
use broker_proto::{ClientMessage, Code, Reconnect, Refusal, RequestId};

use crate::fake::{Broker, soon};
use crate::keeping::{answer, aside, builder, connect, hold, quickly, redis, wait_for};

#[tokio::test]
async fn a_broker_that_accepts_and_closes_for_ever_ends_the_session_after_exactly_max_attempts() {
    let broker = Broker::new();
    let client = connect(builder(&broker).reconnect(quickly(7))).await;
    let closing = aside(async move {
        for _ in 0..7 {
            drop(broker.accept().await);
        }
        broker
    });
    let error = soon(client.closed()).await;
    assert!(matches!(error, Error::CleanCloses { attempts: 7 }), "{error:?}");
    assert!(closing.await.is_idle(), "it is not dialled again");
    let error = answer(client.resolve(redis())).await.expect_err("the session is over");
    assert!(matches!(error, Error::CleanCloses { attempts: 7 }), "{error:?}");
}

#[tokio::test]
async fn closes_are_clean_though_a_request_was_not_read() {
    let broker = Broker::new();
    let client = connect(builder(&broker).reconnect(quickly(7))).await;
    let pending = client.resolve(redis());
    let closing = aside(async move {
        for _ in 0..7 {
            let peer = broker.accept().await;
            // There is something to be read, and it is not.
            soon(peer.stream.readable()).await.expect("the client says something");
        }
    });
    let error = answer(pending).await.expect_err("nobody answers it");
    assert!(matches!(error, Error::CleanCloses { attempts: 7 }), "{error:?}");
    closing.await;
}

#[tokio::test]
async fn a_broker_that_refuses_the_peer_is_dialled_once() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let refusing = aside(async move {
        let mut peer = broker.accept().await;
        peer.greet_unasked().await;
        peer.refuse(0, Refusal::new(Code::PeerRejected, "not you")).await;
        broker
    });
    let error = soon(client.closed()).await;
    assert!(matches!(&error, Error::Refused(refusal) if refusal.code == Code::PeerRejected), "{error:?}");
    assert!(refusing.await.is_idle(), "it is not dialled again");
}

#[tokio::test]
async fn exhaustion_surfaces_the_last_error() {
    let broker = Broker::new();
    let client = connect(builder(&broker).reconnect(quickly(3))).await;
    drop(broker.accept().await);
    let folder = broker.leave();
    let error = soon(client.closed()).await;
    let Error::Exhausted { attempts: 3, last } = &error else { panic!("{error:?}") };
    assert!(matches!(**last, Error::NoBroker { .. }), "{last:?}");
    drop(folder);
}

#[tokio::test]
async fn a_broker_that_goes_for_good_ends_the_session() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let (held, mut peer) = hold(&client, broker.greeted().await, 7).await;
    peer.go_away(Reconnect::Never).await;
    drop(peer);
    let error = soon(client.closed()).await;
    assert!(matches!(error, Error::GoingAway(Reconnect::Never)), "{error:?}");
    assert!(!held.is_held());
    assert!(broker.is_idle());
}

#[tokio::test]
async fn a_shutdown_during_a_backoff_returns_at_once() {
    let hour = Duration::from_secs(3600);
    let config = ReconnectConfig::new(hour, hour, 9).expect("no zero");
    let broker = Broker::new();
    // The seed makes the first pause a long one.
    let client = connect(builder(&broker).reconnect(config).jitter_seed(1)).await;
    let mut events = client.events();
    drop(broker.accept().await);
    wait_for(&mut events, |event| matches!(event, SessionEvent::Disconnected { .. })).await;
    let pending = client.resolve(redis());
    soon(client.shutdown()).await;
    let error = answer(pending).await.expect_err("nobody answers it");
    assert!(matches!(error, Error::ShutDown), "{error:?}");
    assert_eq!(soon(events.next()).await, Some(SessionEvent::Closed));
    assert_eq!(soon(events.next()).await, None);
    assert!(matches!(soon(client.closed()).await, Error::ShutDown));
}

#[tokio::test]
async fn what_nobody_wants_any_more_ends_during_a_backoff() {
    let hour = Duration::from_secs(3600);
    let broker = Broker::new();
    let config = ReconnectConfig::new(hour, hour, 9).expect("no zero");
    let client = connect(builder(&broker).reconnect(config)).await;
    let mut events = client.events();
    drop(broker.accept().await);
    wait_for(&mut events, |event| matches!(event, SessionEvent::Disconnected { .. })).await;
    drop(client);
    assert_eq!(soon(events.next()).await, Some(SessionEvent::Closed));
}

#[tokio::test]
async fn a_deadline_holds_while_there_is_no_connection() {
    let hour = Duration::from_secs(3600);
    let broker = Broker::new();
    let config = ReconnectConfig::new(hour, hour, 9).expect("no zero");
    let client = connect(builder(&broker).reconnect(config).jitter_seed(1).deadline(Duration::from_millis(30))).await;
    drop(broker.accept().await);
    let error = answer(client.resolve(redis())).await.expect_err("there is no broker");
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn without_reconnecting_the_end_of_the_connection_is_the_end() {
    let broker = Broker::new();
    let client = connect(builder(&broker).no_reconnect()).await;
    let mut events = client.events();
    let (held, peer) = hold(&client, broker.greeted().await, 7).await;
    drop(peer);
    assert!(matches!(soon(client.closed()).await, Error::Disconnected { source: None }));
    assert_eq!(soon(events.next()).await, Some(SessionEvent::Closed));
    assert!(!held.is_held() && broker.is_idle());
}

#[tokio::test]
async fn dropping_the_last_of_a_session_closes_it() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let (held, peer) = hold(&client, broker.greeted().await, 7).await;
    drop(client);
    let request_id: RequestId = held.request_id();
    let closing = aside(async move {
        let mut peer = peer;
        // The release may still be told, or the close says it all.
        match peer.hear().await {
            Some(ClientMessage::Release { request_id: released }) => {
                assert_eq!(released, request_id);
                while peer.hear().await.is_some() {}
            }
            other => assert_eq!(other, None),
        }
    });
    drop(held);
    closing.await;
}
