//! Daemons that fork away: the process that was spawned exits, and what it left behind is the backend.
//!
//! It finds and never signals.

use std::io;
use std::os::fd::OwnedFd;

use nix::unistd::{Pid, getpgrp, getsid};

use super::identity::{Identity, Stat, open_if, stat};
use super::orphans::orphans;
use super::start::{Evidence, StartFacts};

/// The longest chain of parents that is followed.
const ANCESTORS_MAX: usize = 64;

/// A process of a start that outlives the one that was spawned.
#[derive(Debug)]
pub(crate) struct Survivor {
    pub(crate) pid: Pid,
    pub(crate) identity: Identity,
    pub(crate) pidfd: OwnedFd,
    pub(crate) evidence: Evidence,
}

/// What one look for survivors showed.
#[derive(Debug)]
pub(crate) struct Look {
    /// The orphans that belong to the start, the oldest first: that one is the main process. Its workers are its
    /// children and no orphans.
    pub(crate) survivors: Vec<Survivor>,
    /// Nobody was just ending. A daemon that forks twice may be caught between: its middle process is on its way out and
    /// shows no evidence any more, and the last one is not ours yet. Then look again soon.
    pub(crate) is_settled: bool,
}

/// Looks for survivors of a start. `is_other` says which pids are main processes of other starts.
pub(crate) fn survivors(start: &StartFacts, is_other: impl Fn(Pid) -> bool) -> io::Result<Look> {
    let mut found = Vec::new();
    let mut is_settled = true;
    for pid in orphans()?.into_iter().filter(|pid| !is_other(*pid) && *pid != start.leader.pid) {
        let mut evidence = None;
        let opened = open_if(pid, |facts| {
            evidence = start.evidence(facts);
            evidence.is_some()
        });
        // One that cannot be opened for lack of descriptors is an error: it must not be taken for absent.
        match (opened?, evidence) {
            (Some((facts, pidfd)), Some(evidence)) => {
                found.push((facts.start_time, Survivor { pid, identity: facts.identity(), pidfd, evidence }))
            }
            // With evidence and yet not opened: it ended while its facts were read. Without any: it may have begun to end
            // in between, and closed what would have spoken for it; so its state is read once more, after all else.
            (_, evidence) => is_settled &= evidence.is_none() && !is_ending(pid),
        }
    }
    found.sort_by_key(|(start_time, survivor)| (*start_time, survivor.pid));
    Ok(Look { survivors: found.into_iter().map(|(_, survivor)| survivor).collect(), is_settled })
}

/// Whether a process is on its way out, or gone.
fn is_ending(pid: Pid) -> bool {
    stat(pid).is_ok_and(|facts| facts.is_none_or(|facts| facts.is_exiting || matches!(facts.state, b'Z' | b'X')))
}

/// Whether a process (the owner of a socket, the sender of a notification) is part of the backend: its main process, in
/// its session or group, a descendant of it, or one of the `known`.
///
/// `known` holds the process that was spawned even when it is gone: a listener keeps the credentials of whoever called
/// `listen`, and that may have been the launcher.
pub(crate) fn belongs(pid: Pid, main: Pid, known: &[Pid]) -> bool {
    if pid == main || known.contains(&pid) {
        return true;
    }
    let (Ok(Some(facts)), Ok(Some(main_facts))) = (stat(pid), stat(main)) else { return false };
    // A backend never shares our own group or session; the test is for a caller that names another process as main.
    let shares_session = facts.session == main_facts.session && getsid(None).is_ok_and(|ours| ours != facts.session);
    let shares_group = facts.group == main_facts.group && getpgrp() != facts.group;
    shares_session || shares_group || descends(facts, main, known)
}

fn descends(mut facts: Stat, main: Pid, known: &[Pid]) -> bool {
    for _ in 0..ANCESTORS_MAX {
        if facts.parent == main || known.contains(&facts.parent) {
            return true;
        }
        match stat(facts.parent) {
            Ok(Some(parent)) if parent.pid != Pid::this() => facts = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::kernel::{reap, wait_ended};
    use crate::process::testing::{GENEROUS, Start, as_broker, wait_for};
    use std::os::fd::AsFd;

    #[test]
    fn a_daemon_that_forked_away_is_found_by_its_session() {
        as_broker(|| {
            let start = Start::sh("sleep 1000 & exit 0");
            assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
            reap(&start.spawned.pidfd).unwrap();
            let found = survivors(&start.facts, |_| false).unwrap().survivors;
            assert_eq!(found.iter().map(|s| s.evidence).collect::<Vec<_>>(), [Evidence::Session]);
        });
    }

    #[test]
    fn a_daemon_that_forked_into_a_session_of_its_own_is_found() {
        as_broker(|| {
            for (redirected, evidence) in [("", Evidence::Log), (">/dev/null 2>&1", Evidence::NotifySocket)] {
                let start = Start::sh(&format!("setsid -f sh -c 'sleep 1000 & sleep 1001' {redirected}"));
                assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
                let mut found = Vec::new();
                wait_for("the daemon is found", || {
                    found = survivors(&start.facts, |_| false).unwrap().survivors;
                    found.len() == 1 && found[0].evidence == evidence
                });
                let main = found[0].pid;
                let child = || crate::process::identity::all().unwrap().into_iter().find(|stat| stat.parent == main);
                wait_for("its child runs", || child().is_some());
                assert!(belongs(child().unwrap().pid, main, &[]));
                assert!(belongs(start.spawned.pid, main, &[start.spawned.pid]));
                assert!(!belongs(Pid::this(), main, &[]));
                assert!(survivors(&start.facts, |pid| pid == main).unwrap().survivors.is_empty());
                found[0].end();
            }
        });
    }

    #[test]
    fn the_same_program_of_another_start_is_no_survivor() {
        as_broker(|| {
            let other = Start::sh("setsid -f sleep 1000 >/dev/null 2>&1");
            let start = Start::sh("exit 0");
            for launcher in [&other, &start] {
                assert!(wait_ended(launcher.spawned.pidfd.as_fd(), GENEROUS));
            }
            wait_for("the other's daemon", || !survivors(&other.facts, |_| false).unwrap().survivors.is_empty());
            assert!(survivors(&start.facts, |_| false).unwrap().survivors.is_empty());
        });
    }

    /// Where no cgroup can be made there is nothing to see.
    #[test]
    fn with_a_cgroup_the_same_program_elsewhere_is_no_survivor() {
        as_broker(|| {
            let Some(place) = crate::process::cgroup::testing::place() else { return };
            let away = ["-c", "setsid -f sh -c 'sleep 1000; :' </dev/null >/dev/null 2>&1"];
            let [mut start, mut other] = [0, 1].map(|_| Start::untold("/bin/sh", &away));
            for launcher in [&start, &other] {
                assert!(wait_ended(launcher.spawned.pidfd.as_fd(), GENEROUS));
            }
            let found = |start: &Start| survivors(&start.facts, |_| false).unwrap().survivors;
            wait_for("both are taken for the elder's", || found(&start).len() == 2);
            for (number, start) in [&mut start, &mut other].into_iter().enumerate() {
                let leaf = place.leaf(&format!("x@1.0.0~default.{number}")).unwrap();
                start.facts.cgroup = Some(leaf);
            }
            assert!(found(&start).is_empty() && found(&other).is_empty(), "none lives in either's");
            let daemon = survivors(&StartFacts { cgroup: None, ..start.facts.clone() }, |_| false).unwrap().survivors;
            let leaf = start.facts.cgroup.clone().unwrap();
            std::fs::write(leaf.folder().join("cgroup.procs"), daemon[0].pid.to_string()).unwrap();
            let evidence: Vec<_> = found(&start).iter().map(|survivor| (survivor.pid, survivor.evidence)).collect();
            assert_eq!(evidence, [(daemon[0].pid, Evidence::Cgroup)]);
            assert!(found(&other).is_empty());
            assert_eq!(leaf.end(GENEROUS), []);
            leaf.remove();
            // One that is not there proves nothing either way.
            assert_eq!(found(&start).len(), 1, "the other's");
            other.facts.cgroup.iter().for_each(crate::process::cgroup::Leaf::remove);
            place.leave();
        });
    }

    #[test]
    fn a_daemon_that_only_its_program_gives_away_is_found_and_ended() {
        if !std::path::Path::new("/usr/bin/memcached").exists() {
            return;
        }
        as_broker(|| {
            // It forks away into a session of its own, with /dev/null for its outputs.
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("socket");
            let start = Start::untold("/usr/bin/memcached", &["-d", "-u", "root", "-s", socket.to_str().unwrap()]);
            assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
            let connect = || std::os::unix::net::UnixStream::connect(&socket);
            wait_for("memcached serves", || connect().is_ok());
            let found = survivors(&start.facts, |_| false).unwrap().survivors;
            assert_eq!(found.iter().map(|s| s.evidence).collect::<Vec<_>>(), [Evidence::CommandLine]);
            let is_other = |_| false;
            let doomed = crate::process::group::Doomed {
                main: found[0].pid,
                group: found[0].pid,
                pidfd: found[0].pidfd.as_fd(),
                start: Some(&start.facts),
                tree: crate::process::group::Tree::default(),
                is_other: &is_other,
            };
            assert_eq!(crate::process::group::end(doomed, GENEROUS).remaining, []);
            assert!(connect().is_err());
        });
    }

    impl Survivor {
        fn end(&self) {
            crate::process::kernel::pidfd_signal(self.pidfd.as_fd(), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
}
