//! `brokerctl logs`: what backends wrote. The broker names the files and how the journal is searched; brokerctl reads both
//! itself.

mod follow;
mod journal;
mod printer;

use broker_proto::{AdminRequest, Selection};

use self::printer::Printer;
use super::args::{self, Global};
use super::documents::{self, Log};
use super::output::{Console, FAILED, Failure};
use super::session::{Session, in_words, selections};
use super::tail::Tail;

pub(super) async fn run(console: &Console, global: &Global, args: &args::Logs) -> Result<(), Failure> {
    let selections = selections(&args.filter.backends, &args.filter.instance)?;
    let session = match args.follow {
        true => Session::follow(console, global, &args.keeping).await?,
        false => Session::open(console, global).await?,
    };
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
    for log in &logs {
        let mut printer = Printer::new(console, log, width);
        if args.previous {
            print_previous(console, log, args.lines, &mut printer)?;
        }
        if !args.follow {
            print(console, log, args.lines, &mut printer)?;
        }
    }
    match args.follow {
        true => follow::follow(&session, &selections, logs, args.lines, width).await,
        false => Ok(()),
    }
}

/// Prints what earlier starts wrote last, and what is to come as well: the name of the newest.
fn print_previous(console: &Console, log: &Log, lines: usize, printer: &mut Printer<'_>) -> Result<(), Failure> {
    for path in &log.previous {
        printer.heading(path.display())?;
        match Tail::at_last_lines(path, lines) {
            Ok(mut tail) => printer.drain(&mut tail)?,
            Err(error) => console.note(format_args!("{}: {error}", path.display())),
        }
    }
    if let Some(journal) = &log.journal {
        journal.print_previous(log, lines, printer)?;
        printer.heading(format_args!("{}, generation {}", log.name(), journal.generation))?;
    }
    match &log.path {
        Some(path) => printer.heading(path.display()),
        None => printer.end_line(),
    }
}

/// Prints what the newest start wrote last.
fn print(console: &Console, log: &Log, lines: usize, printer: &mut Printer<'_>) -> Result<(), Failure> {
    if let Some(journal) = &log.journal {
        if !journal.print(lines, printer)? && lines > 0 {
            console.note(journal::nothing(log));
        }
        return Ok(());
    }
    if let Some(mut tail) = open(console, log, Some(lines)) {
        printer.drain(&mut tail)?;
    }
    // A line that was never ended, too.
    printer.end_line()
}

/// Opens a log's file: at its last lines, or at its beginning.
fn open(console: &Console, log: &Log, lines: Option<usize>) -> Option<Tail> {
    let path = log.path.as_deref()?;
    let opened = match lines {
        Some(lines) => Tail::at_last_lines(path, lines),
        None => Tail::at_start(path),
    };
    opened.map_err(|error| console.note(format_args!("{}: {error}", path.display()))).ok()
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
