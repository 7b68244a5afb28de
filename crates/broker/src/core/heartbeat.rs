//! When the broker gives its sessions a sign of life: all of them at once, and never to catch up.

use broker_proto::HEARTBEAT_INTERVAL;

use super::Timestamp;

/// The one beat of all sessions. It goes on for one interval after the last of them, so that sessions which come and go
/// do not set a timer each.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    next: Option<Timestamp>,
}

impl Heartbeat {
    /// There is a session. The first one sets the beat, later ones join it.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        self.next.get_or_insert(now + HEARTBEAT_INTERVAL);
    }

    /// When to look at [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.next
    }

    /// Whether to beat now. However late it is, that is one beat, and the next one comes a whole interval later; none comes
    /// if there is no session.
    pub(crate) fn take_due(&mut self, now: Timestamp, has_sessions: bool) -> bool {
        let is_due = self.next.is_some_and(|next| next <= now);
        if is_due {
            self.next = has_sessions.then(|| now + HEARTBEAT_INTERVAL);
        }
        is_due && has_sessions
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BEGAN: Timestamp = Timestamp::from_nanos(7);

    /// So many intervals after the beginning.
    fn at(intervals: u32) -> Timestamp {
        BEGAN + HEARTBEAT_INTERVAL * intervals
    }

    #[test]
    fn before_a_session_nothing_is_due_and_nobody_is_woken() {
        let mut heartbeat = Heartbeat::default();
        assert_eq!((heartbeat.next_deadline(), heartbeat.take_due(at(1000), false)), (None, false));
    }

    #[test]
    fn after_the_last_session_it_wakes_once_and_says_nothing() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        assert!(!heartbeat.take_due(at(1), false));
        assert_eq!(heartbeat.next_deadline(), None);
    }

    #[test]
    fn all_sessions_share_the_beat_of_the_first() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        heartbeat.begin(BEGAN + HEARTBEAT_INTERVAL / 2);
        assert_eq!(heartbeat.next_deadline(), Some(at(1)));
        assert!(!heartbeat.take_due(BEGAN + HEARTBEAT_INTERVAL / 2, true));
        assert!(heartbeat.take_due(at(1), true));
        assert!(!heartbeat.take_due(at(1), true), "once");
        assert_eq!(heartbeat.next_deadline(), Some(at(2)));
    }

    #[test]
    fn missed_beats_are_not_made_up() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        let late = at(100) + Duration::from_millis(1);
        assert!(heartbeat.take_due(late, true));
        assert!(!heartbeat.take_due(late, true));
        assert_eq!(heartbeat.next_deadline(), Some(late + HEARTBEAT_INTERVAL));
    }

    #[test]
    fn a_session_after_a_rest_sets_a_new_beat() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        assert!(!heartbeat.take_due(at(1), false));
        heartbeat.begin(at(10));
        assert_eq!(heartbeat.next_deadline(), Some(at(11)));
    }
}
