//! Blocking work, done on the worker threads: launching a generation, ending one, looking at the disk.
//!
//! Decides nothing: what it finds it reports to the driver.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use broker_proto::{Code, Endpoint, Refusal, RequestId};
use nix::unistd::Pid;

use super::hosted::{Held, Launched, Main};
use super::mains::Mains;
use super::places::make_private;
use super::processes::News;
use super::session::SessionId;
use crate::core::backend::{RETRY_HINT, Trace};
use crate::core::millis_up;
use crate::core::registry::{BackendId, BackendKey};
use crate::net::endpoint::{Removal, bind_tcp, bind_unix, free_tcp_port, prepare_tcp, prepare_unix, remove_dead_unix};
use crate::net::notify_socket::NotifySocket;
use crate::process::group::{Doomed, END_PATIENCE, Tree, end};
use crate::process::log_file;
use crate::process::spawn::{Command, Listen, SpawnError, Spawned, resolve_program, spawn};
use crate::process::start::StartFacts;
use crate::services::{self, Catalog, Definition, Probe, Values};

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
        trace: Trace,
        remaining: Vec<Pid>,
        /// The main process, if it is among them: nobody has reaped it.
        lingering: Option<Main>,
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
        catalog: Box<Catalog>,
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
    /// What the keeper of durable processes tells.
    Process(News),
    /// Nothing but that the work is done.
    Done,
}

/// What a launch needs to know.
pub(super) struct Order {
    pub(super) key: BackendKey,
    pub(super) definition: Arc<Definition>,
    /// The Unix socket's path, fixed or chosen.
    pub(super) socket: PathBuf,
    pub(super) notify: PathBuf,
    pub(super) data: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) listener: Option<Held>,
    pub(super) nofile_soft: Option<u64>,
}

/// Starts the daemon. Returns once its program is executed.
pub(super) fn launch(order: &Order, mains: &Mains) -> Result<Box<Launched>, Box<Refusal>> {
    let definition = &order.definition;
    make_private(&order.data, None)
        .map_err(|error| failed(format!("cannot make the folder `{}`", order.data.display()), &error))?;
    let (endpoint, listener) = prepare_endpoint(order)?;
    let address = endpoint.address();
    let values = Values {
        endpoint: &address,
        port: match endpoint {
            Endpoint::Tcp { port, .. } => Some(port),
            Endpoint::Unix { .. } => None,
        },
        service: definition.service.as_str(),
        version: &definition.spelling,
        instance: order.key.instance.as_str(),
        state_dir: &order.data.to_string_lossy(),
    };
    let says_ready = matches!(definition.readiness.probe, Probe::Notify | Probe::Socket { notify: true });
    let notify = says_ready.then(|| NotifySocket::bind(&order.notify)).transpose();
    let notify = notify.map_err(|error| failed(error.to_string(), &error))?;
    let mut environment = environment(&definition.environment, &values);
    if let Some(notify) = &notify {
        environment.push(("NOTIFY_SOCKET".into(), notify.path().into()));
    }
    // Programs are looked for before the log is made: what cannot run leaves no trace, and no log gives way to it.
    let find = |command: &services::Command| -> Result<(String, PathBuf), Box<Refusal>> {
        let program = command.program.fill(&values);
        let own = std::env::var_os("PATH");
        let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path).or(own.as_ref());
        let resolved = resolve_program(program.as_ref(), path.map(AsRef::as_ref)).map_err(|e| refusal_of_spawn(&e))?;
        check_program(&resolved)?;
        Ok((program, resolved))
    };
    let probe_command = match &definition.readiness.probe {
        Probe::Exec { command } => Some(command),
        Probe::Connect | Probe::Notify | Probe::Socket { .. } => None,
    };
    let program = find(&definition.command)?;
    let probe_program = probe_command.map(find).transpose()?;
    let log = log_file::open(&order.logs).map_err(|error| failed(error.to_string(), &error))?;
    let output = Arc::new(log.file.into());
    let command = |command: &services::Command, (name, program): (String, PathBuf)| {
        let arguments = command.arguments.iter().map(|argument| argument.fill(&values).into());
        Command {
            program,
            argv: std::iter::once(OsString::from(name)).chain(arguments).collect(),
            environment: environment.clone(),
            working_directory: definition.lifecycle.working_directory.fill(&values).into(),
            umask: definition.lifecycle.umask,
            stdout: Arc::clone(&output),
            stderr: Arc::clone(&output),
            listen: Vec::new(),
            die_with_parent: true,
            nofile_soft: order.nofile_soft,
        }
    };
    let mut daemon = command(&definition.command, program);
    let probe = probe_command.zip(probe_program).map(|(probe, program)| command(probe, program));
    daemon.listen.extend(
        listener.iter().map(|held| Listen { socket: Arc::clone(&held.socket), name: definition.service.to_string() }),
    );
    let spawned = spawn(&daemon).map_err(|error| {
        let _ = std::fs::remove_file(&log.path);
        refusal_of_spawn(&error)
    })?;
    let pid = spawned.pid;
    mains.insert(pid);
    let facts = StartFacts::observe(&daemon, &spawned).map_err(|error| {
        abandon(&spawned, mains);
        failed(format!("cannot look at the process {pid} that was just started"), &error)
    })?;
    log_file::prune(&order.logs, usize::try_from(definition.log.keep).unwrap_or(usize::MAX), &log.path);
    let main = Main { pid, pidfd: Arc::new(spawned.pidfd), group: pid };
    let definition = Arc::clone(definition);
    Ok(Box::new(Launched { definition, main, endpoint, facts, log: log.path, listener, notify, probe }))
}

/// Ends a process that was started and cannot be used.
fn abandon(spawned: &Spawned, mains: &Mains) {
    let doomed = Doomed {
        main: spawned.pid,
        group: spawned.pid,
        pidfd: spawned.pidfd.as_fd(),
        start: None,
        tree: Tree::default(),
        is_other: &|_| true,
    };
    end(doomed, END_PATIENCE);
    mains.remove(spawned.pid);
}

/// Makes room for the endpoint, or binds it where the daemon inherits the socket.
fn prepare_endpoint(order: &Order) -> Result<(Endpoint, Option<Held>), Box<Refusal>> {
    let refused = |error: crate::net::endpoint::EndpointError| failed(error.to_string(), &error);
    let declared = &order.definition.endpoint;
    let inherits = matches!(order.definition.readiness.probe, Probe::Socket { .. });
    if let Some(held) = order.listener.as_ref().filter(|held| inherits && held.declared == *declared) {
        return Ok((held.endpoint.clone(), Some(held.clone())));
    }
    let (endpoint, socket) = match declared {
        services::Endpoint::Unix { .. } => {
            prepare_unix(&order.socket).map_err(refused)?;
            let socket = inherits.then(|| bind_unix(&order.socket)).transpose().map_err(refused)?;
            (Endpoint::Unix { path: order.socket.to_string_lossy().into_owned() }, socket)
        }
        services::Endpoint::Tcp { port } => {
            let port = match port {
                Some(port) => prepare_tcp(*port).map(|()| *port),
                None => free_tcp_port(),
            }
            .map_err(refused)?;
            let socket = inherits.then(|| bind_tcp(port)).transpose().map_err(refused)?;
            (Endpoint::Tcp { host: "127.0.0.1".to_owned(), port }, socket)
        }
    };
    let held =
        socket.map(|socket| Held { socket: Arc::new(socket), endpoint: endpoint.clone(), declared: declared.clone() });
    Ok((endpoint, held))
}

/// A program that others can write is theirs to choose, and is not run.
fn check_program(program: &Path) -> Result<(), Box<Refusal>> {
    let uid = nix::unistd::getuid().as_raw();
    match program.metadata().ok().and_then(|metadata| services::writable_by_others(&metadata, uid)) {
        Some(why) => {
            Err(Box::new(Refusal::new(Code::SpawnFailed, format!("`{}` is not run: {why}", program.display()))))
        }
        None => Ok(()),
    }
}

/// Exactly what is declared.
fn environment(declared: &services::Environment, values: &Values<'_>) -> Vec<(OsString, OsString)> {
    let inherited = declared.inherit.iter().filter(|name| !declared.set.contains_key(*name));
    let inherited = inherited.filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let set = declared.set.iter().map(|(name, value)| (name.into(), value.fill(values).into()));
    inherited.chain(set).collect()
}

fn refusal_of_spawn(error: &SpawnError) -> Box<Refusal> {
    let mut refusal = failed(error.to_string(), error);
    if error.is_exhausted() {
        refusal.code = Code::Overloaded;
        refusal.retry_after_ms = Some(millis_up(RETRY_HINT));
    }
    refusal
}

/// A start that cannot work, with the chain of causes below the message.
fn failed(message: impl Display, error: &(dyn std::error::Error + 'static)) -> Box<Refusal> {
    let mut reason = message.to_string();
    // An i/o error that is given beside a message of ours is the cause itself.
    let mut cause = if reason == error.to_string() { error.source() } else { Some(error) };
    let mut is_exhausted = false;
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        is_exhausted |= error.downcast_ref::<io::Error>().is_some_and(is_lack);
        cause = error.source();
    }
    if is_exhausted {
        return Box::new(Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT)));
    }
    Box::new(Refusal::new(Code::SpawnFailed, reason))
}

/// Whether an error is a lack of something that comes back by itself: descriptors, memory, room on the disk.
fn is_lack(error: &io::Error) -> bool {
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::ENOSPC, libc::EDQUOT];
    error.raw_os_error().is_some_and(|errno| lacks.contains(&errno))
}

/// What is to be ended.
pub(super) struct Ending {
    pub(super) main: Main,
    pub(super) facts: Arc<StartFacts>,
    pub(super) tree: Tree,
    /// A socket file that is dead once nothing is left.
    pub(super) socket: Option<PathBuf>,
    pub(super) log: PathBuf,
}

/// Ends a generation and looks at what it left.
pub(super) fn finish(ending: Ending, mains: &Mains) -> (Trace, Vec<Pid>, Option<Main>) {
    let Ending { main, facts, tree, socket, log } = ending;
    let is_other = |pid| pid != main.pid && mains.contains(pid);
    let doomed = Doomed {
        main: main.pid,
        group: main.group,
        pidfd: main.pidfd.as_fd(),
        start: Some(&facts),
        tree,
        is_other: &is_other,
    };
    let ended = end(doomed, END_PATIENCE);
    if !ended.remaining.contains(&main.pid) {
        mains.remove(main.pid);
    }
    if let Some(socket) = socket {
        match remove_dead_unix(&socket) {
            Ok(Removal::Removed | Removal::Absent) => {}
            Ok(Removal::Alive | Removal::NotASocket) => {
                tracing::warn!(socket = %socket.display(), "the endpoint of a dead backend is somebody else's; it stays");
            }
            Err(error) => tracing::warn!(%error, socket = %socket.display(), "cannot remove a dead socket"),
        }
    }
    let stderr = log_file::tail(&log, TAIL_LINES, TAIL_BYTES).ok();
    let stderr = stderr.map(|text| text.trim_end().to_owned()).filter(|text| !text.is_empty());
    let lingering = ended.remaining.contains(&main.pid).then_some(main);
    (Trace { stderr, log_path: Some(log.to_string_lossy().into_owned()) }, ended.remaining, lingering)
}
