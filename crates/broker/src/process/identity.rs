//! Who a process is: its number together with its start time, within one boot; and what `/proc` says of it.
//!
//! A number alone is never proof: it is reused. It signals nobody.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::kernel::{has_ended, pidfd_open};
use super::proc;

/// The flag of a task that is being torn down, from the kernel's include/linux/sched.h.
const PF_EXITING: u32 = 0x4;

/// The facts of `/proc/PID/stat` that the broker decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
    /// The state's letter; `Z` is a zombie, or a process whose first thread has ended before the others.
    pub(crate) state: u8,
    /// Whether it is on its way out (`PF_EXITING`): its files may be closed, its children not yet handed over.
    pub(crate) is_exiting: bool,
    /// Clock ticks from boot to its start.
    pub(crate) start_time: u64,
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Identity {
    #[serde(with = "pid_number")]
    pub(crate) pid: Pid,
    /// Clock ticks from boot to its start (field 22 of `/proc/PID/stat`).
    pub(crate) start_time: u64,
}

impl Identity {
    /// Reads the identity of a running process or zombie; `None` if the number is free.
    pub(crate) fn of(pid: Pid) -> io::Result<Option<Self>> {
        Ok(stat(pid)?.map(|stat| stat.identity()))
    }
}

impl Stat {
    pub(crate) fn identity(&self) -> Identity {
        Identity { pid: self.pid, start_time: self.start_time }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name may hold spaces, parentheses and newlines; what follows it holds none.
        let name_end = text.iter().rposition(|&byte| byte == b')')?;
        let number_end = text.iter().position(|&byte| byte == b' ')?;
        let pid = std::str::from_utf8(text.get(..number_end)?).ok()?.parse().ok()?;
        let rest = std::str::from_utf8(text.get(name_end + 1..)?).ok()?;
        // Field 3, the state, is the first of these.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| Some(Pid::from_raw(fields.get(field - 3)?.parse().ok()?));
        Some(Self {
            pid: Pid::from_raw(pid),
            parent: number(4)?,
            group: number(5)?,
            session: number(6)?,
            state: *fields.first()?.as_bytes().first()?,
            is_exiting: fields.get(9 - 3)?.parse::<u32>().ok()? & PF_EXITING != 0,
            start_time: fields.get(22 - 3)?.parse().ok()?,
        })
    }
}

/// A file, however it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    /// The number of a file that is gone is the next one's, on many file systems at once.
    pub(crate) inode: u64,
    /// When it was made, in nanoseconds since 1970, where the file system tells. Sockets have no such time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) born: Option<u64>,
}

impl FileId {
    /// Whether both are the same file, as far as is known of them.
    pub(crate) fn is(self, other: Self) -> bool {
        let is_born_then = || self.born.is_none() || other.born.is_none() || self.born == other.born;
        (self.device, self.inode) == (other.device, other.inode) && is_born_then()
    }
}

impl From<&fs::Metadata> for FileId {
    fn from(metadata: &fs::Metadata) -> Self {
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
        Self { device: metadata.dev(), inode: metadata.ino(), born }
    }
}

/// Whether an error on a path below `/proc/PID` means that the process is gone.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Reads `/proc/PID/stat`; `None` if there is no such process.
pub(crate) fn stat(pid: Pid) -> io::Result<Option<Stat>> {
    match proc::read(format!("/proc/{pid}/stat")) {
        Ok(text) => Stat::parse(&text)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood"))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a process is on its way out, or gone, or one of these signals waits for it: one that it does not suffer at once
/// waits until it is read, one that kills until nothing is left. What cannot be seen is not so.
pub(crate) fn is_condemned(pid: Pid, by: &[Signal]) -> bool {
    // The signals first: who is killed is no later on its way out than his signal is taken from where it waits.
    let status = match proc::read_text(format!("/proc/{pid}/status")) {
        Ok(status) => status,
        Err(error) => return is_gone(&error),
    };
    by.iter().any(|signal| awaits(&status, *signal))
        || stat(pid).is_ok_and(|facts| facts.is_none_or(|facts| facts.is_exiting || matches!(facts.state, b'Z' | b'X')))
}

/// Whether `/proc/PID/status` says that a signal waits for the process, or for its first thread.
fn awaits(status: &str, signal: Signal) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    let mut masks = masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    masks.any(|mask| mask >> (signal as u32 - 1) & 1 == 1)
}

/// Opens the process if it runs and its facts pass: descriptor first, then the facts, then a poll.
pub(crate) fn open_if(pid: Pid, passes: impl FnOnce(&Stat) -> bool) -> io::Result<Option<(Stat, OwnedFd)>> {
    let pidfd = match pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(facts) = stat(pid)? else { return Ok(None) };
    Ok((passes(&facts) && !has_ended(pidfd.as_fd())).then_some((facts, pidfd)))
}

/// Reads the facts of every process there is, in no order. Those that end meanwhile are left out.
pub(crate) fn all() -> io::Result<Vec<Stat>> {
    let numbers = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.filter_map(|number| stat(Pid::from_raw(number)).ok().flatten()).collect())
}

/// Reads the facts of the given processes and of all their descendants, in no order. Costs what they are, not what the
/// machine runs; where the kernel keeps no lists of children (`CONFIG_PROC_CHILDREN`) it costs a look at everything.
///
/// A list may miss a child that moves while it is read: who must not miss one looks again.
pub(crate) fn below(roots: impl IntoIterator<Item = Pid>) -> io::Result<Vec<Stat>> {
    let mut open: Vec<Pid> = roots.into_iter().collect();
    if !keeps_lists_of_children() {
        return Ok(among(all()?, open));
    }
    let mut seen: HashSet<Pid> = open.iter().copied().collect();
    let mut found = Vec::new();
    while let Some(pid) = open.pop() {
        found.extend(stat(pid)?);
        for child in children(pid)? {
            if seen.insert(child) {
                open.push(child);
            }
        }
    }
    Ok(found)
}

/// Those of the processes that are among the roots or descend from them.
fn among(all: Vec<Stat>, roots: Vec<Pid>) -> Vec<Stat> {
    let mut below: HashSet<Pid> = roots.into_iter().collect();
    loop {
        let before = below.len();
        below.extend(
            all.iter().filter(|process| below.contains(&process.parent)).map(|process| process.pid).collect::<Vec<_>>(),
        );
        if below.len() == before {
            return all.into_iter().filter(|process| below.contains(&process.pid)).collect();
        }
    }
}

fn keeps_lists_of_children() -> bool {
    static KEEPS: OnceLock<bool> = OnceLock::new();
    *KEEPS.get_or_init(|| fs::exists("/proc/thread-self/children").unwrap_or(false))
}

/// The children of all threads of a process; none if it is gone.
fn children(pid: Pid) -> io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    let threads = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if is_gone(&error) => return Ok(children),
        Err(error) => return Err(error),
    };
    for thread in threads.flatten() {
        match proc::read_text(thread.path().join("children")) {
            Ok(list) => {
                children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// The name by which people know the process, for messages; `None` if it is gone.
pub(crate) fn command_name(pid: Pid) -> Option<String> {
    let name = proc::read(format!("/proc/{pid}/comm")).ok()?;
    Some(OsStr::from_bytes(name.trim_ascii_end()).to_string_lossy().chars().filter(|c| !c.is_control()).collect())
}

/// Process numbers as numbers.
pub(crate) mod pid_number {
    use nix::unistd::Pid;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(crate) fn serialize<S: Serializer>(pid: &Pid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(pid.as_raw())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pid, D::Error> {
        i32::deserialize(deserializer).map(Pid::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = b"42 (tmux: s) (x) R 1\n) S 7 40 39 0 -1 4194564 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let stat = Stat::parse(text).unwrap();
        let pid = Pid::from_raw;
        let expected = Stat {
            pid: pid(42),
            parent: pid(7),
            group: pid(40),
            session: pid(39),
            state: b'S',
            is_exiting: true,
            start_time: 987_654,
        };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b"1 (x"), None);
        assert_eq!(Stat::parse(b"1 (x) S 2"), None);
    }

    #[test]
    fn without_lists_of_children_they_are_found_among_all() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "sleep 1000 & wait"]).spawn().unwrap();
        let pid = crate::process::testing::pid_of(&child);
        let below_it = || {
            let mut found: Vec<Pid> = among(all().unwrap(), vec![pid]).iter().map(|process| process.pid).collect();
            found.sort_unstable();
            found
        };
        crate::process::testing::wait_for("it has a child", || below_it().len() == 2);
        let mut listed: Vec<Pid> = below([pid]).unwrap().iter().map(|process| process.pid).collect();
        listed.sort_unstable();
        assert_eq!(below_it(), listed);
        assert!(listed.contains(&pid) && !listed.contains(&Pid::this()), "{listed:?}");
        for pid in listed {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        child.wait().unwrap();
    }

    #[test]
    fn we_are_who_we_are() {
        let me = Identity::of(Pid::this()).unwrap().unwrap();
        assert_eq!(stat(Pid::this()).unwrap().unwrap().parent, Pid::parent());
        assert!(all().unwrap().iter().any(|stat| stat.identity() == me));
    }

    #[test]
    fn who_was_told_to_end_is_known_before_he_ends() {
        let status =
            "Name:\tSigPnd:\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000004001\nSigBlk:\t0000000000000002\n";
        let awaited: Vec<Signal> = Signal::iterator().filter(|signal| awaits(status, *signal)).collect();
        assert_eq!(awaited, [Signal::SIGHUP, Signal::SIGKILL, Signal::SIGTERM]);
        // One that is stopped suffers nothing but SIGKILL before it goes on.
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = crate::process::testing::pid_of(&child);
        let is_condemned = || is_condemned(pid, &[Signal::SIGTERM, Signal::SIGKILL]);
        assert!(!is_condemned());
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
        crate::process::testing::wait_for("it is stopped", || stat(pid).unwrap().unwrap().state == b'T');
        nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
        assert!(!is_condemned());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        assert!(is_condemned());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        assert!(is_condemned(), "killed, or dead");
        child.wait().unwrap();
        assert!(is_condemned(), "gone");
    }

    #[test]
    fn a_number_beyond_the_limit_is_nobody() {
        assert_eq!(stat(Pid::from_raw(i32::MAX)).unwrap(), None);
    }
}
