//! What the broker says to the service manager: that it is ready, lives, reloads or ends, and in a sentence what goes on.
//!
//! Owns the words; when they are due is decided in `core::notices`. Costs nothing where nobody asked to be told, and never
//! waits: a manager that has no room is told when it has some.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use broker_proto::State;
use sd_notify::NotifyState;

use super::clock::now;
use super::driver::{Driver, Leave};
use crate::core::Timestamp;
use crate::core::notices::{Due, Notices};
use crate::net::service_manager::{self, tell};
use crate::process::printable::printable_line;
use crate::services::{Problem, Severity};

/// The longest status, in bytes: the manager passes over a message of more than 4,096.
const STATUS_MAX: usize = 1024;

/// How many turns wait for a manager that has no room for them: the oldest give way.
const TURNS_MAX: usize = 64;

/// The service manager, as the broker knows it.
#[derive(Debug, Default)]
pub(super) struct Manager {
    /// `None` if nobody wants to be told.
    notices: Option<Notices>,
    /// The status that was told last.
    said: String,
    /// What must be heard, in this order, and was not: that the broker is ready, reloads, or stops.
    turns: VecDeque<String>,
    /// Readings of the service files that are under way.
    reloads: usize,
    is_leaving: bool,
    /// It was said that the manager cannot be told.
    is_unheard: bool,
}

impl Manager {
    /// The one that started this process. Must be called before there is a thread; that a watchdog watches it, no
    /// process learns that the broker starts.
    pub(super) fn of_process() -> Self {
        // SAFETY: there is no other thread that could read the environment.
        let watchdog = unsafe { sd_notify::watchdog_enabled_and_unset_env() };
        Self { notices: service_manager::is_there().then(|| Notices::new(now(), watchdog)), ..Self::default() }
    }

    /// Whether a service manager started this process, and wants to be told.
    pub(super) fn is_there(&self) -> bool {
        self.notices.is_some()
    }

    /// Something changed of what the status tells.
    pub(super) fn changed(&mut self) {
        if let Some(notices) = &mut self.notices {
            notices.changed(now());
        }
    }

    /// When something is to be told.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.notices.as_ref().and_then(Notices::next_deadline)
    }

    /// Tells of a turn, and what goes on then.
    fn say_turn(&mut self, states: &[NotifyState<'_>], status: String) {
        let Some(notices) = &mut self.notices else { return };
        notices.told(now());
        let is_news = status != self.said;
        let states = states.iter().cloned().chain(is_news.then_some(NotifyState::Status(&status)));
        self.turns.extend(Some(text(states)).filter(|text| !text.is_empty()));
        if self.turns.len() > TURNS_MAX {
            self.turns.pop_front();
        }
        self.said = status;
        self.send("", Due::default());
    }

    /// Tells what is due, and what goes on if that is news.
    fn say(&mut self, states: &[NotifyState<'_>], status: Option<String>, due: Due) {
        let status = status.filter(|status| *status != self.said);
        let text = text(states.iter().cloned().chain(status.as_deref().map(NotifyState::Status)));
        if self.send(&text, due) {
            self.said = status.unwrap_or_else(|| std::mem::take(&mut self.said));
        }
    }

    /// Sends what waits, and then this; whether it was sent.
    fn send(&mut self, text: &str, due: Due) -> bool {
        let Some(notices) = &mut self.notices else { return false };
        if text.is_empty() && self.turns.is_empty() {
            notices.heard();
            return true;
        }
        match send_all(&mut self.turns, text) {
            Ok(()) => {
                notices.heard();
                self.is_unheard = false;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && notices.refused(now(), due) => false,
            Err(error) => {
                self.turns.clear();
                self.said.clear();
                if !std::mem::replace(&mut self.is_unheard, true) {
                    tracing::warn!(%error, "cannot notify the service manager");
                }
                false
            }
        }
    }
}

fn send_all(turns: &mut VecDeque<String>, text: &str) -> io::Result<()> {
    while let Some(turn) = turns.front() {
        tell(turn, &[], Duration::ZERO)?;
        turns.pop_front();
    }
    match text {
        "" => Ok(()),
        text => tell(text, &[], Duration::ZERO),
    }
}

/// A message, a statement a line.
fn text<'s>(states: impl Iterator<Item = NotifyState<'s>>) -> String {
    states.map(|state| format!("{state}\n")).collect()
}

impl Driver {
    /// Says that the broker serves.
    pub(super) fn tell_ready(&mut self) {
        let status = self.status_sentence(None);
        if let Some(notices) = &mut self.manager.notices {
            notices.began(now());
        }
        self.manager.say_turn(&[NotifyState::Ready], status);
    }

    /// Says what is due.
    pub(super) fn tell_due(&mut self) {
        let Some(notices) = &mut self.manager.notices else { return };
        let kill_at = match self.leaving {
            Some(_) => self.registry.iter().filter_map(|(_, _, backend)| backend.kill_at()).max(),
            None => None,
        };
        let due = notices.take_due(now(), kill_at);
        let mut states = Vec::new();
        if due.life {
            states.push(NotifyState::Watchdog);
        }
        if let Some(longer) = due.extension {
            states.push(NotifyState::ExtendTimeoutUsec(u32::try_from(longer.as_micros()).unwrap_or(u32::MAX)));
        }
        if due != Due::default() {
            let status = due.status.then(|| self.status_sentence(None));
            self.manager.say(&states, status, due);
        }
    }

    /// Says that the service files are being read again.
    pub(super) fn tell_reloading(&mut self) {
        self.manager.reloads += 1;
        if self.manager.is_leaving {
            return;
        }
        // A manager of systemd 253 and newer wants the time, to know which reload this is.
        let time = NotifyState::monotonic_usec_now();
        let states: Vec<_> = std::iter::once(NotifyState::Reloading).chain(time).collect();
        self.manager.say_turn(&states, "reading the service files again".to_owned());
        self.arm();
    }

    /// Says that the service files have been read, and what came of it.
    pub(super) fn tell_reloaded(&mut self, outcome: String) {
        self.manager.reloads = self.manager.reloads.saturating_sub(1);
        if self.manager.is_leaving || self.manager.notices.is_none() {
            return;
        }
        let status = self.status_sentence(Some(outcome));
        let is_last = self.manager.reloads == 0;
        let states: &[NotifyState<'_>] = if is_last { &[NotifyState::Ready] } else { &[] };
        self.manager.say_turn(states, status);
        self.arm();
    }

    /// Says that the broker is on its way out, by whatever it was made to go.
    pub(super) fn tell_stopping(&mut self) {
        let Some(notices) = &mut self.manager.notices else { return };
        notices.leaving(now());
        self.manager.is_leaving = true;
        let status = self.status_sentence(None);
        self.manager.say_turn(&[NotifyState::Stopping], status);
        self.tell_due();
        self.arm();
    }

    /// What goes on, in one line, behind what came of a reload.
    fn status_sentence(&self, outcome: Option<String>) -> String {
        if self.manager.notices.is_none() {
            return String::new();
        }
        let census = Census {
            leaving: self.leaving,
            outcome,
            states: self.registry.iter().map(|(_, _, backend)| backend.state()).collect(),
            sessions: self.sessions.len(),
            processes: self.processes.live(),
            problems: &self.catalog.problems,
        };
        census.sentence()
    }
}

/// What the status is made of.
struct Census<'a> {
    leaving: Option<Leave>,
    outcome: Option<String>,
    states: Vec<State>,
    sessions: usize,
    processes: usize,
    problems: &'a [Problem],
}

/// States that are told, in this order, and their words.
const TOLD: [(State, &str); 6] = [
    (State::Ready, "ready"),
    (State::Starting, "starting"),
    (State::Backoff, "to be restarted"),
    (State::Stopping, "stopping"),
    (State::Failed, "failed"),
    (State::Quarantined, "quarantined"),
];

impl Census<'_> {
    fn sentence(self) -> String {
        let mut parts = Vec::from_iter(self.outcome);
        parts.push(backends(&self.states));
        parts.push(count(self.sessions, "session", "sessions"));
        if self.processes > 0 {
            parts.push(count(self.processes, "durable process", "durable processes"));
        }
        let mut errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        if let Some(first) = errors.next() {
            let errors = count(errors.count() + 1, "error", "errors");
            parts.push(format!("{errors} in the service files, the first: {first}"));
        }
        let way = match self.leaving {
            Some(Leave { keeps: true, .. }) => "making way for the next broker: ",
            Some(Leave { keeps: false, .. }) => "ending: ",
            None => "",
        };
        // A line of its own would be another statement to the manager.
        let mut text = printable_line(format!("{way}{}", parts.join("; ")).as_bytes());
        let end = (0..=STATUS_MAX).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.filter(|&end| end < text.len()).unwrap_or(text.len()));
        text
    }
}

fn backends(states: &[State]) -> String {
    let mut text = String::new();
    for (state, word) in TOLD {
        match states.iter().filter(|told| **told == state).count() {
            0 => {}
            number if text.is_empty() => text = format!("{} {word}", count(number, "backend", "backends")),
            number => text += &format!(", {number} {word}"),
        }
    }
    if text.is_empty() { "no backends".to_owned() } else { text }
}

fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(states: &[State]) -> Census<'static> {
        let (sessions, processes) = (5, 0);
        Census { leaving: None, outcome: None, states: states.to_vec(), sessions, processes, problems: &[] }
    }

    #[test]
    fn the_status_tells_backends_and_sessions() {
        use State::*;
        insta::assert_snapshot!(census(&[Ready, Starting, Ready, Inactive]).sentence(), @"2 backends ready, 1 starting; 5 sessions");
        insta::assert_snapshot!(census(&[Inactive]).sentence(), @"no backends; 5 sessions");
        let all = [Quarantined, Failed, Stopping, Backoff, Starting];
        insta::assert_snapshot!(Census { sessions: 1, processes: 2, ..census(&all) }.sentence(), @"1 backend starting, 1 to be restarted, 1 stopping, 1 failed, 1 quarantined; 1 session; 2 durable processes");
        let quiet = Census { sessions: 0, processes: 1, ..census(&[Ready]) };
        insta::assert_snapshot!(quiet.sentence(), @"1 backend ready; no sessions; 1 durable process");
    }

    #[test]
    fn it_tells_how_the_broker_leaves_and_what_came_of_a_reload() {
        let leaving = |leave| Census { leaving: Some(leave), ..census(&[State::Ready]) }.sentence();
        insta::assert_snapshot!(leaving(Leave::HAND_OVER), @"making way for the next broker: 1 backend ready; 5 sessions");
        insta::assert_snapshot!(leaving(Leave::STOP), @"ending: 1 backend ready; 5 sessions");
        let problems =
            [Problem::error("/etc/broker/services.d/x.toml", "first\nREADY=1"), Problem::error("/y", "second")];
        let reloaded = Census { outcome: Some("reloaded 3 services".to_owned()), problems: &problems, ..census(&[]) };
        insta::assert_snapshot!(reloaded.sentence(), @r"reloaded 3 services; no backends; 5 sessions; 2 errors in the service files, the first: /etc/broker/services.d/x.toml: first\nREADY=1");
    }

    #[test]
    fn it_is_one_line_that_a_manager_reads() {
        let problems = [Problem::error("/x", format!("{}\u{2026}", "ä".repeat(STATUS_MAX)))];
        let long = Census { problems: &problems, ..census(&[]) }.sentence();
        assert!(long.len() <= STATUS_MAX && long.len() > STATUS_MAX - 3, "{}", long.len());
        let outcome = Some("a\nMAINPID=1\n".to_owned());
        insta::assert_snapshot!(Census { outcome, ..census(&[]) }.sentence(), @"a MAINPID=1 ; no backends; 5 sessions");
    }
}
