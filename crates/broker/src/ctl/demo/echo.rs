//! The demo's small daemon: answers each line with its pid and which start of it this is. Can be slow to get ready, and
//! crash at start as long as a file exists. Knows nothing of the broker.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

/// Echoes lines on a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "__echo")]
struct Arguments {
    /// Where to listen
    socket: PathBuf,
    /// Append a line for each start to this file
    #[arg(long)]
    starts: PathBuf,
    /// Listen only after so long
    #[arg(long, default_value_t = 0)]
    ready_after_ms: u64,
    /// Crash at start while this file exists
    #[arg(long)]
    fail_if_exists: Option<PathBuf>,
    /// The exit code of a crash at start
    #[arg(long, default_value_t = 7)]
    exit_code: u8,
}

pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    match serve(&arguments) {
        Ok(code) => code,
        Err(error) => {
            log(&format!("cannot serve: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> io::Result<ExitCode> {
    let start = record_start(&arguments.starts)?;
    log(&format!("start {start}, pid {}", std::process::id()));
    if let Some(fault) = arguments.fail_if_exists.as_deref().filter(|fault| fault.exists()) {
        log(&format!("fatal: {} is in the way", fault.display()));
        return Ok(ExitCode::from(arguments.exit_code));
    }
    thread::sleep(Duration::from_millis(arguments.ready_after_ms));
    let listener = UnixListener::bind(&arguments.socket)?;
    log("listening");
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || answer(&connection, start));
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(connection: &UnixStream, start: usize) -> io::Result<()> {
    let mut writer = connection;
    for line in BufReader::new(connection).lines() {
        writer.write_all(format!("{} {start} {}\n", std::process::id(), line?).as_bytes())?;
    }
    Ok(())
}

/// Appends this start to the file, and says which it is.
fn record_start(path: &Path) -> io::Result<usize> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(format!("{} {}\n", std::process::id(), now.as_micros()).as_bytes())?;
    Ok(fs::read_to_string(path)?.lines().count())
}

fn log(text: &str) {
    let _ = writeln!(io::stderr(), "echo: {text}");
}

/// One start of the daemon, as it recorded it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) pid: u32,
    /// Since 1970.
    pub(super) at: Duration,
}

/// Reads the starts that were recorded; a file that is not there is none.
pub(super) fn starts(path: &Path) -> Vec<Start> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let start = |line: &str| {
        let (pid, micros) = line.split_once(' ')?;
        Some(Start { pid: pid.parse().ok()?, at: Duration::from_micros(micros.parse().ok()?) })
    };
    text.lines().filter_map(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_is_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("starts");
        assert_eq!(starts(&path), []);
        assert_eq!(record_start(&path).expect("written"), 1);
        assert_eq!(record_start(&path).expect("written"), 2);
        let recorded = starts(&path);
        assert_eq!(recorded.len(), 2);
        assert_eq!(recorded[0].pid, std::process::id());
        assert!(recorded[0].at <= recorded[1].at);
    }
}
