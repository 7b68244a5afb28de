//! What callers have of a session: a way in for requests and releases, a way out for events, and its state.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use broker_proto::{Progress, RequestId};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::holds::Standing;
use super::in_flight::Ask;
use crate::error::{End, Error};
use crate::events::SessionEvent;

/// Requests that wait to be taken up by the task.
const COMMANDS_MAX: usize = 64;
/// Progress that a caller has not looked at yet; what comes on top is dropped, for the answer says more.
const PROGRESS_MAX: usize = 32;
/// Events that a reader has not looked at yet; the oldest are dropped.
const EVENTS_MAX: usize = 256;

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A backend, held.
    Backend { standing: watch::Receiver<Standing>, descriptor: Option<OwnedFd> },
    /// An operator's document.
    Document(String),
    /// A sign of life.
    Pong,
}

/// Where the progress and the answer of one request go.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) progress: mpsc::Sender<Progress>,
    pub(super) answer: oneshot::Sender<Result<Answer, Error>>,
}

/// The other end of a [`Reply`].
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) progress: mpsc::Receiver<Progress>,
    pub(crate) answer: oneshot::Receiver<Result<Answer, Error>>,
}

pub(crate) fn reply() -> (Reply, Waiter) {
    let (progress, progress_receiver) = mpsc::channel(PROGRESS_MAX);
    let (answer, answer_receiver) = oneshot::channel();
    (Reply { progress, answer }, Waiter { progress: progress_receiver, answer: answer_receiver })
}

/// A request on its way to the task.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request_id: RequestId,
    pub(crate) ask: Ask,
    pub(crate) reply: Reply,
}

/// How the session stands.
#[derive(Debug)]
pub(super) struct Status {
    /// Where the broker was found, or is looked for first.
    pub(super) socket: Arc<PathBuf>,
    pub(super) link: Link,
}

/// Whether there is a connection.
#[derive(Debug)]
pub(super) enum Link {
    Down,
    Up,
    Over(End),
}

/// Ids to be released. Filled by drops, which cannot wait; it never has more of them than there are requests and holds.
#[derive(Debug, Default)]
pub(super) struct Releases {
    ids: Mutex<Vec<RequestId>>,
    wake: Notify,
}

impl Releases {
    pub(super) async fn wait(&self) {
        self.wake.notified().await;
    }

    pub(super) fn take(&self) -> Vec<RequestId> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The claim to what a request waits for or holds: dropping it gives that up.
#[derive(Debug)]
pub(crate) struct Hold {
    request_id: RequestId,
    releases: Arc<Releases>,
}

impl Hold {
    pub(crate) fn request_id(&self) -> RequestId {
        self.request_id
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.releases.ids.lock().unwrap_or_else(PoisonError::into_inner).push(self.request_id);
        self.releases.wake.notify_one();
    }
}

/// What the callers have of a session.
#[derive(Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    releases: Arc<Releases>,
    status: watch::Receiver<Status>,
    /// Weak, so that readers of events see their end with the task's.
    events: broadcast::WeakSender<SessionEvent>,
    /// Its drop is the sign that nobody is left; `true` is an order.
    shutdown: watch::Sender<bool>,
}

/// What the task has of it.
#[derive(Debug)]
pub(super) struct Far {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) releases: Arc<Releases>,
    pub(super) status: watch::Sender<Status>,
    pub(super) events: broadcast::Sender<SessionEvent>,
    pub(super) shutdown: watch::Receiver<bool>,
}

pub(super) fn pair(socket: Arc<PathBuf>) -> (Handle, Far) {
    let (commands, command_receiver) = mpsc::channel(COMMANDS_MAX);
    let (status_sender, status) = watch::channel(Status { socket, link: Link::Down });
    let (events, _) = broadcast::channel(EVENTS_MAX);
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let releases = Arc::new(Releases::default());
    let far = Far {
        commands: command_receiver,
        releases: Arc::clone(&releases),
        status: status_sender,
        events: events.clone(),
        shutdown: shutdown_receiver,
    };
    (Handle { commands, releases, status, events: events.downgrade(), shutdown }, far)
}

impl Handle {
    pub(crate) fn commands(&self) -> &mpsc::Sender<Command> {
        &self.commands
    }

    pub(crate) fn hold(&self, request_id: RequestId) -> Hold {
        Hold { request_id, releases: Arc::clone(&self.releases) }
    }

    /// The events from now on; none and their end if the session is over.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<SessionEvent> {
        match self.events.upgrade() {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Orders the end of the session, for everybody.
    pub(crate) fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Waits until there is a connection.
    ///
    /// # Errors
    /// Why there will be none.
    pub(crate) async fn connected(&self) -> Result<(), Error> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| !matches!(status.link, Link::Down)).await;
        match settled.as_deref() {
            Ok(Status { link: Link::Up, .. }) => Ok(()),
            Ok(_) | Err(_) => Err(self.end()),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        matches!(self.status.borrow().link, Link::Up)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.status.borrow().socket.to_path_buf()
    }

    /// Waits for the end of the session, and says why it came.
    pub(crate) async fn ended(&self) -> Error {
        // An error means that the task is gone, which is an end too.
        let _ = self.status.clone().wait_for(|status| matches!(status.link, Link::Over(_))).await;
        self.end()
    }

    /// Why a request that the task does not have any more failed.
    pub(crate) fn end(&self) -> Error {
        match &self.status.borrow().link {
            Link::Over(end) => end.clone().into(),
            Link::Down | Link::Up => End::Closed.into(),
        }
    }
}
