//! A daemon's `NOTIFY_SOCKET`: what it says of itself by `sd_notify(3)`.
//!
//! It reads and never judges: whether a sender is part of the backend is its caller's question. Nothing that is sent
//! here can block, fill memory or leave a descriptor open.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind, getsockname,
    getsockopt, recvmsg, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

use crate::net::endpoint::{EndpointError, KeptError, prepare_unix};
use crate::net::sock_diag::is_file_of;
use crate::process::identity::FileId;
use crate::process::printable::printable_line;

/// What is longer is not read, as a whole.
const MESSAGE_BYTES: usize = 4096;

/// The most descriptors that one message can carry (`SCM_MAX_FD`).
const DESCRIPTORS_MAX: usize = 253;

/// A bound notify socket; its file is removed with it.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: OwnedFd,
    path: PathBuf,
    /// The file that it made. The next broker may have made another one at that path.
    file: Option<FileId>,
}

/// What one message said; what it did not say is empty.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Who sent it, from the kernel. It may have ended since.
    pub(crate) sender: Option<Pid>,
    /// `READY=1`
    pub(crate) ready: bool,
    /// `STATUS=`, made printable, on one line.
    pub(crate) status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`
    pub(crate) extend_timeout: Option<Duration>,
}

impl NotifySocket {
    /// Binds at the path, in a folder for us alone.
    pub(crate) fn bind(path: &Path) -> Result<Self, EndpointError> {
        prepare_unix(path)?;
        let failed = |errno: Errno| EndpointError::Io {
            action: "bind the notify socket",
            endpoint: path.display().to_string(),
            source: errno.into(),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None).map_err(failed)?;
        // Before the bind, so that no message comes without its sender.
        setsockopt(&socket, sockopt::PassCred, &true).map_err(failed)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned(), file: file_at(path) })
    }

    /// The socket that was bound at the path earlier, if that is what this is and its file is still there.
    pub(crate) fn bound(socket: OwnedFd, path: &Path) -> Result<Self, KeptError> {
        let elsewhere = || KeptError::Elsewhere(path.display().to_string());
        let kind = getsockopt(&socket, sockopt::SockType).map_err(|errno| KeptError::Io(errno.into()))?;
        let address: UnixAddr = getsockname(socket.as_raw_fd()).map_err(|_| elsewhere())?;
        if kind != SockType::Datagram || address.path() != Some(path) {
            return Err(elsewhere());
        }
        match is_file_of(socket.as_fd(), path).map_err(KeptError::Io)? {
            true => Ok(Self { socket, path: path.to_owned(), file: file_at(path) }),
            false => Err(KeptError::Unreachable(path.to_owned())),
        }
    }

    /// Leaves the file where it is: somebody else keeps the socket.
    pub(crate) fn leave_file(&mut self) {
        self.file = None;
    }

    /// What `NOTIFY_SOCKET` is to be set to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Receives one message, or `None` if there is none. One that is too long counts as one that says nothing.
    ///
    /// Descriptors that come along are closed; of `BARRIER=1` that is the answer which its sender waits for.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        self.read(MsgFlags::empty())
    }

    /// Looks at the next message, which stays the next one.
    pub(crate) fn look(&self) -> io::Result<Option<Message>> {
        self.read(MsgFlags::MSG_PEEK)
    }

    fn read(&self, flags: MsgFlags) -> io::Result<Option<Message>> {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut control = nix::cmsg_space!(UnixCredentials, [i32; DESCRIPTORS_MAX]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let fd = self.socket.as_raw_fd();
        let received = loop {
            match recvmsg::<()>(fd, &mut slices, Some(&mut control), flags | MsgFlags::MSG_CMSG_CLOEXEC) {
                Ok(received) => break received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut sender = None;
        for message in received.cmsgs().into_iter().flatten() {
            match message {
                ControlMessageOwned::ScmCredentials(credentials) if credentials.pid() > 0 => {
                    sender = Some(Pid::from_raw(credentials.pid()));
                }
                ControlMessageOwned::ScmRights(descriptors) => {
                    for descriptor in descriptors {
                        // SAFETY: the kernel has just installed it for us, and nobody else knows its number.
                        drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
                    }
                }
                _ => {}
            }
        }
        let (length, is_cut) = (received.bytes, received.flags.contains(MsgFlags::MSG_TRUNC));
        let mut message = if is_cut { Message::default() } else { parse(&bytes[..length]) };
        message.sender = sender;
        Ok(Some(message))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for NotifySocket {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if self.file.is_some() && file_at(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_at(path: &Path) -> Option<FileId> {
    fs::symlink_metadata(path).ok().as_ref().map(FileId::from)
}

/// Unknown assignments, and known ones with nonsense for a value, are passed over.
fn parse(bytes: &[u8]) -> Message {
    let mut message = Message::default();
    for line in bytes.split(|&byte| byte == b'\n') {
        let Some(equals) = line.iter().position(|&byte| byte == b'=') else { continue };
        let (name, value) = (&line[..equals], &line[equals + 1..]);
        let number = || std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok();
        match name {
            b"READY" => message.ready |= value == b"1",
            b"STATUS" => message.status = Some(printable_line(value)),
            b"EXTEND_TIMEOUT_USEC" => message.extend_timeout = number().map(Duration::from_micros),
            _ => {}
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use proptest::prelude::*;
    use std::io::IoSlice;
    use std::os::unix::net::UnixDatagram;

    fn pair() -> (tempfile::TempDir, NotifySocket, UnixDatagram) {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::bind(&folder.path().join("notify")).unwrap();
        let daemon = UnixDatagram::unbound().unwrap();
        daemon.connect(socket.path()).unwrap();
        (folder, socket, daemon)
    }

    #[test]
    fn a_message_says_who_and_what() {
        let (_folder, socket, daemon) = pair();
        assert_eq!(socket.receive().unwrap(), None);
        daemon
            .send(
                b"READY=1\nSTATUS=Load \x1b[1m3/7\nX_OTHER=1\nEXTEND_TIMEOUT_USEC=1500000\nMAINPID=4711\nSTOPPING=1\n",
            )
            .unwrap();
        let expected = Message {
            sender: Some(Pid::this()),
            ready: true,
            status: Some("Load \u{fffd}[1m3/7".to_owned()),
            extend_timeout: Some(Duration::from_millis(1500)),
        };
        assert_eq!(socket.receive().unwrap(), Some(expected));
        assert_eq!(socket.receive().unwrap(), None);
    }

    #[test]
    fn nonsense_says_nothing() {
        let (_folder, socket, daemon) = pair();
        let nothing = Message { sender: Some(Pid::this()), ..Message::default() };
        let long = [b"READY=1\n".as_slice(), &[b'x'; MESSAGE_BYTES]].concat();
        for bytes in [&b""[..], b"\n\n==\n=1", b"READY=2\nMAINPID=-1\nEXTEND_TIMEOUT_USEC=soon\nSTOPPING", &long] {
            daemon.send(bytes).unwrap();
            assert_eq!(socket.receive().unwrap(), Some(nothing.clone()));
        }
        daemon.send(b"READY=1").unwrap();
        assert!(socket.receive().unwrap().unwrap().ready);
    }

    #[test]
    fn descriptors_that_come_along_are_closed() {
        let (_folder, socket, daemon) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        let descriptors = [writer.as_raw_fd(); DESCRIPTORS_MAX];
        for message in [&b"BARRIER=1"[..], b"FDSTORE=1\nREADY=1", &[b'x'; MESSAGE_BYTES + 1]] {
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let slices = [IoSlice::new(message)];
            sendmsg::<()>(daemon.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None).unwrap();
            assert_eq!(socket.look().unwrap(), socket.look().unwrap());
            assert_eq!(socket.receive().unwrap().unwrap().sender, Some(Pid::this()));
        }
        drop(writer);
        // The end of the pipe comes only when every copy is closed.
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_socket_file_goes_with_it() {
        let (folder, socket, _daemon) = pair();
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_that_was_kept_goes_on_with_what_was_sent_meanwhile() {
        let (folder, mut socket, daemon) = pair();
        let path = socket.path().to_owned();
        let kept = |socket: &NotifySocket| socket.as_fd().try_clone_to_owned().unwrap();
        let (copy, other) = (kept(&socket), kept(&socket));
        socket.leave_file();
        drop(socket);
        daemon.send(b"READY=1").unwrap();
        assert!(NotifySocket::bound(other, &folder.path().join("elsewhere")).is_err());
        let again = NotifySocket::bound(copy, &path).unwrap();
        assert!(again.receive().unwrap().unwrap().ready);
        let late = kept(&again);
        drop(again);
        assert!(NotifySocket::bound(late, &path).is_err(), "its file is gone");
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"EXTEND_TIMEOUT_USEC=", bytes.as_slice()].concat());
        }
    }
}
