//! What a backend remembers when its broker dies: taken from a machine to be written down, and given to a new one.
//!
//! It is plain data, so that the next broker decides as this one would have. Who waits and who holds is not in it: they
//! come again by themselves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::readiness::{Pace, Readiness};
use super::super::recovery::Budget;
use super::super::waiters::Waiters;
use super::failure::Failure;
use super::{
    Backend, Effect, End, Happening, Policies, Refusal, Starting, State, Stopping, Then, refuse_all, requests,
};

/// How long an adopted backend is not idle, whoever holds it or not: those who held it need a while to come back to the
/// next broker, of which a client waits 5 seconds at most before it dials again.
const RETURN_GRACE: Duration = Duration::from_secs(10);

/// What is remembered. Its times are of the boot in which they were written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) generation: u64,
    attempt: u32,
    budget: Budget,
    draining: bool,
    pub(crate) phase: Phase,
}

/// How far it was. A backoff is a rest with a time before which nothing starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Inactive { not_before: Option<Timestamp> },
    Starting { began: Timestamp, ceiling: Duration },
    Ready { began: Timestamp, since: Timestamp, proved: bool },
    Stopping { began: Timestamp, end: End, then: Then },
    Failed { until: Timestamp, failure: Failure },
    Quarantined { reason: String },
}

impl Memory {
    /// What is left of it when it is known that the start which it tells of never came to a fork.
    pub(crate) fn without_its_start(mut self) -> Self {
        self.budget.start_ended();
        self.phase = Phase::Inactive { not_before: None };
        self
    }

    /// What is left of it in another boot, whose clock is another: nothing runs, and nothing crashed.
    pub(crate) fn in_another_boot(self) -> Self {
        let phase = Phase::Inactive { not_before: None };
        Self { generation: self.generation, attempt: 0, budget: Budget::default(), draining: self.draining, phase }
    }

    /// The same, set apart for an operator.
    pub(crate) fn quarantined(self, reason: String) -> Self {
        Self { phase: Phase::Quarantined { reason }, ..self }
    }

    /// A backend of which nothing is known but that a generation of it began then.
    pub(crate) fn of_a_start(generation: u64, began: Timestamp, ceiling: Duration) -> Self {
        let phase = Phase::Starting { began, ceiling };
        Self { generation, attempt: 0, budget: Budget::default(), draining: false, phase }
    }

    /// The same with a later start, of which the journal does not know.
    pub(crate) fn with_a_start(self, generation: u64, began: Timestamp, ceiling: Duration) -> Self {
        Self { generation, phase: Phase::Starting { began, ceiling }, ..self }
    }

    /// The same, with what runs of it being ended: that it does not outlive its broker is no crash.
    pub(crate) fn being_ended(mut self, now: Timestamp) -> Self {
        self.budget.start_ended();
        Self { phase: Phase::Stopping { began: now, end: End::Asked, then: Then::Rest }, ..self }
    }

    /// Whether a process of it may exist.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Ready { .. } | Phase::Stopping { .. })
    }

    /// A start whose time is over and which was not ended for it has become ready.
    pub(crate) fn past_its_ceiling(mut self, now: Timestamp) -> Self {
        if let Phase::Starting { began, ceiling } = self.phase
            && now >= began + ceiling
        {
            self.phase = Phase::Ready { began, since: began + ceiling, proved: false };
        }
        self
    }
}

impl Backend {
    /// What is to be written down now.
    pub(crate) fn memory(&self) -> Memory {
        let phase = match &self.state {
            State::Inactive { not_before } => Phase::Inactive { not_before: *not_before },
            State::Backoff { until, .. } => Phase::Inactive { not_before: Some(*until) },
            State::Starting(starting) => {
                Phase::Starting { began: starting.began, ceiling: starting.readiness.ceiling() }
            }
            State::Ready { began, healthy_at, .. } => {
                Phase::Ready { began: *began, since: self.since, proved: healthy_at.is_none() }
            }
            State::Stopping(Stopping { began, end, then, .. }) => {
                Phase::Stopping { began: *began, end: *end, then: then.clone() }
            }
            State::Failed { until, failure } => Phase::Failed { until: *until, failure: failure.clone() },
            State::Quarantined { reason } => Phase::Quarantined { reason: reason.clone() },
        };
        Self::memory_with(self, phase)
    }

    fn memory_with(&self, phase: Phase) -> Memory {
        let Self { generation, attempt, budget, draining, .. } = *self;
        Memory { generation, attempt, budget, draining, phase }
    }

    /// Changes with whatever [`Backend::memory`] tells.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn touch(&mut self) {
        self.revision += 1;
    }

    /// The machine of a backend that an earlier broker left in that state. Where a process may exist it is told next
    /// what became of it: [`Event::Adopted`](super::Event::Adopted), or its end.
    pub(crate) fn restored(now: Timestamp, policies: Policies, memory: Memory) -> Self {
        let Memory { generation, attempt, budget, draining, phase } = memory;
        let grace_until = Some(now + RETURN_GRACE);
        let mut backend = Self { generation, attempt, budget, draining, grace_until, ..Self::new(now, policies) };
        backend.state = match phase {
            Phase::Inactive { not_before } => State::Inactive { not_before },
            Phase::Starting { began, ceiling } => {
                backend.since = began;
                let readiness = Readiness::new(policies.pace, ceiling);
                let was_unheard = policies.pace == Pace::Silent;
                let waiters = Waiters::default();
                State::Starting(Starting { waiters, began, readiness, spawned: true, probe: None, was_unheard })
            }
            Phase::Ready { began, since, proved } => {
                backend.since = since;
                let healthy_at = (!proved).then(|| since + policies.recovery.healthy_after());
                let idle_at = backend.idle_at(now);
                State::Ready { began, healthy_at, idle_at: idle_at.or(grace_until.filter(|_| draining)) }
            }
            Phase::Stopping { began, end, then } => {
                // Who went by himself has nothing to wait for any more.
                let kill_at = (end == End::Asked).then(|| now + policies.stop_timeout);
                State::Stopping(Stopping { kill_at, ..Stopping::new(began, true, end, then) })
            }
            Phase::Failed { until, failure } => State::Failed { until, failure },
            Phase::Quarantined { reason } => State::Quarantined { reason },
        };
        backend
    }

    /// The process of a restored backend is proved to live.
    pub(super) fn adopted(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let generation = self.generation;
        let Some(effect) = (match &mut self.state {
            State::Starting(starting) => {
                let is_probed = starting.readiness.pace() != Pace::Silent;
                self.record(Happening::Adopted, effects);
                if self.policies.ready_at_exec {
                    self.become_ready(now, effects);
                }
                is_probed.then_some(Effect::Probe { generation })
            }
            State::Ready { .. } => {
                self.record(Happening::Adopted, effects);
                None
            }
            State::Stopping(stopping) => {
                let asked = stopping.end == End::Asked;
                self.record(Happening::Adopted, effects);
                Some(if asked { Effect::Terminate { generation } } else { Effect::End { generation } })
            }
            State::Inactive { .. } | State::Backoff { .. } | State::Failed { .. } | State::Quarantined { .. } => None,
        }) else {
            return;
        };
        effects.push(effect);
    }

    /// The broker goes and leaves the backend to the next one: who waits is refused, who holds comes again there.
    pub(super) fn hand_over(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.holds.clear();
        let refusal: Refusal = requests::shutting_down("the broker makes way for the next one");
        match &mut self.state {
            State::Starting(Starting { waiters, .. }) => refuse_all(waiters.take(), &refusal, effects),
            State::Stopping(Stopping { waiters, observers, .. }) => {
                refuse_all(waiters.take(), &refusal, effects);
                refuse_all(observers.take(), &refusal, effects);
            }
            State::Backoff { until, waiters } => {
                let not_before = Some(*until);
                refuse_all(waiters.take(), &refusal, effects);
                self.enter(now, State::Inactive { not_before });
            }
            State::Inactive { .. } | State::Ready { .. } | State::Failed { .. } | State::Quarantined { .. } => {}
        }
    }

    /// An operator has looked, and lets the backend be started again.
    pub(super) fn release(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if let State::Quarantined { .. } = self.state {
            self.enter(now, State::Inactive { not_before: None });
            self.record(Happening::Released, effects);
        }
    }
}
