//! A durable process, as events in and effects out.

use proptest::prelude::*;

use super::*;

const START: Timestamp = Timestamp::from_nanos(1_000_000_000);

fn exited(code: i32) -> Ended {
    Ended { exit_code: Some(code), ..Ended::default() }
}

fn ended_by(ended_by: EndedBy) -> Ended {
    Ended { signal: Some(15), ended_by, ..Ended::default() }
}

/// Hands in an event; what follows.
fn after(process: &mut Durable, event: Event) -> Vec<Effect> {
    at(process, START, event)
}

fn at(process: &mut Durable, now: Timestamp, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    process.handle(now, event, &mut effects);
    effects
}

fn looked(process: &mut Durable, found: Found) -> Vec<Effect> {
    after(process, Event::Looked(found))
}

/// A process whose first attempt runs.
fn running() -> Durable {
    let mut process = Durable::new(3, false);
    assert_eq!(looked(&mut process, Found::Free { attempts: 0 }), [Effect::Launch { attempt: 1 }]);
    assert_eq!(after(&mut process, Event::Announced), [Effect::Look]);
    assert_eq!(looked(&mut process, Found::Runs { attempt: 1 }), [Effect::Watch { attempt: 1, adopted: false }]);
    process
}

fn finish(attempt: u32, verdict: Verdict, ended: Ended) -> [Effect; 1] {
    [Effect::Finish { attempt, verdict, ended }]
}

#[test]
fn a_commands_own_exit_is_final_whatever_its_code() {
    for (code, verdict) in [(0, Verdict::Succeeded), (7, Verdict::Failed)] {
        let mut process = running();
        assert_eq!(after(&mut process, Event::ReaperEnded), [Effect::Look]);
        let ended = Found::Ended { attempt: 1, ended: exited(code) };
        assert_eq!(looked(&mut process, ended), finish(1, verdict, exited(code)));
        process.close();
        assert_eq!(after(&mut process, Event::Cancelled), []);
    }
}

#[test]
fn what_runs_already_is_adopted_and_what_ended_meanwhile_is_taken() {
    let mut process = Durable::new(3, false);
    assert_eq!(looked(&mut process, Found::Runs { attempt: 2 }), [Effect::Watch { attempt: 2, adopted: true }]);
    let mut process = Durable::new(3, false);
    let ended = Found::Ended { attempt: 2, ended: exited(0) };
    assert_eq!(looked(&mut process, ended), finish(2, Verdict::Succeeded, exited(0)));
}

#[test]
fn a_command_that_ended_before_it_was_seen_to_run_is_no_loss() {
    let mut process = Durable::new(3, false);
    looked(&mut process, Found::Free { attempts: 0 });
    after(&mut process, Event::Announced);
    let ended = Found::Ended { attempt: 1, ended: exited(0) };
    assert_eq!(looked(&mut process, ended), finish(1, Verdict::Succeeded, exited(0)));
}

#[test]
fn a_lost_attempt_is_followed_by_the_next_until_there_were_enough() {
    let mut process = running();
    for attempt in 1..3 {
        after(&mut process, Event::ReaperEnded);
        let expected = [Effect::Lost { attempt }, Effect::Launch { attempt: attempt + 1 }];
        assert_eq!(looked(&mut process, Found::Free { attempts: attempt }), expected);
        after(&mut process, Event::Announced);
        looked(&mut process, Found::Runs { attempt: attempt + 1 });
    }
    after(&mut process, Event::ReaperEnded);
    let effects = looked(&mut process, Found::Free { attempts: 3 });
    assert_eq!(effects[0], Effect::Lost { attempt: 3 });
    let Effect::Finish { attempt: 3, verdict: Verdict::Failed, ended } = &effects[1] else { panic!("{effects:?}") };
    assert_eq!(ended.reason.as_deref(), Some("lost 3 times, which is as often as it may be started"));
}

#[test]
fn an_interrupted_attempt_is_run_again_after_a_pause() {
    let mut process = running();
    after(&mut process, Event::ReaperEnded);
    let interrupted = Found::Ended { attempt: 1, ended: ended_by(EndedBy::Interrupted) };
    assert_eq!(looked(&mut process, interrupted.clone()), [Effect::Lost { attempt: 1 }]);
    let due = process.next_deadline().expect("a pause");
    assert_eq!(due, START + AFTER_INTERRUPTION);
    assert_eq!(after(&mut process, Event::Tick), [], "not before its time");
    assert_eq!(at(&mut process, due, Event::Tick), [Effect::Look]);
    assert_eq!(looked(&mut process, interrupted), [Effect::Launch { attempt: 2 }]);
}

#[test]
fn a_cancelled_process_is_told_whenever_it_runs_and_never_started() {
    let mut process = running();
    assert_eq!(after(&mut process, Event::Cancelled), [Effect::AskToEnd]);
    after(&mut process, Event::ReaperEnded);
    let cancelled = ended_by(EndedBy::Cancel);
    let found = Found::Ended { attempt: 1, ended: cancelled.clone() };
    assert_eq!(looked(&mut process, found), finish(1, Verdict::Cancelled, cancelled));

    // Between the launch and the first sign of life.
    let mut process = Durable::new(3, false);
    looked(&mut process, Found::Free { attempts: 0 });
    assert_eq!(after(&mut process, Event::Cancelled), []);
    after(&mut process, Event::Announced);
    let expected = [Effect::Watch { attempt: 1, adopted: false }, Effect::AskToEnd];
    assert_eq!(looked(&mut process, Found::Runs { attempt: 1 }), expected);

    let mut process = Durable::new(3, true);
    let cancelled = Ended { ended_by: EndedBy::Cancel, ..Ended::default() };
    assert_eq!(looked(&mut process, Found::Free { attempts: 0 }), finish(0, Verdict::Cancelled, cancelled));
}

#[test]
fn a_command_that_succeeds_before_it_is_told_has_succeeded() {
    let mut process = running();
    after(&mut process, Event::Cancelled);
    after(&mut process, Event::ReaperEnded);
    let found = Found::Ended { attempt: 1, ended: exited(0) };
    assert_eq!(looked(&mut process, found), finish(1, Verdict::Succeeded, exited(0)));
}

#[test]
fn a_timeout_is_a_failure() {
    let mut process = running();
    after(&mut process, Event::ReaperEnded);
    let found = Found::Ended { attempt: 1, ended: ended_by(EndedBy::Timeout) };
    assert_eq!(looked(&mut process, found), finish(1, Verdict::Failed, ended_by(EndedBy::Timeout)));
}

#[test]
fn a_launch_that_comes_to_nothing_is_repeated_ever_more_slowly() {
    let mut process = Durable::new(3, false);
    let (mut now, mut pauses) = (START, Vec::new());
    assert_eq!(looked(&mut process, Found::Free { attempts: 0 }), [Effect::Launch { attempt: 1 }]);
    for _ in 0..12 {
        assert_eq!(at(&mut process, now, Event::ReaperEnded), [Effect::Look]);
        assert_eq!(at(&mut process, now, Event::Looked(Found::Free { attempts: 0 })), [], "no loss, and no launch yet");
        let due = process.next_deadline().expect("a pause");
        pauses.push(due.since(now));
        now = due;
        assert_eq!(at(&mut process, now, Event::Tick), [Effect::Look]);
        let again = at(&mut process, now, Event::Looked(Found::Free { attempts: 0 }));
        assert_eq!(again, [Effect::Launch { attempt: 1 }]);
    }
    assert!(pauses.is_sorted() && pauses[0] == FIRST_PAUSE && pauses[11] == LONGEST_PAUSE, "{pauses:?}");
}

#[test]
fn who_holds_the_lock_without_a_name_is_asked_again() {
    let mut process = Durable::new(3, false);
    assert_eq!(looked(&mut process, Found::Held), []);
    let due = process.next_deadline().expect("a pause");
    assert_eq!(at(&mut process, due, Event::Tick), [Effect::Look]);
    let adopted = at(&mut process, due, Event::Looked(Found::Runs { attempt: 1 }));
    assert_eq!(adopted, [Effect::Watch { attempt: 1, adopted: true }]);
}

#[test]
fn an_outcome_that_cannot_be_stored_is_looked_at_again() {
    let mut process = running();
    after(&mut process, Event::ReaperEnded);
    let found = Found::Ended { attempt: 1, ended: exited(0) };
    looked(&mut process, found.clone());
    assert_eq!(after(&mut process, Event::Hindered), []);
    let due = process.next_deadline().expect("a pause");
    assert_eq!(at(&mut process, due, Event::Tick), [Effect::Look]);
    assert_eq!(looked(&mut process, found), finish(1, Verdict::Succeeded, exited(0)));
}

#[test]
fn a_process_whose_folder_is_gone_has_failed() {
    let mut process = Durable::new(3, false);
    let effects = looked(&mut process, Found::Missing);
    assert!(matches!(effects[..], [Effect::Finish { verdict: Verdict::Failed, .. }]), "{effects:?}");
}

/// What can happen to a folder, its reapers and its owners.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The launched reaper gets the lock, if it is free.
    Begin,
    /// The launched reaper ends before it begins.
    Decline,
    /// The running attempt ends.
    End(Option<i32>),
    /// The running reaper is killed.
    Lose,
    /// This owner dies; the next one comes.
    NewOwner,
    /// The owner hears what its descriptors say.
    Hear,
    /// Somebody cancels.
    Cancel,
    Pass(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Begin),
        1 => Just(Step::Decline),
        2 => prop_oneof![Just(None), (0..3).prop_map(Some)].prop_map(Step::End),
        2 => Just(Step::Lose),
        2 => Just(Step::NewOwner),
        4 => Just(Step::Hear),
        1 => Just(Step::Cancel),
        4 => (1..20_000_u32).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 0..120)
}

/// The folder as reapers leave it, with the rules that they keep.
#[derive(Debug, Default)]
struct Model {
    begun: u32,
    running: bool,
    outcome: Option<(u32, Ended)>,
    cancelled: bool,
    /// Reapers on their way, by their attempts: those of former owners, too.
    launched: Vec<u32>,
    finished: Option<(u32, Verdict, Ended)>,
}

impl Model {
    fn look(&self) -> Found {
        match &self.outcome {
            _ if self.running => Found::Runs { attempt: self.begun },
            Some((attempt, ended)) if *attempt == self.begun => {
                Found::Ended { attempt: *attempt, ended: ended.clone() }
            }
            _ => Found::Free { attempts: self.begun },
        }
    }

    fn end(&mut self, ended: Ended) {
        self.running = false;
        self.outcome = Some((self.begun, ended));
    }

    fn is_final(&self) -> bool {
        self.outcome.as_ref().is_some_and(|(_, ended)| ended.is_final())
    }

    fn perform(&mut self, process: &mut Durable, now: Timestamp, first: Option<Event>) {
        let mut events: Vec<Event> = first.into_iter().collect();
        while let Some(event) = events.pop() {
            let mut effects = Vec::new();
            process.handle(now, event, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Look => events.push(Event::Looked(self.look())),
                    Effect::Launch { attempt } => self.launched.push(attempt),
                    Effect::Watch { attempt, .. } => assert!(self.running && attempt == self.begun),
                    Effect::AskToEnd => {
                        assert!(self.cancelled);
                        // One that has ended meanwhile does not hear it.
                        if self.running {
                            self.end(ended_by(EndedBy::Cancel));
                        }
                    }
                    Effect::Lost { attempt } => assert!(!self.running && attempt <= self.begun),
                    Effect::Finish { attempt, verdict, ended } => {
                        assert!(!self.running && self.finished.is_none(), "an end is written once");
                        self.finished = Some((attempt, verdict, ended));
                        process.close();
                    }
                }
            }
        }
    }
}

proptest! {
    /// However owners, reapers and attempts come and go: never more starts than allowed, never one after the end, and the
    /// real outcome is what is stored.
    #[test]
    fn a_process_is_started_as_often_as_allowed_and_never_after_its_end(steps in steps(), max_attempts in 1..4_u32) {
        let (mut model, mut now) = (Model::default(), START);
        let mut process = Durable::new(max_attempts, false);
        model.perform(&mut process, now, Some(Event::Looked(Found::Free { attempts: 0 })));
        for step in steps {
            match step {
                Step::Begin => if let Some(attempt) = model.launched.pop()
                    && !model.running && attempt > model.begun && !model.is_final()
                {
                    prop_assert!(model.finished.is_none() || model.cancelled);
                    model.begun = attempt;
                    model.running = true;
                    if model.cancelled {
                        model.end(ended_by(EndedBy::Cancel));
                    }
                    prop_assert!(model.begun <= max_attempts);
                },
                Step::Decline => drop(model.launched.pop()),
                Step::End(code) if model.running => model.end(match code {
                    Some(code) => exited(code),
                    None => ended_by(EndedBy::Interrupted),
                }),
                Step::Lose => model.running = false,
                Step::NewOwner if model.finished.is_none() => {
                    process = Durable::new(max_attempts, model.cancelled);
                    let found = model.look();
                    model.perform(&mut process, now, Some(Event::Looked(found)));
                }
                Step::Hear => {
                    // Nothing is heard while a reaper is on its way or runs.
                    let event = if model.running { Event::Announced } else { Event::ReaperEnded };
                    if model.running || model.launched.is_empty() {
                        model.perform(&mut process, now, Some(event));
                    }
                }
                Step::Cancel if model.finished.is_none() => {
                    model.cancelled = true;
                    model.perform(&mut process, now, Some(Event::Cancelled));
                }
                Step::Pass(ms) => {
                    now = now + Duration::from_millis(ms.into());
                    if process.next_deadline().is_some_and(|due| due <= now) {
                        model.perform(&mut process, now, Some(Event::Tick));
                    }
                }
                Step::End(_) | Step::NewOwner | Step::Cancel => {}
            }
            if let (Some((_, ended)), Some((attempt, verdict, stored))) = (&model.outcome, &model.finished)
                && ended.is_final() && *attempt == model.begun && ended.ended_by != EndedBy::Cancel
            {
                prop_assert_eq!(stored, ended);
                prop_assert_eq!(*verdict == Verdict::Succeeded, ended.exit_code == Some(0));
            }
        }
    }
}
