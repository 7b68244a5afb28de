//! Text that a daemon wrote, made fit for a terminal and for one's own log.
//!
//! It keeps every letter of every language, and nothing that acts.

/// What stands for a character that was taken out.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Decodes the bytes as UTF-8 and replaces what would act on a terminal: control characters other than newline and tab,
/// and the marks that turn the direction of text. Of a CR LF only the LF remains.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    text.chars().map(|c| if acts(c) { REPLACEMENT } else { c }).collect()
}

/// As [`printable`], on one line: newlines and tabs become spaces.
pub(crate) fn printable_line(bytes: &[u8]) -> String {
    printable(bytes).replace(['\n', '\t'], " ")
}

fn acts(c: char) -> bool {
    let turns = matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && !matches!(c, '\n' | '\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_remains() {
        let cases: [(&[u8], &str); 6] = [
            (b"plain\ttext\n", "plain\ttext\n"),
            (b"\x1b[2Jgone\x07", "\u{fffd}[2Jgone\u{fffd}"),
            (b"dos\r\nover\rwritten\n", "dos\nover\u{fffd}written\n"),
            (b"broken \xff\xfe", "broken \u{fffd}\u{fffd}"),
            ("a\u{202e}b\u{9b}c".as_bytes(), "a\u{fffd}b\u{fffd}c"),
            ("Grüße 世界 ✓".as_bytes(), "Grüße 世界 ✓"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(printable(bytes), expected);
        }
        assert_eq!(printable_line(b"one\r\ntwo\tthree"), "one two three");
    }
}
