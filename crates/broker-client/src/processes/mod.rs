//! Durable processes: commands that the broker runs to their end under an id, even if it dies meanwhile.
//!
//! Owns what a caller says of them and what the broker answers; they are an operator's orders and reports underneath.

mod document;
mod events;
mod request;

use std::sync::Arc;
use std::time::Duration;

use broker_proto::AdminRequest;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::error::{Error, ProtocolError};
use crate::pending::Pending;
pub use document::{Process, ProcessExit, ProcessLease, ProcessState};
pub use events::{ProcessEvent, ProcessEvents, ProcessHappening};
pub use request::ProcessRequest;

/// Durable processes. For root and the broker's own user, as all orders are.
impl Client {
    /// Registers a process, which the broker then runs to its end, and reports it as it is at the beginning;
    /// [`wait_process`](Self::wait_process) waits for its end.
    ///
    /// Registering the same again under the same id reports the process that is there, so that this is repeated if the
    /// connection breaks. Other content under the same id is refused (`malformed`), with the difference.
    pub fn run(&self, request: ProcessRequest) -> Pending<Process> {
        let what = format!("the registration of process `{}`", request.process_id());
        self.ask(AdminRequest::Run { spec: request.into_spec() }, what, one)
    }

    /// Waits until a process has ended, over reconnects and restarts of the broker. Any number of callers may wait.
    ///
    /// A process that nobody knows is refused (`service_unknown`). The wait is over after [`Builder::deadline`], if one
    /// is set, and the process goes on.
    ///
    /// [`Builder::deadline`]: crate::Builder::deadline
    pub fn wait_process(&self, id: impl Into<String>) -> Pending<Process> {
        self.wait(id.into(), None)
    }

    /// Waits until a process has ended, or until so much time has passed; then it is reported as it is.
    pub fn wait_process_for(&self, id: impl Into<String>, limit: Duration) -> Pending<Process> {
        self.wait(id.into(), Some(limit))
    }

    fn wait(&self, id: String, limit: Option<Duration>) -> Pending<Process> {
        let what = format!("the end of process `{id}`");
        self.ask(AdminRequest::Wait { id, wait_ms: limit.map(milliseconds) }, what, one)
    }

    /// Every process that the broker knows, those that have ended among them until they are pruned.
    pub fn processes(&self) -> Pending<Vec<Process>> {
        self.ask(AdminRequest::Processes { id: None }, "the report of processes", |json| {
            Ok(read::<Processes>(&json)?.processes)
        })
    }

    /// One process as it is; one that nobody knows is refused (`service_unknown`).
    pub fn process(&self, id: impl Into<String>) -> Pending<Process> {
        let id = id.into();
        let what = format!("the report of process `{id}`");
        self.ask(AdminRequest::Processes { id: Some(id) }, what, |json| {
            let Single { processes: (process,) } = read(&json)?;
            Ok(process)
        })
    }

    /// Ends a process: SIGTERM, then SIGKILL. The reason is kept in its record. Answered at once with the process as it
    /// is; [`wait_process`](Self::wait_process) waits for the end. One that has ended stays as it was.
    pub fn cancel_process(&self, id: impl Into<String>, reason: impl Into<String>) -> Pending<Process> {
        let (id, reason) = (id.into(), reason.into());
        let what = format!("the cancellation of process `{id}`");
        self.ask(AdminRequest::Cancel { id, reason }, what, one)
    }

    /// Forgets processes that have ended, with their output: the one named, or all; with an age, only those that ended
    /// that long ago or earlier. Tells the ids of those that are forgotten.
    pub fn prune_processes(&self, id: Option<&str>, older_than: Option<Duration>) -> Pending<Vec<String>> {
        let request = AdminRequest::Prune { id: id.map(str::to_owned), older_than_ms: older_than.map(milliseconds) };
        self.ask(request, "the pruning of processes", |json| Ok(read::<Pruned>(&json)?.pruned))
    }

    /// What happened to processes and is still on the broker's record, then what happens, over reconnects.
    #[must_use]
    pub fn process_events(&self) -> ProcessEvents {
        ProcessEvents::new(self.clone())
    }
}

#[derive(Deserialize)]
struct One {
    process: Process,
}

#[derive(Deserialize)]
struct Processes {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Single {
    processes: (Process,),
}

#[derive(Deserialize)]
struct Pruned {
    pruned: Vec<String>,
}

fn one(json: String) -> Result<Process, Error> {
    Ok(read::<One>(&json)?.process)
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Protocol(ProtocolError::Document(Arc::new(error))))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
