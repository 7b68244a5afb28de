//! A process as the broker reports it.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// A durable process, as the broker reported it. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Process {
    /// Under which it is registered.
    pub id: String,
    /// How it stands.
    pub state: ProcessState,
    /// What it runs; `None` for a service.
    pub command: Option<Vec<String>>,
    /// The service that it runs, as `backup@1.0.0`.
    pub service: Option<String>,
    /// The service's instance.
    pub instance: Option<String>,
    /// Where it runs.
    pub working_directory: Option<PathBuf>,
    /// Which attempt this is, from 1; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// How many attempts there may be.
    #[serde(default)]
    pub max_attempts: u32,
    /// How long one attempt may take, in milliseconds; `None` is for ever.
    pub timeout_ms: Option<u64>,
    /// The command's process, while it runs.
    pub pid: Option<u32>,
    /// Whether another broker started the attempt.
    #[serde(default)]
    pub adopted: bool,
    /// How the command ended, if it did so by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What had it end: `cancel` or `timeout`.
    pub ended_by: Option<String>,
    /// Why it was cancelled, or has failed.
    pub reason: Option<String>,
    /// When it was registered.
    pub registered_at: Option<String>,
    /// When the newest attempt began.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// The file that the newest attempt's stdout goes to, on the broker's machine.
    pub stdout: Option<PathBuf>,
    /// The file of its stderr.
    pub stderr: Option<PathBuf>,
    /// Which broker owns it just now.
    pub lease: Option<ProcessLease>,
}

impl Process {
    /// How it ended, for one who acts on it; `None` if it has not ended.
    #[must_use]
    pub fn exit(&self) -> Option<ProcessExit> {
        if !self.state.has_ended() {
            return None;
        }
        Some(match (self.ended_by.as_deref(), self.exit_code, self.signal) {
            _ if self.state == ProcessState::Cancelled => ProcessExit::Cancelled,
            (Some("timeout"), ..) => ProcessExit::TimedOut,
            (_, Some(code), _) => ProcessExit::Code(code),
            (_, None, Some(signal)) => ProcessExit::Signal(signal),
            (_, None, None) if self.state == ProcessState::Succeeded => ProcessExit::Code(0),
            (_, None, None) => ProcessExit::Unknown,
        })
    }
}

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProcessState {
    /// Registered; an attempt is about to begin.
    Pending,
    /// An attempt runs.
    Running,
    /// It ended with exit code 0. This and what follows is for ever.
    Succeeded,
    /// It ended otherwise, took too long, could not be executed, or was lost too often.
    Failed,
    /// Somebody ended it, and said why.
    Cancelled,
}

impl ProcessState {
    /// Whether nothing more happens to it.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The state as the broker's documents have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessExit {
    /// Its command ended with this exit code; 126 and 127 if it could not be executed, as shells have it.
    Code(i32),
    /// This signal ended its command, and the broker did not send it.
    Signal(i32),
    /// An attempt took longer than it may.
    TimedOut,
    /// Somebody cancelled it: [`Process::reason`] says why.
    Cancelled,
    /// Nobody saw how: [`Process::reason`] says what is known.
    Unknown,
}

impl ProcessExit {
    /// The status with which a shell would end that had run the command: its own exit code, 128 and the signal, 124 as
    /// timeout(1) if it took too long, and 1 if it was cancelled or nobody knows.
    #[must_use]
    pub fn status(self) -> u8 {
        let status = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::TimedOut => 124,
            Self::Cancelled | Self::Unknown => 1,
        };
        u8::try_from(status).unwrap_or(1)
    }
}

/// The ownership of a process by one broker, where several share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ProcessLease {
    /// The owner's process.
    pub owner: u32,
    /// Whether the owner is the broker that reports.
    pub mine: bool,
    /// Grows with each owner.
    pub fencing_token: u64,
    /// When it is over unless it is renewed, in milliseconds from the report.
    pub expires_in_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(document: &str) -> Process {
        serde_json::from_str(document).expect("a document")
    }

    #[test]
    fn a_process_ends_as_its_command_did_or_as_it_was_ended() {
        let exit = |facts: &str| process(&format!("{{\"id\": \"x\", {facts}}}")).exit();
        let status = |facts: &str| exit(facts).map(ProcessExit::status);
        assert_eq!(exit("\"state\": \"pending\""), None);
        assert_eq!(exit("\"state\": \"running\", \"exit_code\": null"), None);
        assert_eq!(exit("\"state\": \"succeeded\", \"exit_code\": 0"), Some(ProcessExit::Code(0)));
        assert_eq!(status("\"state\": \"failed\", \"exit_code\": 7"), Some(7));
        assert_eq!(status("\"state\": \"failed\", \"signal\": 9"), Some(137));
        assert_eq!(status("\"state\": \"failed\", \"signal\": 15, \"ended_by\": \"timeout\""), Some(124));
        assert_eq!(status("\"state\": \"cancelled\", \"exit_code\": 0, \"ended_by\": \"cancel\""), Some(1));
        assert_eq!(exit("\"state\": \"failed\", \"reason\": \"lost 3 times\""), Some(ProcessExit::Unknown));
        assert_eq!(ProcessExit::Code(-1).status(), 1);
    }
}
