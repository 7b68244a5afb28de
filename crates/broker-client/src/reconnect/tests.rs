//! The reconnect machine, event by event.

use super::*;

const INITIAL: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

fn machine(max_attempts: u32) -> Machine {
    let config = ReconnectConfig::new(INITIAL, MAX, max_attempts).expect("no zero");
    Machine::new(Some(config), fastrand::Rng::with_seed(7))
}

/// A machine and its clock.
struct Story {
    machine: Machine,
    now: Instant,
}

impl Story {
    fn new(machine: Machine) -> Self {
        Self { machine, now: Instant::now() }
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn tell(&mut self, event: Event) -> Step {
        self.machine.handle(self.now, event)
    }

    /// Tells it, and waits as long as it says.
    #[track_caller]
    fn pause(&mut self, event: Event) -> Duration {
        let Step::Wait { until } = self.tell(event) else { panic!("no pause after {event:?}") };
        let pause = until.saturating_duration_since(self.now);
        self.now = until;
        assert_eq!(self.tell(Event::Tick), Step::Dial);
        pause
    }
}

fn lost() -> Event {
    Event::Ended(Cause::Lost)
}

fn closed() -> Event {
    Event::Ended(Cause::Closed)
}

#[test]
fn the_budget_is_spent_after_exactly_max_attempts_drops() {
    for attempts in [1, 2, 10] {
        let mut story = Story::new(machine(attempts));
        for _ in 1..attempts {
            story.pause(Event::DialFailed);
        }
        assert_eq!(story.tell(Event::DialFailed), Step::Over(Verdict::Exhausted { attempts }));
        assert_eq!(story.tell(Event::Dialled), Step::Over(Verdict::Exhausted { attempts }), "it is over for good");
    }
}

#[test]
fn failed_dials_and_lost_connections_share_one_budget() {
    let mut story = Story::new(machine(4));
    story.pause(Event::DialFailed);
    for _ in 0..2 {
        assert_eq!(story.tell(Event::Dialled), Step::Serve);
        assert_eq!(story.tell(Event::Registered), Step::Serve);
        story.pause(lost());
    }
    assert_eq!(story.tell(Event::DialFailed), Step::Over(Verdict::Exhausted { attempts: 4 }));
}

#[test]
fn one_served_request_restores_the_budget_and_its_end_costs_nothing() {
    let mut story = Story::new(machine(2));
    for _ in 0..20 {
        story.pause(Event::DialFailed);
        let _ = story.tell(Event::Dialled);
        let _ = story.tell(Event::Registered);
        let _ = story.tell(Event::Served);
        assert!(story.pause(lost()) <= INITIAL, "the pauses begin anew");
        assert_eq!(story.machine.drops(), 0);
    }
}

#[test]
fn lasting_longer_than_max_backoff_is_health_and_as_long_is_not() {
    for (lasted, drops) in [(MAX, 2), (MAX + Duration::from_nanos(1), 0)] {
        let mut story = Story::new(machine(3));
        story.pause(Event::DialFailed);
        let _ = story.tell(Event::Dialled);
        // What lies before the registration does not count.
        let _ = story.after(MAX * 3).tell(Event::Registered);
        let _ = story.after(lasted).tell(closed());
        assert_eq!(story.machine.drops(), drops, "{lasted:?}");
    }
}

#[test]
fn silence_is_no_health() {
    let mut story = Story::new(machine(2));
    for _ in 0..2 {
        let _ = story.tell(Event::Dialled);
        let _ = story.tell(Event::Registered);
        let since = story.now + Duration::from_secs(1);
        let step = story.after(MAX * 4).tell(Event::Ended(Cause::Silent { since }));
        match step {
            Step::Wait { until } => {
                story.now = until;
                assert_eq!(story.tell(Event::Tick), Step::Dial);
            }
            over => assert_eq!(over, Step::Over(Verdict::Exhausted { attempts: 2 })),
        }
    }
    assert_eq!(story.tell(Event::Tick), Step::Over(Verdict::Exhausted { attempts: 2 }));
}

#[test]
fn time_after_the_end_is_no_health() {
    let mut story = Story::new(machine(2));
    let _ = story.tell(Event::Dialled);
    let _ = story.tell(Event::Registered);
    let _ = story.after(MAX / 2).tell(lost());
    assert_eq!(story.machine.drops(), 1);
    assert_eq!(story.after(MAX * 10).tell(Event::Tick), Step::Dial);
    assert_eq!(story.tell(Event::DialFailed), Step::Over(Verdict::Exhausted { attempts: 2 }));
}

#[test]
fn a_loop_of_clean_closes_ends_with_a_verdict_of_its_own() {
    let mut story = Story::new(machine(5));
    for _ in 1..5 {
        let _ = story.tell(Event::Dialled);
        story.pause(closed());
    }
    let _ = story.tell(Event::Dialled);
    assert_eq!(story.tell(closed()), Step::Over(Verdict::CleanCloses { attempts: 5 }));

    let mut mixed = Story::new(machine(2));
    mixed.pause(Event::DialFailed);
    let _ = mixed.tell(Event::Dialled);
    assert_eq!(mixed.tell(closed()), Step::Over(Verdict::Exhausted { attempts: 2 }), "not by clean closes alone");
}

#[test]
fn a_drain_costs_nothing_and_is_waited_for() {
    let mut story = Story::new(machine(1));
    for (advised, least) in [(2_000, Duration::from_secs(2)), (0, INITIAL)] {
        let _ = story.tell(Event::Dialled);
        let _ = story.tell(Event::Registered);
        let _ = story.tell(Event::GoAway(Reconnect::After { ms: advised }));
        let pause = story.pause(closed());
        assert!(pause >= least && pause <= least + INITIAL, "{pause:?} after {advised} ms were advised");
        assert_eq!(story.machine.drops(), 0);
    }
}

#[test]
fn the_delay_of_a_drain_counts_from_its_announcement() {
    let mut story = Story::new(machine(1));
    let _ = story.tell(Event::Dialled);
    let _ = story.tell(Event::GoAway(Reconnect::After { ms: 2_000 }));
    assert!(story.after(Duration::from_secs(60)).pause(closed()) <= INITIAL * 2, "it has passed long ago");
}

#[test]
fn a_drain_latches() {
    for cause in [Cause::Closed, Cause::Lost, Cause::Refused { retry_after: None }] {
        let mut story = Story::new(machine(1));
        let _ = story.tell(Event::Dialled);
        let _ = story.tell(Event::GoAway(Reconnect::After { ms: 1 }));
        story.pause(Event::Ended(cause));

        let _ = story.tell(Event::Dialled);
        let _ = story.tell(Event::GoAway(Reconnect::Never));
        let _ = story.tell(Event::GoAway(Reconnect::After { ms: 1 }));
        assert_eq!(story.tell(Event::Ended(cause)), Step::Over(Verdict::GoneForGood), "{cause:?}");
    }
}

#[test]
fn what_is_fatal_is_never_retried() {
    let mut story = Story::new(machine(100));
    let _ = story.tell(Event::Dialled);
    let _ = story.tell(Event::GoAway(Reconnect::After { ms: 1 }));
    assert_eq!(story.tell(Event::Ended(Cause::Fatal)), Step::Over(Verdict::Fatal));
}

#[test]
fn a_session_refused_for_now_waits_as_long_as_it_was_told_and_spends_an_attempt() {
    let mut story = Story::new(machine(2));
    let _ = story.tell(Event::Dialled);
    let retry_after = Some(Duration::from_secs(30));
    assert_eq!(story.pause(Event::Ended(Cause::Refused { retry_after })), Duration::from_secs(30));
    assert_eq!(story.machine.drops(), 1);
}

#[test]
fn the_pauses_double_up_to_the_longest_with_full_jitter() {
    let mut longest = [Duration::ZERO; 9];
    let mut shortest = [Duration::MAX; 9];
    for seed in 0..400 {
        let config = ReconnectConfig::new(INITIAL, MAX, 10).expect("no zero");
        let mut story = Story::new(Machine::new(Some(config), fastrand::Rng::with_seed(seed)));
        for drop in 0..9 {
            let pause = story.pause(Event::DialFailed);
            longest[drop] = longest[drop].max(pause);
            shortest[drop] = shortest[drop].min(pause);
        }
    }
    for (drop, cap) in
        [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000].map(Duration::from_millis).into_iter().enumerate()
    {
        assert!(longest[drop] <= cap, "{:?} is over {cap:?}", longest[drop]);
        assert!(longest[drop] > cap * 9 / 10 && shortest[drop] < cap / 10, "the jitter is not full at drop {drop}");
    }
}

#[test]
fn a_shutdown_ends_every_wait_at_once() {
    for events in [&[][..], &[Event::DialFailed], &[Event::Dialled], &[Event::Dialled, Event::Registered]] {
        let mut story = Story::new(machine(9));
        for event in events {
            let _ = story.tell(*event);
        }
        assert_eq!(story.tell(Event::Shutdown), Step::Over(Verdict::Shutdown));
    }
}

#[test]
fn without_reconnecting_the_first_end_is_the_end() {
    for event in [closed(), lost()] {
        let mut story = Story::new(Machine::new(None, fastrand::Rng::with_seed(7)));
        let _ = story.tell(Event::Dialled);
        let _ = story.tell(Event::Served);
        assert_eq!(story.tell(event), Step::Over(Verdict::NotWanted));
    }
    let mut story = Story::new(Machine::new(None, fastrand::Rng::with_seed(7)));
    assert_eq!(story.tell(Event::DialFailed), Step::Over(Verdict::NotWanted));
}

#[test]
fn settings_of_zero_are_rejected() {
    use InvalidReconnectConfig as Invalid;
    let new = ReconnectConfig::new;
    assert_eq!(new(Duration::ZERO, MAX, 1), Err(Invalid::ZeroInitialBackoff));
    assert_eq!(new(INITIAL, Duration::ZERO, 1), Err(Invalid::ZeroMaxBackoff));
    assert_eq!(new(INITIAL, MAX, 0), Err(Invalid::ZeroMaxAttempts));
    assert_eq!(new(MAX, INITIAL, 1), Err(Invalid::MaxBelowInitial { initial: MAX, max: INITIAL }));
    assert!(new(INITIAL, INITIAL, 1).is_ok() && new(Duration::MAX, Duration::MAX, u32::MAX).is_ok());
}

#[test]
fn the_longest_settings_overflow_nothing() {
    let config = ReconnectConfig::new(Duration::MAX, Duration::MAX, u32::MAX).expect("no zero");
    let mut machine = Machine::new(Some(config), fastrand::Rng::with_seed(7));
    let now = Instant::now();
    let _ = machine.handle(now, Event::DialFailed);
    let _ = machine.handle(now, Event::Tick);
    let _ = machine.handle(now, Event::Dialled);
    let _ = machine.handle(now, Event::GoAway(Reconnect::After { ms: u64::MAX }));
    let _ = machine.handle(now, Event::Ended(Cause::Lost));
}
