//! What the driver keeps of a backend: its definition, and the processes and sockets of its running generation.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use broker_proto::Endpoint;
use nix::unistd::Pid;
use tokio::task::JoinHandle;

use super::demand::Demand;
use super::doubts::Doubt;
use super::ending::Search;
use super::fd_store::Stored;
use super::ledger::{Start, fingerprint};
use crate::core::backend::Policies;
use crate::core::readiness::Pace;
use crate::core::recovery::Policy;
use crate::net::notify_socket::NotifySocket;
use crate::net::ownership;
use crate::process::forked::Survivor;
use crate::process::group::Tree;
use crate::process::log_place::LogPlace;
use crate::process::spawn::Command;
use crate::process::start::StartFacts;
use crate::services::{self, Definition, Probe};

/// A registered backend.
pub(super) struct Hosted {
    /// The newest one; a running generation keeps its own.
    pub(super) definition: Arc<Definition>,
    /// Recognises it in the journal.
    pub(super) fingerprint: u64,
    pub(super) running: Option<Box<Running>>,
    /// The listening socket that daemons of this backend inherit, kept from start to start.
    pub(super) listener: Option<Held>,
    /// Who waits there while nothing runs.
    pub(super) demand: Demand,
    /// No service file defines it any more.
    pub(super) removed: bool,
    /// Where the newest generation writes to.
    pub(super) log: Option<LogPlace>,
    /// The socket path whose appearance is waited for.
    pub(super) watched: Option<PathBuf>,
    /// Hellos that wait for the end of a generation that is just ending.
    pub(super) doubts: Vec<Doubt>,
    /// A task looks after those.
    pub(super) is_doubted: bool,
    /// How the newest generation ended and how long it had lived, until that is written down.
    pub(super) exit: Option<(broker_proto::Exit, Duration)>,
}

/// A listening socket, and where it listens.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) endpoint: Endpoint,
    /// What it was made from; another definition wants another socket.
    pub(super) declared: services::Endpoint,
    /// That the service manager keeps it, too.
    pub(super) stored: Option<Arc<Stored>>,
}

impl Held {
    /// Takes the socket's file away. A launch that still uses the descriptor keeps it open.
    pub(super) fn remove(&self) {
        if let Some(path) = self.path() {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Where it is a file.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Unix { path } => Some(Path::new(path)),
            Endpoint::Tcp { .. } => None,
        }
    }

    /// Whether the next broker finds it as it is.
    pub(super) fn is_left(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.is_left())
    }
}

/// Where the broker listens to what a daemon says of itself.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) socket: NotifySocket,
    /// That the service manager keeps it, too.
    pub(super) stored: Option<Stored>,
    /// Whatever was said was heard: it was there without a break since the daemon was started.
    pub(super) is_whole: bool,
}

impl Drop for Ear {
    fn drop(&mut self) {
        if self.stored.as_ref().is_some_and(Stored::is_left) {
            self.socket.leave_file();
        }
    }
}

/// A generation with a process.
pub(super) struct Running {
    pub(super) generation: u64,
    pub(super) definition: Arc<Definition>,
    /// What is written down of it.
    pub(super) start: Arc<Start>,
    /// Whatever it says of itself is heard, and was.
    pub(super) is_heard: bool,
    /// An earlier broker started it.
    pub(super) is_adopted: bool,
    /// The kernel ends it with this broker, so it cannot be left to the next one.
    pub(super) dies_with_broker: bool,
    pub(super) endpoint: Endpoint,
    /// Its version, as clients are told.
    pub(super) version: Box<str>,
    pub(super) main: Main,
    pub(super) facts: Arc<StartFacts>,
    /// Processes that are its own though nothing leads to them any more: the launcher of a daemon that forked away.
    pub(super) known: Vec<Pid>,
    /// Those who may be the daemon, when the main process has ended.
    pub(super) survivors: Vec<Survivor>,
    pub(super) search: Search,
    /// Descendants that were seen when the stop began.
    pub(super) tree: Tree,
    /// The broker's own end of a stream to the journal, by which it sees what journald has read.
    pub(super) stream: Option<Arc<OwnedFd>>,
    /// The command that probes it.
    pub(super) probe: Option<Arc<Command>>,
    /// Ends when the generation does: who listens stops what it does for it.
    pub(super) over: tokio::sync::watch::Sender<()>,
    pub(super) tasks: Vec<Task>,
}

impl Running {
    /// Its processes, as far as they are known.
    pub(super) fn processes(&self) -> ownership::Backend<'_> {
        ownership::Backend { main: self.main.pid, known: &self.known, cgroup: self.facts.cgroup.as_ref() }
    }
}

/// The main process.
#[derive(Debug, Clone)]
pub(super) struct Main {
    pub(super) pid: Pid,
    pub(super) pidfd: Arc<OwnedFd>,
    /// Its process group.
    pub(super) group: Pid,
}

/// What a start made.
pub(super) struct Launched {
    /// Complete: with the endpoint that it was given and the process that it became.
    pub(super) start: Arc<Start>,
    pub(super) dies_with_broker: bool,
    pub(super) main: Main,
    pub(super) endpoint: Endpoint,
    pub(super) facts: Arc<StartFacts>,
    pub(super) stream: Option<Arc<OwnedFd>>,
    pub(super) listener: Option<Held>,
    pub(super) notify: Option<Ear>,
    pub(super) probe: Option<Command>,
}

/// A task that ends with what it serves.
pub(super) struct Task(pub(super) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Hosted {
    pub(super) fn new(definition: Arc<Definition>) -> Self {
        Self {
            fingerprint: fingerprint(&definition),
            definition,
            running: None,
            listener: None,
            demand: Demand::default(),
            removed: false,
            log: None,
            watched: None,
            doubts: Vec::new(),
            is_doubted: false,
            exit: None,
        }
    }

    /// The running generation, if it is that one.
    pub(super) fn generation(&mut self, generation: u64) -> Option<&mut Running> {
        self.running.as_deref_mut().filter(|running| running.generation == generation)
    }

    /// Lets go of a held listening socket that the definition does not inherit, or that nobody can find any more.
    pub(super) fn drop_unfit_listener(&mut self, definition: &Definition) {
        let inherits = matches!(definition.readiness.probe, Probe::Socket { .. });
        let fits = |held: &Held| {
            inherits
                && held.declared == definition.endpoint
                && held.path().is_none_or(|path| std::fs::exists(path).unwrap_or(true))
        };
        if self.listener.as_ref().is_some_and(|held| !fits(held)) {
            self.drop_listener();
        }
    }

    /// Lets go of a held listening socket where nothing runs that no start would inherit: it fits no more, or no service
    /// file defines what would serve it.
    pub(super) fn drop_unserved_listener(&mut self) {
        if self.removed {
            self.drop_listener();
        }
        let definition = Arc::clone(&self.definition);
        self.drop_unfit_listener(&definition);
    }

    /// Lets go of a held listening socket, and of its watch, which would keep it open.
    pub(super) fn drop_listener(&mut self) {
        if let Some(held) = self.listener.take() {
            held.remove();
            self.unwatch();
        }
    }

    /// Looks no more whether somebody comes to the held socket.
    pub(super) fn unwatch(&mut self) {
        if let Demand::Watched { .. } = self.demand {
            self.demand = Demand::Unwatched;
        }
    }

    /// Whether what runs was started from another definition than the newest, or from one that is gone.
    pub(super) fn is_outdated(&self) -> bool {
        self.removed && self.running.is_some()
            || self.running.as_ref().is_some_and(|running| running.definition != self.definition)
    }
}

/// What a definition means to the machine.
pub(super) fn policies(definition: &Definition, waiters_max: usize) -> Policies {
    let tcp = matches!(definition.endpoint, services::Endpoint::Tcp { .. });
    let (pace, ready_at_exec) = match &definition.readiness.probe {
        Probe::Connect if tcp => (Pace::Port, false),
        Probe::Connect => (Pace::Path, false),
        Probe::Notify | Probe::Socket { notify: true } => (Pace::Silent, false),
        Probe::Socket { notify: false } => (Pace::Silent, true),
        Probe::Exec { .. } => (Pace::Command, false),
    };
    let recovery = definition.recovery;
    Policies {
        pace,
        ready_at_exec,
        hard_ceiling: definition.readiness.hard_ceiling,
        recovery: Policy::new(recovery.retry_backoff, recovery.budget_window, recovery.healthy_after),
        idle_timeout: definition.lifecycle.idle_timeout,
        stop_timeout: definition.lifecycle.stop_timeout,
        waiters_max,
    }
}
