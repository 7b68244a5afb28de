//! The typed answers No: each row of the table, its exit code, and what a person reads.

use std::fs;

use broker_proto::{
    ClientMessage, Code, HIGHEST_VERSION, LOWEST_VERSION, MAGIC, Preamble, ServerMessage, encode_frame,
};
use broker_tests::{Broker, Service, Session, Setup, trials};
use nix::sys::signal::Signal;
use serde_json::json;

trials![
    an_unknown_service_is_refused_for_good,
    an_unsatisfied_requirement_lists_what_there_is,
    versions_below_the_minimum_or_denied_are_blocked,
    a_program_that_cannot_be_executed_is_refused_at_once,
    a_missing_working_directory_is_refused_at_once,
    too_many_backends_are_refused_for_now,
    too_many_waiters_are_refused_for_now,
    a_drained_backend_refuses_new_clients_until_start,
    a_client_that_is_refused_without_end_does_not_fill_the_log,
    names_and_requirements_that_are_none_are_malformed,
    a_protocol_from_the_future_is_answered_with_the_versions_that_there_are,
    where_no_broker_runs_the_error_says_how_to_start_one,
];

fn an_unknown_service_is_refused_for_good() {
    let broker = Broker::start(&[&Service::fake("redis", &[])]);
    let refused = broker.ctl_json(&["resolve", "rediss"]).refused(69, "service_unknown");
    assert!(refused["retry_after_ms"].is_null(), "{refused}");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("rediss")), "{refused}");
    for arguments in [&["exec", "nobody", "--", "true"][..], &["start", "nobody"], &["connect", "nobody"]] {
        let _ = broker.ctl_json(arguments).refused(69, "service_unknown");
    }
    let human = broker.ctl(&["resolve", "rediss"]).exits(69);
    assert!(human.stderr.contains("rediss") && human.stdout.is_empty(), "{}", human.stderr);
    assert!(!human.stderr.contains('\x1b'), "no colours in a pipe");
}

fn an_unsatisfied_requirement_lists_what_there_is() {
    let listen = ["--listen", "{endpoint}"];
    let service = Service::named("x").version("1.10.0", &listen).version("1.9.0", &listen).version("2.0.0", &listen);
    let broker = Broker::start(&[&service]);
    let refused = broker.ctl_json(&["resolve", "x@^7"]).refused(69, "version_unsupported");
    assert_eq!(refused["evidence"]["available"], json!(["1.9.0", "1.10.0", "2.0.0"]), "ascending");
    assert_eq!(broker.ctl_json(&["resolve", "x@<2"]).done().json()["version"], "1.10.0");
}

fn versions_below_the_minimum_or_denied_are_blocked() {
    let listen = ["--listen", "{endpoint}"];
    let service = Service::named("x").version("1.0.0", &listen).version("2.0.0", &listen).version("2.1.0", &listen);
    let broker = Broker::start(&[&service.toml("[versions]\nminimum = \"2.0.0\"\ndeny = [\"2.1.0\"]")]);
    for blocked in ["x@^1", "x@2.1.0", "x@>2.0.0"] {
        let refused = broker.ctl_json(&["resolve", blocked]).refused(69, "version_blocked");
        assert!(refused["retry_after_ms"].is_null(), "{refused}");
    }
    assert_eq!(broker.resolve("x")["version"], "2.0.0", "the highest that is allowed");
    assert_eq!(broker.resolve("x@^2")["version"], "2.0.0");
    let _ = broker.ctl_json(&["resolve", "x@^3"]).refused(69, "version_unsupported");
    let services = broker.ctl_json(&["services"]).done().json();
    let versions = services["services"][0]["versions"].as_array().expect("versions").clone();
    let allowed: Vec<_> = versions.iter().map(|v| (v["version"].as_str(), v["allowed"].as_bool())).collect();
    let expected = [("1.0.0", false), ("2.0.0", true), ("2.1.0", false)].map(|(v, allowed)| (Some(v), Some(allowed)));
    assert_eq!(allowed, expected);
    assert!(versions[0]["why_not"].is_string() && versions[1]["why_not"].is_null(), "{versions:?}");
}

fn a_program_that_cannot_be_executed_is_refused_at_once() {
    let setup = Setup::new();
    let (missing, plain) = (setup.path("missing"), setup.path("plain"));
    fs::write(&plain, "not a program").expect("the folder takes a file");
    let setup = setup.service(&Service::named("missing").command("1.0.0", &[&missing]));
    let broker = setup.service(&Service::named("plain").command("1.0.0", &[&plain])).start();
    for (name, path, errno) in [("missing", &missing, "No such file"), ("plain", &plain, "ermission denied")] {
        let refused = broker.ctl_json(&["resolve", name]).refused(69, "spawn_failed");
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(reason.contains(path.as_str()) && reason.contains(errno), "{reason}");
        let human = broker.ctl(&["resolve", name]).exits(69);
        assert!(human.stderr.contains(path.as_str()) && human.stderr.contains(errno), "{}", human.stderr);
        let backend = broker.backend(name);
        assert!(backend.is_null() || backend["pid"].is_null(), "{backend}");
    }
    broker.write_service(&Service::fake("missing", &[]));
    let _ = broker.ctl(&["reload"]).done();
    assert_eq!(broker.resolve("missing")["state"], "ready", "a repaired file is served at once");
}

fn a_missing_working_directory_is_refused_at_once() {
    let setup = Setup::new();
    let gone = setup.path("gone");
    let service = Service::fake("x", &[]).toml(&format!("[lifecycle]\nworking_directory = {gone:?}"));
    let broker = setup.service(&service).start();
    let refused = broker.ctl_json(&["resolve", "x"]).refused(69, "spawn_failed");
    let reason = refused["reason"].as_str().expect("a reason");
    assert!(reason.contains(&gone) && reason.contains("No such file"), "{reason}");
    assert_eq!(broker.starts("x"), []);
    fs::create_dir(&gone).expect("the folder takes a folder");
    let _ = broker.ctl(&["start", "x"]).done();
}

fn too_many_backends_are_refused_for_now() {
    let setup = Setup::new().config("[limits]\nbackends = 1\n");
    let broker = setup.service(&Service::fake("one", &[])).service(&Service::fake("two", &[])).start();
    let one = broker.resolve("one");
    let refused = broker.ctl_json(&["resolve", "two"]).refused(75, "overloaded");
    assert!(refused["retry_after_ms"].is_u64(), "{refused}");
    assert_eq!(broker.resolve("one"), one, "who is served stays served");
    let _ = broker.ctl(&["stop", "one"]).done();
    assert_eq!(broker.resolve("two")["state"], "ready");
}

fn too_many_waiters_are_refused_for_now() {
    let setup = Setup::new().config("[limits]\nwaiters_per_backend = 2\n");
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("slow", &["--ready-when", &gate])).start();
    let mut session = broker.session();
    let waiting = [session.hello("slow"), session.hello("slow")];
    broker.wait_backend("slow", "waited for by two", |b| b["waiters"] == 2);
    let refused = broker.ctl_json(&["resolve", "slow"]).refused(75, "overloaded");
    assert!(refused["retry_after_ms"].is_u64(), "{refused}");
    broker.open_gate("gate");
    for id in waiting {
        session.answer(id).expect("who waits already is not cut");
    }
    assert_eq!(broker.resolve("slow")["state"], "ready");
}

fn a_drained_backend_refuses_new_clients_until_start() {
    let broker = Broker::start(&[&Service::fake("x", &[]), &Service::fake("other", &[])]);
    let mut session = broker.session();
    let id = session.hello("x");
    session.answer(id).expect("ready");
    let drained = broker.ctl_json(&["drain", "x"]).done().json();
    let expected = json!([{"instance": "default", "service": "x", "version": "1.0.0", "holds": 1}]);
    assert_eq!(drained["draining"], expected);
    crate::recovery::wait_event(&mut session, "the drain", |event| {
        matches!(event, broker_proto::Event::Draining).then_some(())
    });
    let refused = broker.ctl_json(&["resolve", "x"]).refused(75, "shutting_down");
    assert!(refused["retry_after_ms"].is_u64(), "{refused}");
    let backend = broker.backend("x");
    assert_eq!(
        (&backend["state"], &backend["draining"]),
        (&"ready".into(), &true.into()),
        "it serves its last clients"
    );
    assert_eq!(broker.resolve("other")["state"], "ready");

    session.release(id);
    broker.wait_backend("x", "down", |b| b.is_null() || b["pid"].is_null());
    let _ = broker.ctl_json(&["resolve", "x"]).refused(75, "shutting_down");
    let _ = broker.ctl(&["start", "x"]).done();
    assert_eq!(broker.resolve("x")["state"], "ready");
}

fn a_client_that_is_refused_without_end_does_not_fill_the_log() {
    let absent = Service::named("absent").command("1.0.0", &["/nowhere/at-all"]);
    let mut broker = Broker::start(&[&Service::fake("x", &[]), &absent]);
    let _ = broker.resolve("x");
    let _ = broker.ctl(&["drain", "x"]).done();
    let mut session = broker.session();
    // Each of them is a start.
    for _ in 0..300 {
        assert_eq!(session.resolve("absent").expect_err("it cannot be executed").code, Code::SpawnFailed);
    }
    for (service, code) in [("x", Code::ShuttingDown), ("unknown", Code::ServiceUnknown)] {
        let asked: Vec<_> = (0..500).map(|_| session.hello(service)).collect();
        for id in asked {
            assert_eq!(session.answer(id).expect_err(service).code, code, "each is answered");
        }
    }
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    assert!(!broker.log().contains("starting backend=absent"), "what comes of a start is told");
    for (line, times) in [("not started: ", 300), ("refused: ", 1300)] {
        let told = broker.log().matches(line).count();
        assert!((1..times).contains(&told), "{told} lines of {times}: {line}");
    }
    broker.may_leave_processes();
}

fn names_and_requirements_that_are_none_are_malformed() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let long = "y".repeat(200);
    for (service, instance, requirement) in [
        ("Not A Name", "default", "*"),
        (&long, "default", "*"),
        ("x", "../..", "*"),
        ("x", &long, "*"),
        ("x", "default", "seven"),
    ] {
        let mut hello = session.hello_for(service);
        instance.clone_into(&mut hello.instance);
        requirement.clone_into(&mut hello.version_requirement);
        let id = hello.request_id;
        session.send(&ClientMessage::Hello(hello));
        let refusal = session.answer(id).expect_err("no name");
        assert_eq!(refusal.code, Code::Malformed, "{refusal}");
        assert!(refusal.reason.len() < 200, "{refusal}");
    }
    assert_eq!(session.hold("x").generation, 1, "one bad request does not cost the session");
    for bad in ["Not A Name", &long, "x@", "x@seven", "x/../.."] {
        let output = broker.ctl(&["resolve", bad]).exits(2);
        assert!(!output.stderr.is_empty(), "`{bad}` is explained");
    }
}

fn a_protocol_from_the_future_is_answered_with_the_versions_that_there_are() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let future = |lowest: u16, highest: u16, written: u16| {
        let mut bytes = MAGIC.to_vec();
        for number in [lowest, highest, written] {
            bytes.extend(number.to_le_bytes());
        }
        let mut session = Session::silent(&broker.socket());
        encode_frame(&"a message of the future", &mut bytes).expect("short");
        session.write(&bytes).expect("the broker reads");
        session
    };
    let mut newer = future(LOWEST_VERSION, HIGHEST_VERSION + 1, HIGHEST_VERSION + 1);
    let preamble = newer.preamble().expect("the broker says what it can");
    assert_eq!((preamble.lowest, preamble.highest), (LOWEST_VERSION, HIGHEST_VERSION));
    newer.write(&Preamble::writing(HIGHEST_VERSION).to_bytes()).expect("the broker waits for another preamble");
    assert_eq!(newer.hold("x").generation, 1, "sent again, in a version that both can");

    let mut stranger = future(900, 901, 901);
    let preamble = stranger.preamble().expect("the broker says what it can");
    assert_eq!(preamble.highest, HIGHEST_VERSION);
    let said = stranger.closed();
    let refused = said.iter().any(
        |message| matches!(message, ServerMessage::Refused { refusal, .. } if refusal.code == Code::ProtocolUnsupported),
    );
    assert!(refused || said.is_empty(), "{said:?}");
    assert_eq!(broker.resolve("x")["generation"], 1);
}

fn where_no_broker_runs_the_error_says_how_to_start_one() {
    let mut broker = Broker::start(&[]);
    broker.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(broker.ended().success());
    let socket = broker.socket();
    for arguments in [&["status"][..], &["resolve", "x"], &["exec", "x", "--", "true"], &["--json", "services"]] {
        let output = broker.ctl(arguments).exits(69);
        assert!(output.stderr.contains("brokerd"), "how to start one:\n{}", output.stderr);
        assert!(output.stderr.contains(socket.to_str().expect("ASCII")), "where it looked:\n{}", output.stderr);
    }
}
