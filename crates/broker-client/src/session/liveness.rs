//! Whether the broker still lives, by what was heard of it and when. Pure: time is an argument.

use std::time::{Duration, Instant};

/// What to do when the deadline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Sign {
    /// Nothing: it was heard in time.
    Alive,
    /// Ask for a sign of life.
    Ask,
    /// It was silent for the whole timeout, and the ear was open.
    Dead,
}

/// The silence of one connection.
///
/// Half the timeout after the last byte the broker is asked, at the whole it is taken for dead. A deadline that is
/// noticed more than half a timeout late says that it was this process that slept (stopped, or the machine suspended
/// or starved): then the silence begins anew, and the broker is asked.
#[derive(Debug)]
pub(crate) struct Liveness {
    timeout: Duration,
    heard: Instant,
    asked: Option<Instant>,
}

impl Liveness {
    pub(crate) fn new(now: Instant, timeout: Duration) -> Self {
        Self { timeout, heard: now, asked: None }
    }

    /// Something was read.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// When something was heard last.
    pub(crate) fn last_heard(&self) -> Instant {
        self.heard
    }

    /// When [`tick`](Self::tick) has something to say, unless something is heard before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let half = self.timeout / 2;
        match self.asked {
            None => self.heard.checked_add(half),
            // However late the question was, there is half the timeout for the answer.
            Some(asked) => Some(self.heard.checked_add(self.timeout)?.max(asked.checked_add(half)?)),
        }
    }

    /// Time has passed, and everything that arrived by then has been read.
    pub(crate) fn tick(&mut self, now: Instant) -> Sign {
        let Some(late) = self.deadline().and_then(|due| now.checked_duration_since(due)) else { return Sign::Alive };
        if late > self.timeout / 2 {
            self.heard = now;
            self.asked = Some(now);
            return Sign::Ask;
        }
        if self.asked.replace(now).is_some() { Sign::Dead } else { Sign::Ask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(8);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_silent_broker_is_asked_and_then_dead() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, TIMEOUT);
        assert_eq!(liveness.tick(start + seconds(3.9)), Sign::Alive);
        assert_eq!(liveness.tick(start + seconds(4.0)), Sign::Ask);
        assert_eq!(liveness.tick(start + seconds(7.9)), Sign::Alive);
        assert_eq!(liveness.deadline(), Some(start + TIMEOUT));
        assert_eq!(liveness.tick(start + seconds(8.1)), Sign::Dead);
    }

    #[test]
    fn a_late_question_leaves_time_for_its_answer() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, TIMEOUT);
        assert_eq!(liveness.tick(start + seconds(7.9)), Sign::Ask);
        assert_eq!(liveness.tick(start + seconds(8.1)), Sign::Alive);
        assert_eq!(liveness.tick(start + seconds(11.9)), Sign::Dead);
    }

    #[test]
    fn whatever_is_heard_begins_the_silence_anew() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, TIMEOUT);
        assert_eq!(liveness.tick(start + seconds(4.0)), Sign::Ask);
        liveness.heard(start + seconds(7.9));
        assert_eq!(liveness.tick(start + seconds(11.8)), Sign::Alive);
        assert_eq!(liveness.tick(start + seconds(12.0)), Sign::Ask);
    }

    #[test]
    fn one_who_slept_himself_asks_before_he_judges() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, TIMEOUT);
        for day in 1..4 {
            let woken = start + seconds(86_400.0) * day;
            assert_eq!(liveness.tick(woken), Sign::Ask);
            assert_eq!(liveness.deadline(), Some(woken + TIMEOUT), "the silence counts from waking up");
        }
        let woken = start + seconds(86_400.0) * 3;
        assert_eq!(liveness.tick(woken + TIMEOUT), Sign::Dead, "a broker that stays silent is dead all the same");
    }

    #[test]
    fn a_timeout_without_end_never_comes() {
        let liveness = Liveness::new(Instant::now(), Duration::MAX);
        assert_eq!(liveness.deadline(), None);
    }
}
