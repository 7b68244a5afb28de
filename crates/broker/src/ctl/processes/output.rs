//! The output of a process, from the files that it writes to: its stdout to ours, its stderr to ours.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use broker_client::Process;

use super::super::output::{Console, Failure, stdout_failure};
use super::super::tail::Tail;
use super::super::watch::Watch;

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
    chunk: Vec<u8>,
}

/// One of the files.
struct Stream {
    place: Place,
    path: Option<PathBuf>,
    tail: Option<Tail>,
}

#[derive(Clone, Copy)]
enum Place {
    Stdout,
    Stderr,
}

impl<'a> Outputs<'a> {
    pub(super) fn new(console: &'a Console) -> Self {
        let stream = |place| Stream { place, path: None, tail: None };
        let streams = [stream(Place::Stdout), stream(Place::Stderr)];
        Self { console, attempt: 0, watch: Watch::new(), streams, has_told: false, has_more: false, chunk: Vec::new() }
    }

    /// Prints what is new, up to a bound, so that one who writes without end does not keep all else from happening.
    /// Another attempt than before has other files: the old ones are read to their end first.
    pub(super) fn drain(&mut self, process: &Process) -> Result<(), Failure> {
        let paths = [&process.stdout, &process.stderr];
        for (stream, path) in self.streams.iter_mut().zip(paths) {
            if stream.path != *path {
                while let Ok(true) = stream.print(&mut self.chunk)? {}
                *stream = Stream { path: path.clone(), tail: None, ..*stream };
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
        self.has_more = false;
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
            match self.streams[at].print(&mut self.chunk)? {
                Ok(has_more) => self.has_more |= has_more,
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
        match self.has_more {
            true => tokio::task::yield_now().await,
            false => drop(self.watch.changed().await),
        }
    }

    fn cannot_read(&mut self, path: &Path, error: &io::Error) {
        if !std::mem::replace(&mut self.has_told, true) {
            let path = path.display();
            self.console.note(format_args!("its output cannot be read here: {path}: {error}; its end is waited for"));
        }
    }
}

impl Stream {
    /// Prints what is new, up to a bound; whether there is more, or why it cannot be read.
    fn print(&mut self, chunk: &mut Vec<u8>) -> Result<io::Result<bool>, Failure> {
        let Some(tail) = &mut self.tail else { return Ok(Ok(false)) };
        for _ in 0..READS_MAX {
            if let Err(error) = tail.read(chunk) {
                return Ok(Err(error));
            }
            if chunk.is_empty() {
                return Ok(Ok(false));
            }
            match self.place {
                Place::Stdout => {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(chunk).and_then(|()| stdout.flush()).map_err(stdout_failure)?;
                }
                // Whether anybody reads it is not known here.
                Place::Stderr => drop(io::stderr().lock().write_all(chunk)),
            }
        }
        Ok(Ok(true))
    }
}
