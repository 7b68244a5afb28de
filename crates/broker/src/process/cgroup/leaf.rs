//! One cgroup of the broker's own: made for one start, known again after the broker's death, ended and removed.
//!
//! That a process is in it is proof: nobody gets there but by the broker, and whoever is born there stays.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::super::proc;
use super::end::{end, kill};
use super::hierarchy::{self, Hierarchy};
use super::unit;

/// How often the removal of a cgroup is tried whose last process is only just gone, and how long after the last time.
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(1);

/// A cgroup that was made for one start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf {
    folder: PathBuf,
    /// What `/proc/PID/cgroup` calls it.
    path: PathBuf,
    /// Of the folder: a later cgroup of that name has another.
    inode: u64,
    /// Of the folder above.
    parent: u64,
}

/// The cgroup that one is made below.
#[derive(Debug, Clone, Copy)]
pub(super) struct Above<'a> {
    pub(super) folder: &'a Path,
    pub(super) path: &'a Path,
    pub(super) inode: u64,
}

impl Leaf {
    /// Makes one.
    pub(super) fn make(above: Above<'_>, name: &str) -> io::Result<Self> {
        let folder = above.folder.join(name);
        if let Err(error) = DirBuilder::new().mode(0o755).create(&folder) {
            // What a former start of that name left, of which nobody knows any more.
            if error.kind() != io::ErrorKind::AlreadyExists || remove(&folder).is_err() {
                return Err(error);
            }
            DirBuilder::new().mode(0o755).create(&folder)?;
        }
        Self::existing(above, name)
    }

    /// One that there is.
    pub(super) fn existing(above: Above<'_>, name: &str) -> io::Result<Self> {
        let folder = above.folder.join(name);
        Ok(Self { inode: inode(&folder)?, parent: above.inode, path: above.path.join(name), folder })
    }

    /// The calling process's own, if it has that name.
    pub(crate) fn own(name: &str) -> Option<Self> {
        let hierarchy = Hierarchy::read().ok()?;
        let own = hierarchy.own().ok().filter(|own| own.ends_with(name))?;
        let folder = own.parent()?;
        let above = Above { folder, path: &hierarchy.name_of(folder)?, inode: inode(folder).ok()? };
        Self::existing(above, name).ok()
    }

    /// Makes one below it, for a part of what belongs to it.
    pub(crate) fn make_below(&self, name: &str) -> io::Result<Self> {
        Self::make(Above { folder: &self.folder, path: &self.path, inode: self.inode }, name)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `/proc/PID/cgroup` calls it, and with it the journal.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The unit of systemd's that it is below, if it is below one.
    pub(crate) fn unit(&self) -> Option<&str> {
        self.path.ancestors().skip(1).filter_map(name).find(|name| is_unit(name))
    }

    /// Whether the unit that it is below is being taken down.
    fn is_taken_down(&self) -> bool {
        let unit = self.folder.ancestors().skip(1).find(|above| name(above).is_some_and(is_unit));
        unit.and_then(unit::is_closing).unwrap_or_default()
    }

    /// Opens it, for what is to begin in it.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        Ok(OpenOptions::new().read(true).custom_flags(flags).open(&self.folder)?.into())
    }

    /// Whether it is still there, and not another one in its place.
    pub(crate) fn is_there(&self) -> bool {
        inode(&self.folder).is_ok_and(|inode| inode == self.inode)
    }

    /// Whether the cgroup that it was made in is there no more: whoever kept that has ended all there was below it.
    pub(crate) fn has_lost_its_place(&self) -> bool {
        match self.folder.parent().map(inode) {
            Some(Ok(parent)) => parent != self.parent,
            Some(Err(error)) => error.kind() == io::ErrorKind::NotFound,
            None => true,
        }
    }

    /// Whether a process is in it or below. One that has ended is nowhere.
    pub(crate) fn holds(&self, pid: Pid) -> bool {
        hierarchy::path_of(pid).is_some_and(|path| path.starts_with(&self.path)) && self.is_there()
    }

    /// Who lives in it and below, in no order; processes of other pid namespaces, which have no number here, left out.
    pub(crate) fn members(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        if self.is_there() {
            gather(&self.folder, &mut found);
        }
        found
    }

    /// Kills all that is in it and below, on kernels that do it at one stroke; whoever wants to know of its end asks for that.
    pub(crate) fn kill(&self) {
        if self.is_there() {
            let _ = kill(self);
        }
    }

    /// Kills all that is in it and below, and waits until it is gone; who still runs, though killed.
    pub(crate) fn end(&self, patience: Duration) -> Vec<Pid> {
        if self.is_there() { end(self, patience) } else { Vec::new() }
    }

    /// Removes it. Nothing may live in it any more.
    ///
    /// Of a unit that is taken down it is left to the service manager, which removes all there is. systemd tells all
    /// processes cgroup by cgroup; if one vanishes under its eyes it takes none for left, and kills instead of waiting.
    /// Whose end it brought about that way sees here that the unit goes.
    pub(crate) fn remove(&self) {
        if !self.is_there() || self.is_taken_down() {
            return;
        }
        for _ in 1..REMOVE_TRIES {
            match remove(&self.folder) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(REMOVE_PAUSE),
                _ => return,
            }
        }
        if let Err(error) = remove(&self.folder) {
            // It is empty, and costs nothing but its name; the next broker tries again.
            tracing::debug!(%error, cgroup = %self.folder.display(), "cannot remove a cgroup yet");
        }
    }
}

fn name(folder: &Path) -> Option<&str> {
    folder.file_name()?.to_str()
}

/// Whether a cgroup of that name is a unit's that processes live in.
fn is_unit(name: &str) -> bool {
    [".service", ".scope"].iter().any(|kind| name.ends_with(kind))
}

/// The number by which the kernel tells a cgroup from all others of this boot.
pub(super) fn inode(folder: &Path) -> io::Result<u64> {
    fs::metadata(folder).map(|metadata| metadata.ino())
}

/// Removes a cgroup, if nothing lives in it, with those below it.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    for below in below(folder) {
        remove(&below)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The cgroups right below one.
pub(super) fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn gather(folder: &Path, found: &mut Vec<Pid>) {
    let text = proc::read_text(folder.join("cgroup.procs")).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.parse().ok()).filter(|number| *number > 0);
    found.extend(numbers.map(Pid::from_raw));
    below(folder).iter().for_each(|below| gather(below, found));
}

#[cfg(test)]
mod tests {
    use super::super::unit::tests::kept_by;
    use super::*;

    #[test]
    fn the_unit_is_the_nearest_one_above() {
        let unit = |path: &str| {
            let leaf = Leaf { folder: path.into(), path: path.into(), inode: 1, parent: 1 };
            leaf.unit().map(str::to_owned)
        };
        let backends = "/system.slice/brokerd-backends.service/x.service@1.0.0~default.1";
        assert_eq!(unit(backends).as_deref(), Some("brokerd-backends.service"));
        assert_eq!(unit("/user.slice/session-2.scope/broker-1f/x@1.0.0~a.service").as_deref(), Some("session-2.scope"));
        assert_eq!(unit("/x@1.0.0~a.service"), None);
    }

    #[test]
    fn what_is_taken_down_is_left_to_whoever_takes_it_down() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("brokerd-backends.service");
        kept_by(&unit, std::process::id());
        let above = Above { folder: &unit, path: Path::new("/brokerd-backends.service"), inode: inode(&unit).unwrap() };
        let attempt = Leaf::make(above, "run~job.1").unwrap();
        let command = attempt.make_below("command").unwrap();
        kept_by(&unit, i32::MAX.unsigned_abs());
        [&command, &attempt].into_iter().for_each(Leaf::remove);
        assert!(command.is_there() && attempt.is_there());
        kept_by(&unit, std::process::id());
        [&command, &attempt].into_iter().for_each(Leaf::remove);
        assert!(!command.is_there() && !attempt.is_there());
    }
}
