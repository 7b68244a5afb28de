//! What brokerctl prints and how it ends: the streams, styles, humane durations, and the errors with their exit codes.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use broker_proto::Refusal;
use serde_json::Value;

use super::{args, refusal};

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const CARE: Style = AnsiColor::Yellow.on_default();
pub(super) const STRONG: Style = Style::new().bold();
pub(super) const FAINT: Style = Style::new().dimmed();

/// Exit code: something failed.
pub(super) const FAILED: u8 = 1;
/// Exit code: the command line is wrong.
pub(super) const USAGE: u8 = 2;
/// Exit code (`EX_UNAVAILABLE`): no broker, or refused for good.
pub(super) const UNAVAILABLE: u8 = 69;
/// Exit code (`EX_TEMPFAIL`): refused for now.
pub(super) const TRY_LATER: u8 = 75;
/// Exit code (`EX_NOPERM`): not permitted.
pub(super) const NOT_PERMITTED: u8 = 77;

/// Why a command ends without having done what it was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// The broker refused.
    Refused(Box<Refusal>),
    /// Something failed, with its exit code and what a person can do about it.
    Told { code: u8, error: Box<dyn Error + Send + Sync>, advice: Option<String> },
    /// Everything has been said; only the exit code is left.
    Silent(u8),
    /// The reader of stdout is gone, and with it the reason to go on.
    StdoutClosed,
}

impl Failure {
    /// A failure in one sentence.
    pub(super) fn told(code: u8, text: impl Into<String>) -> Self {
        Self::Told { code, error: text.into().into(), advice: None }
    }

    /// A failure with a source, in one sentence.
    pub(super) fn because(code: u8, text: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Told { code, error: Box::new(Because { text: text.into(), source: Box::new(source) }), advice: None }
    }

    /// The same with what to do about it.
    pub(super) fn advise(mut self, text: impl Into<String>) -> Self {
        if let Self::Told { advice, .. } = &mut self {
            *advice = Some(text.into());
        }
        self
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Because {
    text: String,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

impl From<broker_client::Error> for Failure {
    fn from(error: broker_client::Error) -> Self {
        match error {
            broker_client::Error::Refused(refusal) => Self::Refused(refusal),
            error => super::session::explain(error),
        }
    }
}

/// The streams, and how the caller wants them used.
#[derive(Debug)]
pub(super) struct Console {
    pub(super) json: bool,
    pub(super) quiet: bool,
    pub(super) verbose: bool,
    /// The one backend that the command asks for.
    pub(super) asked: Option<String>,
    pub(super) stdout_is_terminal: bool,
    pub(super) stderr_is_terminal: bool,
}

impl Console {
    pub(super) fn new(global: &args::Global) -> Self {
        match global.color {
            args::Color::Auto => anstream::ColorChoice::Auto,
            args::Color::Always => anstream::ColorChoice::Always,
            args::Color::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            asked: None,
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Prints a line to stdout.
    pub(super) fn line(&self, text: impl fmt::Display) -> Result<(), Failure> {
        self.print(format!("{text}\n"))
    }

    /// Prints to stdout.
    pub(super) fn print(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        stdout.write_all(text.as_ref().as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_failure)
    }

    /// Prints a JSON document to stdout, on one line.
    pub(super) fn document(&self, document: &Value) -> Result<(), Failure> {
        self.line(document)
    }

    /// Prints a line to stderr, for people: a word beside the result. Nobody may be reading; that is no error.
    pub(super) fn note(&self, text: impl fmt::Display) {
        let _ = writeln!(anstream::stderr().lock(), "{text}");
    }

    /// Prints why a command failed, and gives its exit code.
    pub(super) fn report(&self, failure: Failure) -> ExitCode {
        let code = match failure {
            Failure::StdoutClosed => return ExitCode::SUCCESS,
            Failure::Silent(code) => code,
            Failure::Refused(refused) => {
                if self.json {
                    let _ = self.document(&refusal::to_json(&refused));
                } else {
                    self.note(format_args!(
                        "{}{}",
                        error_prefix(),
                        refusal::for_people(&refused, self.asked.as_deref())
                    ));
                }
                refusal::exit_code(refused.code)
            }
            Failure::Told { code, error, advice } => {
                self.error(error.as_ref(), advice.as_deref());
                code
            }
        };
        ExitCode::from(code)
    }

    fn error(&self, error: &dyn Error, advice: Option<&str>) {
        let mut text = format!("{}{}", error_prefix(), chain(error));
        for line in advice.into_iter().flat_map(str::lines) {
            let _ = write!(text, "\n  {line}");
        }
        self.note(text);
    }
}

/// What a failed write to stdout means.
pub(super) fn stdout_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::StdoutClosed,
        _ => Failure::because(FAILED, "cannot write to stdout", error),
    }
}

fn error_prefix() -> String {
    format!("{STRONG}brokerctl: {STRONG:#}{BAD}error:{BAD:#} ")
}

/// An error with its sources, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
    text
}

/// The text in a style; what is no terminal gets the text alone.
pub(super) fn paint(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A duration as people say it: `340ms`, `1.2s`, `12s`, `3m12s`, `2h05m`, `3d4h`.
pub(super) fn humane(duration: Duration) -> String {
    let (millis, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        0 => format!("{millis}ms"),
        1..10 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// [`humane`], of milliseconds.
pub(super) fn humane_ms(milliseconds: u64) -> String {
    humane(Duration::from_millis(milliseconds))
}

/// The text with control characters shown instead of obeyed: what a daemon wrote must not drive a person's terminal.
pub(super) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(c),
            // What turns the direction of the text around it can make a line read as another one.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                let _ = match u32::from(c) {
                    code @ ..0x100 => write!(out, "\\x{code:02x}"),
                    code => write!(out, "\\u{{{code:x}}}"),
                };
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        let cases = [
            (0, "0ms"),
            (999, "999ms"),
            (1_250, "1.2s"),
            (12_900, "12s"),
            (192_000, "3m12s"),
            (7_500_000, "2h05m"),
            (273_600_000, "3d4h"),
        ];
        for (milliseconds, said) in cases {
            assert_eq!(humane_ms(milliseconds), said);
        }
    }

    #[test]
    fn a_daemons_text_cannot_drive_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\tc\u{9b}\u{202e}é"), "a\\x1b[31mb\tc\\x9b\\u{202e}é");
    }

    #[test]
    fn a_chain_says_each_cause_once() {
        let cause = io::Error::other("disk full");
        let middle = Because { text: "cannot write".to_owned(), source: Box::new(cause) };
        let top = Because { text: "no log".to_owned(), source: Box::new(middle) };
        assert_eq!(chain(&top), "no log: cannot write: disk full");
    }
}
