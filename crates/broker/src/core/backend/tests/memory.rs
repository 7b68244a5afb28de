//! What a machine remembers, and how the next broker goes on with it.

use super::*;

const IDLE: Duration = Duration::from_millis(200);

impl Scene {
    /// The broker dies, and the next one takes over after that time.
    fn dies_for(&mut self, absence: Duration) {
        self.now = self.now + absence;
        let (memory, policies) = (self.backend.memory(), self.backend.policies);
        self.backend = Backend::restored(self.now, policies, memory);
    }

    fn is_adopted(&mut self) -> Vec<Effect> {
        self.told(Event::Adopted { generation: self.backend.generation })
    }
}

#[test]
fn those_who_held_an_adopted_backend_have_time_to_come_back() {
    let mut scene = Scene::new(Policies { idle_timeout: Some(IDLE), ..policies() });
    scene.hello();
    scene.becomes_ready();
    scene.dies_for(Duration::ZERO);
    assert_eq!(scene.is_adopted(), []);
    assert_eq!(scene.pass(Duration::from_secs(9)), [], "its idle time does not count yet");
    let (ticket, effects) = scene.hello();
    assert_eq!(effects, [Effect::Negotiate { ticket, generation: 1 }]);
    assert_eq!(scene.pass(Duration::from_secs(60)), [], "it is held");
    scene.told(Event::Withdraw(ticket));
    assert_eq!(scene.pass(IDLE), [Effect::CountConnections { generation: 1 }], "and now it counts as ever");
}

#[test]
fn a_backend_that_becomes_ready_after_its_adoption_waits_for_them_too() {
    let mut scene = Scene::new(Policies { idle_timeout: Some(IDLE), ..policies() });
    scene.hello();
    scene.told(Event::Started { generation: 1 });
    scene.dies_for(Duration::ZERO);
    scene.is_adopted();
    scene.told(Event::Probed { generation: 1, ready: true, obstacle: None });
    assert_eq!(scene.state(), State::Ready);
    assert_eq!(scene.pass(Duration::from_secs(9)), []);
    assert_eq!(scene.pass(Duration::from_secs(1)), [Effect::CountConnections { generation: 1 }]);
}

#[test]
fn an_adopted_backend_that_nobody_comes_back_to_is_idle() {
    let mut scene = Scene::new(Policies { idle_timeout: Some(IDLE), ..policies() });
    scene.hello();
    scene.becomes_ready();
    scene.dies_for(Duration::ZERO);
    scene.is_adopted();
    assert_eq!(scene.pass(Duration::from_secs(10)), [Effect::CountConnections { generation: 1 }]);
    let effects = scene.told(Event::Connections { generation: 1, count: 0 });
    assert_eq!(effects, [Effect::Terminate { generation: 1 }]);
}

#[test]
fn an_adopted_start_has_what_is_left_of_its_ceiling() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.told(Event::Started { generation: 1 });
    scene.dies_for(Duration::from_secs(59));
    assert_eq!(scene.is_adopted(), [Effect::Probe { generation: 1 }]);
    scene.told(Event::Probed { generation: 1, ready: false, obstacle: None });
    assert_eq!(scene.pass(Duration::from_secs(1)).last(), Some(&Effect::Terminate { generation: 1 }));
}

#[test]
fn who_may_have_said_ready_to_nobody_is_looked_at_before_it_is_given_up() {
    for (ready, state) in [(true, State::Ready), (false, State::Stopping)] {
        let mut scene = Scene::new(Policies { pace: Pace::Silent, ..policies() });
        scene.hello();
        scene.told(Event::Started { generation: 1 });
        scene.dies_for(Duration::from_secs(1));
        assert_eq!(scene.is_adopted(), []);
        scene.now = scene.now + Duration::from_secs(59);
        assert_eq!(scene.told(Event::Tick), [Effect::Probe { generation: 1 }]);
        scene.told(Event::Probed { generation: 1, ready, obstacle: None });
        assert_eq!(scene.state(), state);
    }
}

#[test]
fn a_refusal_and_its_evidence_outlive_the_broker() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.exits(Exit::Code(1));
    scene.pass(Duration::from_millis(250));
    scene.exits(Exit::Code(7));
    assert_eq!(scene.state(), State::Failed);
    scene.dies_for(Duration::from_secs(10));
    let (_, effects) = scene.hello();
    let (_, refusal) = &refused(&effects)[0];
    assert_eq!((refusal.code, refusal.evidence.exit_code), (Code::BackendUnavailable, Some(7)));
    assert!(refusal.retry_after_ms.is_some_and(|ms| ms < 20_000), "what is left of the window: {refusal:?}");
    scene.pass(Duration::from_secs(20));
    let (_, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 3 }], "generations are counted on");
}

#[test]
fn another_boot_forgets_crashes_and_times_and_counts_generations_on() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.exits(Exit::Code(1));
    let memory = scene.backend.memory().in_another_boot();
    scene.backend = Backend::restored(Timestamp::from_nanos(5), policies(), memory);
    scene.now = Timestamp::from_nanos(5);
    assert_eq!(scene.backend.view(scene.now).crashes_in_window, 0);
    let (_, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 2 }]);
}

#[test]
fn a_quarantined_backend_does_nothing_until_it_is_released() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.becomes_ready();
    let memory = scene.backend.memory().quarantined("nobody knows".to_owned());
    scene.backend = Backend::restored(scene.now, policies(), memory);
    for effects in [scene.hello().1, {
        let operator = scene.waiter(false);
        scene.told(Event::Start(operator))
    }] {
        let (_, refusal) = &refused(&effects)[0];
        assert!(refusal.code == Code::BackendUnavailable && refusal.reason.contains("nobody knows"), "{refusal:?}");
    }
    let operator = scene.waiter(false);
    assert_eq!(scene.told(Event::Stop(Some(operator))), [Effect::Stopped { ticket: operator.ticket }]);
    assert_eq!(scene.told(Event::Release), []);
    let (_, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 2 }]);
}

#[test]
fn who_waits_at_a_hand_over_is_refused_and_what_runs_goes_on() {
    let mut scene = Scene::new(policies());
    let (ticket, _) = scene.hello();
    scene.told(Event::Started { generation: 1 });
    let effects = scene.told(Event::HandOver);
    assert_eq!(refused(&effects)[0].0, ticket);
    assert_eq!((effects.len(), refused(&effects)[0].1.code), (1, Code::ShuttingDown));
    assert_eq!(scene.state(), State::Starting);
}
