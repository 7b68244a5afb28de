//! What is held, over connections: a hold of one broker is asked for again of the next.
//!
//! Without IO, like the table of requests of which it is a part.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use broker_proto::{Code, Delivery, Event, Hello, Negotiated, Refusal, RequestId};
use tokio::sync::watch;

/// How soon a hold is asked for again that was refused for now, at the earliest.
const RETAKE_AFTER: Duration = Duration::from_secs(1);

/// How a held backend stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What the broker said of it last. The process number is not known between the news of a restart and the next
    /// answer.
    pub(crate) negotiated: Negotiated,
    /// The service's file allows a client to go on with the next generation.
    pub(crate) is_resumable: bool,
    /// The hold is not over.
    pub(crate) is_held: bool,
}

#[derive(Debug)]
struct Hold {
    hello: Hello,
    standing: watch::Sender<Standing>,
    place: Place,
}

/// What the broker at the other end knows of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is held there.
    Taken,
    /// It is to be asked for: the version that it was, or whatever the caller had asked for.
    Wanted { exactly: bool },
    /// It has been asked for.
    Asked { exactly: bool },
    /// It was refused for now.
    Later { at: Instant },
}

/// Every hold of a session, in the order in which they were asked for.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    holds: BTreeMap<RequestId, Hold>,
    /// Those to be asked for, in order; ids that are gone meanwhile are passed over.
    unsent: VecDeque<RequestId>,
    /// How many have not been answered for on this connection.
    open: usize,
    /// How many were refused for now.
    postponed: usize,
}

impl Holds {
    /// Enters a backend that was granted; the receiver is told how it stands from now on.
    pub(crate) fn enter(&mut self, hello: Hello, negotiated: Negotiated) -> watch::Receiver<Standing> {
        let request_id = negotiated.request_id;
        let (standing, receiver) = watch::channel(Standing { negotiated, is_resumable: false, is_held: true });
        self.holds.insert(request_id, Hold { hello, standing, place: Place::Taken });
        receiver
    }

    pub(crate) fn contains(&self, request_id: RequestId) -> bool {
        self.holds.contains_key(&request_id)
    }

    /// Whether the hold is one that the broker was asked to take again and has not answered for.
    pub(crate) fn is_asked(&self, request_id: RequestId) -> bool {
        self.holds.get(&request_id).is_some_and(|hold| matches!(hold.place, Place::Asked { .. }))
    }

    /// Forgets a hold. `Some(true)` when the broker has to be told, `None` when there is no such hold.
    pub(crate) fn release(&mut self, request_id: RequestId) -> Option<bool> {
        self.remove(request_id).map(|place| matches!(place, Place::Taken | Place::Asked { .. }))
    }

    /// Prepares every hold to be asked for on the next connection.
    pub(crate) fn requeue(&mut self) {
        for hold in self.holds.values_mut() {
            hold.place = Place::Wanted { exactly: true };
        }
        self.unsent = self.holds.keys().copied().collect();
        (self.open, self.postponed) = (self.holds.len(), 0);
    }

    /// The next Hello that asks for a hold again. It has no deadline: nobody waits for it.
    pub(crate) fn next_to_ask(&mut self) -> Option<Hello> {
        while let Some(request_id) = self.unsent.pop_front() {
            let Some(Hold { hello, standing, place }) = self.holds.get_mut(&request_id) else { continue };
            let Place::Wanted { exactly } = *place else { continue };
            *place = Place::Asked { exactly };
            let mut again =
                Hello { deadline_ms: None, delivery: Delivery::Endpoint, found_dead: None, ..hello.clone() };
            if exactly {
                again.version_requirement.clone_from(&standing.borrow().negotiated.version);
            }
            return Some(again);
        }
        None
    }

    /// Whether every hold has been answered for on this connection.
    pub(crate) fn is_restored(&self) -> bool {
        self.open == 0
    }

    /// When one that was refused for now is to be asked for again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.postponed == 0 {
            return None;
        }
        let later = self.holds.values().filter_map(|hold| match hold.place {
            Place::Later { at } => Some(at),
            Place::Taken | Place::Wanted { .. } | Place::Asked { .. } => None,
        });
        later.min()
    }

    /// Queues those whose time to be asked for again has come.
    pub(crate) fn tick(&mut self, now: Instant) {
        let due = |hold: &Hold| matches!(hold.place, Place::Later { at } if at <= now);
        let due: Vec<_> = self.holds.iter().filter(|(_, hold)| due(hold)).map(|(id, _)| *id).collect();
        for request_id in due {
            self.put(request_id, Place::Wanted { exactly: true });
            self.unsent.push_back(request_id);
        }
    }

    /// A hold was taken again. The event, if it is another process than before.
    pub(crate) fn taken(&mut self, negotiated: Negotiated) -> Option<Event> {
        self.put(negotiated.request_id, Place::Taken);
        let Hold { standing, .. } = self.holds.get(&negotiated.request_id)?;
        let is_same = {
            let before = &standing.borrow().negotiated;
            let pid_fits = before.pid.is_none() || before.pid == negotiated.pid;
            (&before.version, &before.endpoint, before.generation)
                == (&negotiated.version, &negotiated.endpoint, negotiated.generation)
                && pid_fits
        };
        let event = Event::Ready { generation: negotiated.generation, endpoint: negotiated.endpoint.clone() };
        standing.send_modify(|standing| standing.negotiated = negotiated);
        (!is_same).then_some(event)
    }

    /// A hold was not taken again. The event, unless something else is tried at once.
    pub(crate) fn refused(&mut self, now: Instant, request_id: RequestId, refusal: Refusal) -> Option<Event> {
        let Hold { hello, standing, place } = self.holds.get(&request_id)?;
        let version_is_gone = matches!(refusal.code, Code::VersionUnsupported | Code::VersionBlocked);
        let asked_for_more = hello.version_requirement != standing.borrow().negotiated.version;
        if version_is_gone && asked_for_more && *place == (Place::Asked { exactly: true }) {
            self.put(request_id, Place::Wanted { exactly: false });
            self.unsent.push_back(request_id);
            return None;
        }
        if refusal.code.is_fatal() {
            self.end(request_id);
        } else {
            let pause = refusal.retry_after_ms.map_or(RETAKE_AFTER, Duration::from_millis).max(RETAKE_AFTER);
            self.put(request_id, Place::Later { at: now.checked_add(pause).unwrap_or(now) });
        }
        Some(Event::Failed { refusal })
    }

    /// What the broker says of a hold; `None` if that is not for the caller's ears, `Err` if it is not held there.
    pub(crate) fn heard(&mut self, request_id: RequestId, event: Event) -> Result<Option<Event>, ()> {
        let hold = self.holds.get(&request_id).filter(|hold| hold.place == Place::Taken).ok_or(())?;
        match &event {
            Event::Resumable => {
                hold.standing.send_modify(|standing| standing.is_resumable = true);
                return Ok(None);
            }
            Event::Ready { generation, endpoint } => hold.standing.send_modify(|standing| {
                let negotiated = &mut standing.negotiated;
                (negotiated.generation, negotiated.endpoint, negotiated.pid) = (*generation, endpoint.clone(), None);
            }),
            Event::Stopped => self.end(request_id),
            Event::Exited { .. } | Event::Restarting { .. } | Event::Failed { .. } | Event::Draining => {}
        }
        Ok(Some(event))
    }

    /// The session is over, and every hold with it.
    pub(crate) fn clear(&mut self) {
        for hold in std::mem::take(self).holds.into_values() {
            hold.standing.send_modify(|standing| standing.is_held = false);
        }
    }

    fn end(&mut self, request_id: RequestId) {
        if let Some(hold) = self.holds.get(&request_id) {
            hold.standing.send_modify(|standing| standing.is_held = false);
        }
        self.remove(request_id);
    }

    fn remove(&mut self, request_id: RequestId) -> Option<Place> {
        let place = self.holds.remove(&request_id)?.place;
        self.count(place, -1);
        Some(place)
    }

    fn put(&mut self, request_id: RequestId, place: Place) {
        let Some(hold) = self.holds.get_mut(&request_id) else { return };
        let before = std::mem::replace(&mut hold.place, place);
        self.count(before, -1);
        self.count(place, 1);
    }

    fn count(&mut self, place: Place, change: isize) {
        let count = match place {
            Place::Taken => return,
            Place::Wanted { .. } | Place::Asked { .. } => &mut self.open,
            Place::Later { .. } => &mut self.postponed,
        };
        *count = count.saturating_add_signed(change);
    }
}
