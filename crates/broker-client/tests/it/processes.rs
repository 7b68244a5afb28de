//! Durable processes: what is asked of the broker, what is made of its answers, and what heals.

use std::time::Duration;

use broker_client::{
    Error, Process, ProcessExit, ProcessHappening, ProcessRequest, ProcessState, ProtocolError, Request,
};
use broker_proto::{AdminRequest, ClientMessage, Code, ProcessSpec, Refusal, RequestId, ServerMessage, Target, Work};
use serde_json::{Value, json};

use crate::fake::{Broker, Peer, chain, soon};
use crate::keeping::{answer, aside, builder, connect};

/// The next order or report that is asked for.
async fn asked(peer: &mut Peer) -> (RequestId, AdminRequest) {
    match peer.hear().await {
        Some(ClientMessage::Admin { request_id, request }) => (request_id, request),
        other => panic!("no order but {other:?}"),
    }
}

async fn reply(peer: &mut Peer, request_id: RequestId, document: Value) {
    peer.say(ServerMessage::AdminReply { request_id, json: document.to_string() }).await;
}

fn process(id: &str, state: &str, facts: Value) -> Value {
    let mut process = json!({"id": id, "state": state, "command": ["true"], "service": null, "instance": null,
        "working_directory": "/", "attempt": 1, "max_attempts": 3, "timeout_ms": null, "pid": null, "adopted": false,
        "exit_code": null, "signal": null, "ended_by": null, "reason": null, "registered_at": "2026-11-22T03:24:16Z",
        "started_at": null, "ended_at": null, "stdout": "/s/1.out", "stderr": "/s/1.err", "lease": null});
    for (name, value) in facts.as_object().expect("an object") {
        process[name] = value.clone();
    }
    process
}

#[tokio::test]
async fn a_request_becomes_a_specification_and_its_answer_a_process() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let command = ProcessRequest::command(["sh", "-c", "exit 7"])
        .id("nightly")
        .env("A", "1")
        .env("B", "")
        .working_directory("/srv")
        .timeout(Duration::from_millis(1_500))
        .max_attempts(2);
    let service = ProcessRequest::service(Request::new("backup").version("^1").instance("tenant-a")).id("b");
    let (first, second) = (client.run(command), client.run(service));
    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        let (request_id, request) = asked(&mut peer).await;
        let spec = ProcessSpec {
            id: Some("nightly".to_owned()),
            work: Work::Command { argv: ["sh", "-c", "exit 7"].map(str::to_owned).to_vec() },
            environment: vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())],
            working_directory: Some("/srv".to_owned()),
            timeout_ms: Some(1_500),
            max_attempts: Some(2),
        };
        assert_eq!(request, AdminRequest::Run { spec });
        let lease = json!({"owner": 7, "mine": true, "fencing_token": 3, "expires_in_ms": 9_000});
        let running = process("nightly", "running", json!({"pid": 42, "lease": lease}));
        reply(&mut peer, request_id, json!({"process": running, "created": true})).await;

        let (request_id, request) = asked(&mut peer).await;
        let AdminRequest::Run { spec } = request else { panic!("{request:?}") };
        let [instance, service, version_requirement] = ["tenant-a", "backup", "^1"].map(str::to_owned);
        assert_eq!(spec.work, Work::Service { target: Target { instance, service, version_requirement } });
        assert_eq!((spec.timeout_ms, spec.max_attempts, spec.working_directory), (None, None, None));
        let other = Refusal::new(Code::Malformed, "process `b` is there with another command");
        peer.refuse(request_id, other).await;
        (broker, peer)
    });
    let running: Process = answer(first).await.expect("registered");
    assert_eq!((running.id.as_str(), running.state, running.pid), ("nightly", ProcessState::Running, Some(42)));
    assert_eq!(running.lease.map(|lease| (lease.owner, lease.mine, lease.fencing_token)), Some((7, true, 3)));
    assert_eq!(running.exit(), None);
    let error = answer(second).await.expect_err("refused");
    assert_eq!(error.refusal().map(|refusal| refusal.code), Some(Code::Malformed));
    drop(serving.await);
}

#[tokio::test]
async fn a_registration_and_a_wait_go_on_over_a_reconnect() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let (registration, wait) = (client.run(ProcessRequest::command(["true"])), client.wait_process("nightly"));
    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        let (before, _) = (asked(&mut peer).await, asked(&mut peer).await);
        drop(peer);
        let mut peer = broker.greeted().await;
        let (request_id, request) = asked(&mut peer).await;
        assert_eq!(request, before.1, "under the same id, so that it is no second one");
        reply(&mut peer, request_id, json!({"process": process("x", "pending", json!({})), "created": false})).await;
        let (request_id, request) = asked(&mut peer).await;
        assert_eq!(request, AdminRequest::Wait { id: "nightly".to_owned(), wait_ms: None });
        let ended = process("nightly", "failed", json!({"exit_code": 7, "ended_at": "2026-11-22T03:24:17Z"}));
        reply(&mut peer, request_id, json!({"process": ended})).await;
        (broker, peer)
    });
    assert_eq!(answer(registration).await.expect("registered").state, ProcessState::Pending);
    let ended = answer(wait).await.expect("ended");
    assert_eq!((ended.exit(), ended.state.has_ended()), (Some(ProcessExit::Code(7)), true));
    drop(serving.await);
}

#[tokio::test]
async fn processes_are_listed_cancelled_and_pruned() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        let (request_id, request) = asked(&mut peer).await;
        assert_eq!(request, AdminRequest::Processes { id: None });
        let both = [process("a", "running", json!({})), process("b", "pending", json!({"attempt": 0}))];
        reply(&mut peer, request_id, json!({"processes": both})).await;
        let (request_id, request) = asked(&mut peer).await;
        assert_eq!(request, AdminRequest::Processes { id: Some("a".to_owned()) });
        reply(&mut peer, request_id, json!({"processes": [process("a", "running", json!({}))]})).await;
        let (request_id, request) = asked(&mut peer).await;
        assert_eq!(request, AdminRequest::Cancel { id: "a".to_owned(), reason: "too late".to_owned() });
        let cancelled = json!({"ended_by": "cancel", "reason": "too late", "signal": 15});
        reply(&mut peer, request_id, json!({"process": process("a", "cancelled", cancelled)})).await;
        let (request_id, request) = asked(&mut peer).await;
        assert_eq!(request, AdminRequest::Prune { id: None, older_than_ms: Some(60_000) });
        reply(&mut peer, request_id, json!({"pruned": ["a"]})).await;
        let (request_id, _) = asked(&mut peer).await;
        reply(&mut peer, request_id, json!({"process": {"id": "a", "state": "of a newer broker"}})).await;
        (broker, peer)
    });
    let listed = answer(client.processes()).await.expect("listed");
    assert_eq!(listed.iter().map(|process| process.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(answer(client.process("a")).await.expect("there").id, "a");
    let cancelled = answer(client.cancel_process("a", "too late")).await.expect("cancelled");
    assert_eq!((cancelled.exit(), cancelled.reason.as_deref()), (Some(ProcessExit::Cancelled), Some("too late")));
    let pruned = answer(client.prune_processes(None, Some(Duration::from_secs(60)))).await.expect("pruned");
    assert_eq!(pruned, ["a"]);
    let error = answer(client.wait_process("a")).await.expect_err("not understood");
    assert!(matches!(error, Error::Protocol(ProtocolError::Document(_))), "{}", chain(&error));
    drop(serving.await);
}

#[tokio::test]
async fn events_of_processes_are_read_one_report_after_the_other() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let mut events = client.process_events();
    let serving = aside(async move {
        let event = |number: u64, word: &str, facts: Value| {
            let mut event =
                json!({"process": "a", "number": number, "time": "2026-11-22T03:24:16.000Z", "event": word});
            for (name, value) in facts.as_object().expect("an object") {
                event[name] = value.clone();
            }
            event
        };
        let mut peer = broker.greeted().await;
        let (request_id, request) = asked(&mut peer).await;
        assert!(matches!(request, AdminRequest::Events { after: None, wait_ms: Some(_), .. }), "{request:?}");
        let other = json!({"number": 1, "time": "2026-11-22T03:24:16.000Z", "instance": "default", "service": "redis",
            "version": "7.0.15", "generation": 1, "event": "stopped"});
        let registered = event(2, "process_registered", json!({"attempt": 0, "state": "pending"}));
        reply(&mut peer, request_id, json!({"events": [other, registered], "next": "n2", "missed": 0})).await;
        let (request_id, request) = asked(&mut peer).await;
        assert!(matches!(&request, AdminRequest::Events { after: Some(after), .. } if after == "n2"), "{request:?}");
        reply(&mut peer, request_id, json!({"events": [], "next": "n2", "missed": 0})).await;
        let (_, _) = asked(&mut peer).await;
        drop(peer);
        let mut peer = broker.greeted().await;
        let (request_id, request) = asked(&mut peer).await;
        assert!(matches!(&request, AdminRequest::Events { after: Some(after), .. } if after == "n2"), "{request:?}");
        let ended = event(3, "process_ended", json!({"attempt": 1, "state": "failed", "signal": 9}));
        let news = event(4, "process_of_a_newer_broker", json!({}));
        reply(&mut peer, request_id, json!({"events": [ended, news], "next": "n4", "missed": 0})).await;
        (broker, peer)
    });
    let registered = soon(events.next()).await.expect("read");
    assert_eq!((registered.happening, registered.state), (ProcessHappening::Registered, Some(ProcessState::Pending)));
    let ended = soon(events.next()).await.expect("read");
    assert_eq!((ended.happening, ended.signal), (ProcessHappening::Ended, Some(9)));
    assert_eq!(soon(events.next()).await.expect("read").happening, ProcessHappening::Other);
    drop(serving.await);
}

#[test]
fn the_same_without_a_runtime() {
    let (tell, told) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let broker = Broker::new();
            tell.send(broker.builder()).expect("the test waits");
            let mut peer = broker.greeted().await;
            let (request_id, _) = asked(&mut peer).await;
            reply(&mut peer, request_id, json!({"process": process("a", "running", json!({})), "created": true})).await;
            let (request_id, request) = asked(&mut peer).await;
            assert_eq!(request, AdminRequest::Wait { id: "a".to_owned(), wait_ms: Some(10) });
            reply(&mut peer, request_id, json!({"process": process("a", "running", json!({}))})).await;
            assert_eq!(peer.hear().await, None);
        });
    });
    let client = told.recv().expect("a broker").connect_blocking().expect("it accepts");
    let process = client.run(ProcessRequest::command(["true"]).id("a")).expect("registered");
    let process = client.wait_process_for(process.id, Duration::from_millis(10)).expect("reported");
    assert_eq!(process.exit(), None);
    drop(client);
    serving.join().expect("the broker's part goes well");
}
