//! The main processes of backends, known to the threads that end others.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;

/// A set of pids that is shared with the worker threads.
#[derive(Debug, Clone, Default)]
pub(super) struct Mains(Arc<Mutex<HashSet<Pid>>>);

impl Mains {
    pub(super) fn insert(&self, pid: Pid) {
        self.lock().insert(pid);
    }

    pub(super) fn remove(&self, pid: Pid) {
        self.lock().remove(&pid);
    }

    pub(super) fn contains(&self, pid: Pid) -> bool {
        self.lock().contains(&pid)
    }

    /// The set is whole between any two calls, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, HashSet<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
