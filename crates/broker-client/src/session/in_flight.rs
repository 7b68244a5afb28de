//! The table of requests and holds of a session, without IO: what callers want and what the broker says in, actions and
//! messages to send out.
//!
//! It outlives connections: what was on its way when one broke is sent again on the next, and what is held is asked for
//! again first. It owns the rule that no hold is leaked: whatever the broker grants that nobody here waits for is
//! released. Whatever the broker says, however wrong, has an action and never panics. `R` is where an answer goes; the
//! table never calls it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use broker_proto::{
    AdminRequest, ClientMessage, Code, Delivery, Event, Hello, Negotiated, Progress, Reconnect, Refusal, RequestId,
    ServerMessage,
};
use tokio::sync::watch;

use super::holds::{Holds, Standing};
use crate::error::{End, ProtocolError};

/// How many requests may wait at once in one session; more wait their turn before they are filed. The broker lets as
/// many wait for one backend.
pub(crate) const WAITING_MAX: usize = 16_384;

/// What a request asks.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// A backend, held from the answer on. `due` is when the caller stops waiting.
    Hello { hello: Hello, due: Option<Instant> },
    /// An operator's order or report.
    Admin(AdminRequest),
    /// A sign of life.
    Ping,
}

impl Ask {
    /// Whether it may be sent a second time, after a broker that may have acted on the first.
    fn is_repeatable(&self) -> bool {
        match self {
            Self::Hello { .. } | Self::Ping => true,
            Self::Admin(request) => match request {
                AdminRequest::Status
                | AdminRequest::Services
                | AdminRequest::Logs { .. }
                | AdminRequest::Events { .. }
                | AdminRequest::Wait { .. }
                | AdminRequest::Processes { .. } => true,
                // Under an id of the caller's the same again is no second one.
                AdminRequest::Run { spec } => spec.id.is_some(),
                AdminRequest::Start { .. }
                | AdminRequest::Stop { .. }
                | AdminRequest::Restart { .. }
                | AdminRequest::Drain { .. }
                | AdminRequest::Reload
                | AdminRequest::Release { .. }
                | AdminRequest::Cancel { .. }
                | AdminRequest::Prune { .. }
                | AdminRequest::HandOver
                | AdminRequest::Shutdown => false,
            },
        }
    }

    /// Whether the broker forgets it when it is told.
    fn can_be_given_up(&self) -> bool {
        matches!(self, Self::Hello { .. } | Self::Admin(AdminRequest::Events { .. } | AdminRequest::Wait { .. }))
    }

    fn wants_descriptor(&self) -> bool {
        matches!(self, Self::Hello { hello: Hello { delivery: Delivery::Connected, .. }, .. })
    }

    fn message(&self, now: Instant, request_id: RequestId) -> ClientMessage {
        match self {
            Self::Hello { hello, due } => {
                let deadline_ms = due.map(|due| milliseconds(due.saturating_duration_since(now)));
                ClientMessage::Hello(Hello { deadline_ms, ..hello.clone() })
            }
            Self::Admin(request) => ClientMessage::Admin { request_id, request: request.clone() },
            Self::Ping => ClientMessage::Ping { nonce: request_id },
        }
    }
}

/// What the session does about a message.
#[derive(Debug)]
#[must_use]
pub(crate) enum Action<'a, R> {
    /// Hands over the backend, held from now on. If nobody takes it, it is to be given back by [`InFlight::release`].
    Grant { reply: R, standing: watch::Receiver<Standing> },
    /// Hands over the document.
    Document { reply: R, json: String },
    /// Tells the one who asked that the broker lives.
    Pong { reply: R },
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
    /// Nothing. The text says why, for the log.
    Ignore(&'static str),
}

#[derive(Debug)]
struct Waiting<R> {
    ask: Ask,
    reply: R,
    is_sent: bool,
}

/// Every request that waits for an answer, and every backend that is held.
#[derive(Debug)]
pub(crate) struct InFlight<R> {
    waiting: BTreeMap<RequestId, Waiting<R>>,
    /// What is to be sent, in order. Ids that are gone meanwhile are passed over.
    unsent: VecDeque<RequestId>,
    holds: Holds,
    /// What is refused for now is tried again on the next connection.
    heals: bool,
    going_away: Option<Reconnect>,
    /// The last refusal that named no request, until the broker answers something again.
    refusal: Option<Refusal>,
}

impl<R> InFlight<R> {
    /// An empty table. One that heals keeps for the next connection what the end of one leaves unanswered.
    pub(crate) fn new(heals: bool) -> Self {
        let (waiting, unsent, holds) = Default::default();
        Self { waiting, unsent, holds, heals, going_away: None, refusal: None }
    }

    /// Whether one more request may be filed.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Files a request, to be sent in its turn. Ids are never used twice in a session.
    ///
    /// # Errors
    /// Gives the reply back when the broker has announced that it goes, and no other connection will follow.
    pub(crate) fn register(&mut self, request_id: RequestId, ask: Ask, reply: R) -> Result<(), (R, Reconnect)> {
        if let Some(reconnect) = self.going_away.filter(|_| !self.heals) {
            return Err((reply, reconnect));
        }
        let before = self.waiting.insert(request_id, Waiting { ask, reply, is_sent: false });
        assert!(before.is_none(), "request id {request_id} is used twice");
        // While there is no connection nothing is taken out of the queue, and what is given up stays behind.
        if self.unsent.len() > 2 * self.waiting.len() + 64 {
            self.unsent.retain(|id| self.waiting.contains_key(id));
        }
        self.unsent.push_back(request_id);
        Ok(())
    }

    /// Takes the next message to send: holds are asked for first. There is none once the broker has announced that it
    /// goes.
    pub(crate) fn next_to_send(&mut self, now: Instant) -> Option<ClientMessage> {
        if self.going_away.is_some() {
            return None;
        }
        if let Some(hello) = self.holds.next_to_ask() {
            return Some(ClientMessage::Hello(hello));
        }
        while let Some(request_id) = self.unsent.pop_front() {
            if let Some(waiting) = self.waiting.get_mut(&request_id)
                && !std::mem::replace(&mut waiting.is_sent, true)
            {
                return Some(waiting.ask.message(now, request_id));
            }
        }
        None
    }

    /// Whether the broker goes and owes no answer any more: its connection is of no further use.
    pub(crate) fn is_done_with(&self) -> bool {
        self.going_away.is_some() && !self.waiting.values().any(|waiting| waiting.is_sent)
    }

    /// Whether every hold has been answered for on this connection.
    pub(crate) fn is_restored(&self) -> bool {
        self.holds.is_restored()
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.holds.deadline()
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.holds.tick(now);
    }

    /// Forgets what the request waits for or holds. `true` when the broker has to be told.
    pub(crate) fn release(&mut self, request_id: RequestId) -> bool {
        match self.waiting.remove(&request_id) {
            Some(waiting) => waiting.is_sent && waiting.ask.can_be_given_up(),
            None => self.holds.release(request_id).unwrap_or(false),
        }
    }

    /// Decides about one message.
    pub(crate) fn handle(&mut self, now: Instant, message: ServerMessage) -> Action<'_, R> {
        match message {
            ServerMessage::Negotiated(negotiated) => self.negotiated(negotiated),
            ServerMessage::Refused { request_id: 0, refusal } => self.refused_as_a_whole(refusal),
            ServerMessage::Refused { request_id, refusal } => self.refused(now, request_id, refusal),
            ServerMessage::Progress(progress) => match self.waiting.get(&progress.request_id) {
                Some(Waiting { reply, .. }) => Action::Progress { reply, progress },
                None => Action::Ignore("progress of a request that does not wait"),
            },
            ServerMessage::Event { request_id, event } => self.event(request_id, event),
            ServerMessage::GoAway { reconnect } => {
                self.going_away.get_or_insert(reconnect);
                Action::GoAway(reconnect)
            }
            ServerMessage::Pong { nonce } => match self.waiting.get(&nonce) {
                Some(Waiting { ask: Ask::Ping, .. }) => match self.waiting.remove(&nonce) {
                    Some(Waiting { reply, .. }) => Action::Pong { reply },
                    None => Action::Ignore("a sign of life"),
                },
                Some(_) | None => Action::Ignore("a sign of life"),
            },
            ServerMessage::Heartbeat => Action::Ignore("a sign of life"),
            ServerMessage::AdminReply { request_id, json } => match self.answered(request_id) {
                Some((Ask::Admin(_), reply)) => Action::Document { reply, json },
                Some((Ask::Hello { .. } | Ask::Ping, reply)) => wrong_answer(request_id, reply),
                None => Action::Ignore("reply to a request that does not wait"),
            },
        }
    }

    /// The connection is over: why, all that was said considered. An announced drain and a refusal of the whole session
    /// are better reasons than the closed stream that follows them.
    pub(crate) fn disconnected(&mut self, end: End) -> End {
        match (end, self.going_away.take(), self.refusal.take()) {
            (End::Closed | End::Lost(_), _, Some(refusal)) => End::Refused(Box::new(refusal)),
            (End::Closed | End::Lost(_), Some(reconnect), None) => End::GoneAway(reconnect),
            (end, ..) => end,
        }
    }

    /// Makes everything ready for the next connection: holds and requests, each in the order in which they were made.
    /// Gives back those that were on their way and cannot be repeated, or would end the next connection in the same way.
    pub(crate) fn requeue(&mut self, end: &End) -> Vec<R> {
        let no_descriptors = matches!(end, End::Protocol(ProtocolError::DescriptorsLost));
        let is_lost = |Waiting { ask, is_sent, .. }: &Waiting<R>| {
            *is_sent && (!ask.is_repeatable() || no_descriptors && ask.wants_descriptor())
        };
        let lost: Vec<_> = self.waiting.iter().filter(|(_, waiting)| is_lost(waiting)).map(|(id, _)| *id).collect();
        let lost = lost.into_iter().filter_map(|id| self.waiting.remove(&id)).map(|waiting| waiting.reply).collect();
        self.waiting.values_mut().for_each(|waiting| waiting.is_sent = false);
        self.unsent = self.waiting.keys().copied().collect();
        self.holds.requeue();
        lost
    }

    /// The session is over: everyone who still waits.
    pub(crate) fn end(&mut self) -> Vec<R> {
        self.holds.clear();
        self.take_waiting()
    }

    fn negotiated(&mut self, negotiated: Negotiated) -> Action<'_, R> {
        let request_id = negotiated.request_id;
        if self.holds.is_asked(request_id) {
            return match self.holds.taken(negotiated) {
                Some(event) => Action::Event { request_id, event },
                None => Action::Ignore("a hold that is taken again"),
            };
        }
        if self.holds.contains(request_id) {
            return Action::Ignore("second answer to one request");
        }
        match self.answered(request_id) {
            Some((Ask::Hello { hello, .. }, reply)) => {
                Action::Grant { reply, standing: self.holds.enter(hello, negotiated) }
            }
            Some((Ask::Admin(_) | Ask::Ping, reply)) => wrong_answer(request_id, reply),
            None => Action::Release(request_id),
        }
    }

    fn refused_as_a_whole(&mut self, refusal: Refusal) -> Action<'_, R> {
        self.refusal = Some(refusal.clone());
        if self.heals && !refusal.code.is_fatal() {
            return Action::Ignore("the session is refused for now");
        }
        Action::RefuseAll { replies: self.take_waiting(), refusal }
    }

    fn refused(&mut self, now: Instant, request_id: RequestId, refusal: Refusal) -> Action<'_, R> {
        // That it goes is the broker's affair: the next one will answer.
        let is_postponed = self.heals && self.going_away.is_some() && refusal.code == Code::ShuttingDown;
        if is_postponed {
            if let Some(waiting) = self.waiting.get_mut(&request_id) {
                waiting.is_sent = false;
            }
            return Action::Ignore("a broker that goes refuses what the next one will answer");
        }
        if self.holds.is_asked(request_id) {
            return match self.holds.refused(now, request_id, refusal) {
                Some(event) => Action::Event { request_id, event },
                None => Action::Ignore("the version that was held is gone; another is asked for"),
            };
        }
        match self.answered(request_id) {
            Some((_, reply)) => Action::Refuse { reply, refusal },
            None => Action::Ignore("refusal of a request that does not wait"),
        }
    }

    fn event(&mut self, request_id: RequestId, event: Event) -> Action<'_, R> {
        if self.heals && self.going_away.is_some() && event == Event::Stopped {
            return Action::Ignore("a broker that goes stops its backends; the next one takes the hold");
        }
        match self.holds.heard(request_id, event) {
            Ok(Some(event)) => Action::Event { request_id, event },
            Ok(None) => Action::Ignore("what a hold allows"),
            Err(()) => Action::Ignore("event of a backend that is not held"),
        }
    }

    /// Takes a waiting request out.
    fn answered(&mut self, request_id: RequestId) -> Option<(Ask, R)> {
        let waiting = self.waiting.remove(&request_id)?;
        self.refusal = None;
        Some((waiting.ask, waiting.reply))
    }

    fn take_waiting(&mut self) -> Vec<R> {
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.reply).collect()
    }
}

fn wrong_answer<'a, R>(request_id: RequestId, reply: R) -> Action<'a, R> {
    Action::WrongAnswer { reply, error: ProtocolError::WrongAnswer { request_id }, release: Some(request_id) }
}

/// A wait that is not over stays one: half a millisecond is told as 1, for 0 has passed already.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "in_flight_history.rs"]
mod history;
#[cfg(test)]
#[path = "in_flight_tests.rs"]
mod tests;
