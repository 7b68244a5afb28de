//! When a broker leaves that nobody uses.
//!
//! It knows sessions by their beginning and end. Who is connected to a backend without one only the kernel knows, so
//! that is looked at once the time has passed.

use std::time::Duration;

use super::Timestamp;

/// A broker that is still in use is looked at again this soon at the earliest: a look goes through every socket of the
/// machine.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The time without a session, counted.
#[derive(Debug)]
pub(crate) struct IdleExit {
    after: Option<Duration>,
    /// When to look; `None` while a session is open, and for a broker that never leaves by itself.
    look_at: Option<Timestamp>,
}

impl IdleExit {
    /// A broker that starts now; `None` is one that never leaves by itself.
    pub(crate) fn new(now: Timestamp, after: Option<Duration>) -> Self {
        Self { after, look_at: after.map(|after| now + after) }
    }

    /// A session is open.
    pub(crate) fn session_began(&mut self) {
        self.look_at = None;
    }

    /// No session is open any more.
    pub(crate) fn last_session_ended(&mut self, now: Timestamp) {
        self.look_at = self.after.map(|after| now + after);
    }

    /// When to ask [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.look_at
    }

    /// Whether the time has passed: then it must be looked who is connected. Says so once.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> bool {
        self.look_at.take_if(|look_at| *look_at <= now).is_some()
    }

    /// Somebody is connected, or a backend is starting: look again later.
    pub(crate) fn still_used(&mut self, now: Timestamp) {
        self.look_at = self.after.map(|after| now + after.max(LOOK_AGAIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_nanos(5);
    const AFTER: Duration = Duration::from_secs(600);

    fn idle_exit() -> IdleExit {
        IdleExit::new(START, Some(AFTER))
    }

    #[test]
    fn the_time_counts_from_the_start() {
        let mut idle = idle_exit();
        assert_eq!(idle.next_deadline(), Some(START + AFTER));
        assert!(!idle.take_due(START + AFTER / 2));
        assert!(idle.take_due(START + AFTER));
        assert_eq!((idle.take_due(START + AFTER), idle.next_deadline()), (false, None), "it is said once");
    }

    #[test]
    fn while_a_session_is_open_it_does_not_count() {
        let mut idle = idle_exit();
        idle.session_began();
        assert_eq!((idle.next_deadline(), idle.take_due(START + AFTER * 100)), (None, false));
        let ended = START + AFTER * 100;
        idle.last_session_ended(ended);
        assert_eq!(idle.next_deadline(), Some(ended + AFTER));
        assert!(!idle.take_due(ended + AFTER / 2));
        assert!(idle.take_due(ended + AFTER));
    }

    #[test]
    fn a_broker_in_use_is_looked_at_again_after_the_same_time_and_not_at_once() {
        let mut idle = idle_exit();
        let now = START + AFTER;
        assert!(idle.take_due(now));
        idle.still_used(now);
        assert_eq!(idle.next_deadline(), Some(now + AFTER));

        let mut hasty = IdleExit::new(START, Some(Duration::from_millis(1)));
        assert!(hasty.take_due(now));
        hasty.still_used(now);
        assert_eq!(hasty.next_deadline(), Some(now + LOOK_AGAIN));
    }

    #[test]
    fn never_is_never() {
        let mut never = IdleExit::new(START, None);
        never.session_began();
        never.last_session_ended(START + AFTER);
        assert_eq!((never.next_deadline(), never.take_due(START + AFTER * 1000)), (None, false));
    }
}
