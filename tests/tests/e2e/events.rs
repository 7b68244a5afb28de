//! What happened to backends: the record, its cursors, and waiting for more.

use std::time::{Duration, Instant};

use broker_proto::{AdminRequest, ClientMessage, Code, Reconnect, RequestId, Selection, ServerMessage};
use broker_tests::{BOUND, Broker, Service, Session, Setup, trials, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::recovery::kill_backend;

trials![
    a_start_a_crash_and_a_refusal_are_on_record_in_order,
    ends_are_on_record_with_their_reason,
    a_cursor_goes_on_without_loss_or_repetition,
    a_cursor_of_a_former_broker_starts_anew,
    a_cursor_that_is_none_is_malformed,
    a_selection_filters_what_is_read_and_what_is_waited_for,
    a_wait_in_vain_is_answered_empty,
    many_may_wait_and_an_id_waits_once,
    waits_count_among_the_requests_of_a_session,
    a_wait_that_is_given_up_is_not_answered,
    a_broker_that_leaves_answers_who_waits,
    the_last_thousand_are_kept,
];

/// A request id of the tests' own, far from those that a session counts.
const WAITING: RequestId = 1 << 40;

fn of(service: &str) -> Selection {
    Selection { service: Some(service.to_owned()), ..Selection::default() }
}

fn request(selection: &Selection, after: &Value, wait: Option<Duration>) -> AdminRequest {
    let wait_ms = wait.map(|wait| u64::try_from(wait.as_millis()).expect("short"));
    AdminRequest::Events { selection: selection.clone(), after: after.as_str().map(str::to_owned), wait_ms }
}

/// Everything that is kept, or what came after a cursor.
#[track_caller]
fn read(session: &mut Session, selection: &Selection, after: &Value) -> Value {
    session.admin(request(selection, after, None)).expect("the broker's own user may read")
}

fn wait_for_more(session: &mut Session, request_id: RequestId, selection: &Selection, after: &Value) {
    let request = request(selection, after, Some(BOUND));
    session.send(&ClientMessage::Admin { request_id, request });
}

#[track_caller]
fn answer(session: &mut Session, id: RequestId) -> Value {
    session.wait_message("the events", |message| match message {
        ServerMessage::AdminReply { request_id, json } if *request_id == id => {
            Some(serde_json::from_str(json).expect("a report is JSON"))
        }
        _ => None,
    })
}

/// Whether an answer has arrived, once the broker has read all that was sent.
#[track_caller]
fn is_answered(session: &mut Session, id: RequestId) -> bool {
    session.ping();
    session.aside.iter().any(|message| match message {
        ServerMessage::AdminReply { request_id, .. } | ServerMessage::Refused { request_id, .. } => *request_id == id,
        _ => false,
    })
}

fn list(page: &Value) -> &[Value] {
    page["events"].as_array().unwrap_or_else(|| panic!("no events in {page}"))
}

fn words(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().expect("a word")).collect()
}

pub(crate) fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["number"].as_u64().expect("a number")).collect()
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
}

pub(crate) fn bad() -> Service {
    Service::fake("bad", &["--exit", "7", "--stderr", "the disk is on fire"])
}

fn a_start_a_crash_and_a_refusal_are_on_record_in_order() {
    let broker = Broker::start(&[&Service::fake("x", &[]), &bad()]);
    let backend = broker.resolve("x");
    let _ = broker.ctl_json(&["resolve", "bad/tenant-a"]).refused(75, "backend_unavailable");
    let events = json_lines(&broker.ctl_json(&["events"]).done().stdout);
    assert_eq!(numbers(&events), (1..=11).collect::<Vec<_>>());
    let crash = ["starting", "started", "exited"];
    let expected = [&["starting", "started", "ready"][..], &crash, &["restarting"], &crash, &["failed"]].concat();
    assert_eq!(words(&events), expected);
    for (at, event) in events.iter().enumerate() {
        let (name, generation) = if at < 3 { ("x", 1) } else { ("bad", if at < 7 { 1 } else { 2 }) };
        let instance = if at < 3 { "default" } else { "tenant-a" };
        assert_eq!((&event["service"], &event["instance"]), (&name.into(), &instance.into()));
        assert_eq!((&event["version"], &event["generation"]), (&"1.0.0".into(), &generation.into()), "{event}");
        let time = event["time"].as_str().expect("a time");
        assert!(time.len() == "2026-11-22T03:24:16.579Z".len() && time.ends_with('Z'), "{time}");
    }
    assert!(events.is_sorted_by_key(|event| event["time"].as_str().expect("a time").to_owned()), "{events:?}");
    for ready in &events[1..3] {
        assert_eq!((&ready["pid"], &ready["endpoint"]), (&backend["pid"], &backend["endpoint"]));
    }
    assert!(events[2]["after_ms"].is_u64(), "{}", events[2]);
    assert_eq!((&events[3]["attempt"], &events[7]["attempt"]), (&0.into(), &1.into()));
    let exited = &events[5];
    assert_eq!((&exited["exit_code"], &exited["signal"], &exited["crash"]), (&7.into(), &Value::Null, &true.into()));
    assert!(exited["lived_ms"].is_u64(), "{exited}");
    assert!(events[6]["delay_ms"].as_u64().is_some_and(|ms| (1..=250).contains(&ms)), "{}", events[6]);
    let refused = &events[10]["refused"];
    assert_eq!((&refused["code"], &refused["evidence"]["exit_code"]), (&"backend_unavailable".into(), &7.into()));
    assert!(refused["retry_after_ms"].is_u64() && refused["reason"].is_string(), "{refused}");
    assert!(refused["evidence"]["stderr"].as_str().is_some_and(|text| text.contains("on fire")), "{refused}");
    let again = broker.ctl_json(&["resolve", "bad/tenant-a"]).code;
    assert_eq!(
        json_lines(&broker.ctl_json(&["events"]).done().stdout),
        events,
        "refused with {again}, nothing happened"
    );
}

fn ends_are_on_record_with_their_reason() {
    let idle = Service::fake("idle", &[]).toml("[lifecycle]\nidle_timeout = \"50ms\"");
    let deaf = Service::fake("deaf", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"50ms\"");
    let broker = Broker::start(&[&Service::fake("x", &[]), &idle, &deaf, &Service::fake("done", &[])]);
    let _ = broker.resolve("x");
    for order in ["restart", "drain", "start", "stop"] {
        let _ = broker.ctl(&[order, "x"]).done();
        if order == "drain" {
            broker.wait_state("x", "inactive");
        }
    }
    let mut session = broker.session();
    let mut end_of = |service: &str| {
        let page = read(&mut session, &of(service), &Value::Null);
        let is_end = |word: &str| !["starting", "started", "ready"].contains(&word);
        let ends = list(&page).iter().filter(|event| event["event"].as_str().is_some_and(is_end));
        let word = |event: &Value| event["why"].as_str().or(event["event"].as_str()).expect("a word").to_owned();
        ends.map(word).collect::<Vec<_>>()
    };
    let gone = ["exited", "stopped"];
    let expected = [&["restart"][..], &gone, &["draining", "drain"], &gone, &["drain_ended", "order"], &gone].concat();
    assert_eq!(end_of("x"), expected);

    let _ = broker.resolve("idle");
    broker.wait_state("idle", "inactive");
    assert_eq!(end_of("idle"), ["idle", "exited", "stopped"]);
    let _ = broker.resolve("deaf");
    let _ = broker.ctl(&["stop", "deaf"]).done();
    assert_eq!(end_of("deaf"), ["order", "killed", "stopped"]);
    let backend = broker.resolve("done");
    broker.wait_backend("done", "held by nobody", |b| b["holds"] == 0);
    broker.dial(&backend).send(b"!exit 0\n").expect("the backend listens");
    wait_until("the daemon has finished", || end_of("done").len() == 2);
    assert_eq!(end_of("done"), ["exited", "finished"]);
}

fn a_cursor_goes_on_without_loss_or_repetition() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml("[recovery]\nhealthy_after = \"1ms\"")]);
    let mut session = broker.session();
    let (mut cursor, mut seen) = (Value::Null, Vec::new());
    for _ in 0..5 {
        let backend = broker.resolve("x");
        broker.wait_backend("x", "verified healthy", |b| b["crashes_in_window"] == 0);
        kill_backend(&backend);
        broker.wait_backend("x", "down", |b| b["pid"].is_null());
        let page = read(&mut session, &Selection::default(), &cursor);
        assert!(!list(&page).is_empty());
        assert_eq!(page["missed"], 0);
        seen.extend(numbers(list(&page)));
        cursor = page["next"].clone();
    }
    let rest = read(&mut session, &Selection::default(), &cursor);
    seen.extend(numbers(list(&rest)));
    let all = read(&mut session, &Selection::default(), &Value::Null);
    assert_eq!(seen, numbers(list(&all)));
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    assert_eq!(list(&read(&mut session, &Selection::default(), &all["next"])), [] as [Value; 0]);
}

fn a_cursor_of_a_former_broker_starts_anew() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = broker.resolve("x");
    let _ = broker.ctl(&["stop", "x"]).done();
    let mut session = broker.session();
    let cursor = read(&mut session, &Selection::default(), &Value::Null)["next"].clone();
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    broker.start_again();
    let mut session = broker.session();
    let page = read(&mut session, &Selection::default(), &cursor);
    assert_eq!((list(&page).len(), &page["missed"]), (0, &0.into()), "nothing has happened in this life");
    let _ = broker.resolve("x");
    let page = read(&mut session, &Selection::default(), &cursor);
    assert_eq!((numbers(list(&page)), words(list(&page))), (vec![1, 2, 3], vec!["starting", "started", "ready"]));
    assert_ne!(page["next"], cursor);
}

fn a_cursor_that_is_none_is_malformed() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let newest = read(&mut session, &Selection::default(), &Value::Null)["next"].clone();
    let beyond = newest.as_str().expect("a text").replace(".0", ".1");
    for cursor in ["", "1", "x.y.z", "\u{1b}[31m.1", &beyond, &"9".repeat(500_000)] {
        let refusal = session.admin(request(&Selection::default(), &json!(cursor), None)).expect_err("no cursor");
        assert_eq!(refusal.code, Code::Malformed, "{refusal}");
        assert!(!refusal.reason.contains('\x1b'), "{:?}", refusal.reason);
        assert!(refusal.reason.len() < 200, "{} bytes", refusal.reason.len());
    }
    let selection = Selection { version_requirement: Some("seven".to_owned()), ..Selection::default() };
    let refusal = session.admin(request(&selection, &Value::Null, None)).expect_err("no requirement");
    assert_eq!(refusal.code, Code::Malformed);
}

fn a_selection_filters_what_is_read_and_what_is_waited_for() {
    let listen = ["--listen", "{endpoint}"];
    let x = Service::named("x").version("1.0.0", &listen).version("2.0.0", &listen);
    let broker = Broker::start(&[&x, &Service::fake("y", &[])]);
    let mut session = broker.session();
    let unknown = session.admin(request(&of("nosuch"), &Value::Null, None)).expect_err("unknown");
    assert_eq!(unknown.code, Code::ServiceUnknown);
    let old = Selection { version_requirement: Some("<2".to_owned()), ..of("x") };
    let start = read(&mut session, &old, &Value::Null)["next"].clone();
    wait_for_more(&mut session, WAITING, &old, &start);
    for other in ["y", "x@2", "y/tenant-a"] {
        let _ = broker.resolve(other);
    }
    assert!(!is_answered(&mut session, WAITING), "nothing of interest has happened");
    let _ = broker.resolve("x@1/tenant-a");
    let first = answer(&mut session, WAITING);
    assert_eq!((words(list(&first)), numbers(list(&first))), (vec!["starting"], vec![10]));
    assert_eq!(first["missed"], 0);
    let rest = read(&mut session, &old, &first["next"]);
    assert_eq!(numbers(list(&rest)), [11, 12]);
    let of_tenant = Selection { instance: Some("tenant-a".to_owned()), ..Selection::default() };
    assert_eq!(numbers(list(&read(&mut session, &of_tenant, &Value::Null))), [7, 8, 9, 10, 11, 12]);
}

fn a_wait_in_vain_is_answered_empty() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let began = Instant::now();
    let wait = Duration::from_millis(60);
    let page = session.admin(request(&of("x"), &Value::Null, Some(wait))).expect("own user");
    assert!(began.elapsed() >= wait, "not before its time");
    assert_eq!((list(&page).len(), &page["missed"]), (0, &0.into()));
    let at_once = session.admin(request(&of("x"), &page["next"], Some(Duration::ZERO))).expect("own user");
    assert_eq!(at_once["next"], page["next"]);
    let _ = broker.resolve("x");
    let page = session.admin(request(&of("x"), &page["next"], Some(BOUND))).expect("own user");
    assert_eq!(numbers(list(&page)), [1, 2, 3], "what is there is answered at once");
}

fn many_may_wait_and_an_id_waits_once() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    for number in 0..1000 {
        wait_for_more(&mut session, WAITING + number, &Selection::default(), &Value::Null);
    }
    wait_for_more(&mut session, WAITING, &Selection::default(), &Value::Null);
    let refused = session.wait_message("the refusal", |message| match message {
        ServerMessage::Refused { request_id: WAITING, refusal } => Some(refusal.code),
        _ => None,
    });
    assert_eq!(refused, Code::Malformed, "the id is in use");
    let _ = broker.resolve("x");
    for number in 0..1000 {
        assert_eq!(words(list(&answer(&mut session, WAITING + number))), ["starting"]);
    }
}

fn waits_count_among_the_requests_of_a_session() {
    const REQUESTS_PER_SESSION_MAX: u64 = 32_768;
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    for number in 0..=REQUESTS_PER_SESSION_MAX {
        wait_for_more(&mut session, WAITING + number, &of("x"), &Value::Null);
    }
    let refused = session.wait_message("the refusal", |message| match message {
        ServerMessage::Refused { request_id, refusal } => Some((*request_id, refusal.code)),
        _ => None,
    });
    assert_eq!(refused, (WAITING + REQUESTS_PER_SESSION_MAX, Code::Overloaded));
}

fn a_wait_that_is_given_up_is_not_answered() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let mut other = broker.session();
    wait_for_more(&mut session, WAITING, &Selection::default(), &Value::Null);
    wait_for_more(&mut session, WAITING + 1, &Selection::default(), &Value::Null);
    wait_for_more(&mut other, WAITING, &Selection::default(), &Value::Null);
    other.ping();
    drop(other);
    session.release(WAITING);
    session.ping();
    let _ = broker.resolve("x");
    answer(&mut session, WAITING + 1);
    assert!(!is_answered(&mut session, WAITING));
    wait_for_more(&mut session, WAITING, &Selection::default(), &Value::Null);
    assert_eq!(list(&answer(&mut session, WAITING)).len(), 3, "its id is free again");
}

fn a_broker_that_leaves_answers_who_waits() {
    let mut broker = Broker::start(&[&Service::fake("x", &[]), &Service::fake("y", &[])]);
    let _ = (broker.resolve("x"), broker.resolve("x/tenant-a"));
    let mut session = broker.session();
    let cursor = read(&mut session, &Selection::default(), &Value::Null)["next"].clone();
    wait_for_more(&mut session, WAITING, &of("x"), &cursor);
    wait_for_more(&mut session, WAITING + 1, &of("y"), &cursor);
    session.ping();
    broker.signal(Signal::SIGINT);
    session.wait_message("the goodbye", |message| {
        matches!(message, ServerMessage::GoAway { reconnect: Reconnect::Never }).then_some(())
    });
    let page = answer(&mut session, WAITING);
    assert_eq!(words(list(&page)), ["stopping", "stopping"]);
    assert!(list(&page).iter().all(|event| event["why"] == "shutdown"), "{page}");
    assert_eq!(list(&answer(&mut session, WAITING + 1)).len(), 0);
    assert!(broker.ended().success());
}

fn the_last_thousand_are_kept() {
    let setup = Setup::new();
    let missing = setup.path("missing");
    let missing = Service::named("missing").command("1.0.0", &[&missing, "{endpoint}"]);
    let broker = setup.service(&missing).service(&Service::fake("x", &[])).start();
    let mut session = broker.session();
    let beginning = read(&mut session, &Selection::default(), &Value::Null)["next"].clone();
    for _ in 0..505 {
        assert_eq!(session.resolve("missing").expect_err("it cannot be executed").code, Code::SpawnFailed);
    }
    let page = read(&mut session, &Selection::default(), &beginning);
    assert_eq!(numbers(list(&page)), (11..=1010).collect::<Vec<_>>());
    assert_eq!(page["missed"], 10);
    let of_another = session.admin(request(&of("x"), &beginning, Some(BOUND))).expect("own user");
    assert_eq!((list(&of_another).len(), &of_another["missed"]), (0, &10.into()), "told at once, though it waits");
    assert_eq!(read(&mut session, &Selection::default(), &Value::Null)["missed"], 0);
    let following = broker.ctl_json(&["events", "-n", "3"]).done();
    assert_eq!(numbers(&json_lines(&following.stdout)), [1008, 1009, 1010]);
}
