//! `brokerd`: the process around the driver.
//!
//! Owns start and end: command line, log, locks, signals, and the one thread that everything hot runs on. What it
//! decides about backends is decided in `core`; how it is done is in the files beside this one.

mod admin;
mod admins;
mod answers;
mod args;
mod cgroups;
mod clock;
mod connection;
mod deadlines;
mod demand;
mod detach;
mod doubts;
mod driver;
mod ending;
mod events;
mod fd_store;
mod filed;
mod grant;
mod hosted;
mod hosting;
mod inherited;
mod leaving;
mod ledger;
mod listener;
mod log;
mod logs;
mod lookups;
mod mail;
mod mains;
mod manager;
mod outbox;
mod ownership;
mod peer;
mod perform;
mod places;
mod processes;
mod reload;
mod report;
mod requests;
mod session;
mod signals;
mod starting;
mod sweep;
mod tasks;
mod telling;
mod trimming;
mod watched;
mod watches;
mod work;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use self::args::Args;
use self::cgroups::Cgroups;
use self::clock::Timer;
use self::detach::{Launcher, Side, detach};
use self::driver::{Driver, Leave, Parts, Shared};
use self::fd_store::FdStore;
use self::inherited::Inherited;
use self::ledger::{Here, write_after_answers};
use self::manager::Manager;
use self::ownership::{Ownership, OwnershipError};
use self::places::Places;
use self::processes::Processes;
use self::signals::{Request, Signals};
use self::watches::Watches;
use self::work::Report;
use crate::cgroup_keeper;
use crate::config::{Config, ConfigError, Options, Surroundings};
use crate::core::backend::Event;
use crate::journal::Journal;
use crate::process::orphans::reap_orphans;
use crate::process::spawn::reserve_descriptors;
use crate::reaper;
use crate::services::Catalog;
use crate::store::StoreError;

/// Reports of worker threads that wait to be read. A thread that finds it full waits, and nobody else does.
const REPORTS_MAX: usize = 1024;

/// How soon a client may come back after this broker was asked to end by its supervisor, or left unused.
const RECONNECT_AFTER_MS: u64 = 500;

/// The soft limit of open files, if it cannot be known: what Linux starts with.
const NOFILE_USUAL: u64 = 1024;

/// Another broker holds the place: as sysexits.h has it, try again later.
const EXIT_TAKEN: u8 = 75;

/// What a newer broker wrote cannot be read: as sysexits.h has it, something is set up wrongly, and trying again does not
/// help.
const EXIT_NEWER: u8 = 78;

/// Why the broker ends before its time.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Fatal {
    move |source| Fatal::System { what, source }
}

/// Runs the broker with a command line, the program's name first, until it is told to end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // The two roles that stay while brokers come and go are to stay small: nothing is set up before this.
    if let Some(code) = reaper::play(&arguments).or_else(|| cgroup_keeper::play(&arguments)) {
        return code;
    }
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell if it cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match start(args) {
        Ok(code) => code,
        Err(error) => {
            print_chain(&error);
            match error {
                Fatal::Ownership(OwnershipError::Taken { .. }) => ExitCode::from(EXIT_TAKEN),
                Fatal::Store(StoreError::Newer { .. }) => ExitCode::from(EXIT_NEWER),
                Fatal::Config(_) | Fatal::Log(_) | Fatal::Ownership(_) | Fatal::Store(_) | Fatal::System { .. } => {
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Prints an error and what caused it, once.
fn print_chain(error: &dyn std::error::Error) {
    let mut text = format!("brokerd: error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Transparent errors show their source's text as their own.
        let line = error.to_string();
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    // The journal takes a line for an error that says so, sd-daemon(3).
    let level = if log::stderr_is_journal() { "<3>" } else { "" };
    for line in text.lines() {
        anstream::eprintln!("{level}{line}");
    }
}

/// Runs the broker here, or in the background; then the launching process returns as soon as the broker serves.
fn start(args: Args) -> Result<ExitCode, Fatal> {
    let mut options = Options::from(args);
    // A broker in the background is none of the service manager's, and closes whatever it was started with.
    let inherited = match options.detach {
        true => Inherited::default(),
        false => Inherited::take().map_err(system("take over what the service manager passed"))?,
    };
    options.passed = inherited.paths().map(Path::to_owned).collect();
    let config = Config::load(&options, Surroundings::of_process())?;
    let launcher = match options.detach {
        true => match detach(config.log.directory.as_deref()).map_err(system("go into the background"))? {
            Side::Launcher(code) => return Ok(code),
            Side::Daemon(launcher) => Some(launcher),
        },
        false => None,
    };
    run(config, inherited, launcher, Manager::of_process())?;
    Ok(ExitCode::SUCCESS)
}

fn run(config: Config, inherited: Inherited, launcher: Option<Launcher>, manager: Manager) -> Result<(), Fatal> {
    // What the broker makes is its own, its log included; daemons get the umask that their service file says.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _log = log::start(&config.log)?;
    // A worker's panic is caught and answered; this is where it is written down.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a fault of the broker")));
    nix::sys::prctl::set_child_subreaper(true).map_err(|errno| system("become a subreaper")(errno.into()))?;
    let nofile_soft = raise_descriptor_limit();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.map_err(system("start the runtime"))?.block_on(serve(config, inherited, nofile_soft, launcher, manager))
}

/// Raises the soft limit of descriptors to the hard one; the old soft limit, which daemons get.
fn raise_descriptor_limit() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Some(soft),
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files stays as it is");
            None
        }
    }
}

async fn serve(
    config: Config,
    mut inherited: Inherited,
    nofile_soft: Option<u64>,
    launcher: Option<Launcher>,
    manager: Manager,
) -> Result<(), Fatal> {
    let signals = Signals::install().map_err(system("install signal handlers"))?;
    let places = Places::new(&config.socket, &config.state_dir);
    let passed = std::mem::take(&mut inherited.listeners);
    let (mut ownership, listeners) =
        Ownership::take(&config.socket, &config.state_dir, &places, config.socket_group, passed)?;
    reserve_descriptors();
    let opened = Journal::open(&places.journal())?;
    let here = Here::read().map_err(system("learn which boot this is"))?;
    let catalog = Catalog::load(&config.services);
    let fd_store = FdStore::of_manager(nofile_soft.unwrap_or(NOFILE_USUAL));
    let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
    let timer = Rc::new(Timer::new().map_err(system("make a timer"))?);
    let watches = Watches::new().map_err(system("watch folders"))?;
    let appearances = watches.readiness();
    let (socket, services) = (config.socket.clone(), catalog.services.len());
    let cgroups = Cgroups::new(config.cgroups, &config.state_dir, manager.is_there());
    let processes = Processes::new(&config, nofile_soft, cgroups.clone(), reports.clone())?;
    let driver = Driver::new(Parts {
        config,
        nofile_soft,
        places,
        cgroups,
        catalog,
        watches,
        timer: Rc::clone(&timer),
        listeners: listeners.clone(),
        manager,
        processes,
        reports,
        journal: opened.journal.clone(),
        here,
        fd_store: fd_store.clone(),
    });
    driver.borrow_mut().take_over(opened.rows, opened.unreadable, inherited);
    driver.borrow().log_problems();
    let (shuts_door, over) = (Rc::clone(&driver.borrow().shuts_door), Rc::clone(&driver.borrow().over));
    let is_own = ownership.is_own();
    for listener in listeners {
        tokio::task::spawn_local(listener::accept(Rc::clone(&driver), listener, is_own));
    }
    let (mail, busy_poll) = (Rc::clone(&driver.borrow().mail), driver.borrow().config.busy_poll);
    tokio::task::spawn_local(async move { mail.deliver(busy_poll).await });
    let told = Rc::clone(&driver.borrow().told);
    tokio::task::spawn_local(write_after_answers(opened.journal, told));
    tracing::info!(pid = std::process::id(), socket = %socket.display(), services, "ready");
    driver.borrow_mut().tell_ready();
    driver.borrow().arm();
    if let Some(launcher) = launcher {
        launcher.tell().map_err(system("give stderr up"))?;
    }

    loop {
        tokio::select! {
            () = timer.expired() => driver.borrow_mut().tick(),
            Some(report) = reported.recv() => take_report(&driver, report),
            ready = appearances.readable() => {
                if let Ok(mut guard) = ready {
                    guard.clear_ready();
                }
                let appeared = driver.borrow_mut().watches.drain();
                for (id, generation) in appeared {
                    driver.borrow_mut().dispatch(id, Event::Appeared { generation });
                }
            }
            request = signals.next() => take_signal(&driver, request),
            () = shuts_door.notified() => ownership.shut_door(),
            () = over.notified() => {
                ownership.shut_door();
                // Who waits at a socket that the service manager has is the next broker's.
                if !(is_own && driver.borrow_mut().is_called_once_more()) {
                    break;
                }
            }
        }
    }
    tracing::info!("ended");
    driver.borrow().remove_sockets();
    // What is watched is let go of before the next broker may have the locks.
    driver.borrow_mut().hosted.clear();
    tokio::task::yield_now().await;
    fd_store.flush();
    drop(ownership);
    Ok(())
}

fn take_signal(driver: &Shared, request: Request) {
    match request {
        Request::Drain => driver.borrow_mut().leave(Leave::HAND_OVER),
        Request::Stop => driver.borrow_mut().leave(Leave::STOP),
        Request::Reload => {
            if let Err(refusal) = driver.borrow_mut().reload(None) {
                tracing::error!("not reloaded: {}", refusal.reason);
            }
        }
        Request::Reap => {
            let mains = driver.borrow().mains.clone();
            for (pid, exit) in reap_orphans(|pid| mains.contains(pid)).reaped {
                tracing::debug!(pid = pid.as_raw(), "an orphan {exit}");
            }
        }
    }
}

fn take_report(driver: &Shared, report: Report) {
    let mut driver = driver.borrow_mut();
    match report {
        Report::Launched { id, generation, result } => driver.launched(id, generation, result),
        Report::Gone { id, generation, finished } => driver.gone(id, generation, finished),
        Report::Heirs { id, generation, heirs } => driver.heirs_found(id, generation, heirs),
        Report::Probing { id, generation, probe } => driver.probing(id, generation, probe),
        Report::Loaded { number, catalog, asker } => driver.loaded(number, catalog, asker),
        Report::Reply { session, request_id, document } => {
            if let Some(session) = driver.session(session) {
                admin::reply(&session, request_id, &document);
            }
        }
        Report::Refused { session, request_id, refusal } => {
            if let Some(session) = driver.session(session) {
                session.refuse(request_id, refusal);
            }
        }
        Report::Admins(found) => driver.admins_found(found),
        Report::Process(news) => driver.process_news(news),
        Report::Settled => driver.settled(),
        Report::LogsGrow => driver.logs_grow(),
    }
}
