//! What a service file defines, once it is parsed.
//!
//! Owns the types. A value of these types was checked when it was made; nobody checks it again. Immutable: a backend
//! keeps the definition that it was started with, over the death of its broker too, and a reload makes new ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use broker_proto::ServiceName;
use nix::sys::signal::Signal;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::template::{Placeholder, Template};
use crate::core::admission::AccessRules;
use crate::core::limits::Limits;
use crate::core::versions::VersionRules;

/// A service: its installed versions, and who may have which.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    /// May be empty.
    pub(crate) description: String,
    pub(crate) kind: Kind,
    pub(crate) version_rules: VersionRules,
    /// Judges every Hello. Not part of a [`Definition`], so that a reload takes a permission away at once, and does not
    /// make a running backend outdated.
    pub(crate) access: AccessRules,
    /// The service file.
    pub(crate) source: PathBuf,
}

/// What a service is, with its installed versions, which may be none if the folder of versions is empty. Kept apart by
/// type: whoever asks for a daemon cannot be given a process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Serves at an endpoint, for whoever says Hello.
    Daemon(BTreeMap<Version, Arc<Definition>>),
    /// Runs to its end, under the id of whoever orders it.
    Process(BTreeMap<Version, Arc<ProcessDefinition>>),
}

impl Kind {
    /// The word for it in service files and reports.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Daemon(_) => "daemon",
            Self::Process(_) => "process",
        }
    }
}

impl Service {
    /// The installed versions, ascending.
    pub(crate) fn versions(&self) -> Vec<&Version> {
        match &self.kind {
            Kind::Daemon(versions) => versions.keys().collect(),
            Kind::Process(versions) => versions.keys().collect(),
        }
    }

    /// The definition of a daemon's version; none of a process.
    pub(crate) fn daemon(&self, version: &Version) -> Option<&Arc<Definition>> {
        match &self.kind {
            Kind::Daemon(versions) => versions.get(version),
            Kind::Process(_) => None,
        }
    }
}

/// How one version of a service of kind `process` is run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProcessDefinition {
    pub(crate) service: ServiceName,
    pub(crate) version: Version,
    /// As [`Definition::spelling`].
    pub(crate) spelling: String,
    pub(crate) command: Command,
    pub(crate) environment: Environment,
    /// Absolute once it is filled in.
    pub(crate) working_directory: Template,
    pub(crate) umask: u32,
    /// From SIGTERM to SIGKILL. Zero kills at once.
    pub(crate) stop_timeout: Duration,
    /// Of one attempt; `None` is never, and it is never zero.
    pub(crate) timeout: Option<Duration>,
    /// At least one.
    pub(crate) max_attempts: u32,
    /// Of an attempt: of its command, its reaper and all that it starts.
    pub(crate) limits: Limits,
}

/// How one version of a daemon is run. Two are equal if a backend started with one is as good as with the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) service: ServiceName,
    pub(crate) version: Version,
    /// The version as the installation spells it, which `{version}` fills in: the text of `version` (`15`), or the name
    /// of the folder (`7.0`), because paths are made of it.
    pub(crate) spelling: String,
    pub(crate) command: Command,
    pub(crate) environment: Environment,
    pub(crate) endpoint: Endpoint,
    pub(crate) readiness: Readiness,
    pub(crate) recovery: Recovery,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) session: Session,
    pub(crate) log: Log,
    /// Not written where there are none, so that a definition without is recognised whichever release wrote it.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub(crate) limits: Limits,
}

impl Definition {
    /// Whether anything that is run asks for its private folder.
    pub(crate) fn uses_state_dir(&self) -> bool {
        let probe = match &self.readiness.probe {
            Probe::Exec { command } => Some(command),
            Probe::Connect | Probe::Notify | Probe::Socket { .. } => None,
        };
        let texts = std::iter::once(&self.command).chain(probe).flat_map(Command::texts);
        let mut texts = texts.chain(self.environment.set.values()).chain([&self.lifecycle.working_directory]);
        texts.any(|text| text.uses(Placeholder::StateDir))
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    /// An absolute path; or a bare name, which is looked up in the `PATH` of the backend's environment at each start.
    pub(crate) program: Template,
    pub(crate) arguments: Vec<Template>,
}

impl Command {
    fn texts(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.program).chain(&self.arguments)
    }
}

/// The environment of a backend: exactly this, plus what its probe needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Names of the broker's own variables. One that the broker does not have is not set.
    pub(crate) inherit: Vec<String>,
    /// Goes over what is inherited.
    pub(crate) set: BTreeMap<String, Template>,
}

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    /// A Unix socket, at a fixed absolute path or one that the broker chooses.
    Unix { path: Option<PathBuf> },
    /// A port of the loopback address, fixed or a free one that the broker chooses.
    Tcp { port: Option<u16> },
}

/// When a starting backend is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Readiness {
    pub(crate) probe: Probe,
    /// A start that takes longer is a crash. Never zero.
    pub(crate) hard_ceiling: Duration,
}

/// How to see that a backend is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Probe {
    /// Its endpoint accepts a connection.
    Connect,
    /// It says `READY=1`.
    Notify,
    /// The broker binds and the daemon inherits the socket: ready at exec, or when it says `READY=1`.
    Socket { notify: bool },
    /// A command exits 0.
    Exec { command: Command },
}

/// How crashes are answered. The values are as written; core raises zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    pub(crate) retry_backoff: Duration,
    pub(crate) budget_window: Duration,
    pub(crate) healthy_after: Duration,
}

/// How a backend runs and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lifecycle {
    /// From the last release; `None` is never.
    pub(crate) idle_timeout: Option<Duration>,
    #[serde(with = "signal_name")]
    pub(crate) stop_signal: Signal,
    /// From the stop signal to SIGKILL. Zero kills at once.
    pub(crate) stop_timeout: Duration,
    /// Absolute once it is filled in.
    pub(crate) working_directory: Template,
    pub(crate) umask: u32,
}

/// What a client's connection to a backend means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) resume: Resume,
}

/// What a client does whose connection broke because the daemon crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Resume {
    /// It gives up: what it had said on the connection is lost.
    None,
    /// It connects to the next generation and goes on: the daemon's protocol keeps no state in a connection that
    /// matters.
    Reconnect,
}

/// What is kept of a backend's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Log {
    /// A file for each start.
    File(LogFiles),
    /// The journal of systemd, which keeps what journald's configuration says.
    Journal,
}

impl Log {
    /// How files are kept, which a start writes to that finds no journal, too.
    pub(crate) fn files(self) -> LogFiles {
        match self {
            Self::File(files) => files,
            Self::Journal => LogFiles::default(),
        }
    }
}

/// How the files of a backend are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogFiles {
    /// The soft cap of one start's file.
    pub(crate) max_bytes: u64,
    /// Files of earlier starts.
    pub(crate) keep: u32,
}

impl Default for LogFiles {
    fn default() -> Self {
        Self { max_bytes: defaults::LOG_MAX_BYTES, keep: defaults::LOG_KEEP }
    }
}

/// Signals by their names, `SIGTERM`, which are the same on every machine.
mod signal_name {
    use std::str::FromStr;

    use nix::sys::signal::Signal;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(signal: &Signal, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(signal.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Signal, D::Error> {
        let name = String::deserialize(deserializer)?;
        Signal::from_str(&name).map_err(|_| D::Error::custom(format!("`{name}` is no signal")))
    }
}
