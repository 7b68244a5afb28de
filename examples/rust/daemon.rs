//! A daemon that sends lines back, for the broker (`services/echo.toml`) and for systemd alike.
//!
//! It serves the socket that it inherits (`LISTEN_FDS`), so clients may connect before it runs; it says that it is ready
//! and what it does (`sd_notify`); at SIGTERM it takes no more, finishes the line at hand on each connection, and exits 0.
//! Without either of them: `systemd-socket-activate -l /tmp/echo.sock target/debug/examples/daemon`.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use sd_notify::NotifyState;
use signal_hook::consts::SIGTERM;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = inherited_listener()?;
    let mut sigterm = sigterm()?;
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("waiting for the first connection")])?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(echo(accepted?.0, stopping.clone()));
            }
            Some(_) = connections.join_next() => {}
            _ = sigterm.read_u8() => break,
        }
        sd_notify::notify(&[NotifyState::Status(&format!("connections: {}", connections.len()))])?;
    }
    // What has connected and was not accepted is for the next daemon on this socket.
    drop(listener);
    sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("finishing the lines at hand")])?;
    drop(stop);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// The one socket that was handed over.
fn inherited_listener() -> Result<UnixListener, Box<dyn std::error::Error>> {
    let mut passed = sd_notify::listen_fds()?;
    let (Some(number), None) = (passed.next(), passed.next()) else {
        return Err("no socket was handed over, or more than one: start this under the broker or systemd".into());
    };
    // SAFETY: LISTEN_PID names this process, so the descriptor was passed to it, and nothing else here owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// A stream that has a byte to read once SIGTERM has come.
fn sigterm() -> io::Result<UnixStream> {
    let (told, teller) = StdUnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, teller)?;
    told.set_nonblocking(true)?;
    UnixStream::from_std(told)
}

/// Sends each line back, until the client has no more or the daemon stops. A client that is gone is no fault.
async fn echo(stream: UnixStream, mut stopping: watch::Receiver<()>) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut lines = BufReader::new(input).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = stopping.changed() => None,
        };
        let Some(line) = line else { return Ok(()) };
        output.write_all(format!("{line}\n").as_bytes()).await?;
    }
}
