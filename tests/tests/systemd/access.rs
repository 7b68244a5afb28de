//! The system's broker and the users of its machine: who may connect, who may use what, and who may control it.

use broker_tests::{Machine, Output, Service, trials};

trials![
    members_may_connect_and_use_what_a_service_file_says_and_admins_control,
    a_stranger_is_told_which_group_to_join,
];

/// A machine with its users, and a broker with a service for one of them.
fn machine() -> Machine {
    let machine = Machine::boot();
    let _ = machine.run(&["groupadd", "builders"]).done();
    for user in [
        &["member", "--groups", "broker"][..],
        &["builder", "--groups", "broker,builders"],
        &["admin", "--groups", "broker,broker-admin"],
        &["stranger"],
    ] {
        let _ = machine.run(&[&["useradd", "--create-home"], user].concat()).done();
    }
    machine.service(&Service::fake("x", &[]).toml("[access]\nusers = [\"member\"]"));
    machine.service(&Service::fake("other", &[]));
    machine.service(&Service::fake("shared", &[]).toml("[access]\ngroups = [\"builders\"]"));
    machine.systemctl(&["start", "brokerd.socket"]);
    machine
}

fn members_may_connect_and_use_what_a_service_file_says_and_admins_control() {
    let machine = machine();
    let ctl = |user: &str, arguments: &[&str]| -> Output {
        machine.run_as(user, &[&["brokerctl", "--json"], arguments].concat())
    };
    let backend = ctl("member", &["resolve", "x"]).done().json();
    let refused = ctl("member", &["resolve", "other"]).refused(77, "peer_rejected");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("[access]")), "{refused}");
    assert_eq!(ctl("builder", &["resolve", "shared"]).done().json()["state"], "ready");
    let _ = ctl("builder", &["resolve", "x"]).refused(77, "peer_rejected");
    let _ = ctl("member", &["resolve", "shared"]).refused(77, "peer_rejected");
    let _ = ctl("builder", &["stop", "shared"]).refused(77, "peer_rejected");
    for order in [&["stop", "x"][..], &["restart", "x"], &["drain", "x"], &["reload"], &["shutdown"], &["status"]] {
        let refused = ctl("member", order).refused(77, "peer_rejected");
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(reason.contains("only root and members of the group `broker-admin` may"), "{reason}");
    }
    let status = ctl("admin", &["status"]).done().json();
    let backends = status["backends"].as_array().expect("a list");
    assert!(backends.iter().any(|one| one["service"] == "x" && one["pid"] == backend["pid"]), "{status}");
    let _ = ctl("admin", &["resolve", "x"]).refused(77, "peer_rejected");
    let _ = ctl("admin", &["run", "--", "id"]).refused(77, "peer_rejected");
    let _ = ctl("admin", &["stop", "x"]).done();
    assert!(!machine.process_exists(backend["pid"].as_u64().expect("a number")));
    let _ = ctl("root", &["start", "x"]).done();
    let _ = ctl("admin", &["shutdown", "--handover"]).done();
    machine.wait_unit("brokerd.service", "inactive");
}

fn a_stranger_is_told_which_group_to_join() {
    let machine = machine();
    for command in [&["brokerctl", "status"][..], &["brokerctl", "resolve", "x"], &["brokerctl", "run", "--", "id"]] {
        let said = machine.run_as("stranger", command).exits(77).stderr;
        assert!(
            said.contains("/run/broker/broker.sock") && said.contains("`sudo usermod -aG broker stranger`"),
            "{said}"
        );
    }
    // One who has joined since the login.
    let early = ["setpriv", "--reuid", "member", "--regid", "member", "--clear-groups", "--reset-env", "--"];
    let said = machine.run(&[&early, &["brokerctl", "status"][..]].concat()).exits(77).stderr;
    assert!(said.contains("log in again") && said.contains("`newgrp broker`"), "{said}");
}
