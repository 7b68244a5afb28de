//! How often a thing is said that clients can bring about as often as they like: so many times, then silence, then the
//! number of times it was not said. The rule is that of journald's `RateLimitBurst=`.

use std::time::Duration;

use super::Timestamp;

/// How many times in [`INTERVAL`]: enough for a person to read, and at 200 bytes a line 170 MB a day at most.
const BURST: u32 = 100;
const INTERVAL: Duration = Duration::from_secs(10);

/// What was said lately.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    /// The interval that runs: when it began, and how many times something was said in it.
    running: Option<(Timestamp, u32)>,
    withheld: u64,
}

impl Quota {
    /// Takes one. `None` is to say nothing; a number is how many were withheld since the last that was said.
    pub(crate) fn take(&mut self, now: Timestamp) -> Option<u64> {
        let (began, said) = self.running.filter(|(began, _)| now.since(*began) < INTERVAL).unwrap_or((now, 0));
        if said == BURST {
            self.withheld += 1;
            return None;
        }
        self.running = Some((began, said + 1));
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Timestamp = Timestamp::from_nanos(7_000_000_000);

    #[test]
    fn so_many_are_said_and_the_rest_is_counted() {
        let mut quota = Quota::default();
        for _ in 0..BURST {
            assert_eq!(quota.take(BEGAN), Some(0));
        }
        let late = BEGAN + (INTERVAL - Duration::from_nanos(1));
        assert_eq!((quota.take(BEGAN), quota.take(late)), (None, None));
        assert_eq!(quota.take(BEGAN + INTERVAL), Some(2), "the next interval tells what the last one withheld");
        assert_eq!(quota.take(BEGAN + INTERVAL), Some(0), "and tells it once");
    }

    #[test]
    fn an_interval_begins_with_what_is_said() {
        let mut quota = Quota::default();
        let later = BEGAN + INTERVAL * 5;
        assert_eq!((quota.take(BEGAN), quota.take(later)), (Some(0), Some(0)));
        for _ in 1..BURST {
            assert_eq!(quota.take(later), Some(0));
        }
        assert_eq!(quota.take(later), None);
    }
}
