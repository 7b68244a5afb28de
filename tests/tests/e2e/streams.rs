//! Bytes between client and backend: `connect`, `exec`, and sockets that come connected.

use std::os::unix::net::UnixStream;
use std::process::Stdio;

use broker_proto::{ClientMessage, Delivery};
use broker_tests::{Broker, Connection, Running, Service, trials, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

trials![
    connect_passes_8_mib_of_bytes_and_the_half_close,
    connect_ends_when_the_backend_closes,
    exec_tells_its_command_where_the_backend_is,
    exec_exits_with_its_commands_status,
    exec_holds_the_backend_while_its_command_runs,
    exec_passes_signals_on,
    a_connected_socket_comes_with_the_answer,
];

fn piped(broker: &Broker, arguments: &[&str], input: Vec<u8>) -> Running {
    Running::start(broker.ctl_command(arguments).stdin(Stdio::piped())).fed_with(input)
}

fn connect_passes_8_mib_of_bytes_and_the_half_close() {
    let tcp = Service::fake("port", &["--cat"]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = Broker::start(&[&Service::fake("path", &["--cat"]), &tcp]);
    let bytes: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for service in ["path", "port"] {
        let output = piped(&broker, &["connect", service], bytes.clone()).finish().done();
        let (echo, end) = output.bytes.split_at(bytes.len().min(output.bytes.len()));
        assert!(echo == bytes, "{service}: the bytes come back as they were");
        let expected = format!("EOF after {} bytes", bytes.len());
        assert_eq!(String::from_utf8_lossy(end), expected, "{service}: the other direction stays open");
        broker.wait_backend(service, "held by nobody", |b| b["holds"] == 0);
    }
}

fn connect_ends_when_the_backend_closes() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut client = Running::start(broker.ctl_command(&["connect", "x"]).stdin(Stdio::piped()));
    let mut stdin = client.stdin().expect("piped");
    std::io::Write::write_all(&mut stdin, b"!exit 0\n").expect("the client reads");
    let output = client.finish();
    assert_eq!(output.stdout, "", "stdin is still open, and yet it ended");
    drop(stdin);
}

fn exec_tells_its_command_where_the_backend_is() {
    let tcp = Service::fake("port", &[]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = Broker::start(&[&Service::fake("x", &[]), &tcp]);
    let variables = |service: &str| {
        let output = broker.ctl(&["exec", service, "--", "env"]).done().stdout;
        output.lines().filter(|line| line.starts_with("BROKER_")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (found, backend) = (variables("x/tenant-a"), broker.resolve("x/tenant-a"));
    let text = |field: &str| backend[field].as_str().expect("a text");
    let expected = [
        format!("BROKER_ENDPOINT={}", text("endpoint")),
        format!("BROKER_ADDRESS={}", text("endpoint").trim_start_matches("unix:")),
        "BROKER_GENERATION=1".to_owned(),
        "BROKER_SERVICE=x".to_owned(),
        "BROKER_VERSION=1.0.0".to_owned(),
        "BROKER_INSTANCE=tenant-a".to_owned(),
        format!("BROKER_SOCKET={}", broker.socket().display()),
    ];
    for line in &expected {
        assert!(found.contains(line), "`{line}` is missing: {found:?}");
    }
    let (found, backend) = (variables("port"), broker.resolve("port"));
    let endpoint = backend["endpoint"].as_str().expect("a text");
    for line in
        [format!("BROKER_ENDPOINT={endpoint}"), format!("BROKER_ADDRESS={}", endpoint.trim_start_matches("tcp:"))]
    {
        assert!(found.contains(&line), "`{line}` is missing: {found:?}");
    }
}

fn exec_exits_with_its_commands_status() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let exec = |script: &str| broker.ctl(&["exec", "x", "--", "sh", "-c", script]);
    assert_eq!(exec("exit 0").code, 0);
    assert_eq!(exec("exit 42").code, 42);
    assert_eq!(exec("kill -TERM $$").code, 128 + 15);
    let output = exec("echo out; echo err >&2; cat").done();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    let missing = broker.ctl(&["exec", "x", "--", "/no/such/program"]);
    assert!(missing.code != 0 && missing.stderr.contains("/no/such/program"), "{missing:?}");
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
}

fn exec_holds_the_backend_while_its_command_runs() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml("[lifecycle]\nidle_timeout = \"100ms\"")]);
    let gate = broker.path("gate").display().to_string();
    let script = format!("until test -e {gate}; do sleep 0.05; done; echo done");
    let exec = broker.ctl_in_background(&["exec", "x", "--", "sh", "-c", &script]);
    let backend = broker.wait_backend("x", "held for longer than its idle timeout", |b| {
        b["holds"] == 1 && b["state_for_ms"].as_u64() >= Some(400)
    });
    assert_eq!((&backend["state"], &backend["generation"]), (&"ready".into(), &1.into()));
    broker.open_gate("gate");
    assert_eq!(exec.finish().done().stdout, "done\n");
    broker.wait_state("x", "inactive");
}

fn exec_passes_signals_on() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let script = "trap 'echo caught; exit 5' TERM; echo waiting; while :; do sleep 0.05; done";
    let exec = broker.ctl_in_background(&["exec", "x", "--", "sh", "-c", script]);
    let is_shell = |pid: &str| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with(b"sh\0-c\0trap")
            && std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(catches_term)
    };
    let parent = exec.pid();
    wait_until("the command has set its trap", || {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let mut children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        children.any(|list| list.split_whitespace().any(is_shell))
    });
    exec.signal(Signal::SIGTERM);
    let output = exec.finish();
    assert_eq!((output.code, output.stdout.as_str()), (5, "waiting\ncaught\n"));
}

fn catches_term(status: String) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default().trim().to_owned();
    u64::from_str_radix(&mask, 16).is_ok_and(|mask| mask & (1 << (Signal::SIGTERM as i32 - 1)) != 0)
}

fn a_connected_socket_comes_with_the_answer() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let mut hello = session.hello_for("x");
    hello.delivery = Delivery::Connected;
    let id = hello.request_id;
    session.send(&ClientMessage::Hello(hello));
    let negotiated = session.answer(id).expect("ready");
    assert!(negotiated.connected);
    let socket = session.passed_descriptor().expect("a descriptor came with the frame");
    let mut connection = Connection::over_unix(UnixStream::from(socket)).expect("a connected socket");
    assert_eq!(Some(connection.pid()), negotiated.pid.map(u64::from));

    let mut hello = session.hello_for("x");
    hello.delivery = Delivery::Endpoint;
    let id = hello.request_id;
    session.send(&ClientMessage::Hello(hello));
    assert!(!session.answer(id).expect("ready").connected);
    assert!(session.passed_descriptor().is_none());
    assert_eq!(broker.backend("x")["pid"], Value::from(negotiated.pid));
}
