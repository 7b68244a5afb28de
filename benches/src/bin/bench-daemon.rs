//! A daemon that becomes ready after a given time and then says when it began and when it was ready.
//!
//! `bench-daemon --unix PATH | --tcp HOST:PORT [--delay-ms N] [--gate FIFO] [--starts FILE] [--die-with-parent]`. It listens
//! once the time is over or somebody has opened the gate for writing, then says `READY=1` if it was given a
//! `NOTIFY_SOCKET`. Whoever sends it anything is told its [`Facts`].

use std::env;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::thread::sleep;
use std::time::Duration;

use broker_bench::{Facts, monotonic_ns};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{SockFlag, accept4};
use nix::unistd::{close, read, write};

#[derive(Default)]
struct Options {
    unix: Option<String>,
    tcp: Option<String>,
    delay: Duration,
    gate: Option<String>,
    starts: Option<String>,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self::default();
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--die-with-parent" {
                broker_bench::die_with_parent();
                continue;
            }
            let value = arguments.next().unwrap_or_else(|| panic!("`{name}` takes a value"));
            match name.as_str() {
                "--unix" => options.unix = Some(value),
                "--tcp" => options.tcp = Some(value),
                "--delay-ms" => options.delay = Duration::from_millis(value.parse().expect("milliseconds")),
                "--gate" => options.gate = Some(value),
                "--starts" => options.starts = Some(value),
                _ => panic!("unknown option `{name}`"),
            }
        }
        options
    }
}

fn main() {
    let main_ns = monotonic_ns();
    let options = Options::parse();
    let pid = u64::from(std::process::id());
    if let Some(path) = &options.starts {
        let file = File::options().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(format!("{pid}\n").as_bytes())).expect("a start can be noted");
    }
    sleep(options.delay);
    if let Some(gate) = &options.gate {
        // Opening blocks until somebody opens the other end.
        let opened = File::open(gate).and_then(|mut gate| gate.read(&mut [0]));
        opened.expect("the gate can be read");
    }
    let listener: OwnedFd = match (&options.unix, &options.tcp) {
        (Some(path), None) => UnixListener::bind(path).expect("the socket can be bound").into(),
        (None, Some(address)) => TcpListener::bind(address).expect("the port can be bound").into(),
        _ => panic!("either `--unix PATH` or `--tcp HOST:PORT`"),
    };
    if let Some(manager) = env::var_os("NOTIFY_SOCKET") {
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.send_to(b"READY=1", manager).expect("the manager can be told");
    }
    serve(&listener, &Facts { pid, main_ns, ready_ns: monotonic_ns() }.to_bytes());
}

fn serve(listener: &OwnedFd, facts: &[u8]) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
    let watched = |number: RawFd| EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number).expect("a descriptor"));
    epoll.add(listener, watched(listener.as_raw_fd())).expect("a listener can be watched");
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        for event in &events[..count] {
            let number = RawFd::try_from(event.data()).expect("a descriptor");
            if number == listener.as_raw_fd() {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                if let Ok(accepted) = accept4(number, flags) {
                    // SAFETY: it was just made, and belongs to this program.
                    let connection = unsafe { BorrowedFd::borrow_raw(accepted) };
                    epoll.add(connection, watched(accepted)).expect("a connection can be watched");
                }
                continue;
            }
            // SAFETY: the number came from `accept4`, and is closed nowhere but below.
            let connection = unsafe { BorrowedFd::borrow_raw(number) };
            let told = matches!(read(connection, &mut [0; 64]), Ok(1..)) && write(connection, facts).is_ok();
            if !told {
                let _ = close(number);
            }
        }
    }
}
