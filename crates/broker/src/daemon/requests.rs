//! What clients ask, parsed, admitted and filed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broker_proto::{
    ClientMessageRef, Code, Delivery, HelloRef, InstanceName, Refusal, RequestId, Requirement, ServerMessage,
    ServiceName,
};
use semver::Version;

use super::clock::now;
use super::driver::{Asked, Driver, Kind};
use super::hosted::{self, Held, Hosted};
use super::session::{Session, SessionId};
use crate::core::admission::{AccessRules, Rejection, admit, admit_connected};
use crate::core::backend::{Event, RETRY_HINT, Ticket, Waiter, quarantined};
use crate::core::millis_up;
use crate::core::registry::{BackendId, BackendKey};
use crate::core::versions::{NoVersion, choose};
use crate::journal::Change;
use crate::services::problem::suggestion;
use crate::services::{self, Definition, Service};

/// What one session may wait for and hold at once. A client that keeps tens of thousands of requests in flight is served;
/// one that never releases what it holds is stopped here.
const REQUESTS_PER_SESSION_MAX: usize = 32_768;

impl Driver {
    /// Takes one message of a client.
    pub(super) fn client_message(&mut self, session: &Session, message: ClientMessageRef<'_>) {
        match message {
            ClientMessageRef::Hello(hello) => {
                let request_id = hello.request_id;
                if let Err(refusal) = self.hello(session, &hello) {
                    if self.tells_refusal() {
                        tracing::info!(
                            session = session.id.0, pid = session.pid, uid = session.peer.uid,
                            client = %hello.client.name.escape_debug(), service = %hello.service.escape_debug(),
                            code = %refusal.code, "refused: {}", refusal.reason
                        );
                    }
                    session.refuse(request_id, *refusal);
                }
            }
            ClientMessageRef::Release { request_id } => self.release(session.id, request_id),
            ClientMessageRef::Ping { nonce } => session.send(&ServerMessage::Pong { nonce }, None),
            ClientMessageRef::Admin { request_id, request } => {
                if let Err(refusal) = self.admin(session, request_id, request) {
                    session.refuse(request_id, *refusal);
                }
            }
        }
    }

    fn hello(&mut self, session: &Session, hello: &HelloRef<'_>) -> Result<(), Box<Refusal>> {
        self.check_serving()?;
        let uid = self.uid;
        let admitted = |rules: &AccessRules| match hello.delivery {
            Delivery::Endpoint => admit(&session.peer, uid, rules),
            Delivery::Connected => admit_connected(&session.peer, uid, rules),
        };
        let known = self.lookups.find(hello).filter(|id| self.registry.get(*id).is_some());
        let id = match (known, self.catalog.services.get(hello.service)) {
            (Some(id), Some(service)) => {
                admitted(&service.access).map_err(rejected)?;
                id
            }
            _ => self.look_up(hello, admitted)?,
        };
        let kind = Kind::Hello(hello.delivery);
        let waiter = self.ask(session.id, hello.request_id, id, kind, hello.deadline_ms)?;
        match hello.found_dead {
            Some(generation) => self.hello_after(id, generation, waiter),
            None => self.dispatch(id, Event::Hello(waiter)),
        }
        Ok(())
    }

    /// The backend that a Hello names, registered if it is new.
    fn look_up(
        &mut self,
        hello: &HelloRef<'_>,
        admitted: impl FnOnce(&AccessRules) -> Result<(), Rejection>,
    ) -> Result<BackendId, Box<Refusal>> {
        let malformed = |error: &dyn std::fmt::Display| Box::new(Refusal::new(Code::Malformed, error.to_string()));
        let instance = InstanceName::parse(hello.instance).map_err(|e| malformed(&e))?;
        let service = match self.catalog.services.get(hello.service) {
            Some(service) => Ok(service),
            None => Err(ServiceName::parse(hello.service).map_err(|e| malformed(&e))?),
        };
        let requirement = Requirement::parse(hello.version_requirement).map_err(|e| malformed(&e))?;
        let service = service.map_err(|unknown| self.service_unknown(&unknown))?;
        let definition = choose_daemon(service, &requirement, admitted)?;
        let id = self.open(instance, &definition)?;
        self.lookups.note(hello, id);
        Ok(id)
    }

    pub(super) fn check_serving(&self) -> Result<(), Box<Refusal>> {
        match self.leaving {
            None => Ok(()),
            Some(_) => {
                let refusal = Refusal::new(Code::ShuttingDown, "the broker is shutting down");
                Err(Box::new(refusal.retry_after_ms(millis_up(RETRY_HINT))))
            }
        }
    }

    pub(super) fn service_unknown(&self, name: &ServiceName) -> Box<Refusal> {
        let names = self.catalog.services.keys().map(ServiceName::as_str);
        let near = suggestion(name.as_str(), names);
        let hint = near.unwrap_or_default();
        let broken = self.catalog.problems.iter().find(|p| p.file.file_stem().is_some_and(|s| s == name.as_str()));
        let why = broken.map(|p| format!("; its file has an error: {p}")).unwrap_or_default();
        Box::new(Refusal::new(Code::ServiceUnknown, format!("no service file defines `{name}`{hint}{why}")))
    }

    /// The backend of a definition in an instance, registered if it is new.
    pub(super) fn open(
        &mut self,
        instance: InstanceName,
        definition: &Arc<Definition>,
    ) -> Result<BackendId, Box<Refusal>> {
        let key = BackendKey { instance, service: definition.service.clone(), version: definition.version.clone() };
        if let Some(id) = self.registry.find(&key) {
            return Ok(id);
        }
        if let Some(reason) = self.held_back.get(&key) {
            return Err(Box::new(quarantined(reason)));
        }
        if let Some(memory) = self.dormant.remove(&key) {
            return Ok(self.restore(&key, memory, definition));
        }
        let policies = hosted::policies(definition, self.config.limits.waiters_per_backend);
        let opened = self.registry.open(now(), &key, policies);
        for (id, key) in self.registry.take_forgotten() {
            self.journal.tell(Change::Forgotten { key });
            let forgotten = self.hosted.remove(&id);
            forgotten.iter().flat_map(|hosted| &hosted.listener).for_each(Held::remove);
        }
        let id = opened.map_err(|full| {
            let reason = format!("{} backends are in use already, which is the limit", full.limit);
            Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT))
        })?;
        self.hosted.insert(id, Box::new(Hosted::new(Arc::clone(definition))));
        Ok(id)
    }

    /// Files a request under a new ticket.
    pub(super) fn ask(
        &mut self,
        session: SessionId,
        request_id: RequestId,
        backend: BackendId,
        kind: Kind,
        deadline_ms: Option<u64>,
    ) -> Result<Waiter, Box<Refusal>> {
        let ticket = Ticket(self.number());
        let holds = matches!(kind, Kind::Hello(_));
        if !matches!(kind, Kind::Part(_)) {
            self.file_request(session, request_id, ticket)?;
        }
        let deadline = deadline_ms.map(|ms| now() + Duration::from_millis(ms));
        self.asked.insert(ticket, Asked { session, request_id, backend, kind, deadline, has_doubted: false });
        Ok(Waiter { ticket, deadline, holds })
    }

    /// Enters a request among those of its session, which may have so many of them and no id twice.
    pub(super) fn file_request(
        &mut self,
        session: SessionId,
        request_id: RequestId,
        ticket: Ticket,
    ) -> Result<(), Box<Refusal>> {
        let Some(connected) = self.sessions.get_mut(&session) else {
            return Err(Box::new(Refusal::new(Code::Internal, "the session is over")));
        };
        if connected.tickets.len() >= REQUESTS_PER_SESSION_MAX {
            let reason = format!("this session has {REQUESTS_PER_SESSION_MAX} requests and holds, which is the limit");
            return Err(Box::new(Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT))));
        }
        if !connected.tickets.insert(request_id, ticket) {
            let reason = format!("request {request_id} is in use already on this session");
            return Err(Box::new(Refusal::new(Code::Malformed, reason)));
        }
        Ok(())
    }

    /// Takes a request out of its session.
    pub(super) fn unfile_request(&mut self, session: SessionId, request_id: RequestId, ticket: Ticket) {
        if let Some(connected) = self.sessions.get_mut(&session)
            && connected.tickets.get(request_id) == Some(ticket)
        {
            connected.tickets.remove(request_id);
        }
    }

    /// Forgets a request that is answered for good.
    pub(super) fn close_request(&mut self, ticket: Ticket) -> Option<Asked> {
        let asked = self.asked.remove(&ticket)?;
        self.unfile_request(asked.session, asked.request_id, ticket);
        Some(asked)
    }

    fn release(&mut self, session: SessionId, request_id: RequestId) {
        let ticket = self.sessions.get_mut(&session).and_then(|c| c.tickets.remove(request_id));
        if let Some(ticket) = ticket {
            self.give_up(ticket);
            self.work_off();
        }
    }

    /// Withdraws what a request, taken out of its session, waited for or held, once the events that wait are worked off.
    pub(super) fn give_up(&mut self, ticket: Ticket) {
        match self.asked.remove(&ticket) {
            Some(asked) => {
                self.forget_doubt(asked.backend, ticket);
                self.follow_up(asked.backend, Event::Withdraw(ticket));
            }
            None => {
                self.admins.forget(ticket);
                self.events.forget(ticket);
                self.forget_process_wait(ticket);
            }
        }
    }
}

fn rejected(rejection: Rejection) -> Box<Refusal> {
    Box::new(Refusal::new(Code::PeerRejected, rejection.to_string()))
}

/// Asks whether the peer may have a service that is a daemon, and picks a version.
pub(super) fn choose_daemon(
    service: &Service,
    requirement: &Requirement,
    admitted: impl FnOnce(&AccessRules) -> Result<(), Rejection>,
) -> Result<Arc<Definition>, Box<Refusal>> {
    let services::Kind::Daemon(versions) = &service.kind else {
        let name = &service.name;
        let reason = format!("`{name}` is a process and not a daemon: `brokerctl run {name}` runs it");
        return Err(Box::new(Refusal::new(Code::ServiceUnknown, reason)));
    };
    admitted(&service.access).map_err(rejected)?;
    choose_among(service, versions, requirement)
}

/// Picks a version of a service, of whichever kind.
pub(super) fn choose_among<T>(
    service: &Service,
    versions: &BTreeMap<Version, Arc<T>>,
    requirement: &Requirement,
) -> Result<Arc<T>, Box<Refusal>> {
    match choose(versions, &service.version_rules, requirement) {
        Ok((_, definition)) => Ok(Arc::clone(definition)),
        Err(error) => {
            let code = match error {
                NoVersion::Unsupported { .. } => Code::VersionUnsupported,
                NoVersion::Blocked { .. } => Code::VersionBlocked,
            };
            let mut refusal = Refusal::new(code, format!("service `{}`: {error}", service.name));
            refusal.evidence.available = versions.keys().map(ToString::to_string).collect();
            Err(Box::new(refusal))
        }
    }
}
