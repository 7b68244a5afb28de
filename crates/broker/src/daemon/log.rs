//! The broker's own log: stderr, or a rolling file when the configuration names a folder.

use std::io;
use std::path::PathBuf;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::places::make_private;
use crate::config::{Log, LogFormat};

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
    #[error("log level `{level}` is no filter")]
    Level {
        level: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Starts the log. What is still to be written is written when the guard goes.
pub(super) fn start(log: &Log) -> Result<WorkerGuard, LogError> {
    let filter =
        EnvFilter::try_new(&log.level).map_err(|source| LogError::Level { level: log.level.clone(), source })?;
    let (writer, guard) = match &log.directory {
        None => tracing_appender::non_blocking(io::stderr()),
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
            tracing_appender::non_blocking(file)
        }
    };
    let colours = log.directory.is_none() && io::IsTerminal::is_terminal(&io::stderr());
    subscribe(filter, log.format, colours, writer);
    Ok(guard)
}

fn subscribe<W>(filter: EnvFilter, format: LogFormat, colours: bool, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    // A second subscriber in one process is a test's; the first one stays.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(colours).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
