//! What a start left whose main process is gone, and whose broker may be gone as well.
//!
//! Ends what is proved to be a backend's, by its session, the log that it writes or the notify socket that it was told
//! of, and nothing else.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::census;
use super::identity::{self, Stat, open_if};
use super::kernel::{pidfd_signal, wait_ended};
use super::start::StartFacts;

/// How long killed processes are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process whose stdout or stderr is such a file, and waits until they are gone; who they were.
///
/// Call it as the owner of those files, before anything is started: then whoever writes there belongs to a broker that is
/// gone. A file that was removed meanwhile is shown to it as the kernel shows it, with ` (deleted)` behind its name.
pub(crate) fn end_writers(is_ours: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let writes_there = |pid: Pid| {
        let outputs = [1, 2].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")));
        outputs.iter().flatten().any(|target| is_ours(target))
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

/// Kills every process that proves to be of the start, whose main process has ended, and waits until they are gone. Who
/// still runs, though killed.
///
/// They are looked for until there are none: one that is killed may have had a child just before.
pub(crate) fn end_start(facts: &StartFacts, is_other: &dyn Fn(Pid) -> bool, patience: Duration) -> Vec<Pid> {
    let deadline = Instant::now() + patience;
    loop {
        let is_proved = |process: &Stat| facts.proof(process, false).is_some();
        let all = census::look();
        let found: Vec<_> = all
            .iter()
            .flat_map(|all| all.iter())
            .filter(|process| facts.may_have_begun(process))
            .filter(|process| process.pid != Pid::this() && !is_other(process.pid))
            // The pidfd comes before the facts that condemn it.
            .filter_map(|process| open_if(process.pid, is_proved).ok().flatten())
            .collect();
        for (_, pidfd) in &found {
            let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        }
        for (_, pidfd) in &found {
            wait_ended(pidfd.as_fd(), deadline.saturating_duration_since(Instant::now()));
        }
        let running = found.iter().filter(|(_, pidfd)| !wait_ended(pidfd.as_fd(), Duration::ZERO));
        let running: Vec<Pid> = running.map(|(process, _)| process.pid).collect();
        if found.is_empty() || Instant::now() >= deadline {
            return running;
        }
    }
}

/// Processes that live and prove to be of a start whose first process is gone, the oldest first: what a daemon that
/// forked away has become while no broker looked.
pub(crate) fn heirs(facts: &StartFacts, all: &[Stat]) -> Vec<(Stat, OwnedFd)> {
    let is_proved = |process: &Stat| facts.proof(process, false).is_some();
    let candidates = all.iter().filter(|process| facts.may_have_begun(process));
    let mut found: Vec<_> = candidates
        .filter(|process| process.pid != Pid::this())
        .filter_map(|process| open_if(process.pid, is_proved).ok().flatten())
        .collect();
    found.sort_by_key(|(process, _)| (process.start_time, process.pid));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::{Start, as_broker, wait_for};

    #[test]
    fn who_writes_to_such_a_file_is_ended_and_nobody_else() {
        as_broker(|| {
            let ours = Start::sh("exec sleep 1000");
            let other = Start::sh("exec sleep 1000");
            let folder = ours.folder().canonicalize().expect("it exists");
            assert_eq!(end_writers(|path| path.starts_with(&folder)), [ours.spawned.pid]);
            assert!(wait_ended(ours.spawned.pidfd.as_fd(), PATIENCE));
            assert!(!wait_ended(other.spawned.pidfd.as_fd(), Duration::ZERO));
        });
    }
    #[test]
    fn what_a_start_left_is_found_and_ended_though_its_first_process_is_gone() {
        as_broker(|| {
            let other = Start::sh("exec sleep 1000");
            let start = Start::sh("setsid -f sleep 1000; sleep 1000 & exit 0");
            assert!(wait_ended(start.spawned.pidfd.as_fd(), PATIENCE));
            crate::process::kernel::reap(&start.spawned.pidfd).expect("our child");
            let found = || heirs(&start.facts, &identity::all().expect("readable"));
            wait_for("both are there", || found().len() == 2);
            assert_eq!(end_start(&start.facts, &|_| false, PATIENCE), []);
            assert!(found().is_empty());
            assert!(!wait_ended(other.spawned.pidfd.as_fd(), Duration::ZERO));
        });
    }
}
