//! How durable processes end otherwise than by themselves, and how they are forgotten.

use std::fs;
use std::time::{Duration, Instant};

use broker_proto::{AdminRequest, Code};
use broker_tests::{Broker, Setup, process_exists, processes_mentioning, trials, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{cancel, ended, gated, output, run, sh, spec, wait_process};

trials![
    a_cancelled_process_is_told_and_its_reason_kept,
    a_deaf_command_is_killed_with_all_it_started,
    a_pending_process_is_cancelled_without_a_start,
    what_takes_too_long_is_ended,
    nothing_that_a_command_started_outlives_it,
    what_has_ended_can_be_forgotten,
    a_signal_ends_one_who_shows_output_that_nobody_reads,
];

fn a_cancelled_process_is_told_and_its_reason_kept() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    run(&mut session, spec("x", sh("trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.02; done")));
    wait_process(&mut session, "x", "ready", |process| process["stdout"].is_string() && output(process) == "ready\n");
    let answer = cancel(&mut session, "x", "no longer wanted").expect("it runs");
    assert_eq!(answer["process"]["state"], "running");
    let process = ended(&mut session, "x");
    assert_eq!((&process["state"], &process["ended_by"]), (&"cancelled".into(), &"cancel".into()), "{process}");
    assert_eq!((&process["reason"], &process["exit_code"]), (&"no longer wanted".into(), &5.into()));
    assert_eq!(output(&process), "ready\ntold\n");
    let again = cancel(&mut session, "x", "again").expect("it has ended, as is wanted");
    assert_eq!((&again["process"]["state"], &again["process"]["reason"]), (&process["state"], &process["reason"]));
    assert_eq!(cancel(&mut session, "y", "why").expect_err("unknown").code, Code::ServiceUnknown);
    assert_eq!(cancel(&mut session, "x", &"y".repeat(5000)).expect_err("too long").code, Code::Malformed);
}

fn a_deaf_command_is_killed_with_all_it_started() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let deaf = "trap '' TERM; (trap '' TERM; setsid sleep 1000) & echo ready; while :; do sleep 0.05; done";
    run(&mut session, spec("x", sh(deaf)));
    wait_process(&mut session, "x", "ready", |process| process["stdout"].is_string() && output(process) == "ready\n");
    let began = Instant::now();
    cancel(&mut session, "x", "enough").expect("it runs");
    let process = ended(&mut session, "x");
    assert!(began.elapsed() >= Duration::from_secs(10), "it was given its time");
    assert_eq!((&process["state"], &process["signal"]), (&"cancelled".into(), &9.into()), "{process}");
    assert_eq!(processes_mentioning(&broker.path("state/processes/runs/x")), []);
}

fn a_pending_process_is_cancelled_without_a_start() {
    let setup = Setup::new().config("[processes]\nconcurrent = 1\n");
    let broker = setup.start();
    let mut session = broker.session();
    run(&mut session, spec("first", gated(&broker.path("gate"), "true")));
    let second = run(&mut session, spec("second", sh("true")));
    assert_eq!((&second["state"], &second["lease"]), (&"pending".into(), &Value::Null));
    let answer = cancel(&mut session, "second", "changed my mind").expect("it waits");
    assert_eq!(answer["process"]["state"], "cancelled");
    let process = ended(&mut session, "second");
    assert_eq!((&process["attempt"], &process["reason"]), (&0.into(), &"changed my mind".into()), "{process}");
    assert_eq!(process["stdout"], Value::Null);
    broker.open_gate("gate");
    assert_eq!(ended(&mut session, "first")["state"], "succeeded");
}

fn what_takes_too_long_is_ended() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let mut slow = spec("x", sh("sleep 1000"));
    slow.timeout_ms = Some(200);
    run(&mut session, slow);
    let process = ended(&mut session, "x");
    assert_eq!((&process["state"], &process["ended_by"]), (&"failed".into(), &"timeout".into()), "{process}");
    assert_eq!((&process["reason"], &process["signal"]), (&"it took longer than 200ms".into(), &15.into()));
    assert_eq!(process["attempt"], 1, "that is final");
}

fn nothing_that_a_command_started_outlives_it() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let children = broker.path("children");
    let script = format!(
        "sleep 1000 & echo $! >> {0}; setsid sh -c 'echo $$ >> {0}; sleep 1000 & exec sleep 1000' & \
                          while [ $(wc -l < {0}) -lt 2 ]; do sleep 0.01; done",
        children.display()
    );
    run(&mut session, spec("x", sh(&script)));
    assert_eq!(ended(&mut session, "x")["state"], "succeeded");
    let text = fs::read_to_string(children).expect("they were started");
    for pid in text.lines() {
        assert!(!process_exists(pid.parse().expect("a pid")), "{pid} is left");
    }
}

fn what_has_ended_can_be_forgotten() {
    let broker = Broker::start(&[]);
    let mut session = broker.session();
    let gate = broker.path("gate");
    run(&mut session, spec("runs", gated(&gate, "true")));
    for id in ["a", "b"] {
        run(&mut session, spec(id, sh("true")));
        ended(&mut session, id);
    }
    let prune = |id: Option<&str>, older_than_ms| AdminRequest::Prune { id: id.map(str::to_owned), older_than_ms };
    let refusal = session.admin(prune(Some("runs"), None)).expect_err("it runs");
    assert!(refusal.reason.contains("cancel it first"), "{refusal}");
    let young = session.admin(prune(None, Some(3_600_000))).expect("own user");
    assert_eq!(young["pruned"], json!([]));
    assert_eq!(session.admin(prune(Some("a"), None)).expect("own user")["pruned"], json!(["a"]));
    assert_eq!(session.admin(prune(None, None)).expect("own user")["pruned"], json!(["b"]));
    assert!(!broker.path("state/processes/runs/a").exists());
    assert_eq!(session.admin(prune(Some("a"), None)).expect_err("forgotten").code, Code::ServiceUnknown);
    // The id is free again, and means another process.
    run(&mut session, spec("a", sh("exit 4")));
    assert_eq!(ended(&mut session, "a")["exit_code"], 4);
    broker.open_gate("gate");
    ended(&mut session, "runs");
}

fn a_signal_ends_one_who_shows_output_that_nobody_reads() {
    let broker = Broker::start(&[]);
    let script = "yes | head -c 1000000; while :; do sleep 0.02; done";
    let (unread, theirs) = nix::unistd::pipe().expect("two descriptors");
    let mut command = broker.ctl_command(&["run", "--id", "x", "--", "/bin/sh", "-c", script]);
    let mut child = command.stdout(theirs).stderr(std::process::Stdio::null()).spawn().expect("it can be executed");
    drop(command);
    let mut session = broker.session();
    wait_until("the pipe is full", || {
        let mut queued: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel fills the number.
        let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&unread), libc::FIONREAD, &raw mut queued) };
        result == 0 && queued >= 61_440
    });
    // The caller of the tests may have ignored SIGINT.
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    let status = wait_for("it ends", || child.try_wait().expect("a child can be waited for"));
    assert_eq!(status.code(), Some(143));
    let _ = cancel(&mut session, "x", "enough").expect("it goes on");
    assert_eq!(ended(&mut session, "x")["state"], "cancelled");
}
