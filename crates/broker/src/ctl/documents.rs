//! The broker's reports, as far as brokerctl shows them to people. What a newer broker adds is left alone.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::output::{FAILED, Failure};
use crate::core::limits::Unenforced;

/// Reads a report.
pub(super) fn read<T: DeserializeOwned>(document: &Value) -> Result<T, Failure> {
    T::deserialize(document)
        .map_err(|e| Failure::because(FAILED, "the broker's answer is not understood; is it another version?", e))
}

/// Reads the text of a report.
pub(super) fn parse(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::because(FAILED, "the broker's answer is no JSON document", e))
}

#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) broker: Broker,
    pub(super) backends: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Broker {
    pub(super) pid: u32,
    pub(super) version: String,
    pub(super) uptime_ms: u64,
    pub(super) socket: String,
    #[serde(default)]
    pub(super) sessions: u64,
    #[serde(default)]
    pub(super) services: u64,
    #[serde(default)]
    pub(super) problems: u64,
    /// Where the service files are.
    #[serde(default)]
    pub(super) service_directories: Vec<String>,
    pub(super) journal: Option<Journal>,
    pub(super) cgroups: Option<Cgroups>,
}

/// Where the cgroups of backends are.
#[derive(Debug, Deserialize)]
pub(super) struct Cgroups {
    /// Why there are none.
    pub(super) why_not: Option<String>,
}

/// The record by which the next broker finds the backends.
#[derive(Debug, Deserialize)]
pub(super) struct Journal {
    pub(super) path: String,
    pub(super) trouble: Option<Trouble>,
    /// Damaged files that were kept.
    #[serde(default)]
    pub(super) set_aside: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Trouble {
    pub(super) since: jiff::Timestamp,
    pub(super) what: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Backend {
    pub(super) instance: String,
    pub(super) service: String,
    pub(super) version: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) state_for_ms: u64,
    pub(super) pid: Option<u32>,
    #[serde(default)]
    pub(super) generation: u64,
    pub(super) endpoint: Option<String>,
    #[serde(default)]
    pub(super) holds: u64,
    #[serde(default)]
    pub(super) waiters: u64,
    #[serde(default)]
    pub(super) crashes_in_window: u32,
    pub(super) retry_after_ms: Option<u64>,
    #[serde(default)]
    pub(super) adopted: bool,
    #[serde(default)]
    pub(super) outdated: bool,
    #[serde(default)]
    pub(super) draining: bool,
    pub(super) status: Option<String>,
    /// Why it is in quarantine.
    pub(super) quarantine: Option<String>,
    pub(super) log_path: Option<String>,
    pub(super) limits: Option<Limits>,
}

/// What limits a backend.
#[derive(Debug, Deserialize)]
pub(super) struct Limits {
    #[serde(default)]
    pub(super) not_enforced: Vec<Unenforced>,
}

/// A backend's name, as orders report it.
#[derive(Debug, Deserialize)]
pub(super) struct Key {
    pub(super) instance: String,
    pub(super) service: String,
    pub(super) version: String,
}

impl Key {
    pub(super) fn name(&self) -> String {
        name(&self.service, &self.version, &self.instance)
    }
}

/// `redis@7.0.15`, with the instance unless it is the default.
pub(super) fn name(service: &str, version: &str, instance: &str) -> String {
    if instance == broker_proto::DEFAULT_INSTANCE {
        format!("{service}@{version}")
    } else {
        format!("{service}@{version}/{instance}")
    }
}

/// A backend that is ready, as `resolve --json` prints it.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    #[serde(flatten)]
    pub(super) key: Key,
    pub(super) endpoint: String,
    pub(super) pid: Option<u32>,
    pub(super) generation: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Stopped {
    pub(super) stopped: Vec<Key>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Released {
    pub(super) released: Vec<Key>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Restarted {
    pub(super) restarted: Vec<Ready>,
    #[serde(default)]
    pub(super) refused: Vec<Denied>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Denied {
    #[serde(flatten)]
    pub(super) key: Key,
    pub(super) refused: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Drained {
    pub(super) draining: Vec<Held>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Held {
    #[serde(flatten)]
    pub(super) key: Key,
    pub(super) holds: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Logs {
    pub(super) logs: Vec<Log>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Log {
    pub(super) instance: String,
    pub(super) service: String,
    pub(super) version: String,
    pub(super) path: Option<std::path::PathBuf>,
    /// The files of earlier starts, oldest first.
    #[serde(default)]
    pub(super) previous: Vec<std::path::PathBuf>,
    /// Where it writes to the journal of systemd.
    pub(super) journal: Option<JournalLog>,
}

/// How a start is found in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct JournalLog {
    pub(super) identifier: String,
    pub(super) generation: u64,
    pub(super) first_line: String,
    /// The broker that wrote that.
    pub(super) written_by: Option<u32>,
    #[serde(default)]
    pub(super) pids: Vec<u32>,
    pub(super) cgroup: Option<String>,
}

impl Log {
    pub(super) fn name(&self) -> String {
        name(&self.service, &self.version, &self.instance)
    }

    /// Whether the broker has a start on record. Of one that was over before this broker was it only knows how it would be
    /// found.
    pub(super) fn is_on_record(&self) -> bool {
        self.path.is_some() || self.journal.as_ref().is_some_and(|journal| journal.written_by.is_some())
    }

    /// The starts of the same backend after the one that is known, oldest first; none if that is the newest, as far as the
    /// broker knows.
    pub(super) fn starts_after(&self, known: &Self) -> Vec<Self> {
        if let Some(journal) = &self.journal {
            // Who wrote is not on record of a start that is just being made, nor of one that an earlier broker ended.
            let is_same = |known: &JournalLog| {
                known.first_line == journal.first_line
                    && known.written_by.zip(journal.written_by).is_none_or(|(known, now)| known == now)
            };
            return if known.journal.as_ref().is_some_and(is_same) { Vec::new() } else { vec![self.clone()] };
        }
        // The names of files are in the order of their starts. Where none is known, what is past was not asked for.
        let earlier = self.previous.iter().filter(|path| known.path.as_ref().is_some_and(|known| *path > known));
        let all = earlier.chain(self.path.as_ref().filter(|path| known.path.as_ref() != Some(path)));
        all.map(|path| Self { path: Some(path.clone()), ..self.clone() }).collect()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Services {
    pub(super) services: Vec<Service>,
    #[serde(default)]
    pub(super) problems: Vec<Problem>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Service {
    pub(super) name: String,
    #[serde(default = "daemon")]
    pub(super) kind: String,
    pub(super) description: Option<String>,
    pub(super) file: String,
    pub(super) versions: Vec<Version>,
}

fn daemon() -> String {
    "daemon".to_owned()
}

#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) version: String,
    pub(super) allowed: bool,
    pub(super) why_not: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub(super) file: String,
    pub(super) line: Option<u64>,
    pub(super) column: Option<u64>,
    pub(super) severity: String,
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reloaded {
    pub(super) services: u64,
    pub(super) versions: u64,
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
    #[serde(default)]
    pub(super) problems: Vec<Problem>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Events {
    /// Each an [`Event`], as the broker wrote it.
    pub(super) events: Vec<Value>,
    /// Where to go on.
    pub(super) next: String,
    /// How many were dropped before they were asked for.
    #[serde(default)]
    pub(super) missed: u64,
}

/// Something that happened to a backend or a process. Which facts there are depends on what it was.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(flatten)]
    pub(super) subject: Subject,
    pub(super) time: jiff::Timestamp,
    #[serde(default)]
    pub(super) generation: u64,
    pub(super) event: String,
    pub(super) attempt: Option<u32>,
    pub(super) pid: Option<u32>,
    pub(super) endpoint: Option<String>,
    pub(super) after_ms: Option<u64>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) lived_ms: Option<u64>,
    pub(super) crash: Option<bool>,
    pub(super) delay_ms: Option<u64>,
    pub(super) refused: Option<Value>,
    pub(super) why: Option<String>,
    /// Why it is quarantined.
    pub(super) reason: Option<String>,
    /// How a process stands since.
    pub(super) state: Option<String>,
}

/// What an event is about.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Subject {
    Process {
        process: String,
    },
    Backend(Key),
    /// Something that a newer broker tells of.
    Other {},
}

impl Subject {
    /// `redis@7.0.15`, `process nightly`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Process { process } => format!("process {process}"),
            Self::Backend(key) => key.name(),
            Self::Other {} => "-".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(path: Option<&str>, previous: &[&str]) -> Log {
        Log {
            instance: "default".to_owned(),
            service: "x".to_owned(),
            version: "1.0.0".to_owned(),
            path: path.map(Into::into),
            previous: previous.iter().map(Into::into).collect(),
            journal: None,
        }
    }

    fn in_journal(generation: u64, written_by: Option<u32>) -> Log {
        let first_line = format!("starting x@1.0.0/default, generation {generation}");
        let journal = JournalLog {
            identifier: "x".to_owned(),
            generation,
            first_line,
            written_by,
            pids: Vec::new(),
            cgroup: None,
        };
        Log { journal: Some(journal), ..log(None, &[]) }
    }

    #[test]
    fn what_came_after_a_start_is_told_once_and_in_order() {
        let after = |log: &Log, known: &Log| -> Vec<_> {
            log.starts_after(known).into_iter().map(|log| log.path.expect("a file").display().to_string()).collect()
        };
        let known = log(Some("/2"), &["/1"]);
        assert_eq!(after(&log(Some("/2"), &["/1"]), &known), [""; 0]);
        assert_eq!(after(&log(Some("/4"), &["/1", "/2", "/3"]), &known), ["/3", "/4"]);
        assert_eq!(after(&log(None, &["/1", "/2"]), &known), [""; 0], "the next broker has no start on record");
        assert_eq!(after(&log(None, &["/1", "/2", "/3"]), &known), ["/3"]);
        assert_eq!(after(&log(Some("/2"), &["/1"]), &log(None, &[])), ["/2"], "of the past nothing was asked for");
    }

    #[test]
    fn a_start_in_the_journal_is_the_same_to_the_next_broker() {
        let known = in_journal(1, Some(7));
        let is_another = |log: &Log| log.starts_after(&known) == std::slice::from_ref(log);
        for same in [in_journal(1, Some(7)), in_journal(1, None)] {
            assert_eq!(same.starts_after(&known), []);
        }
        assert!(is_another(&in_journal(2, Some(7))) && is_another(&in_journal(2, None)));
        assert!(is_another(&in_journal(1, Some(8))), "numbers begin anew where the broker's own journal was lost");
        let asked_while_it_starts = in_journal(1, None);
        assert_eq!(known.starts_after(&asked_while_it_starts), []);
    }
}
