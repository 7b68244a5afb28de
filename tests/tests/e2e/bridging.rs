//! What becomes of `connect` and `exec` when the backend, or the broker, goes while they last.

use std::io::Write as _;
use std::process::{ChildStdin, Stdio};

use broker_tests::{Broker, Running, Service, trials};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::recovery::kill_backend;

trials![
    connect_goes_on_with_the_next_start_where_the_service_allows_it,
    connect_ends_with_a_message_where_a_crash_cannot_be_resumed,
    connect_knows_a_crash_whenever_it_comes,
    connect_does_not_resume_with_no_reconnect,
    connect_passes_a_refusal_on_when_the_next_start_crashes_too,
    connect_ends_with_a_message_at_an_operators_stop,
    connect_outlives_its_broker,
    no_reconnect_ends_cleanly_at_a_disconnect,
    no_reconnect_fails_on_a_fatal_refusal,
    exec_holds_again_after_its_broker_was_restarted,
    the_longest_pause_has_a_least_value,
];

const RESUME: &str = "[session]\nresume = \"reconnect\"";

/// A `connect` that can be talked to.
struct Bridge {
    running: Running,
    stdin: ChildStdin,
}

impl Bridge {
    fn open(broker: &Broker, arguments: &[&str]) -> Self {
        let mut running = Running::start(broker.ctl_command(arguments).stdin(Stdio::piped()));
        let stdin = running.stdin().expect("piped");
        let mut bridge = Self { running, stdin };
        bridge.ask("hello");
        bridge
    }

    /// Sends a line, and waits for its echo.
    #[track_caller]
    fn ask(&mut self, line: &str) {
        self.say(line);
        self.running.wait_stdout(line, |stdout| stdout.ends_with(&format!(" {line}\n")));
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("the client reads");
    }
}

/// Waits until another process than before serves.
fn next_start(broker: &Broker, before: &Value) -> Value {
    broker.wait_backend("x", "ready as another process", |b| b["state"] == "ready" && b["pid"] != before["pid"])
}

fn connect_goes_on_with_the_next_start_where_the_service_allows_it() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml(RESUME).toml("[recovery]\nhealthy_after = \"1ms\"")]);
    let mut bridge = Bridge::open(&broker, &["connect", "x"]);
    for round in 0..3 {
        let before = broker.backend("x");
        kill_backend(&before);
        let after = next_start(&broker, &before);
        let line = format!("round {round}");
        bridge.say(&line);
        let echo = format!("{} {line}\n", after["pid"]);
        bridge.running.wait_stdout("an answer of the next start", |stdout| stdout.ends_with(&echo));
        // Only then is the crash forgotten, and the next one the first again.
        broker.wait_backend("x", "healthy", |b| b["crashes_in_window"] == 0);
    }
    drop(bridge.stdin);
    let output = bridge.running.finish().done();
    assert_eq!(output.stderr.matches("going on with the next start").count(), 3, "{}", output.stderr);
    assert!(
        output.stderr.contains("x@1.0.0 ended after") && output.stderr.contains("SIGKILL (9)"),
        "{}",
        output.stderr
    );
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
}

fn connect_ends_with_a_message_where_a_crash_cannot_be_resumed() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let bridge = Bridge::open(&broker, &["connect", "x"]);
    kill_backend(&broker.backend("x"));
    let output = bridge.running.finish().exits(1);
    assert!(output.stderr.contains("SIGKILL (9)") && output.stderr.contains("resume = \"reconnect\""), "{output:?}");
}

/// The kernel closes a process's sockets before its end can be seen.
fn connect_knows_a_crash_whenever_it_comes() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    for round in 0..25 {
        let mut bridge = Bridge::open(&broker, &["connect", "x"]);
        if round % 2 == 0 {
            kill_backend(&broker.backend("x"));
        } else {
            bridge.say("!exit 7");
        }
        let output = bridge.running.finish().exits(1);
        let how = if round % 2 == 0 { "SIGKILL (9)" } else { "exit code 7" };
        assert!(output.stderr.contains(how), "round {round}: {output:?}");
        let _ = broker.ctl(&["start", "x"]).done();
    }
}

fn connect_does_not_resume_with_no_reconnect() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml(RESUME)]);
    let bridge = Bridge::open(&broker, &["connect", "--no-reconnect", "x"]);
    kill_backend(&broker.backend("x"));
    let output = bridge.running.finish().exits(1);
    assert!(output.stderr.contains("SIGKILL (9)"), "{output:?}");
}

fn connect_passes_a_refusal_on_when_the_next_start_crashes_too() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml(RESUME)]);
    let mut bridge = Bridge::open(&broker, &["connect", "x"]);
    let before = broker.backend("x");
    kill_backend(&before);
    kill_backend(&next_start(&broker, &before));
    // Whether it had come to the next start or not: it ends with the broker's words.
    let _ = writeln!(bridge.stdin, "!exit 3");
    let output = bridge.running.finish();
    assert!([1, 75].contains(&output.code), "{output:?}");
    assert!(output.stderr.contains("crashed again") || output.stderr.contains("ended after"), "{output:?}");
}

fn connect_ends_with_a_message_at_an_operators_stop() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml(RESUME)]);
    let bridge = Bridge::open(&broker, &["connect", "x"]);
    let _ = broker.ctl(&["stop", "x"]).done();
    let output = bridge.running.finish().exits(1);
    assert!(output.stderr.contains("an operator stopped the backend"), "{output:?}");
    assert_eq!(broker.starts("x").len(), 1, "it is not started again");
}

fn connect_outlives_its_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut bridge = Bridge::open(&broker, &["connect", "x"]);
    let before = broker.backend("x");
    for (signal, word) in [(Signal::SIGKILL, "again"), (Signal::SIGTERM, "and again")] {
        broker.signal(signal);
        let _ = broker.ended();
        broker.start_again();
        bridge.say(word);
        let echo = format!("{} {word}\n", before["pid"]);
        bridge.running.wait_stdout("an answer of the same process", |stdout| stdout.ends_with(&echo));
        broker.wait_backend("x", "held again", |b| b["holds"] == 1 && b["pid"] == before["pid"]);
    }
    drop(bridge.stdin);
    let output = bridge.running.finish().done();
    assert!(!output.stderr.contains("ended"), "{output:?}");
}

fn no_reconnect_ends_cleanly_at_a_disconnect() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let bridge = Bridge::open(&broker, &["connect", "--no-reconnect", "x"]);
    let mut events = broker.ctl_in_background(&["events", "-f", "--no-reconnect"]);
    events.wait_stdout("what happened", |stdout| stdout.contains("ready"));
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    let _ = events.finish().done();
    let _ = bridge.running.finish().done();
    broker.start_again();
}

fn no_reconnect_fails_on_a_fatal_refusal() {
    let broker = Broker::start(&[]);
    let refused = broker.ctl_json(&["connect", "--no-reconnect", "nobody"]);
    let _ = refused.refused(69, "service_unknown");
}

fn exec_holds_again_after_its_broker_was_restarted() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let gate = broker.path("gate").display().to_string();
    let script = format!("until test -e {gate}; do sleep 0.05; done");
    let mut exec = broker.ctl_in_background(&["exec", "-v", "x", "--", "sh", "-c", &script]);
    broker.wait_backend("x", "held", |b| b["holds"] == 1);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        broker.signal(signal);
        let _ = broker.ended();
        broker.start_again();
        broker.wait_backend("x", "held again", |b| b["state"] == "ready" && b["holds"] == 1);
    }
    exec.wait_stderr("that it is connected again", |text| text.matches("connected to the broker again").count() == 2);
    broker.open_gate("gate");
    let output = exec.finish().done();
    // A killed broker's listener may take one more connection before the kernel closes it.
    assert!(output.stderr.matches("reconnecting").count() >= 2, "{}", output.stderr);
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
}

fn the_longest_pause_has_a_least_value() {
    let broker = Broker::start(&[]);
    for command in ["connect", "resolve", "events"] {
        let output = broker.ctl(&[command, "--max-reconnect-delay", "50ms", "x"]).exits(2);
        assert!(output.stderr.contains("100ms"), "{output:?}");
    }
}
