//! `brokerctl events`: what happened to backends and processes, and what happens.

mod lines;

use std::io;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use broker_client::Error;
use broker_proto::{AdminRequest, Selection};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::sync::oneshot;

use super::args::{self, Global};
use super::documents::{self, Event, Subject};
use super::output::{CARE, Console, Failure, humane, paint};
use super::session::{Session, in_words, milliseconds, selections, selects};
use super::status::count;
use lines::Printer;

/// How many past events are shown unless the caller says otherwise.
const LINES: usize = 50;
/// How long the broker is asked to wait for something to happen before it is asked again.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(console: &Console, global: &Global, args: &args::Events) -> Result<(), Failure> {
    let selections = selections(&args.filter.backends, &args.filter.instance)?;
    let session = match args.follow {
        true => Session::follow(console, global, &args.keeping).await?,
        false => Session::open(console, global).await?,
    };
    let mut reader = Reader { session: &session, asked: common(&selections), selections, cursor: None };
    let mut past = reader.past().await?;
    if let Some(since) = args.since {
        let began = Timestamp::now().checked_sub(since).unwrap_or(Timestamp::MIN);
        past.retain(|(event, _)| event.time >= began);
    }
    let lines = args.lines.unwrap_or(if args.since.is_some() { usize::MAX } else { LINES });
    if past.is_empty() && !console.json && !console.quiet {
        console.note(nothing_yet(&reader.selections, args));
    }
    let shown = past.split_off(past.len().saturating_sub(lines));
    let mut printer = Printer::new(console, TimeZone::system());
    printer.align(shown.iter().map(|(event, _)| event), Timestamp::now());
    shown.iter().try_for_each(|(event, document)| printer.print(event, document))?;
    if !args.follow {
        return Ok(());
    }
    let follow = async {
        tokio::select! {
            result = reader.follow(&mut printer) => result,
            () = stdout_closed() => Err(Failure::StdoutClosed),
        }
    };
    match global.timeout {
        Some(timeout) => tokio::time::timeout(timeout, follow).await.unwrap_or(Ok(())),
        None => follow.await,
    }
}

/// The smallest selection that has all of these in it: one cursor for all of them keeps their events in order.
fn common(selections: &[Selection]) -> Selection {
    let same = |part: fn(&Selection) -> &Option<String>| {
        let first = selections.first().and_then(|selection| part(selection).clone());
        first.filter(|first| selections.iter().all(|selection| part(selection).as_ref() == Some(first)))
    };
    Selection {
        instance: same(|selection| &selection.instance),
        service: same(|selection| &selection.service),
        version_requirement: same(|selection| &selection.version_requirement),
    }
}

/// Waits until nobody can read what is printed any more.
async fn stdout_closed() {
    let (closed, is_closed) = oneshot::channel();
    // The thread ends with the process.
    thread::spawn(move || {
        let stdout = io::stdout();
        // Errors and hang-ups are told without being asked for.
        let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        while let Err(Errno::EINTR) | Ok(0) = poll(&mut watched, PollTimeout::NONE) {}
        let _ = closed.send(());
    });
    let _ = is_closed.await;
}

/// An event, understood, and as the broker wrote it.
type Read = (Event, Value);

/// Reads events in their order, each once.
struct Reader<'a> {
    session: &'a Session<'a>,
    selections: Vec<Selection>,
    /// What the broker is asked for, which may be more than what is selected.
    asked: Selection,
    cursor: Option<String>,
}

impl Reader<'_> {
    /// Everything that is kept.
    async fn past(&mut self) -> Result<Vec<Read>, Failure> {
        let mut past = Vec::new();
        loop {
            let document = self.session.admin("events", self.request(self.asked.clone(), None)).await?;
            match self.take(&document)? {
                None => break,
                Some(events) => past.extend(events),
            }
        }
        // Where one was asked for all, a name that nobody knows has not been noticed.
        for selection in self.selections.iter().filter(|_| self.selections.len() > 1) {
            if !past.iter().any(|(event, _): &Read| event.is_of(selection)) {
                let request = AdminRequest::Events { selection: selection.clone(), after: None, wait_ms: None };
                self.session.admin("events", request).await?;
            }
        }
        Ok(past)
    }

    async fn follow(&mut self, printer: &mut Printer<'_>) -> Result<(), Failure> {
        loop {
            let text = match self.session.client.admin(self.request(self.asked.clone(), Some(PATIENCE))).await {
                Ok(text) => text,
                // The broker is busy; what happens meanwhile is told to the next one who asks.
                Err(Error::Timeout { .. }) => continue,
                Err(Error::Disconnected { .. } | Error::GoingAway(_) | Error::Silent { .. })
                    if !self.session.is_kept =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let document = documents::parse(&text)?;
            let events = self.take(&document)?.unwrap_or_default();
            events.iter().try_for_each(|(event, document)| printer.print(event, document))?;
        }
    }

    fn request(&self, selection: Selection, wait: Option<Duration>) -> AdminRequest {
        AdminRequest::Events { selection, after: self.cursor.clone(), wait_ms: wait.map(milliseconds) }
    }

    /// Takes an answer: the events in it that are selected; `None` if there was nothing more.
    fn take(&mut self, document: &Value) -> Result<Option<Vec<Read>>, Failure> {
        let answer: documents::Events = documents::read(document)?;
        self.cursor = Some(answer.next);
        if answer.missed > 0 {
            let missed = count(answer.missed, "event", "events");
            self.session.console.note(paint(CARE, format!("{missed} came and went before they could be read")));
        }
        if answer.events.is_empty() {
            return Ok(None);
        }
        let mut events = Vec::new();
        for document in answer.events {
            let event: Event = documents::read(&document)?;
            if self.selections.iter().any(|selection| event.is_of(selection)) {
                events.push((event, document));
            }
        }
        Ok(Some(events))
    }
}

impl Event {
    fn is_of(&self, selection: &Selection) -> bool {
        match &self.subject {
            Subject::Backend(key) => selects(selection, &key.instance, &key.service, &key.version),
            // It has no name of a backend: whoever names one does not mean it.
            Subject::Process { .. } | Subject::Other {} => *selection == Selection::default(),
        }
    }
}

/// What is said where there is nothing to show.
fn nothing_yet(selections: &[Selection], args: &args::Events) -> String {
    let since = args.since.map(|since| format!(" in the last {}", humane(since)));
    let what = match (selections, since) {
        ([all], None) if *all == Selection::default() => "nothing has happened yet".to_owned(),
        ([all], Some(since)) if *all == Selection::default() => format!("nothing has happened{since}"),
        (some, since) => {
            let names: Vec<String> = some.iter().map(in_words).collect();
            format!("nothing is on record of {}{}", names.join(", "), since.unwrap_or_default())
        }
    };
    let then = match args.follow {
        true => "waiting for what will happen",
        false => "`brokerctl resolve SERVICE` starts a backend, `brokerctl events -f` shows what happens then",
    };
    format!("{what}: {then}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_names_are_read_by_one_cursor() {
        let select = |service: &str, instance: Option<&str>| Selection {
            service: Some(service.to_owned()),
            instance: instance.map(str::to_owned),
            version_requirement: None,
        };
        assert_eq!(common(&[select("a", Some("x"))]), select("a", Some("x")));
        assert_eq!(common(&[select("a", Some("x")), select("a", Some("y"))]), select("a", None));
        let of_instance = Selection { instance: Some("x".to_owned()), ..Selection::default() };
        assert_eq!(common(&[select("a", Some("x")), select("b", Some("x"))]), of_instance);
        assert_eq!(common(&[select("a", None), select("b", Some("x"))]), Selection::default());
    }
}
