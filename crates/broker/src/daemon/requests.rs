//! What clients ask, parsed, admitted and filed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broker_proto::{
    ClientMessageRef, Code, CodecError, Delivery, HelloRef, InstanceName, Refusal, RequestId, Requirement,
    ServerMessage, ServiceName, Terms, UnreadHello, decode,
};
use semver::Version;

use super::clock::now;
use super::driver::{Asked, Driver, Kind};
use super::hosted::{self, Held, Hosted};
use super::session::{Session, SessionId};
use crate::core::admission::{AccessRules, Peer, admit, admit_connected};
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

/// How many errors of its file are told to whoever asks for a service that so is none. The first may only follow from the next.
const ERRORS_TOLD: usize = 3;

impl Driver {
    /// Takes what a client says, the body of a frame.
    ///
    /// # Errors
    /// It is no message.
    pub(super) fn client_says(&mut self, session: &Session, body: &[u8]) -> Result<(), CodecError> {
        let unread = UnreadHello::of(body);
        if let Some(asked) = unread.and_then(|hello| self.ask_again(session, &hello)) {
            if let Err(refusal) = asked
                && let ClientMessageRef::Hello(hello) = decode(body)?
            {
                self.refuse_hello(session, &hello, *refusal);
            }
            return Ok(());
        }
        match decode(body)? {
            ClientMessageRef::Hello(hello) => {
                if let Err(refusal) = self.hello(session, &hello, unread.map(|hello| hello.texts)) {
                    self.refuse_hello(session, &hello, *refusal);
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
        Ok(())
    }

    fn refuse_hello(&mut self, session: &Session, hello: &HelloRef<'_>, refusal: Refusal) {
        if self.tells_refusal() {
            tracing::info!(
                session = session.id.0, pid = session.pid, uid = session.peer.uid,
                client = %hello.client.name.escape_debug(), service = %hello.service.escape_debug(),
                code = %refusal.code, "refused: {}", refusal.reason
            );
        }
        session.refuse(hello.request_id, refusal);
    }

    /// Takes a Hello whose texts were heard before; None if they were not, or name another backend by now.
    fn ask_again(&mut self, session: &Session, hello: &UnreadHello<'_>) -> Option<Result<(), Box<Refusal>>> {
        let id = self.lookups.find(hello.texts)?;
        let (key, _) = self.registry.get(id)?;
        let service = self.catalog.services.get(&key.service)?;
        let serving = self.check_serving();
        let admitted = serving.and_then(|()| admit_for(hello.terms.delivery, &session.peer, self.uid, &service.access));
        Some(admitted.and_then(|()| self.ask_for(session, id, hello.terms)))
    }

    /// Takes a Hello, and takes note of its texts as they came, if they can be told from the rest.
    fn hello(&mut self, session: &Session, hello: &HelloRef<'_>, texts: Option<&[u8]>) -> Result<(), Box<Refusal>> {
        self.check_serving()?;
        let id = self.look_up(&session.peer, hello)?;
        if let Some(texts) = texts {
            self.lookups.note(texts, id);
        }
        self.ask_for(session, id, hello.terms())
    }

    /// Files a Hello of one who may have the backend, and hands it to its machine.
    fn ask_for(&mut self, session: &Session, id: BackendId, terms: Terms) -> Result<(), Box<Refusal>> {
        let Terms { request_id, deadline_ms, delivery, found_dead } = terms;
        let waiter = self.ask(session.id, request_id, id, Kind::Hello(delivery), deadline_ms)?;
        match found_dead {
            Some(generation) => self.hello_after(id, generation, waiter),
            None => self.dispatch(id, Event::Hello(waiter)),
        }
        Ok(())
    }

    /// The backend that a Hello names, registered if it is new.
    fn look_up(&mut self, peer: &Peer, hello: &HelloRef<'_>) -> Result<BackendId, Box<Refusal>> {
        let malformed = |error: &dyn std::fmt::Display| Box::new(Refusal::new(Code::Malformed, error.to_string()));
        let instance = InstanceName::parse(hello.instance).map_err(|e| malformed(&e))?;
        let service = match self.catalog.services.get(hello.service) {
            Some(service) => Ok(service),
            None => Err(ServiceName::parse(hello.service).map_err(|e| malformed(&e))?),
        };
        let requirement = Requirement::parse(hello.version_requirement).map_err(|e| malformed(&e))?;
        let service = service.map_err(|unknown| self.service_unknown(&unknown))?;
        let admitted = |rules: &AccessRules| admit_for(hello.delivery, peer, self.uid, rules);
        let definition = choose_daemon(service, &requirement, admitted)?;
        self.open(instance, &definition)
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
        let mut errors = self.catalog.errors_in_file_of(name);
        let told: Vec<String> = errors.by_ref().take(ERRORS_TOLD).map(ToString::to_string).collect();
        let why = match (&*told, errors.count()) {
            ([], _) => String::new(),
            ([error], _) => format!("; its file has an error: {error}"),
            (told, 0) => format!("; its file has errors: {}", told.join("; ")),
            (told, more) => format!("; its file has errors: {}; {more} more by `brokerctl check`", told.join("; ")),
        };
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

/// Asks whether a peer may have a service in that way.
fn admit_for(delivery: Delivery, peer: &Peer, broker_uid: u32, rules: &AccessRules) -> Result<(), Box<Refusal>> {
    let admitted = match delivery {
        Delivery::Endpoint => admit(peer, broker_uid, rules),
        Delivery::Connected => admit_connected(peer, broker_uid, rules),
    };
    admitted.map_err(|rejection| Box::new(Refusal::new(Code::PeerRejected, rejection.to_string())))
}

/// Asks whether the peer may have a service that is a daemon, and picks a version.
pub(super) fn choose_daemon(
    service: &Service,
    requirement: &Requirement,
    admitted: impl FnOnce(&AccessRules) -> Result<(), Box<Refusal>>,
) -> Result<Arc<Definition>, Box<Refusal>> {
    let services::Kind::Daemon(versions) = &service.kind else {
        let name = &service.name;
        let reason = format!("`{name}` is a process and not a daemon: `brokerctl run {name}` runs it");
        return Err(Box::new(Refusal::new(Code::ServiceUnknown, reason)));
    };
    admitted(&service.access)?;
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
