//! The files that the next start will need, made while nobody waits for them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::process::spare::{self, Spare};

/// What the files are for. They are empty, and nobody misses one.
const RECORD: &str = "record";
const LOG: &str = "log";

/// One of each, at most. Shared by the threads that start something.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Spares(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) record: Option<Spare>,
    pub(super) log: Option<Spare>,
}

impl Spares {
    /// None yet, and a folder for them that this broker has locked: what lies there was left by one that was killed.
    pub(in crate::daemon) fn new(folder: &Path) -> Self {
        spare::sweep(folder);
        Self(Arc::new(Shared { folder: folder.to_owned(), files: Mutex::default() }))
    }

    /// What there is. It is not waited for: who is just making some takes longer than whoever makes his own.
    pub(super) fn take(&self) -> Files {
        self.0.files.try_lock().map(|mut files| std::mem::take(&mut *files)).unwrap_or_default()
    }

    /// Makes what is missing; what was taken may still bear the name that it was made with. Where that fails the next start
    /// makes its own, and says why it cannot.
    pub(in crate::daemon) fn make(&self) {
        let mut files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Files { record, log } = &mut *files;
        for (file, purpose) in [(record, RECORD), (log, LOG)] {
            if file.is_none() {
                *file = Spare::make(&self.0.folder, purpose).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    #[track_caller]
    fn assert_is_at(file: &File, path: &Path) {
        let (open, named) = (file.metadata().unwrap(), fs::metadata(path).unwrap());
        assert_eq!((open.nlink(), open.ino()), (1, named.ino()), "{}", path.display());
    }

    #[test]
    fn what_was_taken_is_named_after_the_next_was_made() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("next-log"), "left by another").unwrap();
        let spares = Spares::new(folder.path());
        spares.make();
        let first = spares.take();
        spares.make();
        let second = spares.take();
        for (number, Files { record, log }) in [first, second].into_iter().enumerate() {
            for (spare, name) in [(record, "record"), (log, "log")] {
                let path = folder.path().join(format!("{name}{number}"));
                assert_is_at(&spare.unwrap().name(&path).unwrap(), &path);
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left");
    }

    #[test]
    fn many_at_once_get_a_file_each() {
        let folder = tempfile::tempdir().unwrap();
        let spares = Spares::new(folder.path());
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (spares, folder) = (spares.clone(), folder.path());
                scope.spawn(move || {
                    for number in 0..100 {
                        let mut log = spares.take().log;
                        // Somebody else makes the next one meanwhile.
                        spares.make();
                        let path = folder.join(format!("{thread}.{number}"));
                        assert_is_at(&spare::create_new_from(&mut log, &path).unwrap(), &path);
                    }
                });
            }
        });
        drop(spares);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 800, "nothing is left");
    }
}
