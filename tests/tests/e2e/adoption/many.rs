//! A thousand live backends are adopted. First in the list: they take a while, and wait most of it.

use std::time::Instant;

use broker_proto::{ClientMessage, ServerMessage};
use broker_tests::{Broker, Service, Setup, trials};
use nix::sys::signal::Signal;
use serde_json::Value;

trials![a_thousand_backends_are_adopted_as_they_are];

const BACKENDS: usize = 1000;
/// How many are started at a time: the machine has others to serve.
const AT_A_TIME: usize = 50;

/// Each of them by its instance, with what must not change.
fn backends(broker: &Broker) -> Vec<(String, u64, u64, String)> {
    let status = broker.status();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let all = status["backends"].as_array().expect("a list").iter();
    let of = |b: &Value| (text(&b["instance"]), number(&b["pid"]), number(&b["generation"]), text(&b["endpoint"]));
    all.inspect(|b| assert_eq!(b["state"], "ready", "{b}")).map(of).collect()
}

fn start_all(broker: &Broker) {
    let mut session = broker.session();
    for batch in (0..BACKENDS).collect::<Vec<_>>().chunks(AT_A_TIME) {
        for number in batch {
            let mut hello = session.hello_for("x");
            hello.instance = format!("i{number}");
            session.send(&ClientMessage::Hello(hello));
        }
        let mut answered = 0;
        while answered < batch.len() {
            match session.receive().expect("the broker answers") {
                ServerMessage::Negotiated(_) => answered += 1,
                ServerMessage::Refused { refusal, .. } => panic!("{refusal:?}"),
                _ => {}
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "the figure is what somebody wants to see")]
fn a_thousand_backends_are_adopted_as_they_are() {
    let service = Service::named("x").version("1.0.0", &["--listen", "{endpoint}", "--small"]);
    let setup = Setup::new().config(&format!("[limits]\nbackends = {}\n", BACKENDS + 10));
    let mut broker = setup.service(&service).start();
    let began = Instant::now();
    start_all(&broker);
    let started = began.elapsed();
    let before = backends(&broker);
    assert_eq!(before.len(), BACKENDS);
    broker.kill();

    let took = broker.start_again_at_once();
    let after = backends(&broker);
    assert_eq!(after, before, "the same processes, generations and endpoints");
    let status = broker.status();
    assert!(status["backends"].as_array().expect("a list").iter().all(|b| b["adopted"] == true));
    assert_eq!(broker.starts("x").len(), BACKENDS, "each was started once");
    for (instance, pid, ..) in after.iter().step_by(100) {
        let backend = broker.ctl_json(&["resolve", &format!("x/{instance}")]).done().json();
        assert_eq!((broker.dial(&backend).pid(), &backend["generation"]), (*pid, &1.into()));
    }
    let began = Instant::now();
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success());
    let ended = began.elapsed();
    eprintln!(
        "{BACKENDS} backends: started in {started:?}, adopted in {took:?} from exec to the first answered ping, ended in {ended:?}"
    );
}
