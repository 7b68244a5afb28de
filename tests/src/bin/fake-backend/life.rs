//! From start to end: the gates before readiness, forking away, workers, notifications, and the ways to die.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, fork, setsid};

use crate::facts;
use crate::options::Options;
use crate::serve::{Listener, serve, serve_one_by_one};

/// How often gates that are files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Exit codes for a world that is not as it should be; tests never ask for these.
const BROKEN_WORLD: i32 = 99;

/// Lives the life that the options describe and returns the exit code.
pub(crate) fn live(options: &Options) -> i32 {
    if options.ignore_term {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) };
    }
    if let Some(path) = &options.print_facts {
        replace(path, facts::gather().to_string().as_bytes());
    }
    if options.fork_away && !is_daemon_after_forking_away() {
        return 0;
    }
    let _lock = options.lock.as_ref().map(|path| lock(path));
    if let Some(path) = &options.log_start {
        log_start(path);
    }
    if let Some(text) = &options.stderr {
        eprintln!("{text}");
    }
    if let (Some(code), false, None, None) =
        (options.exit, options.after_ready, &options.when, options.die_after_ready_ms)
    {
        return code;
    }
    if let Some(text) = &options.status {
        notify(&format!("STATUS={text}"));
    }
    if let Some(microseconds) = options.extend_usec {
        notify(&format!("EXTEND_TIMEOUT_USEC={microseconds}"));
    }
    if options.never_ready {
        for _ in 0..options.workers {
            // SAFETY: no thread has been started yet.
            if let Ok(ForkResult::Child) = unsafe { fork() } {
                return watch(&Options::default(), None);
            }
        }
        return watch(options, None);
    }
    let says_ready = options.notify;
    if !says_ready {
        pass_gate(options);
    }
    let listener = match Listener::open(options) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("fake-backend: cannot listen: {error}");
            return BROKEN_WORLD;
        }
    };
    for _ in 0..options.workers {
        // SAFETY: no thread has been started yet.
        if let Ok(ForkResult::Child) = unsafe { fork() } {
            serve(&listener, options.cat);
            return 0;
        }
    }
    if says_ready {
        pass_gate(options);
        notify("READY=1");
    }
    if options.small {
        serve_one_by_one(&listener);
    }
    let ready_at = Instant::now();
    if options.workers == 0 && !options.full_backlog {
        let cat = options.cat;
        thread::spawn(move || serve(&listener, cat));
        return watch(options, Some(ready_at));
    }
    let code = watch(options, Some(ready_at));
    drop(listener);
    code
}

/// Waits for the gate before readiness, or dies on the way if told so.
fn pass_gate(options: &Options) {
    if let Some(ms) = options.ready_after_ms {
        thread::sleep(Duration::from_millis(ms));
    }
    loop {
        if let Some(code) = ordered_exit(options, false) {
            std::process::exit(code);
        }
        if options.ready_when.as_ref().is_none_or(|gate| gate.exists()) {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The code to exit with, if the options say that the time has come.
fn ordered_exit(options: &Options, ready: bool) -> Option<i32> {
    let code = options.exit?;
    let phase = ready || !options.after_ready;
    let come = options.when.as_ref().is_none_or(|file| file.exists());
    (phase && come && options.die_after_ready_ms.is_none()).then_some(code)
}

/// Stays until something says that it is over.
fn watch(options: &Options, ready_at: Option<Instant>) -> i32 {
    if options.exit.is_none() && options.die_after_ready_ms.is_none() {
        loop {
            thread::park();
        }
    }
    loop {
        if let Some(code) = ordered_exit(options, ready_at.is_some()) {
            return code;
        }
        if let (Some(at), Some(ms)) = (ready_at, options.die_after_ready_ms)
            && at.elapsed() >= Duration::from_millis(ms)
        {
            return options.exit.unwrap_or(1);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Forks twice and leaves the session; `false` in the processes that are to exit.
fn is_daemon_after_forking_away() -> bool {
    // SAFETY: no thread has been started yet, in this process or in its children.
    let forked = || matches!(unsafe { fork() }, Ok(ForkResult::Child));
    forked() && setsid().is_ok() && forked()
}

fn log_start(path: &Path) {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| Duration::from(t).as_millis());
    let line = format!("{} {now}\n", std::process::id());
    let file = OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("fake-backend: cannot log the start in {}: {error}", path.display());
    }
}

/// Locks the file, as the only living process of its key; who finds it locked writes that down and goes on.
fn lock(path: &Path) -> Option<Flock<File>> {
    let tried = OpenOptions::new().create(true).read(true).append(true).open(path).map(|file| {
        let own = format!("{}\n", std::process::id());
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut locked) => locked.set_len(0).and_then(|()| locked.write_all(own.as_bytes())).map(|()| Some(locked)),
            Err((mut file, _)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let command = fs::read(format!("/proc/{}/cmdline", holder.trim())).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                let scream = format!("{} found {} ({command})\n", own.trim(), holder.trim());
                let screams = OpenOptions::new().create(true).append(true).open(path.with_extension("screams"));
                screams.and_then(|mut file| file.write_all(scream.as_bytes())).map(|()| None)
            }
        }
    });
    tried.and_then(|result| result).unwrap_or_else(|error| {
        eprintln!("fake-backend: cannot lock {}: {error}", path.display());
        None
    })
}

/// Writes a file so that nobody ever sees half of it.
fn replace(path: &Path, bytes: &[u8]) {
    let half = path.with_extension("half");
    if let Err(error) = fs::write(&half, bytes).and_then(|()| fs::rename(&half, path)) {
        eprintln!("fake-backend: cannot write {}: {error}", path.display());
    }
}

/// Says something to the service manager, which here is the broker.
fn notify(text: &str) {
    let sent = std::env::var_os("NOTIFY_SOCKET")
        .ok_or_else(|| std::io::Error::other("NOTIFY_SOCKET is not set"))
        .and_then(|path| UnixDatagram::unbound()?.send_to(text.as_bytes(), path));
    if let Err(error) = sent {
        eprintln!("fake-backend: cannot notify {text}: {error}");
    }
}
