//! One backend: the machine behind a key.
//!
//! Owns every decision about one backend: whom to answer and how, when to start, probe, stop and give up. It performs
//! nothing. What it is told about a start carries that start's generation, so that late news of an old one changes
//! nothing, and no timer needs cancelling: the next deadline is derived from the state.

mod failure;
mod lifecycle;
mod memory;
mod requests;
#[cfg(test)]
mod tests;
mod words;

use std::time::Duration;

use broker_proto::Refusal;
use serde::{Deserialize, Serialize};

use self::failure::Failure;
pub(crate) use self::memory::{Memory, Phase};
pub(crate) use self::requests::quarantined;
pub(crate) use self::words::{Effect, Event, Happening, News, Policies, Progress, RETRY_HINT, Trace, View, Why, Word};
use super::readiness::Readiness;
use super::recovery::{self, Budget};
use super::waiters::Waiters;
pub(crate) use super::waiters::{Ticket, Waiter};
use super::{IdSet, Timestamp, first_of};

/// While somebody is still connected to a backend whose time is over, look again this often at most.
const IDLE_RECHECK: Duration = Duration::from_secs(1);

/// The machine.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Those of the newest start; a running generation keeps what it was started with.
    policies: Policies,
    /// Those of the next start, when the service file changed under a running generation.
    redefined: Option<Policies>,
    generation: u64,
    attempt: u32,
    budget: Budget,
    draining: bool,
    holds: IdSet<Ticket>,
    state: State,
    /// When the state began.
    since: Timestamp,
    /// What the daemon last said of itself.
    status: Option<String>,
    /// What the last probe found in the way.
    obstacle: Option<String>,
    /// Counts the changes of what is to be remembered.
    revision: u64,
    /// Until then an adopted generation is not idle: those who held it are on their way to this broker.
    grace_until: Option<Timestamp>,
}

#[derive(Debug)]
enum State {
    /// Nothing runs; a crash may have left a time before which nothing is started.
    Inactive {
        not_before: Option<Timestamp>,
    },
    Starting(Starting),
    Ready {
        began: Timestamp,
        healthy_at: Option<Timestamp>,
        idle_at: Option<Timestamp>,
    },
    Stopping(Stopping),
    Backoff {
        until: Timestamp,
        waiters: Waiters,
    },
    Failed {
        until: Timestamp,
        failure: Failure,
    },
    /// An earlier broker left something of which it cannot be proved whose it is: nothing is done until an operator
    /// says so.
    Quarantined {
        reason: String,
    },
}

#[derive(Debug)]
struct Starting {
    waiters: Waiters,
    began: Timestamp,
    readiness: Readiness,
    spawned: bool,
    /// When to look next, or a look is under way.
    probe: Option<Timestamp>,
    /// No broker listened for a while, and it may have said then that it is ready: at the ceiling its endpoint is looked
    /// at.
    was_unheard: bool,
}

#[derive(Debug)]
struct Stopping {
    /// When the generation was started.
    began: Timestamp,
    /// They wait for the next start.
    waiters: Waiters,
    /// They wait for the end of this.
    observers: Waiters,
    spawned: bool,
    /// When politeness is over; `None` once the rest is being ended.
    kill_at: Option<Timestamp>,
    end: End,
    then: Then,
}

impl Stopping {
    /// The end of what was started then, for which nobody waits yet.
    fn new(began: Timestamp, spawned: bool, end: End, then: Then) -> Self {
        let (waiters, observers) = (Waiters::default(), Waiters::default());
        Self { began, waiters, observers, spawned, kill_at: None, end, then }
    }
}

/// How an end came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// It was asked to end.
    Asked,
    /// It crashed, or was taken down.
    Crashed,
    Finished,
}

/// What follows when nothing is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Then {
    /// A start if somebody waits, else rest.
    Rest,
    /// A start, whoever waits: an operator said so.
    Start,
    /// What recovery decided.
    Recover(recovery::Decision, Failure),
}

impl Backend {
    /// A backend that never ran.
    pub(crate) fn new(now: Timestamp, policies: Policies) -> Self {
        Self {
            policies,
            redefined: None,
            generation: 0,
            attempt: 0,
            budget: Budget::default(),
            draining: false,
            holds: IdSet::default(),
            state: State::Inactive { not_before: None },
            since: now,
            status: None,
            obstacle: None,
            revision: 0,
            grace_until: None,
        }
    }

    /// A backend that never ran, whose first generation is the one above that.
    pub(crate) fn above(now: Timestamp, policies: Policies, generation: u64) -> Self {
        Self { generation, ..Self::new(now, policies) }
    }

    /// Takes one event and says what must be done.
    pub(crate) fn handle(&mut self, now: Timestamp, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Hello(waiter) => self.hello(now, waiter, effects),
            Event::Withdraw(ticket) => self.withdraw(now, ticket, effects),
            Event::Start(waiter) => self.order_start(now, waiter, effects),
            Event::Stop(waiter) => self.order_stop(now, waiter, effects),
            Event::Restart(waiter) => self.order_restart(now, waiter, effects),
            Event::Drain => self.order_drain(effects),
            Event::Redefine(policies) => self.redefine(now, policies),
            Event::HandOver => self.hand_over(now, effects),
            Event::Release => self.release(now, effects),
            Event::Adopted { generation } if generation == self.generation => self.adopted(now, effects),
            Event::Started { generation } if generation == self.generation => self.started(now, effects),
            Event::StartFailed { generation, refusal } if generation == self.generation => {
                self.start_failed(now, &refusal, effects);
            }
            Event::Appeared { generation } if generation == self.generation => self.appeared(effects),
            Event::Probed { generation, ready, obstacle } if generation == self.generation => {
                self.probed(now, ready, obstacle, effects);
            }
            Event::Notified { generation, word } if generation == self.generation => self.notified(now, word, effects),
            Event::Exited { generation, exit, survivors } if generation == self.generation => {
                self.exited(now, exit, survivors, effects);
            }
            Event::TakenDown { generation, exit } if generation == self.generation => {
                self.taken_down(now, exit, effects);
            }
            Event::Gone { generation, trace } if generation == self.generation => self.gone(now, trace, effects),
            Event::Connections { generation, count } if generation == self.generation => {
                self.connections(now, count, effects);
            }
            Event::Tick => self.tick(now, effects),
            Event::Adopted { .. }
            | Event::Started { .. }
            | Event::StartFailed { .. }
            | Event::Appeared { .. }
            | Event::Probed { .. }
            | Event::Notified { .. }
            | Event::Exited { .. }
            | Event::TakenDown { .. }
            | Event::Gone { .. }
            | Event::Connections { .. } => {} // late news of an earlier generation
        }
    }

    /// When the machine wants a [`Event::Tick`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        first_of(match &self.state {
            State::Inactive { .. } => [None, None, None],
            State::Starting(starting) => {
                let ceiling = starting.began + starting.readiness.ceiling();
                [starting.waiters.earliest(), starting.probe.filter(|_| starting.spawned), Some(ceiling)]
            }
            State::Ready { healthy_at, idle_at, .. } => [*healthy_at, *idle_at, None],
            State::Stopping(stopping) => {
                let kill_at = stopping.kill_at.filter(|_| stopping.spawned);
                [stopping.waiters.earliest(), stopping.observers.earliest(), kill_at]
            }
            State::Backoff { until, waiters } => [Some(*until), waiters.earliest(), None],
            State::Failed { until, .. } => [Some(*until), None, None],
            State::Quarantined { .. } => [None, None, None],
        })
    }

    /// Whether nothing runs and nothing is remembered that a new machine would not know.
    pub(crate) fn is_forgettable(&self, now: Timestamp) -> bool {
        matches!(self.state, State::Inactive { not_before } if not_before.is_none_or(|time| time <= now))
            && self.budget.crashes(now, false, &self.policies.recovery) == 0
            && !self.draining
            && self.holds.is_empty()
    }

    /// Whether a process of it may exist.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, State::Starting(_) | State::Ready { .. } | State::Stopping(_))
    }

    /// Where it is in its life, as `status` names it.
    pub(crate) fn state(&self) -> broker_proto::State {
        match self.state {
            State::Inactive { .. } => broker_proto::State::Inactive,
            State::Starting(_) => broker_proto::State::Starting,
            State::Ready { .. } => broker_proto::State::Ready,
            State::Stopping(_) => broker_proto::State::Stopping,
            State::Backoff { .. } => broker_proto::State::Backoff,
            State::Failed { .. } => broker_proto::State::Failed,
            State::Quarantined { .. } => broker_proto::State::Quarantined,
        }
    }

    /// When it is killed, if it was asked to end and has time left.
    pub(crate) fn kill_at(&self) -> Option<Timestamp> {
        match &self.state {
            State::Stopping(stopping) => stopping.kill_at,
            _ => None,
        }
    }

    /// Whether a stop would end something: a process, a wait, or a hold.
    pub(crate) fn is_stoppable(&self) -> bool {
        self.is_live() || matches!(self.state, State::Backoff { .. }) || !self.holds.is_empty()
    }

    /// Whether those who wait will be refused, and told of the end that is under way, once nothing is left.
    pub(crate) fn will_refuse(&self) -> bool {
        let State::Stopping(stopping) = &self.state else { return false };
        matches!(stopping.then, Then::Recover(recovery::Decision::Refuse { .. }, _))
    }

    /// What `status` shows.
    pub(crate) fn view(&self, now: Timestamp) -> View {
        let (waiters, retry_at) = match &self.state {
            State::Inactive { not_before } => (0, not_before.filter(|time| *time > now)),
            State::Starting(starting) => (starting.waiters.len(), None),
            State::Stopping(stopping) => (stopping.waiters.len(), None),
            State::Backoff { until, waiters } => (waiters.len(), Some(*until)),
            State::Failed { until, .. } => (0, Some(*until)),
            State::Ready { .. } | State::Quarantined { .. } => (0, None),
        };
        View {
            state: self.state(),
            since: self.since,
            generation: self.generation,
            attempt: self.attempt,
            holds: self.holds.len(),
            waiters,
            crashes_in_window: self.budget.crashes(now, self.is_live(), &self.policies.recovery),
            retry_after: retry_at.map(|time| time.since(now)),
            draining: self.draining,
            status: self.status_or_obstacle().filter(|_| self.is_live()),
            quarantine: match &self.state {
                State::Quarantined { reason } => Some(reason.clone()),
                _ => None,
            },
        }
    }

    /// When a backend that nobody holds has been idle for long enough.
    fn idle_at(&self, now: Timestamp) -> Option<Timestamp> {
        let idle_at = now + self.policies.idle_timeout?;
        Some(self.grace_until.map_or(idle_at, |grace| grace.max(idle_at)))
    }

    fn enter(&mut self, now: Timestamp, state: State) {
        self.state = state;
        self.since = now;
        self.touch();
    }

    /// Takes the state out, to be replaced by the one that follows.
    fn leave(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Inactive { not_before: None })
    }

    fn status_or_obstacle(&self) -> Option<String> {
        self.status.clone().or_else(|| self.obstacle.clone())
    }

    fn progress(&self, now: Timestamp) -> Progress {
        let view = self.view(now);
        Progress {
            state: view.state,
            attempt: self.attempt,
            elapsed: now.since(self.since),
            status: self.status_or_obstacle(),
        }
    }

    /// Tells everybody who waits what is going on now.
    fn tell_waiters(&self, now: Timestamp, effects: &mut Vec<Effect>) {
        let waiters = match &self.state {
            State::Starting(Starting { waiters, .. })
            | State::Stopping(Stopping { waiters, .. })
            | State::Backoff { waiters, .. } => waiters,
            State::Inactive { .. } | State::Ready { .. } | State::Failed { .. } | State::Quarantined { .. } => return,
        };
        if waiters.is_empty() {
            return;
        }
        let progress = self.progress(now);
        effects.extend(waiters.iter().map(|w| Effect::Progress { ticket: w.ticket, progress: progress.clone() }));
    }

    fn record(&self, happening: Happening, effects: &mut Vec<Effect>) {
        effects.push(Effect::Record { generation: self.generation, happening });
    }

    fn tell_holders(&self, news: &News, effects: &mut Vec<Effect>) {
        effects.extend(self.holds.iter().map(|&ticket| Effect::Tell { ticket, news: news.clone() }));
    }
}

fn refuse_all(waiters: Waiters, refusal: &Refusal, effects: &mut Vec<Effect>) {
    let refused = waiters.into_iter();
    effects.extend(refused.map(|w| Effect::Refuse { ticket: w.ticket, refusal: Box::new(refusal.clone()) }));
}
