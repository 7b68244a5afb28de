//! `brokerctl logs -f`: what is written, as it is written, over restarts of backends and of the broker. What is read goes on
//! whether a broker runs or not; the broker only says where the next start writes to.

use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, Instant};

use broker_client::Error;
use broker_proto::{AdminRequest, Selection};
use tokio::sync::mpsc;

use super::journal::{Chunk, Follower, nothing};
use super::open;
use super::printer::Printer;
use crate::ctl::documents::{self, Log};
use crate::ctl::output::{Console, Failure, UNAVAILABLE};
use crate::ctl::session::Session;
use crate::ctl::tail::Tail;
use crate::ctl::watch::Watch;

/// How often the broker is asked again whether a new start writes to a new place, if no file system event says so
/// before.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How long a start that is over is still read from the journal, which may be a little behind.
const LINGER: Duration = Duration::from_secs(2);

/// How long the journal is silent once all that was written has come.
const SILENCE: Duration = Duration::from_millis(300);

/// How often a start is looked for in the journal.
const TRIES_MAX: u32 = 10;

/// Chunks that are read ahead of what is printed.
const CHUNKS_MAX: usize = 16;

/// What is read.
enum Text {
    Nothing,
    File(Tail),
    /// In the journal, which does not know of it yet. So many last lines are wanted of it, or all.
    Sought {
        lines: Option<usize>,
        tries: u32,
    },
    Journal(Follower),
}

/// One start's log and how it is printed.
struct Source<'a> {
    log: Log,
    text: Text,
    printer: Printer<'a>,
    /// Since when there is a newer start of the same backend.
    over_since: Option<Instant>,
}

impl<'a> Source<'a> {
    fn open(console: &Console, log: Log, printer: Printer<'a>, lines: Option<usize>) -> Self {
        let text = match (&log.journal, open(console, &log, lines)) {
            (Some(_), _) => Text::Sought { lines, tries: 0 },
            (None, Some(tail)) => Text::File(tail),
            (None, None) => Text::Nothing,
        };
        Self { log, text, printer, over_since: None }
    }

    fn drain(&mut self) -> Result<(), Failure> {
        match &mut self.text {
            Text::File(tail) => self.printer.drain(tail),
            Text::Nothing | Text::Sought { .. } | Text::Journal(_) => Ok(()),
        }
    }

    /// Prints what is left, a line that was never ended too.
    fn end(&mut self) -> Result<(), Failure> {
        self.drain()?;
        self.printer.end_line()
    }
}

/// All that is followed.
struct Sources<'a> {
    console: &'a Console,
    all: Vec<Source<'a>>,
    chunks: mpsc::Sender<Chunk>,
    /// The next follower's.
    number: u64,
}

impl<'a> Sources<'a> {
    /// Looks in the journal for what is not found there yet.
    fn seek(&mut self) -> Result<(), Failure> {
        for source in &mut self.all {
            let (&Text::Sought { lines, tries }, Some(journal)) = (&source.text, &source.log.journal) else { continue };
            let is_last = tries + 1 == TRIES_MAX;
            source.text = match journal.question(is_last)? {
                Some(question) => {
                    self.number += 1;
                    Text::Journal(Follower::start(self.number, &question, lines, self.chunks.clone())?)
                }
                None if is_last => {
                    self.console.note(nothing(&source.log));
                    Text::Nothing
                }
                None => Text::Sought { lines, tries: tries + 1 },
            };
        }
        Ok(())
    }

    /// Takes up where each backend writes to now.
    fn update(&mut self, logs: Vec<Log>) -> Result<(), Failure> {
        for log in logs {
            let known = self.all.iter_mut().rfind(|source| source.log.name() == log.name());
            let (width, starts) = match known {
                Some(source) => {
                    let starts = log.starts_after(&source.log);
                    if starts.is_empty() {
                        if log.is_on_record() {
                            source.log = log;
                        }
                        continue;
                    }
                    source.drain()?;
                    source.over_since = Some(Instant::now());
                    (source.printer.width(), starts)
                }
                None => ((!self.all.is_empty()).then_some(0), vec![log]),
            };
            let newest = starts.len() - 1;
            for (at, log) in starts.into_iter().enumerate() {
                let printer = Printer::new(self.console, &log, width);
                let mut source = Source::open(self.console, log, printer, None);
                source.drain()?;
                source.over_since = (at < newest).then(Instant::now);
                self.all.push(source);
            }
        }
        let is_over = |source: &Source<'_>| match source.text {
            Text::Journal(_) => source.over_since.is_some_and(|since| since.elapsed() > LINGER),
            Text::Nothing | Text::File(_) | Text::Sought { .. } => source.over_since.is_some(),
        };
        self.all.extract_if(.., |source| is_over(source)).try_for_each(|mut source| source.end())?;
        self.seek()
    }

    /// Prints what came from the journal.
    fn feed(&mut self, (number, bytes): Chunk) -> Result<(), Failure> {
        let is_it = |source: &&mut Source<'_>| matches!(&source.text, Text::Journal(f) if f.number == number);
        let Some(source) = self.all.iter_mut().find(is_it) else { return Ok(()) };
        match &mut source.text {
            Text::Journal(follower) if bytes.is_empty() => Err(follower.ended()),
            Text::Nothing | Text::File(_) | Text::Sought { .. } | Text::Journal(_) => source.printer.feed(&bytes),
        }
    }

    /// Prints what was written up to now.
    async fn finish(&mut self, read: &mut mpsc::Receiver<Chunk>) -> Result<(), Failure> {
        let until = Instant::now() + LINGER;
        let follows = self.all.iter().any(|source| matches!(source.text, Text::Journal(_)));
        while follows
            && Instant::now() < until
            && let Ok(Some(chunk)) = tokio::time::timeout(SILENCE, read.recv()).await
        {
            self.feed(chunk)?;
        }
        self.each(Source::end)
    }

    fn each(&mut self, does: impl FnMut(&mut Source<'a>) -> Result<(), Failure>) -> Result<(), Failure> {
        self.all.iter_mut().try_for_each(does)
    }
}

pub(super) async fn follow(
    session: &Session<'_>,
    selections: &[Selection],
    logs: Vec<Log>,
    lines: usize,
    width: Option<usize>,
) -> Result<(), Failure> {
    let console = session.console;
    let (chunks, mut read) = mpsc::channel(CHUNKS_MAX);
    let open = |log: Log| {
        let printer = Printer::new(console, &log, width);
        Source::open(console, log, printer, Some(lines))
    };
    let mut sources = Sources { console, all: logs.into_iter().map(open).collect(), chunks, number: 0 };
    sources.each(Source::drain)?;
    sources.seek()?;
    let mut watch = Watch::new();
    let mut ask_again = tokio::time::interval(ASK_AGAIN);
    ask_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // While the broker is away the answer is waited for, and what is written is printed.
    let mut asked: Option<Asked<'_>> = None;
    loop {
        for source in &sources.all {
            watch.add(source.log.path.as_deref());
        }
        let answer = async {
            match &mut asked {
                Some(answer) => answer.await,
                None => pending().await,
            }
        };
        tokio::select! {
            created = watch.changed() => {
                sources.each(Source::drain)?;
                if created {
                    asked = Some(Box::pin(ask_quietly(session, selections)));
                }
            }
            _ = ask_again.tick() => {
                sources.each(Source::drain)?;
                asked.get_or_insert_with(|| Box::pin(ask_quietly(session, selections)));
            }
            answer = answer => {
                asked = None;
                match answer {
                    Ok(logs) => sources.update(logs)?,
                    Err(Error::Refused(refusal)) => return Err(Failure::Refused(refusal)),
                    // The session is ending, which the next turn says, or the broker is busy.
                    Err(_) => {}
                }
            }
            Some(chunk) = read.recv() => sources.feed(chunk)?,
            error = session.client.closed() => {
                sources.finish(&mut read).await?;
                return Err(Failure::because(UNAVAILABLE, "the broker is gone", error));
            }
        }
    }
}

/// The broker's answer to come.
type Asked<'s> = Pin<Box<dyn Future<Output = Result<Vec<Log>, Error>> + 's>>;

async fn ask_quietly(session: &Session<'_>, selections: &[Selection]) -> Result<Vec<Log>, Error> {
    let mut logs = Vec::new();
    for selection in selections {
        let text = session.client.admin(AdminRequest::Logs { selection: selection.clone() }).await?;
        if let Ok(found) = serde_json::from_str::<documents::Logs>(&text) {
            logs.extend(found.logs);
        }
    }
    Ok(logs)
}
