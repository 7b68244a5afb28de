//! Recovery: one crash in a window is retried, the next is refused.
//!
//! Owns the budget of one backend and nothing else: it neither starts nor refuses, it says which.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Durations of zero are raised to this, so that nothing loops without time passing.
pub(crate) const FLOOR: Duration = Duration::from_millis(1);

/// How crashes of one backend are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    retry_backoff: Duration,
    budget_window: Duration,
    healthy_after: Duration,
}

impl Policy {
    /// Takes what the service file says, each duration at least [`FLOOR`].
    pub(crate) fn new(retry_backoff: Duration, budget_window: Duration, healthy_after: Duration) -> Self {
        Self {
            retry_backoff: retry_backoff.max(FLOOR),
            budget_window: budget_window.max(FLOOR),
            healthy_after: healthy_after.max(FLOOR),
        }
    }

    /// The end of a window that a crash opened.
    #[cfg(test)]
    pub(crate) fn window_from(&self, crash: Timestamp) -> Timestamp {
        crash + self.budget_window
    }

    /// How long a backend must be ready without a break to be proved healthy.
    pub(crate) fn healthy_after(&self) -> Duration {
        self.healthy_after
    }
}

/// What follows a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    /// Start once more, not before `at`.
    Retry { at: Timestamp },
    /// Refuse every Hello before `until`.
    Refuse { until: Timestamp },
}

/// The window in which one crash is retried and a second is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Budget {
    /// No crash counts.
    #[default]
    Unspent,
    /// One crash opened the window; `started` says whether the retry has begun, which keeps the window open until that
    /// start is proved healthy or crashes.
    Retrying { opened: Timestamp, started: bool },
    /// The retry crashed too.
    Spent { until: Timestamp },
}

impl Budget {
    /// Counts a crash and decides what follows.
    pub(crate) fn record_crash(&mut self, now: Timestamp, policy: &Policy) -> Decision {
        if let Self::Retrying { opened, started } = *self {
            let end = opened + policy.budget_window;
            if started || now < end {
                let until = if now < end { end } else { now + policy.budget_window };
                *self = Self::Spent { until };
                return Decision::Refuse { until };
            }
        }
        *self = Self::Retrying { opened: now, started: false };
        Decision::Retry { at: now + policy.retry_backoff }
    }

    /// Notes that a start begins, and says which attempt it is: 0 a first start, 1 the retry of an open window.
    ///
    /// `is_retry` says that somebody has waited for this start since the crash: then it is the retry however long the
    /// dead generation took to go.
    pub(crate) fn begin_start(&mut self, now: Timestamp, is_retry: bool, policy: &Policy) -> u32 {
        match self {
            Self::Retrying { opened, started } if is_retry || *started || now < *opened + policy.budget_window => {
                *started = true;
                1
            }
            Self::Unspent | Self::Retrying { .. } | Self::Spent { .. } => {
                *self = Self::Unspent;
                0
            }
        }
    }

    /// The retry is over without a crash, by an operator's order or because it could not be executed: time closes the
    /// window again.
    pub(crate) fn start_ended(&mut self) {
        if let Self::Retrying { started, .. } = self {
            *started = false;
        }
    }

    /// Forgets every crash: the backend is proved healthy, or an operator said so.
    pub(crate) fn clear(&mut self) {
        *self = Self::Unspent;
    }

    /// The crashes in the window that is open now: 0, 1 or 2. `is_live` says that the start which it allowed may run.
    pub(crate) fn crashes(&self, now: Timestamp, is_live: bool, policy: &Policy) -> u32 {
        match *self {
            Self::Unspent => 0,
            Self::Retrying { opened, started } => u32::from(started && is_live || now < opened + policy.budget_window),
            Self::Spent { until } => {
                if now < until {
                    2
                } else {
                    0
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Timestamp {
        Timestamp::from_nanos(milliseconds * 1_000_000)
    }

    fn policy() -> Policy {
        Policy::new(Duration::from_millis(250), Duration::from_secs(30), Duration::from_secs(10))
    }

    #[test]
    fn the_first_crash_is_retried_and_the_second_refused_for_the_rest_of_the_window() {
        let mut budget = Budget::default();
        assert_eq!(budget.begin_start(at(0), false, &policy()), 0);
        assert_eq!(budget.record_crash(at(100), &policy()), Decision::Retry { at: at(350) });
        assert_eq!(budget.begin_start(at(350), false, &policy()), 1);
        assert_eq!(budget.record_crash(at(400), &policy()), Decision::Refuse { until: at(30_100) });
        assert_eq!(budget.crashes(at(30_099), false, &policy()), 2);
        assert_eq!(budget.crashes(at(30_100), false, &policy()), 0);
        assert_eq!(budget.begin_start(at(30_100), false, &policy()), 0);
    }

    #[test]
    fn a_crash_after_the_window_opens_a_new_one() {
        let mut budget = Budget::default();
        budget.record_crash(at(0), &policy());
        assert_eq!(budget.begin_start(at(30_000), false, &policy()), 0, "the window is over and its retry never began");
        assert_eq!(budget.record_crash(at(40_000), &policy()), Decision::Retry { at: at(40_250) });
    }

    #[test]
    fn the_crash_of_an_unproven_retry_is_refused_even_after_the_window() {
        let mut budget = Budget::default();
        budget.record_crash(at(0), &policy());
        budget.begin_start(at(250), false, &policy());
        let decision = budget.record_crash(at(60_250), &policy());
        assert_eq!(decision, Decision::Refuse { until: at(90_250) }, "one whole window from the crash");
    }

    #[test]
    fn a_retry_that_was_waited_for_is_the_retry_even_after_the_window() {
        let mut budget = Budget::default();
        budget.record_crash(at(0), &policy());
        assert_eq!(budget.begin_start(at(30_000), true, &policy()), 1);
        assert_eq!(budget.record_crash(at(31_000), &policy()), Decision::Refuse { until: at(61_000) });
    }

    #[test]
    fn zero_durations_are_raised_to_the_floor() {
        let zero = Policy::new(Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut budget = Budget::default();
        assert_eq!(budget.record_crash(at(5), &zero), Decision::Retry { at: at(6) });
        assert_eq!(zero.healthy_after(), FLOOR);
    }

    #[test]
    fn health_clears_the_budget() {
        let mut budget = Budget::default();
        budget.record_crash(at(0), &policy());
        budget.begin_start(at(250), false, &policy());
        budget.clear();
        assert_eq!(budget.record_crash(at(20_000), &policy()), Decision::Retry { at: at(20_250) });
    }
}
