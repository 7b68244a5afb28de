//! What a daemon wrote to the journal last, as evidence of why it ended: looked up by `journalctl`, in bounded time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, send};

use super::reading::{PROGRAM, Traces, stream_ids};
use super::stream::{Stream, memory_file, wait_read};
use crate::process::kernel::{pidfd_signal, reap, wait_ended};
use crate::process::log_file::tail_of;
use crate::process::spawn::{Command, resolve_program, spawn};

/// How long all of it may take, while those wait who are to be told why.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long journald may take to read what was written. Then the rest is looked for in vain.
const READ_PATIENCE: Duration = Duration::from_millis(300);

/// How long a program that was killed may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// The most that is read of an answer about streams.
const ANSWER_BYTES: u64 = 4096;

/// The last lines of a start, as printable text without a final newline; the broker's own first line is none of them.
///
/// `held` is the broker's own end of the stream, if it has one. Blocks; for a thread that may.
///
/// # Errors
/// The journal cannot be read, or not in time.
pub(crate) fn last_words(
    stream: &Stream,
    held: Option<Arc<OwnedFd>>,
    max_lines: usize,
    max_bytes: u64,
) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    if let Some(held) = held {
        // By this a line ends that its writer did not end, and an empty one is none. Once journald has read it, all that
        // was written before is in the journal.
        let _ = send(held.as_raw_fd(), b"\n", MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        wait_read(&held, READ_PATIENCE);
    }
    let Stream { identifier, first_line, writer, .. } = stream;
    let traces = Traces { identifier, first_line, writer: Some(*writer), pids: &[], cgroup: None };
    let answer = tail_of(ask(traces.streams(), deadline)?, usize::MAX, ANSWER_BYTES)?;
    let Some(mut question) = traces.lines(&stream_ids(&answer)) else { return Ok(String::new()) };
    // One more, for the first line may be among them.
    question.push(format!("--lines={}", max_lines + 1));
    let text = tail_of(ask(question, deadline)?, max_lines + 1, max_bytes)?;
    let lines: Vec<&str> = text.lines().filter(|line| *line != stream.first_line).collect();
    Ok(lines[lines.len().saturating_sub(max_lines)..].join("\n"))
}

/// Runs journalctl; what it printed.
fn ask(question: Vec<String>, deadline: Instant) -> io::Result<File> {
    let path = std::env::var_os("PATH");
    let program = resolve_program(PROGRAM.as_ref(), path.as_deref()).map_err(io::Error::other)?;
    run(program, question, deadline)
}

fn run(program: PathBuf, arguments: Vec<String>, deadline: Instant) -> io::Result<File> {
    let answer = Arc::new(memory_file()?);
    let silence: OwnedFd = File::options().write(true).open("/dev/null")?.into();
    let spawned = spawn(&Command {
        argv: std::iter::once(program.clone().into()).chain(arguments.into_iter().map(Into::into)).collect(),
        program,
        environment: Vec::new(),
        working_directory: PathBuf::from("/"),
        umask: 0o077,
        stdout: Arc::clone(&answer),
        stderr: Arc::new(silence),
        listen: Vec::new(),
        die_with_parent: true,
        record: None,
        cgroup: None,
        nofile_soft: None,
        nofile: None,
    })
    .map_err(io::Error::other)?;
    let in_time = wait_ended(spawned.pidfd.as_fd(), deadline.saturating_duration_since(Instant::now()));
    if !in_time {
        pidfd_signal(spawned.pidfd.as_fd(), Signal::SIGKILL)?;
        wait_ended(spawned.pidfd.as_fd(), KILL_PATIENCE);
    }
    let exit = reap(&spawned.pidfd)?;
    match exit {
        Some(exit) if in_time && exit.is_success() => Ok(File::from(answer.try_clone()?)),
        Some(exit) if in_time => Err(io::Error::other(format!("{PROGRAM} {exit}"))),
        _ => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{PROGRAM} took too long"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::as_broker;

    #[test]
    fn a_program_that_hangs_is_ended_in_time() {
        as_broker(|| {
            let sh = |script: &str, patience| {
                let arguments = vec!["-c".to_owned(), script.to_owned()];
                run("/bin/sh".into(), arguments, Instant::now() + patience)
            };
            let answer = sh("echo one; echo two >&2", Duration::from_secs(60)).expect("it ends well");
            assert_eq!(tail_of(answer, 9, 99).expect("readable"), "one");
            let failed = sh("exit 1", Duration::from_secs(60)).expect_err("it fails").to_string();
            assert_eq!(failed, "journalctl exited with code 1");
            let began = Instant::now();
            let error = sh("exec sleep 1000", Duration::from_millis(20)).expect_err("it hangs");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() < Duration::from_secs(30));
        });
    }
}
