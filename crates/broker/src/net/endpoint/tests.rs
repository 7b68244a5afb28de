//! Endpoints against real sockets and real daemons.

use super::*;
use crate::net::ownership::Backend;
use crate::process::testing::{Start, as_broker, wait_for};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const fn backend(main: Pid) -> Backend<'static> {
    Backend { main, known: &[], cgroup: None }
}

/// This test process as the backend.
fn us() -> Backend<'static> {
    backend(Pid::this())
}

/// A listener whose backlog is full.
fn full(path: &Path) -> (UnixListener, Vec<OwnedFd>) {
    let listener = UnixListener::bind(path).unwrap();
    // SAFETY: shortens the backlog of our own listener.
    assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 1) }, 0);
    let mut clients = Vec::new();
    while let Ok(client) = connect_unix(path) {
        clients.push(client);
    }
    (listener, clients)
}

#[test]
fn a_dead_socket_is_removed_and_its_folder_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/socket");
    prepare_unix(&path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path.parent().unwrap()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    prepare_unix(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::Absent);
    drop(bind_unix(&path).unwrap());
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::Removed);
}

#[test]
fn what_lives_or_is_no_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let message = || prepare_unix(&path).map_err(|error| error.to_string());

    fs::write(&path, "precious").unwrap();
    let expected = format!("`{}` is no socket; move it away, or give the service another path", path.display());
    assert_eq!(message(), Err(expected));
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::NotASocket);
    fs::remove_file(&path).unwrap();

    let listener = UnixListener::bind(&path).unwrap();
    let name = identity::command_name(Pid::this()).unwrap();
    let expected = format!(
        "`{}` is already served by pid {} ({name}), which this broker did not start",
        path.display(),
        Pid::this()
    );
    assert_eq!(message(), Err(expected));
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::Alive);
    drop(listener);
    fs::remove_file(&path).unwrap();

    let _full = full(&path);
    assert!(matches!(prepare_unix(&path), Err(EndpointError::Taken { pid: None, .. })));
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::Alive);
    fs::remove_file(&path).unwrap();

    let _datagram = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::Alive);
    fs::remove_file(&path).unwrap();

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
    let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&bound), &UnixAddr::new(&path).unwrap()).unwrap();
    assert!(matches!(probe_unix(&path, us()), Probe::NotYet));
    assert_eq!(remove_dead_unix(&path).unwrap(), Removal::Alive, "bound, and about to listen");
}

#[test]
fn a_path_that_the_kernel_cannot_hold_is_refused_with_its_length() {
    let long = Path::new("/tmp").join("x".repeat(103));
    assert_eq!(long.as_os_str().len(), 108);
    let error = prepare_unix(&long).unwrap_err().to_string();
    assert!(error.contains("has 108 bytes, and 107 are possible"), "{error}");
    assert!(matches!(bind_unix(&long), Err(EndpointError::PathTooLong { .. })));
    let folder = tempfile::tempdir().unwrap();
    let name = "x".repeat(SOCKET_PATH_MAX - folder.path().as_os_str().len() - 1);
    bind_unix(&folder.path().join(name)).unwrap();
}

#[test]
fn a_probe_of_a_path_sees_what_a_client_would() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    assert!(matches!(probe_unix(&path, us()), Probe::NotYet));
    assert!(matches!(connect_unix(&path), Err(ConnectError::Dead)));
    let listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(probe_unix(&path, us()), Probe::Ready { pid } if pid == Some(Pid::this())));
    drop(listener);
    assert!(matches!(probe_unix(&path, us()), Probe::NotYet));
    fs::remove_file(&path).unwrap();
    let _full = full(&path);
    assert!(matches!(probe_unix(&path, us()), Probe::Ready { pid: None }));
    assert!(matches!(connect_unix(&path), Err(ConnectError::Busy)));
}

#[test]
fn a_probe_of_a_path_knows_a_stranger() {
    as_broker(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let script = format!(
            "import socket,time; s=socket.socket(socket.AF_UNIX); s.bind({:?}); s.listen(); time.sleep(1000)",
            path.to_str().unwrap()
        );
        let start = Start::program("/usr/bin/env", &["python3", "-c", &script]);
        wait_for("it listens", || !matches!(probe_unix(&path, us()), Probe::NotYet));
        assert!(matches!(probe_unix(&path, backend(start.spawned.pid)), Probe::Ready { pid: Some(_) }));
        let sleeper = Start::sh("exec sleep 1000");
        let seen = probe_unix(&path, backend(sleeper.spawned.pid));
        assert!(matches!(&seen, Probe::Stranger { pid: Some(pid), .. } if *pid == start.spawned.pid), "{seen:?}");
    });
}

#[test]
fn a_connection_for_a_client_blocks_as_clients_expect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let stream = UnixStream::from(connect_unix(&path).unwrap());
    let flags = nix::fcntl::fcntl(&stream, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & libc::O_NONBLOCK, 0);
    drop(listener);
}

#[test]
fn a_port_is_probed_without_a_connection() {
    let port = free_tcp_port().unwrap();
    assert!(matches!(probe_tcp(port, us()), Probe::NotYet));
    prepare_tcp(port).unwrap();
    let socket = bind_tcp(port).unwrap();
    assert!(matches!(probe_tcp(port, us()), Probe::Ready { pid } if pid == Some(Pid::this())));
    let error = prepare_tcp(port).unwrap_err().to_string();
    let expected = format!("`127.0.0.1:{port}` is already served by pid {} (", Pid::this());
    assert!(error.starts_with(&expected), "{error}");
    // Nobody has connected so far.
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_port_taken_by_another_is_a_strangers() {
    as_broker(|| {
        let port = free_tcp_port().unwrap();
        let _socket = bind_tcp(port).unwrap();
        let sleeper = Start::sh("exec sleep 1000");
        let seen = probe_tcp(port, backend(sleeper.spawned.pid));
        assert!(matches!(&seen, Probe::Stranger { pid, .. } if *pid == Some(Pid::this())), "{seen:?}");
    });
}

#[test]
fn a_port_is_connected_to_without_blocking() {
    let port = free_tcp_port().unwrap();
    assert!(matches!(connect_tcp(port), Err(ConnectError::Dead)));
    let socket = std::net::TcpListener::from(bind_tcp(port).unwrap());
    let mut connection = connect_tcp(port).unwrap();
    let stream = loop {
        match connection {
            Connection::Made(stream) => break stream,
            Connection::Pending(stream) => {
                let mut writable = [nix::poll::PollFd::new(stream.as_fd(), nix::poll::PollFlags::POLLOUT)];
                nix::poll::poll(&mut writable, nix::poll::PollTimeout::from(10_000_u16)).unwrap();
                connection = finish_tcp(stream).unwrap();
            }
        }
    };
    let (_, peer) = socket.accept().unwrap();
    assert_eq!(std::net::TcpStream::from(stream).local_addr().unwrap(), peer);
}
