//! The recovery sweep: what an earlier broker left is found again, before the first client is let in.
//!
//! Every row of the journal, and every start record without one, is judged by proof (`judge`); what lives is adopted as
//! it is, what is gone is a crash that goes through the recovery policy, and what cannot be proved is quarantined.

mod adopt;
pub(super) mod judge;
mod left;
mod returned;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use broker_proto::{Endpoint, Exit};

use self::judge::{Judge, Verdict};
use self::left::Left;
use super::clock::now;
use super::driver::Driver;
use super::hosted::{self, Held, Hosted, Main};
use super::inherited::Inherited;
use super::ledger::Start;
use super::places::{Places, Spared, folder_of, start_name, starts_of};
use super::work::Ending;
use crate::core::Timestamp;
use crate::core::backend::{Backend, Event, Happening, Memory};
use crate::core::registry::{BackendId, BackendKey};
use crate::failpoint;
use crate::journal::{Change, Row, Unreadable};
use crate::process::group::Tree;
use crate::process::log_file;
use crate::process::log_place::LogPlace;
use crate::services::{Definition, Log};

/// How it went, for the log.
#[derive(Debug, Default)]
struct Tally {
    adopted: usize,
    gone: usize,
    rebooted: usize,
    taken_down: usize,
    quarantined: usize,
}

impl Driver {
    /// Takes over what an earlier broker left.
    pub(super) fn take_over(&mut self, rows: Vec<Row>, unreadable: Vec<Unreadable>, mut inherited: Inherited) {
        let began = now();
        failpoint::reached("sweep-begun");
        let mut spared = Spared::default();
        let mut tally = Tally::default();
        let apart: HashSet<BackendKey> = unreadable.iter().filter_map(|row| row.key.clone()).collect();
        for row in unreadable {
            self.set_apart(row, &mut spared, &mut tally);
        }
        let mut judge = Judge::new(self.here.clone());
        let mut all = left::gather(rows, &self.places);
        // The record of a start is no reason to trust it: its row says more, and is not understood.
        all.retain(|left| !apart.contains(&left.key));
        let half = all.len() / 2;
        for (number, left) in all.into_iter().enumerate() {
            if number == half {
                failpoint::reached("sweep-midway");
            }
            left.start.iter().for_each(left::settle_log);
            let verdict = judge.judge(&left);
            self.settle(left, verdict, &mut inherited, &mut spared, &mut tally);
        }
        inherited.close_rest(&self.fd_store);
        self.attend_all();
        self.places.sweep(&spared, &self.cgroups);
        let Tally { adopted, gone, rebooted, taken_down, quarantined } = tally;
        if adopted + gone + rebooted + taken_down + quarantined > 0 {
            let took = now().since(began);
            tracing::info!(
                adopted,
                gone,
                rebooted,
                taken_down,
                quarantined,
                ?took,
                "took over what an earlier broker left"
            );
        }
        failpoint::reached("sweep-done");
    }

    /// Does what follows from a verdict.
    fn settle(
        &mut self,
        left: Left,
        verdict: Verdict,
        inherited: &mut Inherited,
        spared: &mut Spared,
        tally: &mut Tally,
    ) {
        let Left { key, memory, fingerprint, start, .. } = left;
        let own = start.as_ref().map(|start| Arc::clone(&start.definition));
        if matches!(verdict, Verdict::Rests | Verdict::NeverStarted | Verdict::OtherBoot) {
            start.iter().filter_map(|start| start.record.as_deref()).for_each(left::discard);
        }
        let newest = self.catalog.services.get(&key.service).and_then(|service| service.daemon(&key.version));
        let newest = newest.map(Arc::clone);
        // What runs keeps what it was started with; what does not is started with the newest.
        let definition = match verdict {
            Verdict::Rests | Verdict::NeverStarted | Verdict::OtherBoot => newest.clone(),
            Verdict::Alive(_) | Verdict::Gone(_) | Verdict::TakenDown(_) | Verdict::Doomed(_) => {
                own.or_else(|| newest.clone())
            }
            Verdict::Unclear(_) => own.or_else(|| newest.clone()),
        };
        let Some(definition) = definition else {
            if let Verdict::Unclear(reason) = verdict {
                tracing::error!(backend = %key, reason, "quarantined, and no service file defines it any more");
                tally.quarantined += 1;
                spare(Some(&key), start.as_ref(), &self.places, spared);
                self.held_back.insert(key, reason);
            } else if self.catalog.problems.is_empty() {
                self.journal.tell(Change::Forgotten { key });
            } else {
                // The definition may be in a file that has an error just now.
                self.dormant.insert(key, memory_after(memory, &verdict, now()));
            }
            return;
        };
        let memory = memory_after(memory, &verdict, now());
        let generation = memory.generation;
        let id = self.restore(&key, memory, &definition);
        // Of what may run nothing is touched, and nothing is started over it with a socket that it may have.
        let held = match verdict {
            Verdict::Unclear(_) => None,
            _ => self.listener_again(&key, &definition, start.as_ref(), inherited),
        };
        spared.sockets.extend(held.as_ref().and_then(Held::path).map(Path::to_owned));
        if let Some(hosted) = self.hosted.get_mut(&id) {
            hosted.listener = held;
            hosted.removed = newest.is_none();
            // A file of one that logs to the journal is an old one.
            let newest = || Some(LogPlace::File(log_file::list(&self.places.logs(&key)).ok()?.pop()?));
            let newest = || newest().filter(|_| hosted.definition.log != Log::Journal);
            // Of one that never started a file is named that may not have been made.
            let is_made =
                |log: &LogPlace| !matches!(verdict, Verdict::NeverStarted) || log.file().is_none_or(Path::exists);
            let own = start.as_ref().and_then(|start| start.log.clone()).filter(is_made);
            hosted.log = own.or_else(newest);
        }
        self.remember(id);
        // What is left of these is ended by a thread of its own.
        if matches!(verdict, Verdict::Gone(_) | Verdict::TakenDown(_) | Verdict::Doomed(_)) {
            let start = start.iter().find(|start| start.cgroup.is_some());
            spared.starts.extend(start.map(|start| start_name(&start.key, start.generation)));
        }
        match verdict {
            Verdict::Rests | Verdict::NeverStarted => {}
            Verdict::OtherBoot => {
                tracing::info!(backend = %key, generation, "ended with an earlier boot");
                tally.rebooted += 1;
            }
            Verdict::Alive(found) => {
                tracing::info!(backend = %key, generation, pid = found.main.pid.as_raw(), "adopted");
                spare(Some(&key), start.as_ref(), &self.places, spared);
                tally.adopted += 1;
                self.adopt(id, found, start, inherited);
            }
            Verdict::Gone(facts) => {
                tracing::warn!(backend = %key, generation, "ended while no broker ran");
                tally.gone += 1;
                self.dispatch(id, Event::Exited { generation, exit: Exit::Unknown, survivors: false });
                let facts = facts.map(|facts| Arc::new(*facts));
                let ending = remains(start.as_ref(), self.is_held(id), None, facts);
                self.end_with(id, generation, ending);
            }
            Verdict::TakenDown(facts) => {
                tracing::info!(backend = %key, generation, "ended with the unit of all backends");
                tally.taken_down += 1;
                self.dispatch(id, Event::TakenDown { generation, exit: Exit::Unknown });
                let ending = remains(start.as_ref(), self.is_held(id), None, Some(Arc::new(*facts)));
                self.end_with(id, generation, ending);
            }
            Verdict::Doomed(found) => {
                tracing::warn!(backend = %key, generation, "ends with the broker that could not record it");
                tally.gone += 1;
                let main = Main { pid: found.main.pid, pidfd: Arc::new(found.pidfd), group: found.group };
                let facts = Some(Arc::new(found.facts));
                self.end_with(id, generation, remains(start.as_ref(), self.is_held(id), Some(main), facts));
            }
            Verdict::Unclear(reason) => {
                tracing::error!(backend = %key, generation, reason, "quarantined");
                self.record(id, generation, Happening::Quarantined { reason });
                spare(Some(&key), start.as_ref(), &self.places, spared);
                tally.quarantined += 1;
            }
        }
        // Changed while no broker ran, so its crashes are forgotten, as by a reload.
        let is_changed = |newest: &Arc<Definition>| {
            **newest != *definition || fingerprint.is_some_and(|old| old != super::ledger::fingerprint(newest))
        };
        if let Some(newest) = newest.filter(is_changed) {
            self.redefine(id, newest);
        }
    }

    /// Registers the machine of a backend as it was left.
    pub(super) fn restore(&mut self, key: &BackendKey, memory: Memory, definition: &Arc<Definition>) -> BackendId {
        let policies = hosted::policies(definition, self.config.limits.waiters_per_backend);
        let id = self.registry.restore(key, Backend::restored(now(), policies, memory));
        self.hosted.insert(id, Box::new(Hosted::new(Arc::clone(definition))));
        id
    }

    /// A row that is not understood: nothing is started over what it may stand for.
    fn set_apart(&mut self, row: Unreadable, spared: &mut Spared, tally: &mut Tally) {
        let Unreadable { instance, service, version, key, pid, reason, launch, .. } = row;
        let start: Option<Start> = launch.and_then(|launch| serde_json::from_str(&launch).ok());
        spare(key.as_ref(), start.as_ref(), &self.places, spared);
        // Texts that are no key name no folder either, unless they do.
        let texts = [&instance, &service, &version];
        if texts.iter().all(|text| Path::new(text).components().count() == 1 && !text.starts_with('.')) {
            spared.backends.push(texts.iter().collect());
        }
        spared.starts_of.push(starts_of(&service, &version, &instance));
        let definition = key.as_ref().and_then(|key| {
            self.catalog.services.get(&key.service).and_then(|service| service.daemon(&key.version)).cloned()
        });
        let definition = definition.or_else(|| start.as_ref().map(|start| Arc::clone(&start.definition)));
        let reason = format!("its row in the journal is not understood: {reason}");
        tracing::error!(instance, service, version, ?pid, reason, "quarantined");
        tally.quarantined += 1;
        if let (Some(key), None) = (&key, &definition) {
            self.held_back.insert(key.clone(), reason.clone());
        }
        if let (Some(key), Some(definition)) = (key, definition) {
            // A generation that was given out is not given again.
            let generation = start.map_or(0, |start| start.generation);
            let memory = Memory::of_a_start(generation, now(), Duration::ZERO).quarantined(reason);
            self.restore(&key, memory, &definition);
        }
    }
}

/// What is remembered after that verdict.
fn memory_after(memory: Memory, verdict: &Verdict, now: Timestamp) -> Memory {
    match verdict {
        Verdict::NeverStarted => memory.without_its_start(),
        Verdict::OtherBoot => memory.in_another_boot(),
        Verdict::Doomed(_) => memory.being_ended(now),
        Verdict::Unclear(reason) => memory.quarantined(reason.clone()),
        Verdict::Rests | Verdict::Alive(_) | Verdict::Gone(_) | Verdict::TakenDown(_) => memory,
    }
}

/// Keeps what belongs to a backend that lives, or may.
fn spare(key: Option<&BackendKey>, start: Option<&Start>, places: &Places, spared: &mut Spared) {
    let keys = key.into_iter().chain(start.map(|start| &start.key));
    for key in keys {
        spared.backends.push(folder_of(key));
        spared.sockets.insert(places.socket(key));
        spared.starts_of.push(starts_of(&key.service, &key.version, &key.instance));
    }
    let socket = start.and_then(|start| match &start.endpoint {
        Some(Endpoint::Unix { path }) => Some(PathBuf::from(path)),
        Some(Endpoint::Tcp { .. }) | None => None,
    });
    spared.sockets.extend(socket.into_iter().chain(start.and_then(|start| start.notify.clone())));
}

/// What is to be ended of a start whose broker is gone. A socket that the broker holds stays.
fn remains(
    start: Option<&Start>,
    is_held: bool,
    main: Option<Main>,
    facts: Option<Arc<crate::process::start::StartFacts>>,
) -> Ending {
    let socket = start.and_then(|start| match &start.endpoint {
        Some(Endpoint::Unix { path }) if !is_held => Some(PathBuf::from(path)),
        Some(Endpoint::Unix { .. } | Endpoint::Tcp { .. }) | None => None,
    });
    let log = start.and_then(|start| start.log.clone());
    let record = start.and_then(|start| start.record.clone());
    let cgroup = start.and_then(|start| start.cgroup.clone());
    Ending { main, facts, tree: Tree::default(), socket, log, stream: None, is_explained: false, record, cgroup }
}
