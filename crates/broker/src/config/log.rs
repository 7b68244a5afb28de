//! How the broker's own log is written, and where to.

use std::path::PathBuf;

/// The broker's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// `None` is the journal where stderr is a stream of it and no folder is named, and text elsewhere.
    pub(crate) format: Option<LogFormat>,
    /// A filter of `tracing-subscriber`, valid.
    pub(crate) level: String,
    /// Where the rolling file is; `None` is stderr, or the journal.
    pub(crate) directory: Option<PathBuf>,
    /// How many files are kept.
    pub(crate) keep: usize,
}

/// What the log is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of the journal of systemd, with fields.
    Journal,
}

impl LogFormat {
    pub(super) const WORDS: [(&str, Self); 3] =
        [("text", Self::Text), ("json", Self::Json), ("journal", Self::Journal)];
}
