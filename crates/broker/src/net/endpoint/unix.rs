//! Endpoints that are a path.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, getsockopt, listen, socket,
    sockopt,
};
use nix::unistd::Pid;

use super::{BACKLOG, ConnectError, EndpointError, KeptError, Probe, SOCKET_PATH_MAX};
use crate::net::ownership::Backend;
use crate::net::sock_diag::{is_bound_unix, is_file_of};
use crate::process::identity::{self, command_name};

/// How long those who inherited a socket may take to end, and how often it is looked.
const HEIRS_MAX: Duration = Duration::from_secs(2);
const HEIRS_PAUSE: Duration = Duration::from_millis(5);

/// What became of a dead backend's socket file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    Removed,
    Absent,
    /// Somebody serves it, or is about to; it stays.
    Alive,
    /// It is no socket; it stays.
    NotASocket,
}

/// What the kernel says of a path.
enum Found {
    Absent,
    NotASocket,
    Dead,
    Alive(Option<Pid>),
}

/// Makes room for a socket at the path: its folder exists (0700 if it is made now) and a dead socket is removed.
///
/// # Errors
/// The path is too long, or held by something else than a dead socket; a living one is named.
pub(crate) fn prepare_unix(path: &Path) -> Result<(), EndpointError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(EndpointError::PathTooLong { path: path.to_owned() });
    }
    if let Some(folder) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| EndpointError::Folder { path: folder.to_owned(), source })?;
    }
    let failed = |action, source| EndpointError::Io { action, endpoint: path.display().to_string(), source };
    match look_twice(path).map_err(|source| failed("look at", source))? {
        Found::Absent => Ok(()),
        Found::NotASocket => Err(EndpointError::NotASocket { path: path.to_owned() }),
        Found::Alive(pid) => Err(EndpointError::taken(path.display().to_string(), pid)),
        Found::Dead => fs::remove_file(path).map_err(|source| failed("remove the dead socket", source)),
    }
}

/// Removes the socket of a backend that has ended, if the kernel agrees that nobody serves it.
pub(crate) fn remove_dead_unix(path: &Path) -> io::Result<Removal> {
    match look(path)? {
        Found::Absent => Ok(Removal::Absent),
        Found::NotASocket => Ok(Removal::NotASocket),
        Found::Alive(_) => Ok(Removal::Alive),
        Found::Dead => fs::remove_file(path).map(|()| Removal::Removed),
    }
}

/// Looks again for a while if the one who bound the socket is gone: then it is kept by processes that inherited it, and
/// those of a killed broker are just ending. Their sockets close a little after their files have gone from `/proc`.
fn look_twice(path: &Path) -> io::Result<Found> {
    let give_up = Instant::now() + HEIRS_MAX;
    loop {
        let found = look(path)?;
        let is_inherited = matches!(found, Found::Alive(Some(pid)) if matches!(identity::stat(pid), Ok(None)));
        if !is_inherited || Instant::now() >= give_up {
            return Ok(found);
        }
        thread::sleep(HEIRS_PAUSE);
    }
}

fn look(path: &Path) -> io::Result<Found> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Ok(Found::NotASocket),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(error),
    }
    match try_connect(path) {
        Ok(stream) => Ok(Found::Alive(peer(&stream))),
        // A full backlog; a socket of another type.
        Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(Found::Alive(None)),
        // Bound and not listening yet is refused as well. If that cannot be found out the refusal is what counts.
        Err(Errno::ECONNREFUSED) if is_bound_unix(path).unwrap_or(false) => Ok(Found::Alive(None)),
        Err(Errno::ECONNREFUSED) => Ok(Found::Dead),
        Err(Errno::ENOENT) => Ok(Found::Absent),
        Err(errno) => Err(errno.into()),
    }
}

/// Binds and listens at the path, for a daemon that inherits the socket. Call [`prepare_unix`] first.
pub(crate) fn bind_unix(path: &Path) -> Result<OwnedFd, EndpointError> {
    let failed = |errno: Errno| EndpointError::Io {
        action: "listen at",
        endpoint: path.display().to_string(),
        source: errno.into(),
    };
    let address = UnixAddr::new(path).map_err(|_| EndpointError::PathTooLong { path: path.to_owned() })?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    bind(socket.as_raw_fd(), &address).map_err(failed)?;
    listen(&socket, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXALLOWABLE)).map_err(failed)?;
    Ok(socket)
}

/// Checks that a socket which was kept while no broker ran is the one that listens at the path.
pub(crate) fn check_unix(socket: &OwnedFd, path: &Path) -> Result<(), KeptError> {
    let io = |errno: Errno| KeptError::Io(errno.into());
    let elsewhere = || KeptError::Elsewhere(path.display().to_string());
    let listens = getsockopt(socket, sockopt::AcceptConn).map_err(io)?
        && getsockopt(socket, sockopt::SockType).map_err(io)? == SockType::Stream;
    let address: UnixAddr = getsockname(socket.as_raw_fd()).map_err(|_| elsewhere())?;
    if !listens || address.path() != Some(path) {
        return Err(elsewhere());
    }
    match is_file_of(socket.as_fd(), path).map_err(KeptError::Io)? {
        true => Ok(()),
        false => Err(KeptError::Unreachable(path.to_owned())),
    }
}

/// Looks whether the backend serves the path. Never blocks; the daemon sees a connection that is closed at once.
pub(crate) fn probe_unix(path: &Path, backend: Backend<'_>) -> Probe {
    match try_connect(path) {
        Ok(stream) => match peer(&stream) {
            Some(pid) if backend.includes(pid) => Probe::Ready { pid: Some(pid) },
            Some(pid) => Probe::Stranger { pid: Some(pid), command: command_name(pid) },
            None => Probe::Ready { pid: None },
        },
        Err(Errno::EAGAIN) => Probe::Ready { pid: None },
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Probe::NotYet,
        Err(errno) => Probe::Failed(errno.into()),
    }
}

/// Connects without blocking; the stream is in blocking mode.
pub(crate) fn connect_unix(path: &Path) -> Result<OwnedFd, ConnectError> {
    let stream = try_connect(path).map_err(|errno| match errno {
        Errno::EAGAIN => ConnectError::Busy,
        Errno::ECONNREFUSED | Errno::ENOENT => ConnectError::Dead,
        errno => ConnectError::Io(errno.into()),
    })?;
    set_blocking(&stream).map_err(|errno| ConnectError::Io(errno.into()))?;
    Ok(stream)
}

fn try_connect(path: &Path) -> Result<OwnedFd, Errno> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // A path either connects at once or fails at once.
    connect(stream.as_raw_fd(), &address).map(|()| stream)
}

/// Who called `listen` on the other side; unknown if it lives in another pid namespace.
fn peer(stream: &OwnedFd) -> Option<Pid> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    (credentials.pid() > 0).then(|| Pid::from_raw(credentials.pid()))
}

/// Of a socket just made, which has no other flag that could be set.
pub(super) fn set_blocking(stream: &OwnedFd) -> nix::Result<()> {
    fcntl(stream, FcntlArg::F_SETFL(OFlag::empty())).map(drop)
}
