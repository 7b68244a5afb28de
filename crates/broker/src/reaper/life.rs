//! From the command's execution to its end: signals, the timeout, and what the command leaves behind.
//!
//! Everything below the reaper is the command's: it is a subreaper, so nothing that the command starts gets away.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::folder::{Attempt, Folder, MARK, Spec};
use crate::core::durable::{Ended, EndedBy};
use crate::process::cgroup::Leaf;
use crate::process::exit::{Exit, peek};
use crate::process::group;
use crate::process::identity::{self, open_if};
use crate::process::kernel::{has_ended, pidfd_signal, reap, wait_ended};
use crate::process::orphans::reap_orphans;
use crate::process::spawn::{Command, SpawnError, Spawned, resolve_program, spawn};

/// What a shell exits with where a program is missing, and where it cannot be executed.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_EXECUTABLE: i32 = 126;

/// How long killed processes are waited for before the outcome is written without them.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How long the end of a command by a signal is not believed to be its own affair: whoever takes a machine or a control
/// group down needs some time to tell all processes.
const SHUTDOWN_SPREAD: Duration = Duration::from_millis(100);

/// How long one round of killing waits before it looks again for what was born meanwhile.
const ROUND: Duration = Duration::from_millis(20);

/// The signals that the reaper reads.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Blocks and opens them. SIGHUP and the keyboard's mean nothing here and stay blocked.
    pub(super) fn block() -> io::Result<Self> {
        let mut read = SigSet::empty();
        read.add(Signal::SIGTERM);
        read.add(Signal::SIGCHLD);
        let mut blocked = read;
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT].into_iter().for_each(|signal| blocked.add(signal));
        blocked.thread_block()?;
        Ok(Self(SignalFd::with_flags(&read, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Whether SIGTERM is among those that came.
    fn terminated(&self) -> bool {
        let mut came = false;
        while let Ok(Some(signal)) = self.0.read_signal() {
            came |= i32::try_from(signal.ssi_signo) == Ok(Signal::SIGTERM as i32);
        }
        came
    }
}

/// The command, executed.
pub(super) struct Running {
    pub(super) main: Spawned,
    /// What it and all that it starts lives in, if it is in one of its own.
    pub(super) cgroup: Option<Leaf>,
}

/// The part of the attempt's cgroup that is the command's, and not the reaper's.
const COMMAND: &str = "command";

/// Executes the command, or says how that ended.
pub(super) fn execute(folder: &Folder, spec: &Spec, begun: &Attempt) -> Result<Running, Ended> {
    let open = |path: &Path| -> Result<Arc<OwnedFd>, Ended> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        // A full disk, say: not the command's fault, and perhaps better next time.
        let file = file.map_err(|error| Ended {
            ended_by: EndedBy::Interrupted,
            reason: Some(format!("cannot open `{}`: {error}", path.display())),
            ..Ended::default()
        })?;
        Ok(Arc::new(file.into()))
    };
    let attempt = begun.attempt;
    let (stdout, stderr) = (open(&folder.stdout(attempt))?, open(&folder.stderr(attempt))?);
    let path = spec.environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_ref());
    let name = spec.argv.first().map(String::as_str).unwrap_or_default();
    let own = [
        ("BROKER_PROCESS_ID", spec.id.clone()),
        ("BROKER_PROCESS_ATTEMPT", attempt.to_string()),
        (MARK, begun.mark.clone()),
    ];
    // Of two values of a variable some programs see the first and some the last.
    let given = spec.environment.iter().filter(|(name, _)| own.iter().all(|(own, _)| own != name));
    let given = given.map(|(name, value)| (name.into(), value.into()));
    let environment: Vec<_> = given.chain(own.iter().map(|(name, value)| (name.into(), value.into()))).collect();
    let cgroup = begun.cgroup.as_ref().and_then(|cgroup| cgroup.make_below(COMMAND).ok());
    let opened = cgroup.as_ref().and_then(|cgroup| cgroup.open().ok()).map(Arc::new);
    let cgroup = cgroup.filter(|_| opened.is_some());
    let command = Command {
        program: resolve_program(name.as_ref(), path).map_err(|error| not_executed(&error))?,
        argv: spec.argv.iter().map(Into::into).collect(),
        environment,
        working_directory: spec.working_directory.as_str().into(),
        umask: spec.umask,
        stdout,
        stderr,
        listen: Vec::new(),
        die_with_parent: true,
        record: None,
        cgroup: opened,
        nofile_soft: None,
        nofile: spec.limits.nofile,
    };
    let main = spawn(&command).map_err(|error| not_executed(&error))?;
    Ok(Running { cgroup: cgroup.filter(|_| main.strayed.is_none()), main })
}

fn not_executed(error: &SpawnError) -> Ended {
    let mut reason = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        reason = format!("{reason}: {source}");
    }
    if error.is_exhausted() {
        return Ended { ended_by: EndedBy::Interrupted, reason: Some(reason), ..Ended::default() };
    }
    let is_missing = match error {
        SpawnError::NotFound { hint_text, .. } => hint_text.is_none(),
        SpawnError::Execute { .. } => error.errno() == Some(libc::ENOENT),
        _ => false,
    };
    let exit_code = Some(if is_missing { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE });
    Ended { exit_code, reason: Some(reason), ..Ended::default() }
}

/// Why the command is being ended, and until when it may do so by itself.
struct Stopping {
    why: EndedBy,
    kill_at: Instant,
}

/// Waits for the command's end, ends it if told to, and ends what it leaves.
pub(super) fn supervise(folder: &Folder, spec: &Spec, command: &Running, signals: &Signals) -> Ended {
    let timeout_at = spec.timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let stop_timeout = Duration::from_millis(spec.stop_timeout_ms);
    let stop_signal = Signal::try_from(spec.stop_signal).unwrap_or(Signal::SIGTERM);
    let mut stopping: Option<Stopping> = None;
    let mut was_told = false;
    while !has_ended(command.main.pidfd.as_fd()) {
        let due = stopping.as_ref().map(|stopping| stopping.kill_at).or(timeout_at);
        wait(command, signals, due);
        let terminated = signals.terminated();
        was_told |= terminated;
        reap_orphans(|pid| pid == command.main.pid);
        let is_due = due.is_some_and(|due| due <= Instant::now());
        match &mut stopping {
            None => {
                let why = match (terminated, is_due) {
                    (true, _) if folder.is_cancelled() => EndedBy::Cancel,
                    (true, _) => EndedBy::Interrupted,
                    (false, true) => EndedBy::Timeout,
                    (false, false) => continue,
                };
                if has_ended(command.main.pidfd.as_fd()) {
                    break;
                }
                // The command is not reaped before all is over, so the number is its own.
                let _ = group::signal(command.main.pid, stop_signal);
                stopping = Some(Stopping { why, kill_at: Instant::now() + stop_timeout });
            }
            Some(stopping) => {
                if terminated && stopping.why == EndedBy::Interrupted && folder.is_cancelled() {
                    stopping.why = EndedBy::Cancel;
                }
                if is_due {
                    end_everything(command);
                }
            }
        }
    }
    let mut ended_by = stopping.map_or(EndedBy::None, |stopping| stopping.why);
    if ended_by == EndedBy::None && was_interrupted(command, signals, was_told) {
        ended_by = if folder.is_cancelled() { EndedBy::Cancel } else { EndedBy::Interrupted };
    }
    end_everything(command);
    let exit = reap(&command.main.pidfd).ok().flatten().unwrap_or(Exit::Unknown);
    let (exit_code, signal) = match exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal { number, .. } => (None, Some(number)),
        Exit::Unknown => (None, None),
    };
    Ended { exit_code, signal, ended_by, reason: None }
}

/// Whether a command that failed was told to end together with its reaper: a machine that goes down tells all processes,
/// and the command may be quicker.
fn was_interrupted(command: &Running, signals: &Signals, was_told: bool) -> bool {
    const TERMINATED: i32 = 128 + Signal::SIGTERM as i32;
    let patience = match peek(command.main.pidfd.as_fd()) {
        Ok(Some(exit)) if exit.is_success() => return false,
        Ok(Some(Exit::Signal { .. } | Exit::Code(TERMINATED))) => SHUTDOWN_SPREAD,
        _ => Duration::ZERO,
    };
    let due = Instant::now() + patience;
    loop {
        if was_told || signals.terminated() {
            return true;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)], timeout);
    }
}

/// Sleeps until something happens or the time has come.
fn wait(command: &Running, signals: &Signals, due: Option<Instant>) {
    let timeout = match due {
        Some(due) => {
            let left = due.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    let mut watched = [command.main.pidfd.as_fd(), signals.0.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut watched, timeout);
}

/// Kills the command, its group and everything else below this process, and waits until it is gone; the command is left to
/// be reaped. What is born meanwhile is ended too.
fn end_everything(command: &Running) {
    let deadline = Instant::now() + END_PATIENCE;
    if let Some(cgroup) = &command.cgroup {
        cgroup.end(END_PATIENCE);
    }
    loop {
        if peek(command.main.pidfd.as_fd()).is_ok() {
            let _ = group::signal(command.main.pid, Signal::SIGKILL);
        }
        let _ = pidfd_signal(command.main.pidfd.as_fd(), Signal::SIGKILL);
        let found = freeze();
        for pidfd in &found {
            let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        }
        for pidfd in found.iter().map(AsFd::as_fd).chain([command.main.pidfd.as_fd()]) {
            wait_ended(pidfd, ROUND);
        }
        reap_orphans(|pid| pid == command.main.pid);
        let is_over = found.is_empty() && has_ended(command.main.pidfd.as_fd());
        if is_over || Instant::now() >= deadline {
            return;
        }
    }
}

/// Stops and opens every descendant that runs, so that none has a child that is not seen.
fn freeze() -> Vec<OwnedFd> {
    let me = Pid::this();
    let below = identity::below([me]).unwrap_or_default();
    let mut found = Vec::new();
    for process in below.iter().filter(|process| process.pid != me && !matches!(process.state, b'Z' | b'X')) {
        if let Ok(Some((_, pidfd))) = open_if(process.pid, |now| now.start_time == process.start_time) {
            let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGSTOP);
            found.push(pidfd);
        }
    }
    found
}
