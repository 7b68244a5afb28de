//! A point in time, as a plain number.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds of CLOCK_MONOTONIC: a suspended machine does not age, and a test may say any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Timestamp(u64);

/// Later than all that is waited for.
const END: Timestamp = Timestamp(u64::MAX);

impl Timestamp {
    pub(crate) const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// From `earlier` to this; zero if that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The first of several deadlines, each of which may be none. The end of time is none.
pub(crate) fn first_of<const N: usize>(deadlines: [Option<Timestamp>; N]) -> Option<Timestamp> {
    let first = deadlines.into_iter().fold(END, |first, deadline| first.min(deadline.unwrap_or(END)));
    (first < END).then_some(first)
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates: the end of time is later than every deadline.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Whole milliseconds, rounded up, so that who waits as long as it was told never comes too early.
pub(crate) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Whole milliseconds gone by.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
