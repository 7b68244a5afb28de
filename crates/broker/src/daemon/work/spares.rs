//! The files that the next start will need, made while nobody waits for them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::process::spare::Spare;

/// What the files are called until they are needed. They are empty, and nobody misses one.
const RECORD: &str = "next-record";
const LOG: &str = "next-log";

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
    /// None yet, and a folder for them.
    pub(in crate::daemon) fn new(folder: &Path) -> Self {
        Self(Arc::new(Shared { folder: folder.to_owned(), files: Mutex::default() }))
    }

    /// What there is. It is not waited for: who is just making some takes longer than whoever makes his own.
    pub(super) fn take(&self) -> Files {
        self.0.files.try_lock().map(|mut files| std::mem::take(&mut *files)).unwrap_or_default()
    }

    /// Makes what is missing. Where that fails the next start makes its own, and says why it cannot.
    pub(in crate::daemon) fn make(&self) {
        let mut files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Files { record, log } = &mut *files;
        for (file, name) in [(record, RECORD), (log, LOG)] {
            if file.is_none() {
                *file = Spare::make(self.0.folder.join(name)).ok();
            }
        }
    }
}
