//! The output of a process, from the files that it writes to: its stdout to ours, its stderr to ours.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use broker_client::Process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::output::{Console, Failure, stdout_failure};
use super::super::tail::Tail;
use super::super::watch::Watch;

/// The most that a pipe takes at once where it has room at all (`PIPE_BUF`).
const WRITE_BYTES: usize = 4096;

/// How soon it is looked again whether somebody reads what was written.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How often a file is read in one turn.
const READS_MAX: usize = 16;

/// Both files of the newest attempt, as far as they are read.
pub(super) struct Outputs<'a> {
    console: &'a Console,
    attempt: u32,
    watch: Watch,
    streams: [Stream; 2],
    /// Somebody was told that something cannot be read.
    has_told: bool,
    /// The last turn did not come to the end of what there is.
    has_more: bool,
    /// Somebody does not read what was written. He must not keep a signal from being heard.
    is_blocked: bool,
}

/// One of the files.
struct Stream {
    place: Place,
    path: Option<PathBuf>,
    tail: Option<Tail>,
    /// Read and not yet written.
    chunk: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Place {
    Stdout,
    Stderr,
}

impl<'a> Outputs<'a> {
    pub(super) fn new(console: &'a Console) -> Self {
        let stream = |place| Stream { place, path: None, tail: None, chunk: Vec::new() };
        let streams = [stream(Place::Stdout), stream(Place::Stderr)];
        Self { console, attempt: 0, watch: Watch::new(), streams, has_told: false, has_more: false, is_blocked: false }
    }

    /// Prints what is new, up to a bound, so that one who writes without end does not keep all else from happening.
    /// Another attempt than before has other files: the old ones are read to their end first.
    pub(super) fn drain(&mut self, process: &Process) -> Result<(), Failure> {
        let paths = [&process.stdout, &process.stderr];
        for (stream, path) in self.streams.iter_mut().zip(paths) {
            if stream.path != *path {
                match stream.print()? {
                    // First what is left of the one before.
                    Ok(Printed::Some) => {
                        self.has_more = true;
                        return Ok(());
                    }
                    Ok(Printed::Nowhere) => {
                        (self.has_more, self.is_blocked) = (true, true);
                        return Ok(());
                    }
                    Ok(Printed::All) | Err(_) => {}
                }
                *stream = Stream { place: stream.place, path: path.clone(), tail: None, chunk: Vec::new() };
            }
        }
        if process.attempt > self.attempt {
            if self.attempt > 0 && !self.console.quiet {
                self.console.note(format_args!(
                    "process {}: attempt {} of {} begins, the one before it was lost",
                    process.id, process.attempt, process.max_attempts
                ));
            }
            self.attempt = process.attempt;
        }
        (self.has_more, self.is_blocked) = (false, false);
        for at in 0..self.streams.len() {
            let Some(path) = self.streams[at].path.clone() else { continue };
            if self.streams[at].tail.is_none() {
                self.watch.add(Some(&path));
                match Tail::whole(&path) {
                    Ok(tail) => self.streams[at].tail = Some(tail),
                    // An attempt that begins makes its files a moment later.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && !process.state.has_ended() => continue,
                    Err(error) => {
                        self.cannot_read(&path, &error);
                        continue;
                    }
                }
            }
            match self.streams[at].print()? {
                Ok(Printed::All) => {}
                Ok(Printed::Some) => self.has_more = true,
                Ok(Printed::Nowhere) => (self.has_more, self.is_blocked) = (true, true),
                Err(error) => self.cannot_read(&path, &error),
            }
        }
        Ok(())
    }

    /// Whether there is more than the last turn has printed.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Waits until there may be more.
    pub(super) async fn changed(&self) {
        match (self.is_blocked, self.has_more) {
            (true, _) => tokio::time::sleep(LOOK_AGAIN).await,
            (false, true) => tokio::task::yield_now().await,
            (false, false) => drop(self.watch.changed().await),
        }
    }

    fn cannot_read(&mut self, path: &Path, error: &io::Error) {
        if !std::mem::replace(&mut self.has_told, true) {
            let path = path.display();
            self.console.note(format_args!("its output cannot be read here: {path}: {error}; its end is waited for"));
        }
    }
}

/// How far one turn has come.
enum Printed {
    All,
    /// There is more.
    Some,
    /// There is more, and nobody reads.
    Nowhere,
}

impl Stream {
    /// Prints what is new, up to a bound, and never waits for whoever is to read it; or says why it cannot be read.
    fn print(&mut self) -> Result<io::Result<Printed>, Failure> {
        let Some(tail) = &mut self.tail else { return Ok(Ok(Printed::All)) };
        for _ in 0..READS_MAX {
            if self.chunk.is_empty()
                && let Err(error) = tail.read(&mut self.chunk)
            {
                return Ok(Err(error));
            }
            if self.chunk.is_empty() {
                return Ok(Ok(Printed::All));
            }
            if !write(self.place, &mut self.chunk)? {
                return Ok(Ok(Printed::Nowhere));
            }
        }
        Ok(Ok(Printed::Some))
    }
}

/// Writes as long as there is room; `false` if there is none.
fn write(place: Place, chunk: &mut Vec<u8>) -> Result<bool, Failure> {
    let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
    while !chunk.is_empty() {
        let fd = match place {
            Place::Stdout => stdout.as_fd(),
            Place::Stderr => stderr.as_fd(),
        };
        if poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO).is_ok_and(|ready| ready == 0) {
            return Ok(false);
        }
        let piece = chunk.len().min(WRITE_BYTES);
        match place {
            Place::Stdout => {
                stdout.write_all(&chunk[..piece]).and_then(|()| stdout.flush()).map_err(stdout_failure)?;
            }
            // Whether anybody reads it is not known here.
            Place::Stderr => drop(stderr.write_all(&chunk[..piece])),
        }
        chunk.drain(..piece);
    }
    Ok(true)
}
