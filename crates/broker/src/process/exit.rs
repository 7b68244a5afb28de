//! How a process ended, and a look at it that leaves the zombie where it is.
//!
//! It never reaps.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::signal::Signal;

use super::kernel::{Child, wait};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// It is gone, and its status with it: it was not our child.
    Unknown,
}

impl Exit {
    /// Reads `si_code` and `si_status` of a SIGCHLD `siginfo_t`.
    pub(crate) fn from_siginfo(code: i32, status: i32) -> Self {
        match code {
            libc::CLD_EXITED => Self::Code(status),
            libc::CLD_KILLED => Self::Signal { number: status, core_dumped: false },
            libc::CLD_DUMPED => Self::Signal { number: status, core_dumped: true },
            _ => Self::Unknown,
        }
    }

    /// Whether it ended by itself and says that all is well.
    pub(crate) fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal { number, core_dumped } => {
                match Signal::try_from(number) {
                    Ok(signal) => write!(f, "was killed by {} ({number})", signal.as_str())?,
                    Err(_) => write!(f, "was killed by signal {number}")?,
                }
                f.write_str(if core_dumped { " and dumped core" } else { "" })
            }
            Self::Unknown => f.write_str("ended, its exit status is unknown"),
        }
    }
}

/// Says how the child behind the descriptor ended, or `None` while it runs. It remains to be reaped.
///
/// # Errors
/// `ECHILD` if it is not our child, or was reaped.
pub(crate) fn peek(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    Ok(wait(Child::Descriptor(pidfd), libc::WNOWAIT)?.map(|(_, exit)| exit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::kernel::{pidfd_open, reap, wait_ended};
    use crate::process::testing::{GENEROUS, pid_of};
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn an_exit_reads_as_a_sentence() {
        assert_eq!(Exit::Code(7).to_string(), "exited with code 7");
        assert_eq!(Exit::Signal { number: 9, core_dumped: false }.to_string(), "was killed by SIGKILL (9)");
        assert_eq!(
            Exit::Signal { number: 11, core_dumped: true }.to_string(),
            "was killed by SIGSEGV (11) and dumped core"
        );
        assert_eq!(Exit::Signal { number: 40, core_dumped: false }.to_string(), "was killed by signal 40");
        assert_eq!(Exit::Unknown.to_string(), "ended, its exit status is unknown");
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped through its pidfd")]
    fn a_peek_sees_the_exit_and_leaves_the_zombie() {
        for (script, exit) in
            [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal { number: 9, core_dumped: false })]
        {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let pidfd = pidfd_open(pid_of(&child)).unwrap();
            assert!(wait_ended(pidfd.as_fd(), GENEROUS));
            assert_eq!(peek(pidfd.as_fd()).unwrap(), Some(exit));
            assert_eq!(peek(pidfd.as_fd()).unwrap(), Some(exit));
            assert_eq!(reap(&pidfd).unwrap(), Some(exit));
            assert_eq!(peek(pidfd.as_fd()).map_err(|e| e.raw_os_error()), Err(Some(libc::ECHILD)));
        }
    }

    #[test]
    fn a_running_process_has_no_exit() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(pid_of(&child)).unwrap();
        assert_eq!(peek(pidfd.as_fd()).unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
