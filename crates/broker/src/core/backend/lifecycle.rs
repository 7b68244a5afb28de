//! What a backend's processes do, and what time does.

use broker_proto::{Code, Evidence, Exit, Refusal};

use super::super::Timestamp;
use super::super::readiness::{Decision, Observation, Pace};
use super::super::recovery;
use super::super::time::{millis, millis_up};
use super::super::waiters::Waiters;
use super::failure::{Cause, Failure, humane};
use super::{
    Backend, Effect, End, Happening, IDLE_RECHECK, News, RETRY_HINT, Starting, State, Stopping, Then, Trace, Why, Word,
    refuse_all,
};

impl Backend {
    pub(super) fn started(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Starting(_) | State::Stopping(_)) {
            self.record(Happening::Started, effects);
        }
        match &mut self.state {
            State::Starting(starting) => {
                starting.spawned = true;
                if self.policies.ready_at_exec {
                    self.become_ready(now, effects);
                } else if starting.readiness.pace() != Pace::Silent {
                    effects.push(Effect::Probe { generation: self.generation });
                }
            }
            State::Stopping(stopping) => {
                stopping.spawned = true;
                stopping.kill_at = Some(now + self.policies.stop_timeout);
                effects.push(Effect::Terminate { generation: self.generation });
            }
            State::Inactive { .. }
            | State::Ready { .. }
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Quarantined { .. } => {}
        }
    }

    pub(super) fn start_failed(&mut self, now: Timestamp, refusal: &Refusal, effects: &mut Vec<Effect>) {
        match self.leave() {
            State::Starting(starting) => {
                self.budget.start_ended();
                self.enter(now, State::Inactive { not_before: None });
                self.record(Happening::Failed { refusal: Box::new(refusal.clone()) }, effects);
                refuse_all(starting.waiters, refusal, effects);
                self.tell_holders(&News::Failed { refusal: Box::new(refusal.clone()) }, effects);
            }
            State::Stopping(stopping) => self.after_the_end(now, stopping, Trace::default(), effects),
            state @ (State::Inactive { .. }
            | State::Ready { .. }
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Quarantined { .. }) => {
                self.state = state;
            }
        }
    }

    pub(super) fn appeared(&mut self, effects: &mut Vec<Effect>) {
        if let State::Starting(starting) = &mut self.state {
            starting.readiness.appeared();
            // A daemon may be quicker than the report that it runs, at which it is looked at in any case.
            if starting.spawned {
                starting.probe = None;
                effects.push(Effect::Probe { generation: self.generation });
            }
        }
    }

    pub(super) fn probed(&mut self, now: Timestamp, ready: bool, obstacle: Option<String>, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Starting(_)) {
            if obstacle.is_some() && obstacle != self.obstacle {
                self.obstacle = obstacle;
                self.tell_waiters(now, effects);
            }
            self.observe(now, true, ready, effects);
        }
    }

    pub(super) fn notified(&mut self, now: Timestamp, word: Word, effects: &mut Vec<Effect>) {
        match (&mut self.state, word) {
            (State::Starting(_), Word::Ready) => self.observe(now, true, true, effects),
            (State::Starting(starting), Word::ExtendTimeout(time)) => {
                starting.readiness.extend(now.since(starting.began).saturating_add(time));
                self.touch();
            }
            (State::Stopping(Stopping { kill_at: Some(kill_at), .. }), Word::ExtendTimeout(time)) => {
                *kill_at = (*kill_at).max(now + time);
            }
            (_, Word::Status(text)) => {
                self.status = Some(text);
                self.tell_waiters(now, effects);
            }
            (
                State::Inactive { .. }
                | State::Ready { .. }
                | State::Stopping(_)
                | State::Backoff { .. }
                | State::Failed { .. }
                | State::Quarantined { .. },
                Word::Ready | Word::ExtendTimeout(_),
            ) => {}
        }
    }

    /// Decides what an observation of the starting daemon means.
    fn observe(&mut self, now: Timestamp, alive: bool, ready: bool, effects: &mut Vec<Effect>) {
        let State::Starting(starting) = &mut self.state else { return };
        let elapsed = now.since(starting.began);
        match starting.readiness.decide(Observation { elapsed, alive, ready }) {
            Decision::Ready => self.become_ready(now, effects),
            Decision::Sleep(delay) => starting.probe = Some(now + delay),
            Decision::CeilingReached => self.ceiling_reached(now, effects),
            Decision::Exited => {}
        }
    }

    pub(super) fn become_ready(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let State::Starting(starting) = self.leave() else { return };
        let generation = self.generation;
        self.obstacle = None;
        self.record(Happening::Ready { after: now.since(starting.began) }, effects);
        self.tell_holders(&News::Ready { generation }, effects);
        for waiter in starting.waiters {
            if waiter.holds {
                self.holds.insert(waiter.ticket);
            }
            effects.push(Effect::Negotiate { ticket: waiter.ticket, generation });
        }
        let healthy_at = now + self.policies.recovery.healthy_after();
        let idle_at = self.idle_at(now).filter(|_| self.holds.is_empty());
        self.enter(now, State::Ready { began: starting.began, healthy_at: Some(healthy_at), idle_at });
        self.stop_if_drained(effects);
    }

    fn ceiling_reached(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let State::Starting(starting) = self.leave() else { return };
        let lived = now.since(starting.began);
        let obstacle = self.obstacle.take().or_else(|| self.status.take());
        let then = self.crash(now, Cause::Ceiling { obstacle }, lived);
        let stopping = Stopping::new(starting.began, starting.spawned, End::Asked, then);
        self.stop(now, Why::Ceiling, Stopping { waiters: starting.waiters, ..stopping }, effects);
    }

    fn crash(&mut self, now: Timestamp, cause: Cause, lived: std::time::Duration) -> Then {
        let decision = self.budget.record_crash(now, &self.policies.recovery);
        Then::Recover(decision, Failure { cause, lived, attempt: self.attempt, trace: Trace::default() })
    }

    pub(super) fn exited(&mut self, now: Timestamp, exit: Exit, survivors: bool, effects: &mut Vec<Effect>) {
        let generation = self.generation;
        let (began, ready, waiters) = match &mut self.state {
            // Such a daemon may bind before it forks away, and so be ready an instant before its first process ends.
            // Of an adopted one it cannot be seen how its first process ended.
            State::Starting(_) | State::Ready { healthy_at: Some(_), .. }
                if survivors && matches!(exit, Exit::Code(0) | Exit::Unknown) =>
            {
                effects.push(Effect::Follow { generation });
                effects.push(Effect::Record { generation, happening: Happening::Forked });
                if let State::Starting(starting) = &mut self.state
                    && matches!(starting.readiness.pace(), Pace::Path | Pace::Port)
                {
                    starting.probe = None;
                    effects.push(Effect::Probe { generation });
                }
                return;
            }
            State::Starting(Starting { began, waiters, .. }) => (*began, false, waiters.take()),
            State::Ready { began, .. } => (*began, true, Waiters::default()),
            State::Stopping(stopping) => {
                if stopping.kill_at.take().is_some() {
                    let lived = now.since(stopping.began);
                    self.record(Happening::Exited { exit, lived, crash: false }, effects);
                    effects.push(Effect::End { generation });
                }
                return;
            }
            State::Inactive { .. } | State::Backoff { .. } | State::Failed { .. } | State::Quarantined { .. } => return,
        };
        let lived = now.since(began);
        let finished = ready && exit == Exit::Code(0) && self.holds.is_empty();
        self.record(Happening::Exited { exit, lived, crash: !finished }, effects);
        self.tell_holders(&News::Exited { generation, exit, lived }, effects);
        let (end, then) = match finished {
            true => (End::Finished, Then::Rest),
            false => (End::Crashed, self.crash(now, Cause::Exited { exit, ready }, lived)),
        };
        self.enter(now, State::Stopping(Stopping { waiters, ..Stopping::new(began, true, end, then) }));
        effects.push(Effect::End { generation });
    }

    /// As a reboot: what ended did not do so by itself, and nothing is counted.
    pub(super) fn taken_down(&mut self, now: Timestamp, exit: Exit, effects: &mut Vec<Effect>) {
        let generation = self.generation;
        let (began, waiters) = match &mut self.state {
            State::Starting(Starting { began, waiters, .. }) => (*began, waiters.take()),
            State::Ready { began, .. } => (*began, Waiters::default()),
            State::Stopping(_) => return self.exited(now, exit, false, effects),
            State::Inactive { .. } | State::Backoff { .. } | State::Failed { .. } | State::Quarantined { .. } => return,
        };
        let lived = now.since(began);
        // The budget stays as it is: a retry that ended so is still the one retry.
        self.record(Happening::Exited { exit, lived, crash: false }, effects);
        self.record(Happening::TakenDown, effects);
        self.tell_holders(&News::Exited { generation, exit, lived }, effects);
        let stopping = Stopping::new(began, true, End::Crashed, Then::Rest);
        self.enter(now, State::Stopping(Stopping { waiters, ..stopping }));
        effects.push(Effect::End { generation });
    }

    pub(super) fn gone(&mut self, now: Timestamp, trace: Trace, effects: &mut Vec<Effect>) {
        match self.leave() {
            State::Stopping(stopping) => self.after_the_end(now, stopping, trace, effects),
            state @ (State::Inactive { .. }
            | State::Starting(_)
            | State::Ready { .. }
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Quarantined { .. }) => self.state = state,
        }
    }

    fn after_the_end(&mut self, now: Timestamp, stopping: Stopping, trace: Trace, effects: &mut Vec<Effect>) {
        let Stopping { waiters, observers, end, then, .. } = stopping;
        match end {
            End::Asked => self.record(Happening::Stopped, effects),
            End::Finished => self.record(Happening::Finished, effects),
            End::Crashed => {}
        }
        effects.extend(observers.iter().map(|o| Effect::Stopped { ticket: o.ticket }));
        let wanted = !waiters.is_empty() || !self.holds.is_empty();
        match then {
            Then::Start => self.begin_start(now, waiters, effects),
            Then::Rest if wanted => self.begin_start(now, waiters, effects),
            Then::Rest => self.enter(now, State::Inactive { not_before: None }),
            Then::Recover(recovery::Decision::Retry { at }, _) if wanted => {
                self.record(Happening::Restarting { delay: at.since(now) }, effects);
                self.tell_holders(&News::Restarting { delay: at.since(now) }, effects);
                if at <= now {
                    self.begin_retry(now, waiters, effects);
                } else {
                    self.enter(now, State::Backoff { until: at, waiters });
                    self.tell_waiters(now, effects);
                }
            }
            Then::Recover(recovery::Decision::Retry { at }, _) => {
                self.enter(now, State::Inactive { not_before: Some(at) });
            }
            Then::Recover(recovery::Decision::Refuse { until }, mut failure) => {
                failure.trace = trace;
                let refusal = failure.refusal(now, until);
                self.record(Happening::Failed { refusal: Box::new(refusal.clone()) }, effects);
                refuse_all(waiters, &refusal, effects);
                self.tell_holders(&News::Failed { refusal: Box::new(refusal) }, effects);
                self.enter(now, State::Failed { until, failure });
            }
        }
    }

    pub(super) fn connections(&mut self, now: Timestamp, count: usize, effects: &mut Vec<Effect>) {
        let State::Ready { began, idle_at, .. } = &mut self.state else { return };
        let recheck = match self.policies.idle_timeout {
            _ if !self.holds.is_empty() => return,
            _ if self.draining => IDLE_RECHECK,
            Some(timeout) => timeout.max(IDLE_RECHECK),
            None => return,
        };
        if count > 0 {
            *idle_at = Some(now + recheck);
        } else {
            let why = if self.draining { Why::Drain } else { Why::Idle };
            let stopping = Stopping::new(*began, true, End::Asked, Then::Rest);
            self.stop(now, why, stopping, effects);
        }
    }

    pub(super) fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.refuse_expired(now, effects);
        let generation = self.generation;
        match &mut self.state {
            State::Inactive { .. } | State::Quarantined { .. } => {}
            State::Starting(starting) => {
                let ceiling = now >= starting.began + starting.readiness.ceiling();
                let due = starting.spawned && starting.probe.is_some_and(|time| time <= now);
                // A probe at the very ceiling still counts, where its answer comes at once.
                if due && (!ceiling || matches!(starting.readiness.pace(), Pace::Path | Pace::Port)) {
                    starting.probe = None;
                    effects.push(Effect::Probe { generation });
                } else if ceiling && std::mem::take(&mut starting.was_unheard) {
                    effects.push(Effect::Probe { generation });
                } else if ceiling {
                    self.observe(now, true, false, effects);
                }
            }
            State::Ready { healthy_at, idle_at, .. } => {
                if healthy_at.is_some_and(|time| time <= now) {
                    *healthy_at = None;
                    self.budget.clear();
                    self.revision += 1;
                }
                if idle_at.is_some_and(|time| time <= now) {
                    *idle_at = None;
                    effects.push(Effect::CountConnections { generation });
                }
            }
            State::Stopping(stopping) => {
                if stopping.spawned && stopping.kill_at.is_some_and(|time| time <= now) {
                    stopping.kill_at = None;
                    self.record(Happening::Killed { after: now.since(self.since) }, effects);
                    effects.push(Effect::End { generation });
                }
            }
            State::Backoff { until, waiters } => {
                if now >= *until && (!waiters.is_empty() || !self.holds.is_empty()) {
                    let waiters = waiters.take();
                    self.begin_retry(now, waiters, effects);
                } else {
                    self.rest_if_nobody_cares(now);
                }
            }
            State::Failed { until, .. } => {
                if now >= *until {
                    self.enter(now, State::Inactive { not_before: None });
                }
            }
        }
    }

    /// Refuses those whose own deadline is here, and them alone.
    fn refuse_expired(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let (expired, observers) = match &mut self.state {
            State::Starting(Starting { waiters, .. }) | State::Backoff { waiters, .. } => {
                (waiters.take_expired(now), Vec::new())
            }
            State::Stopping(Stopping { waiters, observers, .. }) => {
                (waiters.take_expired(now), observers.take_expired(now))
            }
            State::Inactive { .. } | State::Ready { .. } | State::Failed { .. } | State::Quarantined { .. } => return,
        };
        if expired.is_empty() && observers.is_empty() {
            return;
        }
        let progress = self.progress(now);
        let status = progress.status.map(|text| format!(" ({text})")).unwrap_or_default();
        let refusal = Refusal {
            code: Code::StartTimeout,
            reason: format!(
                "this request's deadline passed while the backend was {} for {}{status}",
                progress.state,
                humane(progress.elapsed)
            ),
            retry_after_ms: Some(millis_up(RETRY_HINT)),
            evidence: Evidence {
                lived_ms: Some(millis(progress.elapsed)),
                attempt: Some(progress.attempt),
                ..Evidence::default()
            },
        };
        let late = expired.into_iter().chain(observers);
        effects.extend(late.map(|w| Effect::Refuse { ticket: w.ticket, refusal: Box::new(refusal.clone()) }));
    }
}
