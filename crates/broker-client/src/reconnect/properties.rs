//! Random histories of the reconnect machine, against an observer that knows the rules and nothing of the machine.

use proptest::prelude::*;

use super::*;

/// What may happen next; what does not fit the state is a late report and must change nothing.
fn events() -> impl Strategy<Value = (u64, Event)> {
    let event = prop_oneof![
        4 => Just(Event::Dialled),
        3 => Just(Event::DialFailed),
        3 => Just(Event::Registered),
        1 => Just(Event::Served),
        1 => (0_u64..3_000).prop_map(|ms| Event::GoAway(Reconnect::After { ms })),
        2 => Just(Event::Ended(Cause::Lost)),
        4 => Just(Event::Ended(Cause::Closed)),
        1 => prop::option::of(0_u64..3_000).prop_map(|ms| {
            Event::Ended(Cause::Refused { retry_after: ms.map(Duration::from_millis) })
        }),
        8 => Just(Event::Tick),
    ];
    let last = prop_oneof![
        1 => Just(Event::Ended(Cause::Fatal)),
        1 => Just(Event::GoAway(Reconnect::Never)),
        1 => Just(Event::Shutdown),
    ];
    let time = prop_oneof![3 => 0_u64..50, 2 => 0_u64..2_000, 1 => 0_u64..20_000];
    (time, prop_oneof![60 => event, 1 => last])
}

/// The rules, told once more: what was dropped, what was healthy, what was announced.
#[derive(Default)]
struct Observer {
    connected: bool,
    registered: Option<Instant>,
    has_served: bool,
    drain: Option<(Instant, Reconnect)>,
    /// The drops since health, each of them: was it a clean close?
    drops: Vec<bool>,
}

impl Observer {
    /// What the step must be after an end or a failed dial.
    fn check(&self, now: Instant, config: &ReconnectConfig, asked: Duration, step: Step) -> Result<(), TestCaseError> {
        let spent = self.drops.len() == config.max_attempts() as usize;
        let attempts = config.max_attempts();
        match step {
            Step::Over(Verdict::CleanCloses { attempts: told }) => {
                prop_assert!(spent && self.drops.iter().all(|clean| *clean));
                prop_assert_eq!(told, attempts);
            }
            Step::Over(Verdict::Exhausted { attempts: told }) => {
                prop_assert!(spent && !self.drops.iter().all(|clean| *clean));
                prop_assert_eq!(told, attempts);
            }
            Step::Wait { until } => {
                prop_assert!(!spent, "the budget is spent and it goes on");
                let doubled = config.initial_backoff() * 2_u32.pow(self.drops.len().saturating_sub(1) as u32);
                let longest = doubled.min(config.max_backoff()).max(asked);
                prop_assert!(until >= now + asked && until <= now + longest);
            }
            other => prop_assert!(false, "{other:?} after a drop"),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_rules(
        seed: u64,
        attempts in 1_u32..6,
        history in prop::collection::vec(events(), 1..150),
    ) {
        let config = ReconnectConfig::new(Duration::from_millis(100), Duration::from_secs(5), attempts).expect("no zero");
        let mut machine = Machine::new(Some(config), fastrand::Rng::with_seed(seed));
        let mut twin = Machine::new(Some(config), fastrand::Rng::with_seed(seed));
        let mut seen = Observer::default();
        let mut now = Instant::now();
        let mut before = Step::Dial;
        for (later, event) in history {
            now += Duration::from_millis(later);
            let step = machine.handle(now, event);
            prop_assert_eq!(step, twin.handle(now, event), "the same seed is the same history");
            match (before, event) {
                (Step::Over(_), _) => prop_assert_eq!(step, before, "over is over"),
                (_, Event::Shutdown) => prop_assert_eq!(step, Step::Over(Verdict::Shutdown)),
                (Step::Wait { until }, Event::Tick) if now >= until => prop_assert_eq!(step, Step::Dial),
                (Step::Dial, Event::Dialled) => {
                    prop_assert_eq!(step, Step::Serve);
                    let drops = std::mem::take(&mut seen.drops);
                    seen = Observer { connected: true, drops, ..Observer::default() };
                }
                (Step::Dial, Event::DialFailed) => {
                    seen.drops.push(false);
                    seen.check(now, &config, Duration::ZERO, step)?;
                }
                (Step::Serve, Event::Ended(cause)) => {
                    prop_assert!(seen.connected);
                    let lasted = seen.registered.map(|since| now - since).unwrap_or_default();
                    let is_healthy = seen.has_served || lasted > config.max_backoff();
                    if is_healthy {
                        seen.drops.clear();
                    }
                    match (cause, seen.drain) {
                        (Cause::Fatal, _) => prop_assert_eq!(step, Step::Over(Verdict::Fatal)),
                        (_, Some((_, Reconnect::Never))) => prop_assert_eq!(step, Step::Over(Verdict::GoneForGood)),
                        (_, Some((announced, Reconnect::After { ms }))) => {
                            let Step::Wait { until } = step else { panic!("{step:?} after a drain") };
                            let least = (announced + Duration::from_millis(ms)).max(now + config.initial_backoff());
                            prop_assert!(until >= least && until <= least + config.initial_backoff());
                        }
                        (cause, None) => {
                            let asked = match cause {
                                Cause::Refused { retry_after } => retry_after.unwrap_or_default(),
                                _ => Duration::ZERO,
                            };
                            if !is_healthy {
                                seen.drops.push(cause == Cause::Closed);
                            }
                            seen.check(now, &config, asked, step)?;
                        }
                    }
                }
                (Step::Serve, Event::Registered) => {
                    prop_assert_eq!(step, Step::Serve);
                    seen.registered = seen.registered.or(Some(now));
                }
                (Step::Serve, Event::Served) => {
                    prop_assert_eq!(step, Step::Serve);
                    seen.has_served = true;
                    seen.drops.clear();
                }
                (Step::Serve, Event::GoAway(advice)) => {
                    prop_assert_eq!(step, Step::Serve);
                    seen.drain = seen.drain.or(Some((now, advice)));
                }
                (before, _) => prop_assert_eq!(step, before, "a late report changes nothing"),
            }
            if !matches!(step, Step::Over(_)) {
                prop_assert_eq!(machine.drops() as usize, seen.drops.len());
            }
            before = step;
        }
    }
}
