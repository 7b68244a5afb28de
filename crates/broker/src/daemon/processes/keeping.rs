//! What the keeper does for one process of its own: looks, launches, watches, and stores the outcome.

use std::collections::VecDeque;
use std::sync::Arc;

use broker_proto::ProcessId;

use super::keeper::{Keeper, now};
use super::launch::{self, Look};
use super::orders::Happening;
use crate::core::durable::{Effect, Ended, Event, Found, Verdict};
use crate::reaper::folder::utc_now;

impl Keeper {
    /// The record is not ours any more, or has ended without us.
    pub(super) fn let_go(&mut self, id: &ProcessId) {
        tracing::warn!(process = %id, "another broker has taken over, or the process has ended: it is left alone");
        self.live.remove(id);
        self.answer_if_over(id);
        // Whoever has it now may die.
        self.sweep_soon();
    }

    /// Hands an event to the machine of a process and performs what follows.
    pub(super) fn feed(&mut self, id: &ProcessId, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            let Some(live) = self.live.get_mut(id) else { return };
            live.process.handle(now(), event, &mut effects);
            for effect in effects.drain(..) {
                events.extend(self.perform(id, effect));
            }
        }
    }

    fn perform(&mut self, id: &ProcessId, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Look => Some(Event::Looked(self.look(id))),
            Effect::Launch { attempt } => self.launch(id, attempt),
            Effect::Watch { attempt, adopted } => {
                let live = self.live.get_mut(id)?;
                live.is_adopted = adopted;
                // A child of ours is watched already.
                if let Some(found) = live.found.take() {
                    live.reaper = Some(Arc::new(found));
                }
                let (pid, said) = (live.pid, std::mem::replace(&mut live.said, attempt));
                if adopted {
                    tracing::info!(process = %id, attempt, pid, "adopted");
                    self.tell(id, Happening::Adopted { attempt, pid });
                } else if said < attempt {
                    self.tell(id, Happening::Started { attempt, pid });
                }
                None
            }
            Effect::AskToEnd => {
                let live = self.live.get(id)?;
                live.reaper.iter().for_each(launch::ask_to_end);
                None
            }
            Effect::Lost { attempt } => {
                tracing::warn!(process = %id, attempt, "an attempt was lost");
                self.say_started(id, attempt);
                self.tell(id, Happening::Lost { attempt });
                None
            }
            Effect::Finish { attempt, verdict, ended } => self.finish(id, attempt, verdict, &ended),
        }
    }

    pub(super) fn look(&mut self, id: &ProcessId) -> Found {
        let Look { found, reaper, pid, ended_at } = launch::look(&self.folder(id));
        if let Some(live) = self.live.get_mut(id) {
            (live.found, live.pid, live.ended_at) = (reaper, pid, ended_at);
        }
        found
    }

    fn launch(&mut self, id: &ProcessId, attempt: u32) -> Option<Event> {
        if self.is_leaving() {
            return None;
        }
        if self.parts.cgroups.are_closing() {
            // The signal that asks what lives there to end was sent already: what came now would be waited for, and killed.
            tracing::info!(process = %id, attempt, "not started while the unit of all backends is stopped, or being restarted");
            return Some(Event::Hindered);
        }
        let token = self.live.get(id)?.fencing_token;
        // The record says so first: if it is not ours any more, nothing is started.
        match self.records().map(|records| records.begin(id, token, attempt)) {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                self.let_go(id);
                return None;
            }
            Ok(Err(error)) => {
                tracing::error!(%error, process = %id, "not started, because the store cannot be written");
                return Some(Event::Hindered);
            }
            Err(_) => return Some(Event::Hindered),
        }
        match launch::launch(&self.folder(id), attempt, token, self.parts.nofile_soft, &self.parts.cgroups) {
            Ok(launched) => {
                tracing::info!(process = %id, attempt, reaper = launched.reaper.pid.as_raw(), "started");
                let reaper = Arc::new(launched.reaper.pidfd);
                self.children.push(Arc::clone(&reaper));
                let live = self.live.get_mut(id)?;
                live.reaper = Some(reaper);
                live.announcement = Some(launched.announcement);
                live.launched = Some(attempt);
                None
            }
            Err(error) => {
                tracing::error!(%error, process = %id, "no reaper can be started");
                Some(Event::Hindered)
            }
        }
    }

    /// Tells of the start of an attempt that was over before it was seen to run.
    fn say_started(&mut self, id: &ProcessId, attempt: u32) {
        let Some(live) = self.live.get_mut(id) else { return };
        if live.launched == Some(attempt) && live.said < attempt {
            live.said = attempt;
            let pid = live.pid;
            self.tell(id, Happening::Started { attempt, pid });
        }
    }

    fn finish(&mut self, id: &ProcessId, attempt: u32, verdict: Verdict, ended: &Ended) -> Option<Event> {
        let live = self.live.get(id)?;
        let token = live.fencing_token;
        let ended_at = live.ended_at.clone().unwrap_or_else(utc_now);
        self.say_started(id, attempt);
        let Ok(records) = self.records() else { return Some(Event::Hindered) };
        match records.finish(id, token, attempt, verdict, ended, &ended_at) {
            Ok(true) => {
                self.close(id);
                None
            }
            Ok(false) => {
                self.let_go(id);
                None
            }
            Err(error) => {
                tracing::error!(%error, process = %id, "an outcome cannot be stored yet");
                Some(Event::Hindered)
            }
        }
    }

    /// A process has ended, and its record says so.
    pub(super) fn close(&mut self, id: &ProcessId) {
        let adopted = self.live.remove(id).is_some_and(|mut live| {
            live.process.close();
            live.is_adopted
        });
        let Ok(Some(record)) = self.records().map(|records| records.get(id).ok().flatten()) else { return };
        let document = self.document(&record, adopted);
        let ended = record.ended.clone().unwrap_or_default();
        let reason = document["reason"].as_str().map(str::to_owned);
        tracing::info!(process = %id, state = record.state.as_str(), attempt = record.attempt, "ended");
        self.tell(id, Happening::Ended { state: record.state.as_str(), attempt: record.attempt, ended, reason });
        self.answer_waits(id, &document);
    }
}
