//! Ending a backend: its main process, the rest of its group, and what left the group.
//!
//! While our child is not reaped its zombie keeps its own number, and the numbers of the group and session that it is
//! in, from being used again: the kernel frees a number only when no task bears it as pid, group or session. So as long
//! as the main process is *pinned* (our child, not reaped) a signal to its group reaches that group and no other, and
//! members found in `/proc` by the group's number are its members. Everything else is signalled through a pidfd that
//! was opened before the facts were read. The main process is reaped last.
//!
//! Everything but [`signal`] blocks and belongs on a worker thread. Nothing waits longer than it is told.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp};

use super::census;
use super::exit::{Exit, peek};
use super::identity::{self, Identity, Stat, open_if, stat};
use super::kernel::{has_ended, pidfd_signal, reap, wait_ended};
use super::orphans::orphans;
use super::start::{Evidence, StartFacts};

/// How long [`end`] usually waits for killed processes. Only one in uninterruptible sleep takes longer than an instant.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(10);

/// The most processes that are held open at once; what is more is for the next round.
const ROUND_MAX: usize = 256;

/// How often a round looks whether those that it stopped have stopped, and how long it waits in between. One in
/// uninterruptible sleep does not.
const FREEZE_TRIES: u32 = 20;
const FREEZE_PAUSE: Duration = Duration::from_millis(1);

/// How long one round waits for those it killed before it looks again.
const ROUND_PATIENCE: Duration = Duration::from_millis(50);

/// Signals every process of the group; false if there is none. The group's number must be pinned by an unreaped child.
pub(crate) fn signal(group: Pid, signal: Signal) -> io::Result<bool> {
    // killpg(0) and killpg(1) mean something else, and our own group is never a backend's.
    if group.as_raw() <= 1 || group == getpgrp() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    match killpg(group, signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A process and its descendants at one moment, held so that they can be ended when they have left the group.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    members: Vec<(Identity, OwnedFd)>,
}

impl Tree {
    /// Opens every descendant of the process. Take it while the process runs:
    /// afterwards nothing leads from it to its children. Of more than [`ROUND_MAX`] some are left out.
    pub(crate) fn snapshot(main: Pid) -> io::Result<Self> {
        let all = identity::below([main])?;
        let Some(main) = all.iter().find(|stat| stat.pid == main) else { return Ok(Self::default()) };
        let descendants = with_descendants(vec![main.pid], &all);
        Ok(Self { members: open_all(descendants, |pid| pid == main.pid).0 })
    }

    /// The members that still run.
    pub(crate) fn alive(&self) -> impl Iterator<Item = Pid> {
        self.members.iter().filter(|(_, pidfd)| !has_ended(pidfd.as_fd())).map(|(identity, _)| identity.pid)
    }
}

/// What is to be ended.
pub(crate) struct Doomed<'a> {
    /// The main process, running or a zombie.
    pub(crate) main: Pid,
    pub(crate) pidfd: BorrowedFd<'a>,
    /// What its strays are known by.
    pub(crate) start: Option<&'a StartFacts>,
    /// Descendants that were seen while the main process ran.
    pub(crate) tree: Tree,
    /// Its process group.
    pub(crate) group: Pid,
    /// Which pids are main processes of other starts.
    pub(crate) is_other: &'a dyn Fn(Pid) -> bool,
}

/// How it went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// How the main process ended; unknown if it was not our child, or runs on.
    pub(crate) exit: Exit,
    /// Who still runs, though killed. If the main process is among them nobody has reaped it.
    pub(crate) remaining: Vec<Pid>,
}

/// Kills the main process, its group, its descendants and its strays, waits until they are gone, and reaps the main
/// process last. Sockets and files that they held are closed when it returns with nobody remaining. Zombies of orphans
/// are left to the main thread, whose SIGCHLD they are.
///
/// They are stopped before they are killed: a child that is born between the look and the kill would otherwise be
/// orphaned, and perhaps show no evidence of where it came from.
pub(crate) fn end(doomed: Doomed<'_>, patience: Duration) -> Ended {
    let deadline = Instant::now() + patience;
    let pinned = peek(doomed.pidfd).is_ok();
    let remaining = loop {
        let main_runs = !has_ended(doomed.pidfd);
        let (victims, more) = doomed.freeze(pinned);
        if pinned {
            let _ = signal(doomed.group, Signal::SIGKILL);
        }
        let _ = pidfd_signal(doomed.pidfd, Signal::SIGKILL);
        for (_, pidfd) in &victims {
            let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        }
        let round = deadline.min(Instant::now() + ROUND_PATIENCE);
        for pidfd in victims.iter().map(|(_, pidfd)| pidfd.as_fd()).chain([doomed.pidfd]) {
            wait_ended(pidfd, round.saturating_duration_since(Instant::now()));
        }
        if victims.is_empty() && !more && !main_runs {
            break Vec::new();
        }
        if victims.is_empty() && more {
            // The look failed, for want of descriptors perhaps.
            std::thread::sleep(FREEZE_PAUSE);
        }
        if Instant::now() >= deadline {
            let alive = victims.iter().filter(|(_, pidfd)| !has_ended(pidfd.as_fd()));
            break alive.map(|(identity, _)| identity.pid).collect();
        }
    };
    conclude(&doomed, remaining, deadline)
}

fn conclude(doomed: &Doomed<'_>, mut remaining: Vec<Pid>, deadline: Instant) -> Ended {
    let mut exit = Exit::Unknown;
    if wait_ended(doomed.pidfd, deadline.saturating_duration_since(Instant::now())) {
        exit = reap(&doomed.pidfd).ok().flatten().unwrap_or(Exit::Unknown);
    } else {
        remaining.insert(0, doomed.main);
    }
    Ended { exit, remaining }
}

impl Doomed<'_> {
    /// Stops all there is of the backend, as often as there is more, and returns it, the main process apart. Also says
    /// whether there was more than one round holds.
    fn freeze(&self, pinned: bool) -> (Vec<(Identity, OwnedFd)>, bool) {
        let mut frozen: HashMap<Identity, OwnedFd> = HashMap::new();
        let _ = pidfd_signal(self.pidfd, Signal::SIGSTOP);
        let mut tries = 0;
        loop {
            // Read before the look: what is stopped by then has its last child in sight.
            let all_stopped = has_stopped(self.main) && frozen.keys().all(|identity| has_stopped(identity.pid));
            let (victims, more) = self.victims(pinned);
            let before = frozen.len();
            for (identity, pidfd) in victims {
                frozen.entry(identity).or_insert_with(|| {
                    let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGSTOP);
                    pidfd
                });
            }
            tries += 1;
            if (frozen.len() == before && all_stopped) || more || tries == FREEZE_TRIES {
                return (frozen.into_iter().collect(), more);
            }
            if frozen.len() == before {
                std::thread::sleep(FREEZE_PAUSE);
            }
        }
    }

    /// Opens who still runs of the backend, the main process apart; and says whether there were more than one round
    /// holds.
    fn victims(&self, pinned: bool) -> (Vec<(Identity, OwnedFd)>, bool) {
        // The orphans are listed last: what loses its parent during the look is among them, or found by the next look.
        let Ok(mut all) = identity::below([self.main]) else { return (Vec::new(), true) };
        let Ok(listed) = orphans() else { return (Vec::new(), true) };
        let orphans: HashSet<Pid> = listed.into_iter().filter(|pid| !(self.is_other)(*pid)).collect();
        // Of a backend that is no child of ours the orphans went elsewhere.
        let known: HashSet<Pid> = all.iter().map(|process| process.pid).collect();
        let is_new = |process: &Stat| !known.contains(&process.pid);
        if pinned {
            let Ok(others) = identity::below(orphans.iter().copied().chain(self.tree.alive())) else {
                return (Vec::new(), true);
            };
            all.extend(others.into_iter().filter(is_new));
        } else {
            let Ok(others) = census::look() else { return (Vec::new(), true) };
            all.extend(others.iter().filter(|process| is_new(process)));
        }
        // The facts are the main process's own if its number was taken, by itself, until they had been read.
        let main = all.iter().find(|process| process.pid == self.main);
        let main = main.filter(|_| pinned || !has_ended(self.pidfd));
        // A backend of an earlier broker is no child of ours, and its orphans went elsewhere: there only proof counts.
        let is_foreign = !pinned;
        let is_stray = |process: &Stat| {
            let Some(start) = self.start else { return false };
            let is_orphan = orphans.contains(&process.pid);
            (is_orphan && start.evidence(process).is_some_and(Evidence::suffices_to_end))
                || (is_foreign && start.proof(process, main.is_some_and(|m| m.session == start.leader.pid)).is_some())
        };
        let may_be_stray = |process: &Stat| {
            self.start.is_some_and(|start| start.may_have_begun(process))
                && (is_foreign || orphans.contains(&process.pid))
        };
        let spared = |pid: Pid| pid == self.main || pid == Pid::this() || (self.is_other)(pid);
        let mut roots: Vec<Pid> = self.tree.alive().chain(main.map(|main| main.pid)).collect();
        let mut strays = HashMap::new();
        for process in &all {
            if main.is_some_and(|main| shares_group(process, main)) {
                roots.push(process.pid);
            } else if may_be_stray(process) && !spared(process.pid) {
                // The pidfd comes before the facts that condemn it.
                if let Ok(Some((stat, pidfd))) = open_if(process.pid, is_stray) {
                    roots.push(stat.pid);
                    strays.insert(stat.pid, (stat.identity(), pidfd));
                }
            }
        }
        let (mut victims, more) =
            open_all(with_descendants(roots, &all), |pid| spared(pid) || strays.contains_key(&pid));
        victims.extend(strays.into_values());
        (victims, more)
    }
}

/// Whether the process runs no more code of its own for now, or for ever.
fn has_stopped(pid: Pid) -> bool {
    !matches!(stat(pid), Ok(Some(now)) if !matches!(now.state, b'T' | b't' | b'Z' | b'X'))
}

fn shares_group(process: &Stat, main: &Stat) -> bool {
    process.group == main.group || process.session == main.session
}

/// The processes of the list that are among the roots or descend from them.
fn with_descendants(roots: Vec<Pid>, all: &[Stat]) -> Vec<Stat> {
    if roots.is_empty() {
        return Vec::new();
    }
    let mut children: HashMap<Pid, Vec<&Stat>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut seen: HashSet<Pid> = roots.iter().copied().collect();
    let mut open = roots;
    while let Some(pid) = open.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            // Our own pid as a root would condemn every backend.
            if pid != Pid::this() && seen.insert(child.pid) {
                open.push(child.pid);
            }
        }
    }
    all.iter().filter(|process| seen.contains(&process.pid)).copied().collect()
}

/// Opens those that still run and are who they were; and says whether some are left out for lack of room.
fn open_all(processes: Vec<Stat>, is_spared: impl Fn(Pid) -> bool) -> (Vec<(Identity, OwnedFd)>, bool) {
    let mut opened = Vec::new();
    for process in processes.into_iter().filter(|process| !is_spared(process.pid)) {
        if opened.len() == ROUND_MAX {
            return (opened, true);
        }
        match open_if(process.pid, |now| now.start_time == process.start_time) {
            Ok(Some((stat, pidfd))) => opened.push((stat.identity(), pidfd)),
            Ok(None) => {}
            Err(_) => return (opened, true),
        }
    }
    (opened, false)
}

#[cfg(test)]
mod tests;
