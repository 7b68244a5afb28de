//! Start records: a file for each start, in which the broker writes what it is about to start and the child, before it
//! executes its program, who it is. So a broker that is killed at any point between leaves nothing unknown.
//!
//! The broker locks the file, and the child inherits the lock with the descriptor until its exec. Who gets the lock
//! after the broker's death knows that no child of it is on its way to an exec any more, and what the file says is all
//! there is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::identity::Identity;
use super::spare::{Spare, create_new_from};

/// How long a child may take from its fork to its exec, and how often it is looked. Only one whose program is on a file
/// system that hangs takes longer than an instant.
const EXEC_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How the names of logs end that lie beside the records.
const ASIDE: &str = ".log";

/// The record of a start that is under way: its file, locked. Every process that has it keeps the lock.
#[derive(Debug)]
pub(crate) struct StartRecord(Arc<OwnedFd>);

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// What the broker was about to start, in the words it was given.
    pub(crate) intent: String,
    pub(crate) child: Child,
}

/// What the child said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    /// There is none: the fork never happened, or the child ended before it said anything.
    Never,
    /// It is, or was, this process.
    Is(Identity),
    /// It is on its way to its exec, and has been for too long.
    UnderWay,
}

impl StartRecord {
    /// Makes the record, with the intent as its first line.
    pub(crate) fn make(path: &Path, intent: &str, mut spare: Option<Spare>) -> io::Result<Self> {
        let mut made = create_new_from(&mut spare, path);
        if let (Err(error), Some(folder)) = (&made, path.parent())
            && error.kind() == io::ErrorKind::NotFound
        {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            made = create_new_from(&mut spare, path);
        }
        let (mut file, is_new) = match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (OpenOptions::new().append(true).open(path)?, false)
            }
            made => (made?, true),
        };
        // It ends with the last descriptor, the child's included; nobody unlocks it before.
        file.try_lock().map_err(io::Error::from)?;
        if !is_new {
            file.set_len(0)?;
        }
        if let Err(error) = file.write_all(format!("{intent}\n").as_bytes()) {
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Ok(Self(Arc::new(file.into())))
    }

    /// What the child writes to.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }
}

/// Reads a record, once no child is on its way any more.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn read(path: &Path) -> io::Result<Recorded> {
    let file = File::open(path)?;
    let deadline = Instant::now() + EXEC_MAX;
    let is_settled = loop {
        match file.try_lock() {
            Ok(()) => break true,
            Err(fs::TryLockError::Error(error)) => return Err(error),
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => break false,
            Err(fs::TryLockError::WouldBlock) => thread::sleep(LOOK_EVERY),
        }
    };
    let text = io::read_to_string(&file)?;
    let Some((intent, said)) = text.split_once('\n') else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the start record ends in its first line"));
    };
    let child = match parse(said) {
        Some(identity) => Child::Is(identity),
        None if is_settled => Child::Never,
        None => Child::UnderWay,
    };
    Ok(Recorded { intent: intent.to_owned(), child })
}

/// `PID START`, as the child writes it. A program that was being written to is tried again by another child: the last
/// line is of the one that counts.
fn parse(said: &str) -> Option<Identity> {
    let (pid, start_time) = said.strip_suffix('\n')?.lines().last()?.split_once(' ')?;
    Some(Identity { pid: Pid::from_raw(pid.parse().ok()?), start_time: start_time.parse().ok()? })
}

/// Where the log of a recorded start lies until it is in its place. Names of records end with a number.
pub(crate) fn aside(record: &Path) -> PathBuf {
    let mut path = record.as_os_str().to_owned();
    path.push(ASIDE);
    path.into()
}

/// The name of the start whose log a file of the folder is; none of a record.
pub(crate) fn start_of(aside: &Path) -> Option<&str> {
    aside.file_name()?.to_str()?.strip_suffix(ASIDE)
}

/// What a folder of records holds, logs that lie there included; nothing if there is no folder.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_waits_for_the_child_that_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records/x.1");
        let record = StartRecord::make(&path, "{}", None).unwrap();
        let child = record.descriptor();
        drop(record);
        let reader = thread::spawn(move || read(&path).unwrap());
        // A record is written in one piece, whenever it is; the lock goes with the descriptor.
        nix::unistd::write(&child, b"42 4711\n").unwrap();
        drop(child);
        let identity = Identity { pid: Pid::from_raw(42), start_time: 4711 };
        assert_eq!(reader.join().unwrap(), Recorded { intent: "{}".to_owned(), child: Child::Is(identity) });
    }

    #[test]
    fn a_record_without_a_child_says_that_there_was_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.1");
        drop(StartRecord::make(&path, "{}", None).unwrap());
        assert_eq!(read(&path).unwrap(), Recorded { intent: "{}".to_owned(), child: Child::Never });
        assert_eq!(list(folder.path()).unwrap(), [path]);
        assert_eq!(list(Path::new("/no/such/folder")).unwrap(), [] as [PathBuf; 0]);
    }

    #[test]
    fn half_a_line_is_no_child() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("42"), None);
        assert_eq!(parse("42 47"), None);
        assert_eq!(parse("x 47\n"), None);
        assert_eq!(parse("1 2\n42 47\n").map(|child| child.pid.as_raw()), Some(42), "the last child");
    }
}
