//! What a caller hears of a session besides answers.

use std::pin::Pin;
use std::task::{Context, Poll};

use broker_proto::{Event, Reconnect, RequestId};
use futures_core::Stream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

/// Something that nobody asked for happened on a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Something happened to a backend that is held. After a reconnect, [`Event::Ready`] says that the hold was taken
    /// again and the backend is another process than before, and [`Event::Failed`] that it could not be taken: for
    /// good if the refusal's code is fatal, otherwise it is tried again.
    Backend {
        /// Which: that of [`Held::request_id`](crate::Held::request_id).
        request_id: RequestId,
        /// What.
        event: Event,
    },
    /// The broker goes; requests in flight are still answered. New ones wait for the next broker, or fail if the session
    /// does not reconnect or the broker does not come back.
    GoAway(Reconnect),
    /// The connection ended, and the session is about to reconnect. Requests wait meanwhile.
    Disconnected {
        /// Why, in words.
        reason: String,
    },
    /// There is a connection again, and every hold was asked for again; what changed was told before.
    Reconnected,
    /// The session is over. Nothing follows.
    Closed,
}

/// The events of a session, from the moment of [`Client::events`](crate::Client::events) on; a [`Stream`].
///
/// A reader that falls more than 256 events behind misses the oldest. It does not keep the session open.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use broker_client::SessionEvent;
///
/// let mut events = client.events();
/// client.shutdown().await;
/// assert_eq!(events.next().await, Some(SessionEvent::Closed));
/// assert_eq!(events.next().await, None);
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
#[derive(Debug)]
pub struct Events {
    /// `None` once it has said that all is over.
    events: Option<BroadcastStream<SessionEvent>>,
}

impl Events {
    pub(crate) fn new(events: broadcast::Receiver<SessionEvent>) -> Self {
        Self { events: Some(BroadcastStream::new(events)) }
    }

    /// Waits for the next event; `None` after [`SessionEvent::Closed`]. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for Events {
    type Item = SessionEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        let this = self.get_mut();
        loop {
            let Some(events) = &mut this.events else { return Poll::Ready(None) };
            match Pin::new(events).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(event))) => return Poll::Ready(Some(event)),
                Poll::Ready(Some(Err(BroadcastStreamRecvError::Lagged(missed)))) => {
                    tracing::warn!(missed, "events of the broker were missed");
                }
                Poll::Ready(None) => {
                    this.events = None;
                    return Poll::Ready(Some(SessionEvent::Closed));
                }
            }
        }
    }
}
