//! What the driver has written down, and in which words: the documents in the journal's rows and in start records.
//!
//! The machine's memory is written whenever it changes, once whoever waits for that has been answered; a start before its
//! fork and again with its process. A warm Hello changes nothing of either.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use broker_proto::{Endpoint, Exit};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::driver::Driver;
use super::places::fnv1a;
use crate::core::backend::{Memory, Phase, Trace};
use crate::core::limits::Unenforced;
use crate::core::registry::{BackendId, BackendKey};
use crate::core::{Timestamp, millis};
use crate::failpoint;
use crate::journal::{self, Change, Document, Journal};
use crate::process::boot::boot_id;
use crate::process::cgroup::Leaf;
use crate::process::identity::{Identity, pid_number};
use crate::process::log_place::LogPlace;
use crate::process::start::StartFacts;
use crate::services::Definition;

/// A machine's memory, and for which definition it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Of the newest definition: a service file that changed while no broker ran clears the crashes.
    pub(super) definition: u64,
    /// When its times were written.
    pub(super) boot_id: Arc<str>,
    pub(super) machine: Memory,
}

/// Where numbers of processes and of clocks are valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Here {
    pub(super) boot_id: Arc<str>,
    /// The inode of the pid namespace.
    pub(super) pid_namespace: u64,
}

/// One start, as the journal and its record tell it: enough to adopt what it became, or to end it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) key: BackendKey,
    pub(super) generation: u64,
    pub(super) began: Timestamp,
    pub(super) here: Here,
    pub(super) definition: Arc<Definition>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) log: Option<LogPlace>,
    pub(super) notify: Option<PathBuf>,
    pub(super) record: Option<PathBuf>,
    /// The cgroup that it begins in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<Leaf>,
    /// What of its limits does not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) unenforced: Vec<Unenforced>,
    /// None before the fork.
    pub(super) process: Option<Process>,
}

/// The process of a start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Process {
    /// The main one.
    pub(super) main: Identity,
    #[serde(with = "pid_number")]
    pub(super) group: Pid,
    pub(super) facts: Arc<StartFacts>,
    /// Those that were its own though nothing leads to them any more.
    pub(super) known: Vec<i32>,
}

impl Here {
    /// This boot, and the namespace that we are in.
    pub(super) fn read() -> std::io::Result<Self> {
        let namespace = std::fs::metadata("/proc/self/ns/pid")?;
        Ok(Self { boot_id: boot_id()?.into(), pid_namespace: std::os::unix::fs::MetadataExt::ino(&namespace) })
    }
}

impl Start {
    /// Notes the process that it has become.
    pub(super) fn runs_as(&mut self, facts: &Arc<StartFacts>, group: Pid) {
        self.process = Some(Process { main: facts.leader, group, facts: Arc::clone(facts), known: Vec::new() });
    }

    /// As the journal is told.
    pub(super) fn as_change(self: &Arc<Self>) -> Change {
        let process = self.process.as_ref().map(|process| journal::Process {
            pid: process.main.pid.as_raw(),
            start_time: process.main.start_time,
            boot_id: self.here.boot_id.clone(),
            pid_namespace: self.here.pid_namespace,
        });
        Change::Launch {
            key: self.key.clone(),
            generation: self.generation,
            launch: Document::of(Arc::clone(self)),
            endpoint: self.endpoint.as_ref().map(Endpoint::to_string).unwrap_or_default(),
            process,
        }
    }
}

/// As a line of text.
impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self))
    }
}

/// Recognises a definition.
pub(super) fn fingerprint(definition: &Definition) -> u64 {
    fnv1a(text(definition).as_bytes())
}

fn text(document: &impl Serialize) -> String {
    serde_json::to_string(document).unwrap_or_else(|error| {
        // Plain data with texts for keys always can be written.
        tracing::error!(%error, "a document for the journal cannot be written");
        String::new()
    })
}

/// The row's word for what the machine remembers.
fn phase(memory: &Memory) -> journal::Phase {
    match memory.phase {
        Phase::Inactive { .. } | Phase::Failed { .. } => journal::Phase::Inactive,
        Phase::Starting { .. } => journal::Phase::Starting,
        Phase::Ready { .. } => journal::Phase::Ready,
        Phase::Stopping { .. } => journal::Phase::Stopping,
        Phase::Quarantined { .. } => journal::Phase::Quarantined,
    }
}

/// Where a test may have the broker die: before that phase is written down, and once it is.
fn places_of(phase: journal::Phase) -> (&'static str, &'static str) {
    match phase {
        journal::Phase::Inactive => ("before-rest", "after-rest"),
        journal::Phase::Intent | journal::Phase::Starting => ("before-starting", "after-starting"),
        journal::Phase::Ready => ("before-ready", "after-ready"),
        journal::Phase::Stopping => ("before-stopping", "after-stopping"),
        journal::Phase::Quarantined => ("before-quarantined", "after-quarantined"),
    }
}

/// How a generation ended, as far as it is known.
fn outcome(exit: Option<(Exit, std::time::Duration)>, trace: &Trace) -> String {
    let (exit_code, signal) = match exit {
        Some((Exit::Code(code), _)) => (Some(code), None),
        Some((Exit::Signal(signal), _)) => (None, Some(signal)),
        Some((Exit::Unknown, _)) | None => (None, None),
    };
    let lived_ms = exit.map(|(_, lived)| millis(lived));
    json!({ "exit_code": exit_code, "signal": signal, "lived_ms": lived_ms, "log_path": trace.log_path }).to_string()
}

/// Has the journal write what it was told in a turn of the runtime once all answers of that turn are on their way, for as
/// long as the broker runs: its thread would take the processor on which a client is to wake.
pub(super) async fn write_after_answers(journal: Journal, told: Rc<Notify>) {
    loop {
        told.notified().await;
        yield_now().await;
        journal.wake();
    }
}

impl Driver {
    /// Writes down what a machine remembers now.
    pub(super) fn remember(&mut self, id: BackendId) {
        let Some((key, backend)) = self.registry.get(id) else { return };
        let Some(hosted) = self.hosted.get(&id) else { return };
        let machine = backend.memory();
        let (generation, phase) = (machine.generation, phase(&machine));
        let memory = text(&Remembered { definition: hosted.fingerprint, boot_id: self.here.boot_id.clone(), machine });
        let (before, after) = places_of(phase);
        failpoint::reached(before);
        self.journal.tell_quietly(Change::Told { key: key.clone(), generation, phase, memory });
        // What begins is written with its intent; if it comes to nothing, with that.
        if phase != journal::Phase::Starting || hosted.running.is_some() {
            self.told.notify_one();
        }
        failpoint::reached_after(after, || self.journal.flush());
    }

    /// Writes down who the main process of a running generation is now.
    pub(super) fn remember_main(&mut self, id: BackendId) {
        if let Some(running) = self.hosted.get(&id).and_then(|hosted| hosted.running.as_ref()) {
            failpoint::reached("before-main");
            self.journal.tell(running.start.as_change());
            failpoint::reached_after("after-main", || self.journal.flush());
        }
    }

    /// Writes down that nothing is left of a generation, and how it ended.
    pub(super) fn remember_end(&mut self, id: BackendId, generation: u64, trace: &Trace) {
        let Some((key, _)) = self.registry.get(id) else { return };
        let exit = self.hosted.get_mut(&id).and_then(|hosted| hosted.exit.take());
        let outcome = outcome(exit, trace);
        failpoint::reached("before-ended");
        self.journal.tell(Change::Ended { key: key.clone(), generation, outcome });
        failpoint::reached_after("after-ended", || self.journal.flush());
    }

    /// The state of the journal, for `status`.
    pub(super) fn journal_report(&self) -> Value {
        let health = self.journal.health();
        let trouble =
            health.trouble.map(|trouble| json!({ "since": format!("{:.3}", trouble.since), "what": trouble.what }));
        json!({ "path": health.path, "rows": health.rows, "trouble": trouble, "set_aside": health.set_aside })
    }
}
