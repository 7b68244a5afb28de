//! What is not proved to be a backend's is left alone: numbers that belong to somebody else by now, rows of another boot or
//! another pid namespace, and rows that nobody understands.

use std::process::{Child, Command, Stdio};

use broker_proto::{AdminRequest, Target};
use broker_tests::{Broker, process_exists, trials, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

use super::everywhere::OF_A_QUARANTINE;
use super::{all_of, journal, kill, kind, order, pid_of, served};

trials![
    a_number_that_is_a_strangers_by_now_is_a_crash_and_no_target,
    a_stop_that_was_under_way_does_not_reach_a_stranger,
    another_boot_is_no_crash,
    another_boot_clears_the_budget,
    what_is_of_another_pid_namespace_is_quarantined_until_it_is_released,
    a_row_of_an_unknown_phase_is_quarantined_until_it_is_released,
    a_damaged_document_of_a_start_is_made_good_by_its_record,
    a_row_whose_documents_are_damaged_is_quarantined_and_its_process_lives,
];

/// A process that has nothing to do with any broker, in a group of its own. Any signal would be its end.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Self(command.spawn().expect("sleep can be executed"))
    }

    fn start_time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a stat line").1.split(' ').collect();
        fields[19].parse().expect("a number")
    }

    #[track_caller]
    fn assert_untouched(&mut self) {
        assert_eq!(self.0.try_wait().expect("our child"), None, "the stranger was signalled");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the broker, and its backend after it.
fn both_die(broker: &mut Broker, service: &str) {
    journal::wait_phase(broker, service, "ready");
    broker.kill();
    wait_until("nothing is left of it", || {
        let left = broker.processes(service);
        for pid in &left {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
        }
        left.is_empty()
    });
}

/// Has the row name the stranger, with that start time or the one that the row has.
fn name_the_stranger(broker: &Broker, service: &str, stranger: &Stranger, start_time: Option<u64>) {
    let pid = stranger.0.id();
    journal::alter_documents(broker, service, |_, launch| {
        let process = &mut launch["process"];
        process["group"] = pid.into();
        for identity in [&["main"][..], &["facts", "leader"]] {
            let identity = identity.iter().fold(&mut *process, |value, name| &mut value[name]);
            assert!(identity["pid"].is_u64() && identity["start_time"].is_u64(), "{identity}");
            identity["pid"] = pid.into();
            if let Some(start_time) = start_time {
                identity["start_time"] = start_time.into();
            }
        }
    });
    let start_time = start_time.map(|time| i64::try_from(time).expect("a time"));
    let sql = "UPDATE backends SET pid = ?1, start_time = coalesce(?2, start_time) WHERE service = ?3";
    journal::alter(broker, sql, (pid, start_time, service));
}

fn a_number_that_is_a_strangers_by_now_is_a_crash_and_no_target() {
    for (service, is_near) in [("path", false), ("path", true), ("workers", false), ("away", true)] {
        let mut broker = Broker::start(&[&kind(service)]);
        let _ = super::settled(&broker, service);
        both_die(&mut broker, service);
        let mut stranger = Stranger::new();
        let start_time = is_near.then(|| stranger.start_time() - 1);
        name_the_stranger(&broker, service, &stranger, start_time);
        broker.start_again();
        let backend = broker.wait_state(service, "inactive");
        assert_eq!((&backend["crashes_in_window"], &backend["generation"]), (&1.into(), &1.into()), "{backend}");
        let (_, backend) = served(&broker, service);
        assert_eq!(backend["generation"], 2);
        let _ = broker.ctl(&["stop", service]).done();
        stranger.assert_untouched();
    }
}

fn a_stop_that_was_under_way_does_not_reach_a_stranger() {
    let mut broker = broker_tests::Setup::new().service(&kind("path")).unstarted();
    broker.start_armed("after-stopping");
    broker.wait_until_it_answers();
    let pid = pid_of(&broker.resolve("path"));
    let _session = order(&broker, AdminRequest::Stop { selection: all_of("path"), deadline_ms: None });
    broker.dies();
    kill(pid);
    wait_until("it is gone", || !process_exists(pid));
    let mut stranger = Stranger::new();
    name_the_stranger(&broker, "path", &stranger, None);
    broker.start_again();
    broker.wait_state("path", "inactive");
    stranger.assert_untouched();
}

/// Has the row tell of another boot, as all rows do after one.
fn reboot(broker: &Broker, service: &str) {
    let other = "00000000-0000-4000-8000-000000000000";
    journal::alter_documents(broker, service, |memory, launch| {
        for boot_id in [&mut memory["boot_id"], &mut launch["here"]["boot_id"]] {
            assert!(boot_id.is_string());
            *boot_id = other.into();
        }
    });
    journal::alter(broker, "UPDATE backends SET boot_id = ?1", [other]);
}

fn another_boot_is_no_crash() {
    let mut broker = Broker::start(&[&kind("path")]);
    let _ = broker.resolve("path");
    both_die(&mut broker, "path");
    reboot(&broker, "path");
    broker.start_again();
    let backend = broker.backend("path");
    assert_eq!((&backend["state"], &backend["crashes_in_window"]), (&"inactive".into(), &0.into()), "{backend}");
    assert_eq!(std::fs::read_dir(broker.path("state/starts")).expect("a folder").count(), 0, "its record is gone");
    let (_, backend) = served(&broker, "path");
    assert_eq!(backend["generation"], 2, "its number is not given again");
}

fn another_boot_clears_the_budget() {
    let mut broker = Broker::start(&[&kind("path").toml("[recovery]\nretry_backoff = \"1ms\"")]);
    kill(pid_of(&broker.resolve("path")));
    broker.wait_backend("path", "crashed", |b| b["crashes_in_window"] == 1 && b["pid"].is_null());
    assert_eq!(broker.resolve("path")["generation"], 2);
    both_die(&mut broker, "path");
    reboot(&broker, "path");
    broker.start_again();
    assert_eq!(broker.backend("path")["crashes_in_window"], 0);
    assert_eq!(broker.resolve("path")["generation"], 3);
}

/// All that can be asked of a quarantined backend is refused or does nothing, until it is released.
fn is_quarantined_until_it_is_released(broker: &mut Broker, pid: u64, generation: u64, why: &str) {
    for _ in 0..2 {
        let backend = broker.backend("path");
        assert_eq!(backend["state"], "quarantined", "{backend}");
        assert!(backend["quarantine"].as_str().is_some_and(|reason| reason.contains(why)), "{backend}");
        let refused = broker.ctl_json(&["resolve", "path"]).refused(75, "backend_unavailable");
        assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{refused}");
        let mut session = broker.session();
        let target =
            Target { instance: "default".to_owned(), service: "path".to_owned(), version_requirement: "*".to_owned() };
        assert!(session.admin(AdminRequest::Start { target, deadline_ms: None }).is_err());
        let restarted = session.admin(AdminRequest::Restart { selection: all_of("path"), deadline_ms: None });
        assert!(restarted.as_ref().map_or(true, |report| report["restarted"] == json!([])), "{restarted:?}");
        let _ = session.admin(AdminRequest::Stop { selection: all_of("path"), deadline_ms: None });
        assert!(process_exists(pid), "it is not touched");
        assert_eq!(broker.starts("path").len(), 1);
        assert_eq!(broker.backend("path")["state"], "quarantined");
        // Another broker does no better.
        broker.kill_and_start_again();
    }
    broker.hand_over();
    assert_eq!(broker.backend("path")["state"], "quarantined");
    kill(pid);
    wait_until("the operator has ended it", || !process_exists(pid));
    let released = broker.session().admin(AdminRequest::Release { selection: all_of("path") }).expect("it is held");
    assert_eq!(released["released"].as_array().map(Vec::len), Some(1), "{released}");
    let (_, backend) = served(broker, "path");
    assert_eq!(backend["generation"], generation + 1, "{backend}");
    let _ = broker.ctl(&["stop", "path"]).done();
    broker.assert_gone("path");
}

/// A backend runs, and no broker does.
fn only_the_backend_runs() -> (Broker, u64) {
    let mut broker = Broker::start(&[&kind("path")]);
    let pid = pid_of(&broker.resolve("path"));
    journal::wait_phase(&broker, "path", "ready");
    broker.kill();
    (broker, pid)
}

fn what_is_of_another_pid_namespace_is_quarantined_until_it_is_released() {
    let (mut broker, pid) = only_the_backend_runs();
    journal::alter_documents(&broker, "path", |_, launch| {
        assert!(launch["here"]["pid_namespace"].is_u64());
        launch["here"]["pid_namespace"] = 1.into();
    });
    journal::alter(&broker, "UPDATE backends SET pid_namespace = 1", []);
    for failpoint in OF_A_QUARANTINE {
        broker.start_armed(failpoint);
        broker.dies();
    }
    broker.start_again();
    is_quarantined_until_it_is_released(&mut broker, pid, 1, "another pid namespace");
}

fn a_row_of_an_unknown_phase_is_quarantined_until_it_is_released() {
    let (mut broker, pid) = only_the_backend_runs();
    journal::alter(&broker, "UPDATE backends SET phase = 'dancing'", []);
    broker.start_again();
    is_quarantined_until_it_is_released(&mut broker, pid, 1, "dancing");
}

fn a_damaged_document_of_a_start_is_made_good_by_its_record() {
    let (mut broker, pid) = only_the_backend_runs();
    journal::alter(&broker, "UPDATE backends SET launch = '{'", []);
    broker.start_again();
    let backend = broker.backend("path");
    assert_eq!((&backend["state"], &backend["pid"], &backend["adopted"]), (&"ready".into(), &pid.into(), &true.into()));
}

fn a_row_whose_documents_are_damaged_is_quarantined_and_its_process_lives() {
    for column in ["memory", "launch"] {
        let (mut broker, pid) = only_the_backend_runs();
        journal::alter(&broker, &format!("UPDATE backends SET {column} = '{{'"), []);
        // Its record would make good what the row tells of the start.
        std::fs::remove_dir_all(broker.path("state/starts")).expect("there is a record");
        broker.start_again();
        let backend = broker.backend("path");
        assert_eq!(backend["state"], "quarantined", "{column}: {backend}");
        assert!(process_exists(pid), "{column}: it is not touched");
        broker.signal(Signal::SIGINT);
        assert!(broker.ended().success());
        assert!(process_exists(pid), "{column}: it is not touched by the end of its broker either");
        broker.may_leave_processes();
    }
}
