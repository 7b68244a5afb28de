//! Hellos of clients that found a backend dead while its end is just under way.
//!
//! The sockets of a process are closed before its end can be seen: by the kernel some microseconds before, by a daemon
//! that cleans up after itself some milliseconds. A client that notices is quicker than the broker; an answer in between
//! would name the dead generation again.

use std::cell::RefCell;
use std::rc::Weak;
use std::time::Duration;

use broker_proto::{Code, Refusal};
use tokio::task::spawn_local;

use super::clock::now;
use super::driver::Driver;
use super::perform::connect;
use crate::core::backend::{Event, RETRY_HINT, Ticket, Waiter};
use crate::core::registry::BackendId;
use crate::core::{Timestamp, millis_up};
use crate::net::endpoint::ConnectError;
use crate::process::identity;

/// How long the end of a process is waited for that serves no more. One whose first thread has ended before the others
/// looks as if it were torn down, and lives; so may one that closed its listening socket.
const END_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whose patience is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A Hello that waits for the end of a generation, and until when.
#[derive(Debug)]
pub(super) struct Doubt {
    waiter: Waiter,
    until: Timestamp,
}

impl Driver {
    /// Lets a Hello of a client wait that found a generation dead, if its end seems under way; else hands it to the
    /// machine.
    pub(super) fn hello_after(&mut self, id: BackendId, generation: u64, waiter: Waiter) {
        let is_settled = self.main_found_dead(id, generation);
        if !is_settled || self.is_ending(id, generation) || self.is_deaf(id, generation) {
            self.doubt(id, waiter);
        } else {
            self.dispatch(id, Event::Hello(waiter));
        }
    }

    /// Whether the main process of a generation is being torn down.
    fn is_ending(&mut self, id: BackendId, generation: u64) -> bool {
        let running = self.hosted.get_mut(&id).and_then(|hosted| hosted.generation(generation));
        let stat = running.and_then(|running| identity::stat(running.main.pid).ok().flatten());
        stat.is_some_and(|stat| stat.is_exiting)
    }

    /// Whether nobody listens at the endpoint of a generation.
    fn is_deaf(&mut self, id: BackendId, generation: u64) -> bool {
        let running = self.hosted.get_mut(&id).and_then(|hosted| hosted.generation(generation));
        running.is_some_and(|running| matches!(connect(&running.endpoint), Err(ConnectError::Dead)))
    }

    /// Lets a Hello wait for the end of a generation.
    pub(super) fn doubt(&mut self, id: BackendId, waiter: Waiter) {
        if let Err(refusal) = self.check_serving() {
            return self.refuse(waiter.ticket, *refusal);
        }
        let limit = self.config.limits.waiters_per_backend;
        let (Some(hosted), Some(asked)) = (self.hosted.get_mut(&id), self.asked.get_mut(&waiter.ticket)) else {
            return;
        };
        if hosted.doubts.len() >= limit {
            let refusal = Refusal::new(Code::Overloaded, format!("{limit} requests wait for this backend already"));
            return self.refuse(waiter.ticket, refusal.retry_after_ms(millis_up(RETRY_HINT)));
        }
        asked.has_doubted = true;
        let until = now() + waiter.deadline.map_or(END_MAX, |deadline| deadline.since(now())).min(END_MAX);
        hosted.doubts.push(Doubt { waiter, until });
        if !std::mem::replace(&mut hosted.is_doubted, true) {
            spawn_local(settle(self.me.clone(), id));
        }
    }

    /// Hands over the Hellos that waited for a generation's end.
    pub(super) fn settle_doubts(&mut self, id: BackendId) {
        for Doubt { waiter, .. } in self.take_doubts(id, |_| true) {
            match self.check_serving() {
                Ok(()) => self.dispatch(id, Event::Hello(waiter)),
                Err(refusal) => self.refuse(waiter.ticket, *refusal),
            }
        }
    }

    /// Refuses the Hellos that wait for a generation's end: an order has come in between.
    pub(super) fn refuse_doubts(&mut self, id: BackendId) {
        for Doubt { waiter, .. } in self.take_doubts(id, |_| true) {
            let refusal = Refusal::new(Code::ShuttingDown, "the backend is being stopped");
            self.refuse(waiter.ticket, refusal.retry_after_ms(millis_up(RETRY_HINT)));
        }
    }

    /// Forgets a Hello that was given up.
    pub(super) fn forget_doubt(&mut self, id: BackendId, ticket: Ticket) {
        drop(self.take_doubts(id, |doubt| doubt.waiter.ticket == ticket));
    }

    fn take_doubts(&mut self, id: BackendId, which: impl Fn(&Doubt) -> bool) -> Vec<Doubt> {
        let Some(hosted) = self.hosted.get_mut(&id).filter(|hosted| !hosted.doubts.is_empty()) else {
            return Vec::new();
        };
        let (taken, left) = std::mem::take(&mut hosted.doubts).into_iter().partition(which);
        hosted.doubts = left;
        taken
    }
}

/// Hands over each Hello whose patience is over; ends when none is left.
async fn settle(driver: Weak<RefCell<Driver>>, id: BackendId) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(driver) = driver.upgrade() else { return };
        let mut driver = driver.borrow_mut();
        let time = now();
        for Doubt { waiter, .. } in driver.take_doubts(id, |doubt| doubt.until <= time) {
            driver.dispatch(id, Event::Hello(waiter));
        }
        match driver.hosted.get_mut(&id) {
            Some(hosted) if hosted.doubts.is_empty() => {
                hosted.is_doubted = false;
                return;
            }
            Some(_) => {}
            None => return,
        }
    }
}
