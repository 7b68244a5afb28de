//! The table of requests in flight and of holds, without IO: messages in, actions out.
//!
//! Owns the rule that no hold is leaked: whatever the broker grants that nobody here waits for is released. Whatever
//! the broker says, however wrong, has an action and never panics. `R` is where an answer goes; the table never calls
//! it.

use std::collections::HashMap;

use broker_proto::{Event, Negotiated, Progress, Reconnect, Refusal, RequestId, ServerMessage};

use crate::error::{End, ProtocolError};

/// How many requests may wait at once on one session; more wait their turn before they are sent.
pub(crate) const WAITING_MAX: usize = 1024;

/// What kind of answer a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A backend, held from the answer on.
    Hello,
    /// An operator's order or report.
    Admin,
}

/// What the session does about a message.
#[derive(Debug)]
#[must_use]
pub(crate) enum Action<'a, R> {
    /// Hands over the backend, held from now on. If nobody takes it, it is to be given back by [`InFlight::release`].
    Grant { reply: R, negotiated: Negotiated },
    /// Hands over the document.
    Document { reply: R, json: String },
    /// Tells the one who asked that the broker said No.
    Refuse { reply: R, refusal: Refusal },
    /// The broker said No without saying to which request: all who wait are told.
    RefuseAll { replies: Vec<R>, refusal: Refusal },
    /// The answer is of another kind than the request. `release` when something is held by it nevertheless.
    WrongAnswer { reply: R, error: ProtocolError, release: Option<RequestId> },
    /// Passes on what goes on meanwhile.
    Progress { reply: &'a R, progress: Progress },
    /// Passes on what happened to a held backend.
    Event { request_id: RequestId, event: Event },
    /// Passes on that the broker goes.
    GoAway(Reconnect),
    /// Gives back a hold that nobody waits for any more.
    Release(RequestId),
    /// Nothing: the message concerns nobody here. The text says why, for the log.
    Ignore(&'static str),
}

#[derive(Debug)]
enum Entry<R> {
    Waiting { kind: Kind, reply: R },
    Held,
}

/// Every request that waits for an answer, and every backend that is held.
#[derive(Debug)]
pub(crate) struct InFlight<R> {
    entries: HashMap<RequestId, Entry<R>>,
    waiting: usize,
    going_away: Option<Reconnect>,
    /// The last refusal that named no request, until the broker answers something again.
    refusal: Option<Refusal>,
}

impl<R> Default for InFlight<R> {
    fn default() -> Self {
        Self { entries: HashMap::new(), waiting: 0, going_away: None, refusal: None }
    }
}

impl<R> InFlight<R> {
    /// Whether one more request may be registered.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting < WAITING_MAX
    }

    /// Enters a request that is about to be sent. Ids are never used twice on a session.
    ///
    /// # Errors
    /// Gives the reply back when the broker has announced that it goes: it would not answer.
    pub(crate) fn register(&mut self, request_id: RequestId, kind: Kind, reply: R) -> Result<(), (R, Reconnect)> {
        if let Some(reconnect) = self.going_away {
            return Err((reply, reconnect));
        }
        let before = self.entries.insert(request_id, Entry::Waiting { kind, reply });
        assert!(before.is_none(), "request id {request_id} is used twice");
        self.waiting += 1;
        Ok(())
    }

    /// Forgets what the request waits for or holds. `true` when the broker has to be told.
    pub(crate) fn release(&mut self, request_id: RequestId) -> bool {
        match self.entries.remove(&request_id) {
            Some(Entry::Waiting { kind, .. }) => {
                self.waiting -= 1;
                kind == Kind::Hello
            }
            Some(Entry::Held) => true,
            None => false,
        }
    }

    /// Decides about one message.
    pub(crate) fn handle(&mut self, message: ServerMessage) -> Action<'_, R> {
        match message {
            ServerMessage::Negotiated(negotiated) => self.negotiated(negotiated),
            ServerMessage::Refused { request_id: 0, refusal } => {
                self.refusal = Some(refusal.clone());
                Action::RefuseAll { replies: self.take_waiting(), refusal }
            }
            ServerMessage::Refused { request_id, refusal } => match self.answered(request_id) {
                Some((_, reply)) => Action::Refuse { reply, refusal },
                None => Action::Ignore("refusal of a request that does not wait"),
            },
            ServerMessage::Progress(progress) => match self.entries.get(&progress.request_id) {
                Some(Entry::Waiting { reply, .. }) => Action::Progress { reply, progress },
                Some(Entry::Held) | None => Action::Ignore("progress of a request that does not wait"),
            },
            ServerMessage::Event { request_id, event } => match self.entries.get(&request_id) {
                Some(Entry::Held) => {
                    if event == Event::Stopped {
                        self.entries.remove(&request_id);
                    }
                    Action::Event { request_id, event }
                }
                Some(Entry::Waiting { .. }) | None => Action::Ignore("event of a backend that is not held"),
            },
            ServerMessage::GoAway { reconnect } => {
                self.going_away = Some(reconnect);
                Action::GoAway(reconnect)
            }
            ServerMessage::Pong { .. } => Action::Ignore("pong without a ping"),
            ServerMessage::Heartbeat => Action::Ignore("a sign of life"),
            ServerMessage::AdminReply { request_id, json } => match self.answered(request_id) {
                Some((Kind::Admin, reply)) => Action::Document { reply, json },
                Some((Kind::Hello, reply)) => {
                    let error = ProtocolError::WrongAnswer { request_id };
                    Action::WrongAnswer { reply, error, release: Some(request_id) }
                }
                None => Action::Ignore("reply to a request that does not wait"),
            },
        }
    }

    /// The stream is over: everything that still waits, and why it fails. An announced drain and a refusal of the whole
    /// session are better reasons than the closed stream that follows them.
    pub(crate) fn end(&mut self, end: End) -> (Vec<R>, End) {
        let replies = self.take_waiting();
        self.entries.clear();
        let reason = match (end, self.going_away, self.refusal.take()) {
            (End::Closed | End::Lost(_), _, Some(refusal)) => End::Refused(Box::new(refusal)),
            (End::Closed | End::Lost(_), Some(reconnect), None) => End::GoneAway(reconnect),
            (end, ..) => end,
        };
        (replies, reason)
    }

    fn negotiated(&mut self, negotiated: Negotiated) -> Action<'_, R> {
        let request_id = negotiated.request_id;
        match self.entries.get(&request_id) {
            Some(Entry::Held) => return Action::Ignore("second answer to one request"),
            Some(Entry::Waiting { .. }) | None => {}
        }
        match self.answered(request_id) {
            Some((Kind::Hello, reply)) => {
                self.entries.insert(request_id, Entry::Held);
                Action::Grant { reply, negotiated }
            }
            Some((Kind::Admin, reply)) => {
                let error = ProtocolError::WrongAnswer { request_id };
                Action::WrongAnswer { reply, error, release: Some(request_id) }
            }
            None => Action::Release(request_id),
        }
    }

    /// Takes a waiting request out.
    fn answered(&mut self, request_id: RequestId) -> Option<(Kind, R)> {
        match self.entries.remove(&request_id)? {
            Entry::Waiting { kind, reply } => {
                self.waiting -= 1;
                self.refusal = None;
                Some((kind, reply))
            }
            Entry::Held => {
                self.entries.insert(request_id, Entry::Held);
                None
            }
        }
    }

    fn take_waiting(&mut self) -> Vec<R> {
        self.waiting = 0;
        let waiting = self.entries.extract_if(|_, entry| matches!(entry, Entry::Waiting { .. }));
        let replies = waiting.filter_map(|(_, entry)| match entry {
            Entry::Waiting { reply, .. } => Some(reply),
            Entry::Held => None,
        });
        replies.collect()
    }
}

#[cfg(test)]
#[path = "in_flight_tests.rs"]
mod tests;
