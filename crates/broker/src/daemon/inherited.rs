//! What the service manager passes to a broker that it starts: the sockets that it listens on for it, and what an earlier
//! broker gave it to keep.
//!
//! Owns the taking, once and before there is a thread, so that no daemon and no reaper gets any of it. What an earlier
//! broker's things belong to, the sweep finds out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};

use super::fd_store::{FdStore, Stored};
use super::places::{LISTENER, NOTIFY};
use crate::net::endpoint::KeptError;

/// Everything that was passed.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) listeners: Vec<Listening>,
    others: Vec<(String, OwnedFd)>,
}

/// A socket that the service manager listens on for the broker.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) path: PathBuf,
    pub(super) socket: OwnedFd,
}

impl Inherited {
    /// Takes what was passed to this process, and clears the variables that tell of it. Must be called before there is a
    /// thread; what is taken is closed at an exec.
    pub(super) fn take() -> io::Result<Self> {
        // What was passed to whoever started this process, and was left in the environment, is none of ours.
        let is_ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        // SAFETY: there is no other thread that could read the environment.
        let passed = unsafe { sd_notify::listen_fds_with_names_and_unset_env() };
        // SAFETY: as above.
        unsafe { std::env::remove_var("LISTEN_PIDFDID") };
        let mut inherited = Self::default();
        if !is_ours {
            return Ok(inherited);
        }
        for (number, name) in passed? {
            // SAFETY: the variables said that it was passed to this very process, and they are gone, so nobody takes it
            // a second time.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            match path_of(&descriptor).filter(|_| !is_kept(&name)) {
                Some(path) => inherited.listeners.push(Listening { path, socket: descriptor }),
                None => inherited.others.push((name, descriptor)),
            }
        }
        Ok(inherited)
    }

    /// The paths of the sockets that the service manager listens on.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.listeners.iter().map(|listening| listening.path.as_path())
    }

    /// Takes what was kept under a name, if it is what it should be: the first of them, if there are several. The others
    /// are closed and forgotten.
    pub(super) fn claim<T: AsFd>(
        &mut self,
        name: &str,
        fd_store: &FdStore,
        take: impl Fn(OwnedFd) -> Result<T, KeptError>,
    ) -> Option<(T, Option<Stored>)> {
        let mut claimed = None;
        let mut is_whole = true;
        for (_, descriptor) in self.others.extract_if(.., |(own, _)| own == name) {
            is_whole &= claimed.is_none();
            match take(descriptor) {
                Ok(taken) => claimed = claimed.or(Some(taken)),
                Err(error) => {
                    is_whole = false;
                    tracing::warn!(name, %error, "what the service manager kept is of no use any more");
                }
            }
        }
        if !is_whole {
            fd_store.forget(name);
        }
        let claimed = claimed?;
        let stored = if is_whole { fd_store.kept(name) } else { fd_store.keep(name, &claimed) };
        Some((claimed, stored))
    }

    /// Closes what nobody has claimed, and has the service manager forget it.
    pub(super) fn close_rest(self, fd_store: &FdStore) {
        if self.others.is_empty() {
            return;
        }
        for (name, descriptor) in self.others {
            match is_kept(&name) {
                true => tracing::info!(name, "a socket of an earlier broker belongs to nobody any more; it is closed"),
                false => tracing::warn!(
                    name,
                    descriptor = descriptor.as_raw_fd(),
                    "the service manager passed a descriptor that means nothing to this broker; it is closed"
                ),
            }
            fd_store.forget(&name);
        }
        // Until that is done a dead socket looks alive.
        fd_store.settle();
    }
}

/// Whether that is a name which a broker gives: the file name of an endpoint, with a key or its hash before the ending.
fn is_kept(name: &str) -> bool {
    let stem = [LISTENER, NOTIFY].into_iter().find_map(|ending| name.strip_suffix(ending));
    stem.is_some_and(|stem| {
        let hash = stem.split('.').next().unwrap_or_default();
        stem.contains('@') || hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Where a stream socket listens, if it does so at an absolute path.
fn path_of(socket: &OwnedFd) -> Option<PathBuf> {
    let listens = getsockopt(socket, sockopt::AcceptConn).ok()?
        && getsockopt(socket, sockopt::SockType).ok()? == SockType::Stream;
    let address: UnixAddr = getsockname(socket.as_raw_fd()).ok()?;
    address.path().filter(|path| listens && path.is_absolute()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_broker_listens_at_paths_alone() {
        let folder = tempfile::tempdir().expect("made");
        let path = folder.path().join("broker.sock");
        let listener: OwnedFd = UnixListener::bind(&path).expect("bound").into();
        assert_eq!(path_of(&listener), Some(path.clone()));
        assert_eq!(path_of(&UnixStream::connect(&path).expect("connected").into()), None, "it does not listen");
        assert_eq!(path_of(&UnixDatagram::bind(folder.path().join("datagram")).expect("bound").into()), None);
        assert_eq!(path_of(&TcpListener::bind("127.0.0.1:0").expect("bound").into()), None);
        assert_eq!(path_of(&std::fs::File::open("/dev/null").expect("opened").into()), None);
    }

    #[test]
    fn what_a_broker_gave_away_is_known_by_its_name() {
        for name in [
            "redis@7.0.15~default.sock",
            "redis@7.0.15~default.3.notify",
            "85944171f73967e8.sock",
            "85944171f73967e8.12.notify",
        ] {
            assert!(is_kept(name), "{name}");
        }
        for name in ["brokerd.socket", "broker.sock", "unknown", "connection", "stored", "a@b"] {
            assert!(!is_kept(name), "{name}");
        }
    }
}
