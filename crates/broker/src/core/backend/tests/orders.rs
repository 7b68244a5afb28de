//! What operators order, and what a changed service file does.

use super::*;

#[test]
fn a_stop_ends_holds_and_waits_and_what_comes_later_starts_anew() {
    let (mut scene, held) = Scene::ready();
    let observer = scene.waiter(false);
    let effects = scene.told(Event::Stop(Some(observer)));
    assert_eq!(effects, [Effect::Tell { ticket: held, news: News::Stopped }, Effect::Terminate { generation: 1 }]);
    let (later, effects) = scene.hello();
    assert_eq!(effects, [], "it waits for the end");
    let effects = scene.exits(Exit::Signal(15));
    assert_eq!(effects, [Effect::Stopped { ticket: observer.ticket }, Effect::Start { generation: 2 }]);
    assert_eq!(scene.becomes_ready(), [Effect::Negotiate { ticket: later, generation: 2 }]);
}

#[test]
fn a_stop_before_the_program_runs_ends_it_once_it_does() {
    let mut scene = Scene::new(policies());
    let (ticket, _) = scene.hello();
    let effects = scene.told(Event::Stop(None));
    assert_eq!(refused(&effects).iter().map(|(t, r)| (*t, r.code)).collect::<Vec<_>>(), [(ticket, Code::ShuttingDown)]);
    assert_eq!(scene.pass(Duration::from_secs(60)), [], "there is nobody to signal yet");
    assert_eq!(scene.told(Event::Started { generation: 1 }), [Effect::Terminate { generation: 1 }]);
    assert_eq!(scene.exits(Exit::Signal(15)), []);
    assert_eq!(scene.state(), State::Inactive);
}

#[test]
fn a_restart_keeps_the_holds() {
    let (mut scene, held) = Scene::ready();
    let operator = scene.waiter(false);
    scene.told(Event::Restart(operator));
    assert_eq!(scene.exits(Exit::Signal(15)), [Effect::Start { generation: 2 }]);
    let effects = scene.becomes_ready();
    let news = News::Ready { generation: 2 };
    let told = Effect::Tell { ticket: held, news };
    assert_eq!(effects, [told, Effect::Negotiate { ticket: operator.ticket, generation: 2 }]);
    assert_eq!(scene.backend.view(scene.now).holds, 1);
}

#[test]
fn a_drain_refuses_the_new_and_ends_with_the_last_hold() {
    let (mut scene, held) = Scene::ready();
    assert_eq!(scene.told(Event::Drain), [Effect::Tell { ticket: held, news: News::Draining }]);
    let (_, effects) = scene.hello();
    assert_eq!(refused(&effects)[0].1.code, Code::ShuttingDown);
    assert_eq!(scene.told(Event::Withdraw(held)), [Effect::CountConnections { generation: 1 }]);
    assert_eq!(scene.told(Event::Connections { generation: 1, count: 1 }), [], "somebody is still connected");
    assert_eq!(scene.pass(Duration::from_secs(1)), [Effect::CountConnections { generation: 1 }]);
    let effects = scene.told(Event::Connections { generation: 1, count: 0 });
    assert_eq!(effects, [Effect::Terminate { generation: 1 }]);
    scene.exits(Exit::Signal(15));
    let operator = scene.waiter(false);
    assert_eq!(scene.told(Event::Start(operator)), [Effect::Start { generation: 2 }], "a start ends the drain");
}

#[test]
fn an_operators_stop_lets_time_close_the_window() {
    let (mut scene, _) = Scene::ready();
    scene.exits(Exit::Signal(9));
    scene.pass(Duration::from_millis(250));
    scene.becomes_ready();
    scene.told(Event::Stop(None));
    scene.exits(Exit::Signal(15));
    scene.pass(Duration::from_secs(31));
    scene.hello();
    scene.exits(Exit::Code(1));
    assert_eq!(scene.state(), State::Backoff, "the first crash in a new window is retried");
}

#[test]
fn a_changed_definition_clears_the_budget_and_is_for_the_next_start() {
    let mut scene = Scene::new(policies());
    scene.hello();
    scene.exits(Exit::Code(1));
    scene.pass(Duration::from_millis(250));
    scene.exits(Exit::Code(1));
    assert_eq!(scene.state(), State::Failed);
    scene.told(Event::Redefine(Policies { hard_ceiling: Duration::from_secs(1), ..policies() }));
    let (_, effects) = scene.hello();
    assert_eq!(effects, [Effect::Start { generation: 3 }]);
    scene.told(Event::Started { generation: 3 });
    assert_eq!(scene.pass(Duration::from_secs(1)).last(), Some(&Effect::Terminate { generation: 3 }));
}
