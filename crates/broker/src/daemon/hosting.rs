//! A generation that runs is kept, and watched: its process, its notify socket, and the place where it is to serve.

use std::path::Path;
use std::sync::Arc;

use nix::unistd::Pid;

use super::clock::now;
use super::driver::Driver;
use super::ending::Search;
use super::hosted::{Launched, Running};
use super::tasks;
use crate::core::registry::BackendId;
use crate::process::group::Tree;
use crate::services::{self, Definition, Probe};

impl Driver {
    /// Keeps a generation that runs, and begins to watch it.
    pub(super) fn host(&mut self, id: BackendId, launched: Launched, is_adopted: bool) {
        let Launched { start, main, endpoint, facts, stream, listener, notify, probe, dies_with_broker } = launched;
        let generation = start.generation;
        // Its log is to be kept short.
        self.logs.trimming.busy(now());
        let (over, is_over) = tokio::sync::watch::channel(());
        let mut running_tasks = vec![tasks::watch_main(self.me.clone(), id, generation, Arc::clone(&main.pidfd))];
        let is_heard = notify.as_ref().is_some_and(|ear| ear.is_whole);
        if let Some(notify) = notify {
            running_tasks.push(tasks::watch_notify(self.me.clone(), id, generation, notify));
        }
        drop(is_over);
        let Some(hosted) = self.hosted.get_mut(&id) else { return };
        hosted.listener = listener;
        hosted.log.clone_from(&start.log);
        hosted.running = Some(Box::new(Running {
            generation,
            definition: Arc::clone(&start.definition),
            version: start.key.version.to_string().into(),
            known: start.process.iter().flat_map(|process| &process.known).map(|&pid| Pid::from_raw(pid)).collect(),
            start,
            is_heard,
            is_adopted,
            dies_with_broker,
            endpoint,
            main,
            facts,
            survivors: Vec::new(),
            search: Search::default(),
            tree: Tree::default(),
            stream,
            probe: probe.map(Arc::new),
            over,
            tasks: running_tasks,
        }));
    }

    /// Waits for the appearance of a socket file, where that tells of readiness.
    pub(super) fn watch_for(&mut self, id: BackendId, generation: u64, definition: &Definition, socket: &Path) {
        let is_awaited = matches!(definition.endpoint, services::Endpoint::Unix { .. })
            && matches!(definition.readiness.probe, Probe::Connect);
        if is_awaited && let Some(hosted) = self.hosted.get_mut(&id) {
            self.watches.add(socket, id, generation);
            hosted.watched = Some(socket.to_owned());
        }
    }

    /// Whether a socket file that is waited for is there already: a daemon may be quicker than who begins to watch for it.
    pub(super) fn has_appeared(&self, id: BackendId) -> bool {
        let watched = self.hosted.get(&id).and_then(|hosted| hosted.watched.as_ref());
        watched.is_some_and(|path| path.symlink_metadata().is_ok())
    }

    pub(super) fn unwatch(&mut self, id: BackendId) {
        if let Some(path) = self.hosted.get_mut(&id).and_then(|hosted| hosted.watched.take()) {
            self.watches.remove(&path);
        }
    }
}
