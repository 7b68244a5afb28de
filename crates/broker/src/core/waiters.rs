//! Who waits for a backend, in the order of arrival.

use std::collections::BTreeMap;

use super::{Timestamp, first_of};

/// Names one request for its whole life: as a waiter, and as a hold when it was granted. Given out in ascending order
/// and never twice, so that the order of tickets is the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// One who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) ticket: Ticket,
    /// When it must have its answer.
    pub(crate) deadline: Option<Timestamp>,
    /// Whether it holds the backend once it is answered: a client does, an operator does not.
    pub(crate) holds: bool,
}

/// The waiters of one backend.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    by_ticket: BTreeMap<Ticket, Waiter>,
    /// No waiter's deadline is earlier. May be earlier than all of them after one was withdrawn, which costs a look.
    earliest: Option<Timestamp>,
}

impl Waiters {
    pub(crate) fn join(&mut self, waiter: Waiter) {
        self.earliest = first_of([self.earliest, waiter.deadline]);
        self.by_ticket.insert(waiter.ticket, waiter);
    }

    /// Removes one who waits no longer; `false` if it did not wait here.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> bool {
        self.by_ticket.remove(&ticket).is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_ticket.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_ticket.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Waiter> {
        self.by_ticket.values().copied()
    }

    /// When the next deadline may be.
    pub(crate) fn earliest(&self) -> Option<Timestamp> {
        self.earliest
    }

    /// Takes those whose deadline is here.
    pub(crate) fn take_expired(&mut self, now: Timestamp) -> Vec<Waiter> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let expired: Vec<_> = self.iter().filter(|w| w.deadline.is_some_and(|deadline| deadline <= now)).collect();
        for waiter in &expired {
            self.by_ticket.remove(&waiter.ticket);
        }
        self.earliest = self.by_ticket.values().filter_map(|w| w.deadline).min();
        expired
    }

    /// Takes all of them.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

impl IntoIterator for Waiters {
    type Item = Waiter;
    type IntoIter = std::collections::btree_map::IntoValues<Ticket, Waiter>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_ticket.into_values()
    }
}
