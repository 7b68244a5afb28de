//! A seeded simulation of many backends: random requests, orders, faults and time against the named invariants.
//!
//! A failure prints its seed; `BROKER_SIMULATION_SEED=N cargo test -p broker simulation` runs and prints that one history
//! again (add `-- --nocapture`).

mod death;
mod invariants;
mod record;
mod world;

use std::time::Duration;

use super::backend::Policies;
use super::readiness::Pace;
use super::recovery;
use world::World;

/// Histories in the normal test run.
const HISTORIES: u64 = 400;

/// Events that each history hands to its machines, at least.
const STEPS: u64 = 500;

/// The policies of tests that do not care.
pub(in crate::core) fn policies() -> Policies {
    Policies {
        pace: Pace::Path,
        ready_at_exec: false,
        hard_ceiling: Duration::from_secs(60),
        recovery: recovery::Policy::new(Duration::from_millis(250), Duration::from_secs(30), Duration::from_secs(10)),
        idle_timeout: None,
        stop_timeout: Duration::from_secs(10),
        waiters_max: 1000,
    }
}

#[test]
fn random_histories_keep_the_invariants() {
    let replay = std::env::var("BROKER_SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = match replay {
        Some(seed) => vec![seed],
        None => (0..HISTORIES).map(|_| fastrand::u64(..)).collect(),
    };
    let mut steps = 0;
    for seed in seeds {
        let report = std::panic::catch_unwind(|| World::new(seed, replay.is_some()).run(STEPS));
        match report {
            Ok(taken) => steps += taken,
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                panic!(
                    "history of seed {seed}: {text}\nreplay: BROKER_SIMULATION_SEED={seed} cargo test -p broker simulation"
                );
            }
        }
    }
    assert!(replay.is_some() || steps >= 100_000, "only {steps} steps");
}
