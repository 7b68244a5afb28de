//! Durable processes for programs without an asynchronous runtime.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use super::Client;
use super::runtime::Runtime;
use crate::error::Error;
use crate::processes::{Process, ProcessEvent, ProcessRequest};

/// Durable processes.
impl Client {
    /// Registers a process, as [`crate::Client::run`] does.
    ///
    /// # Errors
    /// The broker's refusal, or why it could not be asked.
    pub fn run(&self, request: ProcessRequest) -> Result<Process, Error> {
        self.runtime.wait(self.inner.run(request).into_future())
    }

    /// Waits until a process has ended.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn wait_process(&self, id: impl Into<String>) -> Result<Process, Error> {
        self.runtime.wait(self.inner.wait_process(id).into_future())
    }

    /// Waits until a process has ended, or until so much time has passed; then it is reported as it is.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn wait_process_for(&self, id: impl Into<String>, limit: Duration) -> Result<Process, Error> {
        self.runtime.wait(self.inner.wait_process_for(id, limit).into_future())
    }

    /// Every process that the broker knows.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn processes(&self) -> Result<Vec<Process>, Error> {
        self.runtime.wait(self.inner.processes().into_future())
    }

    /// One process as it is.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn process(&self, id: impl Into<String>) -> Result<Process, Error> {
        self.runtime.wait(self.inner.process(id).into_future())
    }

    /// Ends a process, as [`crate::Client::cancel_process`] does.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn cancel_process(&self, id: impl Into<String>, reason: impl Into<String>) -> Result<Process, Error> {
        self.runtime.wait(self.inner.cancel_process(id, reason).into_future())
    }

    /// Forgets processes that have ended, as [`crate::Client::prune_processes`] does.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn prune_processes(&self, id: Option<&str>, older_than: Option<Duration>) -> Result<Vec<String>, Error> {
        self.runtime.wait(self.inner.prune_processes(id, older_than).into_future())
    }

    /// What happened to processes, and what happens.
    #[must_use]
    pub fn process_events(&self) -> ProcessEvents {
        ProcessEvents { inner: self.inner.process_events(), runtime: Arc::clone(&self.runtime) }
    }
}

/// The events of all processes, one after the other; the iterator waits for each, and has no end of its own.
#[derive(Debug)]
pub struct ProcessEvents {
    // Dropped before the runtime that it lives on.
    inner: crate::ProcessEvents,
    runtime: Arc<Runtime>,
}

impl Iterator for ProcessEvents {
    type Item = Result<ProcessEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.runtime.wait(self.inner.next()))
    }
}
