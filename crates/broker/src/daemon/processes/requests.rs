//! What peers ask of the keeper, and the answers.

use broker_proto::{Code, ProcessId, Refusal};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::documents;
use super::keeper::Keeper;
use super::launch::{ask_stranger_to_end, make_folder, remove_folder};
use super::orders::{Asker, Happening, News, Order};
use super::record::Record;
use super::records::{Cancelled, RecordError};
use super::spec::{Registration, malformed};
use crate::core::backend::RETRY_HINT;
use crate::core::durable::Event;
use crate::core::millis_up;
use crate::daemon::places::make_private;
use crate::daemon::telling;
use crate::daemon::work::Report;
use crate::reaper::folder::Folder;
use crate::services::problem::suggestion;
use crate::store::chain;

/// How many processes are forgotten in one transaction: others wait as long as it takes.
const PRUNED_AT_ONCE: usize = 64;

type Answer = Result<Value, Box<Refusal>>;

impl Keeper {
    pub(super) fn take(&mut self, order: Order) {
        match order {
            Order::Run { asker, registration } => {
                let answer = self.register(&registration);
                self.answer(asker, answer);
            }
            Order::Wait { ticket, id } => self.wait(ticket, id),
            Order::WaitIsOver { ticket } => {
                if let Some(id) = self.waits.withdraw(ticket) {
                    let result = self.find(&id).map(|record| self.process(&record));
                    self.report(Report::Process(News::Waited { ticket, result }));
                }
            }
            Order::Forget { ticket } => drop(self.waits.withdraw(ticket)),
            Order::List { asker, id } => {
                let answer = self.list(id.as_ref());
                self.answer(asker, answer);
            }
            Order::Cancel { asker, id, reason } => {
                let answer = self.cancel(&id, &reason);
                self.answer(asker, answer);
            }
            Order::Prune { asker, id, older_than_ms } => {
                let answer = self.prune(id, older_than_ms);
                self.answer(asker, answer);
            }
            // The loop's own affair.
            Order::Stop => {}
        }
    }

    fn answer(&self, Asker { session, request_id }: Asker, answer: Answer) {
        self.report(match answer {
            Ok(document) => Report::Reply { session, request_id, document },
            Err(refusal) => Report::Refused { session, request_id, refusal: *refusal },
        });
    }

    fn register(&mut self, registration: &Registration) -> Answer {
        let Registration { id, program, .. } = registration;
        let folder = self.folder(id);
        let claims = self.room() > 0;
        let record = serde_json::to_string(registration).map_err(|error| store_refusal(&error))?;
        if let Some(state) = &program.state_dir {
            make_private(state.as_ref(), None).map_err(|error| store_refusal(&error))?;
        }
        let make = |token| make_folder(&folder, &program.spec(id, token, record));
        let (record, created) =
            self.records()?.register(registration, claims, make, || folder.sync()).map_err(|error| {
                // It may be on record all the same, as ours.
                self.sweep_soon();
                refusal_of(&error)
            })?;
        if !created {
            registration.compare(&record.asked)?;
            // One that was registered a moment ago, by an order that failed after that, may be ours and not looked after.
            if !self.live.contains_key(id) && record.state.as_str() == "pending" {
                self.sweep_soon();
            }
            return Ok(json!({ "process": self.process(&record), "created": false }));
        }
        self.tell(id, Happening::Registered);
        // As it was registered: whoever asks later sees it run.
        let answer = json!({ "process": self.process(&record), "created": true });
        match record.lease {
            Some(_) => self.keep(&record),
            None => self.more = true,
        }
        Ok(answer)
    }

    fn find(&mut self, id: &ProcessId) -> Result<Record, Box<Refusal>> {
        let records = self.records()?;
        match records.get(id).map_err(|error| store_refusal(&error))? {
            Some(record) => Ok(record),
            None => {
                let ids = records.ids().map_err(|error| store_refusal(&error))?;
                Err(unknown(id, ids.iter().map(String::as_str)))
            }
        }
    }

    fn wait(&mut self, ticket: crate::core::backend::Ticket, id: ProcessId) {
        match self.find(&id) {
            Ok(record) if !record.state.is_over() => self.waits.add(id, ticket),
            Ok(record) => {
                let result = Ok(self.process(&record));
                self.report(Report::Process(News::Waited { ticket, result }));
            }
            Err(refusal) => self.report(Report::Process(News::Waited { ticket, result: Err(refusal) })),
        }
    }

    /// Answers all who wait for a process that has ended.
    pub(super) fn answer_waits(&mut self, id: &ProcessId, document: &Value) {
        for ticket in self.waits.take(id) {
            let result = Ok(document.clone());
            self.report(Report::Process(News::Waited { ticket, result }));
        }
    }

    /// Answers all who wait for a process, if somebody else has seen its end, or has forgotten it.
    pub(super) fn answer_if_over(&mut self, id: &ProcessId) {
        match self.find(id) {
            Ok(record) if record.state.is_over() => {
                let document = self.document(&record, false);
                self.answer_waits(id, &document);
            }
            Ok(_) => {}
            Err(refusal) => {
                for ticket in self.waits.take(id) {
                    self.report(Report::Process(News::Waited { ticket, result: Err(refusal.clone()) }));
                }
            }
        }
    }

    pub(super) fn document(&self, record: &Record, adopted: bool) -> Value {
        documents::document(record, &self.folder(&record.id), &self.parts.place.me, adopted)
    }

    fn process(&self, record: &Record) -> Value {
        let adopted = self.live.get(&record.id).is_some_and(|live| live.is_adopted);
        self.document(record, adopted)
    }

    fn list(&mut self, id: Option<&ProcessId>) -> Answer {
        let records = match id {
            Some(id) => vec![self.find(id)?],
            None => self.records()?.all().map_err(|error| store_refusal(&error))?,
        };
        Ok(documents::list(records.iter().map(|record| self.process(record)).collect()))
    }

    fn cancel(&mut self, id: &ProcessId, reason: &str) -> Answer {
        match self.records()?.cancel(id, reason).map_err(|error| store_refusal(&error))? {
            Cancelled::Unknown => Err(self.find(id).err().unwrap_or_else(|| unknown(id, []))),
            // Whoever cancels wants it ended, and it is.
            Cancelled::Over(record) => Ok(json!({ "process": self.process(&record) })),
            Cancelled::Ended(record) => {
                // For the case that the store is lost.
                if let Err(error) = self.folder(id).write_cancel(record.cancel_reason.as_deref().unwrap_or(reason)) {
                    tracing::warn!(%error, process = %id, "the cancellation is in the store alone");
                }
                let document = self.process(&record);
                self.close(id);
                Ok(json!({ "process": document }))
            }
            Cancelled::Asked(record) => {
                let folder = self.folder(id);
                // Without this file a reaper takes the signal for the machine going down; the record outvotes that.
                if let Err(error) = folder.write_cancel(record.cancel_reason.as_deref().unwrap_or(reason)) {
                    tracing::warn!(%error, process = %id, "cannot tell the reaper why it is ended");
                }
                let document = self.process(&record);
                if self.live.contains_key(id) {
                    self.feed(id, Event::Cancelled);
                } else {
                    ask_stranger_to_end(&folder);
                }
                Ok(json!({ "process": document }))
            }
        }
    }

    fn prune(&mut self, id: Option<ProcessId>, older_than_ms: Option<u64>) -> Answer {
        let records = match &id {
            Some(id) => vec![self.find(id)?],
            None => self.records()?.all().map_err(|error| store_refusal(&error))?,
        };
        if let Some(record) = records.iter().find(|record| id.is_some() && !record.state.is_over()) {
            let state = record.state.as_str();
            return Err(malformed(format!("process `{}` is {state}: cancel it first, or wait for its end", record.id)));
        }
        let now = Timestamp::now().as_millisecond();
        let is_old = |record: &Record| {
            let ended_at = record.ended_at.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
            let age = ended_at.map_or(0, |time| now.saturating_sub(time.as_millisecond()));
            u64::try_from(age).unwrap_or(0) >= older_than_ms.unwrap_or(0)
        };
        let old = records.iter().filter(|record| record.state.is_over() && is_old(record));
        let old: Vec<ProcessId> = old.map(|record| record.id.clone()).collect();
        let folders = self.parts.folders.clone();
        let mut pruned = Vec::new();
        for some in old.chunks(PRUNED_AT_ONCE) {
            let remove = |id: &ProcessId| remove_folder(&Folder::new(&folders.join(id.as_str())));
            for (old, result) in self.records()?.forget(some, remove).map_err(|error| store_refusal(&error))? {
                match result {
                    Ok(()) => pruned.push(old.to_string()),
                    Err(error) if id.is_some() => return Err(refusal_of(&error)),
                    Err(error) => tracing::warn!(error = %chain(&error), process = %old, "cannot be pruned"),
                }
            }
        }
        Ok(json!({ "pruned": pruned }))
    }
}

/// There is no process of that id.
pub(super) fn unknown<'a>(id: &ProcessId, known: impl IntoIterator<Item = &'a str>) -> Box<Refusal> {
    let hint = suggestion(id.as_str(), known).unwrap_or_default();
    Box::new(Refusal::new(Code::ServiceUnknown, format!("no durable process is registered as `{id}`{hint}")))
}

fn store_refusal(error: &dyn std::error::Error) -> Box<Refusal> {
    Box::new(telling::fault(&format!("the store of durable processes cannot be used: {error}")))
}

fn refusal_of(error: &RecordError) -> Box<Refusal> {
    let overloaded = |reason| Box::new(Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT)));
    match error {
        RecordError::Full => overloaded(format!("{error}: prune those that have ended")),
        RecordError::Busy => overloaded(error.to_string()),
        RecordError::Folder(source) => {
            Box::new(telling::fault(&format!("the folder of the process cannot be used: {source}")))
        }
        RecordError::Store(source) => store_refusal(source),
    }
}
