//! When to dial again, how long to wait before, and when to give up: a machine that is told what happened and when.
//!
//! It owns the budget of drops and the proof of health. It never dials, sleeps or reads a clock; what the errors were
//! is remembered by the one who drives it.

mod config;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use broker_proto::Reconnect;

pub use config::{InvalidReconnectConfig, ReconnectConfig};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A dial brought a connection.
    Dialled,
    /// A dial brought none.
    DialFailed,
    /// The broker has answered the greeting: the session is registered.
    Registered,
    /// The broker has answered a request that a caller made. Heartbeats and holds taken again are none.
    Served,
    /// The broker announced that it goes.
    GoAway(Reconnect),
    /// The connection is over.
    Ended(Cause),
    /// Time has passed.
    Tick,
    /// The caller wants no more of it.
    Shutdown,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The broker closed it, between two frames.
    Closed,
    /// It broke.
    Lost,
    /// Nothing was heard any more, since then.
    Silent { since: Instant },
    /// The broker refused the session for now; it may have said for how long.
    Refused { retry_after: Option<Duration> },
    /// The broker refused the session for good, or does not speak the protocol.
    Fatal,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Step {
    Dial,
    Serve,
    Wait { until: Instant },
    Over(Verdict),
}

/// Why it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The budget is spent.
    Exhausted { attempts: u32 },
    /// The budget is spent, and every drop was a clean close by the broker.
    CleanCloses { attempts: u32 },
    /// Nothing that could change by itself was in the way.
    Fatal,
    /// The broker said that it does not come back.
    GoneForGood,
    /// The caller does not want to reconnect.
    NotWanted,
    /// The caller has ended it.
    Shutdown,
}

#[derive(Debug)]
pub(crate) struct Machine {
    /// `None`: the first end is the end.
    config: Option<ReconnectConfig>,
    random: fastrand::Rng,
    /// Drops since the last proof of health, or the beginning.
    drops: u32,
    /// How many of them were clean closes.
    clean: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Dialling,
    Serving(Connection),
    Waiting { until: Instant },
    Over(Verdict),
}

#[derive(Debug, Default)]
struct Connection {
    registered: Option<Instant>,
    has_served: bool,
    /// The first announcement counts; nothing takes it back.
    drain: Option<(Instant, Reconnect)>,
}

impl Machine {
    /// A machine that is about to dial. `random` decides the jitter alone.
    pub(crate) fn new(config: Option<ReconnectConfig>, random: fastrand::Rng) -> Self {
        Self { config, random, drops: 0, clean: 0, state: State::Dialling }
    }

    /// Drops since the last proof of health.
    pub(crate) fn drops(&self) -> u32 {
        self.drops
    }

    /// Takes what happened and says what to do. An event that does not belong to the present state changes nothing.
    pub(crate) fn handle(&mut self, now: Instant, event: Event) -> Step {
        match (&mut self.state, event) {
            (State::Over(_), _) => {}
            (_, Event::Shutdown) => self.state = State::Over(Verdict::Shutdown),
            (State::Dialling, Event::Dialled) => self.state = State::Serving(Connection::default()),
            (State::Dialling, Event::DialFailed) => self.dropped(now, Cause::Lost),
            (State::Waiting { until }, Event::Tick) if now >= *until => self.state = State::Dialling,
            (State::Serving(connection), Event::Registered) => {
                connection.registered.get_or_insert(now);
            }
            (State::Serving(connection), Event::Served) => {
                connection.has_served = true;
                (self.drops, self.clean) = (0, 0);
            }
            (State::Serving(connection), Event::GoAway(advice)) => {
                connection.drain.get_or_insert((now, advice));
            }
            (State::Serving(connection), Event::Ended(cause)) => {
                let connection = std::mem::take(connection);
                self.ended(now, &connection, cause);
            }
            (State::Dialling, Event::Registered | Event::Served | Event::GoAway(_) | Event::Ended(_) | Event::Tick)
            | (
                State::Waiting { .. },
                Event::Dialled
                | Event::DialFailed
                | Event::Registered
                | Event::Served
                | Event::GoAway(_)
                | Event::Ended(_)
                | Event::Tick,
            )
            | (State::Serving(_), Event::Dialled | Event::DialFailed | Event::Tick) => {}
        }
        match self.state {
            State::Dialling => Step::Dial,
            State::Serving(_) => Step::Serve,
            State::Waiting { until } => Step::Wait { until },
            State::Over(verdict) => Step::Over(verdict),
        }
    }

    fn ended(&mut self, now: Instant, connection: &Connection, cause: Cause) {
        if cause == Cause::Fatal {
            self.state = State::Over(Verdict::Fatal);
            return;
        }
        let advised = match connection.drain {
            Some((_, Reconnect::Never)) => {
                self.state = State::Over(Verdict::GoneForGood);
                return;
            }
            Some((announced, Reconnect::After { ms })) => announced.checked_add(Duration::from_millis(ms)),
            None => None,
        };
        let Some(config) = self.config else {
            self.state = State::Over(Verdict::NotWanted);
            return;
        };
        // A stream that fell silent was over with its last word.
        let over = match cause {
            Cause::Silent { since } => since,
            Cause::Closed | Cause::Lost | Cause::Refused { .. } | Cause::Fatal => now,
        };
        let lasted = connection.registered.map_or(Duration::ZERO, |since| over.saturating_duration_since(since));
        let is_healthy = connection.has_served || lasted > config.max_backoff();
        if is_healthy {
            (self.drops, self.clean) = (0, 0);
        }
        match connection.drain {
            Some(_) => {
                let least = now + config.initial_backoff();
                // On top of the delay, so that those who were sent away together do not come back together.
                let until = advised.unwrap_or(now).max(least) + self.part_of(config.initial_backoff());
                self.state = State::Waiting { until };
            }
            // What the end of a healthy session costs is a pause, and none of the attempts.
            None if is_healthy => self.wait(now, config, cause),
            None => self.dropped(now, cause),
        }
    }

    /// Spends one attempt.
    fn dropped(&mut self, now: Instant, cause: Cause) {
        let Some(config) = self.config else {
            self.state = State::Over(Verdict::NotWanted);
            return;
        };
        self.drops += 1;
        self.clean += u32::from(cause == Cause::Closed);
        let attempts = config.max_attempts();
        if self.drops < attempts {
            self.wait(now, config, cause);
        } else if self.clean == self.drops {
            self.state = State::Over(Verdict::CleanCloses { attempts });
        } else {
            self.state = State::Over(Verdict::Exhausted { attempts });
        }
    }

    fn wait(&mut self, now: Instant, config: ReconnectConfig, cause: Cause) {
        let pause = self.part_of(config.cap(self.drops));
        let asked = match cause {
            Cause::Refused { retry_after } => retry_after.unwrap_or_default(),
            Cause::Closed | Cause::Lost | Cause::Silent { .. } | Cause::Fatal => Duration::ZERO,
        };
        let until = now.checked_add(pause.max(asked)).unwrap_or_else(|| now + config.max_backoff());
        self.state = State::Waiting { until };
    }

    /// A random part of a duration, up to the whole of it.
    fn part_of(&mut self, whole: Duration) -> Duration {
        let nanoseconds = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random.u64(0..=nanoseconds))
    }
}
