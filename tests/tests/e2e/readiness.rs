//! When a backend is ready: the four probes, on paths and ports, and what is no proof of anything.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use broker_proto::ServerMessage;
use broker_tests::{Broker, Service, Setup, trials};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

trials![
    a_socket_that_appears_after_35_seconds_is_waited_for,
    a_port_is_ready_once_it_is_listened_on,
    a_fixed_path_and_a_fixed_port_are_kept,
    a_notifying_daemon_is_ready_when_it_says_so,
    a_notification_extends_the_ceiling,
    a_passed_socket_is_ready_at_once,
    a_passed_port_is_ready_at_once,
    a_passed_socket_with_notify_is_ready_when_the_daemon_says_so,
    a_command_decides,
    a_full_backlog_is_ready,
    a_daemon_that_is_stopped_is_not_dead,
    a_stranger_on_a_fixed_port_or_path_is_left_alone,
    a_stranger_that_comes_in_between_is_not_the_backend,
];

fn a_socket_that_appears_after_35_seconds_is_waited_for() {
    let broker = Broker::start(&[&Service::fake("late", &["--ready-after", "35000"])]);
    let backend = broker.ctl_json(&["resolve", "late"]).done().json();
    assert_eq!((&backend["state"], &backend["generation"]), (&"ready".into(), &1.into()));
    assert_eq!(broker.starts("late").len(), 1);
    assert_eq!(broker.dial(&backend).pid(), backend["pid"]);
}

fn a_port_is_ready_once_it_is_listened_on() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let service = Service::fake("port", &["--ready-when", &gate]).toml("[endpoint]\nkind = \"tcp\"");
    let broker = setup.service(&service).start();
    let client = broker.ctl_in_background(&["--json", "resolve", "port"]);
    broker.wait_state("port", "starting");
    broker.open_gate("gate");
    let backend = client.finish().done().json();
    let endpoint = backend["endpoint"].as_str().expect("an endpoint");
    assert!(endpoint.starts_with("tcp:127.0.0.1:"), "{endpoint}");
    assert_eq!(broker.dial(&backend).pid(), backend["pid"]);
    let plain = broker.ctl(&["resolve", "port"]).done();
    assert_eq!(plain.stdout, format!("{endpoint}\n"));
}

fn a_fixed_path_and_a_fixed_port_are_kept() {
    let setup = Setup::new();
    let path = setup.path("own.sock");
    let port = free_port();
    let on_path = Service::named("path").version("1.0.0", &["--listen", &path]);
    let on_port = Service::named("port").version("1.0.0", &["--listen", &format!("127.0.0.1:{port}")]);
    let setup = setup.service(&on_path.toml(&format!("[endpoint]\npath = {path:?}")));
    let broker = setup.service(&on_port.toml(&format!("[endpoint]\nkind = \"tcp\"\nport = {port}"))).start();
    assert_eq!(broker.resolve("path")["endpoint"], format!("unix:{path}"));
    assert_eq!(broker.resolve("port")["endpoint"], format!("tcp:127.0.0.1:{port}"));
    let _ = broker.ctl(&["stop", "path"]).done();
    assert!(!Path::new(&path).exists(), "the endpoint goes with its backend");
}

fn a_notifying_daemon_is_ready_when_it_says_so() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let arguments = ["--notify", "--status", "loading the 7th index", "--ready-when", &gate];
    let service = Service::fake("told", &arguments).toml("[readiness]\nprobe = \"notify\"");
    let broker = setup.service(&service).start();

    let mut session = broker.session();
    let id = session.hello("told");
    session.wait_message("the daemon's words", |message| match message {
        ServerMessage::Progress(progress) => {
            progress.status.as_deref().filter(|status| status.contains("loading the 7th index")).map(drop)
        }
        _ => None,
    });
    let backend = broker.backend("told");
    assert_eq!((&backend["state"], &backend["status"]), (&"starting".into(), &"loading the 7th index".into()));
    broker.open_gate("gate");
    let negotiated = session.answer(id).expect("ready");
    let mut connection = broker.dial(&broker.backend("told"));
    let facts = connection.facts();
    assert_eq!(facts["pid"], negotiated.pid.expect("a known main process"));
    let socket = facts["environment"]["NOTIFY_SOCKET"].as_str().expect("a notify socket");
    assert!(socket.starts_with('/'), "{socket}");
}

fn a_notification_extends_the_ceiling() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let arguments = ["--notify", "--extend", "60000000", "--ready-when", &gate];
    let service = Service::fake("long", &arguments);
    let service = service.toml("[readiness]\nprobe = \"notify\"\nhard_ceiling = \"2s\"");
    let broker = setup.service(&service).start();
    let client = broker.ctl_in_background(&["--json", "resolve", "long"]);
    let backend = broker.wait_backend("long", "past its ceiling", |b| b["state_for_ms"].as_u64() >= Some(3000));
    assert_eq!((&backend["state"], &backend["attempt"]), (&"starting".into(), &0.into()));
    broker.open_gate("gate");
    assert_eq!(client.finish().done().json()["generation"], 1);
}

fn has_passed_socket(facts: &Value) {
    let environment = &facts["environment"];
    assert_eq!(environment["LISTEN_FDS"], "1");
    assert_eq!(environment["LISTEN_PID"], facts["pid"].to_string());
    assert!(environment["LISTEN_FDNAMES"].as_str().is_some_and(|names| !names.is_empty()), "{environment}");
}

fn a_passed_socket_is_ready_at_once() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let service = Service::fake_on_passed_socket("passed", &["--ready-when", &gate]);
    let broker = setup.service(&service.toml("[readiness]\nprobe = \"socket\"")).start();
    let backend = broker.resolve("passed");
    let mut connection = broker.dial(&backend);
    connection.send(b"?\n").expect("the backlog takes it");
    broker.open_gate("gate");
    let facts: Value = serde_json::from_str(&connection.line().expect("served at last")).expect("facts");
    assert_eq!(facts["pid"], backend["pid"]);
    has_passed_socket(&facts);
}

fn a_passed_port_is_ready_at_once() {
    let service = Service::fake_on_passed_socket("passed", &[]);
    let broker = Broker::start(&[&service.toml("[endpoint]\nkind = \"tcp\"\n[readiness]\nprobe = \"socket\"")]);
    let backend = broker.resolve("passed");
    assert!(backend["endpoint"].as_str().is_some_and(|e| e.starts_with("tcp:127.0.0.1:")), "{backend}");
    has_passed_socket(&broker.dial(&backend).facts());
}

fn a_passed_socket_with_notify_is_ready_when_the_daemon_says_so() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let service = Service::fake_on_passed_socket("passed", &["--notify", "--status", "waking", "--ready-when", &gate]);
    let broker = setup.service(&service.toml("[readiness]\nprobe = \"socket\"\nnotify = true")).start();
    let client = broker.ctl_in_background(&["--json", "resolve", "passed"]);
    broker.wait_backend("passed", "starting, and says so", |b| b["state"] == "starting" && b["status"] == "waking");
    broker.open_gate("gate");
    let backend = client.finish().done().json();
    has_passed_socket(&broker.dial(&backend).facts());
}

fn a_command_decides() {
    let setup = Setup::new();
    let (gate, looked) = (setup.path("gate"), setup.path("looked"));
    let look = format!("command = [\"/bin/sh\", \"-c\", \"echo >> {looked}; test -e {gate}\"]");
    let service = Service::fake("asked", &[]).toml(&format!("[readiness]\nprobe = \"exec\"\n{look}"));
    let broker = setup.service(&service).start();
    let client = broker.ctl_in_background(&["--json", "resolve", "asked"]);
    let looks = || fs::read_to_string(&looked).unwrap_or_default().lines().count();
    broker_tests::wait_until("the command was asked three times", || looks() >= 3);
    assert_eq!(broker.backend("asked")["state"], "starting", "its socket alone proves nothing");
    broker.open_gate("gate");
    let backend = client.finish().done().json();
    assert_eq!(broker.dial(&backend).pid(), backend["pid"]);
}

fn a_full_backlog_is_ready() {
    let broker = Broker::start(&[&Service::fake("busy", &["--full-backlog"])]);
    assert_eq!(broker.resolve("busy")["state"], "ready");
    assert_eq!(broker.starts("busy").len(), 1);
}

fn a_daemon_that_is_stopped_is_not_dead() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("x", &["--ready-when", &gate])).start();
    let client = broker.ctl_in_background(&["--json", "resolve", "x"]);
    let pid = broker.wait_backend("x", "starting", |b| b["state"] == "starting" && b["pid"].is_u64())["pid"].clone();
    let process = Pid::from_raw(pid.as_i64().and_then(|pid| pid.try_into().ok()).expect("a number"));
    kill(process, Signal::SIGSTOP).expect("the daemon runs");
    broker.open_gate("gate");
    broker.wait_backend("x", "starting for a while", |b| b["state_for_ms"].as_u64() >= Some(500));
    assert_eq!(broker.backend("x")["state"], "starting");
    kill(process, Signal::SIGCONT).expect("the daemon runs");
    assert_eq!(client.finish().done().json()["pid"], pid);

    kill(process, Signal::SIGSTOP).expect("the daemon runs");
    for _ in 0..3 {
        let backend = broker.resolve("x");
        assert_eq!((&backend["pid"], &backend["generation"]), (&pid, &1.into()));
    }
    kill(process, Signal::SIGCONT).expect("the daemon runs");
    assert_eq!(broker.starts("x").len(), 1);
}

fn a_stranger_on_a_fixed_port_or_path_is_left_alone() {
    let setup = Setup::new();
    let path = setup.path("taken.sock");
    let on_path = UnixListener::bind(&path).expect("a new path");
    let on_port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = on_port.local_addr().expect("bound").port();
    let named = |name: &str| Service::named(name).version("1.0.0", &["--never-ready"]);
    let short = "[readiness]\nhard_ceiling = \"2s\"\n[recovery]\nretry_backoff = \"50ms\"";
    let setup = setup.service(&named("path").toml(&format!("[endpoint]\npath = {path:?}\n{short}")));
    let tcp = format!("[endpoint]\nkind = \"tcp\"\nport = {port}\n{short}");
    let broker = setup.service(&named("port").toml(&tcp)).start();
    for service in ["path", "port"] {
        let refused = broker.ctl_json(&["resolve", service]).json()["refused"].take();
        let reason = refused["reason"].as_str().unwrap_or_else(|| panic!("{service}: a stranger was handed out"));
        assert!(reason.contains(&std::process::id().to_string()), "who it is: {reason}");
    }
    drop(UnixStream::connect(&path).expect("the stranger's socket is where it was"));
    drop((on_path, on_port));
}

fn a_stranger_that_comes_in_between_is_not_the_backend() {
    let stuck = |name: &str| Service::fake(name, &["--never-ready"]);
    let broker = Broker::start(&[&stuck("path"), &stuck("port").toml("[endpoint]\nkind = \"tcp\"")]);
    let clients = ["path", "port"].map(|service| broker.ctl_in_background(&["--json", "resolve", service]));
    let place = |service: &str| {
        let backend = broker.wait_backend(service, "told where to listen", |b| b["endpoint"].is_string());
        backend["endpoint"].as_str().and_then(|e| e.split_once(':')).expect("an endpoint").1.to_owned()
    };
    let on_path = UnixListener::bind(place("path")).expect("the daemon does not listen");
    let on_port = TcpListener::bind(place("port")).expect("the daemon does not listen");
    for service in ["path", "port"] {
        let backend = broker.wait_backend(service, "aware of the stranger", |b| {
            b["status"].as_str().is_some_and(|text| text.contains(&std::process::id().to_string()))
        });
        assert_eq!((&backend["state"], &backend["waiters"]), (&"starting".into(), &1.into()));
        let _ = broker.ctl(&["stop", service]).done();
    }
    for client in clients {
        let _ = client.finish().refused(75, "shutting_down");
    }
    drop((on_path, on_port));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}
