//! The appearance of socket files: one inotify descriptor for all endpoints of the broker.
//!
//! A file appears at `bind`, and connecting works from `listen` on, so an appearance is a reason to probe and no proof.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Watches folders for new names.
#[derive(Debug)]
pub(crate) struct Appearances {
    inotify: Inotify,
    folders: HashMap<PathBuf, Watch>,
}

#[derive(Debug)]
struct Watch {
    descriptor: WatchDescriptor,
    watchers: usize,
}

/// What has happened since the last [`Appearances::drain`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Appeared {
    /// Paths that were created or moved in, under the names by which their folders are watched.
    pub(crate) paths: Vec<PathBuf>,
    /// Folders that are no longer watched because they are gone.
    pub(crate) lost: Vec<PathBuf>,
    /// Some appearances were lost: treat every path as appeared.
    pub(crate) overflowed: bool,
}

impl Appearances {
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, folders: HashMap::new() })
    }

    /// Watches the folder once more; it must exist. What is in it already is not reported, so look after this call.
    pub(crate) fn watch(&mut self, folder: &Path) -> io::Result<()> {
        if let Some(watch) = self.folders.get_mut(folder) {
            watch.watchers += 1;
            return Ok(());
        }
        let wanted = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self.inotify.add_watch(folder, wanted)?;
        self.folders.insert(folder.to_owned(), Watch { descriptor, watchers: 1 });
        Ok(())
    }

    /// Takes back one [`Appearances::watch`]; of a folder that is not watched it is no error.
    pub(crate) fn unwatch(&mut self, folder: &Path) {
        let Some(watch) = self.folders.get_mut(folder) else { return };
        watch.watchers -= 1;
        if watch.watchers > 0 {
            return;
        }
        let descriptor = watch.descriptor;
        self.folders.remove(folder);
        // The same folder by another name has the same descriptor.
        if !self.folders.values().any(|other| other.descriptor == descriptor) {
            // It fails only if the folder is gone, and its watch with it.
            let _ = self.inotify.rm_watch(descriptor);
        }
    }

    /// Takes what has appeared; never blocks.
    pub(crate) fn drain(&mut self) -> io::Result<Appeared> {
        let mut appeared = Appeared::default();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(appeared),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for event in events {
                appeared.overflowed |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let watched = |watch: &Watch| watch.descriptor == event.wd;
                if let Some(name) = event.name {
                    let folders = self.folders.iter().filter(|(_, watch)| watched(watch));
                    appeared.paths.extend(folders.map(|(folder, _)| folder.join(&name)));
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    let gone: Vec<_> = self.folders.extract_if(|_, watch| watched(watch)).collect();
                    appeared.lost.extend(gone.into_iter().map(|(folder, _)| folder));
                }
            }
        }
    }
}

impl AsFd for Appearances {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl AsRawFd for Appearances {
    fn as_raw_fd(&self) -> i32 {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn appeared(paths: &[PathBuf]) -> Appeared {
        Appeared { paths: paths.to_vec(), ..Appeared::default() }
    }

    #[test]
    fn a_socket_appears_at_bind_and_a_file_when_it_is_moved_in() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut appearances = Appearances::new().unwrap();
        fs::write(at("before"), "").unwrap();
        appearances.watch(folder.path()).unwrap();
        assert_eq!(appearances.drain().unwrap(), Appeared::default());
        let _socket = std::os::unix::net::UnixDatagram::bind(at("socket")).unwrap();
        fs::rename(at("before"), at("after")).unwrap();
        fs::write(at("after"), "changed").unwrap();
        assert_eq!(appearances.drain().unwrap(), appeared(&[at("socket"), at("after")]));
        assert!(appearances.watch(&at("after")).is_err(), "no folder");
        assert!(appearances.watch(&at("none")).is_err());
    }

    #[test]
    fn a_folder_is_watched_until_its_last_watcher_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let link = other.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        let mut appearances = Appearances::new().unwrap();
        for path in [folder.path(), folder.path(), &link] {
            appearances.watch(path).unwrap();
        }
        fs::write(folder.path().join("one"), "").unwrap();
        let mut both = appearances.drain().unwrap().paths;
        both.sort();
        let mut expected = vec![folder.path().join("one"), link.join("one")];
        expected.sort();
        assert_eq!(both, expected);
        appearances.unwatch(folder.path());
        appearances.unwatch(&link);
        fs::write(folder.path().join("two"), "").unwrap();
        assert_eq!(appearances.drain().unwrap(), appeared(&[folder.path().join("two")]));
        appearances.unwatch(folder.path());
        appearances.unwatch(folder.path());
        fs::write(folder.path().join("three"), "").unwrap();
        assert_eq!(appearances.drain().unwrap(), Appeared::default());
    }

    #[test]
    fn a_folder_that_is_removed_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let mut appearances = Appearances::new().unwrap();
        appearances.watch(&inner).unwrap();
        fs::remove_dir(&inner).unwrap();
        assert_eq!(appearances.drain().unwrap(), Appeared { lost: vec![inner.clone()], ..Appeared::default() });
        fs::create_dir(&inner).unwrap();
        appearances.watch(&inner).unwrap();
        fs::write(inner.join("one"), "").unwrap();
        assert_eq!(appearances.drain().unwrap(), appeared(&[inner.join("one")]));
    }

    #[test]
    fn an_overflow_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let mut appearances = Appearances::new().unwrap();
        appearances.watch(folder.path()).unwrap();
        // The same event twice in a row is queued once; so two names take turns.
        let names = ["a", "b"].map(|name| folder.path().join(name));
        for name in names.iter().cycle().take(limit + 2) {
            fs::write(name, "").unwrap();
            fs::remove_file(name).unwrap();
        }
        assert!(appearances.drain().unwrap().overflowed);
    }
}
