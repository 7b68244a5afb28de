//! Processes of an earlier broker that outlived it: the parent-death signal reaches main processes only.
//!
//! Ends what is proved to be a backend's, by the log that it writes, and nothing else.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::identity::{self, open_if};
use super::kernel::{pidfd_signal, wait_ended};

/// How long killed processes are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process whose stdout or stderr is a file below the folder, and waits until they are gone; who they were.
///
/// Call it as the owner of the folder, before anything is started: then whoever writes there belongs to a broker that
/// is gone.
pub(crate) fn end_writers_below(folder: &Path) -> Vec<Pid> {
    let writes_there = |pid: Pid| {
        let outputs = [1, 2].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")));
        outputs.iter().flatten().any(|target| target.starts_with(folder))
    };
    let candidates = identity::all().unwrap_or_default();
    let writers: Vec<_> = candidates
        .iter()
        .filter(|process| process.pid != Pid::this())
        // The pidfd comes before the facts that condemn it.
        .filter_map(|process| open_if(process.pid, |now| writes_there(now.pid)).ok().flatten())
        .collect();
    for (_, pidfd) in &writers {
        let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
    }
    let deadline = Instant::now() + PATIENCE;
    for (_, pidfd) in &writers {
        wait_ended(pidfd.as_fd(), deadline.saturating_duration_since(Instant::now()));
    }
    writers.iter().map(|(process, _)| process.pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::{Start, as_broker};

    #[test]
    fn who_writes_below_the_folder_is_ended_and_nobody_else() {
        as_broker(|| {
            let ours = Start::sh("exec sleep 1000");
            let other = Start::sh("exec sleep 1000");
            let folder = ours.folder().canonicalize().expect("it exists");
            assert_eq!(end_writers_below(&folder), [ours.spawned.pid]);
            assert!(wait_ended(ours.spawned.pidfd.as_fd(), PATIENCE));
            assert!(!wait_ended(other.spawned.pidfd.as_fd(), Duration::ZERO));
        });
    }
}
