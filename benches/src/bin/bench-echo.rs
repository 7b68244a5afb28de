//! The floor: a bare epoll server on one thread that sends back what it is sent, and nothing else.
//!
//! `bench-echo SOCKET` echoes. `bench-echo SOCKET --pass-descriptor` sends a descriptor with each answer, too.

use std::env;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, SockFlag, accept4, sendmsg};
use nix::unistd::{close, read, write};

/// Events that are taken from the kernel at once.
const EVENTS: usize = 256;

fn main() {
    broker_bench::die_with_parent();
    let mut arguments = env::args_os().skip(1);
    let path = arguments.next().expect("usage: bench-echo SOCKET [--pass-descriptor]");
    let passed = arguments.next().map(|_| std::fs::File::open("/dev/null").expect("/dev/null opens"));
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
            if !answer(connection, passed.as_ref().map(AsFd::as_fd)) {
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
fn answer(connection: BorrowedFd<'_>, passed: Option<BorrowedFd<'_>>) -> bool {
    let mut bytes = [0; 4096];
    let Ok(count @ 1..) = read(connection, &mut bytes) else { return false };
    let Some(passed) = passed else { return write(connection, &bytes[..count]).is_ok() };
    let (descriptors, parts) = ([passed.as_raw_fd()], [IoSlice::new(&bytes[..count])]);
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(connection.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).is_ok()
}
