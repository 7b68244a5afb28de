//! The one timer: which deadline it is set to, and what is done when it fires.

use std::rc::{Rc, Weak};

use broker_proto::State;
use tokio::task::{spawn_local, yield_now};

use super::clock::now;
use super::driver::{Driver, Leave};
use super::listener::is_awaited;
use super::perform::connections;
use super::session::Session;
use crate::core::backend::Event;
use crate::core::first_of;

/// How many sessions are given a sign of life before others have their turn.
const BEATS_AT_ONCE: usize = 64;

impl Driver {
    /// Sets the timer to the first deadline of all.
    pub(super) fn arm(&self) {
        self.timer.arm(first_of([
            self.registry.next_deadline(),
            self.heartbeat.next_deadline(),
            self.patience.next_deadline(),
            self.logs.trimming.next_deadline(),
            self.idle_exit.next_deadline(),
            self.manager.next_deadline(),
            self.farewell.next_deadline(),
        ]));
    }

    /// Does what is due.
    pub(super) fn tick(&mut self) {
        // Once each: where a probe costs more than its interval the others have their turn in between.
        for id in self.registry.due(now()) {
            self.dispatch(id, Event::Tick);
        }
        if self.heartbeat.take_due(now(), !self.sessions.is_empty()) {
            self.beat();
        }
        if self.patience.take_due(now()) {
            self.look_at_sessions();
        }
        if self.idle_exit.take_due(now()) && self.leaving.is_none() {
            if self.is_used() {
                self.idle_exit.still_used(now());
            } else {
                self.leave_unused();
            }
        }
        self.trim_logs();
        self.bid_farewell();
        self.tell_due();
        self.arm();
    }

    /// Gives every session a sign of life. A session that ends meanwhile is not kept for that.
    fn beat(&self) {
        let sessions: Vec<Weak<Session>> = self.sessions.values().map(|c| Rc::downgrade(&c.session)).collect();
        spawn_local(async move {
            for some in sessions.chunks(BEATS_AT_ONCE) {
                some.iter().filter_map(Weak::upgrade).for_each(|session| session.beat());
                yield_now().await;
            }
        });
    }

    /// Has the sessions looked at that have begun to say something and not ended it in time.
    fn look_at_sessions(&mut self) {
        let now = now();
        for connected in self.sessions.values() {
            match connected.session.due.get() {
                Some(due) if due <= now => connected.session.look_at_due(),
                Some(due) => _ = self.patience.expect(due),
                None => {}
            }
        }
    }

    /// Ends a broker that nobody uses. A client that comes this very moment is told to come back.
    fn leave_unused(&mut self) {
        let after = self.config.idle_exit.unwrap_or_default();
        tracing::info!("nobody has used this broker for {after:?}: it leaves");
        self.leave(Leave::UNUSED);
    }

    /// Whether anybody uses the broker though no session is open. A backend that is merely there is not used.
    fn is_used(&self) -> bool {
        if self.listeners.iter().any(is_awaited) {
            tracing::info!("still in use: a client waits to be let in");
            return true;
        }
        let processes = self.processes.live();
        if processes > 0 {
            tracing::info!(processes, "still in use: durable processes run");
            return true;
        }
        self.registry.iter().any(|(id, key, backend)| match backend.view(now()).state {
            State::Starting => {
                tracing::info!(backend = %key, "still in use: it is starting");
                true
            }
            State::Ready => {
                let running = self.hosted.get(&id).and_then(|hosted| hosted.running.as_ref());
                let connections = running.map_or(0, |running| connections(&running.endpoint));
                if connections > 0 {
                    tracing::info!(backend = %key, connections, "still in use");
                }
                connections > 0
            }
            State::Inactive | State::Backoff | State::Failed | State::Stopping | State::Quarantined => false,
        })
    }
}
