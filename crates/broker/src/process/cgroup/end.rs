//! Ending all that is in a cgroup, however it multiplies, and waiting until it is gone.
//!
//! `cgroup.kill` (Linux 5.14) does it at one stroke. Before that a cgroup is frozen, so that nobody in it is quicker, and
//! each is killed.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

use super::leaf::Leaf;
use crate::process::identity::open_if;
use crate::process::kernel::pidfd_signal;

/// How long a cgroup may take to freeze. One in uninterruptible sleep takes longer, and is killed all the same.
const FREEZE_PATIENCE: Duration = Duration::from_millis(100);

/// How long one round waits for those it killed before it looks again.
const ROUND_PATIENCE: Duration = Duration::from_millis(50);

/// The kernel announces changes of a cgroup no oftener than this (`CGROUP_FILE_NOTIFY_MIN_INTV`), so for about so long
/// after a change nothing is heard of the next one; until then it is looked for, each time after twice as long.
const NOTICE_INTERVAL: Duration = Duration::from_millis(10);
const FIRST_LOOK: Duration = Duration::from_micros(100);

/// Kills everything at one stroke, if the kernel knows how.
pub(super) fn kill(leaf: &Leaf) -> io::Result<()> {
    fs::write(leaf.folder().join("cgroup.kill"), "1")
}

/// Kills everything; who still runs when the patience is over.
pub(super) fn end(leaf: &Leaf, patience: Duration) -> Vec<Pid> {
    let deadline = Instant::now() + patience;
    match kill(leaf) {
        Ok(()) if is_empty_by(leaf.folder(), deadline) => Vec::new(),
        Ok(()) => leaf.members(),
        Err(_) => end_in_rounds(leaf, deadline),
    }
}

/// For kernels before 5.14.
fn end_in_rounds(leaf: &Leaf, deadline: Instant) -> Vec<Pid> {
    let freeze = |what: &str| fs::write(leaf.folder().join("cgroup.freeze"), what);
    loop {
        if freeze("1").is_ok() {
            wait(leaf.folder(), "frozen 1", deadline.min(Instant::now() + FREEZE_PATIENCE));
        }
        let members = leaf.members();
        for pid in &members {
            // The pidfd comes before the look that condemns it.
            if let Ok(Some((_, pidfd))) = open_if(*pid, |process| leaf.holds(process.pid)) {
                let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
            }
        }
        let _ = freeze("0");
        if is_empty_by(leaf.folder(), deadline.min(Instant::now() + ROUND_PATIENCE)) {
            return Vec::new();
        }
        if Instant::now() >= deadline {
            return members;
        }
    }
}

/// Whether nobody lives in a cgroup or below, or does not any more by then.
pub(super) fn is_empty_by(folder: &Path, deadline: Instant) -> bool {
    wait(folder, "populated 0", deadline)
}

/// Waits until `cgroup.events` says that, as the kernel announces it; `false` if it does not in time. A cgroup that is
/// gone is empty.
fn wait(folder: &Path, line: &str, deadline: Instant) -> bool {
    let Ok(mut events) = File::open(folder.join("cgroup.events")) else { return true };
    let mut pause = Some(FIRST_LOOK);
    loop {
        let mut text = String::new();
        match events.rewind().and_then(|()| events.read_to_string(&mut text)) {
            Err(_) => return true,
            Ok(_) if says(&text, line) => return true,
            Ok(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = TimeSpec::from_duration(pause.map_or(left, |pause| pause.min(left)));
        let _ = ppoll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], Some(timeout), None);
        pause = pause.map(|pause| pause * 2).filter(|pause| *pause < NOTICE_INTERVAL);
    }
}

fn says(events: &str, line: &str) -> bool {
    events.lines().any(|found| found == line)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::process::cgroup::place::testing::place;
    use crate::process::kernel::{has_ended, reap};
    use crate::process::testing::{GENEROUS, as_broker, command, on_worker, wait_for};

    /// Three that are in sessions of their own, are nobody's children, and have nothing that would speak for them.
    const RESTLESS: &str = "for n in 1 2 3; do (setsid -f env -i sleep 1000 >/dev/null 2>&1 &) ; done; exec sleep 1000";

    /// Where no cgroup can be made there is nothing to see; the trials of the whole broker say so.
    #[test]
    fn whatever_left_its_group_and_its_session_is_ended_either_way() {
        as_broker(|| {
            let Some(place) = place() else { return };
            let folder = tempfile::tempdir().unwrap();
            for is_new_kernel in [true, false] {
                let leaf = place.leaf("x@1.0.0~default.1").unwrap();
                let mut command = command("/bin/sh", &["-c", RESTLESS], &folder.path().join("log"));
                command.cgroup = Some(Arc::new(leaf.open().unwrap()));
                let spawned = on_worker(command).unwrap();
                assert!(spawned.strayed.is_none(), "{:?}", spawned.strayed);
                let commands = || leaf.members().into_iter().filter_map(crate::process::identity::command_name);
                wait_for("all four are there", || commands().collect::<Vec<_>>() == ["sleep"; 4]);
                assert!(leaf.holds(spawned.pid) && !leaf.holds(Pid::this()));
                let left = match is_new_kernel {
                    true => leaf.end(GENEROUS),
                    false => end_in_rounds(&leaf, Instant::now() + GENEROUS),
                };
                assert_eq!((left, leaf.members()), (vec![], vec![]));
                assert!(has_ended(spawned.pidfd.as_fd()));
                // Its zombie is in no way.
                leaf.remove();
                assert!(!leaf.is_there() && !leaf.has_lost_its_place());
                reap(&spawned.pidfd).unwrap();
            }
            assert!(place.names().is_empty() && place.is_there());
            place.leave();
            assert!(!place.is_there());
        });
    }
}
