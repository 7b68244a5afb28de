//! How log lines are printed: as they are, or line by line with the backend's name, and harmless to a terminal.

use std::fmt::Display;
use std::io::{self, Write as _};

use crate::ctl::documents::Log;
use crate::ctl::output::{Console, FAILED, Failure, GOOD, STRONG, harmless, paint, stdout_failure};
use crate::ctl::tail::Tail;

/// A line longer than this is printed in pieces.
const LINE_MAX: usize = 64 << 10;

/// Prints the bytes of one log: as they are, or line by line where a prefix or a terminal asks for it.
pub(super) struct Printer<'a> {
    console: &'a Console,
    prefix: String,
    width: Option<usize>,
    line: Vec<u8>,
    chunk: Vec<u8>,
}

impl<'a> Printer<'a> {
    /// With a width, each line is prefixed with the backend's name, padded to it.
    pub(super) fn new(console: &'a Console, log: &Log, width: Option<usize>) -> Self {
        let prefix = width.map(|width| format!("{:width$} | ", log.name())).unwrap_or_default();
        Self { console, prefix, width, line: Vec::new(), chunk: Vec::new() }
    }

    pub(super) fn width(&self) -> Option<usize> {
        self.width
    }

    pub(super) fn heading(&mut self, what: impl Display) -> Result<(), Failure> {
        self.end_line()?;
        self.console.line(paint(STRONG, format!("==> {what} <==")))
    }

    pub(super) fn drain(&mut self, tail: &mut Tail) -> Result<(), Failure> {
        loop {
            let mut chunk = std::mem::take(&mut self.chunk);
            let read = tail.read(&mut chunk).map_err(|e| Failure::because(FAILED, "cannot read the log", e));
            let fed = read.and_then(|()| self.feed(&chunk));
            let is_empty = chunk.is_empty();
            self.chunk = chunk;
            fed?;
            if is_empty {
                return Ok(());
            }
        }
    }

    /// Prints what comes next.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        if !self.console.stdout_is_terminal && self.width.is_none() {
            return self.write(chunk);
        }
        let mut out = Vec::with_capacity(chunk.len());
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LINE_MAX {
                self.finish(&mut out);
            }
        }
        self.write(&out)
    }

    /// Ends a line that its writer has not ended.
    pub(super) fn end_line(&mut self) -> Result<(), Failure> {
        if self.line.is_empty() {
            return Ok(());
        }
        let mut out = Vec::new();
        self.finish(&mut out);
        self.write(&out)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        if self.console.stdout_is_terminal {
            if self.width.is_some() {
                out.extend_from_slice(paint(GOOD, &self.prefix).as_bytes());
            }
            out.extend_from_slice(shown(line).as_bytes());
        } else {
            out.extend_from_slice(self.prefix.as_bytes());
            out.extend_from_slice(line);
        }
        out.push(b'\n');
        self.line.clear();
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        if self.console.stdout_is_terminal {
            return self.console.print(String::from_utf8_lossy(bytes));
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(stdout_failure)
    }
}

/// A line as a terminal may see it: text, with everything else spelled out.
fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        text += &harmless(chunk.valid());
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_text_only() {
        assert_eq!(shown(b"a\x1b[2Jb\xff\r"), "a\\x1b[2Jb\\xff");
        assert_eq!(shown("grün\tja".as_bytes()), "grün\tja");
    }
}
