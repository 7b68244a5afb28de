//! When the logs of running daemons are looked at, which may have grown over their caps: seldom while nobody writes, and
//! along with a heartbeat where there is one, so that a quiet broker sleeps.

use std::time::Duration;

use broker_proto::HEARTBEAT_INTERVAL;

use super::Timestamp;

/// From one look to the next while something is written: a cap may be passed by what is written meanwhile.
const BUSY: Duration = Duration::from_secs(10);

/// The same while nothing is.
const QUIET: Duration = Duration::from_secs(40);

/// How much sooner than it is due a look may be, if the broker is awake anyway.
const EARLY: Duration = HEARTBEAT_INTERVAL;

/// The next look. It rests while nothing runs.
#[derive(Debug, Default)]
pub(crate) struct Trimming {
    next: Option<Timestamp>,
}

impl Trimming {
    /// A daemon was started, or some have written since the last look.
    pub(crate) fn busy(&mut self, now: Timestamp) {
        let soon = now + BUSY;
        self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
    }

    /// When to look at [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.next
    }

    /// Whether to look now.
    pub(crate) fn take_due(&mut self, now: Timestamp, does_any_run: impl FnOnce() -> bool) -> bool {
        if self.next.is_none_or(|next| next > now + EARLY) {
            return false;
        }
        let runs = does_any_run();
        self.next = runs.then(|| now + QUIET);
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_nanos(7);

    fn looked() -> Trimming {
        let mut trimming = Trimming::default();
        trimming.busy(START);
        assert!(trimming.take_due(START + BUSY, || true));
        trimming
    }

    #[test]
    fn before_anything_runs_nobody_is_woken() {
        let mut trimming = Trimming::default();
        assert_eq!((trimming.next_deadline(), trimming.take_due(START + QUIET, || true)), (None, false));
    }

    #[test]
    fn who_is_awake_shortly_before_looks_then() {
        let mut trimming = Trimming::default();
        trimming.busy(START);
        assert_eq!(trimming.next_deadline(), Some(START + BUSY));
        assert!(!trimming.take_due(START, || true));
        assert!(trimming.take_due(START + (BUSY - EARLY), || true));
        assert!(!trimming.take_due(START + BUSY, || true), "once");
    }

    #[test]
    fn while_something_is_written_it_looks_more_often() {
        let mut trimming = looked();
        assert_eq!(trimming.next_deadline(), Some(START + BUSY + QUIET));
        trimming.busy(START + BUSY);
        trimming.busy(START + BUSY * 2);
        assert_eq!(trimming.next_deadline(), Some(START + BUSY * 2), "what is due sooner stays so");
    }

    #[test]
    fn when_nothing_runs_any_more_it_rests() {
        let mut trimming = looked();
        assert!(!trimming.take_due(START + BUSY + QUIET, || false));
        assert_eq!(trimming.next_deadline(), None);
    }
}
