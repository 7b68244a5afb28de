//! Readiness: when to look at a starting daemon, and what to conclude.
//!
//! The schedule is the slowest pace that a probe may have. What the kernel announces (the child's end, `READY=1`, the
//! socket file's appearance) wakes the wait at once and is fed in from outside.

use std::time::Duration;

/// Delays between probes; the last one repeats.
pub(crate) const SCHEDULE: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];

/// The first quick delay after a socket file appeared: it appears at bind, and connecting works from listen on, which
/// most programs call microseconds later, unless the broker that woke takes the processor from them. Doubles until the
/// schedule is no slower.
pub(crate) const QUICK: Duration = Duration::from_micros(20);

/// A tcp port gives no sign; probing it costs one question to the kernel, every so often …
pub(crate) const PORT_EVERY: Duration = Duration::from_millis(2);

/// … or every this part of the time gone by, whichever is longer: 2 %.
pub(crate) const PORT_PART: u32 = 50;

/// What a probe is, which decides its pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// A look at a Unix socket's path, which the kernel announces.
    Path,
    /// A look at a tcp port, which nothing announces.
    Port,
    /// A command, which costs a process.
    Command,
    /// No probe at all: the daemon says when it is ready.
    Silent,
}

/// What was seen of a starting daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Since the start began.
    pub(crate) elapsed: Duration,
    /// Whether the daemon lives.
    pub(crate) alive: bool,
    /// Whether it is ready to serve.
    pub(crate) ready: bool,
}

/// What follows from an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It serves.
    Ready,
    /// It ended before it was ready.
    Exited,
    /// The time for a start is over.
    CeilingReached,
    /// Look again after this long.
    Sleep(Duration),
}

/// The wait for one start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readiness {
    pace: Pace,
    ceiling: Duration,
    /// Probes so far on the schedule.
    attempt: usize,
    /// Probes so far since the socket file appeared.
    quick: Option<u32>,
}

impl Readiness {
    /// A wait that has just begun and lasts at most `ceiling`.
    pub(crate) fn new(pace: Pace, ceiling: Duration) -> Self {
        Self { pace, ceiling, attempt: 0, quick: None }
    }

    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }

    pub(crate) fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// Decides, in this order: ready; exited; the ceiling; sleep. The last sleep ends exactly at the ceiling.
    pub(crate) fn decide(&mut self, seen: Observation) -> Decision {
        if seen.ready {
            return Decision::Ready;
        }
        if !seen.alive {
            return Decision::Exited;
        }
        if seen.elapsed >= self.ceiling {
            return Decision::CeilingReached;
        }
        Decision::Sleep(self.next_delay(seen.elapsed).min(self.ceiling - seen.elapsed))
    }

    /// The socket file has appeared: quick probes from now on.
    pub(crate) fn appeared(&mut self) {
        self.quick = Some(0);
    }

    /// The daemon asked for more time: the ceiling is at least `until`, measured from the start.
    pub(crate) fn extend(&mut self, until: Duration) {
        self.ceiling = self.ceiling.max(until);
    }

    fn next_delay(&mut self, elapsed: Duration) -> Duration {
        match self.pace {
            Pace::Silent => Duration::MAX,
            Pace::Port => PORT_EVERY.max(elapsed / PORT_PART),
            Pace::Path | Pace::Command => {
                let scheduled = SCHEDULE[self.attempt.min(SCHEDULE.len() - 1)];
                if let Some(count) = self.quick {
                    let quick = QUICK.saturating_mul(1 << count.min(20));
                    if quick < scheduled {
                        self.quick = Some(count + 1);
                        return quick;
                    }
                }
                self.attempt += 1;
                scheduled
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: Duration = Duration::from_secs(60);

    fn waiting(elapsed: Duration) -> Observation {
        Observation { elapsed, alive: true, ready: false }
    }

    /// Sleeps as told until the ceiling; the delays in milliseconds.
    fn delays(mut readiness: Readiness) -> Vec<f64> {
        let mut elapsed = Duration::ZERO;
        let mut delays = Vec::new();
        loop {
            match readiness.decide(waiting(elapsed)) {
                Decision::Sleep(delay) => {
                    delays.push(delay.as_secs_f64() * 1000.0);
                    elapsed += delay;
                }
                Decision::CeilingReached => {
                    assert_eq!(elapsed, readiness.ceiling(), "the ceiling is met exactly");
                    return delays;
                }
                other => panic!("{other:?} from a daemon that only waits"),
            }
        }
    }

    #[test]
    fn the_schedule_slows_down_and_meets_the_ceiling_exactly() {
        let delays = delays(Readiness::new(Pace::Path, CEILING));
        assert_eq!(delays[..7], [50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 2000.0]);
        assert_eq!(delays.last(), Some(&150.0), "the last sleep is cut short");
        assert_eq!(delays.iter().sum::<f64>(), 60_000.0);
    }

    #[test]
    fn quick_probes_after_the_appearance_double_into_the_schedule() {
        let mut readiness = Readiness::new(Pace::Path, CEILING);
        readiness.appeared();
        let delays = delays(readiness);
        assert_eq!(delays[..6], [0.02, 0.04, 0.08, 0.16, 0.32, 0.64]);
        assert_eq!(delays[6..13], [1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 50.0]);
    }

    #[test]
    fn a_port_is_probed_every_2_ms_or_2_percent() {
        let mut readiness = Readiness::new(Pace::Port, CEILING);
        let mut delay = |ms| readiness.decide(waiting(Duration::from_millis(ms)));
        assert_eq!(delay(0), Decision::Sleep(Duration::from_millis(2)));
        assert_eq!(delay(100), Decision::Sleep(Duration::from_millis(2)));
        assert_eq!(delay(1000), Decision::Sleep(Duration::from_millis(20)));
    }

    #[test]
    fn the_decisions_keep_their_order() {
        let seen =
            |elapsed, alive, ready| Readiness::new(Pace::Path, CEILING).decide(Observation { elapsed, alive, ready });
        assert_eq!(seen(CEILING, false, true), Decision::Ready);
        assert_eq!(seen(CEILING, false, false), Decision::Exited);
        assert_eq!(seen(CEILING, true, false), Decision::CeilingReached);
        assert_eq!(seen(Duration::ZERO, true, false), Decision::Sleep(SCHEDULE[0]));
    }

    #[test]
    fn a_silent_daemon_is_left_alone_until_the_ceiling() {
        assert_eq!(delays(Readiness::new(Pace::Silent, CEILING)), [60_000.0]);
    }

    #[test]
    fn an_extension_never_shortens() {
        let mut readiness = Readiness::new(Pace::Silent, CEILING);
        readiness.extend(Duration::from_secs(10));
        assert_eq!(readiness.ceiling(), CEILING);
        readiness.extend(Duration::from_secs(90));
        assert_eq!(delays(readiness), [90_000.0]);
    }
}
