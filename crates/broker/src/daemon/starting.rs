//! A generation is begun: its launch is given to a worker thread, and what comes of it taken.

use std::sync::Arc;

use broker_proto::{Code, Endpoint, Refusal};

use super::clock::now;
use super::driver::Driver;
use super::hosted::Launched;
use super::ledger::Start;
use super::places::name_of;
use super::telling;
use super::work::{self, Order, Report, Rest};
use crate::core::backend::{Event, RETRY_HINT, Trace};
use crate::core::millis_up;
use crate::core::registry::BackendId;
use crate::services;

impl Driver {
    pub(super) fn start(&mut self, id: BackendId, generation: u64) {
        let Some((key, _)) = self.registry.get(id) else { return };
        let key = key.clone();
        let Some(hosted) = self.hosted.get_mut(&id) else { return };
        hosted.exit = None;
        let definition = Arc::clone(&hosted.definition);
        let socket = match &definition.endpoint {
            services::Endpoint::Unix { path: Some(path) } => path.clone(),
            services::Endpoint::Unix { path: None } | services::Endpoint::Tcp { .. } => self.places.socket(&key),
        };
        hosted.drop_unfit_listener(&definition);
        let listener = hosted.listener.clone();
        let start = Start {
            key: key.clone(),
            generation,
            began: now(),
            here: self.here.clone(),
            definition: Arc::clone(&definition),
            endpoint: match definition.endpoint {
                services::Endpoint::Unix { .. } => Some(Endpoint::Unix { path: socket.to_string_lossy().into_owned() }),
                services::Endpoint::Tcp { .. } => None,
            },
            log: None,
            notify: None,
            record: None,
            cgroup: None,
            unenforced: Vec::new(),
            process: None,
        };
        let order = Order {
            socket: socket.clone(),
            notify: self.places.notify(&key, generation),
            data: self.places.data(&key),
            logs: self.places.logs(&key),
            listener,
            nofile_soft: self.nofile_soft,
            definition: Arc::clone(&definition),
            start,
            record: self.places.start(&key, generation),
            journal: self.journal.clone(),
            cgroups: self.cgroups.clone(),
            fd_store: self.fd_store.clone(),
            spares: self.spares.clone(),
            listener_name: name_of(&self.places.socket(&key)),
            key: key.clone(),
        };
        self.launching += 1;
        let mains = self.mains.clone();
        let job = move || {
            let (result, rest) = match work::launch(&order, &mains) {
                Ok((launched, rest)) => (Ok(launched), Some(rest)),
                Err(refusal) => (Err(refusal), None),
            };
            (Report::Launched { id, generation, result }, rest)
        };
        let faulty =
            move || Report::Launched { id, generation, result: Err(Box::new(telling::fault("the start failed"))) };
        let began = self.work_and_tidy(job, faulty, |rest| rest.into_iter().for_each(Rest::carry_out));
        // Only now, for the worker may be waiting for this processor. What appears before this is seen once the start is told.
        self.watch_for(id, generation, &definition, &socket);
        tracing::debug!(backend = %key, generation, "starting");
        if let Err(error) = began {
            let reason = format!("no thread to start it from: {error}");
            let refusal = Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT));
            self.launching -= 1;
            self.follow_up(id, Event::StartFailed { generation, refusal });
        }
    }

    /// Takes what a launch made, and begins to watch it.
    pub(super) fn launched(&mut self, id: BackendId, generation: u64, result: Result<Box<Launched>, Box<Refusal>>) {
        self.launching -= 1;
        let Some((key, _)) = self.registry.get(id) else { return };
        if !self.hosted.contains_key(&id) {
            return;
        }
        let launched = match result {
            Ok(launched) => *launched,
            Err(refusal) => {
                let key = key.clone();
                if self.tells_refusal() {
                    tracing::warn!(backend = %key, generation, code = %refusal.code, "not started: {}", refusal.reason);
                }
                self.unwatch(id);
                self.remember_end(id, generation, &Trace::default());
                if let Some(hosted) = self.hosted.get_mut(&id) {
                    hosted.drop_unserved_listener();
                }
                self.dispatch(id, Event::StartFailed { generation, refusal: *refusal });
                return;
            }
        };
        let endpoint = launched.start.endpoint.as_ref().map(Endpoint::to_string).unwrap_or_default();
        tracing::info!(backend = %key, generation, pid = launched.main.pid.as_raw(), endpoint, "started");
        self.host(id, launched, false);
        if self.has_appeared(id) {
            self.follow_up(id, Event::Appeared { generation });
        }
        self.dispatch(id, Event::Started { generation });
        self.stop_if_not_kept(id);
    }
}
