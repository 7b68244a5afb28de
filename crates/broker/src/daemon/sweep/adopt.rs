//! A backend that lives is made this broker's own.

use std::sync::Arc;

use broker_proto::State;

use super::judge::{Found, log_of};
use crate::core::backend::Event;
use crate::core::registry::BackendId;
use crate::daemon::clock::now;
use crate::daemon::driver::Driver;
use crate::daemon::hosted::{Launched, Main};
use crate::daemon::inherited::Inherited;
use crate::daemon::ledger::{Process, Start};
use crate::daemon::work::{Commands, Surroundings};
use crate::process::spawn::Command;

impl Driver {
    /// Hosts a backend that an earlier broker started, and tells its machine.
    pub(super) fn adopt(&mut self, id: BackendId, found: Found, start: Option<Start>, inherited: &mut Inherited) {
        let Some(mut start) = start else { return };
        let Some(endpoint) = start.endpoint.clone() else { return };
        let Found { main, group, pidfd, facts, known } = found;
        let generation = start.generation;
        start.cgroup = facts.cgroup.clone();
        let known = known.iter().map(|pid| pid.as_raw()).collect();
        let facts = Arc::new(facts);
        start.process = Some(Process { main, group, facts: Arc::clone(&facts), known });
        let notify = start.notify.as_deref().and_then(|path| self.ear_again(path, &start.key, inherited));
        let probe = self.probe_command(&start);
        self.mains.insert(main.pid);
        let launched = Launched {
            endpoint: endpoint.clone(),
            main: Main { pid: main.pid, pidfd: Arc::new(pidfd), group },
            facts,
            stream: None,
            listener: self.hosted.get_mut(&id).and_then(|hosted| hosted.listener.take()),
            notify,
            probe,
            dies_with_broker: false,
            start: Arc::new(start),
        };
        let definition = Arc::clone(&launched.start.definition);
        self.host(id, launched, true);
        self.remember_main(id);
        let is_starting = self.registry.get(id).is_some_and(|(_, b)| b.view(now()).state == State::Starting);
        if let (true, broker_proto::Endpoint::Unix { path }) = (is_starting, &endpoint) {
            self.watch_for(id, generation, &definition, path.as_ref());
        }
        self.dispatch(id, Event::Adopted { generation });
    }

    /// The command that probes a backend, put together as at its start.
    fn probe_command(&self, start: &Start) -> Option<Command> {
        let data = self.places.data(&start.key);
        let surroundings = Surroundings {
            definition: &start.definition,
            instance: &start.key.instance,
            endpoint: start.endpoint.as_ref()?,
            data: &data,
            notify: start.notify.as_deref(),
            nofile_soft: self.nofile_soft,
        };
        if !surroundings.has_probe() {
            return None;
        }
        let output = match log_of(start) {
            Ok(log) => Arc::new(log),
            Err(error) => {
                tracing::warn!(%error, backend = %start.key, "its log cannot be opened for its probe");
                return None;
            }
        };
        match Commands::find(&surroundings) {
            Ok(commands) => commands.with_output(&surroundings, &output).1,
            Err(refusal) => {
                tracing::warn!(backend = %start.key, "its probe cannot be run: {}", refusal.reason);
                None
            }
        }
    }
}
