//! Dialling a Unix socket. Never yields an unconnected stream.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use interprocess::ConnectWaitMode;
use interprocess::local_socket::{ConnectOptions, GenericFilePath, ToFsName};
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use nix::errno::Errno;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Pauses between two attempts at a full backlog: they double from the first to the last. The kernel gives no sign when
/// there is room again.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LAST: Duration = Duration::from_millis(50);

/// Connects, waiting at a full backlog (EAGAIN) until the timeout has passed; then the error is `TimedOut`.
pub(crate) async fn dial(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    // A path that the address has no room for would be cut short by nobody, but is reported as `InvalidInput`.
    let name = path.to_fs_name::<GenericFilePath>()?;
    // `Deferred`, because an unconnected socket is at once writable, which the waiting modes take for connected.
    let options = ConnectOptions::new().name(name).wait_mode(ConnectWaitMode::Deferred);
    let give_up = Instant::now().checked_add(timeout);
    let mut pause = PAUSE_FIRST;
    loop {
        let stream = UnixStream::from(options.connect_tokio_as::<Stream>().await?);
        // getpeername: the one sign that connect was done and not put off.
        match stream.peer_addr() {
            Ok(_) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => drop(stream),
            Err(error) => return Err(error),
        }
        let now = Instant::now();
        let left = give_up.map_or(pause, |give_up| give_up.saturating_duration_since(now));
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the listener's backlog stays full"));
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

/// Whether the kernel says that nobody listens there.
pub(crate) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Whether the error is this process's own and no other socket would do better.
pub(crate) fn is_local_fault(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS))
}

/// The sockets at which a broker may listen, in the order in which they are tried.
///
/// `BROKER_SOCKET` alone if it is set; else that of the user's own broker, `$XDG_RUNTIME_DIR/broker/broker.sock` (not
/// for root), then the system's, `/run/broker/broker.sock`.
#[must_use]
pub fn candidate_sockets() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    candidates(variable("BROKER_SOCKET"), variable("XDG_RUNTIME_DIR"), nix::unistd::geteuid().is_root())
}

fn candidates(named: Option<PathBuf>, runtime_directory: Option<PathBuf>, is_root: bool) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named];
    }
    let users_own = runtime_directory.filter(|_| !is_root).map(|directory| directory.join("broker/broker.sock"));
    users_own.into_iter().chain([PathBuf::from("/run/broker/broker.sock")]).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

    use super::*;

    #[test]
    fn a_named_socket_is_the_only_candidate() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(candidates(path("/x"), path("/run/user/7"), false), [PathBuf::from("/x")]);
        assert_eq!(
            candidates(None, path("/run/user/7"), false),
            [PathBuf::from("/run/user/7/broker/broker.sock"), PathBuf::from("/run/broker/broker.sock")]
        );
        assert_eq!(candidates(None, path("/run/user/0"), true), [PathBuf::from("/run/broker/broker.sock")]);
    }

    /// A listener whose backlog has room for one, which is taken.
    fn full_listener(path: &Path) -> (std::os::unix::net::UnixListener, std::os::unix::net::UnixStream) {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(fd.as_raw_fd(), &UnixAddr::new(path).expect("a short path")).expect("bound");
        listen(&fd, Backlog::new(0).expect("a backlog")).expect("listening");
        let first = std::os::unix::net::UnixStream::connect(path).expect("the backlog has room for one");
        (fd.into(), first)
    }

    #[tokio::test]
    async fn a_full_backlog_is_waited_for_until_the_timeout() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let _full = full_listener(&path);
        let error = dial(&path, Duration::from_millis(30)).await.expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_backlog_that_gets_room_is_connected_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let (listener, _first) = full_listener(&path);
        let dialling = tokio::spawn({
            let path = path.clone();
            async move { dial(&path, Duration::from_secs(20)).await }
        });
        // The dialler has found the backlog full once it has run; room is made by an accept.
        tokio::task::yield_now().await;
        assert!(!dialling.is_finished());
        listener.accept().expect("the first");
        let stream = dialling.await.expect("no panic").expect("connected");
        assert!(stream.peer_addr().is_ok());
    }
}
