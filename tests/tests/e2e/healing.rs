//! Sessions of the library that heal themselves: their broker is stopped or killed, or they were asleep.

mod restarts;

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use broker_client::{BackendStream, Builder, Client, Events, ReconnectConfig, Request, SessionEvent};
use broker_tests::{BOUND, Broker, Service, Setup, trials, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::examples::session_example;
use crate::library::block_on;
use crate::recovery::kill_backend;

pub(crate) use restarts::TRIALS as RESTARTS;

trials![
    a_client_that_was_asleep_keeps_its_session,
    a_client_that_was_asleep_with_its_broker_keeps_its_session,
    a_stopped_broker_is_dead_to_the_impatient_and_slow_to_the_patient,
    ten_thousand_hellos_are_each_answered_once,
    what_is_held_is_connected_to_after_a_restart,
    a_delivered_socket_is_had_again_after_a_restart,
    a_delivered_socket_that_died_before_its_use_is_replaced,
    what_is_held_again_is_not_idle_until_it_is_dropped,
];

/// Settings of a client that comes back soon and does not give up.
pub(crate) fn eager(broker: &Broker) -> Builder {
    let config = ReconnectConfig::new(Duration::from_millis(5), Duration::from_millis(50), u32::MAX);
    Client::builder().socket(broker.socket()).reconnect(config.expect("sound settings")).deadline(BOUND)
}

/// The same for one that may be unlucky for long: brokers come and go faster than it is answered. The trial has bounds of
/// its own.
pub(crate) fn undaunted(broker: &Broker) -> Builder {
    eager(broker).deadline(Duration::from_secs(24 * 60 * 60))
}

/// The process at the other end.
pub(crate) async fn who(stream: &mut BackendStream) -> io::Result<u64> {
    stream.write_all(b"who\n").await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    let pid = line.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Waits for an event; those before it are passed over.
async fn wait_event(events: &mut Events, wanted: impl Fn(&SessionEvent) -> bool) {
    while !wanted(&events.next().await.expect("the session goes on")) {}
}

/// Kills the broker and starts it again.
#[track_caller]
fn kill_and_start_again(broker: &mut Broker) {
    broker.signal(Signal::SIGKILL);
    let _ = broker.ended();
    broker.start_again();
}

fn on_a_path_and_a_port() -> Broker {
    let port = Service::fake("port", &[]).toml("[endpoint]\nkind = \"tcp\"");
    Broker::start(&[&Service::fake("path", &[]), &port])
}

/// The main process of a service, as the broker knows it.
fn pid(broker: &Broker, service: &str) -> u64 {
    broker.backend(service)["pid"].as_u64().expect("it runs")
}

fn a_stopped_broker_is_dead_to_the_impatient_and_slow_to_the_patient() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    block_on(async {
        let impatient = eager(&broker).heartbeat_timeout(Duration::from_secs(1)).connect().await.expect("it accepts");
        let patient = eager(&broker).heartbeat_timeout(2 * BOUND).connect().await.expect("it accepts");
        let held = impatient.resolve(Request::new("x")).await.expect("ready");
        let held_patiently = patient.resolve(Request::new("x")).await.expect("ready");
        let (mut told, mut untold) = (impatient.events(), patient.events());

        broker.signal(Signal::SIGSTOP);
        // At the connection that there was, then at one that nobody accepts.
        for _ in 0..2 {
            let reason = "the broker was silent for 1s".to_owned();
            assert_eq!(told.next().await, Some(SessionEvent::Disconnected { reason }));
        }
        assert!(held.is_held(), "it is to be held again");
        let asked = patient.resolve(Request::new("x"));
        broker.signal(Signal::SIGCONT);
        let late = asked.await.expect("a slow answer is one");

        wait_event(&mut told, |event| *event == SessionEvent::Reconnected).await;
        broker.wait_backend("x", "held three times", |b| b["holds"] == 3);
        let pids = [&held, &held_patiently, &late].map(|held| held.pid().map(u64::from));
        assert_eq!(pids, [Some(pid(&broker, "x")); 3]);
        let mut stream = held.connect().await.expect("it serves");
        assert_eq!(who(&mut stream).await.expect("served"), pid(&broker, "x"));

        patient.shutdown().await;
        assert_eq!(untold.next().await, Some(SessionEvent::Closed), "nothing happened to the patient one");
    });
    assert_eq!(broker.starts("x").len(), 1);
}

/// Stops the processes for longer than the 8 seconds for which a broker may be silent; another broker counts them.
fn put_to_sleep(pids: &[u32]) {
    let clock = Broker::start(&[]);
    let mut session = clock.session();
    session.ping();
    let signal = |signal| {
        for pid in pids {
            kill(Pid::from_raw(pid.cast_signed()), signal).expect("it runs");
        }
    };
    signal(Signal::SIGSTOP);
    // Ten seconds lie between the first of five and the last.
    session.wait_heartbeats(5);
    signal(Signal::SIGCONT);
}

fn keeps_its_session(sleepers: impl FnOnce(&Broker, u32) -> Vec<u32>) {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut client = session_example(&broker, "x");
    let endpoint = broker.backend("x")["endpoint"].as_str().expect("a text").to_owned();
    let known = || {
        let status = broker.status();
        (status["broker"]["sessions"].clone(), status["backends"][0]["holds"].clone())
    };
    // A session that has just asked may still be counted by the next.
    let as_expected = || wait_until("the client's session and the one that asks", || known() == (json!(2), json!(1)));
    as_expected();
    put_to_sleep(&sleepers(&broker, client.pid()));
    as_expected();

    // Whatever had happened to the session before would be told before this.
    kill_backend(&broker.backend("x"));
    client.wait_stdout("that it is ready again", |stdout| stdout.contains("\nReady: "));
    let said = {
        drop(client.stdin());
        client.finish().done().stdout
    };
    let expected = [
        format!("Held: x 1.0.0, generation 1 at {endpoint}"),
        "Exited: generation 1 after".to_owned(),
        "Restarting: in".to_owned(),
        format!("Ready: generation 2 at {endpoint}"),
    ];
    let lines: Vec<&str> = said.lines().collect();
    let is_expected = lines.len() == expected.len() && lines.iter().zip(&expected).all(|(line, e)| line.starts_with(e));
    assert!(is_expected, "{said}");
}

fn a_client_that_was_asleep_keeps_its_session() {
    keeps_its_session(|_, client| vec![client]);
}

/// As when the lid of a laptop is closed.
fn a_client_that_was_asleep_with_its_broker_keeps_its_session() {
    keeps_its_session(|broker, client| vec![client, broker.pid()]);
}

fn ten_thousand_hellos_are_each_answered_once() {
    const HELLOS: usize = 10_000;
    const INSTANCES: usize = 8;
    let setup = Setup::new();
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("slow", &["--ready-when", &gate])).start();
    let sum = |status: &Value, field: &str| -> u64 {
        let backends = status["backends"].as_array().expect("a list");
        backends.iter().map(|backend| backend[field].as_u64().expect("a number")).sum()
    };
    let wait_sum = |field: &str, count: usize| {
        wait_until(format_args!("{count} {field}"), || sum(&broker.status(), field) == count as u64);
    };
    block_on(async {
        let client = eager(&broker).connect().await.expect("it accepts");
        let callers: Vec<_> = (0..HELLOS)
            .map(|number| {
                let instance = format!("i{}", number % INSTANCES);
                let pending = client.resolve(Request::new("slow").instance(&instance));
                tokio::spawn(async move { (instance, pending.await) })
            })
            .collect();
        wait_sum("waiters", HELLOS);
        wait_until("one session, and the one that asks", || broker.status()["broker"]["sessions"] == 2);
        broker.open_gate("gate");

        let (mut held, mut ids) = (Vec::new(), HashSet::new());
        for caller in callers {
            let (instance, answer) = caller.await.expect("no panic");
            let one = answer.expect("ready");
            let negotiated = one.negotiated();
            assert_eq!((&negotiated.instance, negotiated.request_id), (&instance, one.request_id()));
            assert!(ids.insert(one.request_id()), "request {} was answered twice", one.request_id());
            held.push(one);
        }
        wait_sum("holds", HELLOS);
        drop(held);
        wait_sum("holds", 0);
    });
    assert_eq!(broker.starts("slow").len(), INSTANCES);
}

fn what_is_held_is_connected_to_after_a_restart() {
    let mut broker = on_a_path_and_a_port();
    block_on(async {
        let client = eager(&broker).connect().await.expect("it accepts");
        let mut events = client.events();
        let mut all = Vec::new();
        for service in ["path", "port"] {
            let held = client.resolve(Request::new(service)).await.expect("ready");
            let mut stream = held.connect().await.expect("it serves");
            assert_eq!(who(&mut stream).await.expect("served"), pid(&broker, service));
            all.push((service, held, stream));
        }
        let before = ["path", "port"].map(|service| pid(&broker, service));
        // One backend goes on without its broker, and the other one ends while there is none.
        broker.signal(Signal::SIGKILL);
        let _ = broker.ended();
        let port = i32::try_from(before[1]).expect("a process number");
        kill(nix::unistd::Pid::from_raw(port), Signal::SIGKILL).expect("it runs");
        broker.start_again();
        wait_event(&mut events, |event| *event == SessionEvent::Reconnected).await;
        for (service, held, mut old) in all {
            let now = pid(&broker, service);
            assert_eq!(held.pid().map(u64::from), Some(now), "{service}");
            assert_eq!(before.contains(&now), service == "path", "{service}");
            match service {
                "path" => assert_eq!(who(&mut old).await.expect("served"), now, "the connection has lasted"),
                _ => assert!(matches!(old.read(&mut [0]).await, Ok(0) | Err(_)), "its daemon is gone"),
            }
            let mut stream = held.connect().await.expect("it serves");
            assert_eq!(who(&mut stream).await.expect("served"), now, "{service}");
            assert_eq!(broker.backend(service)["holds"], 1, "{service}: stream and hold are one");
        }
    });
}

fn a_delivered_socket_is_had_again_after_a_restart() {
    let mut broker = on_a_path_and_a_port();
    block_on(async {
        let client = eager(&broker).connect().await.expect("it accepts");
        let mut events = client.events();
        let mut all = Vec::new();
        for service in ["path", "port"] {
            let held = client.resolve(Request::new(service).connected()).await.expect("ready");
            let mut stream = held.connect().await.expect("it came with the answer");
            assert_eq!(who(&mut stream).await.expect("served"), pid(&broker, service));
            all.push((service, held));
        }
        kill_and_start_again(&mut broker);
        wait_event(&mut events, |event| *event == SessionEvent::Reconnected).await;
        for (service, held) in all {
            for _ in 0..2 {
                let mut stream = held.connect().await.expect("another is delivered");
                assert_eq!(who(&mut stream).await.expect("served"), pid(&broker, service), "{service}");
                assert!(stream.held().negotiated().connected, "{service}");
            }
            let first = client.resolve(Request::new(service).connected()).await.expect("ready");
            let mut stream = first.connect().await.expect("it came with the answer");
            assert_eq!(who(&mut stream).await.expect("served"), pid(&broker, service), "{service}");
        }
    });
}

fn a_delivered_socket_that_died_before_its_use_is_replaced() {
    let mut broker = on_a_path_and_a_port();
    block_on(async {
        let client = eager(&broker).connect().await.expect("it accepts");
        let mut events = client.events();
        for service in ["path", "port"] {
            let held = client.resolve(Request::new(service).connected()).await.expect("ready");
            kill_and_start_again(&mut broker);
            wait_event(&mut events, |event| *event == SessionEvent::Reconnected).await;
            let mut stream = held.connect().await.expect("another is delivered");
            assert_eq!(who(&mut stream).await.expect("served"), pid(&broker, service), "{service}");
        }
    });
}

fn what_is_held_again_is_not_idle_until_it_is_dropped() {
    const IDLE: &str = "[lifecycle]\nidle_timeout = \"200ms\"";
    let mut broker = Broker::start(&[&Service::fake("held", &[]).toml(IDLE), &Service::fake("free", &[]).toml(IDLE)]);
    block_on(async {
        let client = eager(&broker).connect().await.expect("it accepts");
        let mut events = client.events();
        let held = client.resolve(Request::new("held")).await.expect("ready");
        kill_and_start_again(&mut broker);
        wait_event(&mut events, |event| *event == SessionEvent::Reconnected).await;
        for generation in 1..=3 {
            let free = client.resolve(Request::new("free")).await.expect("ready");
            assert_eq!(free.generation(), generation);
            drop(free);
            broker.wait_state("free", "inactive");
        }
        let backend = broker.backend("held");
        assert_eq!((&backend["state"], &backend["generation"]), (&json!("ready"), &json!(1)));
        drop(held);
        broker.wait_state("held", "inactive");
    });
}
