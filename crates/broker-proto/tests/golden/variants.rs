//! Every variant of every enum on the wire. The matches are exhaustive: a new variant breaks the build here, and asks
//! for a sample.

use std::collections::BTreeSet;

use broker_proto::{
    AdminRequest, ClientMessage, Code, Delivery, Endpoint, Event, Exit, Reconnect, Refusal, ServerMessage, State, Work,
};

type Seen = BTreeSet<&'static str>;

/// A function that enters a value's variant, and the list of them all.
macro_rules! variants {
    ($see:ident, $all:ident, $type:ident { $($variant:ident),+ $(,)? }) => {
        const $all: &[&str] = &[$(concat!(stringify!($type), "::", stringify!($variant))),+];

        fn $see(value: &$type, seen: &mut Seen) {
            seen.insert(match value {
                $($type::$variant { .. } => concat!(stringify!($type), "::", stringify!($variant)),)+
            });
        }
    };
}

variants!(client, CLIENT, ClientMessage { Hello, Release, Ping, Admin });
variants!(server, SERVER, ServerMessage { Negotiated, Refused, Progress, Event, GoAway, Pong, AdminReply, Heartbeat });
variants!(
    admin,
    ADMIN,
    AdminRequest {
        Status,
        Services,
        Start,
        Stop,
        Restart,
        Drain,
        Logs,
        Reload,
        Shutdown,
        Events,
        Release,
        HandOver,
        Run,
        Wait,
        Processes,
        Cancel,
        Prune,
    }
);
variants!(work, WORK, Work { Command, Service });
variants!(delivery, DELIVERY, Delivery { Endpoint, Connected });
variants!(endpoint, ENDPOINT, Endpoint { Unix, Tcp });
variants!(state, STATE, State { Inactive, Starting, Ready, Backoff, Failed, Stopping, Quarantined });
variants!(exit, EXIT, Exit { Code, Signal, Unknown });
variants!(event, EVENT, Event { Exited, Restarting, Ready, Failed, Draining, Stopped, Resumable });
variants!(reconnect, RECONNECT, Reconnect { After, Never });
variants!(
    code,
    CODE,
    Code {
        ServiceUnknown,
        VersionUnsupported,
        VersionBlocked,
        BackendUnavailable,
        SpawnFailed,
        StartTimeout,
        RateLimited,
        Overloaded,
        PeerRejected,
        ShuttingDown,
        ProtocolUnsupported,
        Malformed,
        Internal,
    }
);

/// Optional fields, each of which has to be seen in both shapes.
const OPTIONS: &[&str] = &[
    "deadline_ms: Some",
    "deadline_ms: None",
    "found_dead: Some",
    "found_dead: None",
    "pid: Some",
    "pid: None",
    "status: Some",
    "status: None",
    "retry_after_ms: Some",
    "retry_after_ms: None",
    "after: Some",
    "after: None",
    "wait_ms: Some",
    "wait_ms: None",
    "id: Some",
    "id: None",
    "evidence: full",
    "evidence: empty",
];

pub(crate) fn all() -> Seen {
    let lists = [CLIENT, SERVER, ADMIN, WORK, DELIVERY, ENDPOINT, STATE, EXIT, EVENT, RECONNECT, CODE, OPTIONS];
    lists.into_iter().flatten().copied().collect()
}

pub(crate) fn of_client(message: &ClientMessage, seen: &mut Seen) {
    client(message, seen);
    match message {
        ClientMessage::Hello(hello) => {
            delivery(&hello.delivery, seen);
            seen.insert(if hello.deadline_ms.is_some() { "deadline_ms: Some" } else { "deadline_ms: None" });
            seen.insert(if hello.found_dead.is_some() { "found_dead: Some" } else { "found_dead: None" });
        }
        ClientMessage::Admin { request, .. } => {
            admin(request, seen);
            match request {
                AdminRequest::Events { after, wait_ms, .. } => {
                    seen.insert(if after.is_some() { "after: Some" } else { "after: None" });
                    seen.insert(if wait_ms.is_some() { "wait_ms: Some" } else { "wait_ms: None" });
                }
                AdminRequest::Run { spec } => {
                    work(&spec.work, seen);
                    seen.insert(if spec.id.is_some() { "id: Some" } else { "id: None" });
                }
                _ => {}
            }
        }
        ClientMessage::Release { .. } | ClientMessage::Ping { .. } => {}
    }
}

pub(crate) fn of_server(message: &ServerMessage, seen: &mut Seen) {
    server(message, seen);
    match message {
        ServerMessage::Negotiated(negotiated) => {
            endpoint(&negotiated.endpoint, seen);
            seen.insert(if negotiated.pid.is_some() { "pid: Some" } else { "pid: None" });
        }
        ServerMessage::Refused { refusal, .. } => of_refusal(refusal, seen),
        ServerMessage::Progress(progress) => {
            state(&progress.state, seen);
            seen.insert(if progress.status.is_some() { "status: Some" } else { "status: None" });
        }
        ServerMessage::Event { event: what, .. } => {
            event(what, seen);
            match what {
                Event::Exited { exit: how, .. } => exit(how, seen),
                Event::Ready { endpoint: place, .. } => endpoint(place, seen),
                Event::Failed { refusal } => of_refusal(refusal, seen),
                Event::Restarting { .. } | Event::Draining | Event::Stopped | Event::Resumable => {}
            }
        }
        ServerMessage::GoAway { reconnect: advice } => reconnect(advice, seen),
        ServerMessage::Pong { .. } | ServerMessage::AdminReply { .. } | ServerMessage::Heartbeat => {}
    }
}

fn of_refusal(refusal: &Refusal, seen: &mut Seen) {
    code(&refusal.code, seen);
    seen.insert(if refusal.retry_after_ms.is_some() { "retry_after_ms: Some" } else { "retry_after_ms: None" });
    let evidence = &refusal.evidence;
    let known = [
        evidence.exit_code.is_some(),
        evidence.signal.is_some(),
        evidence.lived_ms.is_some(),
        evidence.attempt.is_some(),
        evidence.stderr.is_some(),
        evidence.log_path.is_some(),
        !evidence.available.is_empty(),
    ];
    if known == [true; 7] {
        seen.insert("evidence: full");
    }
    if known == [false; 7] {
        seen.insert("evidence: empty");
    }
}
