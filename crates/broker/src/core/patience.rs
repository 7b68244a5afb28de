//! When sessions are looked at that have begun to say something and not ended it: all of them at once, at the first time
//! that one may be due.

use super::Timestamp;

/// The next look. It rests while nothing is expected.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    look_at: Option<Timestamp>,
}

impl Patience {
    /// A session has until then. Whether that brings the next look forward.
    pub(crate) fn expect(&mut self, due: Timestamp) -> bool {
        let is_sooner = self.look_at.is_none_or(|look_at| due < look_at);
        if is_sooner {
            self.look_at = Some(due);
        }
        is_sooner
    }

    /// When to look at [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.look_at
    }

    /// Whether to look now. What is still expected then must be said again.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> bool {
        self.look_at.take_if(|look_at| *look_at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: Timestamp = Timestamp::from_nanos(1_000);
    const SECOND: Timestamp = Timestamp::from_nanos(2_000);

    #[test]
    fn the_first_that_is_due_sets_the_look() {
        let mut patience = Patience::default();
        assert!(patience.expect(SECOND) && patience.expect(FIRST));
        assert!(!patience.expect(FIRST + Duration::from_nanos(1)), "there is a look before that");
        assert_eq!(patience.next_deadline(), Some(FIRST));
    }

    #[test]
    fn a_look_is_taken_once_and_then_only_what_is_expected_again() {
        let mut patience = Patience::default();
        assert!(patience.expect(FIRST));
        assert!(!patience.take_due(Timestamp::from_nanos(999)));
        assert!(patience.take_due(FIRST));
        assert_eq!((patience.take_due(SECOND), patience.next_deadline()), (false, None));
        assert!(patience.expect(SECOND));
        assert!(patience.take_due(SECOND));
    }
}
