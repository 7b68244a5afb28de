//! One backend: the machine behind a key.
//!
//! Owns every decision about one backend: whom to answer and how, when to start, probe, stop and give up. It performs
//! nothing. What it is told about a start carries that start's generation, so that late news of an old one changes
//! nothing, and no timer needs cancelling: the next deadline is derived from the state.

mod lifecycle;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use broker_proto::{Code, Evidence, Exit, Refusal};

use super::Timestamp;
use super::readiness::{Pace, Readiness};
use super::recovery::{self, Budget};
use super::time::{millis, millis_up};
use super::waiters::Waiters;
pub(crate) use super::waiters::{Ticket, Waiter};

/// How soon to ask again where nothing better is known.
pub(crate) const RETRY_HINT: Duration = Duration::from_secs(1);

/// While somebody is still connected to a backend whose time is over, look again this often at most.
const IDLE_RECHECK: Duration = Duration::from_secs(1);

/// What a service file decides about the life of its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policies {
    /// How its readiness is learned.
    pub(crate) pace: Pace,
    /// It is ready as soon as its program runs: the broker holds its listening socket.
    pub(crate) ready_at_exec: bool,
    /// The longest that a start may take.
    pub(crate) hard_ceiling: Duration,
    pub(crate) recovery: recovery::Policy,
    /// From the last release to the stop; `None` is never.
    pub(crate) idle_timeout: Option<Duration>,
    /// From the polite signal to SIGKILL.
    pub(crate) stop_timeout: Duration,
    /// How many may wait at once.
    pub(crate) waiters_max: usize,
}

/// What a backend is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A client wants the backend.
    Hello(Waiter),
    /// A client or an operator wants it no longer, as a waiter or as a holder.
    Withdraw(Ticket),
    /// An operator orders a start.
    Start(Waiter),
    /// An operator orders a stop, and may wait for its end.
    Stop(Option<Waiter>),
    /// An operator orders a stop and a start.
    Restart(Waiter),
    /// An operator wants no new holds.
    Drain,
    /// The service file has changed.
    Redefine(Policies),
    /// The program runs.
    Started { generation: u64 },
    /// The program could not be started at all.
    StartFailed { generation: u64, refusal: Refusal },
    /// The socket file appeared.
    Appeared { generation: u64 },
    /// A probe's result; the text says what is in the way, if the broker sees it.
    Probed { generation: u64, ready: bool, obstacle: Option<String> },
    /// The daemon said something on its notify socket.
    Notified { generation: u64, word: Word },
    /// The main process ended; `survivors` says that descendants of it live on elsewhere.
    Exited { generation: u64, exit: Exit, survivors: bool },
    /// Nothing of the generation is left.
    Gone { generation: u64, trace: Trace },
    /// How many connections the endpoint has.
    Connections { generation: u64, count: usize },
    /// Time has passed.
    Tick,
}

/// What a daemon may say of itself (`sd_notify(3)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    Ready,
    Status(String),
    ExtendTimeout(Duration),
}

/// What a generation left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The last lines of its log.
    pub(crate) stderr: Option<String>,
    /// Its log file.
    pub(crate) log_path: Option<String>,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start the program; answer with `Started` or `StartFailed`.
    Start { generation: u64 },
    /// Look whether it is ready; answer with `Probed`.
    Probe { generation: u64 },
    /// Its main process ended on purpose and descendants are the daemon: follow them.
    Follow { generation: u64 },
    /// Ask the whole group to end.
    Terminate { generation: u64 },
    /// End what is left of the group, and answer with `Gone` when nothing is.
    End { generation: u64 },
    /// Count the connections of its endpoint; answer with `Connections`.
    CountConnections { generation: u64 },
    /// Answer: the backend is ready.
    Negotiate { ticket: Ticket, generation: u64 },
    /// Answer: no.
    Refuse { ticket: Ticket, refusal: Box<Refusal> },
    /// Answer the one who ordered a stop: nothing runs.
    Stopped { ticket: Ticket },
    /// Tell one who waits what is going on.
    Progress { ticket: Ticket, progress: Progress },
    /// Tell one who holds what happened.
    Tell { ticket: Ticket, news: News },
}

/// What is going on, for one who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) state: broker_proto::State,
    pub(crate) attempt: u32,
    pub(crate) elapsed: Duration,
    pub(crate) status: Option<String>,
}

/// What happened, for one who holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    Exited {
        generation: u64,
        exit: Exit,
        lived: Duration,
    },
    Restarting {
        delay: Duration,
    },
    Ready {
        generation: u64,
    },
    Failed {
        refusal: Box<Refusal>,
    },
    Draining,
    /// The hold is over.
    Stopped,
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: broker_proto::State,
    pub(crate) since: Timestamp,
    pub(crate) generation: u64,
    pub(crate) attempt: u32,
    pub(crate) holds: usize,
    pub(crate) waiters: usize,
    pub(crate) crashes_in_window: u32,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) draining: bool,
    pub(crate) status: Option<String>,
}

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
    holds: BTreeSet<Ticket>,
    state: State,
    /// When the state began.
    since: Timestamp,
    /// What the daemon last said of itself, or what the last probe found in the way.
    status: Option<String>,
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
}

#[derive(Debug)]
struct Starting {
    waiters: Waiters,
    began: Timestamp,
    readiness: Readiness,
    spawned: bool,
    /// When to look next, or a look is under way.
    probe: Option<Timestamp>,
}

#[derive(Debug)]
struct Stopping {
    /// They wait for the next start.
    waiters: Waiters,
    /// They wait for the end of this.
    observers: Waiters,
    spawned: bool,
    /// When politeness is over; `None` once the rest is being ended.
    kill_at: Option<Timestamp>,
    then: Then,
}

/// What follows when nothing is left.
#[derive(Debug)]
enum Then {
    /// A start if somebody waits, else rest.
    Rest,
    /// A start, whoever waits: an operator said so.
    Start,
    /// What recovery decided.
    Recover(recovery::Decision, Failure),
}

/// Why a start or a generation failed.
#[derive(Debug, Clone)]
struct Failure {
    cause: Cause,
    lived: Duration,
    attempt: u32,
    trace: Trace,
}

#[derive(Debug, Clone)]
enum Cause {
    Exited { exit: Exit, ready: bool },
    Ceiling { obstacle: Option<String> },
}

impl Failure {
    /// The refusal of one who asks at `now` and is refused until then.
    fn refusal(&self, now: Timestamp, until: Timestamp) -> Refusal {
        let lived = humane(self.lived);
        let what = match &self.cause {
            Cause::Exited { exit, ready } => {
                let how = match exit {
                    Exit::Code(code) => format!("exited with code {code}"),
                    Exit::Signal(signal) => format!("was ended by signal {signal}"),
                    Exit::Unknown => "ended".to_owned(),
                };
                let when = if *ready { "after" } else { "before it was ready, after" };
                format!("the daemon {how} {when} {lived}")
            }
            Cause::Ceiling { obstacle: None } => format!("the daemon was not ready within {lived}"),
            Cause::Ceiling { obstacle: Some(obstacle) } => {
                format!("the daemon was not ready within {lived}: {obstacle}")
            }
        };
        let (exit_code, signal) = match self.cause {
            Cause::Exited { exit: Exit::Code(code), .. } => (Some(code), None),
            Cause::Exited { exit: Exit::Signal(signal), .. } => (None, Some(signal)),
            Cause::Exited { exit: Exit::Unknown, .. } | Cause::Ceiling { .. } => (None, None),
        };
        Refusal {
            code: Code::BackendUnavailable,
            reason: format!("{what}, and its one retry is used up"),
            retry_after_ms: Some(millis_up(until.since(now)).max(1)),
            evidence: Evidence {
                exit_code,
                signal,
                lived_ms: Some(millis(self.lived)),
                attempt: Some(self.attempt),
                stderr: self.trace.stderr.clone(),
                log_path: self.trace.log_path.clone(),
                available: Vec::new(),
            },
        }
    }
}

/// A duration for a sentence: milliseconds below ten seconds, tenths of seconds above.
fn humane(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
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
            holds: BTreeSet::new(),
            state: State::Inactive { not_before: None },
            since: now,
            status: None,
        }
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
            Event::Gone { generation, trace } if generation == self.generation => self.gone(now, trace, effects),
            Event::Connections { generation, count } if generation == self.generation => {
                self.connections(now, count, effects);
            }
            Event::Tick => self.tick(now, effects),
            Event::Started { .. }
            | Event::StartFailed { .. }
            | Event::Appeared { .. }
            | Event::Probed { .. }
            | Event::Notified { .. }
            | Event::Exited { .. }
            | Event::Gone { .. }
            | Event::Connections { .. } => {} // late news of an earlier generation
        }
    }

    /// When the machine wants a [`Event::Tick`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let own = match &self.state {
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
        };
        own.into_iter().flatten().min()
    }

    /// Whether nothing runs and nothing is remembered that a new machine would not know.
    pub(crate) fn is_forgettable(&self, now: Timestamp) -> bool {
        matches!(self.state, State::Inactive { not_before } if not_before.is_none_or(|time| time <= now))
            && self.budget.crashes(now, &self.policies.recovery) == 0
            && !self.draining
            && self.holds.is_empty()
    }

    /// Whether a process of it may exist.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, State::Starting(_) | State::Ready { .. } | State::Stopping(_))
    }

    /// Whether a stop would end something: a process, a wait, or a hold.
    pub(crate) fn is_stoppable(&self) -> bool {
        self.is_live() || matches!(self.state, State::Backoff { .. }) || !self.holds.is_empty()
    }

    /// What `status` shows.
    pub(crate) fn view(&self, now: Timestamp) -> View {
        let (state, waiters, retry_at) = match &self.state {
            State::Inactive { not_before } => (broker_proto::State::Inactive, 0, not_before.filter(|time| *time > now)),
            State::Starting(starting) => (broker_proto::State::Starting, starting.waiters.len(), None),
            State::Ready { .. } => (broker_proto::State::Ready, 0, None),
            State::Stopping(stopping) => (broker_proto::State::Stopping, stopping.waiters.len(), None),
            State::Backoff { until, waiters } => (broker_proto::State::Backoff, waiters.len(), Some(*until)),
            State::Failed { until, .. } => (broker_proto::State::Failed, 0, Some(*until)),
        };
        View {
            state,
            since: self.since,
            generation: self.generation,
            attempt: self.attempt,
            holds: self.holds.len(),
            waiters,
            crashes_in_window: self.budget.crashes(now, &self.policies.recovery),
            retry_after: retry_at.map(|time| time.since(now)),
            draining: self.draining,
            status: self.status.clone().filter(|_| self.is_live()),
        }
    }

    fn enter(&mut self, now: Timestamp, state: State) {
        self.state = state;
        self.since = now;
    }

    /// Takes the state out, to be replaced by the one that follows.
    fn leave(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Inactive { not_before: None })
    }

    fn progress(&self, now: Timestamp) -> Progress {
        let view = self.view(now);
        Progress {
            state: view.state,
            attempt: self.attempt,
            elapsed: now.since(self.since),
            status: self.status.clone(),
        }
    }

    /// Tells everybody who waits what is going on now.
    fn tell_waiters(&self, now: Timestamp, effects: &mut Vec<Effect>) {
        let waiters = match &self.state {
            State::Starting(Starting { waiters, .. })
            | State::Stopping(Stopping { waiters, .. })
            | State::Backoff { waiters, .. } => waiters,
            State::Inactive { .. } | State::Ready { .. } | State::Failed { .. } => return,
        };
        if waiters.is_empty() {
            return;
        }
        let progress = self.progress(now);
        effects.extend(waiters.iter().map(|w| Effect::Progress { ticket: w.ticket, progress: progress.clone() }));
    }

    fn tell_holders(&self, news: &News, effects: &mut Vec<Effect>) {
        effects.extend(self.holds.iter().map(|&ticket| Effect::Tell { ticket, news: news.clone() }));
    }
}

fn refuse_all(waiters: Waiters, refusal: &Refusal, effects: &mut Vec<Effect>) {
    let refused = waiters.into_iter();
    effects.extend(refused.map(|w| Effect::Refuse { ticket: w.ticket, refusal: Box::new(refusal.clone()) }));
}
