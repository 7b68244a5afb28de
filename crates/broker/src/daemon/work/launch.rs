//! Launching one generation, from its intent to the process that runs, with each step on record before the next.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use broker_proto::{Code, Endpoint, Refusal};

use super::commands::{Commands, Surroundings};
use super::failed::{failed, refusal_of_spawn};
use super::output::Planned;
use super::spares::Spares;
use crate::core::backend::RETRY_HINT;
use crate::core::limits::Unenforced;
use crate::core::millis_up;
use crate::core::registry::BackendKey;
use crate::daemon::cgroups::{Cgroups, Closing, Made};
use crate::daemon::fd_store::FdStore;
use crate::daemon::hosted::{Ear, Held, Launched, Main};
use crate::daemon::ledger::Start;
use crate::daemon::mains::Mains;
use crate::daemon::places::{make_private, name_of, start_name};
use crate::failpoint;
use crate::journal::Journal;
use crate::net::endpoint::{bind_tcp, bind_unix, free_tcp_port, prepare_tcp, prepare_unix};
use crate::net::notify_socket::NotifySocket;
use crate::process::cgroup::Leaf;
use crate::process::group::{Doomed, END_PATIENCE, Tree, end};
use crate::process::log_file;
use crate::process::log_place::LogPlace;
use crate::process::spare::Spare;
use crate::process::spawn::{Listen, Spawned, spawn};
use crate::process::start::StartFacts;
use crate::process::start_record::StartRecord;
use crate::services::{self, Definition, Probe};

/// How long a program is left alone that was just executed. Most are loaded by then; on two processors it is ready 0.1 ms
/// sooner than beside the rest of its start.
const LOADING: Duration = Duration::from_millis(2);

/// What a launch needs to know.
pub(in crate::daemon) struct Order {
    pub(in crate::daemon) key: BackendKey,
    pub(in crate::daemon) definition: Arc<Definition>,
    /// The Unix socket's path, fixed or chosen.
    pub(in crate::daemon) socket: PathBuf,
    pub(in crate::daemon) notify: PathBuf,
    pub(in crate::daemon) data: PathBuf,
    pub(in crate::daemon) logs: PathBuf,
    pub(in crate::daemon) listener: Option<Held>,
    pub(in crate::daemon) nofile_soft: Option<u64>,
    /// What is known of the start before anything is done for it.
    pub(in crate::daemon) start: Start,
    /// Where its record is to be.
    pub(in crate::daemon) record: PathBuf,
    pub(in crate::daemon) journal: Journal,
    pub(in crate::daemon) cgroups: Cgroups,
    pub(in crate::daemon) fd_store: FdStore,
    pub(in crate::daemon) spares: Spares,
    /// What its listening socket is called there.
    pub(in crate::daemon) listener_name: String,
}

/// What is left to be done when a start was told.
pub(in crate::daemon) struct Rest {
    logs: PathBuf,
    keep: usize,
    /// None of one that writes to the journal.
    newest: Option<PathBuf>,
    spares: Spares,
    journal: Journal,
}

impl Rest {
    /// Has written down what was started, removes what is too old by now, and makes what the next start will need; a moment
    /// later, for the program that is being loaded may need this processor.
    pub(in crate::daemon) fn carry_out(self) {
        thread::sleep(LOADING);
        self.journal.wake();
        if let Some(newest) = self.newest {
            log_file::prune(&self.logs, self.keep, &newest);
        }
        self.spares.make();
    }
}

/// What was started, and the rest.
pub(in crate::daemon) type Started = (Box<Launched>, Rest);

/// Starts the daemon. Returns once its program is executed.
pub(in crate::daemon) fn launch(order: &Order, mains: &Mains) -> Result<Started, Box<Refusal>> {
    let mut start = order.start.clone();
    start.log = Some(LogPlace::File(log_file::new_path(&order.logs)));
    start.record = Some(order.record.clone());
    failpoint::reached("before-intent");
    // Whoever reads the journal is told more by the start's record, so it is not waited for if there is one.
    order.journal.tell_quietly(Arc::new(start.clone()).as_change());
    if order.cgroups.are_closing() {
        return Err(refusal_of(&Closing));
    }
    // Where nobody asks for it, it would be in the way of every first start.
    if order.definition.uses_state_dir() {
        make_private(&order.data, None)
            .map_err(|error| failed(format!("cannot make the folder `{}`", order.data.display()), &error))?;
    }
    let (endpoint, listener) = prepare_endpoint(order)?;
    let launched = launch_at(order, mains, start, endpoint, listener.clone());
    // What was bound for a start that came to nothing would keep clients waiting for nobody.
    if launched.is_err() && order.listener.is_none() {
        listener.iter().for_each(Held::remove);
    }
    launched
}

fn launch_at(
    order: &Order,
    mains: &Mains,
    mut start: Start,
    endpoint: Endpoint,
    listener: Option<Held>,
) -> Result<Started, Box<Refusal>> {
    let definition = &order.definition;
    let says_ready = matches!(definition.readiness.probe, Probe::Notify | Probe::Socket { notify: true });
    let notify = says_ready.then(|| listen_to(&order.notify, &order.fd_store)).transpose()?;
    let surroundings = Surroundings {
        definition,
        instance: &order.key.instance,
        endpoint: &endpoint,
        data: &order.data,
        notify: notify.as_ref().map(|ear| ear.socket.path()),
        nofile_soft: order.nofile_soft,
    };
    // Programs are looked for before the log is made: what cannot run leaves no trace, and no log gives way to it.
    let commands = Commands::find(&surroundings)?;
    let name = start_name(&order.key, order.start.generation);
    let made = order.cgroups.make(&name, &definition.limits);
    let Made { cgroup, unenforced } = made.map_err(|closing| refusal_of(&closing))?;
    let (cgroup, opened) = cgroup.unzip();
    let file = start.log.take().as_ref().and_then(LogPlace::file).map(Path::to_owned).unwrap_or_default();
    let planned = Planned::of(order, cgroup.as_ref(), file);
    start.endpoint = Some(endpoint.clone());
    start.notify = notify.as_ref().map(|ear| ear.socket.path().to_owned());
    (start.cgroup, start.unenforced) = (cgroup, unenforced);
    let spares = order.spares.take();
    let mut output = planned.open(order, spares.log).inspect_err(|_| start.cgroup.iter().for_each(Leaf::remove))?;
    start.log = Some(output.place.clone());
    let record = record(order, &mut start, spares.record);
    let (mut daemon, probe) = commands.with_output(&surroundings, &output.descriptor);
    daemon.listen.extend(
        listener.iter().map(|held| Listen { socket: Arc::clone(&held.socket), name: definition.service.to_string() }),
    );
    if record.is_none() {
        let intent = order.journal.begin(Arc::new(start.clone()).as_change());
        order.journal.settled(intent);
    }
    failpoint::reached("after-intent");
    // What cannot be recorded goes with the broker, so that nothing unknown is left of it.
    daemon.die_with_parent = record.is_none();
    daemon.record = record.as_ref().map(StartRecord::descriptor);
    daemon.cgroup = opened;
    let spawned = spawn(&daemon).map_err(|error| {
        discard(&start);
        output.remove();
        refusal_of_spawn(&error)
    })?;
    failpoint::reached("after-fork");
    drop(record);
    let pid = spawned.pid;
    mains.insert(pid);
    note_what_failed(order, &spawned, &mut start);
    let given_up = |start: &Start, facts: Option<&StartFacts>, refusal| {
        abandon(&spawned, facts, start.cgroup.as_ref(), mains);
        discard(start);
        refusal
    };
    // While the program is being loaded, of which the facts tell.
    let settled = output.settle();
    let mut facts = StartFacts::observe(&daemon, &spawned).map_err(|error| {
        given_up(&start, None, failed(format!("cannot look at the process {pid} that was just started"), &error))
    })?;
    facts.cgroup = start.cgroup.clone();
    if let Err(refusal) = settled {
        let refusal = given_up(&start, Some(&facts), refusal);
        output.remove();
        return Err(refusal);
    }
    failpoint::reached("after-log");
    let facts = Arc::new(facts);
    if spawned.dies_with_parent && start.record.take().is_some() {
        let _ = std::fs::remove_file(&order.record);
        tracing::warn!(backend = %order.key, "the start could not be recorded, so the backend will end with this broker");
    }
    start.runs_as(&facts, pid);
    let start = Arc::new(start);
    order.journal.tell_quietly(start.as_change());
    failpoint::reached_after("after-pid", || order.journal.flush());
    let rest = Rest {
        logs: order.logs.clone(),
        keep: usize::try_from(definition.log.files().keep).unwrap_or(usize::MAX),
        newest: output.place.file().map(Path::to_owned),
        spares: order.spares.clone(),
        journal: order.journal.clone(),
    };
    let main = Main { pid, pidfd: Arc::new(spawned.pidfd), group: pid };
    let dies_with_broker = spawned.dies_with_parent;
    let launched = Launched {
        stream: output.into_stream(),
        start,
        endpoint,
        main,
        facts,
        listener,
        notify,
        probe,
        dies_with_broker,
    };
    Ok((Box::new(launched), rest))
}

fn refusal_of(Closing: &Closing) -> Box<Refusal> {
    let refusal = Refusal::new(Code::ShuttingDown, "the unit that all backends live in is stopped, or being restarted");
    Box::new(refusal.retry_after_ms(millis_up(RETRY_HINT)))
}

/// Removes what was made for a start that came to nothing, its log apart.
fn discard(start: &Start) {
    start.cgroup.iter().for_each(Leaf::remove);
    start.record.iter().for_each(|record| drop(std::fs::remove_file(record)));
}

/// Takes note of what it could not be given: its cgroup, and with that what is limited there; or as many descriptors.
fn note_what_failed(order: &Order, spawned: &Spawned, start: &mut Start) {
    let limits = &order.definition.limits;
    if let (Some(error), Some(cgroup)) = (&spawned.strayed, start.cgroup.take_if(|_| spawned.strayed.is_some())) {
        tracing::warn!(backend = %order.key, %error, "cannot be put into its cgroup, so it is a process group alone");
        cgroup.remove();
        start.unenforced = limits.without_a_cgroup(&format!("it could not be put into its cgroup: {error}"));
    }
    if let (Some(limit), Some(lower)) = (limits.nofile, spawned.nofile_lowered_to) {
        let why = format!("{lower} is the most that the broker may give, and {limit} is more");
        start.unenforced.push(Unenforced { limit: "nofile".to_owned(), why });
    }
    for Unenforced { limit, why } in &start.unenforced {
        tracing::warn!(backend = %order.key, limit, why, "a limit is not enforced");
    }
}

/// Makes the start's record. A broker that cannot keep it goes on without.
fn record(order: &Order, start: &mut Start, spare: Option<Spare>) -> Option<StartRecord> {
    match StartRecord::make(&order.record, &start.to_string(), spare) {
        Ok(record) => Some(record),
        Err(error) => {
            start.record = None;
            tracing::warn!(
                backend = %order.key, %error, record = %order.record.display(),
                "the start cannot be recorded, so the backend will end with this broker"
            );
            None
        }
    }
}

/// Ends a process that was started and cannot be used, with what it has started itself.
fn abandon(spawned: &Spawned, facts: Option<&StartFacts>, cgroup: Option<&Leaf>, mains: &Mains) {
    if let Some(cgroup) = cgroup {
        cgroup.end(END_PATIENCE);
    }
    let doomed = Doomed {
        main: spawned.pid,
        group: spawned.pid,
        pidfd: spawned.pidfd.as_fd(),
        start: facts,
        tree: Tree::default(),
        is_other: &|pid| pid != spawned.pid && mains.contains(pid),
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
    // The service manager may still keep a socket at this very place that it was just told to forget.
    order.fd_store.settle_listeners();
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
    let held = socket.map(|socket| {
        failpoint::reached("before-kept");
        let stored = order.fd_store.keep(&order.listener_name, &socket).map(Arc::new);
        failpoint::reached("after-kept");
        Held { socket: Arc::new(socket), endpoint: endpoint.clone(), declared: declared.clone(), stored }
    });
    Ok((endpoint, held))
}

/// Binds a notify socket and has it kept, so that what is said while no broker runs is heard by the next one.
pub(in crate::daemon) fn listen_to(path: &Path, fd_store: &FdStore) -> Result<Ear, Box<Refusal>> {
    let socket = NotifySocket::bind(path).map_err(|error| failed(error.to_string(), &error))?;
    failpoint::reached("before-heard");
    let stored = fd_store.keep(&name_of(path), &socket);
    failpoint::reached("after-heard");
    Ok(Ear { socket, stored, is_whole: true })
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;
    use crate::process::identity::open_if;
    use crate::process::kernel::has_ended;
    use crate::process::testing::{Start, as_broker, wait_for};

    #[test]
    fn what_a_daemon_forked_away_is_ended_with_it() {
        as_broker(|| {
            // It says nothing of where it came from but by its output.
            let script = "setsid -f env -i sh -c 'echo $$; exec sleep 1000'; exec sleep 1000";
            let start = Start::sh(script);
            wait_for("a process is forked away", || start.log().ends_with('\n'));
            let pid = Pid::from_raw(start.log().trim_end().parse().unwrap());
            let (_, away) = open_if(pid, |_| true).unwrap().unwrap();
            let mains = Mains::default();
            mains.insert(start.spawned.pid);
            abandon(&start.spawned, Some(&start.facts), None, &mains);
            assert!(has_ended(away.as_fd()) && !mains.contains(start.spawned.pid));
        });
    }
}
