//! What clients and operators ask of a backend.

use std::time::Duration;

use broker_proto::{Code, Refusal};

use super::super::Timestamp;
use super::super::readiness::Readiness;
use super::super::time::millis_up;
use super::super::waiters::{Ticket, Waiter, Waiters};
use super::{
    Backend, Effect, End, Happening, News, Policies, RETRY_HINT, Starting, State, Stopping, Then, Why, refuse_all,
};

/// How soon to ask again for what an operator has to release first.
const QUARANTINE_HINT: Duration = Duration::from_secs(10);

impl Backend {
    pub(super) fn hello(&mut self, now: Timestamp, waiter: Waiter, effects: &mut Vec<Effect>) {
        if self.draining {
            let refusal = shutting_down("the backend is drained: it takes no new clients until `brokerctl start`");
            effects.push(Effect::Refuse { ticket: waiter.ticket, refusal: Box::new(refusal) });
            return;
        }
        self.admit(now, waiter, effects);
    }

    /// Answers one who wants the backend, or lets it wait.
    fn admit(&mut self, now: Timestamp, waiter: Waiter, effects: &mut Vec<Effect>) {
        let waiters_max = self.policies.waiters_max;
        match &mut self.state {
            State::Ready { idle_at, .. } => {
                if waiter.holds {
                    self.holds.insert(waiter.ticket);
                    *idle_at = None;
                }
                effects.push(Effect::Negotiate { ticket: waiter.ticket, generation: self.generation });
            }
            State::Starting(Starting { waiters, .. })
            | State::Stopping(Stopping { waiters, then: Then::Rest | Then::Start, .. })
            | State::Backoff { waiters, .. } => {
                if join(waiters, waiter, waiters_max, effects) {
                    let progress = self.progress(now);
                    effects.push(Effect::Progress { ticket: waiter.ticket, progress });
                }
            }
            State::Stopping(Stopping { waiters, then: Then::Recover(decision, failure), .. }) => match decision {
                super::recovery::Decision::Refuse { until } if now < *until => {
                    let refusal = Box::new(failure.refusal(now, *until));
                    effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
                }
                super::recovery::Decision::Refuse { .. } | super::recovery::Decision::Retry { .. } => {
                    if join(waiters, waiter, waiters_max, effects) {
                        let progress = self.progress(now);
                        effects.push(Effect::Progress { ticket: waiter.ticket, progress });
                    }
                }
            },
            State::Failed { until, failure } if now < *until => {
                let refusal = Box::new(failure.refusal(now, *until));
                effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
            }
            State::Inactive { not_before: Some(until) } if now < *until => {
                let until = *until;
                let mut waiters = Waiters::default();
                waiters.join(waiter);
                self.enter(now, State::Backoff { until, waiters });
                self.tell_waiters(now, effects);
            }
            State::Quarantined { reason } => {
                let refusal = Box::new(quarantined(reason));
                effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
            }
            State::Failed { .. } | State::Inactive { .. } => {
                let mut waiters = Waiters::default();
                waiters.join(waiter);
                self.begin_start(now, waiters, effects);
            }
        }
    }

    /// Begins a new generation, for those who wait.
    pub(super) fn begin_start(&mut self, now: Timestamp, waiters: Waiters, effects: &mut Vec<Effect>) {
        self.begin(now, waiters, false, effects);
    }

    /// Begins the generation that recovery allowed, for those who have waited for it.
    pub(super) fn begin_retry(&mut self, now: Timestamp, waiters: Waiters, effects: &mut Vec<Effect>) {
        self.begin(now, waiters, true, effects);
    }

    fn begin(&mut self, now: Timestamp, waiters: Waiters, is_retry: bool, effects: &mut Vec<Effect>) {
        if let Some(policies) = self.redefined.take() {
            self.policies = policies;
        }
        self.generation += 1;
        self.grace_until = None;
        self.attempt = self.budget.begin_start(now, is_retry, &self.policies.recovery);
        (self.status, self.obstacle) = (None, None);
        let readiness = Readiness::new(self.policies.pace, self.policies.hard_ceiling);
        let starting = Starting { waiters, began: now, readiness, spawned: false, probe: None, was_unheard: false };
        self.enter(now, State::Starting(starting));
        self.record(Happening::Starting { attempt: self.attempt }, effects);
        effects.push(Effect::Start { generation: self.generation });
        self.tell_waiters(now, effects);
    }

    pub(super) fn withdraw(&mut self, now: Timestamp, ticket: Ticket, effects: &mut Vec<Effect>) {
        let held = self.holds.remove(&ticket);
        let idle_from_now = self.idle_at(now);
        match &mut self.state {
            State::Inactive { .. } | State::Failed { .. } | State::Quarantined { .. } => {}
            State::Ready { idle_at, .. } => {
                if held && self.holds.is_empty() {
                    *idle_at = idle_from_now;
                    self.stop_if_drained(effects);
                }
            }
            State::Starting(Starting { waiters, .. }) => {
                waiters.withdraw(ticket);
            }
            State::Stopping(Stopping { waiters, observers, .. }) => {
                if !waiters.withdraw(ticket) {
                    observers.withdraw(ticket);
                }
            }
            State::Backoff { waiters, .. } => {
                waiters.withdraw(ticket);
                self.rest_if_nobody_cares(now);
            }
        }
    }

    /// Restarts are lazy: a retry that nobody waits for is not started.
    pub(super) fn rest_if_nobody_cares(&mut self, now: Timestamp) {
        if let State::Backoff { until, waiters } = &self.state
            && waiters.is_empty()
            && self.holds.is_empty()
        {
            let not_before = Some(*until);
            self.enter(now, State::Inactive { not_before });
        }
    }

    pub(super) fn order_start(&mut self, now: Timestamp, waiter: Waiter, effects: &mut Vec<Effect>) {
        self.touch();
        self.end_drain(effects);
        self.budget.clear();
        match self.leave() {
            State::Backoff { mut waiters, .. } => {
                waiters.join(waiter);
                self.begin_start(now, waiters, effects);
            }
            state @ State::Quarantined { .. } => {
                self.state = state;
                self.admit(now, waiter, effects);
            }
            State::Inactive { .. } | State::Failed { .. } => self.admit(now, waiter, effects),
            State::Stopping(mut stopping) => {
                if matches!(stopping.then, Then::Recover(..)) {
                    stopping.then = Then::Rest;
                }
                self.state = State::Stopping(stopping);
                self.admit(now, waiter, effects);
            }
            state @ (State::Starting(_) | State::Ready { .. }) => {
                self.state = state;
                self.admit(now, waiter, effects);
            }
        }
    }

    pub(super) fn order_stop(&mut self, now: Timestamp, observer: Option<Waiter>, effects: &mut Vec<Effect>) {
        self.touch();
        self.tell_holders(&News::Stopped, effects);
        self.holds.clear();
        self.budget.start_ended();
        let refusal = shutting_down("an operator stopped the backend");
        let why = if observer.is_some() { Why::Order } else { Why::Shutdown };
        let mut observers = Waiters::default();
        observer.into_iter().for_each(|waiter| observers.join(waiter));
        match self.leave() {
            state @ (State::Inactive { .. } | State::Failed { .. } | State::Quarantined { .. }) => {
                self.state = state;
                effects.extend(observers.iter().map(|o| Effect::Stopped { ticket: o.ticket }));
            }
            State::Backoff { until, waiters } => {
                refuse_all(waiters, &refusal, effects);
                self.enter(now, State::Inactive { not_before: Some(until) });
                self.record(Happening::Stopping { why }, effects);
                self.record(Happening::Stopped, effects);
                effects.extend(observers.iter().map(|o| Effect::Stopped { ticket: o.ticket }));
            }
            State::Starting(starting) => {
                refuse_all(starting.waiters, &refusal, effects);
                let stopping = Stopping::new(starting.began, starting.spawned, End::Asked, Then::Rest);
                self.stop(now, why, Stopping { observers, ..stopping }, effects);
            }
            State::Ready { began, .. } => {
                let stopping = Stopping::new(began, true, End::Asked, Then::Rest);
                self.stop(now, why, Stopping { observers, ..stopping }, effects);
            }
            State::Stopping(mut stopping) => {
                refuse_all(stopping.waiters.take(), &refusal, effects);
                observers.iter().for_each(|waiter| stopping.observers.join(waiter));
                if matches!(stopping.then, Then::Start) {
                    stopping.then = Then::Rest;
                }
                self.ask_to_end(why, &mut stopping, effects);
                self.state = State::Stopping(stopping);
            }
        }
    }

    pub(super) fn order_restart(&mut self, now: Timestamp, waiter: Waiter, effects: &mut Vec<Effect>) {
        self.touch();
        self.end_drain(effects);
        self.budget.clear();
        let mut waiters = Waiters::default();
        match self.leave() {
            state @ State::Quarantined { .. } => {
                self.state = state;
                self.admit(now, waiter, effects);
            }
            State::Inactive { .. } | State::Failed { .. } => {
                waiters.join(waiter);
                self.begin_start(now, waiters, effects);
            }
            State::Backoff { waiters: mut waiting, .. } => {
                waiting.join(waiter);
                self.begin_start(now, waiting, effects);
            }
            State::Starting(mut starting) => {
                starting.waiters.join(waiter);
                let stopping = Stopping::new(starting.began, starting.spawned, End::Asked, Then::Start);
                self.stop(now, Why::Restart, Stopping { waiters: starting.waiters, ..stopping }, effects);
            }
            State::Ready { began, .. } => {
                waiters.join(waiter);
                self.tell_holders(&News::Restarting { delay: Duration::ZERO }, effects);
                let stopping = Stopping::new(began, true, End::Asked, Then::Start);
                self.stop(now, Why::Restart, Stopping { waiters, ..stopping }, effects);
            }
            State::Stopping(mut stopping) => {
                stopping.waiters.join(waiter);
                stopping.then = Then::Start;
                self.ask_to_end(Why::Restart, &mut stopping, effects);
                self.state = State::Stopping(stopping);
            }
        }
    }

    pub(super) fn order_drain(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.draining, true) {
            self.touch();
            self.record(Happening::Draining, effects);
            self.tell_holders(&News::Draining, effects);
        }
        self.stop_if_drained(effects);
    }

    fn end_drain(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.draining) {
            self.record(Happening::DrainEnded, effects);
        }
    }

    /// A drained backend without holds ends once the kernel says that nobody is connected.
    pub(super) fn stop_if_drained(&self, effects: &mut Vec<Effect>) {
        if self.draining && self.holds.is_empty() && matches!(self.state, State::Ready { .. }) {
            effects.push(Effect::CountConnections { generation: self.generation });
        }
    }

    /// Begins to end the generation, politely.
    pub(super) fn stop(&mut self, now: Timestamp, why: Why, mut stopping: Stopping, effects: &mut Vec<Effect>) {
        self.record(Happening::Stopping { why }, effects);
        if stopping.spawned {
            effects.push(Effect::Terminate { generation: self.generation });
        }
        stopping.kill_at = Some(now + self.policies.stop_timeout);
        self.enter(now, State::Stopping(stopping));
        self.tell_waiters(now, effects);
    }

    /// An order finds the generation on its way out; if it went by itself, it goes as ordered from now on.
    fn ask_to_end(&self, why: Why, stopping: &mut Stopping, effects: &mut Vec<Effect>) {
        if stopping.end != End::Asked {
            stopping.end = End::Asked;
            self.record(Happening::Stopping { why }, effects);
        }
    }

    pub(super) fn redefine(&mut self, now: Timestamp, policies: Policies) {
        self.touch();
        self.budget.clear();
        self.redefined = Some(policies);
        match &mut self.state {
            State::Failed { .. } | State::Inactive { .. } => self.enter(now, State::Inactive { not_before: None }),
            State::Backoff { until, .. } => *until = now,
            State::Stopping(Stopping { then: then @ Then::Recover(..), .. }) => *then = Then::Rest,
            State::Stopping(_) | State::Starting(_) | State::Ready { .. } | State::Quarantined { .. } => {}
        }
    }
}

/// Lets one wait, or refuses it where too many do.
fn join(waiters: &mut Waiters, waiter: Waiter, waiters_max: usize, effects: &mut Vec<Effect>) -> bool {
    if waiters.len() < waiters_max {
        waiters.join(waiter);
        return true;
    }
    let reason = format!("{waiters_max} requests wait for this backend already, which is the limit");
    let refusal = Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT));
    effects.push(Effect::Refuse { ticket: waiter.ticket, refusal: Box::new(refusal) });
    false
}

/// What one is told who wants a backend that nobody knows the state of.
pub(crate) fn quarantined(reason: &str) -> Refusal {
    let reason = format!("the backend is quarantined until an operator releases it (`brokerctl release`): {reason}");
    Refusal::new(Code::BackendUnavailable, reason).retry_after_ms(millis_up(QUARANTINE_HINT))
}

pub(super) fn shutting_down(reason: &str) -> Refusal {
    Refusal::new(Code::ShuttingDown, reason).retry_after_ms(millis_up(RETRY_HINT))
}
