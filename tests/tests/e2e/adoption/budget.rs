//! A crash loop cannot be reset by restarting the broker.

use std::fs;

use broker_proto::Code;
use broker_tests::{Broker, Service, Setup, monotonic_ms, process_exists, trials, wait_until};
use serde_json::Value;

use super::{LONG_WINDOW, journal, kill, pid_of};

trials![
    a_refusal_outlives_the_broker_with_its_evidence_and_the_rest_of_its_window,
    one_crash_is_remembered_and_the_next_one_refuses,
    a_crash_loop_is_not_reset_by_restarting_the_broker,
    after_the_window_another_broker_starts_it_again,
    a_changed_service_file_clears_the_budget_while_no_broker_runs,
    verified_health_is_remembered_too,
];

/// The ways from one broker to the next.
const WAYS: [fn(&mut Broker); 2] = [Broker::hand_over, Broker::kill_and_start_again];

fn bad(setup: &Setup) -> Service {
    let broken = setup.path("broken");
    Service::fake("bad", &["--exit", "7", "--when", &broken, "--stderr", "the disk is on fire"])
}

/// A broker whose service has failed.
fn failed(toml: &str) -> (Broker, Value) {
    let setup = Setup::new();
    let service = bad(&setup).toml(toml);
    let broker = setup.service(&service).start();
    broker.open_gate("broken");
    let refused = broker.ctl_json(&["resolve", "bad"]).refused(75, "backend_unavailable");
    journal::wait_phase(&broker, "bad", "inactive");
    (broker, refused)
}

fn a_refusal_outlives_the_broker_with_its_evidence_and_the_rest_of_its_window() {
    let (mut broker, first) = failed(LONG_WINDOW);
    let mut rest = first["retry_after_ms"].as_u64().expect("for now");
    for way in WAYS.into_iter().chain(WAYS) {
        way(&mut broker);
        let backend = broker.backend("bad");
        assert_eq!((&backend["state"], &backend["crashes_in_window"]), (&"failed".into(), &2.into()), "{backend}");
        let refused = broker.ctl_json(&["resolve", "bad"]).refused(75, "backend_unavailable");
        let left = refused["retry_after_ms"].as_u64().expect("for now");
        assert!(left < rest, "the window goes on: {left} of {rest} ms");
        rest = left;
        let evidence = &refused["evidence"];
        for field in ["exit_code", "attempt", "lived_ms", "stderr", "log_path"] {
            assert_eq!(evidence[field], first["evidence"][field], "{field}: {evidence}");
        }
        assert_eq!(evidence["exit_code"], 7);
        assert!(evidence["stderr"].as_str().is_some_and(|text| text.contains("on fire")), "{evidence}");
    }
    assert_eq!(broker.starts("bad").len(), 2);
}

fn one_crash_is_remembered_and_the_next_one_refuses() {
    for way in WAYS {
        let unproved = "healthy_after = \"1h\"";
        let mut broker = Broker::start(&[&Service::fake("x", &[]).toml(LONG_WINDOW).toml(unproved)]);
        kill(pid_of(&broker.resolve("x")));
        let crashed = |b: &Value| b["state"] == "inactive" && b["crashes_in_window"] == 1;
        broker.wait_backend("x", "crashed", crashed);
        journal::wait_phase(&broker, "x", "inactive");
        way(&mut broker);
        assert!(crashed(&broker.backend("x")), "{}", broker.backend("x"));
        let backend = broker.resolve("x");
        assert_eq!((&backend["generation"], &broker.backend("x")["attempt"]), (&2.into(), &1.into()));
        way(&mut broker);
        kill(pid_of(&backend));
        broker.wait_state("x", "failed");
        let refused = broker.ctl_json(&["resolve", "x"]).refused(75, "backend_unavailable");
        // Nobody's child any more, so nobody was told how it ended.
        assert_eq!((&refused["evidence"]["signal"], &refused["evidence"]["exit_code"]), (&Value::Null, &Value::Null));
        assert_eq!(refused["evidence"]["attempt"], 1);
        assert_eq!(broker.starts("x").len(), 2);
    }
}

fn a_crash_loop_is_not_reset_by_restarting_the_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &[]).toml(LONG_WINDOW)]);
    for number in 0..8_usize {
        let answer = broker.session().resolve("x");
        if let Ok(negotiated) = &answer {
            let pid = u64::from(negotiated.pid.expect("a process"));
            // Half of them die while no broker runs.
            if number % 2 == 0 {
                kill(pid);
                broker.wait_backend("x", "down", |b| b["pid"].is_null());
                journal::wait_phase(&broker, "x", "inactive");
            } else {
                broker.kill();
                kill(pid);
                wait_until("it is gone", || !process_exists(pid));
                broker.start_again();
                broker.wait_backend("x", "down", |b| b["pid"].is_null());
                journal::wait_phase(&broker, "x", "inactive");
            }
        }
        assert_eq!(answer.map_err(|refusal| refusal.code).err(), (number > 1).then_some(Code::BackendUnavailable));
        WAYS[number % 2](&mut broker);
    }
    assert_eq!(broker.starts("x").len(), 2);
}

fn after_the_window_another_broker_starts_it_again() {
    let (mut broker, _) = failed("[recovery]\nbudget_window = \"3s\"\nretry_backoff = \"10ms\"");
    broker.kill();
    fs::remove_file(broker.path("broken")).expect("the gate can be removed");
    let starts = broker.starts("bad");
    broker.start_again();
    wait_until("the window is over and a client is served", || broker.ctl(&["resolve", "bad"]).code == 0);
    // From the first crash, which came after the first start.
    assert!(monotonic_ms() - starts[0].1 >= 3000, "refused for the whole window: {starts:?}");
    assert_eq!(broker.starts("bad").len(), 3);
    assert_eq!(broker.backend("bad")["crashes_in_window"], 0);
}

fn a_changed_service_file_clears_the_budget_while_no_broker_runs() {
    for toml in ["[readiness]\nhard_ceiling = \"59s\"", ""] {
        let (mut broker, _) = failed(LONG_WINDOW);
        broker.kill();
        fs::remove_file(broker.path("broken")).expect("the gate can be removed");
        let broken = broker.path("broken").display().to_string();
        let same = Service::fake("bad", &["--exit", "7", "--when", &broken, "--stderr", "the disk is on fire"]);
        broker.write_service(&same.toml(LONG_WINDOW).toml(toml));
        broker.start_again();
        if toml.is_empty() {
            // Written again, and the same.
            let _ = broker.ctl_json(&["resolve", "bad"]).refused(75, "backend_unavailable");
        } else {
            assert_eq!(broker.resolve("bad")["state"], "ready");
        }
    }
}

fn verified_health_is_remembered_too() {
    let service = Service::fake("x", &[]).toml("[recovery]\nhealthy_after = \"300ms\"\nretry_backoff = \"1ms\"");
    let mut broker = Broker::start(&[&service]);
    for generation in 1..5 {
        let backend = broker.resolve("x");
        assert_eq!(backend["generation"], generation, "{backend}");
        let is_proved = |b: &Value| b["state"] == "ready" && b["crashes_in_window"] == 0;
        broker.hand_over();
        broker.wait_backend("x", "verified healthy", is_proved);
        kill(pid_of(&backend));
        broker.wait_backend("x", "down", |b| b["pid"].is_null());
    }
}
