//! Orders of operators, and the reports that they read.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use broker_proto::Event;
use broker_tests::{Broker, Service, Setup, trials};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::recovery::{kill_backend, wait_event};

trials![
    status_reports_the_broker_and_its_backends,
    start_stop_and_restart_by_name,
    stop_all_stops_every_backend,
    a_hold_ended_by_stop_is_over,
    a_stop_of_a_start_tells_those_who_wait,
    a_restart_keeps_the_holds_and_waits_until_ready,
    a_failed_start_is_a_refusal,
    logs_are_printed_and_followed,
    logs_are_followed_over_a_restart_of_the_broker,
    services_are_listed_with_their_versions,
    people_read_tables_without_control_characters,
    usage_errors_exit_with_2,
    completions_are_printed_for_shells,
    a_timeout_bounds_an_order,
];

fn status_reports_the_broker_and_its_backends() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let empty = broker.ctl_json(&["status"]).done().json();
    assert_eq!(empty["backends"], json!([]));
    let about = &empty["broker"];
    assert_eq!((&about["pid"], &about["services"]), (&broker.pid().into(), &1.into()));
    assert_eq!(about["socket"], broker.socket().to_str().expect("ASCII"));
    assert_eq!(about["state_dir"], broker.path("state").to_str().expect("ASCII"));
    assert!(about["version"].is_string() && about["uptime_ms"].is_u64() && about["sessions"].is_u64(), "{about}");

    let resolved = broker.resolve("x");
    let holder = broker.ctl_in_background(&["exec", "x", "--", "sleep", "1000"]);
    broker.wait_backend("x", "held", |b| b["holds"] == 1);
    let status = broker.ctl_json(&["status"]).done().json();
    let backend = &status["backends"][0];
    for field in ["instance", "service", "version", "endpoint", "pid", "generation", "state"] {
        assert_eq!(backend[field], resolved[field], "{field}");
    }
    let expected = json!({
        "holds": 1, "waiters": 0, "crashes_in_window": 0, "retry_after_ms": null, "attempt": 0, "adopted": false,
        "outdated": false, "draining": false,
    });
    for (field, value) in expected.as_object().expect("fields") {
        assert_eq!(&backend[field], value, "{field}");
    }
    assert!(backend["state_for_ms"].is_u64() && backend["log_path"].is_string(), "{backend}");
    holder.signal(Signal::SIGTERM);
    let _ = holder.finish();
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
    assert_eq!(broker.ctl_json(&["status", "nobody"]).json()["backends"], json!([]));
}

fn start_stop_and_restart_by_name() {
    let listen = ["--listen", "{endpoint}"];
    let broker = Broker::start(&[&Service::named("x").version("1.0.0", &listen).version("2.0.0", &listen)]);
    let started = broker.ctl_json(&["start", "x@^1/tenant-a"]).done().json();
    let name = [&started["instance"], &started["service"], &started["version"]];
    assert_eq!(name, [&json!("tenant-a"), &json!("x"), &json!("1.0.0")]);
    assert_eq!(broker.ctl_json(&["start", "x@^1/tenant-a"]).done().json(), started, "started already");
    let (a, b) = (broker.resolve("x@1.0.0"), broker.resolve("x@2.0.0"));

    let stopped = broker.ctl_json(&["stop", "x@1/default"]).done().json();
    assert_eq!(stopped["stopped"], json!([{"instance": "default", "service": "x", "version": "1.0.0"}]));
    let running = || {
        let status = broker.status();
        let backends = status["backends"].as_array().expect("a list").clone();
        backends.into_iter().filter(|b| b["pid"].is_u64()).map(|b| b["pid"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(running(), [b["pid"].clone(), started["pid"].clone()]);

    let restarted = broker.ctl_json(&["restart", "x@2"]).done().json();
    let again = &restarted["restarted"][0];
    assert_eq!(
        (&again["version"], &again["generation"], &again["state"]),
        (&"2.0.0".into(), &2.into(), &"ready".into())
    );
    assert_ne!(again["pid"], b["pid"]);
    assert_eq!(again["endpoint"], b["endpoint"]);
    assert_ne!(a["endpoint"], b["endpoint"]);
}

fn stop_all_stops_every_backend() {
    let services = ["one", "two"].map(|name| Service::fake(name, &[]));
    let broker = Broker::start(&services.each_ref());
    let _ = (broker.resolve("one"), broker.resolve("two"), broker.resolve("two/tenant-a"));
    let stopped = broker.ctl_json(&["stop", "--all"]).done().json();
    assert_eq!(stopped["stopped"].as_array().map(Vec::len), Some(3), "{stopped}");
    broker.assert_gone("one");
    broker.assert_gone("two");
}

fn a_hold_ended_by_stop_is_over() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let _ = session.hold("x");
    let _ = broker.ctl(&["stop", "x"]).done();
    wait_event(&mut session, "the stop", |event| matches!(event, Event::Stopped).then_some(()));
    assert_eq!(broker.wait_state("x", "inactive")["holds"].as_u64().unwrap_or(0), 0);
    assert_eq!(broker.starts("x").len(), 1, "nothing starts after a stop without a new Hello");
    assert_eq!(session.hold("x").generation, 2);
}

fn a_stop_of_a_start_tells_those_who_wait() {
    let broker = Broker::start(&[&Service::fake("stuck", &["--never-ready"])]);
    let waiting = broker.ctl_in_background(&["--json", "resolve", "stuck"]);
    broker.wait_backend("stuck", "started", |b| b["waiters"] == 1 && !broker.starts("stuck").is_empty());
    let stopped = broker.ctl_json(&["stop", "stuck"]).done().json();
    assert_eq!(stopped["stopped"].as_array().map(Vec::len), Some(1), "{stopped}");
    broker.assert_gone("stuck");
    let _ = waiting.finish().refused(75, "shutting_down");
    assert_eq!(broker.backend("stuck")["crashes_in_window"], 0, "a stop is no crash");
}

fn a_restart_keeps_the_holds_and_waits_until_ready() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let _ = session.hold("x");
    let _ = broker.ctl(&["restart", "x"]).done();
    let backend = broker.backend("x");
    assert_eq!((&backend["state"], &backend["generation"], &backend["holds"]), (&"ready".into(), &2.into(), &1.into()));
    wait_event(&mut session, "the new generation", |event| {
        matches!(event, Event::Ready { generation: 2, .. }).then_some(())
    });
}

fn a_failed_start_is_a_refusal() {
    let broker = Broker::start(&[&Service::fake("bad", &["--exit", "7"]), &Service::fake("slow", &["--never-ready"])]);
    let refused = broker.ctl_json(&["start", "bad"]).refused(75, "backend_unavailable");
    assert_eq!(refused["evidence"]["exit_code"], 7);
    let _ = broker.ctl_json(&["start", "slow", "--timeout", "200ms"]).refused(75, "start_timeout");
}

fn logs_are_printed_and_followed() {
    let broker = Broker::start(&[&Service::fake("x", &["--stderr", "first words"])]);
    let backend = broker.resolve("x");
    let mut connection = broker.dial(&backend);
    let _ = connection.ask("!say second words").expect("served");
    assert_eq!(broker.ctl(&["logs", "x"]).done().stdout.matches("words").count(), 2);
    assert_eq!(broker.ctl(&["logs", "-n", "1", "x"]).done().stdout.trim_end(), "second words");

    let mut follow = broker.ctl_command(&["logs", "-f", "x"]).stdout(Stdio::piped()).spawn().expect("brokerctl runs");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    let mut expect = |words: &str| {
        for line in lines.by_ref() {
            if line.expect("text").contains(words) {
                return;
            }
        }
        panic!("`logs -f` ended before `{words}`");
    };
    expect("first words");
    expect("second words");
    let _ = connection.ask("!say third words").expect("served");
    expect("third words");
    let _ = broker.ctl(&["restart", "x"]).done();
    expect("first words");
    follow.kill().expect("it still runs");
    follow.wait().expect("a child can be waited for");
}

fn logs_are_followed_over_a_restart_of_the_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &["--stderr", "begun"])]);
    let mut connection = broker.dial(&broker.resolve("x"));
    let mut follow = broker.ctl_in_background(&["logs", "-f", "--max-reconnect-delay", "100ms", "x"]);
    follow.wait_stdout("what was written", |text| text == "begun\n");
    broker.kill();
    let _ = connection.ask("!say by itself").expect("served");
    follow.wait_stdout("what is written while no broker runs", |text| text.ends_with("by itself\n"));
    broker.start_again();
    let _ = connection.ask("!say adopted").expect("served");
    follow.wait_stdout("what is written afterwards", |text| text.ends_with("adopted\n"));
    // What is over the next broker has no record of.
    let _ = broker.ctl(&["stop", "x"]).done();
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    broker.start_again();
    let mut connection = broker.dial(&broker.resolve("x"));
    let _ = connection.ask("!say anew").expect("served");
    follow.wait_stdout("what the next start writes", |text| text.ends_with("anew\n"));
    let _ = broker.ctl(&["shutdown"]).done();
    assert!(broker.ended().success());
    let output = follow.finish().exits(69);
    assert_eq!(output.stdout, "begun\nby itself\nadopted\nbegun\nanew\n", "nothing twice");

    broker.start_again();
    let _ = broker.resolve("x");
    let mut follow = broker.ctl_in_background(&["logs", "-f", "--no-reconnect", "x"]);
    follow.wait_stdout("what was written", |text| text.ends_with("begun\n"));
    broker.kill();
    let said = follow.finish().exits(69).stderr;
    assert!(said.contains("the broker is gone"), "{said}");
    broker.start_again();
}

fn services_are_listed_with_their_versions() {
    let described = Service::fake("b", &[]).version("2", &["--listen", "{endpoint}"]);
    let broker = Broker::start(&[&described, &Service::fake("a", &[])]);
    fs::write(broker.path("services.d/readme.txt"), "not a service file").expect("the folder takes a file");
    let _ = broker.ctl(&["reload"]).done();
    let report = broker.ctl_json(&["services"]).done().json();
    let names: Vec<_> = report["services"].as_array().expect("a list").iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    let b = &report["services"][1];
    assert_eq!(b["file"], broker.path("services.d/b.toml").to_str().expect("ASCII"));
    let versions: Vec<_> = b["versions"].as_array().expect("a list").iter().map(|v| &v["version"]).collect();
    assert_eq!(versions, ["1.0.0", "2.0.0"]);
    assert_eq!(report["problems"], json!([]));
    let plain = broker.ctl(&["services"]).done().stdout;
    assert!(plain.contains('a') && plain.contains("2.0.0"), "{plain}");
}

fn people_read_tables_without_control_characters() {
    let broker = Broker::start(&[
        &Service::fake("x", &["--notify", "--status", "\u{1b}[31mred"]).toml("[readiness]\nprobe = \"notify\"")
    ]);
    let backend = broker.resolve("x");
    for arguments in [&["status"][..], &["services"], &["-v", "status"]] {
        let output = broker.ctl(arguments).done();
        assert!(output.stdout.contains('x') && !output.stdout.contains('\x1b'), "{:?}", output.stdout);
    }
    let status = broker.ctl(&["status"]).done().stdout;
    for part in ["ready", "1.0.0", &backend["pid"].to_string()] {
        assert!(status.contains(part), "`{part}` is missing:\n{status}");
    }
}

fn usage_errors_exit_with_2() {
    let broker = Broker::start(&[]);
    for arguments in
        [&["resolve"][..], &["frobnicate"], &["status", "--frob"], &["stop"], &["resolve", "x", "--timeout", "5"]]
    {
        let output = broker.ctl(arguments).exits(2);
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["resolve", "--help"]] {
        assert!(!broker.ctl(arguments).done().stdout.is_empty());
    }
}

fn completions_are_printed_for_shells() {
    let broker = Broker::start(&[]);
    for shell in ["bash", "zsh", "fish"] {
        assert!(broker.ctl(&["completions", shell]).done().stdout.contains("resolve"), "{shell}");
    }
}

fn a_timeout_bounds_an_order() {
    let setup = Setup::new();
    let service = Service::fake("deaf", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"1h\"");
    let broker = setup.service(&service).start();
    let _ = broker.resolve("deaf");
    let output = broker.ctl(&["stop", "deaf", "--timeout", "100ms"]);
    assert_ne!(output.code, 0, "the backend still runs");
    kill_backend(&broker.wait_state("deaf", "stopping"));
    broker.wait_state("deaf", "inactive");
}
