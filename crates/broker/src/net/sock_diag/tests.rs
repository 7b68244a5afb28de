//! What the kernel says of listeners and connections, against real ones.

use super::*;
use crate::process::testing::wait_for;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

/// What netlink and `/proc/net` say, which must be the same.
fn both(port: u16) -> Option<Listener> {
    let netlink = listener(Ipv4Addr::LOCALHOST, port).unwrap();
    assert_eq!(proc_net::listener(Ipv4Addr::LOCALHOST, port).unwrap(), netlink);
    netlink
}

fn inode(socket: &impl std::os::fd::AsFd) -> u64 {
    nix::sys::stat::fstat(socket).unwrap().st_ino
}

#[test]
fn netlink_is_there_to_be_tested() {
    assert!(tcp_is_supported());
}

#[test]
fn listeners_are_found_wherever_a_connection_to_localhost_would_go() {
    let uid = nix::unistd::geteuid().as_raw();
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
        let socket = TcpListener::bind((address, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(both(port), Some(Listener { inode: inode(&socket), uid }), "{address}");
        drop(socket);
        assert_eq!(both(port), None, "{address}");
    }
    let Ok(socket) = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))) else { return };
    assert_eq!(both(socket.local_addr().unwrap().port()), Some(Listener { inode: inode(&socket), uid }));
    let socket = TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).unwrap();
    assert_eq!(both(socket.local_addr().unwrap().port()), None, "localhost of the other family");
}

#[test]
fn a_bound_socket_that_does_not_listen_is_no_listener() {
    // The kernel takes a listener that is shut down for one that is merely bound.
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = bound.local_addr().unwrap().port();
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&bound), nix::sys::socket::Shutdown::Both).unwrap();
    assert_eq!(both(port), None);
}

#[test]
fn connections_are_counted_on_the_servers_side() {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let count = || (established_tcp(port).unwrap(), proc_net::established_tcp(port).unwrap());
    assert_eq!(count(), (0, 0));
    let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(socket.local_addr().unwrap()).unwrap()).collect();
    // One is accepted, two are in the backlog.
    let accepted = socket.accept().unwrap();
    wait_for("three connections", || count() == (3, 3));
    drop((clients, accepted));
    wait_for("no connection", || count() == (0, 0));
}

#[test]
fn connections_of_a_path_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = UnixListener::bind(&path).unwrap();
    let count = || (established_unix(&path).unwrap(), proc_net::established_unix(&path).unwrap());
    assert_eq!(count(), (0, 0));
    let first = UnixStream::connect(&path).unwrap();
    let accepted = socket.accept().unwrap();
    let second = UnixStream::connect(&path).unwrap();
    assert_eq!(count(), (1, 1), "one in the backlog has no name yet");
    let accepted_second = socket.accept().unwrap();
    assert_eq!(count(), (2, 2));
    drop((first, accepted));
    drop(accepted_second);
    wait_for("no connection", || count() == (0, 0));
    drop(second);
}

#[test]
fn a_socket_that_is_bound_and_not_listening_is_told_from_a_dead_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a socket");
    let bound = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert!(is_bound_unix(&path).unwrap() && proc_net::is_bound_unix(&path).unwrap());
    drop(bound);
    assert!(path.exists());
    assert!(!is_bound_unix(&path).unwrap() && !proc_net::is_bound_unix(&path).unwrap());
}

#[test]
fn many_sockets_take_many_datagrams() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = UnixListener::bind(&path).unwrap();
    let open = || (UnixStream::connect(&path).unwrap(), socket.accept().unwrap());
    let connections: Vec<_> = (0..400).map(|_| open()).collect();
    assert_eq!(established_unix(&path).unwrap(), connections.len());
}

#[test]
fn a_socket_is_known_by_the_file_that_it_made() {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let old = UnixListener::bind(&path).unwrap();
    let is_at = |socket: BorrowedFd<'_>| is_file_of(socket, &path).unwrap();
    assert!(is_at(old.as_fd()));
    std::fs::remove_file(&path).unwrap();
    assert!(!is_at(old.as_fd()), "the file is gone");
    let new = UnixDatagram::bind(&path).unwrap();
    assert!(!is_at(old.as_fd()), "the file is another socket's");
    assert!(is_at(new.as_fd()));
    assert!(!is_at(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().as_fd()));
}
