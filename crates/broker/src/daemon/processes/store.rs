//! Where the store of durable processes is, and how it is opened: made where there is none, and put together again from
//! the processes' folders where it was damaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::Owner;
use super::records::Records;
use super::spec::Registration;
use crate::core::lease::Me;
use crate::daemon::places::make_private;
use crate::reaper::folder::Folder;
use crate::store::{StoreError, set_aside};

/// The place of a store, and who opens it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The folder of the store.
    pub(super) store: PathBuf,
    pub(super) me: Me,
    pub(super) owner: Owner,
    pub(super) lease: Duration,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("cannot make the folder `{}`", .path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot set the damaged store `{}` aside", .path.display())]
    Aside {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot put the store together again from the folders of its processes")]
    Restore(#[source] rusqlite::Error),
}

/// The database of a store.
pub(super) fn database(store: &Path) -> PathBuf {
    store.join("processes.db")
}

impl Place {
    /// The parent of the processes' folders. An id cannot be mistaken for a file of the store there.
    pub(super) fn folders(&self) -> PathBuf {
        self.store.join("runs")
    }

    /// Opens the store.
    pub(super) fn open(&self) -> Result<Records, OpenError> {
        let folders = self.folders();
        make_private(&folders, None).map_err(|source| OpenError::Folder { path: folders, source })?;
        let path = database(&self.store);
        let open = || Records::open(self);
        match open() {
            Err(StoreError::Damaged { source, .. }) => {
                let aside = set_aside(&path).map_err(|source| OpenError::Aside { path: path.clone(), source })?;
                let mut records = open()?;
                let restored = self.restore(&mut records).map_err(OpenError::Restore)?;
                tracing::error!(
                    error = %source, aside = %aside.display(), restored,
                    "the store of durable processes was damaged; it is put together again from their folders"
                );
                Ok(records)
            }
            result => Ok(result?),
        }
    }

    /// Puts on record again what the folders tell of; how many processes that is. One whose folder is not understood is
    /// left where it is.
    fn restore(&self, records: &mut Records) -> rusqlite::Result<usize> {
        let entries = fs::read_dir(self.folders()).into_iter().flatten().flatten();
        let mut found: Vec<(Registration, i64, Folder)> = Vec::new();
        for folder in entries.map(|entry| Folder::new(&entry.path())) {
            let Ok(spec) = folder.spec() else { continue };
            match serde_json::from_str::<Registration>(&spec.record) {
                Ok(registration) if folder.path().ends_with(registration.id.as_str()) => {
                    found.push((registration, spec.fencing_token, folder));
                }
                _ => tracing::warn!(folder = %folder.path().display(), "this folder tells of no process"),
            }
        }
        found.sort_by(|(one, ..), (other, ..)| one.registered_at.cmp(&other.registered_at));
        for (registration, token, folder) in &found {
            let begun = folder.attempt().ok().flatten();
            let token = begun.as_ref().map_or(*token, |begun| begun.fencing_token.max(*token));
            let begun = begun.as_ref().map(|begun| (begun.attempt, begun.started_at.as_str()));
            records.restore(registration, token, begun, folder.cancel_reason().as_deref())?;
        }
        Ok(found.len())
    }
}
