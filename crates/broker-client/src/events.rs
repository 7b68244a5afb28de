//! What a caller hears of a session besides answers.

use broker_proto::{Event, Reconnect, RequestId};
use tokio::sync::broadcast::{self, error::TryRecvError};
use tokio::sync::watch;

use crate::error::End;

/// Something that nobody asked for happened on a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Something happened to a backend that is held.
    Backend {
        /// Which: that of [`Held::request_id`](crate::Held::request_id).
        request_id: RequestId,
        /// What.
        event: Event,
    },
    /// The broker goes; requests in flight are still answered, new ones fail.
    GoAway(Reconnect),
    /// The session is over. Nothing follows.
    Closed,
}

/// The events of a session, from the moment of [`Client::events`](crate::Client::events) on.
///
/// A reader that falls more than 256 events behind misses the oldest. It does not keep the session open.
#[derive(Debug)]
pub struct Events {
    events: broadcast::Receiver<SessionEvent>,
    ended: watch::Receiver<Option<End>>,
    over: bool,
}

impl Events {
    pub(crate) fn new((events, ended): (broadcast::Receiver<SessionEvent>, watch::Receiver<Option<End>>)) -> Self {
        Self { events, ended, over: false }
    }

    /// Waits for the next event; `None` after [`SessionEvent::Closed`]. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        while !self.over {
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Ok(event) => return Some(event),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events of the broker were missed");
                    }
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                _ = self.ended.wait_for(Option::is_some) => match self.events.try_recv() {
                    // What came before the end is told before it.
                    Ok(event) => return Some(event),
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                },
            }
        }
        let first = !self.over;
        self.over = true;
        first.then_some(SessionEvent::Closed)
    }
}
