//! What must hold in every history.

use std::collections::HashMap;
use std::time::Duration;

use broker_proto::{Code, Exit, State};

use super::super::Timestamp;
use super::super::backend::{Backend, Effect, Event, News, Policies, Ticket, View};
use super::super::recovery;
use super::record::Recorded;

#[derive(Debug, Clone, Copy)]
struct Asked {
    deadline: Option<Timestamp>,
    answer: Option<Answer>,
    withdrawn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

/// What is known of one backend.
#[derive(Debug)]
struct Known {
    recovery: recovery::Policy,
    /// A generation was started and is not gone.
    live: Option<u64>,
    /// An operator stopped it, and nobody asked for it since.
    stopped: bool,
    /// A retry was started, and neither a refusal, nor a proof of health, nor an order came since.
    retried: bool,
    /// When the newest generation crashed, if that is how it ended.
    crashed: Option<Timestamp>,
    record: Recorded,
    /// What was seen before this event.
    before: Option<View>,
}

/// The observer of a history.
#[derive(Debug)]
pub(super) struct Invariants {
    asked: HashMap<Ticket, Asked>,
    known: Vec<Known>,
}

impl Invariants {
    pub(super) fn new(policies: Vec<Policies>) -> Self {
        let known = policies.into_iter().map(|policies| Known {
            recovery: policies.recovery,
            live: None,
            stopped: false,
            retried: false,
            crashed: None,
            record: Recorded::default(),
            before: None,
        });
        Self { asked: HashMap::new(), known: known.collect() }
    }

    pub(super) fn before(&mut self, now: Timestamp, at: usize, event: &Event) {
        let known = &mut self.known[at];
        let healthy_after = known.recovery.healthy_after();
        if known.before.as_ref().is_some_and(|v| v.state == State::Ready && now.since(v.since) >= healthy_after) {
            known.retried = false;
        }
        let waiter = match event {
            Event::Hello(waiter) => {
                known.stopped = false;
                Some(waiter)
            }
            Event::Start(waiter) | Event::Restart(waiter) => {
                known.stopped = false;
                (known.retried, known.crashed) = (false, None);
                Some(waiter)
            }
            Event::Stop(waiter) => {
                known.stopped = true;
                known.retried = false;
                waiter.as_ref()
            }
            // Of the one whoever waits is refused at once; the other says nothing of the daemon. Time closes the window.
            Event::StartFailed { .. } | Event::TakenDown { .. } => {
                known.retried = false;
                None
            }
            Event::Redefine(_) => {
                (known.retried, known.crashed) = (false, None);
                None
            }
            _ => None,
        };
        if let Some(waiter) = waiter {
            let asked = Asked { deadline: waiter.deadline, answer: None, withdrawn: false };
            assert!(self.asked.insert(waiter.ticket, asked).is_none(), "tickets are given out once");
        }
    }

    pub(super) fn after(&mut self, now: Timestamp, at: usize, event: &Event, view: &View, effects: &[Effect]) {
        let known = &mut self.known[at];
        let automatic = matches!(event, Event::Gone { .. } | Event::Tick);
        for effect in effects {
            match effect {
                Effect::Start { generation } => {
                    assert_eq!(known.live, None, "at most one live generation per key");
                    assert!(!known.stopped, "nothing starts after a stop without a new Hello or order");
                    known.live = Some(*generation);
                    let in_window = |crash| now < known.recovery.window_from(crash);
                    if known.crashed.take().is_some_and(|crash| automatic || in_window(crash)) {
                        assert!(!known.retried, "never two retries without a refusal, health or an order between them");
                        known.retried = true;
                    }
                }
                Effect::Tell { news: News::Failed { .. }, .. } => known.retried = false,
                Effect::Negotiate { ticket, generation } => {
                    assert_eq!(known.live, Some(*generation), "only a live generation is negotiated");
                    answer(&mut self.asked, now, *ticket, Answer::Yes);
                }
                Effect::Stopped { ticket } => answer(&mut self.asked, now, *ticket, Answer::Yes),
                Effect::Refuse { ticket, refusal } => {
                    if refusal.code == Code::BackendUnavailable {
                        assert!(refusal.retry_after_ms.is_some_and(|ms| ms > 0), "a refusal for now says until when");
                        known.retried = false;
                    }
                    answer(&mut self.asked, now, *ticket, Answer::No);
                }
                Effect::Probe { .. }
                | Effect::Follow { .. }
                | Effect::Terminate { .. }
                | Effect::End { .. }
                | Effect::CountConnections { .. }
                | Effect::Progress { .. }
                | Effect::Tell { .. }
                | Effect::Record { .. } => {}
            }
        }
        known.record.take(known.before.as_ref(), event, view, effects);
        if view.state == State::Failed {
            (known.retried, known.crashed) = (false, None);
        }
        if known.before.as_ref().is_some_and(|before| crashes(before, event, view)) {
            known.crashed = Some(now);
        }
        known.before = Some(view.clone());
    }

    pub(super) fn withdrawn(&mut self, ticket: Ticket) {
        self.asked.get_mut(&ticket).expect("only who asked withdraws").withdrawn = true;
    }

    /// The world says that nothing of the generation is left.
    pub(super) fn gone(&mut self, at: usize) {
        self.known[at].live = None;
    }

    /// The broker is gone, and with it every session.
    pub(super) fn everybody_left(&mut self) {
        self.asked.values_mut().for_each(|asked| asked.withdrawn = true);
    }

    /// The next broker has a machine for the backend, in the state that the last one left.
    pub(super) fn restored(&mut self, now: Timestamp, at: usize, backend: &Backend, never_started: bool) {
        if backend.is_live() {
            self.known[at].record.ran();
        }
        let known = &mut self.known[at];
        let view = backend.view(now);
        if !never_started && let Some(before) = &known.before {
            assert_eq!(view.generation, before.generation, "a generation outlives the broker");
            let crashes = (view.crashes_in_window, before.crashes_in_window);
            assert!(crashes.0 <= crashes.1, "a budget outlives the broker: {crashes:?}");
        }
        if never_started {
            known.retried = false;
            known.record.never_started();
        }
        known.before = Some(view);
    }

    pub(super) fn check_everybody_was_answered(&self, now: Timestamp) {
        for (ticket, asked) in &self.asked {
            assert!(asked.answer.is_some() || asked.withdrawn, "{ticket:?} has no answer at {now:?}");
        }
    }

    pub(super) fn check_succeeded(&self, ticket: Ticket) {
        assert_eq!(self.asked[&ticket].answer, Some(Answer::Yes), "once faults end, requests succeed");
    }
}

/// Whether this event was the crash of a generation: an end that nobody ordered, other than a finished daemon's, or
/// the ceiling of a start.
fn crashes(before: &View, event: &Event, after: &View) -> bool {
    let ended = after.state == State::Stopping;
    match (before.state, event) {
        (State::Starting, Event::Exited { .. } | Event::Tick | Event::Probed { .. }) => ended,
        (State::Ready, Event::Exited { exit, .. }) => ended && !(*exit == Exit::Code(0) && before.holds == 0),
        _ => false,
    }
}

fn answer(asked: &mut HashMap<Ticket, Asked>, now: Timestamp, ticket: Ticket, answer: Answer) {
    let asked = asked.get_mut(&ticket).expect("only who asked is answered");
    assert_eq!(asked.answer, None, "every waiter gets exactly one answer");
    assert!(!asked.withdrawn, "who withdrew is not answered");
    let late = asked.deadline.map_or(Duration::ZERO, |deadline| now.since(deadline));
    assert_eq!(late, Duration::ZERO, "every waiter is answered by its deadline");
    asked.answer = Some(answer);
}
