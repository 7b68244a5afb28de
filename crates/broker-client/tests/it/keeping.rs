//! What the trials of healing and of endings have in common.

use std::future::{Future, IntoFuture};
use std::time::Duration;

use broker_client::{Builder, Client, Error, Events, Held, Pending, ReconnectConfig, Request, SessionEvent};

use crate::fake::{Broker, Peer, soon};

/// Pauses so short that a test need not wait.
pub(crate) fn quickly(max_attempts: u32) -> ReconnectConfig {
    ReconnectConfig::new(Duration::from_millis(1), Duration::from_millis(2), max_attempts).expect("no zero")
}

pub(crate) fn builder(broker: &Broker) -> Builder {
    broker.builder().reconnect(quickly(1000))
}

pub(crate) async fn connect(builder: Builder) -> Client {
    soon(builder.connect()).await.expect("it accepts")
}

/// Runs the broker's part beside the test.
pub(crate) fn aside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> {
    let task = tokio::spawn(work);
    async { soon(task).await.expect("the broker's part goes well") }
}

pub(crate) async fn answer<T: Send + 'static>(pending: Pending<T>) -> Result<T, Error> {
    soon(pending.into_future()).await
}

/// Asks for redis, which the broker grants as that process.
pub(crate) async fn hold(client: &Client, mut peer: Peer, pid: u32) -> (Held, Peer) {
    let granting = aside(async move {
        let hello = peer.hello().await;
        peer.grant(&hello, pid).await;
        peer
    });
    let held = answer(client.resolve(redis())).await.expect("granted");
    (held, granting.await)
}

pub(crate) async fn wait_for(events: &mut Events, wanted: impl Fn(&SessionEvent) -> bool) -> Vec<SessionEvent> {
    let mut seen = Vec::new();
    loop {
        seen.push(soon(events.next()).await.expect("the session goes on"));
        if seen.last().is_some_and(&wanted) {
            return seen;
        }
    }
}

pub(crate) fn redis() -> Request {
    Request::new("redis").version("^7")
}
