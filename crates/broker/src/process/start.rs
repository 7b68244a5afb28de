//! What is known of one start, and by which evidence a process that left its group still belongs to it.
//!
//! It attributes and never signals.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup::Leaf;
use super::identity::{FileId, Identity, Stat};
use super::kernel::has_ended;
use super::log_place::LogPlace;
use super::proc;
use super::spawn::{Command, Spawned};

/// The most that is read of a process's environment or command line.
const PROC_TEXT_BYTES: u64 = 2 * 1024 * 1024;

/// How long the facts of a program are waited for whose exec is not quite done: each time twice as long, 40 ms in all. An exec
/// takes a tenth of a millisecond from where the spawn returns to where the arguments are shown.
const OBSERVE_FIRST: Duration = Duration::from_micros(20);
const OBSERVE_TRIES: u32 = 11;

/// The facts of one start, read right after it was spawned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StartFacts {
    /// The process that was spawned. Its number is also that of its session and group.
    pub(crate) leader: Identity,
    /// The start's log: its file, or the socket of its stream in the journal.
    pub(crate) log: Option<FileId>,
    /// The start's own notify socket, which no other start was told of.
    pub(crate) notify_socket: Option<PathBuf>,
    /// What it executes: of a script, the interpreter.
    pub(crate) executable: Option<FileId>,
    /// Its arguments, each ended by a NUL, as the kernel shows them.
    pub(crate) command_line: Vec<u8>,
    /// The cgroup that it began in. Whoever writes the facts down has it beside them.
    #[serde(skip)]
    pub(crate) cgroup: Option<Leaf>,
}

/// Why a process is held to be part of a start, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Evidence {
    /// It is in the cgroup that was made for the start.
    Cgroup,
    /// It is in the session that was made for the start.
    Session,
    /// Its stdout or stderr is the start's log.
    Log,
    /// Its environment names the start's notify socket.
    NotifySocket,
    /// It has the command line that was started.
    CommandLine,
    /// It executes the file that was started.
    Executable,
}

impl Evidence {
    /// Whether a process may be ended on it. Many unrelated processes execute the same file.
    pub(crate) fn suffices_to_end(self) -> bool {
        self <= Self::CommandLine
    }
}

impl StartFacts {
    /// Reads the facts of a program that has just been spawned, even if it has ended already. Blocks for an instant:
    /// the spawn returns before the kernel shows the new arguments.
    pub(crate) fn observe(command: &Command, spawned: &Spawned) -> io::Result<Self> {
        let pid = spawned.pid;
        let leader = Identity::of(pid)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let mut command_line = Vec::new();
        for attempt in 0..OBSERVE_TRIES {
            command_line = proc_text(pid, "cmdline").unwrap_or_default();
            if !command_line.is_empty() || has_ended(spawned.pidfd.as_fd()) {
                break;
            }
            std::thread::sleep(OBSERVE_FIRST * 2_u32.pow(attempt));
        }
        if command_line.is_empty() {
            // A launcher that was quicker. Of a script the kernel would have shown the interpreter first.
            for argument in &command.argv {
                command_line.extend_from_slice(argument.as_bytes());
                command_line.push(0);
            }
        }
        let executable = fs::metadata(format!("/proc/{pid}/exe")).or_else(|_| fs::metadata(&command.program)).ok();
        let log = fs::metadata(format!("/proc/self/fd/{}", command.stdout.as_raw_fd()))?;
        let variable = |(name, value): &(OsString, OsString)| (name == "NOTIFY_SOCKET").then(|| PathBuf::from(value));
        Ok(Self {
            leader,
            log: is_one_starts(&log).then(|| FileId::from(&log)),
            notify_socket: command.environment.iter().find_map(variable),
            executable: executable.as_ref().map(FileId::from),
            command_line,
            cgroup: None,
        })
    }

    /// The facts of a start that somebody else spawned and could not look at: as they are now, of a leader that lives or
    /// not.
    pub(crate) fn of_another(leader: Identity, log: Option<&LogPlace>, notify_socket: Option<PathBuf>) -> Self {
        let is_there = Identity::of(leader.pid).ok().flatten() == Some(leader);
        let executable = is_there.then(|| fs::metadata(format!("/proc/{}/exe", leader.pid)).ok()).flatten();
        let command_line = if is_there { proc_text(leader.pid, "cmdline").unwrap_or_default() } else { Vec::new() };
        Self {
            leader,
            log: log.and_then(LogPlace::identity),
            notify_socket,
            executable: executable.as_ref().map(FileId::from),
            command_line,
            cgroup: None,
        }
    }

    /// Whether a process is young enough to belong to this start: a reason to look at it closer, and none to end it.
    pub(crate) fn may_have_begun(&self, process: &Stat) -> bool {
        process.start_time >= self.leader.start_time
    }

    /// The strongest evidence that a process belongs to this start. Open its pidfd first.
    ///
    /// The two weak kinds are void where something speaks for another start: an output that is another file, or another
    /// notify socket. They are void, too, where the start has a cgroup: whoever is of it and was moved away since has other
    /// evidence, and the same program elsewhere is another start's.
    pub(crate) fn evidence(&self, process: &Stat) -> Option<Evidence> {
        if !self.may_have_begun(process) {
            return None;
        }
        if self.is_in_its_cgroup(process.pid) {
            return Some(Evidence::Cgroup);
        }
        if process.session == self.leader.pid && self.owns_its_number() {
            return Some(Evidence::Session);
        }
        let outputs = outputs_of(process.pid);
        if self.log.is_some_and(|log| outputs.hold(log)) {
            return Some(Evidence::Log);
        }
        let told = notify_socket_of(process.pid);
        if told.is_some() && told == self.notify_socket {
            return Some(Evidence::NotifySocket);
        }
        let has_cgroup = || self.cgroup.as_ref().is_some_and(Leaf::is_there);
        if told.is_some() || outputs.has_files || has_cgroup() {
            return None;
        }
        self.likeness(process.pid)
    }

    /// The evidence that a process which is no child of ours belongs to this start, if it is proof. Open its pidfd first.
    ///
    /// Once nobody is left in a session its number may become that of a stranger's. `session_is_held` says that somebody
    /// is in it who is proved to be of the start; otherwise only who runs the same program there is held for one.
    pub(crate) fn proof(&self, process: &Stat, session_is_held: bool) -> Option<Evidence> {
        if !self.may_have_begun(process) {
            return None;
        }
        if self.is_in_its_cgroup(process.pid) {
            return Some(Evidence::Cgroup);
        }
        let is_in_session = process.session == self.leader.pid;
        if is_in_session && session_is_held {
            return Some(Evidence::Session);
        }
        if self.log.is_some_and(|log| outputs_of(process.pid).hold(log)) {
            return Some(Evidence::Log);
        }
        if self.notify_socket.is_some() && notify_socket_of(process.pid) == self.notify_socket {
            return Some(Evidence::NotifySocket);
        }
        let is_ours = is_in_session && self.owns_its_number() && self.likeness(process.pid).is_some();
        is_ours.then_some(Evidence::Session)
    }

    /// Whether a process lives in the cgroup of this start.
    fn is_in_its_cgroup(&self, pid: Pid) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| cgroup.holds(pid))
    }

    /// Whether a process has the command line or the program of this start.
    fn likeness(&self, pid: Pid) -> Option<Evidence> {
        if !self.command_line.is_empty()
            && proc_text(pid, "cmdline").is_ok_and(|command_line| command_line == self.command_line)
        {
            return Some(Evidence::CommandLine);
        }
        let executable = fs::metadata(format!("/proc/{pid}/exe")).ok();
        let same = self.executable.zip(executable.as_ref().map(FileId::from)).is_some_and(|(own, its)| own.is(its));
        same.then_some(Evidence::Executable)
    }

    /// With the cgroup that it began in, if that is still there, and the leader never left it.
    pub(crate) fn in_cgroup(mut self, cgroup: Option<Leaf>) -> Self {
        let is_elsewhere = |cgroup: &Leaf| {
            Identity::of(self.leader.pid).ok().flatten() == Some(self.leader) && !cgroup.holds(self.leader.pid)
        };
        self.cgroup = cgroup.filter(|cgroup| cgroup.is_there() && !is_elsewhere(cgroup));
        self
    }

    /// Lets go of a log that is not the file at its path any more: its number may be another file's by now.
    pub(crate) fn without_a_lost_log(mut self, place: Option<&LogPlace>) -> Self {
        let there = place.and_then(LogPlace::identity);
        self.log = self.log.filter(|log| there.is_some_and(|there| there.is(*log)));
        self
    }

    /// Whether the leader's number was not given to a later process. A session's number stays taken while it has
    /// members, so only a process that bears the number and is another one speaks against it.
    fn owns_its_number(&self) -> bool {
        !matches!(Identity::of(self.leader.pid), Ok(Some(now)) if now != self.leader)
    }
}

/// Where a process writes to.
struct Outputs {
    any: Vec<FileId>,
    /// Whether there is a file among them. Sockets may be a parent's that reads what its child says.
    has_files: bool,
}

impl Outputs {
    fn hold(&self, file: FileId) -> bool {
        self.any.iter().any(|output| output.is(file))
    }
}

/// The files and sockets among stdout and stderr of a process.
fn outputs_of(pid: Pid) -> Outputs {
    let outputs = [1, 2].map(|fd| fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok());
    let outputs = || outputs.iter().flatten();
    let any = outputs().filter(|output| is_one_starts(output)).map(FileId::from).collect();
    Outputs { any, has_files: outputs().any(fs::Metadata::is_file) }
}

/// Whether an output is of a kind that the broker makes for each start anew.
fn is_one_starts(output: &fs::Metadata) -> bool {
    output.is_file() || output.file_type().is_socket()
}

fn proc_text(pid: Pid, file: &str) -> io::Result<Vec<u8>> {
    proc::read_at_most(format!("/proc/{pid}/{file}"), PROC_TEXT_BYTES)
}

fn notify_socket_of(pid: Pid) -> Option<PathBuf> {
    let environment = proc_text(pid, "environ").ok()?;
    let value = environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(b"NOTIFY_SOCKET="))?;
    Some(PathBuf::from(OsStr::from_bytes(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::identity::stat;
    use crate::process::testing::{Start, as_broker};

    #[test]
    fn a_later_file_that_has_the_number_of_a_lost_log_is_no_evidence() {
        as_broker(|| {
            let writer = Start::sh("exec sleep 1000");
            let process = stat(writer.spawned.pid).unwrap().unwrap();
            let log = writer.facts.log.expect("a file");
            let of_a_start_whose_log_is = |log| StartFacts {
                leader: Identity { pid: Pid::from_raw(1), start_time: 0 },
                log: Some(log),
                notify_socket: None,
                executable: None,
                command_line: Vec::new(),
                cgroup: None,
            };
            let proof = |log| of_a_start_whose_log_is(log).proof(&process, false);
            let evidence = |log| of_a_start_whose_log_is(log).evidence(&process);
            assert_eq!((proof(log), evidence(log)), (Some(Evidence::Log), Some(Evidence::Log)));
            // As written down by a broker that did not look, or where the file system does not tell.
            let unknown = FileId { born: None, ..log };
            assert_eq!((proof(unknown), evidence(unknown)), (Some(Evidence::Log), Some(Evidence::Log)));
            let born = log.born.expect("tests run on a file system that tells");
            let earlier = FileId { born: Some(born - 1), ..log };
            assert_eq!((proof(earlier), evidence(earlier)), (None, None));
        });
    }
}
