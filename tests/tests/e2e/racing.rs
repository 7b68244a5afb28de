//! Exactly one start, however many clients race for it, and no start makes another key wait.

use broker_proto::{ServerMessage, State};
use broker_tests::{Broker, Service, Setup, trials};

trials![
    sixty_processes_race_for_a_cold_key,
    a_start_makes_no_other_key_wait,
    instances_and_versions_have_backends_of_their_own,
    requests_in_flight_on_one_session_are_answered_by_their_ids,
    a_waiting_client_is_told_what_goes_on,
];

fn sixty_processes_race_for_a_cold_key() {
    const CLIENTS: usize = 60;
    let setup = Setup::new();
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("slow", &["--ready-when", &gate])).start();

    let clients: Vec<_> = (0..CLIENTS).map(|_| broker.ctl_in_background(&["--json", "resolve", "slow"])).collect();
    broker.wait_backend("slow", "waited for by all", |backend| backend["waiters"] == CLIENTS);
    broker.open_gate("gate");

    let answers: Vec<_> = clients.into_iter().map(|client| client.finish().done().json()).collect();
    assert!(answers.iter().all(|answer| answer == &answers[0]), "one endpoint, one generation: {answers:?}");
    assert_eq!(answers[0]["generation"], 1);
    let starts = broker.starts("slow");
    assert_eq!(starts.len(), 1);
    assert_eq!(answers[0]["pid"], starts[0].0);
    broker.wait_backend("slow", "held by nobody", |backend| backend["holds"] == 0 && backend["waiters"] == 0);
}

fn a_start_makes_no_other_key_wait() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let slow = Service::fake("slow", &["--ready-when", &gate]);
    let broker = setup.service(&slow).service(&Service::fake("quick", &[])).start();

    let waiting = broker.ctl_in_background(&["resolve", "slow"]);
    broker.wait_state("slow", "starting");
    let quick = broker.resolve("quick");
    assert_eq!(quick["state"], "ready");
    assert_eq!(broker.backend("slow")["state"], "starting");
    broker.open_gate("gate");
    let _ = waiting.finish().done();
}

fn instances_and_versions_have_backends_of_their_own() {
    let service = Service::named("x").version("1.2.0", &["--listen", "{endpoint}"]);
    let broker = Broker::start(&[&service.version("1.10.0", &["--listen", "{endpoint}"])]);

    let newest = broker.resolve("x");
    let same = broker.resolve("x@^1");
    let older = broker.resolve("x@1.2.0");
    let other = broker.resolve("x/tenant-a");
    let by_option = broker.ctl_json(&["resolve", "x", "-i", "tenant-a"]).done().json();

    assert_eq!(newest["version"], "1.10.0", "versions are compared as versions");
    assert_eq!(newest, same);
    assert_eq!(older["version"], "1.2.0");
    assert_eq!((&other["instance"], &other), (&"tenant-a".into(), &by_option));
    for (one, two) in [(&newest, &older), (&newest, &other), (&older, &other)] {
        assert_ne!(one["endpoint"], two["endpoint"]);
        assert_ne!(one["pid"], two["pid"]);
        assert_ne!(broker.dial(one).pid(), broker.dial(two).pid());
    }
    assert_eq!(broker.starts("x").len(), 3);

    let status = broker.ctl_json(&["status"]).done().json();
    let names: Vec<_> = status["backends"].as_array().expect("a list").iter().collect();
    let key =
        |b: &serde_json::Value| [&b["instance"], &b["service"], &b["version"]].map(|v| v.as_str().map(str::to_owned));
    let text = |parts: [&str; 3]| parts.map(|part| Some(part.to_owned()));
    let expected = [["default", "x", "1.2.0"], ["default", "x", "1.10.0"], ["tenant-a", "x", "1.10.0"]].map(text);
    assert_eq!(names.into_iter().map(key).collect::<Vec<_>>(), expected);
}

fn requests_in_flight_on_one_session_are_answered_by_their_ids() {
    let setup = Setup::new();
    let (first, second) = (setup.path("gate-1"), setup.path("gate-2"));
    let setup = setup.service(&Service::fake("one", &["--ready-when", &first]));
    let broker = setup.service(&Service::fake("two", &["--ready-when", &second])).start();

    let mut session = broker.session();
    let (one, two, again) = (session.hello("one"), session.hello("two"), session.hello("one"));
    let unknown = session.hello("nobody-knows");
    session.answer(unknown).expect_err("an unknown service is refused while the others wait");
    broker.open_gate("gate-2");
    assert_eq!(session.answer(two).expect("ready").service, "two");
    broker.open_gate("gate-1");
    let mut ids = [0; 2];
    for id in &mut ids {
        let ServerMessage::Negotiated(negotiated) = next_answer(&mut session) else { panic!("both are ready") };
        assert_eq!((negotiated.service.as_str(), negotiated.generation), ("one", 1));
        *id = negotiated.request_id;
    }
    ids.sort_unstable();
    assert_eq!(ids, [one, again]);
    assert_eq!(broker.backend("one")["holds"], 2, "each request is a hold of its own");

    session.ping();
}

fn next_answer(session: &mut broker_tests::Session) -> ServerMessage {
    loop {
        let message = session.receive().expect("the broker answers");
        if matches!(message, ServerMessage::Negotiated(_) | ServerMessage::Refused { .. }) {
            return message;
        }
    }
}

fn a_waiting_client_is_told_what_goes_on() {
    let setup = Setup::new();
    let (gate, broken) = (setup.path("gate"), setup.path("broken"));
    let service = Service::fake("slow", &["--ready-when", &gate, "--exit", "3", "--when", &broken]);
    let broker = setup.service(&service.toml("[recovery]\nretry_backoff = \"1500ms\"")).start();

    let mut session = broker.session();
    let id = session.hello("slow");
    let mut progress = |what: &str, state, attempt: Option<u32>| {
        session.wait_message(what, |message| match message {
            ServerMessage::Progress(p) if p.state == state && attempt.is_none_or(|n| p.attempt == n) => Some(p.clone()),
            _ => None,
        })
    };
    let first = progress("the start", State::Starting, Some(0));
    assert_eq!((first.request_id, first.version.as_str()), (id, "1.0.0"));
    broker.open_gate("broken");
    let _ = progress("the backoff", State::Backoff, None);
    std::fs::remove_file(broker.path("broken")).expect("the gate can be removed");
    let _ = progress("the retry", State::Starting, Some(1));
    broker.open_gate("gate");
    assert_eq!(session.answer(id).expect("the retry gets ready").generation, 2);
}
