//! What operators order and ask.

use broker_proto::{
    AdminRequest, Code, InstanceName, Refusal, RequestId, Requirement, Selection, ServerMessage, ServiceName, Target,
};
use serde_json::{Value, json};

use super::clock::now;
use super::driver::{Driver, Kind, Leave};
use super::requests::choose_daemon;
use super::session::{Session, SessionId};
use super::work::Report;
use super::{report, telling};
use crate::config::{AdminGroup, Admins};
use crate::core::admission::{is_owner, may_control};
use crate::core::backend::{Event, Ticket};
use crate::core::registry::{BackendId, BackendKey};
use crate::journal::Change;
use crate::services::Catalog;

/// An order over several backends, until the last of them is done.
pub(super) struct Batch {
    session: SessionId,
    request_id: RequestId,
    order: Order,
    remaining: usize,
    done: Vec<Value>,
    refused: Vec<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop,
    Restart,
}

/// What an operator's selection means.
pub(super) struct Selected {
    instance: Option<InstanceName>,
    service: Option<ServiceName>,
    requirement: Option<Requirement>,
}

impl Selected {
    pub(super) fn parse(selection: &Selection) -> Result<Self, Box<Refusal>> {
        Ok(Self {
            instance: selection.instance.as_deref().map(InstanceName::parse).transpose().map_err(malformed)?,
            service: selection.service.as_deref().map(ServiceName::parse).transpose().map_err(malformed)?,
            requirement: selection
                .version_requirement
                .as_deref()
                .map(Requirement::parse)
                .transpose()
                .map_err(malformed)?,
        })
    }

    /// Whether no part is set.
    pub(super) fn is_everything(&self) -> bool {
        self.instance.is_none() && self.service.is_none() && self.requirement.is_none()
    }

    pub(super) fn includes(&self, key: &BackendKey) -> bool {
        self.instance.as_ref().is_none_or(|instance| *instance == key.instance)
            && self.service.as_ref().is_none_or(|service| *service == key.service)
            && self.requirement.as_ref().is_none_or(|requirement| requirement.matches(&key.version))
    }
}

fn malformed(error: impl std::fmt::Display) -> Box<Refusal> {
    Box::new(Refusal::new(Code::Malformed, error.to_string()))
}

impl Driver {
    pub(super) fn admin(
        &mut self,
        session: &Session,
        request_id: RequestId,
        request: AdminRequest,
    ) -> Result<(), Box<Refusal>> {
        let admins = match &self.config.admins {
            Admins::Nobody => None,
            Admins::Group(group) => Some(group),
            Admins::OfTheSystem => match &self.admins.known {
                Some(group) => group.as_ref(),
                None if is_owner(&session.peer, self.uid) || matches!(request, AdminRequest::Run { .. }) => None,
                None => return self.wait_for_admins(session.id, request_id, request),
            },
        };
        self.check_control(session, &request, admins)?;
        let document = match request {
            AdminRequest::Status => report::status(self),
            AdminRequest::Services => report::services(&self.catalog),
            AdminRequest::Start { target, deadline_ms } => {
                return self.order_start(session, request_id, &target, deadline_ms);
            }
            AdminRequest::Stop { selection, deadline_ms } => {
                return self.order_all(session, request_id, Order::Stop, &selection, deadline_ms);
            }
            AdminRequest::Restart { selection, deadline_ms } => {
                self.check_serving()?;
                return self.order_all(session, request_id, Order::Restart, &selection, deadline_ms);
            }
            AdminRequest::Drain { selection } => self.drain(&selection)?,
            AdminRequest::Logs { selection } => return self.logs(session.id, request_id, &selection),
            AdminRequest::Events { selection, after, wait_ms } => {
                return self.report_events(session, request_id, &selection, after.as_deref(), wait_ms);
            }
            AdminRequest::Reload => return self.reload(Some((session.id, request_id))),
            AdminRequest::Release { selection } => self.release_quarantined(&selection)?,
            AdminRequest::HandOver => {
                let live = self.registry.iter().filter(|(_, _, backend)| backend.is_live()).count();
                reply(session, request_id, &json!({ "keeping": live }));
                self.leave(Leave::HAND_OVER);
                return Ok(());
            }
            AdminRequest::Run { .. }
            | AdminRequest::Wait { .. }
            | AdminRequest::Processes { .. }
            | AdminRequest::Cancel { .. }
            | AdminRequest::Prune { .. } => return self.process_request(session, request_id, request),
            AdminRequest::Shutdown => {
                let live = self.registry.iter().filter(|(_, _, backend)| backend.is_live()).count();
                reply(session, request_id, &json!({ "stopping": live }));
                self.leave(Leave::STOP);
                return Ok(());
            }
        };
        reply(session, request_id, &document);
        Ok(())
    }

    /// Whether a peer may give such an order. A command that the broker runs is run as the broker's user, so to have one
    /// run is for those alone who are that user already.
    fn check_control(
        &self,
        session: &Session,
        request: &AdminRequest,
        admins: Option<&AdminGroup>,
    ) -> Result<(), Box<Refusal>> {
        let (uid, own) = (session.peer.uid, self.uid);
        let owners = if own == 0 { "root".to_owned() } else { format!("root and user {own}, whom it runs as,") };
        let reason = if matches!(request, AdminRequest::Run { .. }) && !is_owner(&session.peer, own) {
            format!(
                "user {uid} may not have this broker run a process: it would run as user {own}, so only {owners} may"
            )
        } else if !may_control(&session.peer, own, admins.map(|group| group.gid)) {
            match admins {
                Some(group) => format!(
                    "user {uid} may not control this broker: only {owners} and members of the group `{}` may",
                    group.name
                ),
                None => format!("user {uid} may not control this broker: only {owners} may"),
            }
        } else {
            return Ok(());
        };
        Err(Box::new(Refusal::new(Code::PeerRejected, reason)))
    }

    fn order_start(
        &mut self,
        session: &Session,
        request_id: RequestId,
        target: &Target,
        deadline_ms: Option<u64>,
    ) -> Result<(), Box<Refusal>> {
        self.check_serving()?;
        let instance = InstanceName::parse(&target.instance).map_err(malformed)?;
        let service = ServiceName::parse(&target.service).map_err(malformed)?;
        let requirement = Requirement::parse(&target.version_requirement).map_err(malformed)?;
        let service = self.catalog.services.get(&service).ok_or_else(|| self.service_unknown(&service))?;
        let definition = choose_daemon(service, &requirement, |_| Ok(()))?;
        let id = self.open(instance, &definition)?;
        let waiter = self.ask(session.id, request_id, id, Kind::Start, deadline_ms)?;
        self.dispatch(id, Event::Start(waiter));
        Ok(())
    }

    /// The registered backends of a selection, in the order of their names.
    pub(super) fn select(&self, selection: &Selection) -> Result<Vec<BackendId>, Box<Refusal>> {
        let selected = Selected::parse(selection)?;
        let mut found: Vec<(&BackendKey, BackendId)> =
            self.registry.iter().filter(|(_, key, _)| selected.includes(key)).map(|(id, key, _)| (key, id)).collect();
        found.sort();
        let is_known = |name: &ServiceName| self.catalog.services.contains_key(name);
        match &selected.service {
            Some(service) if found.is_empty() && !is_known(service) => Err(self.service_unknown(service)),
            _ => Ok(found.into_iter().map(|(_, id)| id).collect()),
        }
    }

    fn order_all(
        &mut self,
        session: &Session,
        request_id: RequestId,
        order: Order,
        selection: &Selection,
        deadline_ms: Option<u64>,
    ) -> Result<(), Box<Refusal>> {
        let mut ids = self.select(selection)?;
        // What rests already is not reported as stopped; and a restart of all is of all that run.
        if order == Order::Stop || ids.len() > 1 {
            ids.retain(|id| self.registry.get(*id).is_some_and(|(_, backend)| backend.is_stoppable()));
        }
        let number = self.number();
        let (remaining, session_id) = (ids.len(), session.id);
        let batch = Batch { session: session_id, request_id, order, remaining, done: Vec::new(), refused: Vec::new() };
        self.batches.insert(number, batch);
        for id in ids {
            let waiter = self.ask(session.id, request_id, id, Kind::Part(number), deadline_ms)?;
            let event = match order {
                Order::Stop => {
                    self.refuse_doubts(id);
                    Event::Stop(Some(waiter))
                }
                Order::Restart => Event::Restart(waiter),
            };
            self.dispatch(id, event);
        }
        self.finish_batch(number);
        Ok(())
    }

    /// One who ordered a stop is told that nothing runs.
    pub(super) fn stopped(&mut self, ticket: Ticket) {
        if let Some((key, _)) = self.asked.get(&ticket).and_then(|asked| self.registry.get(asked.backend)) {
            let value = report::name(key);
            self.order_done(ticket, value);
        }
    }

    /// An order is done, as far as one backend is concerned.
    pub(super) fn order_done(&mut self, ticket: Ticket, value: Value) {
        let Some(asked) = self.close_request(ticket) else { return };
        match asked.kind {
            Kind::Part(number) => {
                if let Some(batch) = self.batches.get_mut(&number) {
                    batch.remaining -= 1;
                    batch.done.push(value);
                }
                self.finish_batch(number);
            }
            Kind::Start | Kind::Hello(_) => {
                if let Some(session) = self.session(asked.session) {
                    reply(&session, asked.request_id, &value);
                }
            }
        }
    }

    /// One backend of an order is refused: of a stop, whose deadline passed, that is the answer; of a restart, a part.
    pub(super) fn part_refused(&mut self, ticket: Ticket, refusal: Refusal) {
        let Some(asked) = self.close_request(ticket) else { return };
        let Kind::Part(number) = asked.kind else { return };
        let Some(batch) = self.batches.get_mut(&number) else { return };
        match batch.order {
            Order::Stop => {
                self.batches.remove(&number);
                if let Some(session) = self.session(asked.session) {
                    session.refuse(asked.request_id, refusal);
                }
            }
            Order::Restart => {
                let mut value = self.registry.get(asked.backend).map_or(Value::Null, |(key, _)| report::name(key));
                value["refused"] = json!(refusal);
                batch.remaining -= 1;
                batch.refused.push(value);
                self.finish_batch(number);
            }
        }
    }

    fn finish_batch(&mut self, number: u64) {
        if self.batches.get(&number).is_none_or(|batch| batch.remaining > 0) {
            return;
        }
        if let Some(batch) = self.batches.remove(&number)
            && let Some(session) = self.session(batch.session)
        {
            let document = match batch.order {
                Order::Stop => json!({ "stopped": batch.done }),
                Order::Restart => json!({ "restarted": batch.done, "refused": batch.refused }),
            };
            reply(&session, batch.request_id, &document);
        }
    }

    pub(super) fn drop_batches_of(&mut self, session: SessionId) {
        self.batches.retain(|_, batch| batch.session != session);
    }

    fn drain(&mut self, selection: &Selection) -> Result<Value, Box<Refusal>> {
        let ids = self.select(selection)?;
        for id in &ids {
            self.dispatch(*id, Event::Drain);
        }
        let drained: Vec<Value> = ids.iter().filter_map(|id| report::drained(self, *id)).collect();
        Ok(json!({ "draining": drained }))
    }

    fn release_quarantined(&mut self, selection: &Selection) -> Result<Value, Box<Refusal>> {
        let is_quarantined = |id: &BackendId| {
            self.registry.get(*id).is_some_and(|(_, backend)| backend.view(now()).quarantine.is_some())
        };
        let selected = Selected::parse(selection)?;
        let held_back: Vec<BackendKey> = self.held_back.keys().filter(|key| selected.includes(key)).cloned().collect();
        let ids = match self.select(selection) {
            // Of those that no service file defines the registry knows nothing.
            Err(_) if !held_back.is_empty() => Vec::new(),
            selected => selected?.into_iter().filter(is_quarantined).collect(),
        };
        for id in &ids {
            self.dispatch(*id, Event::Release);
        }
        let mut released: Vec<Value> =
            ids.iter().filter_map(|id| Some(report::name(self.registry.get(*id)?.0))).collect();
        for key in held_back {
            self.held_back.remove(&key);
            released.push(report::name(&key));
            self.journal.tell(Change::Forgotten { key });
        }
        Ok(json!({ "released": released }))
    }

    /// Reads the service files again, on a worker thread.
    pub(super) fn reload(&mut self, asker: Option<(SessionId, RequestId)>) -> Result<(), Box<Refusal>> {
        self.tell_reloading();
        self.admins.look_again();
        let directories = self.config.services.clone();
        let number = self.number();
        let loaded = move |catalog| Report::Loaded { number, catalog, asker };
        let job = move || loaded(Ok(Box::new(Catalog::load(&directories))));
        let faulty = move || loaded(Err(Box::new(telling::fault("the reading of the service files failed"))));
        self.work(job, faulty).map_err(|error| no_thread(&error)).inspect_err(|refusal| {
            self.tell_reloaded(format!("not reloaded: {}", refusal.reason));
        })
    }
}

pub(super) fn no_thread(error: &std::io::Error) -> Box<Refusal> {
    Box::new(Refusal::new(Code::Overloaded, format!("no thread for it: {error}")))
}

/// Answers an operator.
pub(super) fn reply(session: &Session, request_id: RequestId, document: &Value) {
    session.send(&ServerMessage::AdminReply { request_id, json: document.to_string() }, None);
}
