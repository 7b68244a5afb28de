//! What is put down of a backend, whoever holds it.

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// What was put down since the last look, for the newest generation unless the test says otherwise.
fn recorded(scene: &mut Scene) -> Vec<(u64, Happening)> {
    std::mem::take(&mut scene.record)
}

fn exited(exit: Exit, lived: Duration, crash: bool) -> Happening {
    Happening::Exited { exit, lived, crash }
}

#[test]
fn a_start_is_recorded_and_a_warm_hello_is_not() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.now = scene.now + MS(12);
    scene.becomes_ready();
    let start = [Happening::Starting { attempt: 0 }, Happening::Started, Happening::Ready { after: MS(12) }];
    assert_eq!(recorded(&mut scene), start.map(|happening| (1, happening)));
    let (ticket, _) = scene.hello();
    scene.told(Event::Withdraw(ticket));
    assert_eq!(recorded(&mut scene), []);
}

#[test]
fn a_crash_its_retry_and_the_refusal_are_recorded_once_though_two_hold() {
    let (mut scene, _) = Scene::ready();
    scene.hello();
    recorded(&mut scene);
    scene.exits(Exit::Signal(9));
    scene.pass(MS(250));
    let crash = [
        (1, exited(Exit::Signal(9), MS(0), true)),
        (1, Happening::Restarting { delay: MS(250) }),
        (2, Happening::Starting { attempt: 1 }),
    ];
    assert_eq!(recorded(&mut scene), crash);
    scene.told(Event::Started { generation: 2 });
    scene.exits(Exit::Code(7));
    let again = recorded(&mut scene);
    let [(2, Happening::Started), (2, exit), (2, Happening::Failed { refusal })] = &again[..] else {
        panic!("{again:?}")
    };
    assert_eq!(*exit, exited(Exit::Code(7), MS(0), true));
    assert_eq!((refusal.code, refusal.evidence.exit_code), (Code::BackendUnavailable, Some(7)));
}

#[test]
fn a_crash_that_nobody_cares_about_is_recorded_too() {
    let (mut scene, ticket) = Scene::ready();
    scene.told(Event::Withdraw(ticket));
    recorded(&mut scene);
    scene.exits(Exit::Code(1));
    assert_eq!(recorded(&mut scene), [(1, exited(Exit::Code(1), MS(0), true))], "and no restart, for none is planned");
}

#[test]
fn a_start_that_cannot_work_is_recorded_with_its_refusal() {
    let mut scene = Scene::new(policies());
    scene.hello();
    recorded(&mut scene);
    let refusal = Refusal::new(Code::SpawnFailed, "no such program");
    scene.told(Event::StartFailed { generation: 1, refusal: refusal.clone() });
    assert_eq!(recorded(&mut scene), [(1, Happening::Failed { refusal: Box::new(refusal) })]);
}

#[test]
fn an_end_that_was_asked_for_says_why() {
    let idle = Policies { idle_timeout: Some(MS(100)), ..policies() };
    let ended = |policies: Policies, order: fn(&mut Scene, Ticket)| {
        let mut scene = Scene::new(policies);
        let (ticket, _) = scene.hello();
        scene.becomes_ready();
        recorded(&mut scene);
        order(&mut scene, ticket);
        scene.exits(Exit::Signal(15));
        let record = recorded(&mut scene).into_iter().map(|(_, happening)| happening);
        record.filter(|h| !matches!(h, Happening::Starting { .. } | Happening::Draining)).collect::<Vec<_>>()
    };
    let expect = |why, lived| [Happening::Stopping { why }, exited(Exit::Signal(15), lived, false), Happening::Stopped];
    let by_order = ended(policies(), |scene, _| {
        let observer = scene.waiter(false);
        scene.told(Event::Stop(Some(observer)));
    });
    assert_eq!(by_order, expect(Why::Order, MS(0)));
    let with_the_broker = ended(policies(), |scene, _| drop(scene.told(Event::Stop(None))));
    assert_eq!(with_the_broker, expect(Why::Shutdown, MS(0)));
    let by_restart = ended(policies(), |scene, _| {
        let operator = scene.waiter(false);
        scene.told(Event::Restart(operator));
    });
    assert_eq!(by_restart, expect(Why::Restart, MS(0)));
    let by_idleness = ended(idle, |scene, ticket| {
        scene.told(Event::Withdraw(ticket));
        scene.pass(MS(100));
        scene.told(Event::Connections { generation: 1, count: 0 });
    });
    assert_eq!(by_idleness, expect(Why::Idle, MS(100)));
    let by_drain = ended(policies(), |scene, ticket| {
        scene.told(Event::Drain);
        scene.told(Event::Withdraw(ticket));
        scene.told(Event::Connections { generation: 1, count: 0 });
    });
    assert_eq!(by_drain, expect(Why::Drain, MS(0)));
}

#[test]
fn an_end_by_force_is_recorded_as_such() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.told(Event::Started { generation: 1 });
    recorded(&mut scene);
    scene.pass(Duration::from_secs(70));
    scene.told(Event::Gone { generation: 1, trace: Trace::default() });
    let end = [
        (1, Happening::Stopping { why: Why::Ceiling }),
        (1, Happening::Killed { after: Duration::from_secs(10) }),
        (1, Happening::Stopped),
        (1, Happening::Restarting { delay: Duration::ZERO }),
        (2, Happening::Starting { attempt: 1 }),
    ];
    assert_eq!(recorded(&mut scene), end);
}

#[test]
fn an_order_that_finds_a_crashed_generation_on_its_way_out_takes_it_over() {
    let (mut scene, _) = Scene::ready();
    recorded(&mut scene);
    scene.told(Event::Exited { generation: 1, exit: Exit::Code(1), survivors: false });
    for _ in 0..2 {
        let observer = scene.waiter(false);
        scene.told(Event::Stop(Some(observer)));
    }
    scene.told(Event::Gone { generation: 1, trace: Trace::default() });
    let record = [exited(Exit::Code(1), MS(0), true), Happening::Stopping { why: Why::Order }, Happening::Stopped];
    assert_eq!(recorded(&mut scene), record.map(|happening| (1, happening)));
}

#[test]
fn a_stop_between_a_crash_and_its_retry_is_recorded() {
    let (mut scene, _) = Scene::ready();
    scene.exits(Exit::Code(1));
    assert_eq!(scene.state(), State::Backoff);
    recorded(&mut scene);
    scene.told(Event::Stop(None));
    assert_eq!(recorded(&mut scene), [(1, Happening::Stopping { why: Why::Shutdown }), (1, Happening::Stopped)]);
}

#[test]
fn a_daemon_that_finished_or_forked_away_did_not_crash() {
    let (mut scene, ticket) = Scene::ready();
    scene.told(Event::Withdraw(ticket));
    recorded(&mut scene);
    scene.exits(Exit::Code(0));
    assert_eq!(recorded(&mut scene), [(1, exited(Exit::Code(0), MS(0), false)), (1, Happening::Finished)]);
    let (mut scene, _) = Scene::ready();
    recorded(&mut scene);
    scene.told(Event::Exited { generation: 1, exit: Exit::Code(0), survivors: true });
    assert_eq!(recorded(&mut scene), [(1, Happening::Forked)]);
}

#[test]
fn what_was_taken_down_did_not_crash() {
    let (mut scene, ticket) = Scene::ready();
    scene.told(Event::Withdraw(ticket));
    recorded(&mut scene);
    scene.told(Event::TakenDown { generation: 1, exit: Exit::Signal(15) });
    let ended = [(1, exited(Exit::Signal(15), MS(0), false)), (1, Happening::TakenDown)];
    assert_eq!(recorded(&mut scene), ended);
    scene.told(Event::Gone { generation: 1, trace: Trace::default() });
    assert_eq!((recorded(&mut scene), scene.state()), (vec![], State::Inactive));
    let view = scene.backend.view(scene.now);
    assert_eq!((view.crashes_in_window, view.retry_after), (0, None));
}

#[test]
fn what_was_taken_down_while_it_is_wanted_is_started_again() {
    let (mut scene, _) = Scene::ready();
    scene.told(Event::TakenDown { generation: 1, exit: Exit::Signal(9) });
    scene.told(Event::Gone { generation: 1, trace: Trace::default() });
    assert_eq!((scene.state(), scene.backend.generation), (State::Starting, 2));
}

#[test]
fn a_drain_is_recorded_when_it_begins_and_when_it_ends() {
    let (mut scene, _) = Scene::ready();
    recorded(&mut scene);
    scene.told(Event::Drain);
    scene.told(Event::Drain);
    assert_eq!(recorded(&mut scene), [(1, Happening::Draining)]);
    for _ in 0..2 {
        let operator = scene.waiter(false);
        scene.told(Event::Start(operator));
    }
    assert_eq!(recorded(&mut scene), [(1, Happening::DrainEnded)]);
}
