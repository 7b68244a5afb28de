//! Tells what happens, with times, and keeps count of the statements that do not hold.

use std::fmt;
use std::time::{Duration, Instant};

use super::super::output::{BAD, Console, FAINT, Failure, GOOD, STRONG, paint};

/// Prints the story.
pub(super) struct Narrator<'a> {
    console: &'a Console,
    began: Instant,
    step: Instant,
    held: usize,
    broken: usize,
}

impl<'a> Narrator<'a> {
    pub(super) fn new(console: &'a Console) -> Self {
        let now = Instant::now();
        Self { console, began: now, step: now, held: 0, broken: 0 }
    }

    /// A headline; the step's clock begins anew.
    pub(super) fn step(&mut self, title: impl fmt::Display) -> Result<(), Failure> {
        self.step = Instant::now();
        self.console.line(format!("\n{}", paint(STRONG, title)))
    }

    /// The head of the two columns of times.
    pub(super) fn legend(&self) -> Result<(), Failure> {
        self.console.line(paint(FAINT, format!("{:>9} {:>9}", "since", "since the")))?;
        self.console.line(paint(FAINT, format!("{:>9} {:>9}", "the start", "step")))
    }

    /// Something that was done or seen.
    pub(super) fn say(&self, text: impl fmt::Display) -> Result<(), Failure> {
        self.at_time(format_args!("    {text}"))
    }

    /// A statement with the result of its measurement.
    pub(super) fn state(&mut self, holds: bool, text: impl fmt::Display) -> Result<(), Failure> {
        if holds {
            self.held += 1;
            self.at_time(format_args!("{} {text}", paint(GOOD, "ok ")))
        } else {
            self.broken += 1;
            self.at_time(format_args!("{} {text}", paint(BAD, "NOT")))
        }
    }

    /// A command as a person would type it.
    pub(super) fn command(&self, line: &str) -> Result<(), Failure> {
        self.at_time(format_args!("{} {}", paint(FAINT, "  $"), paint(STRONG, format!("brokerctl {line}"))))
    }

    /// What a command printed.
    pub(super) fn quote(&self, text: &str) -> Result<(), Failure> {
        for line in text.lines() {
            self.console.line(format!("{:25}{} {line}", "", paint(FAINT, "|")).trim_end())?;
        }
        Ok(())
    }

    /// A line without times.
    pub(super) fn plainly(&self, text: impl fmt::Display) -> Result<(), Failure> {
        self.console.line(text)
    }

    fn at_time(&self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        let times = format!("{:>6} ms {:>6} ms", millis(self.began.elapsed()), millis(self.step.elapsed()));
        self.console.line(format!("{}  {text}", paint(FAINT, times)))
    }

    pub(super) fn all_held(&self) -> bool {
        self.broken == 0
    }

    /// How many statements held, and in what time.
    pub(super) fn summary(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64();
        match self.broken {
            0 => paint(GOOD, format!("All {} statements held, in {seconds:.1} s.", self.held)),
            broken => paint(BAD, format!("{broken} of {} statements did not hold.", self.held + broken)),
        }
    }
}

/// Milliseconds, whole.
pub(super) fn millis(duration: Duration) -> u128 {
    duration.as_millis()
}
