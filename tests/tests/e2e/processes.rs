//! Durable processes: run, waited for, cancelled, pruned.

pub(crate) mod ending;
pub(crate) mod sharing;
pub(crate) mod surviving;
pub(crate) mod torture;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use broker_proto::{AdminRequest, ClientMessage, Code, ProcessSpec, Refusal, Selection, ServerMessage, Work};
use broker_tests::{BOUND, Broker, Session, Setup, trials, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

trials![
    a_command_is_run_to_its_end_with_what_it_was_given,
    exit_codes_and_signals_are_told,
    what_cannot_be_executed_has_failed_as_in_a_shell,
    the_same_again_is_the_same_process,
    other_content_is_refused_with_the_difference,
    an_id_is_made_where_none_is_given,
    twenty_wait_for_one_end,
    a_wait_ends_with_its_time_or_its_release,
    an_unknown_process_is_not_waited_for,
    what_happens_is_on_record,
    only_so_many_run_at_once,
];

/// What stands for the shell that a test gives its script to.
pub(crate) fn sh(script: &str) -> Work {
    Work::Command { argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec() }
}

pub(crate) fn spec(id: &str, work: Work) -> ProcessSpec {
    ProcessSpec {
        id: Some(id.to_owned()),
        work,
        environment: Vec::new(),
        working_directory: None,
        timeout_ms: None,
        max_attempts: None,
    }
}

#[track_caller]
pub(crate) fn run(session: &mut Session, spec: ProcessSpec) -> Value {
    let answer = session.admin(AdminRequest::Run { spec }).expect("it is registered");
    assert_eq!(answer["created"], true, "{answer}");
    answer["process"].clone()
}

/// Waits for the end of a process.
#[track_caller]
pub(crate) fn ended(session: &mut Session, id: &str) -> Value {
    let wait_ms = Some(u64::try_from(BOUND.as_millis()).expect("short"));
    let answer = session.admin(AdminRequest::Wait { id: id.to_owned(), wait_ms }).expect("it is registered");
    let process = answer["process"].clone();
    assert!(!["pending", "running"].contains(&process["state"].as_str().expect("a state")), "no end: {process}");
    process
}

#[track_caller]
pub(crate) fn process(session: &mut Session, id: &str) -> Value {
    let answer = session.admin(AdminRequest::Processes { id: Some(id.to_owned()) }).expect("it is registered");
    answer["processes"][0].clone()
}

/// Waits until its command runs.
#[track_caller]
pub(crate) fn running(session: &mut Session, id: &str) -> Value {
    wait_process(session, id, "running", |process| process["pid"].is_u64())
}

#[track_caller]
pub(crate) fn wait_process(session: &mut Session, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    wait_until(format!("{id} is {what}"), || {
        last = process(session, id);
        is_so(&last)
    });
    last
}

pub(crate) fn cancel(session: &mut Session, id: &str, reason: &str) -> Result<Value, Box<Refusal>> {
    session.admin(AdminRequest::Cancel { id: id.to_owned(), reason: reason.to_owned() })
}

pub(crate) fn output(process: &Value) -> String {
    fs::read_to_string(process["stdout"].as_str().expect("a path")).expect("it is there")
}

/// A script that waits until there is such a file, and then does the rest.
pub(crate) fn gated(gate: &Path, rest: &str) -> Work {
    sh(&format!("while [ ! -e {} ]; do sleep 0.02; done; {rest}", gate.display()))
}

pub(crate) fn pid_of(process: &Value) -> Pid {
    Pid::from_raw(i32::try_from(process["pid"].as_u64().expect("it runs")).expect("a pid"))
}

/// The reaper of a process, by its parent's number.
pub(crate) fn reaper_of(process: &Value) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid_of(process))).expect("it runs");
    let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("a parent");
    Pid::from_raw(parent.parse().expect("a number"))
}

fn a_command_is_run_to_its_end_with_what_it_was_given() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let script =
        "echo out; echo err >&2; env | sort; pwd; readlink /proc/self/fd/0; cat /proc/self/status | grep Sig[BI]";
    let mut given = spec("x", sh(script));
    let pairs = [("A", "1 2"), ("PATH", "/bin:/usr/bin"), ("BROKER_PROCESS_ID", "another")];
    given.environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    given.working_directory = Some("/usr".to_owned());
    let registered = run(&mut session, given);
    assert_eq!((&registered["state"], &registered["attempt"]), (&"pending".into(), &0.into()));
    let process = ended(&mut session, "x");
    assert_eq!((&process["state"], &process["exit_code"]), (&"succeeded".into(), &0.into()), "{process}");
    assert_eq!((&process["ended_by"], &process["attempt"], &process["pid"]), (&"none".into(), &1.into(), &Value::Null));
    let text = output(&process);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "out");
    for expected in
        ["A=1 2", "PATH=/bin:/usr/bin", "BROKER_PROCESS_ID=x", "BROKER_PROCESS_ATTEMPT=1", "/usr", "/dev/null"]
    {
        assert!(lines.contains(&expected), "{expected} in {text}");
    }
    let variables = lines.iter().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let known = [
        "A",
        "PATH",
        "HOME",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
        "LANG",
        "BROKER_PROCESS_ID",
        "BROKER_PROCESS_ATTEMPT",
        "BROKER_PROCESS_RUN",
    ];
    assert!(variables.into_iter().all(|name| known.contains(&name)), "{text}");
    for signals in lines.iter().filter(|line| line.starts_with("Sig")) {
        assert!(signals.ends_with("0000000000000000"), "nothing is blocked or ignored: {signals}");
    }
    let stderr = fs::read_to_string(process["stderr"].as_str().expect("a path")).expect("it is there");
    assert_eq!(stderr, "err\n");
    for key in ["registered_at", "started_at", "ended_at"] {
        let time = process[key].as_str().expect("a time");
        assert!(time.len() == "2026-11-22T03:24:16.579Z".len() && time.ends_with('Z'), "{time}");
    }
    assert_eq!(process["command"], json!(["/bin/sh", "-c", script]));
    assert_eq!(process["lease"], Value::Null);
}

fn exit_codes_and_signals_are_told() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    run(&mut session, spec("code", sh("exit 7")));
    run(&mut session, spec("signal", sh("kill -9 $$")));
    let code = ended(&mut session, "code");
    assert_eq!((&code["state"], &code["exit_code"], &code["signal"]), (&"failed".into(), &7.into(), &Value::Null));
    let signal = ended(&mut session, "signal");
    assert_eq!(
        (&signal["state"], &signal["exit_code"], &signal["signal"]),
        (&"failed".into(), &Value::Null, &9.into())
    );
    assert_eq!(signal["attempt"], 1, "its own failure is not repeated");
}

fn what_cannot_be_executed_has_failed_as_in_a_shell() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let cases =
        [("no-such-program", 127, "PATH"), ("/etc/passwd", 126, "not marked as executable"), ("/no/such", 127, "")];
    for (at, (program, code, reason)) in cases.into_iter().enumerate() {
        let id = format!("x{at}");
        run(&mut session, spec(&id, Work::Command { argv: vec![program.to_owned()] }));
        let process = ended(&mut session, &id);
        assert_eq!((&process["state"], &process["exit_code"]), (&"failed".into(), &code.into()), "{process}");
        assert!(process["reason"].as_str().is_some_and(|text| text.contains(reason)), "{process}");
    }
    let mut nowhere = spec("nowhere", sh("true"));
    nowhere.working_directory = Some("/no/such".to_owned());
    run(&mut session, nowhere);
    let process = ended(&mut session, "nowhere");
    assert!(process["reason"].as_str().is_some_and(|text| text.contains("/no/such")), "{process}");
}

fn the_same_again_is_the_same_process() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let runs = broker.path("runs");
    let work = sh(&format!("echo run >> {}", runs.display()));
    run(&mut session, spec("x", work.clone()));
    for _ in 0..3 {
        let again = session.admin(AdminRequest::Run { spec: spec("x", work.clone()) }).expect("the same");
        assert_eq!((&again["created"], &again["process"]["id"]), (&false.into(), &"x".into()));
        ended(&mut session, "x");
    }
    assert_eq!(fs::read_to_string(runs).expect("it ran"), "run\n");
}

fn other_content_is_refused_with_the_difference() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    run(&mut session, spec("x", sh("true")));
    let mut other = spec("x", sh("false"));
    other.timeout_ms = Some(1000);
    let refusal = session.admin(AdminRequest::Run { spec: other }).expect_err("another");
    assert_eq!(refusal.code, Code::Malformed);
    let expected = "process `x` is registered already with other content: command: `/bin/sh -c true` there, \
                    `/bin/sh -c false` here; timeout: none there, `1000 ms` here";
    assert_eq!(refusal.reason, expected);
    ended(&mut session, "x");
}

fn an_id_is_made_where_none_is_given() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let made = [0, 1].map(|_| {
        let process = run(&mut session, ProcessSpec { id: None, ..spec("", sh("true")) });
        process["id"].as_str().expect("an id").to_owned()
    });
    assert!(made[0] != made[1] && made[0].starts_with("p-"), "{made:?}");
    made.iter().for_each(|id| drop(ended(&mut session, id)));
    let all = session.admin(AdminRequest::Processes { id: None }).expect("own user");
    let ids: Vec<&str> = all["processes"].as_array().expect("a list").iter().filter_map(|p| p["id"].as_str()).collect();
    assert_eq!(ids, made, "in the order of registration");
}

fn twenty_wait_for_one_end() {
    let broker = Broker::start(&[]);
    let gate = broker.path("gate");
    run(&mut broker.session(), spec("x", gated(&gate, "exit 3")));
    let mut sessions: Vec<Session> = (0..10).map(|_| broker.session()).collect();
    for session in &mut sessions {
        for request_id in [1, 2] {
            let request = AdminRequest::Wait { id: "x".to_owned(), wait_ms: None };
            session.send(&ClientMessage::Admin { request_id, request });
        }
        session.ping();
    }
    broker.open_gate("gate");
    for session in &mut sessions {
        for id in [1, 2] {
            let answer: Value = session.wait_message("the end", |message| match message {
                ServerMessage::AdminReply { request_id, json } if *request_id == id => serde_json::from_str(json).ok(),
                _ => None,
            });
            assert_eq!(answer["process"]["exit_code"], 3, "{answer}");
        }
    }
}

fn a_wait_ends_with_its_time_or_its_release() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let gate = broker.path("gate");
    run(&mut session, spec("x", gated(&gate, "true")));
    let began = Instant::now();
    let answer = session.admin(AdminRequest::Wait { id: "x".to_owned(), wait_ms: Some(60) }).expect("registered");
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert!(answer["process"]["ended_at"].is_null(), "{answer}");
    const WAITING: u64 = 1 << 40;
    let request = AdminRequest::Wait { id: "x".to_owned(), wait_ms: None };
    session.send(&ClientMessage::Admin { request_id: WAITING, request });
    session.release(WAITING);
    broker.open_gate("gate");
    ended(&mut session, "x");
    session.ping();
    let is_answer = |message: &ServerMessage| matches!(message, ServerMessage::AdminReply { request_id: WAITING, .. });
    assert!(!session.aside.iter().any(is_answer), "who has given up is not answered");
}

fn an_unknown_process_is_not_waited_for() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let wait = |id: &str| AdminRequest::Wait { id: id.to_owned(), wait_ms: None };
    let empty = session.admin(AdminRequest::Processes { id: None }).expect("own user");
    assert_eq!(empty, json!({ "processes": [] }));
    assert_eq!(session.admin(wait("build")).expect_err("unknown").code, Code::ServiceUnknown);
    assert!(!broker.path("state/processes").exists(), "no store before the first process");
    run(&mut session, spec("build", sh("true")));
    let refusal = session.admin(wait("biuld")).expect_err("unknown");
    assert_eq!(refusal.code, Code::ServiceUnknown);
    assert_eq!(refusal.reason, "no durable process is registered as `biuld`, did you mean `build`?");
    assert_eq!(session.admin(wait("B")).expect_err("no id").code, Code::Malformed);
    ended(&mut session, "build");
}

fn what_happens_is_on_record() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    run(&mut session, spec("x", sh("exit 2")));
    ended(&mut session, "x");
    let events = |selection| AdminRequest::Events { selection, after: None, wait_ms: None };
    let page = session.admin(events(Selection::default())).expect("own user");
    let all = page["events"].as_array().expect("a list");
    let words: Vec<&str> = all.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(words, ["process_registered", "process_started", "process_ended"], "{page}");
    assert!(all.iter().all(|event| event["process"] == "x" && event.get("service").is_none()), "{page}");
    assert_eq!((&all[2]["state"], &all[2]["exit_code"]), (&"failed".into(), &2.into()));
    let of_default = Selection { instance: Some("default".to_owned()), ..Selection::default() };
    assert_eq!(session.admin(events(of_default)).expect("own user")["events"], json!([]));
}

fn only_so_many_run_at_once() {
    let broker = Setup::new().config("[processes]\nconcurrent = 2\n").start();
    let mut session = broker.session();
    let note = broker.path("note");
    for number in 0..8 {
        let script = format!("echo + >> {0}; sleep 0.05; echo - >> {0}", note.display());
        run(&mut session, spec(&format!("x{number}"), sh(&script)));
    }
    for number in 0..8 {
        assert_eq!(ended(&mut session, &format!("x{number}"))["state"], "succeeded");
    }
    let text = fs::read_to_string(note).expect("they ran");
    let (mut now, mut most) = (0, 0);
    for line in text.lines() {
        now += if line == "+" { 1 } else { -1 };
        most = most.max(now);
    }
    assert_eq!((now, text.lines().count()), (0, 16));
    assert!(most <= 2, "{most} at once");
}

/// Kills a process.
pub(crate) fn kill_hard(pid: Pid) {
    kill(pid, Signal::SIGKILL).expect("it runs");
}
