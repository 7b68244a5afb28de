//! Why a backend failed, in words for those who are refused.

use std::time::Duration;

use broker_proto::{Code, Evidence, Exit, Refusal};
use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::time::{millis, millis_up};
use super::words::Trace;

/// Why a start or a generation failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(super) cause: Cause,
    pub(super) lived: Duration,
    pub(super) attempt: u32,
    pub(super) trace: Trace,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    Exited { exit: Exit, ready: bool },
    Ceiling { obstacle: Option<String> },
}

impl Failure {
    /// The refusal of one who asks at `now` and is refused until then.
    pub(super) fn refusal(&self, now: Timestamp, until: Timestamp) -> Refusal {
        let lived = humane(self.lived);
        let what = match &self.cause {
            Cause::Exited { exit, ready } => {
                let how = match exit {
                    Exit::Code(code) => format!("exited with code {code}"),
                    Exit::Signal(signal) => format!("was ended by signal {signal}"),
                    Exit::Unknown => "ended".to_owned(),
                };
                let when = if *ready { "after" } else { "before it was ready, after" };
                format!("the daemon {how} {when} {lived}")
            }
            Cause::Ceiling { obstacle: None } => format!("the daemon was not ready within {lived}"),
            Cause::Ceiling { obstacle: Some(obstacle) } => {
                format!("the daemon was not ready within {lived}: {obstacle}")
            }
        };
        let (exit_code, signal) = match self.cause {
            Cause::Exited { exit: Exit::Code(code), .. } => (Some(code), None),
            Cause::Exited { exit: Exit::Signal(signal), .. } => (None, Some(signal)),
            Cause::Exited { exit: Exit::Unknown, .. } | Cause::Ceiling { .. } => (None, None),
        };
        Refusal {
            code: Code::BackendUnavailable,
            reason: format!("{what}, and its one retry is used up"),
            retry_after_ms: Some(millis_up(until.since(now)).max(1)),
            evidence: Evidence {
                exit_code,
                signal,
                lived_ms: Some(millis(self.lived)),
                attempt: Some(self.attempt),
                stderr: self.trace.stderr.clone(),
                log_path: self.trace.log_path.clone(),
                available: Vec::new(),
            },
        }
    }
}

/// A duration for a sentence: milliseconds below ten seconds, tenths of seconds above.
pub(super) fn humane(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}
