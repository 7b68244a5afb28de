//! Which socket paths are waited for, and by whom.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::watched::Watched;
use crate::core::registry::BackendId;
use crate::net::appearance::Appearances;

/// The starts that wait for a path to appear.
pub(super) struct Watches {
    appearances: Appearances,
    waiting: HashMap<PathBuf, (BackendId, u64)>,
    /// The same descriptor, as the runtime waits for it.
    readiness: Rc<Watched>,
}

impl Watches {
    pub(super) fn new() -> std::io::Result<Self> {
        let appearances = Appearances::new()?;
        let readiness = Rc::new(Watched::duplicate_of(&appearances)?);
        Ok(Self { appearances, waiting: HashMap::new(), readiness })
    }

    /// What becomes readable when something appears.
    pub(super) fn readiness(&self) -> Rc<Watched> {
        Rc::clone(&self.readiness)
    }

    /// Waits for a path on behalf of one start. Where the folder cannot be watched the schedule is the pace.
    pub(super) fn add(&mut self, path: &Path, id: BackendId, generation: u64) {
        self.remove(path);
        let Some(folder) = path.parent() else { return };
        match self.appearances.watch(folder) {
            Ok(()) => {
                self.waiting.insert(path.to_owned(), (id, generation));
            }
            Err(error) => tracing::debug!(%error, folder = %folder.display(), "cannot watch a folder"),
        }
    }

    pub(super) fn remove(&mut self, path: &Path) {
        if self.waiting.remove(path).is_some()
            && let Some(folder) = path.parent()
        {
            self.appearances.unwatch(folder);
        }
    }

    /// The starts whose path has appeared.
    pub(super) fn drain(&mut self) -> Vec<(BackendId, u64)> {
        let appeared = match self.appearances.drain() {
            Ok(appeared) => appeared,
            Err(error) => {
                tracing::warn!(%error, "cannot read which sockets appeared");
                return Vec::new();
            }
        };
        for folder in &appeared.lost {
            tracing::debug!(folder = %folder.display(), "a watched folder is gone; the schedule is the pace there");
        }
        if appeared.overflowed {
            return self.waiting.values().copied().collect();
        }
        appeared.paths.iter().filter_map(|path| self.waiting.get(path)).copied().collect()
    }
}
