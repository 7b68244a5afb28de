//! What is wrong with a file, said to the person who wrote it.
//!
//! Owns the shape and the wording of positions, quotes and spelling suggestions. Knows no key and reads nothing.

use std::fmt;
use std::path::PathBuf;

/// The longest piece of a file that a message repeats, in characters. A message stays on a line or two.
const QUOTE_MAX: usize = 60;

/// Whether a file with the problem can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// The file is used as it is; the person should look.
    Warning,
    /// What the file defines is not loaded.
    Error,
}

/// A place in a file: both numbers count from 1, the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Position {
    /// Finds the position of a byte offset; an offset past the end is the end.
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let boundary = (0..=offset.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
        let before = &text[..boundary];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

/// One problem. Its text is complete without the key, which is there for machine output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    /// The file or directory.
    pub(crate) file: PathBuf,
    /// `None` if it concerns the file as a whole.
    pub(crate) position: Option<Position>,
    /// The key with its table, `lifecycle.stop_signal`.
    pub(crate) key: Option<String>,
    pub(crate) message: String,
}

impl Problem {
    /// An error that concerns the file as a whole.
    pub(crate) fn error(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, file: file.into(), position: None, key: None, message: message.into() }
    }

    /// A warning that concerns the file as a whole.
    pub(crate) fn warning(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(file, message) }
    }
}

/// `FILE:LINE:COLUMN: MESSAGE`, the form that editors jump to.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if self.severity == Severity::Warning {
            f.write_str(" warning:")?;
        }
        f.write_str(" ")?;
        // A control character in a name must not reach a terminal.
        self.message.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_debug()),
            false => write!(f, "{c}"),
        })
    }
}

/// Quotes a piece of a file: on one line, and shortened if it is long.
pub(crate) fn quoted(text: &str) -> String {
    let mut start: String = text.chars().take(QUOTE_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_MAX).is_some() {
        start.push('…');
    }
    format!("`{}`", start.replace("\\\"", "\"").replace("\\'", "'"))
}

/// Joins names as people list them: `a`, `b` and `c`.
pub(crate) fn listed(names: impl IntoIterator<Item = impl fmt::Display>, last: &str) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    match names.split_last() {
        Some((end, start)) if !start.is_empty() => format!("{} {last} {end}", start.join(", ")),
        _ => names.concat(),
    }
}

/// `: write ["a", "b"]`, or nothing if that would be long.
pub(crate) fn example(words: &[&str]) -> String {
    match words.iter().map(|word| word.len()).sum::<usize>() <= 2 * QUOTE_MAX {
        true => format!(": write {words:?}"),
        false => String::new(),
    }
}

/// Finds what a person most likely meant: the nearest candidate, if it is near or begins so.
fn likely<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let normal = |text: &str| text.to_lowercase().replace(['-', ' '], "_").replace(['[', ']'], "");
    if word.len() > QUOTE_MAX {
        return None;
    }
    let word = normal(word);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let target = normal(candidate);
            let distance = strsim::damerau_levenshtein(&word, &target);
            let begins = word.len() >= 3 && target.starts_with(&word);
            (distance <= (target.chars().count() / 3).max(1) || begins).then_some((distance, candidate))
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `, did you mean `x`?`, or nothing.
pub(crate) fn suggestion<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<String> {
    likely(word, candidates).map(|candidate| format!(", did you mean `{candidate}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_lines_and_characters() {
        let text = "a\näöü = 1\r\nlast";
        let of = |offset| {
            let Position { line, column } = Position::of(text, offset);
            (line, column)
        };
        assert_eq!(of(0), (1, 1));
        assert_eq!(of(2), (2, 1));
        assert_eq!(of(3), (2, 1), "inside a character");
        assert_eq!(of(text.find('=').expect("there")), (2, 5));
        assert_eq!(of(10_000), (3, 5), "past the end");
        assert_eq!(Position::of("", 0), Position { line: 1, column: 1 });
    }

    #[test]
    fn the_likely_spelling_is_near() {
        let keys = ["command", "version", "keep", "max_bytes", "description", "port", "path"];
        for (word, meant) in [
            ("comand", Some("command")),
            ("Command", Some("command")),
            ("max-bytes", Some("max_bytes")),
            ("prot", Some("port")),
            ("desc", Some("description")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(likely(word, keys), meant, "{word}");
        }
    }

    #[test]
    fn a_quote_stays_on_one_short_line() {
        assert_eq!(quoted("a\nb\0"), "`a\\nb\\0`");
        assert_eq!(quoted("say \"it's\""), "`say \"it's\"`");
        assert_eq!(quoted(&"ä".repeat(200)).chars().count(), QUOTE_MAX + 3);
    }

    #[test]
    fn names_are_listed_as_people_do() {
        assert_eq!(listed(["a"], "or"), "a");
        assert_eq!(listed(["a", "b", "c"], "or"), "a, b or c");
        assert_eq!(listed([] as [&str; 0], "or"), "");
    }
}
