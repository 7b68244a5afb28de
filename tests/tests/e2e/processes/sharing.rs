//! Several brokers and one store: leases, and that nothing is run twice.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use broker_proto::AdminRequest;
use broker_tests::{Broker, Setup, end_processes, processes_mentioning, trials, wait_until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{cancel, ended, gated, process, run, running, sh, spec, wait_process};

trials![
    two_brokers_sweep_two_hundred_and_run_each_once,
    a_stopped_owner_is_passed_over_and_nothing_is_run_twice,
    a_dead_owner_is_passed_over_before_its_lease_ends,
    a_broker_that_leaves_gives_its_leases_up,
    one_broker_answers_for_what_another_runs,
    a_stranger_can_cancel,
    an_id_that_many_register_at_once_is_run_once,
];

/// A folder that several brokers use; what mentions it ends with the test.
pub(super) struct Store(pub(super) TempDir);

impl Store {
    pub(super) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("bs.").tempdir_in("/tmp").expect("a folder in /tmp"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn broker(&self, settings: &str) -> Broker {
        let store = self.path("store");
        Setup::new().config(&format!("[processes]\nstore = \"{}\"\n{settings}\n", store.display())).start()
    }
}

impl Store {
    /// Stops a broker where it does not write: one that is stopped while it writes keeps all others from writing, as SQLite
    /// has it, and this is about what comes after.
    fn stop_between_writes(&self, broker: &Broker) {
        let store = rusqlite::Connection::open(self.path("store/processes.db")).expect("a database");
        store.busy_timeout(std::time::Duration::ZERO).expect("it can be set");
        wait_until("it is stopped between two writes", || {
            broker.signal(Signal::SIGSTOP);
            let stat = || fs::read_to_string(format!("/proc/{}/stat", broker.pid())).expect("it is there");
            wait_until("it has stopped", || stat().rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')));
            let is_free = store.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok();
            if !is_free {
                broker.signal(Signal::SIGCONT);
            }
            is_free
        });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end_processes(self.0.path());
        }
    }
}

/// How often each line is in a file.
pub(super) fn counts(path: &Path) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

/// A script that appends its id to a file.
pub(super) fn note(path: &Path) -> String {
    format!("echo $BROKER_PROCESS_ID >> {}", path.display())
}

fn two_brokers_sweep_two_hundred_and_run_each_once() {
    const COUNT: usize = 200;
    let store = Store::new();
    let (runs, gate) = (store.path("runs"), store.path("gate"));
    let mut first = store.broker("concurrent = 1");
    let mut session = first.session();
    run(&mut session, spec("gate", gated(&gate, &note(&runs))));
    running(&mut session, "gate");
    for number in 0..COUNT {
        run(&mut session, spec(&format!("x{number}"), sh(&note(&runs))));
    }
    first.signal(Signal::SIGKILL);
    first.ended();
    let mut brokers = std::thread::scope(|scope| {
        [0, 1].map(|_| scope.spawn(|| store.broker("concurrent = 8"))).map(|broker| broker.join().expect("it starts"))
    });
    fs::write(&gate, "").expect("it can be written");
    for number in 0..COUNT {
        let mut session = brokers[number % 2].session();
        let process = ended(&mut session, &format!("x{number}"));
        assert_eq!((&process["state"], &process["attempt"]), (&"succeeded".into(), &1.into()), "{process}");
    }
    ended(&mut brokers[0].session(), "gate");
    let counts = counts(&runs);
    assert_eq!(counts.len(), COUNT + 1);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    let worked = brokers.iter().filter(|broker| broker.log().contains(" started ")).count();
    assert!(worked >= 1);
    brokers.iter_mut().for_each(|broker| broker.signal(Signal::SIGTERM));
    brokers.iter_mut().for_each(|broker| assert!(broker.ended().success()));
}

fn a_stopped_owner_is_passed_over_and_nothing_is_run_twice() {
    const COUNT: usize = 40;
    let store = Store::new();
    let (runs, gate) = (store.path("runs"), store.path("gate"));
    let stopped = store.broker("lease = \"300ms\"");
    let other = store.broker("lease = \"300ms\"");
    let mut session = stopped.session();
    run(&mut session, spec("long", gated(&gate, &format!("{}; exit 6", note(&runs)))));
    let before = running(&mut session, "long");
    // It is stopped in the midst of whatever it does with these.
    for number in 0..COUNT {
        let request = AdminRequest::Run { spec: spec(&format!("x{number}"), sh(&note(&runs))) };
        session.send(&broker_proto::ClientMessage::Admin { request_id: 1000 + number as u64, request });
    }
    wait_until("some have run", || runs.exists());
    store.stop_between_writes(&stopped);
    let mut others = other.session();
    let after = wait_process(&mut others, "long", "passed on", |process| process["lease"]["mine"] == true);
    assert_eq!((&after["pid"], &after["adopted"], &after["attempt"]), (&before["pid"], &true.into(), &1.into()));
    fs::write(&gate, "").expect("it can be written");
    let process = ended(&mut others, "long");
    assert_eq!((&process["exit_code"], &process["attempt"]), (&6.into(), &1.into()), "{process}");
    stopped.signal(Signal::SIGCONT);
    for number in 0..COUNT {
        let id = format!("x{number}");
        wait_until("it is registered", || session.admin(AdminRequest::Processes { id: Some(id.clone()) }).is_ok());
        let process = ended(&mut session, &id);
        assert_eq!((&process["state"], &process["attempt"]), (&"succeeded".into(), &1.into()), "{process}");
    }
    assert_eq!(ended(&mut session, "long")["exit_code"], 6, "the stale owner learns of it");
    let counts = counts(&runs);
    assert_eq!(counts.len(), COUNT + 1);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

fn a_dead_owner_is_passed_over_before_its_lease_ends() {
    let store = Store::new();
    let gate = store.path("gate");
    let mut owner = store.broker("lease = \"1h\"");
    run(&mut owner.session(), spec("x", gated(&gate, "exit 8")));
    running(&mut owner.session(), "x");
    let other = store.broker("lease = \"1h\"");
    let mut session = other.session();
    let foreign = process(&mut session, "x");
    assert_eq!((&foreign["lease"]["mine"], &foreign["lease"]["owner"]), (&false.into(), &owner.pid().into()));
    owner.signal(Signal::SIGKILL);
    owner.ended();
    let after = wait_process(&mut session, "x", "passed on", |process| process["lease"]["mine"] == true);
    assert_eq!((&after["adopted"], &after["attempt"]), (&true.into(), &1.into()));
    assert!(after["lease"]["fencing_token"].as_i64() > foreign["lease"]["fencing_token"].as_i64());
    fs::write(&gate, "").expect("it can be written");
    assert_eq!(ended(&mut session, "x")["exit_code"], 8);
}

fn a_broker_that_leaves_gives_its_leases_up() {
    let store = Store::new();
    let gate = store.path("gate");
    let mut owner = store.broker("lease = \"1h\"");
    run(&mut owner.session(), spec("x", gated(&gate, "exit 8")));
    running(&mut owner.session(), "x");
    owner.signal(Signal::SIGTERM);
    assert!(owner.ended().success());
    let other = store.broker("lease = \"1h\"");
    let mut session = other.session();
    wait_process(&mut session, "x", "taken over", |process| process["lease"]["mine"] == true);
    fs::write(&gate, "").expect("it can be written");
    assert_eq!(ended(&mut session, "x")["exit_code"], 8);
}

fn one_broker_answers_for_what_another_runs() {
    let store = Store::new();
    let gate = store.path("gate");
    let (owner, other) = (store.broker(""), store.broker(""));
    run(&mut owner.session(), spec("x", gated(&gate, "exit 8")));
    running(&mut owner.session(), "x");
    let mut session = other.session();
    let request = AdminRequest::Wait { id: "x".to_owned(), wait_ms: None };
    session.send(&broker_proto::ClientMessage::Admin { request_id: 1 << 40, request });
    session.ping();
    fs::write(&gate, "").expect("it can be written");
    let process = session.wait_message("the end", |message| match message {
        broker_proto::ServerMessage::AdminReply { json, .. } => serde_json::from_str::<serde_json::Value>(json).ok(),
        _ => None,
    });
    assert_eq!(process["process"]["exit_code"], 8);
    // The same content is the same process at any of them.
    let again = session.admin(AdminRequest::Run { spec: spec("x", gated(&gate, "exit 8")) }).expect("the same");
    assert_eq!(again["created"], false);
}

fn a_stranger_can_cancel() {
    let store = Store::new();
    let (owner, other) = (store.broker("concurrent = 1"), store.broker("concurrent = 1\nlease = \"1h\""));
    run(&mut owner.session(), spec("x", sh("sleep 1000")));
    running(&mut owner.session(), "x");
    let mut session = other.session();
    cancel(&mut session, "x", "not here").expect("it runs");
    let process = ended(&mut session, "x");
    assert_eq!((&process["state"], &process["reason"]), (&"cancelled".into(), &"not here".into()), "{process}");
    assert_eq!(ended(&mut owner.session(), "x")["state"], "cancelled");
    wait_until("nothing of it runs", || {
        processes_mentioning(&store.path("store")).iter().all(|(_, command)| !command.contains("reap"))
    });
}

fn an_id_that_many_register_at_once_is_run_once() {
    let store = Store::new();
    let runs = store.path("runs");
    let brokers = [store.broker(""), store.broker("")];
    let register = |number: usize| {
        let mut session = brokers[number % 2].session();
        let answer = session.admin(AdminRequest::Run { spec: spec("x", sh(&note(&runs))) }).expect("the same");
        ended(&mut session, "x");
        answer["created"] == true
    };
    let register = &register;
    let created = std::thread::scope(|scope| {
        let all: Vec<_> = (0..20).map(|number| scope.spawn(move || register(number))).collect();
        all.into_iter().map(|one| one.join().expect("it is registered")).filter(|created| *created).count()
    });
    assert_eq!(created, 1);
    assert_eq!(counts(&runs).into_values().collect::<Vec<_>>(), [1]);
}
