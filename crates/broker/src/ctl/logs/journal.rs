//! What a backend wrote to the journal of systemd, read by `journalctl`.

use std::io::{self, Read as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

use super::printer::Printer;
use crate::ctl::documents::{JournalLog, Log};
use crate::ctl::output::{FAILED, Failure, NOT_PERMITTED};
use crate::journald::reading::{PROGRAM, Traces, stream_ids};
use crate::journald::stream::first_line;

/// How often it is looked for what was written just now: journald may be a little behind.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// How many earlier starts are looked for.
const PREVIOUS_MAX: u64 = 20;

/// Bytes of one read.
const CHUNK: usize = 64 << 10;

/// What was read of a follower, and of which: nothing is its end.
pub(super) type Chunk = (u64, Vec<u8>);

impl JournalLog {
    fn traces(&self) -> Traces<'_> {
        Traces {
            identifier: &self.identifier,
            first_line: &self.first_line,
            writer: self.written_by,
            pids: &self.pids,
            cgroup: self.cgroup.as_deref(),
        }
    }

    /// The question for its lines, once its streams are known; or, if so wanted, for whatever else it is told by.
    pub(super) fn question(&self, at_last: bool) -> Result<Option<Vec<String>>, Failure> {
        let traces = self.traces();
        let mut streams = stream_ids(&ask(&traces.streams())?);
        if streams.is_empty()
            && let Some(question) = traces.streams_of_processes()
        {
            streams = stream_ids(&ask(&question)?);
        }
        Ok(if streams.is_empty() && !at_last { None } else { traces.lines(&streams) })
    }

    /// Prints its last lines; false if there are none.
    pub(super) fn print(&self, lines: usize, printer: &mut Printer<'_>) -> Result<bool, Failure> {
        for _ in 1..TRIES {
            if let Some(question) = self.question(false)? {
                return print(question, lines, printer);
            }
            thread::sleep(PAUSE);
        }
        self.question(true)?.map_or(Ok(false), |question| print(question, lines, printer))
    }

    /// Prints the last lines of each earlier start that the journal still has.
    pub(super) fn print_previous(&self, log: &Log, lines: usize, printer: &mut Printer<'_>) -> Result<(), Failure> {
        let key = format!("{}@{}/{}", log.service, log.version, log.instance);
        let generations = self.generation.saturating_sub(PREVIOUS_MAX).max(1)..self.generation;
        let messages: Vec<String> = generations.map(|generation| first_line(&key, generation)).collect();
        if messages.is_empty() {
            return Ok(());
        }
        let options = ["--quiet", "--output=json", "--output-fields=MESSAGE,_STREAM_ID"].map(str::to_owned);
        let matches = messages.iter().map(|message| format!("MESSAGE={message}"));
        let identifier = format!("SYSLOG_IDENTIFIER={}", self.identifier);
        let answer = ask(&options.into_iter().chain(matches).chain([identifier]).collect::<Vec<_>>())?;
        let found: Vec<Value> = answer.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for message in messages {
            let newest = found.iter().rfind(|entry| entry["MESSAGE"] == message.as_str());
            let Some(stream) = newest.and_then(|entry| entry["_STREAM_ID"].as_str()) else { continue };
            printer.heading(message.trim_start_matches("starting "))?;
            let streams = stream_ids(stream);
            let question = Traces { cgroup: None, ..self.traces() }.lines(&streams);
            if let Some(question) = question {
                print(question, lines, printer)?;
            }
        }
        Ok(())
    }
}

/// Prints the last lines of an answer; false if there are none.
fn print(question: Vec<String>, lines: usize, printer: &mut Printer<'_>) -> Result<bool, Failure> {
    let (mut child, mut stdout, stderr) = start(command(&question).arg(format!("--lines={lines}")))?;
    let mut chunk = vec![0; CHUNK];
    let mut is_any = false;
    loop {
        let count = stdout.read(&mut chunk).map_err(|e| Failure::because(FAILED, "cannot read the journal", e))?;
        if count == 0 {
            break;
        }
        is_any = true;
        if let Err(failure) = printer.feed(&chunk[..count]) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failure);
        }
    }
    check(&mut child, stderr)?;
    printer.end_line()?;
    Ok(is_any)
}

/// A journalctl that goes on printing. It ends with this.
pub(super) struct Follower {
    pub(super) number: u64,
    child: Child,
    stderr: Option<ChildStderr>,
}

impl Follower {
    /// Starts at the last lines, or at the first. What it prints is sent along, with its number.
    pub(super) fn start(
        number: u64,
        question: &[String],
        lines: Option<usize>,
        chunks: mpsc::Sender<Chunk>,
    ) -> Result<Self, Failure> {
        let begin = lines.map_or_else(|| "--no-tail".to_owned(), |lines| format!("--lines={lines}"));
        let (child, stdout, stderr) = start(command(question).args(["--follow", &begin]))?;
        let failed = |e| Failure::because(FAILED, "cannot read the journal", e);
        let mut stdout = Receiver::from_owned_fd(stdout.into()).map_err(failed)?;
        tokio::spawn(async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                let count = stdout.read(&mut buffer).await.unwrap_or_default();
                if chunks.send((number, buffer[..count].to_vec())).await.is_err() || count == 0 {
                    return;
                }
            }
        });
        Ok(Self { number, child, stderr: Some(stderr) })
    }

    /// Says why it ended, which it never should.
    pub(super) fn ended(&mut self) -> Failure {
        let checked = self.stderr.take().map_or(Ok(()), |stderr| check(&mut self.child, stderr));
        checked.err().unwrap_or_else(|| Failure::told(FAILED, format!("{PROGRAM} has ended")))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(question: &[String]) -> Command {
    let mut command = Command::new(PROGRAM);
    // Its messages are shown as they are, beside ours, and are told apart by their words.
    command.env("LC_ALL", "C").args(question).stdin(Stdio::null());
    command
}

fn start(command: &mut Command) -> Result<(Child, ChildStdout, ChildStderr), Failure> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(not_run)?;
    match (child.stdout.take(), child.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok((child, stdout, stderr)),
        _ => Err(Failure::told(FAILED, format!("{PROGRAM} has no output"))),
    }
}

fn not_run(error: io::Error) -> Failure {
    let advice = "the log of this backend is in the journal of systemd, and that program reads it";
    match error.kind() {
        io::ErrorKind::NotFound => Failure::told(FAILED, format!("there is no `{PROGRAM}` in PATH")).advise(advice),
        _ => Failure::because(FAILED, format!("cannot run `{PROGRAM}`"), error).advise(advice),
    }
}

fn ask(question: &[String]) -> Result<String, Failure> {
    let (mut child, mut stdout, stderr) = start(&mut command(question))?;
    let mut answer = Vec::new();
    stdout.read_to_end(&mut answer).map_err(|e| Failure::because(FAILED, "cannot read the journal", e))?;
    check(&mut child, stderr)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Waits for its end; an error if it failed.
fn check(child: &mut Child, mut stderr: ChildStderr) -> Result<(), Failure> {
    let mut said = String::new();
    let _ = stderr.read_to_string(&mut said);
    let status = child.wait().map_err(|e| Failure::because(FAILED, format!("cannot wait for {PROGRAM}"), e))?;
    // That nothing matches is an exit code of 1 to some releases, and no words.
    if status.success() || said.trim().is_empty() && status.code() == Some(1) {
        return Ok(());
    }
    let said = said.lines().rfind(|line| !line.trim().is_empty()).map_or_else(|| status.to_string(), str::to_owned);
    Err(explain(&said))
}

/// What a failure of journalctl means.
fn explain(said: &str) -> Failure {
    if said.contains("permission") || said.contains("Permission") {
        return Failure::told(NOT_PERMITTED, format!("the journal may not be read: {said}")).advise(WHO_MAY);
    }
    Failure::told(FAILED, format!("{PROGRAM} failed: {said}"))
}

const WHO_MAY: &str = "root may read it, and members of the group `systemd-journal`";

/// Says that the journal has nothing of a backend.
pub(super) fn nothing(log: &Log) -> String {
    let unseen = if Uid::effective().is_root() { String::new() } else { format!(" that you may see: {WHO_MAY}") };
    format!("{}: the journal has nothing of it{unseen}", log.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_who_may_read_the_journal() {
        let told = |said: &str| match explain(said) {
            Failure::Told { code, error, advice } => format!("{code}: {error}\n{}", advice.unwrap_or_default()),
            other => format!("{other:?}"),
        };
        insta::assert_snapshot!(told("No journal files were opened due to insufficient permissions."), @"
        77: the journal may not be read: No journal files were opened due to insufficient permissions.
        root may read it, and members of the group `systemd-journal`
        ");
        insta::assert_snapshot!(told("Failed to add match"), @"1: journalctl failed: Failed to add match");
    }
}
