//! Places at which a test has the broker die as by SIGKILL, in builds for development; in others there are none.
//!
//! `BROKER_FAILPOINT=NAME` is the first time that the place is reached, `NAME@3` the third.

/// Dies here if a test wants it.
#[inline]
pub(crate) fn reached(name: &str) {
    if is_next(name) {
        die();
    }
}

/// Does something first and dies then, if a test wants it.
#[inline]
pub(crate) fn reached_after<T>(name: &str, first: impl FnOnce() -> T) {
    if is_next(name) {
        let _ = first();
        die();
    }
}

/// Dies. Only for those who asked [`is_next`] and did something first.
pub(crate) fn die() {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
}

/// Whether the broker is to die at this place, for those who do it otherwise. Counts as reaching it.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn is_next(_name: &str) -> bool {
    false
}

/// Whether the broker is to die at this place, for those who do it otherwise. Counts as reaching it.
#[cfg(debug_assertions)]
pub(crate) fn is_next(name: &str) -> bool {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Armed {
        name: String,
        left: AtomicU32,
    }
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("BROKER_FAILPOINT").ok()?;
        let (name, times) = text.split_once('@').unwrap_or((&text, "1"));
        Some(Armed { name: name.to_owned(), left: AtomicU32::new(times.parse().ok()?) })
    });
    armed.as_ref().is_some_and(|armed| armed.name == name && armed.left.fetch_sub(1, Ordering::Relaxed) == 1)
}
