//! The record of what happened to backends and durable processes, and those who wait for more of it.
//!
//! Owns how much is kept, the cursors, and the waits. What is worth recording is decided in `core`.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use broker_proto::{Code, FRAME_MAX, ProcessId, Refusal, RequestId, Selection, ServerMessage};
use jiff::Timestamp;
use serde_json::json;
use tokio::task::spawn_local;

use super::admin::Selected;
use super::driver::Driver;
use super::hosted::Task;
use super::session::{Session, SessionId};
use super::{processes, report};
use crate::core::ById;
use crate::core::backend::{Happening, Ticket};
use crate::core::registry::{BackendId, BackendKey};
use crate::services::problem::quoted;

/// How many events are kept. A good start leaves three and a crash with its retry and refusal ten, so this is the last
/// hundred incidents. Most take some 300 bytes, and the few with a daemon's last words some 5 KiB: all together stay
/// below 5 MiB, whatever happens.
const KEPT_MAX: usize = 1000;

/// The longest reason of a failure that is kept, in bytes. Only the paths of a service file make a longer one.
const REASON_MAX: usize = 4096;

/// The most that the events of one answer may take, in bytes: what a frame has, less the words around them.
const ANSWER_MAX: usize = FRAME_MAX - 1024;

/// One thing that happened.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// Counts up from 1 in the life of this broker.
    pub(super) number: u64,
    pub(super) time: Timestamp,
    pub(super) what: What,
}

/// To whom it happened, and what.
#[derive(Debug, Clone)]
pub(super) enum What {
    Backend {
        key: BackendKey,
        generation: u64,
        happening: Happening,
        /// Its main process at the time.
        pid: Option<i32>,
        /// Where it listened, or was about to.
        endpoint: Option<String>,
    },
    Process {
        id: ProcessId,
        happening: processes::Happening,
    },
}

impl What {
    /// Whether a selection includes it. A durable process is selected by asking for everything.
    fn is_of(&self, selected: &Selected) -> bool {
        match self {
            Self::Backend { key, .. } => selected.includes(key),
            Self::Process { .. } => selected.is_everything(),
        }
    }
}

/// What happened last, and who waits for what happens next.
pub(super) struct Events {
    /// Names the life of this broker in cursors, so that one of another life is seen to be foreign.
    life: String,
    kept: VecDeque<Event>,
    /// How many there have been, which is the number of the newest.
    count: u64,
    waits: ById<Ticket, Wait>,
}

/// One who waits for more.
struct Wait {
    session: SessionId,
    request_id: RequestId,
    selected: Selected,
    /// Nothing of interest happened up to this number.
    after: u64,
    /// Ends the wait when its time has passed.
    _over: Task,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// Each a JSON document, the oldest first.
    events: Vec<String>,
    /// The number of the last one that was looked at.
    next: u64,
    /// How many in the range are not kept any more.
    missed: u64,
}

impl Page {
    /// Whether there is nothing to tell, not even that something was missed.
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.missed == 0
    }
}

impl Events {
    pub(super) fn new() -> Self {
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let life = format!("{:x}-{:x}", std::process::id(), began.as_nanos());
        Self { life, kept: VecDeque::new(), count: 0, waits: ById::default() }
    }

    fn file(&mut self, mut event: Event) {
        if let What::Backend { happening: Happening::Failed { refusal }, .. } = &mut event.what {
            shorten(&mut refusal.reason);
        }
        self.count = event.number;
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
    }

    fn cursor(&self, number: u64) -> String {
        format!("{}.{number}", self.life)
    }

    /// The number that a cursor names: the first of all, if it is of another life.
    fn after(&self, cursor: &str) -> Result<u64, Box<Refusal>> {
        let malformed = || {
            let reason = format!("{} is no cursor that a broker gave out", quoted(cursor));
            Box::new(Refusal::new(Code::Malformed, reason))
        };
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (life, number) = cursor.rsplit_once('.').ok_or_else(malformed)?;
        let number: u64 = number.parse().map_err(|_| malformed())?;
        match life.split_once('-') {
            Some((pid, began)) if is_hex(pid) && is_hex(began) && life != self.life => Ok(0),
            Some(_) if life == self.life && number <= self.count => Ok(number),
            _ => Err(malformed()),
        }
    }

    /// The events after a number, as many as an answer can carry.
    fn page(&self, after: Option<u64>, selected: &Selected) -> Page {
        let dropped = self.kept.front().map_or(0, |oldest| oldest.number - 1);
        let missed = after.map_or(0, |after| dropped.saturating_sub(after));
        let after = after.unwrap_or(0).max(dropped);
        let mut page = Page { events: Vec::new(), next: after, missed };
        let mut bytes = 0;
        let newer = self.kept.iter().skip(usize::try_from(after - dropped).unwrap_or(usize::MAX));
        for event in newer {
            if event.what.is_of(selected) {
                let text = report::event(event).to_string();
                bytes += text.len() + 1;
                if bytes > ANSWER_MAX && !page.events.is_empty() {
                    return page;
                }
                page.events.push(text);
            }
            page.next = event.number;
        }
        page
    }

    fn knows(&self, selected: &Selected) -> bool {
        self.kept.iter().any(|event| event.what.is_of(selected))
    }

    /// Forgets one who waits no longer.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.waits.remove(&ticket);
    }
}

fn shorten(text: &mut String) {
    if text.len() > REASON_MAX {
        let end = (0..=REASON_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

impl Driver {
    /// Puts down what happened, and tells those who wait for it.
    pub(super) fn record(&mut self, id: BackendId, generation: u64, happening: Happening) {
        let Some((key, _)) = self.registry.get(id) else { return };
        let running = self.hosted.get(&id).and_then(|hosted| hosted.running.as_ref());
        let running = running.filter(|running| running.generation == generation);
        let what = What::Backend {
            key: key.clone(),
            generation,
            happening,
            pid: running.map(|running| running.main.pid.as_raw()),
            endpoint: running.map(|running| running.endpoint.to_string()),
        };
        self.put_down(what);
    }

    /// The same for a durable process.
    pub(super) fn record_process(&mut self, id: ProcessId, happening: processes::Happening) {
        self.put_down(What::Process { id, happening });
    }

    fn put_down(&mut self, what: What) {
        let event = Event { number: self.events.count + 1, time: Timestamp::now(), what };
        let mut interested = Vec::new();
        for (ticket, wait) in &mut self.events.waits {
            if event.what.is_of(&wait.selected) {
                interested.push(*ticket);
            } else {
                wait.after = event.number;
            }
        }
        self.events.file(event);
        // A broker that leaves answers once all its backends have been told to end.
        if self.leaving.is_none() {
            interested.into_iter().for_each(|ticket| self.wait_is_over(ticket));
        }
    }

    /// Answers with what there is, or waits for more if there is nothing.
    pub(super) fn report_events(
        &mut self,
        session: &Session,
        request_id: RequestId,
        selection: &Selection,
        after: Option<&str>,
        wait_ms: Option<u64>,
    ) -> Result<(), Box<Refusal>> {
        let selected = Selected::parse(selection)?;
        let after = after.map(|cursor| self.events.after(cursor)).transpose()?;
        if after.is_none() && !self.events.knows(&selected) {
            self.select(selection)?;
        }
        let page = self.events.page(after, &selected);
        let patience = wait_ms.map(Duration::from_millis).filter(|wait| !wait.is_zero());
        match patience {
            Some(patience) if page.is_empty() && self.leaving.is_none() => {
                let ticket = Ticket(self.number());
                self.file_request(session.id, request_id, ticket)?;
                let driver = self.me.clone();
                let over = Task(spawn_local(async move {
                    tokio::time::sleep(patience).await;
                    if let Some(driver) = driver.upgrade() {
                        driver.borrow_mut().wait_is_over(ticket);
                    }
                }));
                let wait = Wait { session: session.id, request_id, selected, after: page.next, _over: over };
                self.events.waits.insert(ticket, wait);
            }
            _ => self.answer_events(session, request_id, &page),
        }
        Ok(())
    }

    /// Answers one who waits.
    fn wait_is_over(&mut self, ticket: Ticket) {
        let Some(wait) = self.events.waits.remove(&ticket) else { return };
        self.unfile_request(wait.session, wait.request_id, ticket);
        if let Some(session) = self.session(wait.session) {
            let page = self.events.page(Some(wait.after), &wait.selected);
            self.answer_events(&session, wait.request_id, &page);
        }
    }

    /// Answers all who wait.
    pub(super) fn end_waits(&mut self) {
        let all: Vec<Ticket> = self.events.waits.keys().copied().collect();
        all.into_iter().for_each(|ticket| self.wait_is_over(ticket));
    }

    fn answer_events(&self, session: &Session, request_id: RequestId, page: &Page) {
        let next = json!(self.events.cursor(page.next));
        // The events are text already: their length had to be known.
        let json = format!(r#"{{"events":[{}],"missed":{},"next":{next}}}"#, page.events.join(","), page.missed);
        session.send(&ServerMessage::AdminReply { request_id, json }, None);
    }
}

#[cfg(test)]
mod tests {
    use broker_proto::{InstanceName, ServiceName};
    use serde_json::Value;

    use super::*;

    fn selected(service: Option<&str>) -> Selected {
        let service = service.map(str::to_owned);
        Selected::parse(&Selection { service, ..Selection::default() }).expect("a name")
    }

    fn file(events: &mut Events, service: &str, happening: Happening) {
        let key = BackendKey {
            instance: InstanceName::default(),
            service: ServiceName::parse(service).expect("a name"),
            version: semver::Version::new(1, 0, 0),
        };
        let number = events.count + 1;
        let time = Timestamp::UNIX_EPOCH;
        let what = What::Backend { key, generation: 1, happening, pid: None, endpoint: None };
        events.file(Event { number, time, what });
    }

    fn numbers(page: &Page) -> Vec<u64> {
        let number = |text: &String| serde_json::from_str::<Value>(text).expect("JSON")["number"].as_u64();
        page.events.iter().map(|text| number(text).expect("numbered")).collect()
    }

    #[test]
    fn the_last_thousand_are_kept_and_those_missed_are_counted() {
        let mut events = Events::new();
        assert_eq!(events.page(None, &selected(None)), Page { events: Vec::new(), next: 0, missed: 0 });
        for _ in 0..KEPT_MAX + 5 {
            file(&mut events, "x", Happening::Stopped);
        }
        assert_eq!(events.kept.len(), KEPT_MAX);
        let all = events.page(None, &selected(None));
        assert_eq!(numbers(&all), (6..=1005).collect::<Vec<_>>());
        assert_eq!((all.next, all.missed), (1005, 0), "nothing is missed by one who asks for what is kept");
        let late = events.page(Some(2), &selected(None));
        assert_eq!((late.events.len(), late.missed), (KEPT_MAX, 3));
        let rest = events.page(Some(1003), &selected(None));
        assert_eq!((numbers(&rest), rest.next, rest.missed), (vec![1004, 1005], 1005, 0));
        assert_eq!(events.page(Some(1005), &selected(None)), Page { events: Vec::new(), next: 1005, missed: 0 });
    }

    #[test]
    fn a_selection_is_read_on_from_behind_what_it_leaves_out() {
        let mut events = Events::new();
        for service in ["a", "b", "a", "b"] {
            file(&mut events, service, Happening::Stopped);
        }
        let page = events.page(None, &selected(Some("a")));
        assert_eq!((numbers(&page), page.next), (vec![1, 3], 4));
        assert!(events.knows(&selected(Some("b"))) && !events.knows(&selected(Some("c"))));
    }

    #[test]
    fn what_does_not_fit_a_frame_comes_with_the_next_answer() {
        let mut events = Events::new();
        for _ in 0..100 {
            // Each of these takes six bytes in the answer; the characters after the first do not end at the limit.
            let reason = "\u{1}".to_owned() + &"\u{1}é\u{1}".repeat(REASON_MAX);
            let refusal = Box::new(Refusal::new(Code::SpawnFailed, reason));
            file(&mut events, "x", Happening::Failed { refusal });
        }
        let (mut after, mut read, mut pages) = (None, Vec::new(), 0);
        loop {
            let page = events.page(after, &selected(None));
            if page.events.is_empty() {
                break;
            }
            let bytes: usize = page.events.iter().map(String::len).sum();
            assert!(bytes <= ANSWER_MAX, "{bytes} bytes of {} events", page.events.len());
            read.extend(numbers(&page));
            (after, pages) = (Some(page.next), pages + 1);
        }
        assert_eq!(read, (1..=100).collect::<Vec<_>>());
        assert_eq!(pages, 2);
    }

    #[test]
    fn a_cursor_is_of_this_life_or_of_another_or_none() {
        let mut events = Events::new();
        file(&mut events, "x", Happening::Stopped);
        let cursor = events.cursor(1);
        assert_eq!(events.after(&cursor), Ok(1));
        assert_eq!(events.after("4242-1.17"), Ok(0), "another life: from the beginning");
        for bad in ["", "17", "x.17", "4242.17", "-.17", "4242-1.", "4242-1.x", "4242-1.-1", &events.cursor(2)] {
            assert_eq!(events.after(bad).map_err(|refusal| refusal.code), Err(Code::Malformed), "`{bad}`");
        }
    }
}
