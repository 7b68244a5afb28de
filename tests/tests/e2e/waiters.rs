//! Those who wait, and those who go: nobody's end disturbs another.

use broker_proto::{ClientMessage, Code};
use broker_tests::{Broker, Service, Setup, process_exists, trials, wait_until};
use nix::sys::signal::Signal;

trials![
    a_waiter_whose_own_deadline_passes_is_refused_alone,
    a_client_killed_while_it_waits_disturbs_nobody,
    a_start_goes_on_when_its_only_waiter_has_gone,
    a_client_that_is_gone_holds_nothing,
    a_release_gives_up_one_hold,
    a_released_wait_is_no_wait,
];

fn gated() -> (Setup, Service) {
    let setup = Setup::new();
    let gate = setup.path("gate");
    (setup, Service::fake("slow", &["--ready-when", &gate]))
}

fn a_waiter_whose_own_deadline_passes_is_refused_alone() {
    let (setup, service) = gated();
    let broker = setup.service(&service).start();
    let patient = broker.ctl_in_background(&["--json", "resolve", "slow"]);
    broker.wait_backend("slow", "waited for", |b| b["waiters"] == 1);

    let refused = broker.ctl_json(&["resolve", "slow", "--timeout", "300ms"]).refused(75, "start_timeout");
    assert!(refused["evidence"]["exit_code"].is_null(), "{refused}");
    let mut session = broker.session();
    let mut hello = session.hello_for("slow");
    hello.deadline_ms = Some(1);
    let id = hello.request_id;
    session.send(&ClientMessage::Hello(hello));
    assert_eq!(session.answer(id).expect_err("its deadline is over").code, Code::StartTimeout);

    let backend = broker.wait_backend("slow", "waited for by one", |b| b["waiters"] == 1);
    assert_eq!(backend["state"], "starting");
    broker.open_gate("gate");
    assert_eq!(patient.finish().done().json()["generation"], 1);
    assert_eq!(broker.starts("slow").len(), 1);
}

fn a_client_killed_while_it_waits_disturbs_nobody() {
    let (setup, service) = gated();
    let broker = setup.service(&service).start();
    let doomed: Vec<_> = (0..3).map(|_| broker.ctl_in_background(&["resolve", "slow"])).collect();
    let patient = broker.ctl_in_background(&["--json", "resolve", "slow"]);
    broker.wait_backend("slow", "waited for by four", |b| b["waiters"] == 4);
    for client in doomed {
        client.signal(Signal::SIGKILL);
        assert_eq!(client.finish().code, 128 + 9);
    }
    broker.wait_backend("slow", "waited for by one", |b| b["waiters"] == 1);
    broker.open_gate("gate");
    assert_eq!(patient.finish().done().json()["generation"], 1);
    broker.wait_backend("slow", "held by nobody", |b| b["holds"] == 0);
    assert_eq!(broker.starts("slow").len(), 1);
}

fn a_start_goes_on_when_its_only_waiter_has_gone() {
    let (setup, service) = gated();
    let broker = setup.service(&service).start();
    let _ = broker.ctl_json(&["resolve", "slow", "--timeout", "200ms"]).refused(75, "start_timeout");
    broker.open_gate("gate");
    assert_eq!(broker.resolve("slow")["generation"], 1);
    assert_eq!(broker.starts("slow").len(), 1);
}

fn a_client_that_is_gone_holds_nothing() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let holder = broker.ctl_in_background(&["exec", "x", "--", "sleep", "1000"]);
    let session = {
        let mut session = broker.session();
        let _ = session.hold("x");
        session
    };
    broker.wait_backend("x", "held by two", |b| b["holds"] == 2);
    drop(session);
    broker.wait_backend("x", "held by one", |b| b["holds"] == 1);

    let command = child_of(holder.pid());
    holder.signal(Signal::SIGKILL);
    let backend = broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
    assert_eq!((&backend["state"], &backend["generation"]), (&"ready".into(), &1.into()));
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(command), Signal::SIGKILL);
    wait_until("the orphaned command is gone", || !process_exists(u64::from(command.unsigned_abs())));
}

fn child_of(parent: u32) -> i32 {
    broker_tests::wait_for("a child", || {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let all = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?;
        let of_threads = all.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        std::iter::once(children).chain(of_threads).find_map(|text| text.split_whitespace().next()?.parse().ok())
    })
}

fn a_release_gives_up_one_hold() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let (one, two) = (session.hello("x"), session.hello("x"));
    for id in [one, two] {
        session.answer(id).expect("ready");
    }
    assert_eq!(broker.backend("x")["holds"], 2);
    session.release(one);
    session.release(one);
    session.release(4711);
    broker.wait_backend("x", "held by one", |b| b["holds"] == 1);
    session.release(two);
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
    assert_eq!(session.hold("x").generation, 1, "the session goes on");
}

fn a_released_wait_is_no_wait() {
    let (setup, service) = gated();
    let broker = setup.service(&service).start();
    let mut session = broker.session();
    let (given_up, kept) = (session.hello("slow"), session.hello("slow"));
    broker.wait_backend("slow", "waited for by two", |b| b["waiters"] == 2);
    session.release(given_up);
    broker.wait_backend("slow", "waited for by one", |b| b["waiters"] == 1);
    broker.open_gate("gate");
    session.answer(kept).expect("ready");
    broker.wait_backend("slow", "held by one", |b| b["holds"] == 1);
}
