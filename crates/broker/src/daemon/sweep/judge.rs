//! Whether what an earlier broker left lives, is gone, or cannot be told: by proof, and never by a number alone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use broker_proto::Endpoint;
use nix::unistd::Pid;

use super::left::Left;
use crate::core::backend::Phase;
use crate::daemon::ledger::{Here, Start};
use crate::daemon::perform::serves;
use crate::journald::stream::{self, Stream};
use crate::process::census;
use crate::process::cgroup::Leaf;
use crate::process::identity::{self, Identity, Stat};
use crate::process::kernel::{has_ended, pidfd_open};
use crate::process::leftovers::heirs;
use crate::process::log_place::LogPlace;
use crate::process::start::StartFacts;
use crate::process::start_record::{self, Child};

/// What became of a backend.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing of it ran.
    Rests,
    /// It was about to be started, and never was.
    NeverStarted,
    /// It was of another boot.
    OtherBoot,
    /// It lives.
    Alive(Found),
    /// It lives, though the kernel ends it with the broker that is gone.
    Doomed(Found),
    /// Its main process is gone; what is left of it is known by these facts, if anything may be left.
    Gone(Option<Box<StartFacts>>),
    /// The unit that all backends live in was stopped around it.
    TakenDown(Box<StartFacts>),
    /// It cannot be told, for this reason.
    Unclear(String),
}

/// A process that is proved to be a backend's.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) main: Identity,
    pub(super) group: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) facts: StartFacts,
    pub(super) known: Vec<Pid>,
}

/// What a look at a process showed.
#[derive(Debug)]
enum Seen {
    Alive(OwnedFd, Stat),
    Gone,
    Unclear(String),
}

/// How often the daemon is looked for that a process has become which is no child of ours, a millisecond and a look at every
/// process apart: whether somebody is just ending cannot be seen of it.
const LOOKS_FOR_HEIRS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How often that is done in one sweep, before the first client is let in.
const LOOKS_IN_ALL: u32 = 100;

/// How far a backend was that may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Was {
    Starting,
    /// It may have been ready an instant before it forked away.
    JustReady,
    Settled,
}

impl Was {
    pub(in crate::daemon) fn in_phase(phase: &Phase) -> Self {
        match phase {
            Phase::Starting { .. } => Self::Starting,
            Phase::Ready { proved: false, .. } => Self::JustReady,
            _ => Self::Settled,
        }
    }
}

/// Judges, in this boot and namespace.
pub(super) struct Judge {
    here: Here,
    /// Every process, if somebody had to look at them all.
    all: Option<Vec<Stat>>,
    /// How often they may still be looked at anew.
    looks_left: u32,
}

impl Judge {
    pub(super) fn new(here: Here) -> Self {
        Self { here, all: None, looks_left: LOOKS_IN_ALL }
    }

    pub(super) fn judge(&mut self, left: &Left) -> Verdict {
        let is_of_this_boot = left.boot_id.as_ref().is_none_or(|boot_id| *boot_id == self.here.boot_id)
            && left.start.as_ref().is_none_or(|start| start.here.boot_id == self.here.boot_id);
        if !is_of_this_boot {
            return Verdict::OtherBoot;
        }
        let was = match &left.memory.phase {
            Phase::Inactive { .. } | Phase::Failed { .. } => return Verdict::Rests,
            Phase::Quarantined { reason } => return Verdict::Unclear(reason.clone()),
            phase @ (Phase::Starting { .. } | Phase::Ready { .. } | Phase::Stopping { .. }) => Was::in_phase(phase),
        };
        let Some(start) = &left.start else {
            return match was {
                Was::Starting => Verdict::NeverStarted,
                Was::JustReady | Was::Settled if left.is_over => Verdict::Gone(None),
                Was::JustReady | Was::Settled => {
                    Verdict::Unclear("the journal says that it runs, and not as what".to_owned())
                }
            };
        };
        if start.here.pid_namespace != self.here.pid_namespace {
            let reason = "it was started in another pid namespace, whose process numbers mean nothing here";
            return Verdict::Unclear(reason.to_owned());
        }
        let identity = match &start.process {
            Some(process) => process.main,
            None => match Self::child(start) {
                Ok(Some(identity)) => identity,
                Ok(None) => return Verdict::NeverStarted,
                Err(reason) => return Verdict::Unclear(reason),
            },
        };
        self.look(start, identity, was)
    }

    /// Who the record says that the child was.
    fn child(start: &Start) -> Result<Option<Identity>, String> {
        let Some(path) = &start.record else { return Ok(None) };
        match start_record::read(path) {
            Ok(recorded) => match recorded.child {
                Child::Is(identity) => Ok(Some(identity)),
                Child::Never => Ok(None),
                Child::UnderWay => Err("its program is still being executed, on a file system that hangs".to_owned()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("its start record `{}` cannot be read: {error}", path.display())),
        }
    }

    fn look(&mut self, start: &Start, identity: Identity, was: Was) -> Verdict {
        let facts = || {
            let facts = match &start.process {
                Some(process) => StartFacts::clone(&process.facts),
                None => StartFacts::of_another(identity, start.log.as_ref(), start.notify.clone()),
            };
            facts.in_cgroup(start.cgroup.clone())
        };
        if start.endpoint.is_none() {
            return Verdict::Unclear("it is not on record where it serves".to_owned());
        }
        let known = || start.process.iter().flat_map(|process| &process.known).map(|&pid| Pid::from_raw(pid)).collect();
        match see(identity) {
            Seen::Alive(pidfd, stat) => {
                let found = Found { main: identity, group: stat.group, pidfd, facts: facts(), known: known() };
                if start.record.is_some() { Verdict::Alive(found) } else { Verdict::Doomed(found) }
            }
            Seen::Gone => self.heir(start, was, facts().without_a_lost_log(start.log.as_ref()), known()),
            Seen::Unclear(reason) => Verdict::Unclear(reason),
        }
    }

    /// A daemon may have forked away while no broker looked; then the oldest of what it left is the backend.
    fn heir(&mut self, start: &Start, was: Was, facts: StartFacts, mut known: Vec<Pid>) -> Verdict {
        let mut heirs = self.heirs(start, was, &facts).into_iter();
        let Some((stat, pidfd)) = heirs.next() else {
            let is_taken_down = start.cgroup.as_ref().is_some_and(Leaf::has_lost_its_place);
            let facts = Box::new(facts);
            return if is_taken_down { Verdict::TakenDown(facts) } else { Verdict::Gone(Some(facts)) };
        };
        known.push(facts.leader.pid);
        known.extend(heirs.map(|(stat, _)| stat.pid));
        Verdict::Alive(Found { main: stat.identity(), group: stat.group, pidfd, facts, known })
    }

    /// Looks for them until they are found or cannot be there. The daemon may be just between its two forks, and a list of
    /// processes may be older than the end of the one that it forked away from.
    fn heirs(&mut self, start: &Start, was: Was, facts: &StartFacts) -> Vec<(Stat, OwnedFd)> {
        let look = |all: &[Stat]| daemon_left_by(facts, all, was, start.endpoint.as_ref());
        let mut found = look(self.all.get_or_insert_with(|| identity::all().unwrap_or_default()));
        for _ in 0..LOOKS_FOR_HEIRS {
            if was == Was::Settled || !found.is_empty() || self.looks_left == 0 || !may_be_there(start.cgroup.as_ref())
            {
                break;
            }
            self.looks_left -= 1;
            std::thread::sleep(LOOK_AGAIN);
            found = look(self.all.insert(identity::all().unwrap_or_default()));
        }
        found
    }
}

/// Whether somebody may be there of whom a look at every process showed nothing.
fn may_be_there(cgroup: Option<&Leaf>) -> bool {
    cgroup.is_none_or(|leaf| !leaf.members().is_empty())
}

/// Looks for the daemon until it is found or cannot be there; it may be between its two forks, with nothing to show for it.
/// Blocks, and belongs on a worker thread.
pub(in crate::daemon) fn seek_daemon_left_by(
    facts: &StartFacts,
    was: Was,
    endpoint: &Endpoint,
) -> Vec<(Stat, OwnedFd)> {
    let look = || census::look().map(|all| daemon_left_by(facts, &all, was, Some(endpoint))).unwrap_or_default();
    let mut found = look();
    for _ in 0..LOOKS_FOR_HEIRS {
        if !found.is_empty() || !may_be_there(facts.cgroup.as_ref()) {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
        found = look();
    }
    found
}

/// The daemon that a process has become whose end nobody saw, and what else it left, the oldest first; nothing if it was
/// the daemon itself.
///
/// How the process ended is not known. So what looks like the workers of one that died is not taken for such a daemon:
/// several orphans that stayed in its session; nor is, where it served already, what serves no more.
fn daemon_left_by(facts: &StartFacts, all: &[Stat], was: Was, endpoint: Option<&Endpoint>) -> Vec<(Stat, OwnedFd)> {
    if was == Was::Settled {
        return Vec::new();
    }
    let found = heirs(facts, all);
    let is_orphan = |stat: &Stat| !found.iter().any(|(other, _)| other.pid == stat.parent);
    let orphans: Vec<&Stat> = found.iter().map(|(stat, _)| stat).filter(|stat| is_orphan(stat)).collect();
    let has_left = orphans.iter().any(|stat| stat.session != facts.leader.pid);
    let is_daemon = match was {
        Was::Starting => has_left || orphans.len() == 1,
        Was::JustReady | Was::Settled => has_left && endpoint.is_some_and(serves),
    };
    if is_daemon { found } else { Vec::new() }
}

/// Looks at a process: its descriptor is opened first, then the facts are read, then it is asked whether it has ended.
fn see(identity: Identity) -> Seen {
    let pid = identity.pid;
    let pidfd = match pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Seen::Gone,
        Err(error) => return Seen::Unclear(format!("process {pid} cannot be looked at: {error}")),
    };
    let stat = identity::stat(pid);
    if has_ended(pidfd.as_fd()) {
        return Seen::Gone;
    }
    match stat {
        Ok(Some(stat)) if stat.start_time == identity.start_time => Seen::Alive(pidfd, stat),
        // Its number was given to a stranger.
        Ok(Some(_)) => Seen::Gone,
        Ok(None) => Seen::Unclear(format!("process {pid} lives, and /proc does not show it")),
        Err(error) => Seen::Unclear(format!("process {pid} cannot be looked at: {error}")),
    }
}

/// The log of a start, for a probe that is run on behalf of a broker that did not open it.
pub(super) fn log_of(start: &Start) -> std::io::Result<OwnedFd> {
    let appended = |path: &Path| File::options().append(true).open(path).map(OwnedFd::from);
    match &start.log {
        None => appended("/dev/null".as_ref()),
        Some(LogPlace::File(path)) => appended(path),
        Some(LogPlace::Journal(Stream { identifier, generation, .. })) => {
            let line = format!("probing {}, generation {generation}", start.key);
            stream::open(stream::PLACE.as_ref(), identifier, "", &line)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::testing::pid_of;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start_together() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().expect("it can be executed");
        let identity = Identity::of(pid_of(&child)).expect("readable").expect("it lives");
        assert!(matches!(see(identity), Seen::Alive(_, stat) if stat.identity() == identity));
        let stranger = Identity { start_time: identity.start_time + 1, ..identity };
        assert!(matches!(see(stranger), Seen::Gone), "the number is another's now");
        child.kill().expect("ours");
        crate::process::testing::wait_for("it has ended", || matches!(see(identity), Seen::Gone));
        // A zombie so far; and now it is nobody.
        child.wait().expect("ours");
        assert!(matches!(see(identity), Seen::Gone));
    }
}
