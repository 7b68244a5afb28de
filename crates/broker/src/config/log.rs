//! How the broker's own log is written, and where to.

use std::path::PathBuf;

use tracing_subscriber::filter::{ParseError, Targets};

/// The broker's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// `None` is the journal where stderr is a stream of it and no folder is named, and text elsewhere.
    pub(crate) format: Option<LogFormat>,
    /// What [`Log::filter`] reads, valid.
    pub(crate) level: String,
    /// Where the rolling file is; `None` is stderr, or the journal.
    pub(crate) directory: Option<PathBuf>,
    /// How many files are kept.
    pub(crate) keep: usize,
}

impl Log {
    /// The filter that a level says: `info`, `warn,broker=debug`, or also `broker[{service}]=debug` for what has such a field.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) fn filter(level: &str) -> Result<Targets, String> {
        let directives: Vec<String> = level.split(',').map(directive).collect::<Result<_, _>>()?;
        directives.join(",").parse().map_err(|error: ParseError| error.to_string())
    }
}

/// One directive as [`Targets`] takes it, which would believe any text to be the name of a module.
fn directive(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("something is missing before or after a comma".to_owned());
    }
    let (module, rest) = text.split_at(text.find(['=', '[']).unwrap_or(text.len()));
    if let Some(strange) =
        module.chars().find(|&letter| !letter.is_alphanumeric() && !['-', ':', '_'].contains(&letter))
    {
        return Err(format!("`{strange}` is in no name of a module"));
    }
    if rest.starts_with('[') && !rest.starts_with("[{") {
        return Err("the broker's log has no spans, only modules and fields".to_owned());
    }
    // A list of fields came apart at its comma; and without a level all of it would be taken for a name.
    if rest.starts_with('[') && !rest.contains("}]=") {
        return Err("what has a field is written `module[{field}]=level`, with one field".to_owned());
    }
    // A module without a level is everything of it.
    Ok(if rest == "=" { module.to_owned() } else { text.to_owned() })
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

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[test]
    fn a_level_is_for_all_or_for_a_module() {
        let filter = Log::filter("warn, broker=debug").expect("a filter");
        assert_eq!(filter.default_level(), Some(LevelFilter::WARN));
        assert!(filter.would_enable("broker::daemon", &tracing::Level::DEBUG));
        assert!(!filter.would_enable("tokio", &tracing::Level::INFO));
        assert!(Log::filter("broker=").expect("a filter").would_enable("broker", &tracing::Level::TRACE));
        assert!(Log::filter("broker[{service}]=info").is_ok());
    }

    #[test]
    fn what_is_no_filter_is_said_to_be_none() {
        let why = |level: &str| Log::filter(level).expect_err("no filter");
        insta::assert_snapshot!(why("broker[session]=debug"), @"the broker's log has no spans, only modules and fields");
        insta::assert_snapshot!(why("broker[{a,b}]=debug"), @"what has a field is written `module[{field}]=level`, with one field");
        assert_eq!(why("broker[{a}]"), why("broker[{a,b}]=debug"));
        insta::assert_snapshot!(why("bro ker=debug"), @"` ` is in no name of a module");
        insta::assert_snapshot!(why("info,"), @"something is missing before or after a comma");
        insta::assert_snapshot!(why("broker[{service=redis}]=info"), @"invalid filter directive: too many '=' in filter directive, expected 0 or 1");
        insta::assert_snapshot!(why("broker=loud"), @r#"error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5"#);
    }
}
