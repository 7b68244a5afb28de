//! How the broker goes: with its backends, or leaving them to the next one.

use broker_proto::{Reconnect, ServerMessage};

use super::clock::now;
use super::driver::{Driver, Leave, Settling};
use super::hosted::Held;
use super::listener::is_awaited;
use super::work::Report;
use crate::core::backend::{Backend, Event};
use crate::core::farewell::{Farewell, Step};
use crate::core::registry::BackendId;
use crate::failpoint;

impl Driver {
    /// Begins to leave: tells every session, and refuses what is new. Backends are stopped, or kept for the next broker;
    /// one that the kernel would end with this one is stopped in any case.
    ///
    /// Who is asked again while it keeps them may still have them stopped.
    pub(super) fn leave(&mut self, leave: Leave) {
        let is_further = self.leaving.is_some_and(|begun| begun.keeps && !leave.keeps);
        if self.leaving.is_some() && !is_further {
            return;
        }
        self.leaving = Some(leave);
        (self.farewell, self.settling) = (Farewell::default(), Settling::Telling);
        self.begins_to_leave.notify_waiters();
        let live = self.registry.iter().filter(|(_, _, backend)| backend.is_live()).count();
        let Leave { reconnect, keeps } = leave;
        // Who reads that it leaves may rely on it: this broker runs no process again.
        self.processes.start_no_more();
        tracing::info!(sessions = self.sessions.len(), backends = live, keeps, "shutting down");
        self.tell_stopping();
        for connected in self.sessions.values().filter(|connected| connected.session.is_greeted()) {
            connected.session.send(&ServerMessage::GoAway { reconnect }, None);
        }
        failpoint::reached("leaving");
        self.refuse_process_waits();
        // Nor is anything started for who waits at a socket.
        self.attend_all();
        let all: Vec<BackendId> = self.registry.iter().map(|(id, _, _)| id).collect();
        for id in all {
            self.settle_doubts(id);
            self.dispatch(id, if keeps && !self.dies_with_us(id) { Event::HandOver } else { Event::Stop(None) });
        }
        self.end_waits();
        self.settling = Settling::NotYet;
        self.leave_if_empty();
    }

    fn dies_with_us(&self, id: BackendId) -> bool {
        self.hosted.get(&id).and_then(|hosted| hosted.running.as_ref()).is_some_and(|running| running.dies_with_broker)
    }

    /// Stops a backend that has just been started and cannot be left to the next broker, if this one is going.
    pub(super) fn stop_if_not_kept(&mut self, id: BackendId) {
        if self.leaving.is_some_and(|leave| leave.keeps) && self.dies_with_us(id) {
            self.dispatch(id, Event::Stop(None));
        }
    }

    /// Goes on to leave once nothing keeps it: no launch and no end is under way, and what it does not leave is gone. Then
    /// the sessions have a little time to close, and the disk to take what it is owed.
    pub(super) fn leave_if_empty(&mut self) {
        let Some(Leave { keeps, .. }) = self.leaving else { return };
        let stays = |id, backend: &Backend| backend.is_live() && (!keeps || self.dies_with_us(id));
        if self.settling == Settling::Telling {
            return;
        }
        if self.launching + self.ending > 0 || self.registry.iter().any(|(id, _, backend)| stays(id, backend)) {
            return;
        }
        if self.settling == Settling::NotYet {
            self.settle_with_disk();
        }
        self.farewell.begin(now());
        self.arm();
        if self.sessions.is_empty() && self.settling == Settling::Done {
            self.over.notify_one();
        }
    }

    /// Does what is due of the leave that is taken of the sessions.
    pub(super) fn bid_farewell(&mut self) {
        let Some(step) = self.farewell.take_due(now()) else { return };
        let sessions = self.sessions.values().map(|connected| &connected.session);
        match step {
            Step::Hush => {
                // Or there would be no end of those who come.
                self.shuts_door.notify_one();
                sessions.for_each(|session| session.hush());
            }
            Step::Cut if self.sessions.is_empty() => {}
            Step::Cut => {
                tracing::info!(sessions = sessions.len(), "some have not closed their sessions, which end now");
                sessions.for_each(|session| {
                    session.hush();
                    session.close();
                });
            }
        }
    }

    /// Whether somebody has come just before the door was shut, who is let in and told now.
    pub(super) fn is_called_once_more(&mut self) -> bool {
        let is_called = self.listeners.iter().any(is_awaited) && self.farewell.last_call(now());
        self.arm();
        is_called
    }

    /// Has the journal written and the leases given up, by a worker thread: the disk may hang.
    fn settle_with_disk(&mut self) {
        self.settling = Settling::UnderWay;
        self.settles += 1;
        let (journal, keeper) = (self.journal.clone(), self.processes.leave());
        let job = move || {
            failpoint::reached("before-flush");
            if !journal.flush() {
                tracing::warn!("the journal is behind: what runs is known by its start record alone");
            }
            keeper.inspect(|keeper| keeper.stop());
            failpoint::reached("after-flush");
            Report::Settled
        };
        if let Err(error) = self.work(job, || Report::Settled) {
            tracing::warn!(%error, "no thread to write the journal from: it is written last of all");
            self.settled();
        }
    }

    /// The disk has what it was owed, or does not take it.
    pub(super) fn settled(&mut self) {
        self.settles -= 1;
        // It may have been told meanwhile to stop what it was to leave, of which the disk knows nothing yet.
        if self.settles == 0 && self.settling == Settling::UnderWay {
            self.settling = Settling::Done;
        }
        self.leave_if_empty();
    }

    /// Removes the sockets that the broker holds for backends that do not run, unless the service manager keeps them for
    /// the next broker.
    pub(super) fn remove_sockets(&self) {
        if self.leaving.is_some_and(|leave| leave.keeps) {
            self.fd_store.leave_behind();
        }
        for (id, ..) in self.registry.iter().filter(|(_, _, backend)| !backend.is_live()) {
            let held = self.hosted.get(&id).and_then(|hosted| hosted.listener.as_ref());
            held.filter(|held| !held.is_left()).into_iter().for_each(Held::remove);
        }
        self.cgroups.leave();
        // Only if it is empty: a daemon may have made something there.
        let _ = std::fs::remove_dir(self.places.endpoints());
    }
}

impl Leave {
    /// Stops everything, for good.
    pub(super) const STOP: Self = Self { reconnect: Reconnect::Never, keeps: false };

    /// Makes way for the next broker.
    pub(super) const HAND_OVER: Self =
        Self { reconnect: Reconnect::After { ms: super::RECONNECT_AFTER_MS }, keeps: true };

    /// Goes because nobody needs it; who comes nevertheless is told to come back.
    pub(super) const UNUSED: Self = Self { keeps: false, ..Self::HAND_OVER };
}
