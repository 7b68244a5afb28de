//! What is adopted is a backend like any other: the same to its clients, and to its operators.

use std::time::Duration;

use broker_client::Request;
use broker_proto::{Event, Exit};
use broker_tests::{Broker, Service, fake_backend, process_exists, trials, wait_until};
use serde_json::{Value, json};

use super::agreement::assert_agreement;
use super::{KINDS, every_kind, kill, kind, pid_of, served, settled};
use crate::healing::{eager, who};
use crate::library::block_on;
use crate::recovery::wait_event;

trials![
    every_kind_is_adopted_as_it_is,
    an_order_makes_way_as_sigterm_does,
    an_adopted_backend_is_stopped_and_restarted,
    an_adopted_backend_is_drained_and_a_drain_outlives_the_broker,
    an_adopted_backend_is_stopped_when_it_is_idle,
    the_log_goes_on,
    what_a_daemon_writes_elsewhere_and_a_log_that_was_removed_cost_it_nothing,
    an_adopted_backend_that_crashes_is_retried_and_nobody_knows_how_it_ended,
    what_died_while_no_broker_ran_is_started_again_for_its_holder,
    a_client_that_holds_keeps_its_backend,
    an_adopted_backend_keeps_its_definition_and_is_outdated,
    what_no_service_file_defines_any_more_is_still_adopted,
];

const WAYS: [fn(&mut Broker); 2] = [Broker::hand_over, Broker::kill_and_start_again];

/// A broker that has adopted the backend of its only service, and the backend's process.
fn adopted(service: &Service, name: &str) -> (Broker, u64) {
    let mut broker = Broker::start(&[service]);
    let pid = settled(&broker, name);
    broker.kill_and_start_again();
    let backend = broker.backend(name);
    assert_eq!((pid_of(&backend), &backend["adopted"]), (pid, &true.into()), "{backend}");
    (broker, pid)
}

fn all_serve(broker: &Broker) {
    for service in KINDS {
        let _ = settled(broker, service);
    }
}

fn every_kind_is_adopted_as_it_is() {
    let mut broker = every_kind().start();
    all_serve(&broker);
    let seen = |broker: &Broker| {
        KINDS.map(|service| {
            ["pid", "generation", "endpoint", "log_path", "state"].map(|f| broker.backend(service)[f].clone())
        })
    };
    let before = seen(&broker);
    assert!(KINDS.iter().all(|service| broker.backend(service)["adopted"] == false));
    for way in WAYS.into_iter().chain(WAYS) {
        way(&mut broker);
        assert_eq!(seen(&broker), before);
        assert!(KINDS.iter().all(|service| broker.backend(service)["adopted"] == true));
        assert_agreement(&broker, &KINDS);
        for service in KINDS {
            let (pid, backend) = served(&broker, service);
            assert!(service == "workers" || pid == pid_of(&backend));
        }
    }
    let report = broker.ctl_json(&["restart", "--all"]).done().json();
    assert_eq!(report["restarted"].as_array().map(Vec::len), Some(KINDS.len()), "{report}");
    all_serve(&broker);
    assert_agreement(&broker, &KINDS);
    assert!(KINDS.iter().all(|service| broker.starts(service).len() == 2));
}

fn an_order_makes_way_as_sigterm_does() {
    let mut broker = Broker::start(&[&kind("path")]);
    let (pid, _) = served(&broker, "path");
    let report = broker.session().admin(broker_proto::AdminRequest::HandOver).expect("an own order");
    assert_eq!(report, json!({ "keeping": 1 }));
    assert!(broker.ended().success());
    assert!(process_exists(pid));
    broker.start_again();
    assert_eq!(pid_of(&broker.backend("path")), pid);
}

fn an_adopted_backend_is_stopped_and_restarted() {
    for service in KINDS {
        let (broker, pid) = adopted(&kind(service), service);
        let report = broker.ctl_json(&["restart", service]).done().json();
        assert_eq!(report["restarted"][0]["generation"], 2, "{report}");
        assert!(!process_exists(pid));
        assert_eq!(broker.backend(service)["adopted"], false);
        let _ = settled(&broker, service);
        let (broker, pid) = adopted(&kind(service), service);
        let _ = broker.ctl(&["stop", service]).done();
        assert!(!process_exists(pid));
        broker.assert_gone(service);
        let backend = broker.backend(service);
        assert!(backend.is_null() || backend["crashes_in_window"] == 0, "a stop is no crash: {backend}");
        let _ = settled(&broker, service);
        assert_agreement(&broker, &[service]);
    }
}

fn an_adopted_backend_is_drained_and_a_drain_outlives_the_broker() {
    for way in WAYS {
        let (mut broker, pid) = adopted(&kind("path"), "path");
        let mut session = broker.session();
        let _ = session.hold("path");
        let _ = broker.ctl(&["drain", "path"]).done();
        let _ = broker.ctl_json(&["resolve", "path"]).refused(75, "shutting_down");
        assert!(process_exists(pid), "it is held");
        super::journal::wait_text(&broker, "path", "\"draining\":true");
        way(&mut broker);
        // Nobody holds it there.
        wait_until("it is stopped", || !process_exists(pid));
        broker.wait_state("path", "inactive");
        let _ = broker.ctl_json(&["resolve", "path"]).refused(75, "shutting_down");
        let started = broker.ctl_json(&["start", "path"]).done().json();
        assert_eq!((&started["state"], &started["generation"]), (&"ready".into(), &2.into()), "{started}");
    }
}

fn an_adopted_backend_is_stopped_when_it_is_idle() {
    let mut broker = Broker::start(&[&kind("path").toml("[lifecycle]\nidle_timeout = \"300ms\"")]);
    for is_connected in [false, true] {
        // Held until its broker dies.
        let mut session = broker.session();
        let held = session.hold("path");
        let mut connection = is_connected.then(|| broker.dial(&broker.backend("path")));
        let pid = u64::from(held.pid.expect("a process"));
        super::journal::wait_phase(&broker, "path", "ready");
        broker.kill_and_start_again();
        if let Some(mut connection) = connection.take() {
            // Who is connected keeps it.
            wait_until("its idle time is over", || broker.status()["broker"]["uptime_ms"].as_u64() > Some(11_000));
            assert_eq!((connection.pid(), pid_of(&broker.backend("path"))), (pid, pid));
        }
        let backend = broker.wait_state("path", "inactive");
        assert!(!process_exists(pid));
        assert!(backend.is_null() || backend["crashes_in_window"] == 0, "{backend}");
        assert!(broker.log().contains("adopted"));
    }
}

fn what_a_daemon_writes_elsewhere_and_a_log_that_was_removed_cost_it_nothing() {
    let script = format!("exec {} --listen \"$0\" >\"$1/out\" 2>&1", fake_backend().display());
    let own = Service::named("own").command("1.0.0", &["/bin/sh", "-c", &script, "{endpoint}", "{state_dir}"]);
    let mut broker = Broker::start(&[&own, &kind("path")]);
    let before = ["own", "path"].map(|service| pid_of(&broker.resolve(service)));
    let log = broker.backend("path")["log_path"].as_str().expect("it has one").to_owned();
    std::fs::remove_file(log).expect("it is there");
    for way in WAYS {
        way(&mut broker);
        let now = ["own", "path"].map(|service| pid_of(&broker.wait_state(service, "ready")));
        assert_eq!(now, before);
        let _ = broker.dial(&broker.backend("own")).ask("hello").expect("served");
    }
}

fn the_log_goes_on() {
    let mut broker = Broker::start(&[&Service::fake("x", &["--stderr", "first words"])]);
    let backend = broker.resolve("x");
    let _ = broker.dial(&backend).ask("!say second words").expect("served");
    for (way, words) in WAYS.into_iter().zip(3..) {
        way(&mut broker);
        let _ = broker.dial(&backend).ask("!say more words").expect("served");
        let said = broker.ctl(&["logs", "x"]).done().stdout;
        assert_eq!(said.matches("words").count(), words, "{said}");
    }
}

fn an_adopted_backend_that_crashes_is_retried_and_nobody_knows_how_it_ended() {
    for service in KINDS {
        let (broker, pid) = adopted(&kind(service), service);
        let mut session = broker.session();
        assert_eq!(session.hold(service).generation, 1);
        kill(pid);
        let exit = wait_event(&mut session, "the exit", |event| match event {
            Event::Exited { generation: 1, exit, .. } => Some(*exit),
            _ => None,
        });
        assert_eq!(exit, Exit::Unknown);
        wait_event(&mut session, "the new generation", |event| {
            matches!(event, Event::Ready { generation: 2, .. }).then_some(())
        });
        let _ = settled(&broker, service);
        assert_eq!(broker.backend(service)["crashes_in_window"], 1);
        assert_agreement(&broker, &[service]);
    }
}

fn what_died_while_no_broker_ran_is_started_again_for_its_holder() {
    for service in KINDS {
        let mut broker = Broker::start(&[&kind(service)]);
        let pid = settled(&broker, service);
        block_on(async {
            let client = eager(&broker).connect().await.expect("it accepts");
            let held = client.resolve(Request::new(service)).await.expect("ready");
            broker.kill();
            kill(pid);
            wait_until("it is gone", || !process_exists(pid));
            broker.start_again();
            let ready = |b: &Value| b["state"] == "ready" && b["generation"] == 2 && b["holds"] == 1;
            let backend = broker.wait_backend(service, "started again for its holder", ready);
            assert_eq!(backend["crashes_in_window"], 1, "{backend}");
            assert!(held.is_held());
            let mut stream = held.connect().await.expect("it serves");
            assert_ne!(who(&mut stream).await.expect("served"), pid);
        });
        assert_eq!(broker.starts(service).len(), 2);
    }
}

fn a_client_that_holds_keeps_its_backend() {
    let mut broker = every_kind().start();
    all_serve(&broker);
    block_on(async {
        let client = eager(&broker).connect().await.expect("it accepts");
        let mut all = Vec::new();
        for service in KINDS {
            all.push(client.resolve(Request::new(service)).await.expect("ready"));
        }
        for way in WAYS.into_iter().chain(WAYS) {
            way(&mut broker);
            for (service, held) in KINDS.iter().zip(&all) {
                let backend = broker.wait_backend(service, "held again", |b| b["holds"] == 1);
                assert_eq!((&backend["generation"], held.generation()), (&1.into(), 1));
                assert!(held.is_held());
                let mut stream = held.connect().await.expect("it serves");
                let pid = who(&mut stream).await.expect("served");
                assert!(*service == "workers" || pid == pid_of(&backend));
            }
        }
        tokio::time::timeout(Duration::from_secs(60), client.shutdown()).await.expect("an end");
    });
    assert!(KINDS.iter().all(|service| broker.starts(service).len() == 1));
}

fn an_adopted_backend_keeps_its_definition_and_is_outdated() {
    let mut broker = Broker::start(&[&kind("path")]);
    let (pid, _) = served(&broker, "path");
    broker.kill();
    broker.write_service(&kind("path").toml("[readiness]\nhard_ceiling = \"59s\""));
    broker.start_again();
    let backend = broker.backend("path");
    assert_eq!((pid_of(&backend), &backend["outdated"]), (pid, &true.into()), "{backend}");
    let _ = broker.ctl(&["restart", "path"]).done();
    assert_eq!(broker.backend("path")["outdated"], false);
}

fn what_no_service_file_defines_any_more_is_still_adopted() {
    let mut broker = Broker::start(&[&kind("path")]);
    let (pid, _) = served(&broker, "path");
    broker.kill();
    std::fs::remove_file(broker.path("services.d/path.toml")).expect("it is there");
    broker.start_again();
    let backend = broker.backend("path");
    assert_eq!((pid_of(&backend), &backend["outdated"]), (pid, &true.into()), "{backend}");
    let _ = broker.ctl(&["stop", "path"]).done();
    assert!(!process_exists(pid));
}
