//! The service manager that asked to be told of this process, by `NOTIFY_SOCKET`: how a message comes to it.
//!
//! Knows no words. Nobody waits here longer than he says, whatever the manager does.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const VARIABLE: &str = "NOTIFY_SOCKET";

/// Whether there is one.
pub(crate) fn is_there() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|place| !place.is_empty())
}

/// Tells it something, with descriptors. Where its queue is full that is waited for so long that it takes something out.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where it still is full then; others where it cannot be told at all.
pub(crate) fn tell(text: &str, descriptors: &[BorrowedFd<'_>], patience: Duration) -> io::Result<()> {
    match std::env::var_os(VARIABLE) {
        Some(place) => tell_at(&place, text, descriptors, patience),
        None => Ok(()),
    }
}

fn tell_at(place: &OsStr, text: &str, descriptors: &[BorrowedFd<'_>], patience: Duration) -> io::Result<()> {
    let address = match place.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name),
        path => UnixAddr::new(path),
    }?;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    match i64::try_from(patience.as_micros()).unwrap_or(i64::MAX) {
        // To the kernel no time is no limit.
        0 => flags |= MsgFlags::MSG_DONTWAIT,
        patience => setsockopt(&socket, sockopt::SendTimeout, &TimeVal::microseconds(patience))?,
    }
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let message = [IoSlice::new(text.as_bytes())];
    loop {
        match sendmsg(socket.as_raw_fd(), &message, control, flags, Some(&address)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn heard(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let count = manager.recv(&mut bytes).expect("something was said");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn one_that_reads_nothing_is_waited_for_so_long_and_no_longer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a short path");
        let mut said = 0;
        let full = loop {
            match tell_at(path.as_os_str(), &said.to_string(), &[], Duration::ZERO) {
                Ok(()) => said += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock, "after {said}: {full}");
        let late = tell_at(path.as_os_str(), "late", &[], Duration::from_millis(10)).expect_err("it is full");
        assert_eq!(late.kind(), io::ErrorKind::WouldBlock, "{late}");
        assert_eq!(heard(&manager), "0");
        tell_at(path.as_os_str(), "again", &[], Duration::ZERO).expect("there is room");
        drop(manager);
        assert!(tell_at(path.as_os_str(), "x", &[], Duration::ZERO).is_err_and(|e| e.kind() != full.kind()));
    }

    #[test]
    fn an_abstract_name_is_a_place_too() {
        let name = format!("broker-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("nobody has it");
        tell_at(OsStr::new(&format!("@{name}")), "READY=1\n", &[], Duration::ZERO).expect("it listens");
        assert_eq!(heard(&manager), "READY=1\n");
    }
}
