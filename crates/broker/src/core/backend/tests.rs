//! The machine, as events in and effects out. Each test says one behaviour; `simulation` tries the rest.

use std::time::Duration;

use broker_proto::{Code, Exit, State};

use super::super::readiness::Pace;
use super::super::simulation::policies;
use super::*;

mod memory;
mod orders;
mod record;

/// A backend in a world of plain numbers.
struct Scene {
    backend: Backend,
    now: Timestamp,
    next_ticket: u64,
    /// What was put down, with the generation that it is about.
    record: Vec<(u64, Happening)>,
}

impl Scene {
    fn new(policies: Policies) -> Self {
        let now = Timestamp::from_nanos(1_000_000_000_000);
        Self { backend: Backend::new(now, policies), now, next_ticket: 0, record: Vec::new() }
    }

    /// A backend that is ready, held by the ticket that is returned.
    fn ready() -> (Self, Ticket) {
        let mut scene = Self::new(policies());
        let (ticket, _) = scene.hello();
        scene.becomes_ready();
        (scene, ticket)
    }

    fn waiter(&mut self, holds: bool) -> Waiter {
        self.next_ticket += 1;
        Waiter { ticket: Ticket(self.next_ticket), deadline: None, holds }
    }

    fn hello(&mut self) -> (Ticket, Vec<Effect>) {
        let waiter = self.waiter(true);
        (waiter.ticket, self.told(Event::Hello(waiter)))
    }

    /// What follows from an event, progress reports and the record aside.
    fn told(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.backend.handle(self.now, event, &mut effects);
        effects.retain(|effect| match effect {
            Effect::Record { generation, happening } => {
                self.record.push((*generation, happening.clone()));
                false
            }
            effect => !matches!(effect, Effect::Progress { .. }),
        });
        effects
    }

    /// Lets time pass, deadline by deadline; what follows.
    fn pass(&mut self, duration: Duration) -> Vec<Effect> {
        let end = self.now + duration;
        let mut effects = Vec::new();
        while let Some(deadline) = self.backend.next_deadline().filter(|time| *time <= end) {
            self.now = self.now.max(deadline);
            effects.extend(self.told(Event::Tick));
            if effects.ends_with(&[Effect::Probe { generation: self.backend.generation }]) {
                effects.extend(self.told(self.probed(false)));
            }
        }
        self.now = end;
        effects
    }

    fn probed(&self, ready: bool) -> Event {
        Event::Probed { generation: self.backend.generation, ready, obstacle: None }
    }

    fn becomes_ready(&mut self) -> Vec<Effect> {
        let generation = self.backend.generation;
        self.told(Event::Started { generation });
        self.told(self.probed(true))
    }

    /// The main process exits, and nothing is left.
    fn exits(&mut self, exit: Exit) -> Vec<Effect> {
        let generation = self.backend.generation;
        let mut effects = self.told(Event::Exited { generation, exit, survivors: false });
        assert_eq!(effects.pop(), Some(Effect::End { generation }), "the rest of the group is ended first");
        effects.extend(self.told(Event::Gone { generation, trace: Trace::default() }));
        effects
    }

    fn state(&self) -> State {
        self.backend.view(self.now).state
    }
}

fn refused(effects: &[Effect]) -> Vec<(Ticket, &Refusal)> {
    let refusals = effects.iter().filter_map(|effect| match effect {
        Effect::Refuse { ticket, refusal } => Some((*ticket, &**refusal)),
        _ => None,
    });
    refusals.collect()
}

#[test]
fn a_hello_starts_the_backend_once_and_later_ones_join() {
    let mut scene = Scene::new(policies());
    let (first, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 1 }]);
    let (second, effects) = scene.hello();
    assert_eq!(effects, [], "it joins the start in progress");
    let effects = scene.becomes_ready();
    let negotiated = [first, second].map(|ticket| Effect::Negotiate { ticket, generation: 1 });
    assert_eq!(effects, negotiated);
    let (third, effects) = scene.hello();
    assert_eq!(effects, [Effect::Negotiate { ticket: third, generation: 1 }], "a warm one is answered at once");
    assert_eq!(scene.backend.view(scene.now).holds, 3);
}

#[test]
fn a_waiters_own_deadline_refuses_that_waiter_alone() {
    let mut scene = Scene::new(policies());
    let (patient, _) = scene.hello();
    let hasty = Waiter { deadline: Some(scene.now + Duration::from_secs(1)), ..scene.waiter(true) };
    scene.told(Event::Hello(hasty));
    scene.told(Event::Started { generation: 1 });
    let effects = scene.pass(Duration::from_secs(1));
    let refusals = refused(&effects);
    assert_eq!(refusals.iter().map(|(t, r)| (*t, r.code)).collect::<Vec<_>>(), [(hasty.ticket, Code::StartTimeout)]);
    let effects = scene.told(scene.probed(true));
    assert_eq!(effects, [Effect::Negotiate { ticket: patient, generation: 1 }]);
}

#[test]
fn the_first_crash_is_retried_after_the_backoff_and_the_second_refused() {
    let mut scene = Scene::new(policies());
    let (ticket, _) = scene.hello();
    assert_eq!(scene.exits(Exit::Code(7)), []);
    assert_eq!(scene.state(), State::Backoff);
    assert_eq!(scene.pass(Duration::from_millis(249)), []);
    assert_eq!(scene.pass(Duration::from_millis(1)), [Effect::Start { generation: 2 }]);
    let effects = scene.exits(Exit::Code(7));
    let refusals = refused(&effects);
    let [(refused_ticket, refusal)] = refusals[..] else { panic!("one refusal, not {refusals:?}") };
    assert_eq!((refused_ticket, refusal.code), (ticket, Code::BackendUnavailable));
    assert_eq!(refusal.retry_after_ms, Some(29_750), "the rest of the window");
    assert_eq!((refusal.evidence.exit_code, refusal.evidence.attempt), (Some(7), Some(1)));
    let (_, effects) = scene.hello();
    assert_eq!(refused(&effects).len(), 1, "refused at once, without a start");
    scene.pass(Duration::from_millis(29_750));
    let (_, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 3 }], "nothing is refused for ever");
}

#[test]
fn being_ready_for_an_instant_is_not_health() {
    let (mut scene, ticket) = Scene::ready();
    scene.exits(Exit::Signal(9));
    assert_eq!(
        scene.pass(Duration::from_millis(250)),
        [Effect::Start { generation: 2 }],
        "it is held, so it is retried"
    );
    scene.becomes_ready();
    scene.pass(Duration::from_millis(9_999));
    let effects = scene.exits(Exit::Signal(9));
    assert!(matches!(&effects[..], [Effect::Tell { news: News::Exited { .. }, .. },
        Effect::Tell { ticket: told, news: News::Failed { .. } }] if *told == ticket));
    assert_eq!(scene.state(), State::Failed);
}

#[test]
fn unbroken_readiness_clears_the_budget() {
    let (mut scene, _) = Scene::ready();
    scene.exits(Exit::Signal(9));
    scene.pass(Duration::from_millis(250));
    scene.becomes_ready();
    scene.pass(Duration::from_secs(10));
    assert_eq!(scene.backend.view(scene.now).crashes_in_window, 0);
    scene.exits(Exit::Signal(9));
    assert_eq!(scene.state(), State::Backoff, "retried again");
}

#[test]
fn a_retry_that_nobody_waits_for_is_not_started() {
    let (mut scene, ticket) = Scene::ready();
    scene.told(Event::Withdraw(ticket));
    scene.exits(Exit::Signal(9));
    assert_eq!(scene.state(), State::Inactive);
    assert_eq!(scene.pass(Duration::from_millis(100)), []);
    let (_, effects) = scene.hello();
    assert_eq!((effects, scene.state()), (vec![], State::Backoff), "not before the backoff is over");
    assert_eq!(scene.pass(Duration::from_millis(150)), [Effect::Start { generation: 2 }]);
    assert_eq!(scene.backend.view(scene.now).attempt, 1);
}

#[test]
fn a_daemon_that_exits_0_by_itself_while_nobody_holds_it_finished() {
    let (mut scene, ticket) = Scene::ready();
    scene.told(Event::Withdraw(ticket));
    assert_eq!(scene.exits(Exit::Code(0)), []);
    assert_eq!(scene.backend.view(scene.now).crashes_in_window, 0);
    let (mut scene, _) = Scene::ready();
    scene.exits(Exit::Code(0));
    assert_eq!(scene.backend.view(scene.now).crashes_in_window, 1, "but where it is held that is a crash");
}

#[test]
fn the_ceiling_ends_a_start_exactly_and_counts_as_a_crash() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.told(Event::Started { generation: 1 });
    let effects = scene.pass(Duration::from_millis(59_999));
    assert!(!effects.contains(&Effect::Terminate { generation: 1 }));
    let effects = scene.pass(Duration::from_millis(1));
    assert_eq!(effects.last(), Some(&Effect::Terminate { generation: 1 }));
    assert_eq!(scene.pass(Duration::from_secs(10)), [Effect::End { generation: 1 }], "SIGKILL after stop_timeout");
    scene.told(Event::Gone { generation: 1, trace: Trace::default() });
    assert_eq!(scene.backend.view(scene.now).attempt, 1, "the retry starts, its backoff being over");
}

#[test]
fn a_retry_after_a_slow_end_is_still_the_one_retry() {
    let brief = recovery::Policy::new(Duration::ZERO, Duration::from_secs(1), Duration::from_secs(10));
    let mut scene = Scene::new(Policies { recovery: brief, ..policies() });
    scene.hello();
    for generation in [1, 2] {
        assert_eq!(scene.backend.generation, generation);
        scene.told(Event::Started { generation });
        scene.pass(Duration::from_secs(70));
        scene.told(Event::Gone { generation, trace: Trace::default() });
    }
    assert_ne!(scene.state(), State::Starting, "no third start, though each end took longer than the window");
}

#[test]
fn a_daemon_that_forked_away_is_followed() {
    let mut scene = Scene::new(policies());
    let (ticket, _) = scene.hello();
    scene.told(Event::Started { generation: 1 });
    let effects = scene.told(Event::Exited { generation: 1, exit: Exit::Code(0), survivors: true });
    assert_eq!(effects, [Effect::Follow { generation: 1 }, Effect::Probe { generation: 1 }]);
    let effects = scene.told(scene.probed(true));
    assert_eq!(effects, [Effect::Negotiate { ticket, generation: 1 }]);
    let effects = scene.told(Event::Exited { generation: 1, exit: Exit::Code(1), survivors: true });
    assert!(effects.contains(&Effect::End { generation: 1 }), "only an exit 0 is a daemon's way of forking");
}

#[test]
fn a_silent_daemon_that_forked_away_is_ready_when_it_says_so() {
    let mut scene = Scene::new(Policies { pace: Pace::Silent, ..policies() });
    let (ticket, _) = scene.hello();
    scene.told(Event::Started { generation: 1 });
    let effects = scene.told(Event::Exited { generation: 1, exit: Exit::Code(0), survivors: true });
    assert_eq!(effects, [Effect::Follow { generation: 1 }], "its endpoint is not asked");
    let effects = scene.told(Event::Notified { generation: 1, word: Word::Ready });
    assert_eq!(effects, [Effect::Negotiate { ticket, generation: 1 }]);
}

#[test]
fn news_of_an_earlier_generation_changes_nothing() {
    let (mut scene, _) = Scene::ready();
    scene.exits(Exit::Signal(9));
    scene.pass(Duration::from_millis(250));
    for late in [
        Event::Probed { generation: 1, ready: true, obstacle: None },
        Event::Exited { generation: 1, exit: Exit::Code(0), survivors: false },
        Event::Notified { generation: 1, word: Word::Ready },
        Event::Gone { generation: 1, trace: Trace::default() },
    ] {
        assert_eq!(scene.told(late), []);
        assert_eq!(scene.state(), State::Starting);
    }
}

#[test]
fn an_idle_backend_is_stopped_unless_somebody_is_connected() {
    let mut scene = Scene::new(Policies { idle_timeout: Some(Duration::from_secs(5)), ..policies() });
    let (ticket, _) = scene.hello();
    scene.becomes_ready();
    assert_eq!(scene.pass(Duration::from_secs(60)), [], "held, so not idle");
    scene.told(Event::Withdraw(ticket));
    assert_eq!(scene.pass(Duration::from_secs(5)), [Effect::CountConnections { generation: 1 }]);
    scene.told(Event::Connections { generation: 1, count: 2 });
    assert_eq!(scene.pass(Duration::from_secs(5)), [Effect::CountConnections { generation: 1 }]);
    let effects = scene.told(Event::Connections { generation: 1, count: 0 });
    assert_eq!(effects, [Effect::Terminate { generation: 1 }]);
}

#[test]
fn a_start_that_cannot_work_is_refused_at_once_and_is_no_crash() {
    let mut scene = Scene::new(policies());
    let (ticket, _) = scene.hello();
    let refusal = Refusal::new(Code::SpawnFailed, "no such program");
    let effects = scene.told(Event::StartFailed { generation: 1, refusal: refusal.clone() });
    assert_eq!(effects, [Effect::Refuse { ticket, refusal: Box::new(refusal) }]);
    assert_eq!(scene.backend.view(scene.now).crashes_in_window, 0);
    let (_, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 2 }]);
}

#[test]
fn too_many_waiters_are_refused_and_those_who_wait_are_not() {
    let mut scene = Scene::new(Policies { waiters_max: 2, ..policies() });
    scene.hello();
    scene.hello();
    let (third, effects) = scene.hello();
    assert_eq!(refused(&effects).iter().map(|(t, r)| (*t, r.code)).collect::<Vec<_>>(), [(third, Code::Overloaded)]);
    assert_eq!(scene.becomes_ready().len(), 2);
}

#[test]
fn an_extension_moves_the_ceiling_and_a_status_is_shown() {
    let mut scene = Scene::new(Policies { pace: Pace::Silent, ..policies() });
    scene.hello();
    scene.told(Event::Started { generation: 1 });
    scene.pass(Duration::from_secs(59));
    let word = Word::ExtendTimeout(Duration::from_secs(30));
    scene.told(Event::Notified { generation: 1, word });
    scene.told(Event::Notified { generation: 1, word: Word::Status("replaying".to_owned()) });
    assert_eq!(scene.pass(Duration::from_secs(29)), []);
    assert_eq!(scene.backend.view(scene.now).status.as_deref(), Some("replaying"));
    assert_eq!(scene.pass(Duration::from_secs(1)), [Effect::Terminate { generation: 1 }]);
}

#[test]
fn the_appearance_of_the_socket_wakes_the_wait() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.told(Event::Started { generation: 1 });
    scene.told(scene.probed(false));
    assert_eq!(scene.told(Event::Appeared { generation: 1 }), [Effect::Probe { generation: 1 }]);
    scene.told(scene.probed(false));
    let next = scene.backend.next_deadline();
    assert_eq!(next, Some(scene.now + super::super::readiness::QUICK), "bound, and about to listen");
}

#[test]
fn a_socket_that_appears_before_the_start_is_told_quickens_the_probes() {
    let mut scene = Scene::new(policies());
    scene.hello();
    assert_eq!(scene.told(Event::Appeared { generation: 1 }), []);
    scene.told(Event::Started { generation: 1 });
    scene.told(scene.probed(false));
    assert_eq!(scene.backend.next_deadline(), Some(scene.now + super::super::readiness::QUICK));
}
