//! The examples in Rust, run as their README says.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use broker_proto::{Event, Exit};
use broker_tests::{Broker, Output, Running, Service, Setup, sibling, trials};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::recovery::{kill_backend, wait_event};

trials![
    the_ten_lines_talk_to_a_backend,
    a_socket_that_the_broker_connected_is_talked_over,
    the_daemon_is_served_by_its_service_file,
    the_daemon_ends_in_order_and_its_socket_outlives_it,
    the_daemon_alone_says_what_it_misses,
    the_session_tells_what_happens_to_its_backend_and_its_broker,
];

/// What stands in the example's service file for the daemon's path.
const PLACEHOLDER: &str = "/usr/local/libexec/echo-daemon";

#[track_caller]
fn example(broker: &Broker, name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(sibling(&format!("examples/{name}")));
    command.args(arguments).env_clear().env("BROKER_SOCKET", broker.socket()).stdin(Stdio::null());
    Running::start(&mut command).finish()
}

/// The example of a session with events, once it holds; it ends when its stdin is dropped.
#[track_caller]
pub(crate) fn session_example(broker: &Broker, wanted: &str) -> Running {
    let mut command = Command::new(sibling("examples/session"));
    command.arg(wanted).env_clear().env("BROKER_SOCKET", broker.socket()).stdin(Stdio::piped());
    let mut running = Running::start(&mut command);
    running.wait_stdout("that it holds", |stdout| stdout.ends_with('\n'));
    running
}

/// A broker with the example's service, whose daemon is the example.
fn broker_with_the_daemon() -> Broker {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/services/echo.toml");
    let text = fs::read_to_string(file).expect("the example's service file");
    let daemon = sibling("examples/daemon").display().to_string();
    assert_eq!(text.matches(PLACEHOLDER).count(), 2, "once in the command, once where it is explained");
    let setup = Setup::new();
    let path = setup.path("services.d/echo.toml");
    fs::write(&path, text.replace(PLACEHOLDER, &daemon)).expect("the folder takes a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own files can be changed");
    setup.start()
}

fn the_ten_lines_talk_to_a_backend() {
    let versions = Service::named("x").version("7.0.0", &["--listen", "{endpoint}"]);
    let broker = Broker::start(&[&versions.version("8.0.0", &["--listen", "{endpoint}"])]);
    let output = example(&broker, "ten_lines", &["x", "^7"]).done();
    let backend = broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
    assert_eq!((output.stdout, &backend["version"]), (format!("{} PING\n", backend["pid"]), &json!("7.0.0")));
    let refused = example(&broker, "ten_lines", &["nobody"]).exits(1);
    assert!(refused.stdout.is_empty() && refused.stderr.contains("nobody"), "{}", refused.stderr);
}

fn a_socket_that_the_broker_connected_is_talked_over() {
    let tcp = Service::fake("port", &[]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = Broker::start(&[&Service::fake("path", &[]), &tcp]);
    for service in ["path", "port"] {
        let output = example(&broker, "connected", &[service]).done();
        let backend = broker.backend(service);
        let endpoint = backend["endpoint"].as_str().expect("a text");
        assert_eq!(output.stdout, format!("{endpoint}\n{} PING\n", backend["pid"]));
    }
}

fn the_daemon_is_served_by_its_service_file() {
    let broker = broker_with_the_daemon();
    let file = broker.path("services.d/echo.toml").display().to_string();
    let checked = broker.ctl_json(&["check", &file]).done().json();
    assert_eq!(checked["problems"], json!([]), "{checked}");

    assert_eq!(example(&broker, "ten_lines", &["echo", "^1"]).done().stdout, "PING\n");
    let backend = broker.wait_backend("echo", "without connections", |b| b["status"] == "connections: 0");
    let mut connection = broker.dial(&backend);
    assert_eq!(connection.ask("one").expect("served"), "one");
    assert_eq!(connection.ask("two").expect("served"), "two");
    broker.wait_backend("echo", "connected to once", |b| b["status"] == "connections: 1");
    let _ = broker.ctl(&["stop", "echo"]).done();
    assert!(connection.line().is_err(), "the daemon is gone");
}

fn the_daemon_ends_in_order_and_its_socket_outlives_it() {
    let broker = broker_with_the_daemon();
    let mut session = broker.session();
    let negotiated = session.hold("echo");
    let backend = broker.backend("echo");
    let mut connection = broker.dial(&backend);
    assert_eq!(connection.ask("served").expect("served"), "served");
    let pid = negotiated.pid.and_then(|pid| i32::try_from(pid).ok()).expect("known");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the daemon runs");
    let exit = wait_event(&mut session, "its end", |event| match event {
        Event::Exited { exit, .. } => Some(*exit),
        _ => None,
    });
    assert_eq!(exit, Exit::Code(0));
    assert!(connection.line().is_err(), "its connections end with it");
    // The same endpoint: whoever connects before the next generation runs is served by that one.
    assert_eq!(broker.dial(&backend).ask("again").expect("served"), "again");
    assert_eq!(broker.backend("echo")["generation"], 2);
}

fn the_daemon_alone_says_what_it_misses() {
    let broker = Broker::start(&[]);
    let output = example(&broker, "daemon", &[]).exits(1);
    assert!(output.stderr.contains("no socket was handed over"), "{}", output.stderr);
}

fn the_session_tells_what_happens_to_its_backend_and_its_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &[]).toml("[recovery]\nhealthy_after = \"1ms\"")]);
    let mut client = session_example(&broker, "x@^1");
    let endpoint = broker.backend("x")["endpoint"].as_str().expect("a text").to_owned();
    let wait_line = |client: &mut Running, after: usize, line: &str| {
        client.wait_stdout(line, |stdout| stdout.lines().skip(after).any(|found| found.starts_with(line)));
    };
    kill_backend(&broker.backend("x"));
    wait_line(&mut client, 3, "Ready: ");
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    broker.start_again();
    wait_line(&mut client, 4, "Reconnected");
    let before = broker.backend("x");
    let stop = broker.ctl_in_background(&["stop", "x"]);
    wait_line(&mut client, 4, "Stopped");
    let _ = stop.finish().done();
    drop(client.stdin());
    let output = client.finish().done();
    let expected = [
        format!("Held: x 1.0.0, generation 1 at {endpoint}"),
        "Exited: generation 1 after ".to_owned(),
        "Restarting: in ".to_owned(),
        format!("Ready: generation 2 at {endpoint}"),
        "GoAway: ".to_owned(),
        "Disconnected: the broker is going away".to_owned(),
        "Reconnected".to_owned(),
        "Stopped: by an operator".to_owned(),
    ];
    let lines: Vec<&str> = output.stdout.lines().collect();
    let fits = lines.len() == expected.len() && lines.iter().zip(&expected).all(|(line, part)| line.starts_with(part));
    assert!(fits, "{}", output.stdout);
    assert!(lines[1].ends_with("Signal(9)") && output.stderr.is_empty(), "{output:?}");
    assert_eq!((&before["generation"], &before["adopted"]), (&2.into(), &true.into()));

    let failed = example(&broker, "session", &["nobody"]).exits(1);
    assert!(failed.stdout.is_empty() && failed.stderr.contains("nobody"), "{failed:?}");
}
