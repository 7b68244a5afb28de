//! How long a broker that nothing else keeps stays for its sessions: they were told that it goes, and close by themselves.
//!
//! First they are answered, so that a request which crossed the news on its way is refused and not lost. Then the broker
//! says no more, so that who waits for it sees the end of the stream. Who has not closed by the end of that is cut off.

use std::time::Duration;

use super::Timestamp;

/// How long sessions are answered, and until when they have to close.
const ANSWER: Duration = Duration::from_millis(250);
const STAY: Duration = Duration::from_secs(1);

/// The same for those who were let in last of all.
const LAST_ANSWER: Duration = Duration::from_millis(100);
const LAST_STAY: Duration = Duration::from_millis(250);

/// What is to be done about the sessions that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Say no more to them, and read on.
    Hush,
    /// End them.
    Cut,
}

/// The leave that is taken.
#[derive(Debug, Default)]
pub(crate) struct Farewell {
    state: State,
    /// The last ones have been let in.
    was_last_call: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    NotYet,
    Answering {
        hush_at: Timestamp,
        cut_at: Timestamp,
    },
    Silent {
        cut_at: Timestamp,
    },
    Over,
}

impl Farewell {
    /// Begins, unless it has begun. Who was let in after all were cut off has less time.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        match self.state {
            State::NotYet => self.state = State::Answering { hush_at: now + ANSWER, cut_at: now + STAY },
            State::Over => self.state = State::Answering { hush_at: now + LAST_ANSWER, cut_at: now + LAST_STAY },
            State::Answering { .. } | State::Silent { .. } => {}
        }
    }

    /// Begins again, shortly, for those who came just before the door was shut. Whether it did: that is so once.
    pub(crate) fn last_call(&mut self, now: Timestamp) -> bool {
        if std::mem::replace(&mut self.was_last_call, true) {
            return false;
        }
        self.state = State::Answering { hush_at: now + LAST_ANSWER, cut_at: now + LAST_STAY };
        true
    }

    /// When to ask [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        match self.state {
            State::NotYet | State::Over => None,
            State::Answering { hush_at, .. } => Some(hush_at),
            State::Silent { cut_at } => Some(cut_at),
        }
    }

    /// What is to be done now.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<Step> {
        match self.state {
            State::Answering { hush_at, cut_at } if hush_at <= now => {
                self.state = State::Silent { cut_at };
                Some(Step::Hush)
            }
            State::Silent { cut_at } if cut_at <= now => {
                self.state = State::Over;
                Some(Step::Cut)
            }
            State::NotYet | State::Answering { .. } | State::Silent { .. } | State::Over => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Timestamp = Timestamp::from_nanos(3);

    #[test]
    fn sessions_are_answered_then_listened_to_then_cut_off() {
        let mut farewell = Farewell::default();
        assert_eq!((farewell.next_deadline(), farewell.take_due(BEGAN + STAY)), (None, None), "it has not begun");
        farewell.begin(BEGAN);
        assert_eq!((farewell.next_deadline(), farewell.take_due(BEGAN)), (Some(BEGAN + ANSWER), None));
        assert_eq!(farewell.take_due(BEGAN + ANSWER), Some(Step::Hush));
        assert_eq!((farewell.next_deadline(), farewell.take_due(BEGAN + ANSWER)), (Some(BEGAN + STAY), None));
        assert_eq!(farewell.take_due(BEGAN + STAY), Some(Step::Cut));
        assert_eq!((farewell.next_deadline(), farewell.take_due(BEGAN + STAY * 9)), (None, None));
    }

    #[test]
    fn whoever_comes_meanwhile_makes_it_no_longer() {
        let mut farewell = Farewell::default();
        farewell.begin(BEGAN);
        farewell.begin(BEGAN + ANSWER / 2);
        assert_eq!(farewell.next_deadline(), Some(BEGAN + ANSWER));
    }

    #[test]
    fn nobody_who_was_let_in_too_late_stays_for_ever() {
        let mut farewell = Farewell::default();
        farewell.begin(BEGAN);
        let over = BEGAN + STAY;
        assert_eq!((farewell.take_due(over), farewell.take_due(over)), (Some(Step::Hush), Some(Step::Cut)));
        farewell.begin(over);
        assert_eq!(farewell.take_due(over + LAST_ANSWER), Some(Step::Hush));
        assert_eq!(farewell.take_due(over + LAST_STAY), Some(Step::Cut));
    }

    #[test]
    fn the_last_ones_are_let_in_once() {
        let mut farewell = Farewell::default();
        farewell.begin(BEGAN);
        let later = BEGAN + STAY;
        assert!(farewell.last_call(later));
        assert_eq!(farewell.take_due(later + LAST_ANSWER), Some(Step::Hush));
        assert_eq!(farewell.take_due(later + LAST_STAY), Some(Step::Cut));
        assert!(!farewell.last_call(later + LAST_STAY));
    }
}
