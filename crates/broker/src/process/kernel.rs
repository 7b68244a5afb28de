//! Thin safe wrappers of the system calls about processes that `nix` does not have.
//!
//! It never interprets: no retry, no policy, no knowledge of groups or starts.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::exit::Exit;

/// Opens a descriptor of a process, a zombie included; it stays bound to that process even when the number is reused.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind the descriptor; false if it is gone already.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<bool> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is valid while borrowed, and a null siginfo is allowed.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, no_info, 0) };
    match Errno::result(sent) {
        Ok(_) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the process behind the descriptor has ended, reaped or not. Files it held are closed by then.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    wait_ended(pidfd, Duration::ZERO)
}

/// Waits until the process behind the descriptor has ended; false if it still runs after `patience`.
pub(crate) fn wait_ended(pidfd: BorrowedFd<'_>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is slept and not spun through.
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// Whom [`wait`] looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Child<'a> {
    /// Any child.
    Any,
    /// The one with this number.
    Number(Pid),
    /// The one behind this descriptor.
    Descriptor(BorrowedFd<'a>),
}

/// `waitid` for ended children, never blocking. `flags` may add `WNOWAIT` and `__WNOTHREAD`.
///
/// # Errors
/// `ECHILD` if there is no such child.
pub(crate) fn wait(child: Child<'_>, flags: libc::c_int) -> io::Result<Option<(Pid, Exit)>> {
    let (kind, id) = match child {
        Child::Any => (libc::P_ALL, 0),
        Child::Number(pid) => (libc::P_PID, pid.as_raw().unsigned_abs()),
        Child::Descriptor(fd) => (libc::P_PIDFD, fd.as_raw_fd().unsigned_abs()),
    };
    loop {
        // SAFETY: siginfo_t is plain data for which all zeros is a value; the kernel fills it during the call only.
        let (result, pid, code, status) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let result = libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::WNOHANG | flags);
            (Errno::result(result), info.si_pid(), info.si_code, info.si_status())
        };
        match result {
            Ok(_) if pid == 0 => return Ok(None),
            Ok(_) => return Ok(Some((Pid::from_raw(pid), Exit::from_siginfo(code, status)))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reaps the child behind the descriptor if it has ended.
pub(crate) fn reap(pidfd: &impl AsFd) -> io::Result<Option<Exit>> {
    Ok(wait(Child::Descriptor(pidfd.as_fd()), 0)?.map(|(_, exit)| exit))
}
