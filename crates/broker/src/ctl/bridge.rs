//! `brokerctl connect`: stdin and stdout become a connection to a backend.
//!
//! stdin and stdout may be files, which cannot be waited for, or block for ever: each has a thread of its own, joined
//! to the socket by a short queue. The end of stdin is a half-close; the end of what the backend sends is the end.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::thread;

use broker_client::{ReadHalf, WriteHalf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

use super::args::{Global, Wanted};
use super::output::{Console, FAILED, Failure, stdout_failure};
use super::session::Session;

/// Bytes of one read.
const CHUNK: usize = 64 << 10;
/// Chunks between a thread and the socket, before the faster side waits.
const QUEUE: usize = 4;

pub(super) async fn run(console: &Console, global: &Global, wanted: &Wanted) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let held = session.resolve(wanted).await?;
    let stream = held.connect().await?;
    drop(held);
    let (backend_output, backend_input) = stream.into_split();
    let descriptors = (io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned());
    let (Ok(stdin), Ok(stdout)) = descriptors else {
        return Err(Failure::told(FAILED, "stdin or stdout is closed"));
    };
    let input = tokio::spawn(send(read_in_thread(stdin.into()), backend_input));
    let result = receive(backend_output, stdout.into()).await;
    if input.is_finished() {
        let sent = input.await.unwrap_or(Ok(()));
        return result.and(sent);
    }
    // What is still to be read has no reader any more.
    input.abort();
    result
}

/// Sends what is read to the backend, then the end. A backend that no longer listens may still have something to say.
async fn send(mut chunks: mpsc::Receiver<io::Result<Vec<u8>>>, mut backend: WriteHalf) -> Result<(), Failure> {
    let mut result = Ok(());
    while let Some(chunk) = chunks.recv().await {
        match chunk {
            Ok(bytes) => {
                if backend.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => result = Err(Failure::because(FAILED, "cannot read stdin", error)),
        }
    }
    let _ = backend.shutdown().await;
    result
}

/// Prints what the backend sends until it ends.
async fn receive(mut backend: ReadHalf, stdout: File) -> Result<(), Failure> {
    let (chunks, written) = write_in_thread(stdout);
    let mut failed = None;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match backend.read_buf(&mut chunk).await {
            Ok(0) => break,
            Ok(_) if chunks.send(chunk).await.is_err() => break,
            Ok(_) => {}
            Err(error) => {
                failed = Some(Failure::because(FAILED, "the connection to the backend broke", error));
                break;
            }
        }
    }
    drop(chunks);
    let written = written.await.unwrap_or(Ok(()));
    written.map_err(stdout_failure)?;
    failed.map_or(Ok(()), Err)
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
