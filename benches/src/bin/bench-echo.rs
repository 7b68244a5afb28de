//! The floor: a bare epoll server on one thread that sends back what it is sent, and nothing else.
//!
//! `bench-echo SOCKET` echoes. With `--pass-descriptor` it sends a descriptor with each answer, too, and with
//! `--connect PATH` one that it has connected to that socket before.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, connect, sendmsg, socket,
};
use nix::unistd::{close, read, write};

/// Events that are taken from the kernel at once.
const EVENTS: usize = 256;

/// What goes along with an answer.
enum Passed {
    Nothing,
    Same(OwnedFd),
    ConnectedTo(PathBuf),
}

fn main() {
    broker_bench::die_with_parent();
    let mut arguments = env::args_os().skip(1);
    let usage = "usage: bench-echo SOCKET [--pass-descriptor | --connect PATH]";
    let path = arguments.next().expect(usage);
    let passed = match (arguments.next().as_deref().and_then(OsStr::to_str), arguments.next()) {
        (None, None) => Passed::Nothing,
        (Some("--pass-descriptor"), None) => Passed::Same(File::open("/dev/null").expect("/dev/null opens").into()),
        (Some("--connect"), Some(path)) => Passed::ConnectedTo(path.into()),
        _ => panic!("{usage}"),
    };
    let listener = UnixListener::bind(path).expect("the socket can be bound");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
    let data = |number: RawFd| u64::try_from(number).expect("a descriptor is not negative");
    let watched = |number| EpollEvent::new(EpollFlags::EPOLLIN, data(number));
    epoll.add(&listener, watched(listener.as_raw_fd())).expect("a listener can be watched");
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        for event in &events[..count] {
            if event.data() == data(listener.as_raw_fd()) {
                accept(&epoll, &listener, watched);
                continue;
            }
            let number = RawFd::try_from(event.data()).expect("a descriptor");
            // SAFETY: the number came from `accept`, and is closed nowhere but below.
            let connection = unsafe { BorrowedFd::borrow_raw(number) };
            if !answer(connection, &passed) {
                let _ = close(number);
            }
        }
    }
}

fn accept(epoll: &Epoll, listener: &UnixListener, watched: impl Fn(RawFd) -> EpollEvent) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    if let Ok(number) = accept4(listener.as_raw_fd(), flags) {
        // SAFETY: it was just made, and belongs to this program.
        let connection = unsafe { BorrowedFd::borrow_raw(number) };
        epoll.add(connection, watched(number)).expect("a connection can be watched");
    }
}

/// Sends back what there is. False at the end of the connection.
fn answer(connection: BorrowedFd<'_>, passed: &Passed) -> bool {
    let mut bytes = [0; 4096];
    let Ok(count @ 1..) = read(connection, &mut bytes) else { return false };
    match passed {
        Passed::Nothing => write(connection, &bytes[..count]).is_ok(),
        Passed::Same(passed) => pass(connection, &bytes[..count], passed),
        Passed::ConnectedTo(path) => pass(connection, &bytes[..count], &connected(path)),
    }
}

fn pass(connection: BorrowedFd<'_>, bytes: &[u8], passed: &OwnedFd) -> bool {
    let (descriptors, parts) = ([passed.as_raw_fd()], [IoSlice::new(bytes)]);
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(connection.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).is_ok()
}

/// A connection to a daemon that must not keep the server waiting, for a client that may wait.
fn connected(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
    let address = UnixAddr::new(path).expect("a path of a socket");
    connect(stream.as_raw_fd(), &address).expect("the daemon accepts");
    fcntl(&stream, FcntlArg::F_SETFL(OFlag::empty())).expect("a socket can be made to block");
    stream
}
