//! Signals as events of the runtime.
//!
//! The first SIGTERM or SIGINT drains; a second of either ends the process in the handler itself, which works however
//! stuck the runtime is. SIGHUP reloads, SIGCHLD reaps.

use std::io;
use std::os::unix::net::UnixStream as PairStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};
use tokio::net::UnixStream;

/// Pipes that become readable at each signal.
pub(super) struct Signals {
    terminate: UnixStream,
    interrupt: UnixStream,
    hangup: UnixStream,
    child: UnixStream,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// SIGTERM.
    Drain,
    /// SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGCHLD.
    Reap,
}

impl Signals {
    /// Takes the signals over. Call it before anything that a signal should undo, and before the first spawn, which learns
    /// which handlers a child must be rid of.
    pub(super) fn install() -> io::Result<Self> {
        // The pipes first: from its first handler on a signal ends nobody by itself, and must be heard.
        let signals = Self {
            terminate: piped(SIGTERM)?,
            interrupt: piped(SIGINT)?,
            hangup: piped(SIGHUP)?,
            child: piped(SIGCHLD)?,
        };
        let second = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the flag that a first signal sets is what the handler of a second one finds.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&second))?;
            flag::register(signal, Arc::clone(&second))?;
        }
        Ok(signals)
    }

    /// Waits for the next one. Several of a kind may count as one.
    pub(super) async fn next(&self) -> Request {
        tokio::select! {
            () = arrived(&self.terminate) => Request::Drain,
            () = arrived(&self.interrupt) => Request::Stop,
            () = arrived(&self.hangup) => Request::Reload,
            () = arrived(&self.child) => Request::Reap,
        }
    }
}

fn piped(signal: i32) -> io::Result<UnixStream> {
    let (ours, handlers) = PairStream::pair()?;
    ours.set_nonblocking(true)?;
    pipe::register(signal, handlers)?;
    UnixStream::from_std(ours)
}

async fn arrived(pipe: &UnixStream) {
    loop {
        if pipe.readable().await.is_err() {
            return std::future::pending().await;
        }
        let mut bytes = [0; 64];
        match pipe.try_read(&mut bytes) {
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return std::future::pending().await,
        }
    }
}
