//! Endpoints that are a port of 127.0.0.1.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, getsockopt, listen, socket, sockopt};

use super::unix::set_blocking;
use super::{BACKLOG, ConnectError, Connection, EndpointError, KeptError, Probe};
use crate::net::ownership::{Backend, Ownership, any_holder, owner};
use crate::net::sock_diag::listener;

/// Where ports are chosen from, apart from the ephemeral ones. Below live the well-known services.
const PORTS: RangeInclusive<u16> = 10_000..=65_000;
/// The kernel's default, if it does not say.
const EPHEMERAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;
const PORT_TRIES: usize = 256;

/// The ports that were given last: a daemon that has not bound its own yet must not find it given to another.
static GIVEN: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());
const GIVEN_MAX: usize = 1024;

/// Which call takes the address.
#[derive(Clone, Copy)]
enum Use {
    Bind,
    Connect,
}

/// Binds or connects a socket. (nix has IPv4 addresses only with a feature that nothing else needs.)
fn address(socket: &OwnedFd, what: Use, address: Ipv4Addr, port: u16) -> nix::Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    let bytes = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is live and as long as is said.
    Errno::result(unsafe {
        match what {
            Use::Bind => libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes),
            Use::Connect => libc::connect(socket.as_raw_fd(), (&raw const address).cast(), bytes),
        }
    })
    .map(drop)
}

fn name(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn failed(action: &'static str, port: u16) -> impl Fn(io::Error) -> EndpointError {
    move |source| EndpointError::Io { action, endpoint: name(port), source }
}

/// Chooses a port that nobody uses, outside the range from which the kernel serves outgoing connections: neither such a
/// connection nor one of a client to itself can take it before the daemon does.
pub(crate) fn free_tcp_port() -> Result<u16, EndpointError> {
    free_port_outside(&ephemeral_ports(), PORTS)
}

fn free_port_outside(ephemeral: &RangeInclusive<u16>, ports: RangeInclusive<u16>) -> Result<u16, EndpointError> {
    let candidates: Vec<u16> = ports.filter(|port| !ephemeral.contains(port)).collect();
    let start = if candidates.is_empty() { 0 } else { fastrand::usize(..candidates.len()) };
    let from_start = candidates.iter().cycle().skip(start).take(candidates.len().min(PORT_TRIES));
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for &port in from_start {
        if !given.contains(&port) && try_port(port).is_ok() {
            if given.len() == GIVEN_MAX {
                given.pop_front();
            }
            given.push_back(port);
            return Ok(port);
        }
    }
    try_port(0).map_err(failed("find a free port at", 0))
}

/// Binds the port on every address, so that a daemon may bind it on any; without SO_REUSEADDR, so that no remains of
/// connections are on it either.
fn try_port(port: u16) -> io::Result<u16> {
    let test = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    address(&test, Use::Bind, Ipv4Addr::UNSPECIFIED, port)?;
    Ok(TcpListener::from(test).local_addr()?.port())
}

fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(low)), Some(Ok(high))) => low..=high,
        _ => EPHEMERAL_PORTS,
    }
}

/// Checks that nobody serves the port.
///
/// # Errors
/// Somebody does; who, if we may look.
pub(crate) fn prepare_tcp(port: u16) -> Result<(), EndpointError> {
    match listener(Ipv4Addr::LOCALHOST, port) {
        Ok(None) => Ok(()),
        Ok(Some(found)) => Err(EndpointError::taken(name(port), any_holder(found.inode))),
        Err(source) => Err(failed("look at", port)(source)),
    }
}

/// Binds and listens at the port, for a daemon that inherits the socket.
pub(crate) fn bind_tcp(port: u16) -> Result<OwnedFd, EndpointError> {
    // Std sets SO_REUSEADDR, so that connections of an earlier daemon that linger do not keep the port.
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(failed("listen at", port))?;
    // A second listen only changes the backlog.
    let listens = listen(&socket, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXALLOWABLE));
    listens.map_err(|errno| failed("listen at", port)(errno.into()))?;
    Ok(socket.into())
}

/// The port that a socket is bound to.
pub(crate) fn tcp_port(socket: &OwnedFd) -> Result<u16, KeptError> {
    let socket = TcpListener::from(socket.try_clone().map_err(KeptError::Io)?);
    Ok(socket.local_addr().map_err(KeptError::Io)?.port())
}

/// Checks that a socket which was kept while no broker ran is one that listens on the port.
pub(crate) fn check_tcp(socket: &OwnedFd, port: u16) -> Result<(), KeptError> {
    let io = |errno: Errno| KeptError::Io(errno.into());
    let listens = getsockopt(socket, sockopt::AcceptConn).map_err(io)?
        && getsockopt(socket, sockopt::SockType).map_err(io)? == SockType::Stream;
    let address = TcpListener::from(socket.try_clone().map_err(KeptError::Io)?).local_addr();
    let expected = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let is_it = listens && address.is_ok_and(|address| address == expected);
    is_it.then_some(()).ok_or_else(|| KeptError::Elsewhere(name(port)))
}

/// Looks whether the backend listens on the port. The daemon does not notice.
pub(crate) fn probe_tcp(port: u16, backend: Backend<'_>) -> Probe {
    match listener(Ipv4Addr::LOCALHOST, port) {
        Ok(None) => Probe::NotYet,
        Ok(Some(found)) => match owner(found.inode, backend) {
            Ownership::Ours { pid } => Probe::Ready { pid: Some(pid) },
            Ownership::Unknown => Probe::Ready { pid: None },
            Ownership::Stranger { pid, command } => Probe::Stranger { pid, command },
        },
        Err(error) => Probe::Failed(error),
    }
}

/// Begins a connection without blocking; on one machine it is usually made at once.
pub(crate) fn connect_tcp(port: u16) -> Result<Connection, ConnectError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(connect_error)?;
    match address(&stream, Use::Connect, Ipv4Addr::LOCALHOST, port) {
        Ok(()) | Err(Errno::EINPROGRESS) => finish_tcp(stream),
        Err(errno) => Err(connect_error(errno)),
    }
}

/// Looks how far a connection is that [`connect_tcp`] began.
pub(crate) fn finish_tcp(stream: OwnedFd) -> Result<Connection, ConnectError> {
    match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Connection::Pending(stream)),
        Ok(_) => {}
        Err(errno) => return Err(connect_error(errno)),
    }
    let error = getsockopt(&stream, sockopt::SocketError).map_err(connect_error)?;
    if error != 0 {
        return Err(connect_error(Errno::from_raw(error)));
    }
    let stream = TcpStream::from(stream);
    let ends = stream.local_addr().and_then(|own| Ok((own, stream.peer_addr()?)));
    let (own, peer) = ends.map_err(ConnectError::Io)?;
    if own == peer {
        // The kernel gave us the very port as our own, and connected us to ourselves.
        return Err(ConnectError::Dead);
    }
    let stream = stream.into();
    set_blocking(&stream).map_err(connect_error)?;
    Ok(Connection::Made(stream))
}

fn connect_error(errno: Errno) -> ConnectError {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => ConnectError::Dead,
        Errno::EAGAIN => ConnectError::Busy,
        errno => ConnectError::Io(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_and_not_ephemeral() {
        for _ in 0..50 {
            let port = free_tcp_port().unwrap();
            assert!(PORTS.contains(&port) && !ephemeral_ports().contains(&port), "{port}");
            prepare_tcp(port).unwrap();
        }
    }

    #[test]
    fn a_port_in_use_is_passed_over() {
        let taken = free_tcp_port().unwrap();
        let _listener = bind_tcp(taken).unwrap();
        for _ in 0..20 {
            let port = free_port_outside(&EPHEMERAL_PORTS, taken - 1..=taken + 1).unwrap();
            assert_ne!(port, taken);
        }
        // Nothing outside the range is left: the kernel chooses.
        assert_ne!(free_port_outside(&(0..=u16::MAX), PORTS).unwrap(), 0);
    }
}
