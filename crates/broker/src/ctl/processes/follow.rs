//! Follows a process to its end, over restarts of the broker: its output as it is written, its attempts as they change.

use std::future::IntoFuture as _;
use std::time::Duration;

use broker_client::{Error, Events, Process, SessionEvent};
use broker_proto::{AdminRequest, Refusal};
use serde_json::Value;

use super::super::documents;
use super::super::output::{Failure, harmless};
use super::super::session::{Session, milliseconds};
use super::output::Outputs;
use super::{One, of_processes};

/// How long the broker is asked to wait for the end before it is asked again, which tells of new attempts: a moment at
/// the beginning, when the first attempt begins, then longer.
const PATIENCE_MIN: Duration = Duration::from_millis(25);
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// How long to wait before a broker is asked again that could not answer, unless it says so itself.
const PAUSE: Duration = Duration::from_secs(1);

/// A process that is followed, as it was told last.
pub(super) struct Follower<'a> {
    session: &'a Session<'a>,
    events: Events,
    outputs: Option<Outputs<'a>>,
    patience: Duration,
    has_told: bool,
    pub(super) process: Process,
    /// The same as the broker wrote it.
    pub(super) document: Value,
}

impl<'a> Follower<'a> {
    pub(super) fn new(session: &'a Session<'a>, process: Process, document: Value, shows_output: bool) -> Self {
        let outputs = shows_output.then(|| Outputs::new(session.console));
        let events = session.client.events();
        Self { session, events, outputs, patience: PATIENCE_MIN, has_told: false, process, document }
    }

    /// Returns once the process has ended and what it wrote has been printed.
    pub(super) async fn until_end(&mut self) -> Result<(), Failure> {
        loop {
            if let Some(outputs) = &mut self.outputs {
                outputs.drain(&self.process)?;
            }
            if self.process.state.has_ended() {
                return self.rest().await;
            }
            match self.news().await? {
                Ok(text) => self.take(&text)?,
                // The broker is away or busy; the process goes on.
                Err(Error::Timeout { .. }) => {}
                Err(Error::Refused(refusal)) if !refusal.code.is_fatal() => self.pause(&refusal).await,
                Err(error) => return Err(of_processes(self.session.console, error.into())),
            }
        }
    }

    /// Prints what is left once nothing more is written.
    async fn rest(&mut self) -> Result<(), Failure> {
        while let Some(outputs) = self.outputs.as_mut().filter(|outputs| outputs.has_more()) {
            outputs.changed().await;
            outputs.drain(&self.process)?;
        }
        Ok(())
    }

    /// Asks for the end, and prints what is written meanwhile.
    async fn news(&mut self) -> Result<Result<String, Error>, Failure> {
        let wait = AdminRequest::Wait { id: self.process.id.clone(), wait_ms: Some(milliseconds(self.patience)) };
        let mut answer = self.session.client.admin(wait).into_future();
        loop {
            let Self { outputs, events, process, session, .. } = self;
            let changed = async {
                match outputs {
                    Some(outputs) => outputs.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = &mut answer => return Ok(answer),
                () = changed => {}
                Some(event) = events.next() => {
                    if let Some(sentence) = in_words(&event).filter(|_| session.console.verbose) {
                        session.console.note(sentence);
                    }
                }
            }
            if let Some(outputs) = outputs {
                outputs.drain(process)?;
            }
        }
    }

    fn take(&mut self, text: &str) -> Result<(), Failure> {
        let document = documents::parse(text)?;
        let One { process, .. } = documents::read(&document)?;
        let is_other = (process.state, process.attempt) != (self.process.state, self.process.attempt);
        self.patience = if is_other { PATIENCE_MIN } else { (self.patience * 2).min(PATIENCE_MAX) };
        (self.process, self.document) = (process, document);
        Ok(())
    }

    async fn pause(&mut self, refusal: &Refusal) {
        if !std::mem::replace(&mut self.has_told, true) && !self.session.console.quiet {
            let reason = harmless(&refusal.reason);
            self.session.console.note(format_args!("{reason} ({}); the broker is asked again", refusal.code));
        }
        let after = refusal.retry_after_ms.map_or(PAUSE, Duration::from_millis);
        tokio::time::sleep(after.clamp(PATIENCE_MIN, 10 * PAUSE)).await;
    }
}

fn in_words(event: &SessionEvent) -> Option<String> {
    match event {
        SessionEvent::GoAway(_) => Some("the broker is about to leave; the process goes on".to_owned()),
        SessionEvent::Disconnected { reason } => Some(format!("{reason}; reconnecting, the process goes on")),
        SessionEvent::Reconnected => Some("connected to the broker again".to_owned()),
        _ => None,
    }
}
