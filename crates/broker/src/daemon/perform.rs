//! Effects: what the machines decide, done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use broker_proto::{Code, Delivery, Endpoint, NegotiatedRef, Refusal, ServerMessage};

use super::demand::Demand;
use super::driver::{Driver, Kind};
use super::ending::Look;
use super::grant::Grant;
use super::ledger::fingerprint;
use super::session::Session;
use super::work::Report;
use super::{tasks, telling};
use crate::core::backend::{Effect, Event, Happening, RETRY_HINT, Ticket, Waiter};
use crate::core::millis_up;
use crate::core::registry::BackendId;
use crate::documents::ready_backend;
use crate::net::endpoint::{self, ConnectError, Connection};
use crate::net::sock_diag::{established_tcp, established_unix};
use crate::process::spawn;
use crate::services::{self, Probe, Resume};

impl Driver {
    pub(super) fn perform(&mut self, id: BackendId, effect: Effect) {
        match effect {
            Effect::Start { generation } => self.start(id, generation),
            Effect::Probe { generation } => self.probe(id, generation),
            Effect::Follow { generation } => self.follow(id, generation),
            Effect::Terminate { generation } => self.terminate(id, generation),
            Effect::End { generation } => self.end(id, generation),
            Effect::CountConnections { generation } => self.count_connections(id, generation),
            Effect::Negotiate { ticket, generation } => self.negotiate(id, ticket, generation),
            Effect::Refuse { ticket, refusal } if self.is_demand(id, ticket) => self.demand_refused(id, &refusal),
            Effect::Refuse { ticket, refusal } => self.refuse(ticket, *refusal),
            Effect::Stopped { ticket } => self.stopped(ticket),
            Effect::Progress { ticket, progress } => {
                let Some((key, _)) = self.registry.get(id) else { return };
                let version = key.version.to_string();
                if let Some((session, request_id)) = self.asker(ticket) {
                    let progress = telling::progress(request_id, version, progress);
                    session.send(&ServerMessage::Progress(progress), None);
                }
            }
            Effect::Record { generation, happening } => {
                if let (Happening::Exited { exit, lived, .. }, Some(hosted)) = (&happening, self.hosted.get_mut(&id)) {
                    hosted.exit = Some((*exit, *lived));
                }
                self.record(id, generation, happening);
            }
            Effect::Tell { ticket, news } if self.is_demand(id, ticket) => self.demand_told(id, ticket, &news),
            Effect::Tell { ticket, news } => {
                let endpoint = self.hosted.get(&id).and_then(|h| h.running.as_ref()).map(|r| r.endpoint.clone());
                if let Some((session, request_id)) = self.asker(ticket)
                    && let Some(event) = telling::event(news, endpoint)
                {
                    let is_over = event == broker_proto::Event::Stopped;
                    session.send(&ServerMessage::Event { request_id, event }, None);
                    if is_over {
                        self.close_request(ticket);
                    }
                }
            }
        }
    }

    fn asker(&self, ticket: Ticket) -> Option<(Rc<Session>, u64)> {
        let asked = self.asked.get(&ticket)?;
        Some((self.session(asked.session)?, asked.request_id))
    }

    /// Runs a job on a worker thread that reports back; somebody waits for that, so a job that panics reports as well.
    pub(super) fn work(
        &self,
        job: impl FnOnce() -> Report + Send + 'static,
        if_it_panics: impl FnOnce() -> Report + Send + 'static,
    ) -> std::io::Result<()> {
        self.work_and_tidy(move || (job(), ()), if_it_panics, drop)
    }

    /// The same of a job that leaves something to do of which nobody waits for the outcome.
    pub(super) fn work_and_tidy<T>(
        &self,
        job: impl FnOnce() -> (Report, T) + Send + 'static,
        if_it_panics: impl FnOnce() -> Report + Send + 'static,
        tidy: impl FnOnce(T) + Send + 'static,
    ) -> std::io::Result<()> {
        let reports = self.reports.clone();
        self.pool.run(move || {
            let (report, left) = match catch_unwind(AssertUnwindSafe(job)) {
                Ok((report, left)) => (report, Some(left)),
                Err(_) => (if_it_panics(), None),
            };
            // The receiver goes last, with the broker itself.
            let _ = reports.blocking_send(report);
            left.map(tidy);
        })
    }

    /// Looks whether the endpoint serves; a command is started instead.
    pub(super) fn probe(&mut self, id: BackendId, generation: u64) {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return };
        if let Some(command) = running.probe.clone() {
            let job = move || {
                let probe = spawn::spawn(&command).map_err(|error| error.to_string());
                Report::Probing { id, generation, probe }
            };
            let faulty =
                move || Report::Probing { id, generation, probe: Err(telling::fault("the probe failed").reason) };
            if let Err(error) = self.work(job, faulty) {
                let obstacle = Some(format!("the probe cannot be started: {error}"));
                self.follow_up(id, Event::Probed { generation, ready: false, obstacle });
            }
            return;
        }
        // One that says when it is ready is looked at only for what it may have said to nobody. A socket that it inherited
        // was bound by a broker, this or an earlier one.
        let unsaid = match running.definition.readiness.probe {
            Probe::Notify | Probe::Socket { .. } if running.is_heard => Some(false),
            Probe::Socket { .. } => Some(serves(&running.endpoint)),
            Probe::Notify | Probe::Connect | Probe::Exec { .. } => None,
        };
        if let Some(ready) = unsaid {
            self.follow_up(id, Event::Probed { generation, ready, obstacle: None });
            return;
        }
        let backend = running.processes();
        let (result, what) = match &running.endpoint {
            Endpoint::Unix { path } => (endpoint::probe_unix(path.as_ref(), backend), path.clone()),
            Endpoint::Tcp { port, .. } => (endpoint::probe_tcp(*port, backend), format!("port {port}")),
        };
        let (ready, obstacle) = match result {
            endpoint::Probe::Ready { pid } => {
                let backend = &running.start.key;
                tracing::debug!(%backend, generation, endpoint = %running.endpoint, listener = ?pid, "serves");
                (true, None)
            }
            endpoint::Probe::NotYet => (false, None),
            endpoint::Probe::Stranger { pid, command } => {
                let who = pid.map(|pid| format!("pid {pid}")).unwrap_or_else(|| "another process".to_owned());
                let name = command.map(|command| format!(" ({command})")).unwrap_or_default();
                (false, Some(format!("{what} is served by {who}{name}, which is not of this backend")))
            }
            endpoint::Probe::Failed(error) => (false, Some(format!("{what} cannot be probed: {error}"))),
        };
        self.follow_up(id, Event::Probed { generation, ready, obstacle });
    }

    /// A probe command runs; its end is the answer.
    pub(super) fn probing(&mut self, id: BackendId, generation: u64, probe: Result<spawn::Spawned, String>) {
        let running = self.hosted.get_mut(&id).and_then(|h| h.generation(generation));
        match (probe, running) {
            (Ok(probe), Some(running)) => {
                let is_over = running.over.subscribe();
                tasks::watch_probe(self.me.clone(), id, generation, probe, is_over);
            }
            (Ok(probe), None) => tasks::end_probe(&self.pool, probe),
            (Err(error), _) => {
                let obstacle = Some(format!("the probe cannot be started: {error}"));
                self.dispatch(id, Event::Probed { generation, ready: false, obstacle });
            }
        }
    }

    fn count_connections(&mut self, id: BackendId, generation: u64) {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return };
        let count = connections(&running.endpoint);
        self.follow_up(id, Event::Connections { generation, count });
    }

    fn negotiate(&mut self, id: BackendId, ticket: Ticket, generation: u64) {
        let Some(asked) = self.asked.get(&ticket).copied() else { return };
        let Some((key, _)) = self.registry.get(id) else { return };
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else {
            let refusal = telling::fault(&format!("{key} is ready and does not run"));
            self.refuse(ticket, refusal);
            self.follow_up(id, Event::Withdraw(ticket));
            return;
        };
        let grant = Grant {
            negotiated: NegotiatedRef {
                request_id: asked.request_id,
                instance: key.instance.as_str(),
                service: key.service.as_str(),
                version: &running.version,
                endpoint: &running.endpoint,
                generation,
                pid: u32::try_from(running.main.pid.as_raw()).ok(),
                connected: asked.kind == Kind::Hello(Delivery::Connected),
            },
            is_resumable: running.definition.session.resume == Resume::Reconnect,
        };
        let session = self.sessions.get(&asked.session).map(|connected| &*connected.session);
        match (asked.kind, session) {
            (Kind::Hello(_), None) => {}
            (Kind::Hello(Delivery::Endpoint), Some(session)) => grant.send_prepared(session, id, &mut self.answers),
            (Kind::Hello(Delivery::Connected), Some(session)) => match connect(&running.endpoint) {
                Ok(Connection::Made(socket)) => grant.send(session, Some(socket)),
                Ok(Connection::Pending(socket)) => {
                    tasks::finish_connection(self.me.clone(), ticket, grant.into(), socket);
                }
                Err(error) => self.not_connected(id, ticket, generation, &error),
            },
            (Kind::Start | Kind::Part(_), _) => {
                let document = ready_backend(&grant.negotiated.into_owned());
                self.order_done(ticket, document);
            }
        }
    }

    /// The backend is ready and takes no connection. If it has just ended, the client waits for the next generation.
    fn not_connected(&mut self, id: BackendId, ticket: Ticket, generation: u64, error: &ConnectError) {
        let Some(asked) = self.asked.get(&ticket).copied() else { return };
        self.follow_up(id, Event::Withdraw(ticket));
        let again = Waiter { ticket, deadline: asked.deadline, holds: true };
        match self.look_at_main(id, generation) {
            Look::Ended(ended) => {
                self.follow_up(id, ended);
                match self.check_serving() {
                    Ok(()) => self.follow_up(id, Event::Hello(again)),
                    Err(refusal) => self.refuse(ticket, *refusal),
                }
                return;
            }
            Look::Unsettled => return self.doubt(id, again),
            Look::Runs if !asked.has_doubted && matches!(error, ConnectError::Dead) => return self.doubt(id, again),
            Look::Runs => {}
        }
        let code = match error {
            ConnectError::Busy => Code::Overloaded,
            ConnectError::Dead | ConnectError::Io(_) => Code::BackendUnavailable,
        };
        self.refuse(ticket, Refusal::new(code, error.to_string()).retry_after_ms(millis_up(RETRY_HINT)));
    }

    /// A connection that was begun for a client was not made.
    pub(super) fn connection_failed(&mut self, ticket: Ticket, generation: u64, error: &ConnectError) {
        if let Some(asked) = self.asked.get(&ticket).copied() {
            self.not_connected(asked.backend, ticket, generation, error);
            self.dispatch(asked.backend, Event::Tick);
        }
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        let Some(asked) = self.asked.get(&ticket).copied() else { return };
        if self.tells_refusal()
            && let Some((key, _)) = self.registry.get(asked.backend)
        {
            tracing::info!(backend = %key, code = %refusal.code, "refused: {}", refusal.reason);
        }
        if let Kind::Part(_) = asked.kind {
            self.part_refused(ticket, refusal);
            return;
        }
        self.close_request(ticket);
        if let Some(session) = self.session(asked.session) {
            session.refuse(asked.request_id, refusal);
        }
    }

    /// Gives a backend a new definition, for its next start.
    pub(super) fn redefine(&mut self, id: BackendId, definition: Arc<services::Definition>) {
        let waiters_max = self.config.limits.waiters_per_backend;
        let policies = super::hosted::policies(&definition, waiters_max);
        let is_live = self.registry.get(id).is_some_and(|(_, backend)| backend.is_live());
        if let Some(hosted) = self.hosted.get_mut(&id) {
            hosted.fingerprint = fingerprint(&definition);
            if let Demand::Refused { .. } = hosted.demand {
                hosted.demand = Demand::Unwatched;
            }
            hosted.definition = definition;
            // Who comes to a socket that no start would inherit would start what does not serve it.
            if !is_live {
                hosted.drop_unserved_listener();
            }
        }
        self.dispatch(id, Event::Redefine(policies));
    }
}

/// How many are connected to an endpoint. What cannot be counted is taken for busy, and so not cut off.
pub(super) fn connections(endpoint: &Endpoint) -> usize {
    let count = match endpoint {
        Endpoint::Unix { path } => established_unix(path.as_ref()),
        Endpoint::Tcp { port, .. } => established_tcp(*port),
    };
    count.unwrap_or_else(|error| {
        tracing::warn!(%error, %endpoint, "connections cannot be counted; taken for busy");
        1
    })
}

pub(super) fn connect(endpoint: &Endpoint) -> Result<Connection, ConnectError> {
    match endpoint {
        Endpoint::Unix { path } => endpoint::connect_unix(path.as_ref()).map(Connection::Made),
        Endpoint::Tcp { port, .. } => endpoint::connect_tcp(*port),
    }
}

/// Whether somebody accepts there.
pub(super) fn serves(endpoint: &Endpoint) -> bool {
    matches!(connect(endpoint), Ok(_) | Err(ConnectError::Busy))
}
