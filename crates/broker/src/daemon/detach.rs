//! Into the background: two forks, a session of its own, and none of what the broker was started with.
//!
//! Owns the way there and what the launching process learns of it: that the broker serves, or why it does not. Must be
//! gone through before there is a thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

/// What the daemon writes last to its launcher. It is in no message.
const SERVES: u8 = 0;

/// The exit code of a launcher that knows no better one.
const FAILURE: u8 = 1;

/// What a service manager told the process that it started. The broker in the background is another one.
const OF_THE_MANAGER: [&str; 7] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Which process this is now.
pub(super) enum Side {
    /// The one that was started; it has seen the broker serve or fail.
    Launcher(ExitCode),
    /// The one in the background.
    Daemon(Launcher),
}

/// The launching process, as the daemon reaches it: by its stderr.
#[derive(Debug)]
pub(super) struct Launcher(());

impl Launcher {
    /// Says that the broker serves, and gives stderr up.
    pub(super) fn tell(self) -> io::Result<()> {
        let mut report = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        dup2_stderr(null()?)?;
        // One that has gone away meanwhile does not want to know.
        let _ = report.write_all(&[SERVES]);
        Ok(())
    }
}

/// Goes into the background. `log` is where the broker writes what it does not tell its launcher.
pub(super) fn detach(log: Option<&Path>) -> io::Result<Side> {
    let (report, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // So the daemon is the launcher's once the process between them has ended, and its exit status can be read.
    nix::sys::prctl::set_child_subreaper(true)?;
    // SAFETY: there is no other thread, whose locks would stay locked in the child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(theirs);
            Ok(Side::Launcher(watch(report.into(), child, log)))
        }
        ForkResult::Child => {
            drop(report);
            renounce(theirs)?;
            setsid()?;
            // Who leads a session may be given a terminal by opening one; a child of the leader cannot.
            // SAFETY: as above.
            match unsafe { fork() }? {
                // SAFETY: ends this process alone, without what its launcher registered for its own end.
                ForkResult::Parent { .. } => unsafe { libc::_exit(0) },
                ForkResult::Child => Ok(Side::Daemon(Launcher(()))),
            }
        }
    }
}

/// Lets go of everything inherited. From here on stderr is the launcher's pipe.
fn renounce(report: OwnedFd) -> io::Result<()> {
    dup2_stderr(&report)?;
    let null = null()?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    drop((report, null));
    close_others()?;
    reset_signals();
    std::env::set_current_dir("/")?;
    for name in OF_THE_MANAGER {
        // SAFETY: there is no other thread that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// Closes every descriptor but the first three.
fn close_others() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: three integers. Nothing of this process owns a descriptor by now.
    if unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) } == 0 {
        return Ok(());
    }
    // For kernels before 5.9, and for sandboxes that forbid the call.
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|&number| number > 2) {
        // SAFETY: as above; the list itself is closed by now.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Signals do what they do by default, and are let through. Only what was inherited can be ignored here, but for SIGPIPE,
/// which is how Rust programs are.
fn reset_signals() {
    for signal in (1..=libc::SIGRTMAX()).filter(|&signal| signal != libc::SIGPIPE) {
        // SAFETY: a zeroed action is SIG_DFL without flags, the kernel reads and fills what is live. Numbers that are
        // not for programs fail, harmlessly.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN {
                action = std::mem::zeroed();
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Waits until the daemon serves or has ended, and passes on what it says meanwhile.
fn watch(mut report: File, between: Pid, log: Option<&Path>) -> ExitCode {
    let mut bytes = [0; 4096];
    let (mut serves, mut said) = (false, false);
    loop {
        let count = match report.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        serves |= bytes[..count].contains(&SERVES);
        for text in bytes[..count].split(|byte| *byte == SERVES).filter(|text| !text.is_empty()) {
            said = true;
            // Nobody is left to tell if it cannot be printed.
            let _ = io::stderr().write_all(text);
        }
    }
    // It ends as soon as it has made the daemon; by now it has.
    let made = wait(between);
    if serves {
        return ExitCode::SUCCESS;
    }
    let (code, how) = fate(match made {
        // The daemon is alone in the process group of the one that made it.
        Ok(WaitStatus::Exited(_, 0)) => wait(Pid::from_raw(-between.as_raw())),
        status => status,
    });
    if !said {
        let hint = log.map(|log| format!("; its log is in `{}`", log.display())).unwrap_or_default();
        anstream::eprintln!("brokerd: error: the broker {how} before it accepted a connection{hint}");
    }
    ExitCode::from(code)
}

/// What an end before the broker served means: our own exit code, and in words.
fn fate(status: nix::Result<WaitStatus>) -> (u8, String) {
    match status {
        Ok(WaitStatus::Exited(_, code)) => {
            // Not to serve is to fail, whatever the code says.
            let own = u8::try_from(code).ok().filter(|code| *code != 0);
            (own.unwrap_or(FAILURE), format!("exited with code {code}"))
        }
        Ok(WaitStatus::Signaled(_, signal, _)) => (FAILURE, format!("was ended by {signal}")),
        Ok(_) | Err(_) => (FAILURE, "ended".to_owned()),
    }
}

fn wait(pid: Pid) -> nix::Result<WaitStatus> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
