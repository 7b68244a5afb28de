//! What the kernel knows about sockets: who listens on a port, how many are connected to an endpoint.
//!
//! It asks `sock_diag` over netlink and falls back to `/proc/net` where that is not to be had. It never connects to
//! anything, so a daemon does not notice. A question takes microseconds; a count looks at every socket there is.

mod netlink;
mod proc_net;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;

use self::netlink::{Bytes, Netlink};

const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;

const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;

/// `struct unix_diag_msg`, before its attributes.
const UNIX_MESSAGE_BYTES: usize = 16;
/// `struct inet_diag_msg`.
const INET_MESSAGE_BYTES: usize = 72;

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listener {
    /// As in `/proc/PID/fd/N -> socket:[inode]`.
    pub(crate) inode: u64,
    /// The effective user who made it.
    pub(crate) uid: u32,
}

/// Finds the listener that a connection to this address would reach: on the address itself, on `0.0.0.0`, or on `[::]`
/// unless that one is for IPv6 only.
pub(crate) fn listener(address: Ipv4Addr, port: u16) -> io::Result<Option<Listener>> {
    if !tcp_is_supported() {
        return proc_net::listener(address, port);
    }
    let request = inet_request(libc::AF_INET, u32::MAX, address, port);
    match Netlink::open().and_then(|mut netlink| netlink.get(&request)) {
        Ok(reply) => Ok(reply.and_then(|message| parse_listener(&message))),
        Err(error) if is_unavailable(&error) => proc_net::listener(address, port),
        Err(error) => Err(error),
    }
}

/// Counts the established connections whose local port is this one: a server's side.
pub(crate) fn established_tcp(port: u16) -> io::Result<usize> {
    let count = |family| {
        let request = inet_request(family, 1 << TCP_ESTABLISHED, Ipv4Addr::UNSPECIFIED, port);
        let is_it = |message: &[u8]| message.len() >= INET_MESSAGE_BYTES && message.be16(4) == Some(port);
        Netlink::open()?.dump(&request, |message| is_it(message) && message.u8(1) == Some(TCP_ESTABLISHED))
    };
    // A dual-stack listener accepts sockets of the IPv6 family. A kernel may have no IPv6 at all.
    let both = count(libc::AF_INET).and_then(|four| match count(libc::AF_INET6) {
        Ok(six) => Ok(four + six),
        Err(error) if is_unavailable(&error) => Ok(four),
        Err(error) => Err(error),
    });
    match both {
        Err(error) if is_unavailable(&error) => proc_net::established_tcp(port),
        result => result,
    }
}

/// Counts the connections that a listener bound at the path has accepted, or has in its backlog.
pub(crate) fn established_unix(path: &Path) -> io::Result<usize> {
    match unix_sockets(path, 1 << TCP_ESTABLISHED) {
        Err(error) if is_unavailable(&error) => proc_net::established_unix(path),
        result => result,
    }
}

/// Whether any socket is bound at the path, listening or not yet. A connection to one that does not listen yet is
/// refused, as one to a dead socket is; this tells them apart, within our network namespace.
pub(crate) fn is_bound_unix(path: &Path) -> io::Result<bool> {
    match unix_sockets(path, u32::MAX) {
        Err(error) if is_unavailable(&error) => proc_net::is_bound_unix(path),
        result => Ok(result? > 0),
    }
}

/// Whether the file at the path is the one that this socket made when it was bound there. Where the kernel does not tell,
/// it is if it is a socket.
pub(crate) fn is_file_of(socket: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    let inode = nix::sys::stat::fstat(socket)?.st_ino;
    let Some(file) = file_at(path) else { return Ok(false) };
    // The protocol has 32 bits for the inode.
    let request = unix_request(u32::MAX, inode as u32);
    match Netlink::open().and_then(|mut netlink| netlink.get(&request)) {
        Ok(message) => Ok(message.is_some_and(|message| is_bound_at(&message, path, Some(&file)))),
        Err(error) if is_unavailable(&error) => Ok(path.metadata()?.file_type().is_socket()),
        Err(error) => Err(error),
    }
}

/// Counts sockets in these states that are bound at the path, or were accepted from one that is.
fn unix_sockets(path: &Path, states: u32) -> io::Result<usize> {
    let file = file_at(path);
    Netlink::open()?.dump(&unix_request(states, 0), |message| is_bound_at(message, path, file.as_deref()))
}

/// A file as the protocol names it.
fn file_at(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::metadata(path).ok()?;
    let device = (libc::major(file.dev()) << 20) | libc::minor(file.dev());
    // The protocol has 32 bits for the inode.
    Some([(file.ino() as u32).to_ne_bytes(), device.to_ne_bytes()].concat())
}

/// Whether a message tells of a socket that is bound at the path, where that file is. The name is what the daemon said to
/// bind, perhaps relative; the file's own number is certain. An overlay shows its files with a device of its own, so there
/// both count together.
fn is_bound_at(message: &[u8], path: &Path, file: Option<&[u8]>) -> bool {
    let mut attributes = message.get(UNIX_MESSAGE_BYTES..).unwrap_or_default();
    let (mut name, mut vfs) = (None, None);
    while let Some((kind, value, rest)) = netlink::attribute(attributes) {
        match kind {
            UNIX_DIAG_NAME => name = Some(value),
            UNIX_DIAG_VFS => vfs = Some(value),
            _ => {}
        }
        attributes = rest;
    }
    let is_named = || name.is_some_and(|name| name.strip_suffix(b"\0").unwrap_or(name) == path.as_os_str().as_bytes());
    match (file, vfs) {
        (Some(file), Some(vfs)) => vfs == file || vfs.u32(0) == file.u32(0) && is_named(),
        _ => is_named(),
    }
}

/// `struct unix_diag_req`: family, protocol, padding; states; inode; what to show; cookie. One for a single socket names
/// its inode.
fn unix_request(states: u32, inode: u32) -> Vec<u8> {
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    // INET_DIAG_NOCOOKIE, which a dump does not look at.
    for word in [states, inode, UDIAG_SHOW_NAME | UDIAG_SHOW_VFS, u32::MAX, u32::MAX] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    request
}

/// `struct inet_diag_req_v2`. The kernel takes the source for the listener's side.
fn inet_request(family: libc::c_int, states: u32, address: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    request.extend_from_slice(&[0; 2]);
    request.extend_from_slice(&address.octets());
    // The rest of the source, the destination and the interface.
    request.extend_from_slice(&[0; 12 + 16 + 4]);
    // INET_DIAG_NOCOOKIE
    request.extend_from_slice(&[0xff; 8]);
    request
}

fn parse_listener(message: &[u8]) -> Option<Listener> {
    let listens = message.u8(1)? == TCP_LISTEN;
    let listener = Listener { uid: message.u32(64)?, inode: message.u32(68)?.into() };
    listens.then_some(listener)
}

/// Whether the kernel can answer about TCP at all. To an exact question it says ENOENT both for "no such socket" and
/// for "no tcp_diag module", so that is found out once, by a question for no state at all.
fn tcp_is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let request = inet_request(libc::AF_INET, 0, Ipv4Addr::UNSPECIFIED, 0);
        let answer = Netlink::open().and_then(|mut netlink| netlink.dump(&request, |_| true));
        !answer.is_err_and(|error| is_unavailable(&error))
    })
}

/// Whether netlink cannot answer here, be it a sandbox or a kernel without the module.
fn is_unavailable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EACCES
                | libc::ENOENT
                | libc::ENOSYS
                | libc::EPROTONOSUPPORT
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP
        )
    )
}

#[cfg(test)]
mod tests;
