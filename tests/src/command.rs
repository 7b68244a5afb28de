//! Commands that are run and looked at; none outlives its test.

use std::io::{Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::BOUND;

const PAUSE: Duration = Duration::from_millis(2);

/// Bytes of one read.
const CHUNK: usize = 16 << 10;

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code; 128 + N if signal N ended it.
    pub code: i32,
    /// What it wrote to stdout, bytes that are no UTF-8 replaced.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// What it wrote to stdout, as it is.
    pub bytes: Vec<u8>,
    what: String,
}

impl Output {
    /// The same, once it is clear that the command did what it was asked.
    ///
    /// # Panics
    /// It did not exit with 0.
    #[track_caller]
    #[must_use]
    pub fn done(self) -> Self {
        self.exits(0)
    }

    /// The same, once it is clear that it ended with that code.
    ///
    /// # Panics
    /// It ended with another.
    #[track_caller]
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        let Self { what, stdout, stderr, .. } = &self;
        assert_eq!(self.code, code, "exit code of `{what}`\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }

    /// What it printed, as JSON.
    ///
    /// # Panics
    /// It printed something else.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        let Self { what, stdout, stderr, .. } = self;
        let value = serde_json::from_str(stdout);
        value.unwrap_or_else(|error| panic!("`{what}` printed no JSON: {error}\n{stdout}\n--- stderr\n{stderr}"))
    }

    /// The refusal that it printed as JSON, once it is clear that it has that code and exit code.
    ///
    /// # Panics
    /// It was not refused, or otherwise.
    #[track_caller]
    #[must_use]
    pub fn refused(self, exit_code: i32, code: &str) -> Value {
        let this = self.exits(exit_code);
        let refused = this.json()["refused"].take();
        assert_eq!(refused["code"], code, "`{}` printed {}", this.what, this.stdout);
        assert!(refused["reason"].as_str().is_some_and(|text| !text.is_empty()), "a refusal says why: {refused}");
        refused
    }
}

/// A command that runs in the background; it is killed if the test ends first.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    stdout: Collected,
    stderr: Collected,
}

/// What comes out of a pipe, and the thread that reads it to its end.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts the command; what it prints is collected.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}").replace('"', "");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run `{what}`: {error}"));
        let stdout = Collected::from(child.stdout.take());
        let stderr = Collected::from(child.stderr.take());
        Self { child, what, stdout, stderr }
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if it was piped.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until what it has written to stderr is so.
    ///
    /// # Panics
    /// It ends before, or does not write that within [`BOUND`].
    #[track_caller]
    pub fn wait_stderr(&mut self, what: &str, condition: impl Fn(&str) -> bool) {
        self.wait_text(|running| &running.stderr, what, condition);
    }

    /// Waits until what it has written to stdout is so.
    ///
    /// # Panics
    /// It ends before, or does not write that within [`BOUND`].
    #[track_caller]
    pub fn wait_stdout(&mut self, what: &str, condition: impl Fn(&str) -> bool) {
        self.wait_text(|running| &running.stdout, what, condition);
    }

    #[track_caller]
    fn wait_text(&mut self, stream: impl Fn(&Self) -> &Collected, what: &str, condition: impl Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            // In this order: what was written before the end counts.
            let is_last_look = stream(self).is_complete() || began.elapsed() > BOUND;
            if condition(&stream(self).text()) {
                return;
            }
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            assert!(!is_last_look, "`{}` did not say {what}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.what);
            thread::sleep(PAUSE);
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Writes to its standard input and closes it, at the same time as it runs.
    ///
    /// # Panics
    /// Its standard input was not piped.
    #[must_use]
    pub fn fed_with(mut self, bytes: Vec<u8>) -> Self {
        let mut stdin = self.stdin().expect("a piped stdin");
        thread::spawn(move || {
            let _ = stdin.write_all(&bytes);
        });
        self
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end within [`BOUND`].
    #[track_caller]
    #[must_use]
    pub fn finish(mut self) -> Output {
        let began = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if began.elapsed() < BOUND => thread::sleep(PAUSE),
                None => {
                    let _ = self.child.kill();
                    let stderr = String::from_utf8_lossy(&self.stderr.taken()).into_owned();
                    panic!("`{}` did not end within {BOUND:?}\n--- stderr\n{stderr}", self.what);
                }
            }
        };
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        let bytes = self.stdout.taken();
        Output {
            code: status.code().or(signal.map(|number| 128 + number)).unwrap_or(-1),
            stdout: String::from_utf8_lossy(&bytes).into_owned(),
            stderr: String::from_utf8_lossy(&self.stderr.taken()).into_owned(),
            bytes,
            what: std::mem::take(&mut self.what),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collected {
    fn from(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = pipe.map(|mut pipe| {
            let bytes = Arc::clone(&bytes);
            thread::spawn(move || {
                let mut chunk = [0; CHUNK];
                while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                    bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
                }
            })
        });
        Self { bytes, reader }
    }

    /// Whether nothing comes any more.
    fn is_complete(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What has come so far.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// All that comes, once nothing comes any more.
    fn taken(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
