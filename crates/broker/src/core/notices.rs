//! When a service manager is told something: that the broker lives, what goes on, and that its end takes longer.
//!
//! Owns the times alone. An idle broker is woken for its watchdog, where there is one, and for nothing else.

use std::time::Duration;

use super::Timestamp;

/// What goes on is told once in so long at most, however much happens.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What one plea asks for, and when the next one comes: a broker that is stuck asks no more.
const EXTENSION: Duration = Duration::from_secs(15);
const PLEA_EVERY: Duration = Duration::from_secs(5);

/// The longest that a step of an end takes of which nothing is seen meanwhile: the killing of what does not end, and a
/// disk that hangs.
const STEP_MAX: Duration = Duration::from_secs(20);

/// The shortest time between two signs of life, so that a mistyped watchdog does not keep the broker busy.
const FEED_MIN: Duration = Duration::from_millis(1);

/// How long it is tried again to tell a manager that has no room for what it is to be told, as one that is busy; and the
/// first pause between two tries, which doubles up to the longest.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is to be told now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Due {
    /// A sign of life.
    pub(crate) life: bool,
    /// What goes on.
    pub(crate) status: bool,
    /// That the end takes so much longer.
    pub(crate) extension: Option<Duration>,
    /// What there was no room for.
    pub(crate) unsaid: bool,
}

/// The times of everything that is told.
#[derive(Debug)]
pub(crate) struct Notices {
    /// Half of the time after which a silent broker is killed; `None` is without a watchdog.
    feed_every: Option<Duration>,
    feed_at: Option<Timestamp>,
    /// Something happened since the status was told.
    has_news: bool,
    /// When it may be told again.
    status_at: Timestamp,
    leaving: Option<Leaving>,
    full: Option<Full>,
}

/// The manager has no room.
#[derive(Debug)]
struct Full {
    since: Timestamp,
    pause: Duration,
    /// When it is tried again; never, if it has had no room for too long.
    retry_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Leaving {
    /// When something happened last that brings the end nearer.
    progressed: Timestamp,
    plea_at: Option<Timestamp>,
}

impl Notices {
    /// For a manager that kills a broker which was silent for that long; `None` is one that does not.
    pub(crate) fn new(now: Timestamp, watchdog: Option<Duration>) -> Self {
        let feed_every = watchdog.filter(|time| !time.is_zero()).map(|time| (time / 2).max(FEED_MIN));
        Self { feed_every, feed_at: None, has_news: false, status_at: now, leaving: None, full: None }
    }

    /// The broker serves: from now on it gives signs of life. The status was told with it.
    pub(crate) fn began(&mut self, now: Timestamp) {
        self.feed_at = self.feed_every.map(|every| now + every);
        self.told(now);
    }

    /// Something changed of what the status tells.
    pub(crate) fn changed(&mut self, now: Timestamp) {
        self.has_news = true;
        if let Some(leaving) = &mut self.leaving {
            leaving.progressed = now;
            leaving.plea_at.get_or_insert(now);
        }
    }

    /// The status was told.
    pub(crate) fn told(&mut self, now: Timestamp) {
        self.has_news = false;
        self.status_at = now + STATUS_EVERY;
    }

    /// The broker begins to leave.
    pub(crate) fn leaving(&mut self, now: Timestamp) {
        self.leaving = Some(Leaving { progressed: now, plea_at: Some(now) });
    }

    /// The manager was told something.
    pub(crate) fn heard(&mut self) {
        self.full = None;
    }

    /// The manager had no room for what was due, which is due again after a pause. `false` if nobody seems to read any more:
    /// then it is told once of each thing that happens from now on, and not asked again.
    #[must_use]
    pub(crate) fn refused(&mut self, now: Timestamp, due: Due) -> bool {
        let full = self.full.get_or_insert(Full { since: now, pause: PAUSE_MIN / 2, retry_at: None });
        full.pause = (full.pause * 2).min(PAUSE_MAX);
        let at = now + full.pause;
        full.retry_at = (now.since(full.since) < PATIENCE).then_some(at);
        if full.retry_at.is_none() {
            return false;
        }
        let soon = |planned: Option<Timestamp>| Some(planned.map_or(at, |planned| planned.min(at)));
        if due.life {
            self.feed_at = soon(self.feed_at);
        }
        if due.status {
            (self.has_news, self.status_at) = (true, at);
        }
        if let (Some(_), Some(leaving)) = (due.extension, &mut self.leaving) {
            leaving.plea_at = soon(leaving.plea_at);
        }
        true
    }

    /// When to ask [`Self::take_due`].
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let status_at = self.has_news.then_some(self.status_at);
        let plea_at = self.leaving.as_ref().and_then(|leaving| leaving.plea_at);
        let retry_at = self.full.as_ref().and_then(|full| full.retry_at);
        [self.feed_at, status_at, plea_at, retry_at].into_iter().flatten().min()
    }

    /// What is to be told now. `kill_at` is when the last of the backends that are being stopped is killed: until then
    /// the end is nearer with every moment, though nothing is seen of it.
    pub(crate) fn take_due(&mut self, now: Timestamp, kill_at: Option<Timestamp>) -> Due {
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let life = is_due(self.feed_at);
        if life {
            self.feed_at = self.feed_every.map(|every| now + every);
        }
        let status = self.has_news && self.status_at <= now;
        if status {
            self.told(now);
        }
        let extension = self.leaving.as_mut().filter(|leaving| is_due(leaving.plea_at)).and_then(|leaving| {
            let until = kill_at.map_or(leaving.progressed, |at| at.max(leaving.progressed)) + STEP_MAX;
            let left = until.since(now);
            leaving.plea_at = (!left.is_zero()).then(|| now + PLEA_EVERY);
            leaving.plea_at.map(|_| left.min(EXTENSION))
        });
        let unsaid = self.full.as_mut().and_then(|full| full.retry_at.take_if(|at| *at <= now)).is_some();
        Due { life, status, extension, unsaid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Timestamp = Timestamp::from_nanos(9);
    const LIFE: Due = Due { life: true, status: false, extension: None, unsaid: false };
    const STATUS: Due = Due { life: false, status: true, extension: None, unsaid: false };
    const UNSAID: Due = Due { unsaid: true, life: false, status: false, extension: None };

    fn after(seconds: u64) -> Timestamp {
        BEGAN + Duration::from_secs(seconds)
    }

    fn notices(watchdog: Option<u64>) -> Notices {
        let mut notices = Notices::new(BEGAN, watchdog.map(Duration::from_secs));
        notices.began(BEGAN);
        notices
    }

    #[test]
    fn an_idle_broker_without_a_watchdog_is_not_woken() {
        let mut notices = notices(None);
        assert_eq!((notices.next_deadline(), notices.take_due(after(1000), None)), (None, Due::default()));
    }

    #[test]
    fn a_watchdog_is_fed_at_half_of_its_time_and_what_was_missed_is_not_made_up() {
        let mut notices = notices(Some(30));
        assert_eq!(notices.next_deadline(), Some(after(15)));
        assert_eq!(notices.take_due(after(14), None), Due::default());
        assert_eq!(notices.take_due(after(100), None), LIFE);
        assert_eq!((notices.take_due(after(100), None), notices.next_deadline()), (Due::default(), Some(after(115))));
    }

    #[test]
    fn before_it_serves_it_gives_no_sign_of_life() {
        let notices = Notices::new(BEGAN, Some(Duration::from_secs(30)));
        assert_eq!(notices.next_deadline(), None);
        let mut zero = Notices::new(BEGAN, Some(Duration::ZERO));
        zero.began(BEGAN);
        assert_eq!(zero.next_deadline(), None, "no time is no watchdog");
    }

    #[test]
    fn what_goes_on_is_told_at_once_and_then_once_a_second() {
        let mut notices = notices(None);
        notices.changed(after(10));
        assert!(notices.next_deadline().is_some_and(|at| at <= after(10)));
        assert_eq!(notices.take_due(after(10), None), STATUS);
        for _ in 0..100 {
            notices.changed(after(10));
        }
        assert_eq!((notices.take_due(after(10), None), notices.next_deadline()), (Due::default(), Some(after(11))));
        assert_eq!(notices.take_due(after(11), None), STATUS);
        assert_eq!(notices.next_deadline(), None);
    }

    #[test]
    fn who_leaves_asks_for_more_time_as_long_as_something_happens_and_no_longer() {
        let mut notices = notices(None);
        notices.leaving(after(0));
        let mut asked = Vec::new();
        while let Some(at) = notices.next_deadline() {
            asked.extend(notices.take_due(at, None).extension.map(|longer| longer.as_secs()));
            assert!(asked.len() < 10, "it ends");
        }
        assert_eq!(asked, [15, 15, 10, 5], "each time until the same end");
        notices.changed(after(40));
        assert_eq!(notices.take_due(after(40), None).extension, Some(EXTENSION), "there is hope again");
    }

    #[test]
    fn who_waits_for_a_backend_that_has_time_left_asks_until_it_is_killed() {
        let mut notices = notices(None);
        notices.leaving(after(0));
        let kill_at = Some(after(300));
        let mut last = None;
        while let Some(at) = notices.next_deadline() {
            last = notices.take_due(at, kill_at).extension.map(|longer| at + longer).or(last);
        }
        assert_eq!(last, Some(after(300) + STEP_MAX));
    }

    #[test]
    fn what_there_was_no_room_for_is_told_again_after_a_pause() {
        let mut notices = notices(Some(30));
        notices.changed(after(15));
        let due = notices.take_due(after(15), None);
        assert_eq!((due.life, due.status), (true, true));
        assert!(notices.refused(after(15), due));
        let again = after(15) + PAUSE_MIN;
        assert_eq!((notices.next_deadline(), notices.take_due(after(15), None)), (Some(again), Due::default()));
        assert_eq!(notices.take_due(again, None), Due { unsaid: true, ..due });
        notices.heard();
        assert_eq!(notices.next_deadline(), Some(again + Duration::from_secs(15)), "the next sign of life");
    }

    #[test]
    fn who_never_reads_is_not_asked_for_ever() {
        let mut notices = notices(None);
        let mut tries = 0;
        assert!(notices.refused(after(0), Due::default()));
        while let Some(at) = notices.next_deadline() {
            assert_eq!(notices.take_due(at, None), UNSAID);
            tries += 1;
            if !notices.refused(at, UNSAID) {
                assert!((after(90)..after(96)).contains(&at));
            }
        }
        assert!(tries < 30, "{tries}");
        notices.changed(after(200));
        assert_eq!(notices.take_due(after(200), None), STATUS, "of what happens later it is told");
        assert!(!notices.refused(after(200), STATUS));
        assert_eq!(notices.next_deadline(), None);
    }

    #[test]
    fn a_plea_that_was_not_heard_is_made_again_before_its_time() {
        let mut notices = notices(None);
        notices.leaving(after(0));
        let due = notices.take_due(after(0), None);
        assert!(due.extension.is_some() && notices.refused(after(0), due));
        assert!(notices.take_due(after(0) + PAUSE_MIN, None).extension.is_some());
    }
}
