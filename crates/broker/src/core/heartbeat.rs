//! When the broker gives its sessions a sign of life: all of them at once, and never to catch up.

use broker_proto::HEARTBEAT_INTERVAL;

use super::Timestamp;

/// The one beat of all sessions. It rests while there is none.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    next: Option<Timestamp>,
}

impl Heartbeat {
    /// There is a session. The first one sets the beat, later ones join it.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        self.next.get_or_insert(now + HEARTBEAT_INTERVAL);
    }

    /// There is no session any more.
    pub(crate) fn rest(&mut self) {
        self.next = None;
    }

    /// When to look at [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.next
    }

    /// Whether to beat now. However late it is, that is one beat, and the next one comes a whole interval later.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> bool {
        let is_due = self.next.is_some_and(|next| next <= now);
        if is_due {
            self.next = Some(now + HEARTBEAT_INTERVAL);
        }
        is_due
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
    fn without_a_session_nothing_is_due_and_nobody_is_woken() {
        let mut heartbeat = Heartbeat::default();
        assert_eq!((heartbeat.next_deadline(), heartbeat.take_due(at(1000))), (None, false));
        heartbeat.begin(BEGAN);
        heartbeat.rest();
        assert_eq!((heartbeat.next_deadline(), heartbeat.take_due(at(1000))), (None, false));
    }

    #[test]
    fn all_sessions_share_the_beat_of_the_first() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        heartbeat.begin(BEGAN + HEARTBEAT_INTERVAL / 2);
        assert_eq!(heartbeat.next_deadline(), Some(at(1)));
        assert!(!heartbeat.take_due(BEGAN + HEARTBEAT_INTERVAL / 2));
        assert!(heartbeat.take_due(at(1)));
        assert!(!heartbeat.take_due(at(1)), "once");
        assert_eq!(heartbeat.next_deadline(), Some(at(2)));
    }

    #[test]
    fn missed_beats_are_not_made_up() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        let late = at(100) + Duration::from_millis(1);
        assert!(heartbeat.take_due(late));
        assert!(!heartbeat.take_due(late));
        assert_eq!(heartbeat.next_deadline(), Some(late + HEARTBEAT_INTERVAL));
    }

    #[test]
    fn a_session_after_a_rest_sets_a_new_beat() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.begin(BEGAN);
        heartbeat.rest();
        heartbeat.begin(at(10));
        assert_eq!(heartbeat.next_deadline(), Some(at(11)));
    }
}
