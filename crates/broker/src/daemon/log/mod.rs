//! The broker's own log: the journal or stderr, or a rolling file when the configuration names a folder.

mod fields;
mod queue;

use std::io;
use std::path::{Path, PathBuf};

use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use self::fields::{IDENTIFIER, Journal};
pub(super) use self::queue::Guard;
use self::queue::Queue;
use super::places::make_private;
use crate::config::{Log, LogFormat};
use crate::journald;
use crate::journald::native::{SOCKET, Sender};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error("cannot make the folder of the log `{}`", .directory.display())]
    Folder {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the log in `{directory}`")]
    Directory {
        directory: String,
        #[source]
        source: tracing_appender::rolling::InitError,
    },
    #[error("there is no journal: nobody takes entries at `{SOCKET}`; log as text or json")]
    NoJournal(#[source] io::Error),
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
    #[error("log level `{level}` is no filter: {why}")]
    Level { level: String, why: String },
}

/// Starts the log. What is still to be written is written when the guard goes.
pub(super) fn start(log: &Log) -> Result<Guard, LogError> {
    let filter = Log::filter(&log.level).map_err(|why| LogError::Level { level: log.level.clone(), why })?;
    let to_stderr = log.directory.is_none();
    // Who was given a stream of the journal is read there; fields say more than a line of text.
    if log.format == Some(LogFormat::Journal) || log.format.is_none() && to_stderr && stderr_is_journal() {
        match journal() {
            Ok((journal, guard)) => {
                // A second subscriber in one process is a test's; the first one stays.
                let _ = tracing_subscriber::registry().with(filter).with(journal).try_init();
                return Ok(guard);
            }
            Err(error) if log.format.is_some() => return Err(LogError::NoJournal(error)),
            // It is out of reach from here, and the stream is not.
            Err(_) => {}
        }
    }
    let queue = Queue::default();
    let guard = match &log.directory {
        None => queue.start(io::stderr()),
        Some(directory) => {
            make_private(directory, None)
                .map_err(|source| LogError::Folder { directory: directory.clone(), source })?;
            let file = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix("brokerd")
                .filename_suffix("log")
                .max_log_files(log.keep)
                .build(directory)
                .map_err(|source| LogError::Directory { directory: directory.display().to_string(), source })?;
            queue.start(file)
        }
    };
    let guard = guard.map_err(LogError::Thread)?;
    let (log_to, lines) =
        (tracing_subscriber::registry().with(filter), fmt::layer().with_writer(move || queue.clone()));
    let lines = lines.with_target(false);
    let _ = match log.format {
        Some(LogFormat::Json) => log_to.with(lines.json().flatten_event(true)).try_init(),
        None | Some(LogFormat::Text | LogFormat::Journal) => {
            log_to.with(lines.with_ansi(to_stderr && io::IsTerminal::is_terminal(&io::stderr()))).try_init()
        }
    };
    Ok(guard)
}

/// Whether what is written to stderr ends up in the journal.
pub(super) fn stderr_is_journal() -> bool {
    journald::is_stream(io::stderr(), std::env::var_os("JOURNAL_STREAM").as_deref())
}

fn journal() -> io::Result<(Journal, Guard)> {
    let queue = Queue::default();
    let counted = queue.clone();
    let guard = queue.start(Sender::connect(Path::new(SOCKET), IDENTIFIER, move || counted.lost())?)?;
    Ok((Journal { queue }, guard))
}
