//! One value, at least, of each message. The values are frozen with their bytes: new ones are appended.

use broker_proto::{
    AdminRequest, ClientInfo, ClientMessage, Code, Delivery, Endpoint, Event, Evidence, Exit, Hello, Negotiated,
    ProcessSpec, Progress, Reconnect, Refusal, Selection, ServerMessage, State, Target, Work,
};

/// A message of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sample {
    Client(ClientMessage),
    Server(ServerMessage),
}

/// Every sample under its name in the golden file.
pub(crate) fn samples() -> Vec<(String, Sample)> {
    let client = client().into_iter().map(|(name, message)| (format!("client.{name}"), Sample::Client(message)));
    let server = server().into_iter().map(|(name, message)| (format!("server.{name}"), Sample::Server(message)));
    client.chain(server).collect()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn client() -> Vec<(String, ClientMessage)> {
    let hello = Hello {
        request_id: 1,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version_requirement: "^7".to_owned(),
        client: ClientInfo { name: "brokerctl".to_owned(), version: "0.1.0".to_owned() },
        deadline_ms: None,
        delivery: Delivery::Endpoint,
        found_dead: None,
    };
    let full = Hello {
        request_id: u64::MAX,
        instance: "tenant-a".to_owned(),
        version_requirement: ">=6, <8".to_owned(),
        client: ClientInfo { name: "größer".to_owned(), version: String::new() },
        deadline_ms: Some(20_000),
        delivery: Delivery::Connected,
        found_dead: Some(3),
        ..hello.clone()
    };
    let mut all = vec![
        ("hello".to_owned(), ClientMessage::Hello(hello)),
        ("hello.full".to_owned(), ClientMessage::Hello(full)),
        ("release".to_owned(), ClientMessage::Release { request_id: 250 }),
        ("ping".to_owned(), ClientMessage::Ping { nonce: 251 }),
        ("ping.u32".to_owned(), ClientMessage::Ping { nonce: 0x0001_0000 }),
        ("ping.u64".to_owned(), ClientMessage::Ping { nonce: 0x0001_0000_0000 }),
    ];
    all.extend(
        orders()
            .into_iter()
            .map(|(name, request)| (format!("admin.{name}"), ClientMessage::Admin { request_id: 2, request })),
    );
    all
}

fn orders() -> Vec<(&'static str, AdminRequest)> {
    let target =
        Target { instance: "default".to_owned(), service: "redis".to_owned(), version_requirement: "*".to_owned() };
    let everything = Selection::default();
    let one = Selection { instance: text("default"), service: text("redis"), version_requirement: text("7.0.15") };
    vec![
        ("status", AdminRequest::Status),
        ("services", AdminRequest::Services),
        ("start", AdminRequest::Start { target: target.clone(), deadline_ms: Some(60_000) }),
        ("start.no_deadline", AdminRequest::Start { target: target.clone(), deadline_ms: None }),
        ("stop", AdminRequest::Stop { selection: one.clone(), deadline_ms: Some(10_000) }),
        ("stop.everything", AdminRequest::Stop { selection: everything.clone(), deadline_ms: None }),
        ("restart", AdminRequest::Restart { selection: one.clone(), deadline_ms: None }),
        ("drain", AdminRequest::Drain { selection: one.clone() }),
        ("logs", AdminRequest::Logs { selection: everything.clone() }),
        ("reload", AdminRequest::Reload),
        ("shutdown", AdminRequest::Shutdown),
        ("events", AdminRequest::Events { selection: one.clone(), after: text("4242-1.17"), wait_ms: Some(30_000) }),
        ("events.all", AdminRequest::Events { selection: everything, after: None, wait_ms: None }),
        ("release", AdminRequest::Release { selection: one }),
        ("hand_over", AdminRequest::HandOver),
        ("run", AdminRequest::Run { spec: backup() }),
        ("run.service", AdminRequest::Run { spec: of_service(target) }),
        ("wait", AdminRequest::Wait { id: "backup-7".to_owned(), wait_ms: Some(30_000) }),
        ("wait.for_ever", AdminRequest::Wait { id: "backup-7".to_owned(), wait_ms: None }),
        ("processes", AdminRequest::Processes { id: None }),
        ("processes.one", AdminRequest::Processes { id: text("backup-7") }),
        ("cancel", AdminRequest::Cancel { id: "backup-7".to_owned(), reason: "not needed".to_owned() }),
        ("prune", AdminRequest::Prune { id: None, older_than_ms: Some(86_400_000) }),
        ("prune.one", AdminRequest::Prune { id: text("backup-7"), older_than_ms: None }),
    ]
}

fn backup() -> ProcessSpec {
    ProcessSpec {
        id: text("backup-7"),
        work: Work::Command { argv: vec!["pg_dump".to_owned(), "shop".to_owned()] },
        environment: vec![("PGHOST".to_owned(), "/run/postgresql".to_owned())],
        working_directory: text("/srv/backup"),
        timeout_ms: Some(60_000),
        max_attempts: Some(2),
    }
}

fn of_service(target: Target) -> ProcessSpec {
    ProcessSpec {
        id: None,
        work: Work::Service { target },
        environment: Vec::new(),
        working_directory: None,
        timeout_ms: None,
        max_attempts: None,
    }
}

fn server() -> Vec<(String, ServerMessage)> {
    let unix = Endpoint::Unix { path: "/run/broker/e/redis.sock".to_owned() };
    let tcp = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 6379 };
    let negotiated = Negotiated {
        request_id: 1,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version: "7.0.15".to_owned(),
        endpoint: unix.clone(),
        generation: 1,
        pid: Some(4242),
        connected: false,
    };
    let connected =
        Negotiated { endpoint: tcp.clone(), generation: 300, pid: None, connected: true, ..negotiated.clone() };
    let mut all = vec![
        ("negotiated".to_owned(), ServerMessage::Negotiated(negotiated)),
        ("negotiated.connected".to_owned(), ServerMessage::Negotiated(connected)),
        ("refused.full".to_owned(), ServerMessage::Refused { request_id: 1, refusal: full_refusal() }),
        (
            "progress.status".to_owned(),
            ServerMessage::Progress(Progress { attempt: 1, status: text("loading"), ..progress(State::Starting) }),
        ),
        ("goaway.after".to_owned(), ServerMessage::GoAway { reconnect: Reconnect::After { ms: 1_000 } }),
        ("goaway.never".to_owned(), ServerMessage::GoAway { reconnect: Reconnect::Never }),
        ("pong".to_owned(), ServerMessage::Pong { nonce: 251 }),
        ("admin_reply".to_owned(), ServerMessage::AdminReply { request_id: 2, json: r#"{"stopping":0}"#.to_owned() }),
        ("heartbeat".to_owned(), ServerMessage::Heartbeat),
    ];
    all.extend(Code::ALL.into_iter().map(|code| {
        let refusal = Refusal::new(code, "no");
        (format!("refused.{code}"), ServerMessage::Refused { request_id: 1, refusal })
    }));
    let states = [
        State::Inactive,
        State::Starting,
        State::Ready,
        State::Backoff,
        State::Failed,
        State::Stopping,
        State::Quarantined,
    ];
    all.extend(states.map(|state| (format!("progress.{state}"), ServerMessage::Progress(progress(state)))));
    all.extend(
        events(unix, tcp)
            .into_iter()
            .map(|(name, event)| (format!("event.{name}"), ServerMessage::Event { request_id: 1, event })),
    );
    all
}

fn progress(state: State) -> Progress {
    Progress { request_id: 1, version: "7.0.15".to_owned(), state, attempt: 0, elapsed_ms: 40, status: None }
}

fn full_refusal() -> Refusal {
    Refusal {
        code: Code::BackendUnavailable,
        reason: "redis crashed twice".to_owned(),
        retry_after_ms: Some(29_000),
        evidence: Evidence {
            exit_code: Some(-1),
            signal: Some(9),
            lived_ms: Some(120),
            attempt: Some(1),
            stderr: text("bind: Address already in use\n"),
            log_path: text("/var/log/broker/redis.log"),
            available: vec!["6.2.0".to_owned(), "7.0.15".to_owned()],
        },
    }
}

fn events(unix: Endpoint, tcp: Endpoint) -> Vec<(&'static str, Event)> {
    let exited = |exit| Event::Exited { generation: 1, exit, lived_ms: 5_000 };
    vec![
        ("exited.code", exited(Exit::Code(1))),
        ("exited.code_256", exited(Exit::Code(256))),
        ("exited.signal", exited(Exit::Signal(11))),
        ("exited.unknown", exited(Exit::Unknown)),
        ("restarting", Event::Restarting { delay_ms: 250 }),
        ("ready.unix", Event::Ready { generation: 2, endpoint: unix }),
        ("ready.tcp", Event::Ready { generation: 2, endpoint: tcp }),
        ("failed", Event::Failed { refusal: full_refusal() }),
        ("draining", Event::Draining),
        ("stopped", Event::Stopped),
        ("resumable", Event::Resumable),
    ]
}
