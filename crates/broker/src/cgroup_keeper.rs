//! The keeper of the backends' cgroup: `brokerd --keep-cgroup`, the main process of the unit that the backends live below.
//!
//! It is `brokerd` itself, played before anything of the broker is set up, as small as it can be: it lives as long as
//! the unit. It makes the unit's cgroup fit for leaves, waits to be told to go, and goes when all others have. It starts and
//! ends nobody.

use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::pipe2;
use sd_notify::NotifyState;

use crate::net::service_manager;
use crate::process::cgroup::hierarchy::{Hierarchy, NoCgroup};
use crate::process::cgroup::unit::outlast_the_others;
use crate::process::cgroup::{KEEPER, LIMITING};

/// The option that makes a brokerd a keeper. It stands alone.
const MODE: &str = "--keep-cgroup";

/// It is not in a unit made for this; as sysexits.h has it, something is set up wrongly, and trying again does not help.
const EXIT_NOT_DELEGATED: u8 = 78;

/// How long the others may take to end. Longer than `TimeoutStopSec=` of the unit, so that it is systemd that loses patience
/// with those that it stops. A keeper that was told alone goes then, and systemd asks the others.
const PATIENCE: Duration = Duration::from_secs(45);

/// How long the service manager may take to hear. Shorter than it waits for a unit to start, by default 90 s.
const MANAGER_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error("there is no cgroup to keep")]
    Absent(#[from] NoCgroup),
    #[error(
        "the cgroup `{0}` is not delegated to this process alone; this option is for the main process of a unit with \
         `Delegate=yes`, such as brokerd-backends.service"
    )]
    NotDelegated(PathBuf),
    #[error("cannot {what} `{path}`")]
    Cgroup {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Plays the keeper, if the command line says so; `None` if this is a broker.
pub(crate) fn play(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, mode] = arguments else { return None };
    if mode != MODE {
        return None;
    }
    Some(match keep() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            anstream::eprintln!("brokerd: error: {error}{cause}");
            match error {
                KeeperError::Absent(_) | KeeperError::NotDelegated(_) => ExitCode::from(EXIT_NOT_DELEGATED),
                KeeperError::Cgroup { .. } => ExitCode::FAILURE,
            }
        }
    })
}

fn keep() -> Result<(), KeeperError> {
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    let mut blocked = end;
    blocked.add(Signal::SIGHUP);
    // From here on they are read and not suffered. Blocking valid signals of one's own cannot fail.
    let _ = blocked.thread_block();
    let unit = match Hierarchy::read().and_then(|hierarchy| hierarchy.own()) {
        Ok(unit) => unit,
        // A machine without cgroup2: the broker, which asks for this unit, makes do with process groups there.
        Err(error) if std::env::var_os("NOTIFY_SOCKET").is_some() => {
            anstream::eprintln!("brokerd: warning: there is no cgroup to keep: {error}");
            keep_until(&end, &format!("Keeping nothing: {error}"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if !is_delegated(&unit) {
        return Err(KeeperError::NotDelegated(unit));
    }
    if let Err(error) = wait_for_the_manager() {
        anstream::eprintln!("brokerd: warning: cannot wait for the service manager: {error}");
    }
    let leaf = unit.join(KEEPER);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(KeeperError::Cgroup { what: "make the cgroup", path: leaf, source: error });
        }
        _ => {}
    }
    fs::write(leaf.join("cgroup.procs"), "0").map_err(|source| KeeperError::Cgroup {
        what: "move into the cgroup",
        path: leaf,
        source,
    })?;
    let enabled = enable(&unit)?;
    let status = match enabled.is_empty() {
        true => "Keeping the cgroup of the backends; no limits can be enforced here".to_owned(),
        false => format!("Keeping the cgroup of the backends; limits: {}", enabled.join(", ")),
    };
    keep_until(&end, &status);
    // systemd, once the main process of a unit that it stops has ended, asks all others to end for a second time, which to
    // many a daemon says that it is to give up. Who was asked together with the keeper has the unit's time to end in.
    outlast_the_others(&unit, PATIENCE);
    Ok(())
}

/// Waits until the service manager hears, as `sd_notify_barrier(3)` does: it closes the descriptor once it comes to this
/// message.
///
/// A process moves itself into its unit's cgroup before it executes its program, and systemd moves it there once more after
/// the fork. If it is the slower one it fetches the keeper out of its leaf again, and the unit seems to have none. By the
/// time it hears it has done so.
fn wait_for_the_manager() -> io::Result<()> {
    let (heard, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // Where there is no manager nothing is sent.
    service_manager::tell("BARRIER=1\n", &[theirs.as_fd()], MANAGER_PATIENCE)?;
    drop(theirs);
    let patience = PollTimeout::try_from(MANAGER_PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(heard.as_fd(), PollFlags::empty())], patience)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Says that all is in place, and waits to be told to go.
fn keep_until(end: &SigSet, status: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::Status(status), NotifyState::Ready]) {
        anstream::eprintln!("brokerd: warning: cannot notify the service manager: {error}");
    }
    // It is not read: as long as it waits the broker sees that this unit is going, to the very end of this process.
    let signal = SignalFd::with_flags(end, SfdFlags::SFD_CLOEXEC).and_then(|told| {
        loop {
            match poll(&mut [PollFd::new(told.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                // An interruption by a signal of another kind is no end.
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    });
    if signal.is_err() {
        while end.wait().is_err() {}
    }
}

/// Whether the service manager has given the cgroup away, and to us alone. It says so in an attribute of the folder, which
/// an older one does not write for a user's units; there it must do that it is a unit's and we may write it.
fn is_delegated(unit: &Path) -> bool {
    let members = fs::read_to_string(unit.join("cgroup.procs")).unwrap_or_default();
    if members.trim() != std::process::id().to_string() {
        return false;
    }
    if ["trusted.delegate", "user.delegate"].iter().any(|name| attribute_is_set(unit, name)) {
        return true;
    }
    let may_write = nix::unistd::access(unit, nix::unistd::AccessFlags::W_OK).is_ok();
    let is_unit = unit.extension().is_some_and(|extension| extension == "service");
    !nix::unistd::geteuid().is_root() && is_unit && may_write
}

fn attribute_is_set(folder: &Path, name: &str) -> bool {
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes());
    let name = std::ffi::CString::new(name);
    let (Ok(path), Ok(name)) = (path, name) else { return false };
    let mut value = [0_u8; 1];
    // SAFETY: two strings that live through the call, and a buffer with its length.
    let read = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    read == 1 && value == *b"1"
}

/// Hands down every controller that limits can use; those that are. One that is not offered, or fails, is missed by its
/// limits alone.
fn enable(unit: &Path) -> Result<Vec<&'static str>, KeeperError> {
    let path = unit.join("cgroup.controllers");
    let offered = fs::read_to_string(&path).map_err(|source| KeeperError::Cgroup { what: "read", path, source })?;
    let control = unit.join("cgroup.subtree_control");
    let mut enabled = Vec::new();
    for controller in LIMITING.into_iter().filter(|name| offered.split_ascii_whitespace().any(|offer| offer == *name)) {
        match fs::write(&control, format!("+{controller}")) {
            Ok(()) => enabled.push(controller),
            Err(error) => {
                anstream::eprintln!(
                    "brokerd: warning: limits by the controller `{controller}` are not enforced: {error}"
                );
            }
        }
    }
    Ok(enabled)
}
