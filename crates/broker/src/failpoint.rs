//! Places at which a test has the broker die as by SIGKILL, or hang, in builds for development; in others there are none.
//!
//! `BROKER_FAILPOINT=NAME` is the first time that the place is reached, `NAME@3` the third; with `stuck:` before it, the
//! thread that comes there never goes on, and with it whatever it serves.

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

/// Dies, or hangs. Only for those who asked [`is_next`] and did something first.
pub(crate) fn die() {
    #[cfg(debug_assertions)]
    if armed().is_some_and(|armed| armed.hangs) {
        loop {
            std::thread::park();
        }
    }
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
    let is_last = |armed: &Armed| armed.left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1;
    armed().is_some_and(|armed| armed.name == name && is_last(armed))
}

#[cfg(debug_assertions)]
struct Armed {
    name: String,
    left: std::sync::atomic::AtomicU32,
    hangs: bool,
}

/// What the test wants.
#[cfg(debug_assertions)]
fn armed() -> Option<&'static Armed> {
    static ARMED: std::sync::OnceLock<Option<Armed>> = std::sync::OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("BROKER_FAILPOINT").ok()?;
        let place = text.strip_prefix("stuck:");
        let (name, times) = place.unwrap_or(&text).split_once('@').unwrap_or((place.unwrap_or(&text), "1"));
        Some(Armed { name: name.to_owned(), left: times.parse::<u32>().ok()?.into(), hangs: place.is_some() })
    });
    armed.as_ref()
}
