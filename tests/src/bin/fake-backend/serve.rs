//! The echo protocol, over whatever the daemon listens on.
//!
//! A line comes back as `PID LINE`. `?` is answered with the facts, `!say TEXT` writes TEXT to stderr, `!exit CODE` exits.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::{process, thread};

use nix::sys::socket::{UnixAddr, getsockname};

use crate::facts;
use crate::options::Options;

/// systemd's first passed descriptor.
const FIRST_PASSED: RawFd = 3;

/// A listening socket, and what fills its backlog if it was told to be full.
pub(crate) enum Listener {
    /// On a path.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Connections that fill its backlog, kept open.
        _waiting: Vec<UnixStream>,
    },
    /// On a port.
    Tcp(TcpListener),
}

impl Listener {
    /// Binds, or takes over what the broker bound.
    pub(crate) fn open(options: &Options) -> io::Result<Self> {
        if options.listen_fds {
            return Self::passed();
        }
        let address =
            options.listen.as_ref().ok_or_else(|| io::Error::other("told neither --listen nor --listen-fds"))?;
        if !address.starts_with('/') {
            return Ok(Self::Tcp(TcpListener::bind(address)?));
        }
        let listener = UnixListener::bind(address)?;
        let mut waiting = Vec::new();
        if options.full_backlog {
            // SAFETY: listening again on a socket of ours only changes its backlog.
            unsafe { libc::listen(listener.as_raw_fd(), 0) };
            waiting.push(UnixStream::connect(address)?);
        }
        Ok(Self::Unix { listener, _waiting: waiting })
    }

    fn passed() -> io::Result<Self> {
        let variable = |name: &str| std::env::var(name).map_err(|_| io::Error::other(format!("{name} is not set")));
        let (count, pid) = (variable("LISTEN_FDS")?, variable("LISTEN_PID")?);
        if count != "1" || pid != process::id().to_string() {
            return Err(io::Error::other(format!("LISTEN_FDS={count} LISTEN_PID={pid}, own pid {}", process::id())));
        }
        // SAFETY: LISTEN_PID names this process, so the descriptor was passed to it, and nothing else here owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(FIRST_PASSED) };
        let is_unix = getsockname::<UnixAddr>(FIRST_PASSED).is_ok();
        Ok(if is_unix {
            Self::Unix { listener: descriptor.into(), _waiting: Vec::new() }
        } else {
            Self::Tcp(descriptor.into())
        })
    }
}

/// Accepts for ever, a thread for each connection.
pub(crate) fn serve(listener: &Listener, cat: bool) {
    loop {
        let accepted = match listener {
            Listener::Unix { listener, .. } => listener.accept().map(|(stream, _)| {
                thread::spawn(move || converse(&stream, &stream, cat));
            }),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| {
                thread::spawn(move || converse(&stream, &stream, cat));
            }),
        };
        if let Err(error) = accepted {
            eprintln!("fake-backend: accept: {error}");
        }
    }
}

/// Accepts for ever, one connection after the other, all on this thread.
pub(crate) fn serve_one_by_one(listener: &Listener) -> ! {
    loop {
        match listener {
            Listener::Unix { listener, .. } => listener.accept().map(|(stream, _)| converse(&stream, &stream, false)),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| converse(&stream, &stream, false)),
        }
        .unwrap_or_else(|error| eprintln!("fake-backend: accept: {error}"));
    }
}

/// One connection, until its end; an error is its end too.
fn converse(input: impl Read, output: impl Write, cat: bool) {
    let _ = if cat { echo_bytes(input, output) } else { echo_lines(input, output) };
}

fn echo_bytes(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    let count = io::copy(&mut input, &mut output)?;
    write!(output, "EOF after {count} bytes")
}

fn echo_lines(input: impl Read, mut output: impl Write) -> io::Result<()> {
    for line in BufReader::new(input).lines() {
        let line = line?;
        if line == "?" {
            writeln!(output, "{}", facts::gather())?;
        } else if let Some(code) = line.strip_prefix("!exit ") {
            process::exit(code.parse().unwrap_or(1));
        } else {
            if let Some(text) = line.strip_prefix("!say ") {
                eprintln!("{text}");
            }
            writeln!(output, "{} {line}", process::id())?;
        }
    }
    Ok(())
}
