//! The session task: the one owner of the stream and of the table of requests.
//!
//! It performs what the table decides and holds no policy. It ends when the stream ends or when nobody is left who
//! could ask or hold anything. It never reconnects; what would do so starts another session.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use broker_proto::{ClientMessage, Code, Negotiated, Progress, Refusal, RequestId, ServerMessage};
use tokio::net::UnixStream;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use crate::error::{End, Error, ProtocolError};
use crate::events::SessionEvent;
use crate::in_flight::{Action, InFlight, Kind};
use crate::wire::{Received, Wire};

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
    Backend { negotiated: Negotiated, descriptor: Option<OwnedFd> },
    /// An operator's document.
    Document(String),
}

/// Where the progress and the answer of one request go.
#[derive(Debug)]
pub(crate) struct Reply {
    progress: mpsc::Sender<Progress>,
    answer: oneshot::Sender<Result<Answer, Error>>,
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
    pub(crate) kind: Kind,
    pub(crate) message: ClientMessage,
    pub(crate) reply: Reply,
}

/// Ids to be released. Filled by drops, which cannot wait; it never has more of them than there are requests and holds.
#[derive(Debug, Default)]
struct Releases {
    ids: Mutex<Vec<RequestId>>,
    wake: Notify,
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
    ended: watch::Receiver<Option<End>>,
    events: broadcast::Sender<SessionEvent>,
    /// Its drop is the sign that nobody is left.
    _alive: oneshot::Sender<()>,
}

impl Handle {
    pub(crate) fn commands(&self) -> &mpsc::Sender<Command> {
        &self.commands
    }

    pub(crate) fn hold(&self, request_id: RequestId) -> Hold {
        Hold { request_id, releases: Arc::clone(&self.releases) }
    }

    pub(crate) fn subscribe(&self) -> (broadcast::Receiver<SessionEvent>, watch::Receiver<Option<End>>) {
        (self.events.subscribe(), self.ended.clone())
    }

    /// Waits for the end of the session.
    pub(crate) async fn ended(&self) {
        // An error means that the task is gone, which is an end too.
        let _ = self.ended.clone().wait_for(Option::is_some).await;
    }

    /// Why a request that the task does not have any more failed.
    pub(crate) fn end(&self) -> Error {
        self.ended.borrow().clone().unwrap_or(End::Closed).into()
    }
}

/// Starts a session on a connected stream. Nothing is sent until the first request.
pub(crate) fn start(stream: UnixStream) -> Handle {
    let (commands, command_receiver) = mpsc::channel(COMMANDS_MAX);
    let (end, ended) = watch::channel(None);
    let (events, _) = broadcast::channel(EVENTS_MAX);
    let (alive, abandoned) = oneshot::channel();
    let releases = Arc::new(Releases::default());
    let session = Session {
        wire: Wire::new(stream),
        table: InFlight::default(),
        commands: command_receiver,
        releases: Arc::clone(&releases),
        events: events.clone(),
    };
    tokio::spawn(session.run(end, abandoned));
    Handle { commands, releases, ended, events, _alive: alive }
}

struct Session {
    wire: Wire,
    table: InFlight<Reply>,
    commands: mpsc::Receiver<Command>,
    releases: Arc<Releases>,
    events: broadcast::Sender<SessionEvent>,
}

impl Session {
    async fn run(mut self, ended: watch::Sender<Option<End>>, mut abandoned: oneshot::Receiver<()>) {
        let end = self.serve(&mut abandoned).await;
        let (replies, end) = self.table.end(end);
        tracing::debug!(reason = ?end, unanswered = replies.len(), "the session with the broker ended");
        // Before the requests learn of it: one that is still on its way here finds the reason there.
        ended.send_replace(Some(end.clone()));
        for reply in replies {
            let _ = reply.answer.send(Err(end.clone().into()));
        }
    }

    async fn serve(&mut self, abandoned: &mut oneshot::Receiver<()>) -> End {
        loop {
            if let Err(error) = self.wire.flush() {
                // What the broker said before it closed tells more than that it closed.
                return self.last_words().unwrap_or_else(|| End::Lost(Arc::new(error)));
            }
            let room = self.wire.may_send();
            tokio::select! {
                _ = &mut *abandoned => return End::Closed,
                Some(command) = self.commands.recv(), if room && self.table.has_room() => self.begin(command),
                () = self.releases.wake.notified(), if room => self.release(),
                ready = self.wire.ready() => match ready {
                    Ok(ready) if ready.is_readable() || ready.is_read_closed() => {
                        let received = self.wire.receive();
                        if let Err(end) = self.take(received) {
                            return end;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => return End::Lost(Arc::new(error)),
                },
            }
        }
    }

    fn begin(&mut self, Command { request_id, kind, message, reply }: Command) {
        // Given up before it was sent: the broker need not know. Its release is behind us or finds no such id.
        if reply.answer.is_closed() {
            return;
        }
        if let Err((reply, reconnect)) = self.table.register(request_id, kind, reply) {
            let _ = reply.answer.send(Err(Error::GoingAway(reconnect)));
            return;
        }
        if let Err(error) = self.wire.send(&message) {
            let refusal = Refusal::new(Code::Malformed, error.to_string());
            self.handle(ServerMessage::Refused { request_id, refusal }, None);
        }
    }

    fn release(&mut self) {
        let ids = std::mem::take(&mut *self.releases.ids.lock().unwrap_or_else(PoisonError::into_inner));
        for request_id in ids {
            if self.table.release(request_id) {
                self.tell_release(request_id);
            }
        }
    }

    /// Handles every message that a read has made whole.
    fn take(&mut self, received: Result<Received, End>) -> Result<Received, End> {
        let received = received?;
        while let Some(message) = self.wire.next_message()? {
            let mut descriptor = None;
            if let ServerMessage::Negotiated(Negotiated { request_id, connected: true, .. }) = message {
                descriptor = self.wire.claim();
                if descriptor.is_none() {
                    return Err(End::Protocol(ProtocolError::NoDescriptor { request_id }));
                }
            }
            self.handle(message, descriptor);
        }
        self.wire.settle();
        match received {
            Received::End => Err(End::Closed),
            received => Ok(received),
        }
    }

    /// Reads what is left in the socket.
    fn last_words(&mut self) -> Option<End> {
        loop {
            let received = self.wire.receive_rest();
            match self.take(received) {
                Ok(Received::Some) => {}
                Ok(Received::Nothing | Received::End) => return None,
                Err(end) => return Some(end),
            }
        }
    }

    fn handle(&mut self, message: ServerMessage, descriptor: Option<OwnedFd>) {
        match self.table.handle(message) {
            // If the caller has gone meanwhile, its hold is among the releases.
            Action::Grant { reply, negotiated } => {
                let _ = reply.answer.send(Ok(Answer::Backend { negotiated, descriptor }));
            }
            Action::Document { reply, json } => {
                let _ = reply.answer.send(Ok(Answer::Document(json)));
            }
            Action::Refuse { reply, refusal } => {
                let _ = reply.answer.send(Err(Error::Refused(Box::new(refusal))));
            }
            Action::RefuseAll { replies, refusal } => {
                for reply in replies {
                    let _ = reply.answer.send(Err(Error::Refused(Box::new(refusal.clone()))));
                }
            }
            Action::WrongAnswer { reply, error, release } => {
                let _ = reply.answer.send(Err(Error::Protocol(error)));
                if let Some(request_id) = release {
                    self.tell_release(request_id);
                }
            }
            Action::Progress { reply, progress } => {
                let _ = reply.progress.try_send(progress);
            }
            Action::Event { request_id, event } => {
                let _ = self.events.send(SessionEvent::Backend { request_id, event });
            }
            Action::GoAway(reconnect) => {
                let _ = self.events.send(SessionEvent::GoAway(reconnect));
            }
            Action::Release(request_id) => self.tell_release(request_id),
            Action::Ignore(why) => tracing::debug!(why, "ignored a message of the broker"),
        }
    }

    fn tell_release(&mut self, request_id: RequestId) {
        if let Err(error) = self.wire.send(&ClientMessage::Release { request_id }) {
            tracing::error!(%error, "a release could not be encoded");
        }
    }
}
