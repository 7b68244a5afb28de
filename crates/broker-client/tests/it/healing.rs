//! What a session heals of, and what goes on meanwhile.

use std::time::Duration;

use broker_client::{Error, Request, SessionEvent};
use broker_proto::{AdminRequest, ClientMessage, Code, Event, Reconnect, Refusal, ServerMessage};

use crate::fake::{Broker, soon};
use crate::keeping::{answer, aside, builder, connect, hold, quickly, redis, wait_for};

#[tokio::test]
async fn what_waits_when_the_connection_breaks_is_answered_by_the_next_after_the_holds() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let mut events = client.events();
    let (held, mut peer) = hold(&client, broker.greeted().await, 7).await;
    let pending = client.resolve(Request::new("memcached"));
    let report = client.admin(AdminRequest::Status);
    let order = client.admin(AdminRequest::Reload);
    let peer = aside(async move {
        let _ = (peer.hear().await, peer.hear().await, peer.hear().await);
        peer
    });
    drop(peer.await);
    let error = answer(order).await.expect_err("it may have been carried out");
    assert!(matches!(error, Error::Disconnected { source: None }), "{error:?}");

    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        let (first, second) = (peer.hello().await, peer.hello().await);
        assert_eq!((first.service.as_str(), first.version_requirement.as_str()), ("redis", "7.0.15"));
        assert_eq!((second.service.as_str(), second.version_requirement.as_str()), ("memcached", "*"));
        let Some(ClientMessage::Admin { request_id, request: AdminRequest::Status }) = peer.hear().await else {
            panic!("the report is not asked for again")
        };
        peer.grant(&first, 8).await;
        peer.grant(&second, 9).await;
        peer.say(ServerMessage::AdminReply { request_id, json: "{}".to_owned() }).await;
        (broker, peer)
    });
    assert_eq!(answer(pending).await.expect("granted").pid(), Some(9));
    assert_eq!(answer(report).await.expect("answered"), "{}");
    assert_eq!((held.pid(), held.is_held()), (Some(8), true));
    let seen = wait_for(&mut events, |event| *event == SessionEvent::Reconnected).await;
    let [SessionEvent::Disconnected { .. }, SessionEvent::Backend { request_id, event }, SessionEvent::Reconnected] =
        &seen[..]
    else {
        panic!("{seen:?}")
    };
    assert_eq!(*request_id, held.request_id());
    assert!(matches!(event, Event::Ready { generation: 1, .. }), "{event:?}");
    drop(serving.await);
}

#[tokio::test]
async fn a_hold_that_is_the_same_process_as_before_is_no_news() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let mut events = client.events();
    let (held, peer) = hold(&client, broker.greeted().await, 7).await;
    drop(peer);
    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        let hello = peer.hello().await;
        peer.grant(&hello, 7).await;
        (broker, peer)
    });
    let seen = wait_for(&mut events, |event| *event == SessionEvent::Reconnected).await;
    assert!(matches!(&seen[..], [SessionEvent::Disconnected { .. }, SessionEvent::Reconnected]), "{seen:?}");
    assert!(held.is_held());
    drop(serving.await);
}

#[tokio::test]
async fn a_hold_ended_by_an_operator_is_not_retaken() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let mut events = client.events();
    let (held, mut peer) = hold(&client, broker.greeted().await, 7).await;
    peer.say(ServerMessage::Event { request_id: held.request_id(), event: Event::Stopped }).await;
    wait_for(&mut events, |event| matches!(event, SessionEvent::Backend { event: Event::Stopped, .. })).await;
    assert!(!held.is_held());
    drop(peer);
    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        match peer.hear_any().await {
            Some(ClientMessage::Ping { nonce }) => peer.say(ServerMessage::Pong { nonce }).await,
            other => panic!("{other:?} instead of a greeting"),
        }
        (broker, peer)
    });
    wait_for(&mut events, |event| *event == SessionEvent::Reconnected).await;
    drop(serving.await);
}

#[tokio::test]
async fn an_announced_drain_costs_nothing_and_requests_made_meanwhile_wait_for_the_next_broker() {
    let broker = Broker::new();
    let client = connect(builder(&broker).reconnect(quickly(1))).await;
    let mut events = client.events();
    let (held, mut peer) = hold(&client, broker.greeted().await, 7).await;
    for pid in 8..12 {
        // A broker that goes stops its backends; the hold is for the next one to take.
        let stopped = ServerMessage::Event { request_id: held.request_id(), event: Event::Stopped };
        peer.say_both(ServerMessage::GoAway { reconnect: Reconnect::After { ms: 1 } }, stopped).await;
        wait_for(&mut events, |event| matches!(event, SessionEvent::GoAway(_))).await;
        let pending = client.resolve(Request::new("memcached"));
        // Nothing is in flight, so nothing keeps the client from closing.
        while let Some(said) = peer.hear_any().await {
            assert!(matches!(said, ClientMessage::Release { .. }), "{said:?}");
        }
        let mut next = broker.greeted().await;
        peer = aside(async move {
            for _ in 0..2 {
                let hello = next.hello().await;
                next.grant(&hello, pid).await;
            }
            next
        })
        .await;
        assert_eq!(answer(pending).await.expect("granted").pid(), Some(pid));
        wait_for(&mut events, |event| *event == SessionEvent::Reconnected).await;
        assert_eq!((held.pid(), held.is_held()), (Some(pid), true));
    }
}

#[tokio::test]
async fn a_silent_broker_is_a_dead_one_and_a_slow_one_is_not() {
    let broker = Broker::new();
    let client = connect(builder(&broker).heartbeat_timeout(Duration::from_secs(2))).await;
    let mut events = client.events();
    let (held, mut silent) = hold(&client, broker.greeted().await, 7).await;
    // It asks before it judges.
    let silent = aside(async move {
        assert_eq!(silent.hear_any().await, Some(ClientMessage::Ping { nonce: 0 }));
        silent
    });
    let silent = silent.await;
    let seen = wait_for(&mut events, |event| matches!(event, SessionEvent::Disconnected { .. })).await;
    assert_eq!(seen, [SessionEvent::Disconnected { reason: "the broker was silent for 2s".to_owned() }]);

    let slow = aside(async move {
        let mut peer = broker.greeted().await;
        let hello = peer.hello().await;
        peer.grant(&hello, 7).await;
        // Twice as long as the timeout, told by the client's own questions: half of it lies between two.
        for _ in 0..4 {
            let Some(ClientMessage::Ping { nonce }) = peer.hear_any().await else { panic!("no ping") };
            peer.say(ServerMessage::Pong { nonce }).await;
        }
        (broker, peer)
    });
    wait_for(&mut events, |event| *event == SessionEvent::Reconnected).await;
    let slow = slow.await;
    assert!(client.is_connected() && held.is_held());
    drop((slow, silent));
    let next = wait_for(&mut events, |_| true).await;
    assert!(matches!(&next[..], [SessionEvent::Disconnected { .. }]), "the slow one was kept until here: {next:?}");
}

#[tokio::test]
async fn a_session_that_asks_nothing_greets_all_the_same() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let greeted = aside(async move {
        let mut peer = broker.greeted().await;
        assert!(matches!(peer.hear_any().await, Some(ClientMessage::Ping { .. })));
        (broker, peer)
    });
    drop(greeted.await);
    drop(client);
}

#[tokio::test]
async fn a_session_refused_for_now_comes_back_and_asks_again() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let (held, peer) = hold(&client, broker.greeted().await, 7).await;
    drop(peer);
    let serving = aside(async move {
        refuse_at_the_door(&broker).await;
        let mut peer = broker.greeted().await;
        for _ in 0..2 {
            let hello = peer.hello().await;
            peer.grant(&hello, 7).await;
        }
        (broker, peer)
    });
    answer(client.resolve(redis())).await.expect("granted");
    drop(serving.await);
    assert!(held.is_held());
}

#[tokio::test]
async fn the_first_connection_is_refused_at_once_unless_it_is_worth_a_wait() {
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    refuse_at_the_door(&broker).await;
    let error = answer(client.resolve(redis())).await.expect_err("refused");
    assert!(matches!(&error, Error::Refused(refusal) if refusal.code == Code::RateLimited), "{error:?}");
    assert!(broker.is_idle());

    let client = connect(builder(&broker).wait_for_broker()).await;
    let pending = client.resolve(redis());
    let serving = aside(async move {
        refuse_at_the_door(&broker).await;
        let mut peer = broker.greeted().await;
        let hello = peer.hello().await;
        peer.grant(&hello, 7).await;
        (broker, peer)
    });
    answer(pending).await.expect("granted");
    drop(serving.await);
}

async fn refuse_at_the_door(broker: &Broker) {
    let mut peer = broker.accept().await;
    peer.greet_unasked().await;
    peer.refuse(0, Refusal::new(Code::RateLimited, "too many sessions").retry_after_ms(1)).await;
}

#[tokio::test]
async fn a_broker_that_does_not_run_yet_can_be_waited_for() {
    let broker = Broker::new();
    let (builder, socket) = (broker.builder(), broker.path("broker.sock"));
    let folder = broker.leave();
    let error = soon(builder.clone().reconnect(quickly(9)).connect()).await.expect_err("nobody listens");
    assert!(matches!(error, Error::NoBroker { .. }), "{error:?}");
    let error = soon(builder.clone().reconnect(quickly(4)).wait_for_broker().connect()).await;
    assert!(matches!(error, Err(Error::Exhausted { attempts: 4, .. })), "{error:?}");

    let waiting = tokio::spawn(builder.reconnect(quickly(100_000)).wait_for_broker().connect());
    let listener = tokio::net::UnixListener::bind(&socket).expect("the path is free");
    soon(waiting).await.expect("no panic").expect("it listens now");
    drop((listener, folder));
}

#[tokio::test]
async fn ten_thousand_hellos_in_flight_are_each_answered_once_to_the_right_caller() {
    const COUNT: u32 = 10_000;
    let broker = Broker::new();
    let client = connect(builder(&broker)).await;
    let serving = aside(async move {
        let mut peer = broker.greeted().await;
        let mut hellos = Vec::new();
        for _ in 0..COUNT {
            hellos.push(peer.hello().await);
        }
        fastrand::Rng::with_seed(7).shuffle(&mut hellos);
        for hello in &hellos {
            let pid = hello.instance.strip_prefix('i').and_then(|number| number.parse().ok()).expect("a number");
            peer.grant(hello, pid).await;
        }
        (broker, peer)
    });
    let callers: Vec<_> = (0..COUNT)
        .map(|number| {
            let pending = client.resolve(redis().instance(format!("i{number}")));
            tokio::spawn(async move { (number, pending.await.map(|held| held.pid())) })
        })
        .collect();
    for caller in callers {
        let (number, pid) = soon(caller).await.expect("no panic");
        assert_eq!(pid.expect("granted"), Some(number));
    }
    drop(serving.await);
}
