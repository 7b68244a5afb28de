//! Orphans: processes that lost their parent and were handed to the broker, which is a child subreaper.
//!
//! A process spawned by a worker thread is a child of *that thread*, while the kernel hands orphans to the first living
//! thread of the subreaper, the main one (`find_alive_thread` in kernel/exit.c). So a wait with `__WNOTHREAD` on the
//! main thread sees the orphans alone, and cannot steal the exit status of a backend's main process.
//!
//! It never reaps what was spawned, nor a pinned orphan.

use std::io;

use nix::unistd::{Pid, gettid};

use super::exit::Exit;
use super::kernel::{Child, wait};
use super::{identity, proc};

/// What one round of reaping found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Orphans {
    /// Ended and reaped.
    pub(crate) reaped: Vec<(Pid, Exit)>,
    /// Ended and pinned: zombies yet, for whoever pinned them to end their group and to reap.
    pub(crate) pinned: Vec<(Pid, Exit)>,
}

/// Reaps every ended orphan that is not pinned. Call it on the main thread at each SIGCHLD; it never blocks.
///
/// A pinned orphan is one that the broker took for a backend's main process (a daemon that forked away).
pub(crate) fn reap_orphans(is_pinned: impl Fn(Pid) -> bool) -> Orphans {
    debug_assert_eq!(gettid(), Pid::this(), "orphans belong to the main thread");
    let mut found = Orphans::default();
    loop {
        match wait(Child::Any, libc::WNOWAIT | libc::__WNOTHREAD) {
            Ok(Some((pid, _))) if is_pinned(pid) => break,
            Ok(Some((pid, _))) => found.reaped.extend(reap_one(pid)),
            // ECHILD: no orphans at all.
            Ok(None) | Err(_) => return found,
        }
    }
    // A pinned zombie is what the kernel would show for ever; so every orphan is asked for by its number. An orphan
    // that the list skipped, because another was reaped while it was read, is found by the next pass.
    loop {
        let before = found.reaped.len();
        found.pinned.clear();
        for pid in orphans().unwrap_or_default() {
            if is_pinned(pid) {
                let exit = wait(Child::Number(pid), libc::WNOWAIT | libc::__WNOTHREAD).ok().flatten();
                found.pinned.extend(exit);
            } else {
                found.reaped.extend(reap_one(pid));
            }
        }
        if found.reaped.len() == before {
            return found;
        }
    }
}

/// `None` if it runs, or if a worker that ends a group was quicker.
fn reap_one(pid: Pid) -> Option<(Pid, Exit)> {
    wait(Child::Number(pid), libc::__WNOTHREAD).ok().flatten()
}

/// The children of the main thread, from any thread: the orphans, zombies included.
///
/// Where the kernel keeps no such list (`CONFIG_PROC_CHILDREN`) these are all our children.
pub(crate) fn orphans() -> io::Result<Vec<Pid>> {
    let me = Pid::this();
    match proc::read_text(format!("/proc/self/task/{me}/children")) {
        Ok(list) => Ok(list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()),
        Err(error) if identity::is_gone(&error) => {
            Ok(identity::all()?.iter().filter(|stat| stat.parent == me).map(|stat| stat.pid).collect())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::kernel::{pidfd_open, reap, wait_ended};
    use crate::process::testing::{GENEROUS, Start, as_broker, wait_for};
    use std::fs;
    use std::os::fd::AsFd;

    /// Every reap until the orphan has been seen; by then the zombies that should not be seen are there too.
    fn reap_until(pid: Pid, is_pinned: impl Fn(Pid) -> bool) -> Orphans {
        let mut all = Orphans::default();
        wait_for("the orphan is seen", || {
            let mut found = reap_orphans(&is_pinned);
            all.reaped.append(&mut found.reaped);
            all.pinned = found.pinned;
            all.reaped.iter().chain(&all.pinned).any(|(seen, _)| *seen == pid)
        });
        all
    }

    /// An orphan that ends once its launcher has: a shell may reap its children at any time, and /bin/true does not.
    fn orphan(code: i32) -> (Start, Pid) {
        let waits = "until test -e ${NOTIFY_SOCKET%/*}/go; do sleep 0.01; done";
        let launcher = Start::sh(&format!("sh -c '{waits}; exit {code}' & echo $!; exec /bin/true"));
        wait_for("the orphan's number", || launcher.log().ends_with('\n'));
        assert!(wait_ended(launcher.spawned.pidfd.as_fd(), GENEROUS));
        fs::write(launcher.folder().join("go"), "").unwrap();
        let pid = Pid::from_raw(launcher.log().trim().parse().unwrap());
        (launcher, pid)
    }

    #[test]
    fn an_orphan_is_reaped_and_a_spawned_process_is_not() {
        as_broker(|| {
            let spawned = Start::sh("exit 3").spawned;
            assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
            let (launcher, orphan) = orphan(4);
            let found = reap_until(orphan, |_| false);
            assert_eq!(found, Orphans { reaped: vec![(orphan, Exit::Code(4))], pinned: vec![] });
            assert_eq!(reap(&launcher.spawned.pidfd).unwrap(), Some(Exit::Code(0)));
            assert_eq!(reap(&spawned.pidfd).unwrap(), Some(Exit::Code(3)));
        });
    }

    #[test]
    fn a_pinned_zombie_blinds_nobody() {
        as_broker(|| {
            let mut numbers = Vec::new();
            for code in [5, 6, 7] {
                let (_launcher, pid) = orphan(code);
                assert!(wait_ended(pidfd_open(pid).unwrap().as_fd(), GENEROUS));
                numbers.push(pid);
            }
            let pinned = numbers[0];
            let found = reap_until(numbers[2], |pid| pid == pinned);
            assert_eq!(found.reaped, [(numbers[1], Exit::Code(6)), (numbers[2], Exit::Code(7))]);
            assert_eq!(found.pinned, [(pinned, Exit::Code(5))]);
            assert_eq!(reap_until(pinned, |_| false).reaped, [(pinned, Exit::Code(5))]);
            assert_eq!(reap_orphans(|_| false), Orphans::default());
        });
    }

    #[test]
    fn orphans_are_told_from_spawned_children() {
        as_broker(|| {
            let launcher = Start::sh("sleep 1000 & echo $!");
            let spawned = Start::sh("sleep 1000");
            assert!(wait_ended(launcher.spawned.pidfd.as_fd(), GENEROUS));
            let orphan = Pid::from_raw(launcher.log().trim().parse().unwrap());
            assert_eq!(orphans().unwrap(), [orphan]);
            drop(spawned);
        });
    }
}
