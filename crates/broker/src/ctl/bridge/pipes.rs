//! stdin and stdout, joined to a connection, and to the next one after it.
//!
//! Both may be files, which cannot be waited for, or block for ever: each has a thread of its own, joined to the socket
//! by a short queue.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::thread;

use broker_client::{ReadHalf, WriteHalf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

use crate::ctl::output::{FAILED, Failure};

/// Bytes of one read.
const CHUNK: usize = 64 << 10;
/// Chunks between a thread and the socket, before the faster side waits.
const QUEUE: usize = 4;

/// What is read, and what of it has not been sent.
pub(super) struct Input {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    unsent: Vec<u8>,
    has_ended: bool,
    failed: Option<io::Error>,
}

impl Input {
    pub(super) fn read(stdin: File) -> Self {
        Self { chunks: read_in_thread(stdin), unsent: Vec::new(), has_ended: false, failed: None }
    }

    /// Whether everything has been read.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Sends what is read to the backend, then the end. A backend that no longer listens may still have something to
    /// say: what it does not take is kept.
    pub(super) async fn send(&mut self, mut backend: WriteHalf) {
        loop {
            while !self.unsent.is_empty() {
                match backend.write(&self.unsent).await {
                    Ok(count) => drop(self.unsent.drain(..count)),
                    Err(_) => return,
                }
            }
            match self.chunks.recv().await {
                Some(Ok(bytes)) => self.unsent = bytes,
                Some(Err(error)) => self.failed = Some(error),
                None => break,
            }
        }
        self.has_ended = true;
        let _ = backend.shutdown().await;
    }

    /// How reading went.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.failed {
            Some(error) => Err(Failure::because(FAILED, "cannot read stdin", error)),
            None => Ok(()),
        }
    }
}

/// What is written.
pub(super) struct Output {
    chunks: mpsc::Sender<Vec<u8>>,
    written: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    pub(super) fn write(stdout: File) -> Self {
        let (chunks, written) = write_in_thread(stdout);
        Self { chunks, written }
    }

    /// Whether nobody takes what is written.
    pub(super) fn is_closed(&self) -> bool {
        self.chunks.is_closed()
    }

    /// Writes what the backend sends until it ends.
    pub(super) async fn receive(&mut self, mut backend: ReadHalf) -> io::Result<()> {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match backend.read_buf(&mut chunk).await {
                Ok(0) => return Ok(()),
                Ok(_) if self.chunks.send(chunk).await.is_err() => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.chunks);
        self.written.await.unwrap_or(Ok(()))
    }
}

/// Reads the file to its end. The thread is left behind if nobody listens: it may wait for ever for the next byte.
fn read_in_thread(mut file: File) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (chunks, receiver) = mpsc::channel(QUEUE);
    thread::spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(chunk)
                }
                Err(error) if may_go_on(&error, &file, PollFlags::POLLIN) => continue,
                Err(error) => Err(error),
            };
            let ends = read.is_err();
            if chunks.blocking_send(read).is_err() || ends {
                break;
            }
        }
    });
    receiver
}

/// Writes chunks to the file; the result comes when there are no more, or when it cannot be written to.
fn write_in_thread(mut file: File) -> (mpsc::Sender<Vec<u8>>, oneshot::Receiver<io::Result<()>>) {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(QUEUE);
    let (done, written) = oneshot::channel();
    thread::spawn(move || {
        let mut result = Ok(());
        while let Some(chunk) = chunks.blocking_recv() {
            result = write_all(&mut file, &chunk);
            if result.is_err() {
                break;
            }
        }
        let _ = done.send(result);
    });
    (sender, written)
}

fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if may_go_on(&error, file, PollFlags::POLLOUT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the call should be made again. Another process may have made the file non-blocking: then waits until it is
/// ready.
fn may_go_on(error: &io::Error, file: &File, readiness: PollFlags) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted => true,
        io::ErrorKind::WouldBlock => {
            let _ = poll(&mut [PollFd::new(file.as_fd(), readiness)], PollTimeout::NONE);
            true
        }
        _ => false,
    }
}
