//! Blocking work, done on the worker threads: launching a generation, ending one, looking at the disk.
//!
//! Decides nothing: what it finds it reports to the driver.

mod commands;
mod failed;
mod launch;
mod output;
mod spares;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use broker_proto::{Refusal, RequestId};
use nix::unistd::Pid;

pub(super) use self::commands::{Commands, Surroundings, environment, find_program};
pub(super) use self::launch::{Order, Rest, launch, listen_to};
pub(super) use self::spares::Spares;
use super::hosted::{Launched, Main};
use super::mains::Mains;
use super::processes::News;
use super::session::SessionId;
use crate::config::AdminGroup;
use crate::core::backend::Trace;
use crate::core::registry::{BackendId, BackendKey};
use crate::failpoint;
use crate::journal::Journal;
use crate::journald::last_words::last_words;
use crate::net::endpoint::{Removal, remove_dead_unix};
use crate::process::cgroup::Leaf;
use crate::process::forked::Survivor;
use crate::process::group::{Doomed, END_PATIENCE, Tree, end};
use crate::process::leftovers::end_start;
use crate::process::log_file;
use crate::process::log_place::LogPlace;
use crate::process::spawn::Spawned;
use crate::process::start::StartFacts;
use crate::services::Catalog;

/// How much of a daemon's last words goes into evidence.
const TAIL_LINES: usize = 10;
const TAIL_BYTES: u64 = 4096;

/// What a worker thread reports.
pub(super) enum Report {
    Launched {
        id: BackendId,
        generation: u64,
        result: Result<Box<Launched>, Box<Refusal>>,
    },
    Gone {
        id: BackendId,
        generation: u64,
        finished: Finished,
    },
    /// Who may be the daemon that a process has become, the oldest first.
    Heirs {
        id: BackendId,
        generation: u64,
        heirs: Vec<Survivor>,
    },
    /// A probe command runs, or could not be started.
    Probing {
        id: BackendId,
        generation: u64,
        probe: Result<Spawned, String>,
    },
    /// The service files, read again.
    Loaded {
        number: u64,
        catalog: Result<Box<Catalog>, Box<Refusal>>,
        asker: Option<(SessionId, RequestId)>,
    },
    /// An answer that took a look at the disk.
    Reply {
        session: SessionId,
        request_id: RequestId,
        document: serde_json::Value,
    },
    /// No answer.
    Refused {
        session: SessionId,
        request_id: RequestId,
        refusal: Refusal,
    },
    /// The group that controls a broker of the system, if there is one; or why that is not known.
    Admins(Result<Option<AdminGroup>, String>),
    /// What the keeper of durable processes tells.
    Process(News),
    /// What a broker that leaves owes to the disk is written, or cannot be.
    Settled,
    /// Daemons have written since their logs were looked at.
    LogsGrow,
}

/// What is to be ended.
pub(super) struct Ending {
    /// `None` is one that ended before this broker was.
    pub(super) main: Option<Main>,
    pub(super) facts: Option<Arc<StartFacts>>,
    pub(super) tree: Tree,
    /// A socket file that is dead once nothing is left.
    pub(super) socket: Option<PathBuf>,
    pub(super) log: Option<LogPlace>,
    /// The broker's own end of a stream to the journal.
    pub(super) stream: Option<Arc<OwnedFd>>,
    /// Somebody will be told what it wrote last.
    pub(super) is_explained: bool,
    pub(super) record: Option<PathBuf>,
    /// What all of it lives in, but for what has left it on purpose.
    pub(super) cgroup: Option<Leaf>,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) trace: Trace,
    /// Who still runs, though killed.
    pub(super) remaining: Vec<Pid>,
    /// The main process, if it is among them: nobody has reaped it.
    pub(super) lingering: Option<Main>,
}

/// Ends a generation and looks at what it left.
pub(super) fn finish(ending: Ending, key: &BackendKey, generation: u64, mains: &Mains, journal: &Journal) -> Finished {
    let Ending { main, facts, tree, socket, log, stream, is_explained, record, cgroup } = ending;
    failpoint::reached("before-end");
    let main_pid = main.as_ref().map(|main| main.pid);
    let is_other = |pid| Some(pid) != main_pid && mains.contains(pid);
    let mut remaining = cgroup.as_ref().map(|cgroup| cgroup.end(END_PATIENCE)).unwrap_or_default();
    let others = match (&main, facts.as_deref()) {
        (Some(main), start) => {
            let pidfd = main.pidfd.as_fd();
            let doomed = Doomed { main: main.pid, group: main.group, pidfd, start, tree, is_other: &is_other };
            end(doomed, END_PATIENCE).remaining
        }
        (None, Some(facts)) => end_start(facts, &is_other, END_PATIENCE),
        (None, None) => Vec::new(),
    };
    remaining.retain(|pid| !others.contains(pid));
    remaining.extend(others);
    if let Some(cgroup) = cgroup.filter(|_| remaining.is_empty()) {
        cgroup.remove();
    }
    if let Some(pid) = main_pid.filter(|pid| !remaining.contains(pid)) {
        mains.remove(pid);
    }
    if let Some(socket) = socket {
        match remove_dead_unix(&socket) {
            Ok(Removal::Removed | Removal::Absent) => {}
            Ok(Removal::Alive | Removal::NotASocket) => {
                tracing::warn!(
                    backend = %key, generation, socket = %socket.display(),
                    "the endpoint of a dead backend is somebody else's; it stays"
                );
            }
            Err(error) => {
                tracing::warn!(backend = %key, generation, %error, socket = %socket.display(), "cannot remove a dead socket");
            }
        }
    }
    // Until the journal knows of the start, nothing else tells the next broker that there was one.
    if record.is_some() {
        journal.catch_up();
    }
    if let Some(record) = record
        && let Err(error) = std::fs::remove_file(&record)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(
            backend = %key, generation, %error, record = %record.display(),
            "cannot remove the record of a start that is over"
        );
    }
    let stderr = match &log {
        Some(LogPlace::File(path)) => log_file::tail(path, TAIL_LINES, TAIL_BYTES).ok(),
        // To ask the journal takes a program, and the time that it takes.
        Some(LogPlace::Journal(journal)) if is_explained => match last_words(journal, stream, TAIL_LINES, TAIL_BYTES) {
            Ok(text) => Some(text),
            Err(error) => {
                tracing::warn!(backend = %key, generation, %error, "what it wrote to the journal cannot be read");
                None
            }
        },
        Some(LogPlace::Journal(_)) | None => None,
    };
    let stderr = stderr.map(|text| text.trim_end().to_owned()).filter(|text| !text.is_empty());
    let trace = Trace { stderr, log_path: log.map(|log| log.to_string()) };
    let lingering = main.filter(|main| remaining.contains(&main.pid));
    failpoint::reached("after-end");
    Finished { trace, remaining, lingering }
}

#[cfg(test)]
mod tests {
    use broker_proto::{InstanceName, ServiceName};
    use semver::Version;

    use super::*;
    use crate::journal::{Change, Phase};

    #[test]
    fn the_record_of_a_start_goes_once_the_journal_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db")).unwrap().journal;
        let record = folder.path().join("record");
        std::fs::write(&record, "a start").unwrap();
        let key = BackendKey {
            instance: InstanceName::parse("default").unwrap(),
            service: ServiceName::parse("redis").unwrap(),
            version: Version::new(7, 0, 15),
        };
        assert!(journal.flush());
        journal.tell_quietly(Change::Told {
            key: key.clone(),
            generation: 2,
            phase: Phase::Starting,
            memory: "{}".into(),
        });
        assert_eq!(journal.behind(), 1);
        let ending = Ending {
            main: None,
            facts: None,
            tree: Tree::default(),
            socket: None,
            log: None,
            stream: None,
            is_explained: false,
            record: Some(record.clone()),
            cgroup: None,
        };
        finish(ending, &key, 2, &Mains::default(), &journal);
        assert_eq!((record.exists(), journal.behind()), (false, 0));
    }
}
