//! Every process that the benchmark starts, and its end: at the end of its scope, after a panic, at Ctrl-C.
//!
//! Processes are ended by pidfd, so never a stranger who has got the number. What a killed broker leaves comes to this
//! process, which is a subreaper, and is ended by the sweep.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{cgroups, kernel};

/// How long a process may take to end when it is asked to. A broker stops its daemons first.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it is given when the run is broken off.
const PATIENCE_BROKEN_OFF: Duration = Duration::from_secs(10);

/// Signals by which a run is broken off.
const BREAKING_OFF: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// What is to be ended and removed, whatever happens.
static ROSTER: Mutex<Roster> = Mutex::new(Roster { processes: Vec::new(), folders: Vec::new(), is_over: false });

struct Roster {
    processes: Vec<(Arc<OwnedFd>, Signal)>,
    folders: Vec<PathBuf>,
    /// Nothing may be started any more.
    is_over: bool,
}

fn roster() -> MutexGuard<'static, Roster> {
    ROSTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that ends with its scope.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pidfd: Arc<OwnedFd>,
    /// How it is asked to end.
    end: Signal,
}

impl Process {
    /// Starts a program in a process group of its own, so that a Ctrl-C meets this process alone.
    pub(crate) fn start(mut command: Command, end: Signal) -> Self {
        command.process_group(0);
        let program = command.get_program().to_owned();
        let mut roster = roster();
        while roster.is_over {
            drop(roster);
            std::thread::park();
            roster = self::roster();
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot execute {}: {error}", program.display()));
        let pid = Pid::from_raw(child.id().cast_signed());
        let pidfd = Arc::new(pidfd_open(pid).expect("a child that nobody has reaped"));
        roster.processes.push((Arc::clone(&pidfd), end));
        Self { child, pidfd, end }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn has_ended(&self) -> bool {
        wait_for_end(&self.pidfd, Duration::ZERO)
    }

    /// Asks it to end and waits until it has; one that does not is killed.
    pub(crate) fn end(self) {}

    pub(crate) fn kill(mut self) {
        self.end = Signal::SIGKILL;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        signal(&self.pidfd, self.end);
        if !wait_for_end(&self.pidfd, PATIENCE) {
            say(&format!("process {} did not end at {} and is killed", self.child.id(), self.end));
            signal(&self.pidfd, Signal::SIGKILL);
        }
        // It has ended, or is about to; if it cannot be waited for, the sweep has reaped it.
        let _ = self.child.wait();
        roster().processes.retain(|(pidfd, _)| !Arc::ptr_eq(pidfd, &self.pidfd));
    }
}

/// Has the kernel send the program a signal when the thread that starts it is gone: not even SIGKILL leaves a broker.
pub(crate) fn end_with_this_process(command: &mut Command, signal: Signal) {
    let set = move || nix::sys::prctl::set_pdeathsig(signal).map_err(io::Error::from);
    // SAFETY: one system call, which is safe between fork and exec.
    unsafe { command.pre_exec(set) };
}

/// Remembers a folder that is removed even if the run is broken off.
pub(crate) fn remove_at_the_end(folder: &Path) {
    roster().folders.push(folder.to_owned());
}

/// Becomes the one whom orphans come to, and ends everything at Ctrl-C.
pub(crate) fn prepare() {
    nix::sys::prctl::set_child_subreaper(true).expect("every process may be a subreaper");
    stay_silent_once_broken_off();
    let mut signals = Signals::new(BREAKING_OFF).expect("signals can be handled");
    let watch = move || {
        if let Some(number) = signals.forever().next() {
            say("broken off: ending what was started");
            let (processes, folders) = {
                let mut roster = roster();
                roster.is_over = true;
                (std::mem::take(&mut roster.processes), std::mem::take(&mut roster.folders))
            };
            let brokers = kernel::children(Pid::this()).into_iter().map(|(pid, _)| pid);
            let cgroups = cgroups::made_for(brokers.flat_map(kernel::children).map(|(pid, _)| pid));
            processes.iter().for_each(|(pidfd, end)| signal(pidfd, *end));
            let deadline = Instant::now() + PATIENCE_BROKEN_OFF;
            for (pidfd, _) in &processes {
                if !wait_for_end(pidfd, deadline.saturating_duration_since(Instant::now())) {
                    signal(pidfd, Signal::SIGKILL);
                    wait_for_end(pidfd, PATIENCE_BROKEN_OFF);
                }
            }
            sweep();
            cgroups::remove(&cgroups);
            folders.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
            std::process::exit(128 + number);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).expect("a thread");
}

/// What a signal interrupts is no failure of the measurement: its thread is let go no further.
fn stay_silent_once_broken_off() {
    let is_broken_off = Arc::new(AtomicBool::new(false));
    for number in BREAKING_OFF {
        signal_hook::flag::register(number, Arc::clone(&is_broken_off)).expect("signals can be handled");
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        while is_broken_off.load(Ordering::SeqCst) {
            std::thread::park();
        }
        report(panic);
    }));
}

/// Kills every child that is left, and theirs, which come to this process then. How many there were.
pub(crate) fn sweep() -> usize {
    let mut killed = 0;
    let deadline = Instant::now() + PATIENCE_BROKEN_OFF;
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some()) {}
        let left = kernel::children(Pid::this());
        if left.is_empty() || Instant::now() > deadline {
            return killed;
        }
        for (pid, state) in left {
            // The number is looked up again once it is pinned down.
            if let Ok(pidfd) = pidfd_open(pid)
                && kernel::parent_of(pid) == Some(Pid::this())
            {
                killed += usize::from(state != 'Z');
                signal(&pidfd, Signal::SIGKILL);
                wait_for_end(&pidfd, PATIENCE_BROKEN_OFF);
            }
        }
    }
}

pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and makes a descriptor.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    match i32::try_from(result) {
        // SAFETY: it was just made, and nobody else has it.
        Ok(number @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal; to a process that has ended already it goes nowhere.
pub(crate) fn signal(pidfd: &OwnedFd, signal: Signal) {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: an open pidfd, a valid signal, and no further information.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, nothing, 0) };
}

/// Whether the process ends in time.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, patience: Duration) -> bool {
    use std::os::fd::AsFd as _;
    let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut watched, patience), Ok(1..))
}

/// Tells whoever runs the benchmark what goes on.
pub(crate) fn say(text: &str) {
    // Nobody is left to tell if it cannot be said.
    let _ = writeln!(io::stderr(), "{text}");
}
