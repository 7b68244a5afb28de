//! The client in Python (`examples/python`) against a real broker: what PROTOCOL.md says is enough to write one.
//!
//! It runs with its warnings as errors, and must say nothing of Python's own on stderr.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use broker_tests::{BOUND, Broker, Output, Running, Service, Setup, find_program, trials};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::recovery::kill_backend;

trials![
    it_gives_up_a_broker_that_is_silent,
    it_follows_a_drain_to_the_next_broker,
    it_reads_and_writes_every_golden_vector,
    it_resolves_a_service,
    it_shows_progress_while_a_daemon_starts,
    it_shows_a_refusal_with_its_evidence,
    it_passes_bytes_over_a_socket_that_the_broker_connected,
    it_holds_a_backend_and_hears_what_becomes_of_it,
    it_waits_no_longer_than_it_was_told,
    it_tells_bad_usage_unknown_services_and_absent_brokers_apart,
];

/// Why these tests cannot run here, if they cannot.
pub(crate) fn hindrance() -> Option<&'static str> {
    interpreter().is_none().then_some("python3 is not installed")
}

/// The system's own first: what a version manager puts into PATH may be a script that needs an environment.
fn interpreter() -> Option<PathBuf> {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() { Some(system) } else { find_program("python3") }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python")
}

/// Python in the folder of the client, talking to this broker.
fn python(broker: &Broker, arguments: &[&str]) -> Command {
    let mut command = Command::new(interpreter().expect("known"));
    command.env_clear().env("BROKER_SOCKET", broker.socket()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.args(["-W", "error", "-B"]).args(arguments).current_dir(folder()).stdin(Stdio::null());
    command
}

/// The client's command line.
pub(crate) fn client(broker: &Broker, arguments: &[&str]) -> Command {
    python(broker, &[&["broker.py"], arguments].concat())
}

/// Its end, which is none of Python's.
#[track_caller]
pub(crate) fn finished(running: Running) -> Output {
    let output = running.finish();
    for word in ["Traceback", "Warning", "Exception ignored"] {
        assert!(!output.stderr.contains(word), "--- stdout\n{}\n--- stderr\n{}", output.stdout, output.stderr);
    }
    output
}

#[track_caller]
fn run(broker: &Broker, arguments: &[&str]) -> Output {
    finished(Running::start(&mut client(broker, arguments)))
}

/// Of those tests, the ones that run the client as another user.
pub(crate) mod another_user {
    use std::os::unix::process::CommandExt as _;

    use super::*;
    use crate::access::{OTHER, own_names, shared_broker};

    trials![it_tells_who_is_not_permitted_and_for_what];

    pub(crate) fn hindrance() -> Option<&'static str> {
        super::hindrance().or_else(crate::access::hindrance)
    }

    /// The client as somebody who may not be able to look into our own folders.
    #[track_caller]
    fn run_as_other(broker: &Broker, arguments: &[&str]) -> Output {
        for file in ["broker.py", "cli.py", "wire.py"] {
            fs::copy(folder().join(file), broker.path(file)).expect("the folder takes a file");
        }
        let mut command = client(broker, arguments);
        command.current_dir(broker.folder()).uid(OTHER).gid(OTHER).stdin(Stdio::piped());
        finished(Running::start(&mut command).fed_with(b"PING\n".to_vec()))
    }

    fn it_tells_who_is_not_permitted_and_for_what() {
        let (user, _) = own_names().expect("known");
        let access = format!("[access]\nusers = [{user:?}]");
        let (private, closed) = (Service::fake("private", &[]), Service::fake("closed", &[]).toml(&access));
        let open = Service::fake("open", &[]).toml(&format!("{access}\nconnected = true"));
        let broker = shared_broker(&[&private, &closed, &open]);
        let _ = run_as_other(&broker, &["resolve", "private", "--json"]).refused(77, "peer_rejected");
        let _ = run_as_other(&broker, &["resolve", "closed"]).done();
        let _ = run_as_other(&broker, &["connect", "closed", "--json"]).refused(77, "peer_rejected");
        let answer = run_as_other(&broker, &["connect", "open"]).done().stdout;
        assert_eq!(answer, format!("{} PING\n", broker.backend("open")["pid"]));

        let setup = Setup::new();
        fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o755)).expect("own folder");
        let denied = run_as_other(&setup.start(), &["resolve", "x"]).exits(77);
        assert!(denied.stderr.contains("may not connect"), "{}", denied.stderr);
    }
}

fn slow() -> (Broker, &'static str) {
    let setup = Setup::new();
    let gate = setup.path("gate");
    (setup.service(&Service::fake("slow", &["--ready-when", &gate, "--status", "loading"])).start(), "gate")
}

fn it_reads_and_writes_every_golden_vector() {
    let broker = Broker::start(&[]);
    let output = finished(Running::start(&mut python(&broker, &["-m", "unittest", "discover"]))).done();
    assert!(output.stderr.contains("\nOK\n"), "{}", output.stderr);
}

fn it_resolves_a_service() {
    let versions = Service::named("x").version("1.0.0", &["--listen", "{endpoint}"]);
    let broker = Broker::start(&[&versions.version("2.0.0", &["--listen", "{endpoint}"])]);
    let endpoint = run(&broker, &["resolve", "x"]).done().stdout;
    assert_eq!(Some(endpoint.trim_end()), broker.backend("x")["endpoint"].as_str());
    let old = run(&broker, &["resolve", "x@^1", "-i", "tenant-a", "--json"]).done().json();
    assert_eq!(old, broker.resolve("x@1.0.0/tenant-a"), "the same document as brokerctl's");
    assert_eq!(run(&broker, &["resolve", "x@<2/tenant-a", "--json"]).done().json(), old);
    let status = run(&broker, &["status", "--json"]).done().json();
    assert_eq!(status["backends"].as_array().map(Vec::len), Some(2), "{status}");
    let listed = run(&broker, &["status"]).done().stdout;
    assert!(listed.contains("x@1.0.0/tenant-a  ready  unix:/"), "{listed}");
}

fn it_shows_progress_while_a_daemon_starts() {
    let (broker, gate) = slow();
    let mut resolving = Running::start(&mut client(&broker, &["resolve", "slow"]));
    resolving.wait_stderr("what goes on", |stderr| stderr.contains("slow@1.0.0: starting"));
    broker.wait_backend("slow", "waited for", |b| b["waiters"] == 1);
    assert!(resolving.is_running());
    broker.open_gate(gate);
    let output = finished(resolving).done();
    assert!(output.stdout.starts_with("unix:/"), "{}", output.stdout);
}

fn it_shows_a_refusal_with_its_evidence() {
    let bad = Service::fake("bad", &["--exit", "7", "--stderr", "no database\u{1b}[2J"]);
    let broker = Broker::start(&[&bad]);
    let output = run(&broker, &["resolve", "bad"]).exits(75);
    let expected = [
        "bad@1.0.0: starting again after a crash",
        "(backend_unavailable)",
        "exit code 7",
        "attempt   1",
        "    no database",
        "log       /",
        "try again in ",
    ];
    for text in expected {
        assert!(output.stderr.contains(text), "`{text}` is missing:\n{}", output.stderr);
    }
    assert!(output.stdout.is_empty() && !output.stderr.contains('\u{1b}'), "{}", output.stderr);

    let refused = run(&broker, &["resolve", "bad", "--json"]).refused(75, "backend_unavailable");
    let told = broker.ctl_json(&["resolve", "bad"]).refused(75, "backend_unavailable");
    assert_eq!(refused["evidence"], told["evidence"], "what brokerctl knows");
    assert!(refused["retry_after_ms"].as_u64() >= told["retry_after_ms"].as_u64(), "{refused} {told}");
}

fn it_passes_bytes_over_a_socket_that_the_broker_connected() {
    let tcp = Service::fake("port", &["--cat"]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = Broker::start(&[&Service::fake("path", &["--cat"]), &tcp, &Service::fake("lines", &[])]);
    let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for service in ["path", "port"] {
        let mut command = client(&broker, &["connect", service]);
        let output = finished(Running::start(command.stdin(Stdio::piped())).fed_with(bytes.clone())).done();
        let (echo, end) = output.bytes.split_at(bytes.len().min(output.bytes.len()));
        assert!(echo == bytes, "{service}: the bytes come back as they were");
        assert_eq!(String::from_utf8_lossy(end), format!("EOF after {} bytes", bytes.len()), "{service}");
        broker.wait_backend(service, "held by nobody", |b| b["holds"] == 0);
    }

    // Its stdin stays open: the end is the backend's.
    let mut command = client(&broker, &["connect", "lines"]);
    let mut connected = Running::start(command.stdin(Stdio::piped()));
    let mut stdin = connected.stdin().expect("piped");
    broker.wait_backend("lines", "held", |b| b["holds"] == 1);
    std::io::Write::write_all(&mut stdin, b"!exit 0\n").expect("the client reads");
    assert_eq!(finished(connected).done().stdout, "");
}

/// Says what it hears until a new generation serves, then gives the hold up and stays.
const LISTENER: &str = r#"
import sys
from broker import Broker

with Broker() as broker:
    backend = broker.resolve("x")
    broker.ping()
    assert list(broker.events(timeout=0)) == []
    print("held", file=sys.stderr, flush=True)
    for request_id, event in broker.events():
        assert request_id == backend.request_id
        print(event, flush=True)
        if "Ready" in event:
            break
    broker.release(backend)
    print("released", file=sys.stderr, flush=True)
    sys.stdin.read()
"#;

fn it_holds_a_backend_and_hears_what_becomes_of_it() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut listener = Running::start(python(&broker, &["-c", LISTENER]).stdin(Stdio::piped()));
    let stdin = listener.stdin();
    listener.wait_stderr("that it holds the backend", |stderr| stderr.contains("held"));
    let backend = broker.wait_backend("x", "held", |b| b["holds"] == 1);
    kill_backend(&backend);
    listener.wait_stderr("that it gave it up", |stderr| stderr.contains("released"));
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0 && b["generation"] == 2);
    assert!(listener.is_running());
    drop(stdin);
    let heard = finished(listener).done().stdout;
    let lines: Vec<&str> = heard.lines().collect();
    let begin =
        ["{'Exited': {'generation': 1, 'exit': {'signal': 9}", "{'Restarting': ", "{'Ready': {'generation': 2, "];
    let is_expected =
        lines.len() == begin.len() && lines.iter().zip(begin).all(|(line, begin)| line.starts_with(begin));
    assert!(is_expected, "{heard}");
}

fn it_waits_no_longer_than_it_was_told() {
    let (broker, gate) = slow();
    let output = run(&broker, &["resolve", "slow", "--timeout", "0.05"]).exits(75);
    assert!(output.stderr.contains("(start_timeout)"), "{}", output.stderr);
    assert_eq!(broker.backend("slow")["state"], "starting", "the start goes on");
    broker.open_gate(gate);
    let _ = run(&broker, &["resolve", "slow", "--timeout", &BOUND.as_secs().to_string()]).done();
    assert_eq!(broker.starts("slow").len(), 1);
}

fn it_tells_bad_usage_unknown_services_and_absent_brokers_apart() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let refused = run(&broker, &["resolve", "nobody", "--json"]).refused(69, "service_unknown");
    assert_eq!((&refused["retry_after_ms"], &refused["evidence"]), (&json!(null), &json!({})));
    let told = run(&broker, &["connect", "nobody"]).exits(69);
    assert!(told.stderr.contains("(service_unknown)") && told.stdout.is_empty(), "{}", told.stderr);
    let refused = run(&broker, &["resolve", "x@^7", "--json"]).refused(69, "version_unsupported");
    assert_eq!(refused["evidence"], json!({"available": ["1.0.0"]}));
    let _ = run(&broker, &["resolve", "x@seven", "--json"]).refused(69, "malformed");
    for bad in [&["resolve"][..], &["resolve", "Not A Name"], &["resolve", "x@"], &["resolve", "x/a", "-i", "b"]] {
        assert!(!run(&broker, bad).exits(2).stderr.is_empty(), "{bad:?} is explained");
    }
    for bad in ["0", "-1", "inf", "soon"] {
        let _ = run(&broker, &["resolve", "x", "--timeout", bad]).exits(2);
    }
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    let output = run(&broker, &["resolve", "x"]).exits(69);
    let socket = broker.socket().display().to_string();
    assert!(output.stderr.contains("no broker is running") && output.stderr.contains(&socket), "{}", output.stderr);
}

fn it_follows_a_drain_to_the_next_broker() {
    let (mut broker, gate) = slow();
    let starting = |count: usize| move |stderr: &str| stderr.matches("slow@1.0.0: starting").count() >= count;
    let timeout = BOUND.as_secs().to_string();
    let mut resolving = Running::start(&mut client(&broker, &["resolve", "slow", "--timeout", &timeout, "--json"]));
    resolving.wait_stderr("that it waits", starting(1));
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    assert!(resolving.is_running(), "a drain is no end");
    broker.start_again();
    resolving.wait_stderr("that it has asked again", starting(2));
    broker.open_gate(gate);
    let resolved = finished(resolving).done().json();
    assert_eq!(resolved["endpoint"], broker.backend("slow")["endpoint"]);
}

fn it_gives_up_a_broker_that_is_silent() {
    let (broker, _) = slow();
    let mut resolving = Running::start(&mut client(&broker, &["resolve", "slow"]));
    resolving.wait_stderr("that it waits", |stderr| stderr.contains("starting"));
    broker.signal(Signal::SIGSTOP);
    let output = finished(resolving);
    broker.signal(Signal::SIGCONT);
    assert!(output.exits(75).stderr.contains("nothing was heard of the broker for 8 seconds"));
    broker.wait_backend("slow", "waited for by nobody", |b| b["waiters"] == 0);
}
