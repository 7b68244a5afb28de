//! The broker's own log: the journal or stderr, or a rolling file when the configuration names a folder.

mod fields;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use self::fields::{IDENTIFIER, Journal};
use super::places::make_private;
use crate::config::{Log, LogFormat};
use crate::journald;
use crate::journald::native::{SOCKET, Sender};

/// The most lines that wait to be written, to a disk or a journal that hangs; what is more is lost. Memory is taken for
/// all of them from the beginning, 32 bytes each.
const LINES_MAX: usize = 2048;

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
    #[error("log level `{level}` is no filter: {why}")]
    Level { level: String, why: String },
}

/// Starts the log. What is still to be written is written when the guard goes.
pub(super) fn start(log: &Log) -> Result<WorkerGuard, LogError> {
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
    let (writer, guard) = match &log.directory {
        None => queue(io::stderr()),
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
            queue(file)
        }
    };
    let (log_to, lines) = (tracing_subscriber::registry().with(filter), fmt::layer().with_writer(writer));
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

fn journal() -> io::Result<(Journal, WorkerGuard)> {
    let lines = Arc::new(OnceLock::<ErrorCounter>::new());
    let counted = Arc::clone(&lines);
    let dropped = move || counted.get().map_or(0, ErrorCounter::dropped_lines);
    let (writer, guard) = queue(Sender::connect(Path::new(SOCKET), IDENTIFIER, dropped)?);
    let _ = lines.set(writer.error_counter());
    Ok((Journal { writer }, guard))
}

/// Has a thread of its own write, so that nobody waits for a disk, a terminal or a journal.
fn queue(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).finish(writer)
}
