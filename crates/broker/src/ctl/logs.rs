//! `brokerctl logs`: what backends wrote. The broker names the files; brokerctl reads them itself.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use broker_proto::{AdminRequest, Selection};

use super::args::{self, Global};
use super::documents::{self, Log};
use super::output::{Console, FAILED, Failure, GOOD, STRONG, UNAVAILABLE, harmless, paint, stdout_failure};
use super::session::{Session, in_words, selections};
use super::tail::Tail;
use super::watch::Watch;

/// How often the broker is asked again whether a new start writes to a new file, if no file system event says so
/// before.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A line longer than this is printed in pieces.
const LINE_MAX: usize = 64 << 10;

pub(super) async fn run(console: &Console, global: &Global, args: &args::Logs) -> Result<(), Failure> {
    let selections = selections(&args.filter.backends, &args.filter.instance)?;
    let session = Session::open(console, global).await?;
    let logs = ask(&session, &selections).await?;
    if console.json && !args.follow {
        return Ok(());
    }
    if logs.is_empty() && !args.follow {
        let asked: Vec<String> = selections.iter().map(in_words).collect();
        return Err(Failure::told(FAILED, format!("no logs: no backend is {}", asked.join(", ")))
            .advise("`brokerctl status` shows what there is"));
    }
    let width = logs.iter().map(|log| log.name().len()).max().filter(|_| logs.len() > 1);
    let mut sources = Vec::new();
    for log in logs {
        let mut printer = Printer::new(console, &log, width);
        for path in log.previous.iter().filter(|_| args.previous) {
            printer.heading(path)?;
            match Tail::at_last_lines(path, args.lines) {
                Ok(mut tail) => printer.drain(&mut tail)?,
                Err(error) => console.note(format_args!("{}: {error}", path.display())),
            }
        }
        if let (true, Some(path)) = (args.previous, &log.path) {
            printer.heading(path)?;
        }
        sources.push(Source::open(console, log, printer, Some(args.lines)));
    }
    for source in &mut sources {
        source.drain()?;
    }
    if args.follow {
        follow(&session, &selections, sources).await
    } else {
        sources.iter_mut().try_for_each(Source::end)
    }
}

/// Asks which files there are; with `--json` that is what is printed.
async fn ask(session: &Session<'_>, selections: &[Selection]) -> Result<Vec<Log>, Failure> {
    let mut logs: Vec<Log> = Vec::new();
    let mut all = Vec::new();
    for selection in selections {
        let mut document = session.admin("logs", AdminRequest::Logs { selection: selection.clone() }).await?;
        let found: documents::Logs = documents::read(&document)?;
        for (at, log) in found.logs.into_iter().enumerate() {
            if !logs.contains(&log) {
                all.push(document["logs"][at].take());
                logs.push(log);
            }
        }
    }
    if session.console.json {
        session.console.document(&serde_json::json!({ "logs": all }))?;
    }
    Ok(logs)
}

/// One backend's log and how it is printed.
struct Source<'a> {
    log: Log,
    tail: Option<Tail>,
    printer: Printer<'a>,
}

impl<'a> Source<'a> {
    /// Opens the log's file: at its last lines, or at its beginning.
    fn open(console: &Console, log: Log, printer: Printer<'a>, lines: Option<usize>) -> Self {
        let tail = log.path.as_deref().and_then(|path| {
            let opened = match lines {
                Some(lines) => Tail::at_last_lines(path, lines),
                None => Tail::at_start(path),
            };
            opened.map_err(|error| console.note(format_args!("{}: {error}", path.display()))).ok()
        });
        Self { log, tail, printer }
    }

    fn drain(&mut self) -> Result<(), Failure> {
        self.tail.as_mut().map_or(Ok(()), |tail| self.printer.drain(tail))
    }

    /// Prints what is left, a line that was never ended too.
    fn end(&mut self) -> Result<(), Failure> {
        self.drain()?;
        self.printer.end_line()
    }
}

async fn follow(session: &Session<'_>, selections: &[Selection], mut sources: Vec<Source<'_>>) -> Result<(), Failure> {
    let console = session.console;
    let mut watch = Watch::new();
    let mut ask_again = tokio::time::interval(ASK_AGAIN);
    ask_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        for source in &sources {
            watch.add(source.log.path.as_deref());
        }
        let created = tokio::select! {
            created = watch.changed() => created,
            _ = ask_again.tick() => true,
            _ = session.client.closed() => {
                sources.iter_mut().try_for_each(Source::end)?;
                return Err(Failure::told(UNAVAILABLE, "the broker is gone"));
            }
        };
        sources.iter_mut().try_for_each(Source::drain)?;
        if !created {
            continue;
        }
        let asked = match ask_quietly(session, selections).await {
            Ok(logs) => logs,
            Err(broker_client::Error::Refused(refusal)) => return Err(Failure::Refused(refusal)),
            // The session is ending, which the next turn says.
            Err(_) => continue,
        };
        for log in asked {
            let known = sources.iter_mut().find(|source| source.log.name() == log.name());
            match known {
                Some(source) if source.log.path == log.path => {}
                Some(source) => {
                    source.end()?;
                    let printer = Printer::new(console, &log, source.printer.width());
                    *source = Source::open(console, log, printer, None);
                    source.drain()?;
                }
                None => {
                    let printer = Printer::new(console, &log, (!sources.is_empty()).then_some(0));
                    let mut source = Source::open(console, log, printer, None);
                    source.drain()?;
                    sources.push(source);
                }
            }
        }
    }
}

async fn ask_quietly(session: &Session<'_>, selections: &[Selection]) -> Result<Vec<Log>, broker_client::Error> {
    let mut logs = Vec::new();
    for selection in selections {
        let text = session.client.admin(AdminRequest::Logs { selection: selection.clone() }).await?;
        if let Ok(found) = serde_json::from_str::<documents::Logs>(&text) {
            logs.extend(found.logs);
        }
    }
    Ok(logs)
}

/// Prints the bytes of one log: as they are, or line by line where a prefix or a terminal asks for it.
struct Printer<'a> {
    console: &'a Console,
    prefix: String,
    width: Option<usize>,
    line: Vec<u8>,
    chunk: Vec<u8>,
}

impl<'a> Printer<'a> {
    /// With a width, each line is prefixed with the backend's name, padded to it.
    fn new(console: &'a Console, log: &Log, width: Option<usize>) -> Self {
        let prefix = width.map(|width| format!("{:width$} | ", log.name())).unwrap_or_default();
        Self { console, prefix, width, line: Vec::new(), chunk: Vec::new() }
    }

    fn width(&self) -> Option<usize> {
        self.width
    }

    fn heading(&mut self, path: &Path) -> Result<(), Failure> {
        self.end_line()?;
        self.console.line(paint(STRONG, format!("==> {} <==", path.display())))
    }

    fn drain(&mut self, tail: &mut Tail) -> Result<(), Failure> {
        loop {
            let mut chunk = std::mem::take(&mut self.chunk);
            tail.read(&mut chunk).map_err(|e| Failure::because(FAILED, "cannot read the log", e))?;
            self.chunk = chunk;
            if self.chunk.is_empty() {
                return Ok(());
            }
            if self.console.stdout_is_terminal || self.width.is_some() {
                self.lines()?;
            } else {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&self.chunk).and_then(|()| stdout.flush()).map_err(stdout_failure)?;
            }
        }
    }

    fn lines(&mut self) -> Result<(), Failure> {
        let chunk = std::mem::take(&mut self.chunk);
        let mut out = Vec::with_capacity(chunk.len());
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LINE_MAX {
                self.finish(&mut out);
            }
        }
        self.chunk = chunk;
        self.write(&out)
    }

    /// Ends a line that its writer has not ended.
    fn end_line(&mut self) -> Result<(), Failure> {
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
