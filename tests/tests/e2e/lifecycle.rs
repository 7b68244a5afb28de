//! From Ready to gone: idleness, stopping, and the end of the main process.

use std::path::PathBuf;

use broker_proto::Event;
use broker_tests::{Broker, Service, Setup, process_exists, trials, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::recovery::{kill_backend, wait_event};

trials![
    an_idle_backend_is_stopped_after_its_last_release,
    a_held_or_connected_backend_is_never_idle,
    stop_ends_the_whole_group,
    a_daemon_that_ignores_its_stop_signal_is_killed,
    the_stop_signal_is_the_declared_one,
    a_hello_while_a_backend_stops_waits_and_starts_anew,
    workers_do_not_outlive_their_master,
    a_daemon_that_forks_away_is_found_and_stopped,
    a_forked_away_daemon_that_dies_is_restarted,
    a_passed_socket_serves_again_after_a_stop_and_a_crash,
    a_daemon_that_is_no_longer_passed_a_socket_binds_its_own,
];

fn endpoint_path(backend: &Value) -> PathBuf {
    let endpoint = backend["endpoint"].as_str().unwrap_or_else(|| panic!("no endpoint in {backend}"));
    PathBuf::from(endpoint.strip_prefix("unix:").expect("a unix endpoint"))
}

fn an_idle_backend_is_stopped_after_its_last_release() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml("[lifecycle]\nidle_timeout = \"200ms\"")]);
    let mut session = broker.session();
    let first = session.hello("x");
    session.answer(first).expect("ready");
    let backend = broker.backend("x");
    session.release(first);
    broker.wait_state("x", "inactive");
    assert!(!endpoint_path(&backend).exists(), "its endpoint is gone");
    broker.assert_gone("x");
    assert_eq!(broker.backend("x")["crashes_in_window"], 0);
    assert_eq!(session.hold("x").generation, 2);
}

fn a_held_or_connected_backend_is_never_idle() {
    const IDLE: &str = "[lifecycle]\nidle_timeout = \"300ms\"";
    let services = ["held", "connected", "free"].map(|name| Service::fake(name, &[]).toml(IDLE));
    let port = Service::fake("port", &[]).toml("[endpoint]\nkind = \"tcp\"").toml(IDLE);
    let broker = Broker::start(&[&services[0], &services[1], &services[2], &port]);
    let mut session = broker.session();
    let _ = session.hold("held");
    let mut connections = ["connected", "port"].map(|name| {
        // Held until somebody is connected: from one command to the next it may be idle for too long.
        let mut holder = broker.session();
        let _ = holder.hold(name);
        broker.dial(&broker.backend(name))
    });
    for connection in &mut connections {
        let _ = connection.ask("hello").expect("served");
    }
    for round in 1..=3 {
        assert_eq!(broker.resolve("free")["generation"], round);
        broker.wait_state("free", "inactive");
    }
    for name in ["held", "connected", "port"] {
        let backend = broker.backend(name);
        assert_eq!((&backend["state"], &backend["generation"]), (&"ready".into(), &1.into()), "{name}");
    }
    for connection in &mut connections {
        let _ = connection.ask("still there").expect("served");
    }
    drop((connections, session));
    for name in ["held", "connected", "port"] {
        broker.wait_state(name, "inactive");
    }
}

fn stop_ends_the_whole_group() {
    let broker = Broker::start(&[&Service::fake("x", &["--workers", "3"]), &Service::fake("other", &[])]);
    let backend = broker.resolve("x");
    let other = broker.resolve("other");
    wait_until("the workers run", || broker.processes("x").len() == 4);
    let stopped = broker.ctl_json(&["stop", "x"]).done().json();
    let expected = serde_json::json!({"stopped": [{"instance": "default", "service": "x", "version": "1.0.0"}]});
    assert_eq!(stopped, expected);
    broker.assert_gone("x"); // stop returns once nothing of it is left
    assert!(!endpoint_path(&backend).exists());
    assert_eq!(broker.backend("other")["pid"], other["pid"]);
    assert_eq!(broker.ctl_json(&["stop", "x"]).done().json(), serde_json::json!({"stopped": []}));
    assert_eq!(broker.resolve("x")["generation"], 2, "the next client starts it again");
}

fn a_daemon_that_ignores_its_stop_signal_is_killed() {
    let service = Service::fake("deaf", &["--ignore-term", "--workers", "2"]);
    let broker = Broker::start(&[&service.toml("[lifecycle]\nstop_timeout = \"400ms\"")]);
    let _ = broker.resolve("deaf");
    wait_until("the workers run", || broker.processes("deaf").len() == 3);
    let _ = broker.ctl(&["stop", "deaf"]).done();
    broker.assert_gone("deaf");
    let events = broker.ctl_json(&["events"]).done().stdout;
    assert!(events.contains("killed"), "SIGTERM alone does nothing to it: {events}");
    assert_eq!(broker.backend("deaf")["crashes_in_window"], 0, "a stop is no crash");
}

fn the_stop_signal_is_the_declared_one() {
    let service = Service::fake("x", &["--ignore-term"]);
    let broker = Broker::start(&[&service.toml("[lifecycle]\nstop_signal = \"SIGINT\"\nstop_timeout = \"1h\"")]);
    let _ = broker.resolve("x");
    let _ = broker.ctl(&["stop", "x"]).done();
    broker.assert_gone("x");
}

fn a_hello_while_a_backend_stops_waits_and_starts_anew() {
    let service = Service::fake("deaf", &["--ignore-term"]);
    let broker = Broker::start(&[&service.toml("[lifecycle]\nstop_timeout = \"1h\"")]);
    let mut session = broker.session();
    let first = session.hold("deaf");
    let stop = broker.ctl_in_background(&["stop", "deaf"]);
    let stopping = broker.wait_state("deaf", "stopping");
    wait_event(&mut session, "the end of the hold", |event| matches!(event, Event::Stopped).then_some(()));
    let waits = session.hello("deaf");
    // Heard, and not answered.
    session.ping();
    kill_backend(&stopping);
    let second = session.answer(waits).expect("it is started anew");
    assert_eq!(second.generation, 2);
    assert_ne!(second.pid, first.pid);
    let _ = stop.finish().done();
    assert!(!process_exists(first.pid.expect("known").into()));
    assert_eq!(broker.starts("deaf").len(), 2);
    assert_eq!(broker.backend("deaf")["holds"], 1, "the stopped hold is over");
    drop(session);
    kill_backend(&broker.wait_backend("deaf", "held by nobody", |backend| backend["holds"] == 0));
    broker.wait_state("deaf", "inactive");
}

fn workers_do_not_outlive_their_master() {
    let broker = Broker::start(&[&Service::fake("x", &["--workers", "2"])]);
    let first = broker.resolve("x");
    let worker = broker.dial(&first).pid();
    assert_ne!(first["pid"], worker, "workers serve, not the master");
    let old = broker.processes("x");
    kill_backend(&first);
    wait_until("the workers are ended", || old.iter().all(|pid| !process_exists(u64::from(pid.unsigned_abs()))));
    broker.wait_state("x", "inactive");
    assert!(!endpoint_path(&first).exists());
    let second = broker.resolve("x");
    assert_eq!((&second["generation"], &second["endpoint"]), (&2.into(), &first["endpoint"]));
    let serving = broker.dial(&second).pid();
    assert!(!old.contains(&i32::try_from(serving).expect("a number")), "the new generation serves");
}

fn forked_away(broker: &Broker) -> (Value, u64) {
    let backend = broker.resolve("away");
    let pid = broker.dial(&backend).pid();
    assert_eq!(broker.starts("away").last().map(|start| start.0), Some(pid));
    (backend, pid)
}

fn a_daemon_that_forks_away_is_found_and_stopped() {
    let setup = Setup::new();
    let gate = setup.path("gate");
    let broker = setup.service(&Service::fake("away", &["--fork-away", "--ready-when", &gate])).start();
    let client = broker.ctl_in_background(&["resolve", "away"]);
    broker.wait_backend("away", "starting", |b| b["state"] == "starting" && !broker.starts("away").is_empty());
    broker.open_gate("gate");
    let _ = client.finish().done();
    let (backend, pid) = forked_away(&broker);
    assert_eq!((&backend["generation"], &broker.backend("away")["crashes_in_window"]), (&1.into(), &0.into()));
    let _ = broker.ctl(&["stop", "away"]).done();
    assert!(!process_exists(pid));
    broker.assert_gone("away");
    assert!(!endpoint_path(&backend).exists());
}

fn a_forked_away_daemon_that_dies_is_restarted() {
    let broker = Broker::start(&[&Service::fake("away", &["--fork-away"])]);
    let mut session = broker.session();
    let _ = session.hold("away");
    let (_, pid) = forked_away(&broker);
    kill(Pid::from_raw(i32::try_from(pid).expect("a number")), Signal::SIGKILL).expect("it runs");
    wait_event(&mut session, "the next generation", |event| {
        matches!(event, Event::Ready { generation: 2, .. }).then_some(())
    });
    let (backend, again) = forked_away(&broker);
    assert_ne!(again, pid);
    assert_eq!((&backend["generation"], broker.starts("away").len()), (&2.into(), 2));
}

fn a_daemon_that_is_no_longer_passed_a_socket_binds_its_own() {
    let broker = Broker::start(&[&Service::fake_on_passed_socket("x", &[]).toml("[readiness]\nprobe = \"socket\"")]);
    let passed = broker.resolve("x");
    broker.write_service(&Service::fake("x", &[]));
    let _ = broker.ctl(&["reload"]).done();
    let _ = broker.ctl(&["restart", "x"]).done();
    let own = broker.resolve("x");
    assert_eq!((&own["endpoint"], &own["generation"]), (&passed["endpoint"], &2.into()));
    assert_eq!(broker.dial(&own).facts()["environment"]["LISTEN_FDS"], serde_json::Value::Null);
}

fn a_passed_socket_serves_again_after_a_stop_and_a_crash() {
    let service = Service::fake_on_passed_socket("passed", &["--workers", "1"]);
    let broker = Broker::start(&[&service.toml("[readiness]\nprobe = \"socket\"")]);
    let endpoint = broker.resolve("passed")["endpoint"].clone();
    for generation in 1..=3 {
        let backend = broker.resolve("passed");
        assert_eq!((&backend["generation"], &backend["endpoint"]), (&generation.into(), &endpoint));
        let _ = broker.dial(&backend).ask("hello").expect("served");
        if generation == 1 {
            let _ = broker.ctl(&["stop", "passed"]).done();
        } else {
            kill_backend(&backend);
        }
        broker.wait_state("passed", "inactive");
        broker.assert_gone("passed");
    }
}
