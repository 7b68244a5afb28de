//! The typed answer No: its code, its evidence, and when to try again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request is refused. The order is the wire's: new codes go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No service file defines that name.
    ServiceUnknown,
    /// No installed version satisfies the requirement; the evidence lists what there is.
    VersionUnsupported,
    /// The versions that satisfy the requirement are below the minimum or denied.
    VersionBlocked,
    /// The backend crashed again after its one retry.
    BackendUnavailable,
    /// The program cannot be executed.
    SpawnFailed,
    /// The client's own deadline passed first; the start goes on.
    StartTimeout,
    /// This user asks more often than its limit allows.
    RateLimited,
    /// The broker is at one of its limits.
    Overloaded,
    /// The service's access rules, or the broker's, do not admit this user.
    PeerRejected,
    /// The broker, or this backend, is being drained or stopped.
    ShuttingDown,
    /// Client and broker have no protocol version in common.
    ProtocolUnsupported,
    /// The message cannot be understood.
    Malformed,
    /// A fault of the broker; its log has the details under the id in the reason.
    Internal,
}

impl Code {
    /// All codes, in the order of the wire.
    pub const ALL: [Self; 13] = [
        Self::ServiceUnknown,
        Self::VersionUnsupported,
        Self::VersionBlocked,
        Self::BackendUnavailable,
        Self::SpawnFailed,
        Self::StartTimeout,
        Self::RateLimited,
        Self::Overloaded,
        Self::PeerRejected,
        Self::ShuttingDown,
        Self::ProtocolUnsupported,
        Self::Malformed,
        Self::Internal,
    ];

    /// The code as machines read it: `backend_unavailable`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceUnknown => "service_unknown",
            Self::VersionUnsupported => "version_unsupported",
            Self::VersionBlocked => "version_blocked",
            Self::BackendUnavailable => "backend_unavailable",
            Self::SpawnFailed => "spawn_failed",
            Self::StartTimeout => "start_timeout",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::PeerRejected => "peer_rejected",
            Self::ShuttingDown => "shutting_down",
            Self::ProtocolUnsupported => "protocol_unsupported",
            Self::Malformed => "malformed",
            Self::Internal => "internal",
        }
    }

    /// Whether asking again cannot help until somebody changes something.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::ServiceUnknown
            | Self::VersionUnsupported
            | Self::VersionBlocked
            | Self::SpawnFailed
            | Self::PeerRejected
            | Self::ProtocolUnsupported
            | Self::Malformed => true,
            Self::BackendUnavailable
            | Self::StartTimeout
            | Self::RateLimited
            | Self::Overloaded
            | Self::ShuttingDown
            | Self::Internal => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the broker knows of the cause. Every field is present only when known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The daemon's exit code.
    pub exit_code: Option<i32>,
    /// The number of the signal that ended the daemon.
    pub signal: Option<i32>,
    /// From the start of the daemon to its end, in milliseconds.
    pub lived_ms: Option<u64>,
    /// Which start this was: 0 the first, 1 the retry.
    pub attempt: Option<u32>,
    /// The last lines that the daemon wrote to its log.
    pub stderr: Option<String>,
    /// The daemon's log file.
    pub log_path: Option<String>,
    /// The versions that are installed, ascending.
    pub available: Vec<String>,
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, for machines.
    pub code: Code,
    /// Why, for people: one sentence, no full stop.
    pub reason: String,
    /// When asking again makes sense, in milliseconds from now.
    pub retry_after_ms: Option<u64>,
    /// What the broker knows of the cause.
    pub evidence: Evidence,
}

impl Refusal {
    /// A refusal without evidence or retry-after.
    #[must_use]
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), retry_after_ms: None, evidence: Evidence::default() }
    }

    /// The same refusal with a retry-after, in milliseconds.
    #[must_use]
    pub fn retry_after_ms(mut self, milliseconds: u64) -> Self {
        self.retry_after_ms = Some(milliseconds);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn codes_keep_their_place_on_the_wire() {
        for (at, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, at, "{code} moved");
        }
    }
}
