//! The defaults of service files, each once. DESIGN.md section 8 is their source; units are in the types.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::definition::Resume;

/// Variables that a backend inherits from the broker.
pub(crate) const INHERIT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// How long a start may take. A cold database recovering its log takes tens of seconds.
pub(crate) const HARD_CEILING: Duration = Duration::from_secs(60);

/// The wait before the one retry.
pub(crate) const RETRY_BACKOFF: Duration = Duration::from_millis(250);

/// The window in which one crash is retried and a second is refused.
pub(crate) const BUDGET_WINDOW: Duration = Duration::from_secs(30);

/// How long a backend must stay ready to be verified healthy.
pub(crate) const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How long a backend that nobody holds is kept: for ever.
pub(crate) const IDLE_TIMEOUT: Option<Duration> = None;

/// What asks a daemon to end.
pub(crate) const STOP_SIGNAL: Signal = Signal::SIGTERM;

/// How long a daemon may take to end before it is killed.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a daemon runs.
pub(crate) const WORKING_DIRECTORY: &str = "/";

/// What others get of the files that a daemon makes: nothing.
pub(crate) const UMASK: u32 = 0o077;

/// What a client does whose connection broke with a crash: it gives up, unless one who knows the daemon's protocol says
/// otherwise.
pub(crate) const RESUME: Resume = Resume::None;

/// The soft cap of one start's log file, in bytes: 16 MiB.
pub(crate) const LOG_MAX_BYTES: u64 = 16 << 20;

/// How many log files of earlier starts are kept.
pub(crate) const LOG_KEEP: u32 = 5;

/// Whether peers of other users may be handed a socket that the broker connected.
pub(crate) const CONNECTED: bool = false;

/// How long an attempt of a process may take: for ever.
pub(crate) const PROCESS_TIMEOUT: Option<Duration> = None;

/// How often a process is started at most, when attempts are lost with their machine or their reaper.
pub(crate) const PROCESS_MAX_ATTEMPTS: u32 = 3;
