//! Endpoints of backends: making room for them, binding, probing and connecting.
//!
//! A socket file is removed only after the kernel refused a connection to it. Nothing here decides when a probe is due
//! or what its result leads to.

mod tcp;
mod unix;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::unistd::Pid;

pub(crate) use self::tcp::{
    bind_tcp, check_tcp, connect_tcp, finish_tcp, free_tcp_port, prepare_tcp, probe_tcp, tcp_port,
};
pub(crate) use self::unix::{Removal, bind_unix, check_unix, connect_unix, prepare_unix, probe_unix, remove_dead_unix};
use crate::process::identity;

/// The backlog of sockets that the broker binds; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The longest path of a Unix socket, in bytes: `sun_path` of unix(7) has 108, the last of them is its end.
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error(
        "the socket path `{path}` has {length} bytes, and {SOCKET_PATH_MAX} are possible; choose a shorter one",
        length = path.as_os_str().len()
    )]
    PathTooLong { path: PathBuf },
    #[error("`{path}` is no socket; move it away, or give the service another path")]
    NotASocket { path: PathBuf },
    #[error("`{endpoint}` is already served{}, which this broker did not start", by(*pid, command.as_deref()))]
    Taken { endpoint: String, pid: Option<Pid>, command: Option<String> },
    #[error("cannot make the folder of the socket, `{path}`")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action} `{endpoint}`")]
    Io {
        action: &'static str,
        endpoint: String,
        #[source]
        source: io::Error,
    },
}

fn by(pid: Option<Pid>, command: Option<&str>) -> String {
    match (pid, command) {
        (Some(pid), Some(command)) => format!(" by pid {pid} ({command})"),
        (Some(pid), None) => format!(" by pid {pid}"),
        (None, _) => " by a process that the broker may not see".to_owned(),
    }
}

impl EndpointError {
    fn taken(endpoint: String, pid: Option<Pid>) -> Self {
        Self::Taken { endpoint, pid, command: pid.and_then(identity::command_name) }
    }
}

/// What one look at a starting backend's endpoint showed.
#[derive(Debug)]
pub(crate) enum Probe {
    /// It accepts connections. `pid` is the listener's process; unknown behind a full backlog, or where we may not
    /// look.
    Ready { pid: Option<Pid> },
    /// Nobody listens yet.
    NotYet,
    /// Somebody listens who is not of this backend.
    Stranger { pid: Option<Pid>, command: Option<String> },
    /// It could not be found out; a later probe may.
    Failed(io::Error),
}

/// Why a socket that was kept is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    #[error("it is not bound to `{0}`, or does not listen there")]
    Elsewhere(String),
    #[error("`{}` is not the file that it made", .0.display())]
    Unreachable(PathBuf),
    #[error("it cannot be looked at")]
    Io(#[source] io::Error),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The backlog is full: the backend is alive and busy. Try again soon.
    #[error("the backend's queue of connections is full")]
    Busy,
    /// Nobody listens: the backend is gone.
    #[error("nobody listens at the endpoint")]
    Dead,
    /// Anything else.
    #[error("cannot connect to the endpoint")]
    Io(#[source] io::Error),
}

/// A connection that was begun without blocking.
#[derive(Debug)]
pub(crate) enum Connection {
    /// Connected, and in blocking mode as its receiver expects it.
    Made(OwnedFd),
    /// Wait until it is writable, then call [`finish_tcp`].
    Pending(OwnedFd),
}

#[cfg(test)]
mod tests;
