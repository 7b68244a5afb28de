//! Streams of the journal: what a daemon holds as its stdout and stderr, so that each line of its becomes an entry.
//!
//! Nothing in an entry tells one start of a service from another, so the broker writes the first line of each stream, and
//! the stream is found by it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use serde::{Deserialize, Serialize};

use crate::process::identity::FileId;

/// Where journald takes streams.
pub(crate) const PLACE: &str = "/run/systemd/journal/stdout";

/// How much a stream holds while journald is busy or being restarted, as far as the kernel allows it; as
/// sd_journal_stream_fd(3) has it.
const SEND_BUFFER: usize = 8 << 20;

/// How soon it is looked again whether journald has read all.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A start's stream, as it is told from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stream {
    /// What `journalctl -t` finds it by: the service's name.
    pub(crate) identifier: String,
    pub(crate) generation: u64,
    /// Its first line, which the broker wrote.
    pub(crate) first_line: String,
    /// The number of the broker that wrote it.
    pub(crate) writer: u32,
    /// The socket that the daemon writes to.
    pub(crate) socket: FileId,
}

/// The first line of a start's stream. `backend` is a key as it is displayed.
pub(crate) fn first_line(backend: &str, generation: u64) -> String {
    format!("starting {backend}, generation {generation}")
}

/// Opens the stream of a start, and writes its first line.
///
/// # Errors
/// As [`open`].
pub(crate) fn begin(
    place: &Path,
    identifier: &str,
    unit: &str,
    backend: &str,
    generation: u64,
) -> io::Result<(OwnedFd, Stream)> {
    let first_line = first_line(backend, generation);
    let socket = open(place, identifier, unit, &first_line)?;
    let stat = nix::sys::stat::fstat(&socket)?;
    let identity = FileId { device: stat.st_dev, inode: stat.st_ino, born: None };
    let (identifier, writer) = (identifier.to_owned(), std::process::id());
    Ok((socket, Stream { identifier, generation, first_line, writer, socket: identity }))
}

/// Opens a stream, and writes a line to it. Never waits: where journald takes none at once, that is the error.
///
/// An entry whose process journald cannot look at any more belongs to `unit`, if this is root's broker.
pub(crate) fn open(place: &Path, identifier: &str, unit: &str, line: &str) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(place)?)?;
    let mut stream = UnixStream::from(socket);
    stream.shutdown(Shutdown::Read)?;
    // Only root may have more than the system's limit. A smaller buffer is no reason to go without.
    let _ = setsockopt(&stream, sockopt::SndBufForce, &SEND_BUFFER)
        .or_else(|_| setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER));
    // Then: lines are of priority 6 unless they begin with another, `<3>`; nothing is forwarded to syslog, kmsg, console.
    let header = format!("{identifier}\n{unit}\n6\n1\n0\n0\n0\n{line}\n");
    io::Write::write_all(&mut stream, header.as_bytes())?;
    // The daemon knows nothing of a socket that does not wait.
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

/// Waits until journald has read all that was written to a stream; false if it has not within the time.
pub(crate) fn wait_read(stream: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while unread(stream).unwrap_or_default() > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_AGAIN);
    }
    true
}

/// How much memory what was not read yet takes.
fn unread(stream: &OwnedFd) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one integer, which is live.
    Errno::result(unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(bytes)
}

/// A file in memory, for what a program prints.
pub(super) fn memory_file() -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated name.
    let fd = Errno::result(unsafe { libc::memfd_create(c"journalctl".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_stream_begins_as_journald_reads_it_and_with_our_line() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("stdout");
        let journal = UnixListener::bind(&place).unwrap();
        let begun = begin(&place, "redis", "brokerd-backends.service", "redis@7.0.15/default", 3);
        let (socket, stream) = begun.unwrap();
        assert_eq!(stream.first_line, "starting redis@7.0.15/default, generation 3");
        let stat = nix::sys::stat::fstat(&socket).unwrap();
        assert_eq!((stream.socket.device, stream.socket.inode), (stat.st_dev, stat.st_ino));
        assert!(!wait_read(&socket, Duration::from_millis(5)), "nobody has read it");

        let (mut theirs, _) = journal.accept().unwrap();
        let mut daemon = UnixStream::from(socket.try_clone().unwrap());
        daemon.write_all(b"<3>fatal\n").unwrap();
        drop(daemon);
        let expect = "redis\nbrokerd-backends.service\n6\n1\n0\n0\n0\n\
                      starting redis@7.0.15/default, generation 3\n<3>fatal\n";
        let mut text = vec![0; expect.len()];
        theirs.read_exact(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expect);
        assert!(wait_read(&socket, Duration::from_secs(5)));
    }

    #[test]
    fn a_journal_that_takes_no_stream_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("stdout");
        let open = || open(&place, "x", "", "probing");
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let journal = UnixListener::bind(&place).unwrap();
        // SAFETY: integers; a listening socket takes another backlog.
        Errno::result(unsafe { libc::listen(journal.as_raw_fd(), 0) }).unwrap();
        let _queued = open().unwrap();
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EAGAIN), "its backlog is full");
        drop(journal);
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
