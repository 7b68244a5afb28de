//! The files that the next start will need, made while nobody waits for them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::process::spare::{self, Spare};

/// What the files are for. They are empty, and nobody misses one.
const RECORD: &str = "record";
const LOG: &str = "log";

/// How many there are of each: those of starts that follow each other before the first one's are made good.
const KEPT: usize = 3;

/// So many of each, at most. Shared by the threads that start something.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Spares(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    records: Vec<Spare>,
    logs: Vec<Spare>,
}

/// What one start needs, as far as there is one.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) record: Option<Spare>,
    pub(super) log: Option<Spare>,
}

impl Spares {
    /// None yet, and a folder for them that this broker has locked: what lies there was left by one that was killed.
    pub(in crate::daemon) fn new(folder: &Path) -> Self {
        spare::sweep(folder);
        Self(Arc::new(Shared { folder: folder.to_owned(), kept: Mutex::default() }))
    }

    /// What there is. It is not waited for: who is just making some takes longer than whoever makes his own.
    pub(super) fn take(&self) -> Files {
        let Ok(mut kept) = self.0.kept.try_lock() else { return Files::default() };
        Files { record: kept.records.pop(), log: kept.logs.pop() }
    }

    /// Makes what is missing; what was taken may still bear the name that it was made with. Where that fails the next start
    /// makes its own, and says why it cannot.
    pub(in crate::daemon) fn make(&self) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { records, logs } = &mut *kept;
        for (files, purpose) in [(records, RECORD), (logs, LOG)] {
            while files.len() < KEPT
                && let Ok(spare) = Spare::make(&self.0.folder, purpose)
            {
                files.push(spare);
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
        let mut taken: Vec<Files> = (0..KEPT).map(|_| spares.take()).collect();
        assert!(matches!(spares.take(), Files { record: None, log: None }));
        spares.make();
        taken.push(spares.take());
        drop(spares);
        let count = taken.len();
        for (number, Files { record, log }) in taken.into_iter().enumerate() {
            for (spare, name) in [(record, "record"), (log, "log")] {
                let path = folder.path().join(format!("{name}{number}"));
                assert_is_at(&spare.unwrap().name(&path).unwrap(), &path);
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2 * count, "nothing is left");
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
