//! `brokerctl exec`: holds a backend while a command runs.
//!
//! The command keeps the terminal: it is in the same process group and gets Ctrl-C itself. What is sent to brokerctl
//! alone is passed on. The session runs on while a thread of its own waits for the command.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::{Handle, Signals};
use tokio::sync::oneshot;

use super::args::{Exec, Global};
use super::keeping::narrate;
use super::output::{Console, FAILED, Failure};
use super::session::Session;

/// Exit code, as shells use it: the command exists and cannot be executed.
const CANNOT_EXECUTE: u8 = 126;
/// Exit code, as shells use it: there is no such command.
const NOT_FOUND: u8 = 127;
/// Exit code, as shells use it: this and the signal that ended the command.
const SIGNALLED: i32 = 128;

pub(super) async fn run(console: &Console, global: &Global, exec: &Exec) -> Result<ExitCode, Failure> {
    let session = Session::keep(console, global, &exec.wanted).await?;
    let events = session.client.events();
    let held = session.resolve(&exec.wanted).await?;
    let backend = held.negotiated();
    let Some((program, arguments)) = exec.command.split_first() else {
        return Err(Failure::told(FAILED, "no command is given"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("BROKER_ENDPOINT", backend.endpoint.to_string())
        .env("BROKER_ADDRESS", backend.endpoint.address())
        .env("BROKER_GENERATION", backend.generation.to_string())
        .env("BROKER_SERVICE", &backend.service)
        .env("BROKER_VERSION", &backend.version)
        .env("BROKER_INSTANCE", &backend.instance)
        .env("BROKER_SOCKET", session.client.socket());
    let forwarding = Forwarding::begin().map_err(|e| Failure::because(FAILED, "cannot receive signals", e))?;
    let child = command.spawn().map_err(|e| cannot_run(&program.to_string_lossy(), e))?;
    let (done, ended) = oneshot::channel();
    thread::spawn(move || done.send(forwarding.until_end(child)));
    let name = format!("{}@{}", backend.service, backend.version);
    let status = tokio::select! {
        status = ended => status,
        never = narrate(console, &held, &name, events, session.is_kept) => match never {},
    };
    let status = status.map_err(|e| Failure::because(FAILED, "the wait for the command was lost", e))?;
    let status = status.map_err(|e| Failure::because(FAILED, "cannot wait for the command", e))?;
    drop(held);
    Ok(ExitCode::from(exit_code(status)))
}

fn cannot_run(program: &str, error: io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_EXECUTE,
    };
    Failure::because(code, format!("cannot run `{program}`"), error)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

/// Signals that arrive here and belong to the command.
struct Forwarding {
    signals: Signals,
    handle: Handle,
}

impl Forwarding {
    /// Takes the signals over before the command exists, so that none ends brokerctl alone. What was ignored from the
    /// start (nohup) stays ignored, for the command too.
    fn begin() -> io::Result<Self> {
        let ignored = ignored_signals();
        let taken = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        let signals = Signals::new(taken.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0))?;
        Ok(Self { handle: signals.handle(), signals })
    }

    /// Passes signals on until the command has ended.
    fn until_end(self, mut child: Child) -> io::Result<ExitStatus> {
        let Self { mut signals, handle } = self;
        let pid = i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)?;
        let alive = Arc::new(Mutex::new(true));
        let forwarder = {
            let alive = Arc::clone(&alive);
            thread::spawn(move || {
                for signal in signals.forever() {
                    let alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
                    if *alive
                        && !came_from_the_terminal(signal)
                        && let Ok(signal) = Signal::try_from(signal)
                    {
                        let _ = kill(pid, signal);
                    }
                }
            })
        };
        // The end is seen first and the number given back afterwards, with no signal in between: it could hit another
        // process.
        while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
        *alive.lock().unwrap_or_else(PoisonError::into_inner) = false;
        let status = child.wait();
        handle.close();
        let _ = forwarder.join();
        status
    }
}

/// Whether a terminal sent this to its whole foreground group, of which the command is a member.
fn came_from_the_terminal(signal: i32) -> bool {
    matches!(signal, SIGINT | SIGQUIT)
        && std::fs::File::open("/dev/tty").is_ok_and(|tty| tcgetpgrp(&tty).is_ok_and(|group| group == getpgrp()))
}

/// The signals that this process ignores, as bits from signal 1 on.
pub(super) fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_commands_own() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }

    #[test]
    fn a_command_that_cannot_be_run_ends_as_in_a_shell() {
        let code = |program: &str| {
            let error = Command::new(program).spawn().map(drop).expect_err("cannot run");
            match cannot_run(program, error) {
                Failure::Told { code, .. } => code,
                _ => 0,
            }
        };
        assert_eq!(code("/no/such/program"), NOT_FOUND);
        assert_eq!(code("/etc/passwd"), CANNOT_EXECUTE);
    }
}
