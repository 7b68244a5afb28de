//! Waiting for states.

use std::time::{Duration, Instant};
use std::{fmt, thread};

use nix::time::{ClockId, clock_gettime};

/// How long any state is waited for. Long enough for two cores that forty others want as well; a test that meets it has
/// failed.
pub const BOUND: Duration = Duration::from_secs(180);

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// Waits until the condition holds.
///
/// # Panics
/// It does not hold within [`BOUND`].
#[track_caller]
pub fn wait_until(what: impl fmt::Display, mut condition: impl FnMut() -> bool) {
    wait(|| condition().then_some(()), || what.to_string());
}

/// Waits until there is something, and returns it.
///
/// # Panics
/// There is nothing within [`BOUND`].
#[track_caller]
pub fn wait_for<T>(what: impl fmt::Display, look: impl FnMut() -> Option<T>) -> T {
    wait(look, || what.to_string())
}

/// The same with a message that is made when the wait was in vain.
#[track_caller]
pub(crate) fn wait<T>(look: impl FnMut() -> Option<T>, message: impl FnOnce() -> String) -> T {
    try_wait(look).unwrap_or_else(|| panic!("waited {BOUND:?} in vain: {}", message()))
}

/// The same where a panic would be one too many: none if the wait was in vain.
pub(crate) fn try_wait<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if began.elapsed() > BOUND {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// CLOCK_MONOTONIC in milliseconds, as the fake backend notes its starts.
///
/// # Panics
/// Never: the clock is always there.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    u64::try_from(Duration::from(now).as_millis()).expect("milliseconds since the boot")
}
