//! The broker is killed wherever it can be, on the way to everything that it does, and the next one knows everything.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;

use broker_proto::AdminRequest;
use broker_tests::{Broker, Setup, process_exists, trials, wait_until};
use nix::sys::signal::Signal;

use super::agreement::assert_agreement;
use super::{KINDS, all_of, every_kind, kill, kind, order, pid_of, served, settled};

trials![
    every_failpoint_is_known_here,
    killed_on_the_way_to_a_first_start,
    killed_on_the_way_to_a_first_start_of_what_is_kept,
    killed_on_the_way_to_a_retry,
    killed_while_a_backend_is_stopped,
    killed_on_the_way_to_the_end_of_what_is_kept,
    killed_while_a_crash_is_worked_off,
    killed_while_it_makes_way,
    killed_while_it_stops_everything,
    killed_while_it_takes_over_what_lives,
    killed_while_it_takes_over_what_died,
    killed_while_it_takes_over_what_was_kept,
    killed_while_it_ends_what_was_to_be_ended,
];

/// Each step of a start, from the first that is written of it to its readiness.
pub(super) const OF_A_START: [&str; 11] = [
    "before-starting",
    "after-starting",
    "before-intent",
    "after-intent",
    "child-before-record",
    "child-after-record",
    "after-fork",
    "after-log",
    "after-pid",
    "before-ready",
    "after-ready",
];

/// Those of a socket that the service manager keeps: one that is listened on for the daemon, and one that listens to it.
pub(super) const OF_KEEPING: [&str; 4] = ["before-kept", "after-kept", "before-heard", "after-heard"];

/// Those of a daemon that forked away, between.
pub(super) const OF_FORKING_AWAY: [&str; 2] = ["before-main", "after-main"];

/// Each step of an end, whatever it came of.
pub(super) const OF_AN_END: [&str; 8] = [
    "before-stopping",
    "after-stopping",
    "before-end",
    "after-end",
    "before-ended",
    "after-ended",
    "before-rest",
    "after-rest",
];

/// The two more of an end that was asked for.
pub(super) const OF_ASKING: [&str; 2] = ["before-terminate", "after-terminate"];

/// Those of a backend that is quarantined.
pub(super) const OF_A_QUARANTINE: [&str; 2] = ["before-quarantined", "after-quarantined"];

/// Those of a broker that goes, and of the one that comes.
pub(super) const OF_THE_BROKER: [&str; 6] =
    ["leaving", "before-flush", "after-flush", "sweep-begun", "sweep-midway", "sweep-done"];

/// Where every kind was there before on much the same way.
const FEWER: [&str; 3] = ["passed", "away", "workers"];

/// Says where it was when a check failed.
struct Case<'a>(&'a str, &'a str);

impl Drop for Case<'_> {
    #[expect(clippy::print_stderr, reason = "a failure names its failpoint")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- this was failpoint {} with {}", self.0, self.1);
        }
    }
}

/// The names in a text that are a failpoint's.
fn failpoints_in(text: &str, found: &mut BTreeSet<String>) {
    let is_name = |word: &&str| {
        let begins = ["before-", "after-", "child-", "sweep-", "leaving"].iter().any(|begin| word.starts_with(begin));
        begins && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    };
    found.extend(text.split('"').skip(1).step_by(2).filter(is_name).map(str::to_owned));
}

fn every_failpoint_is_known_here() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("crates").join("broker/src/daemon")];
    folders.push(folders[0].with_file_name("process"));
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of sources").flatten() {
            match fs::read_to_string(entry.path()) {
                Ok(text) => text.lines().for_each(|line| failpoints_in(line, &mut found)),
                Err(_) => folders.push(entry.path()),
            }
        }
    }
    let of_backends = [&OF_A_START[..], &OF_KEEPING, &OF_FORKING_AWAY, &OF_AN_END, &OF_ASKING, &OF_A_QUARANTINE];
    let all = [&of_backends.concat()[..], &OF_THE_BROKER].concat();
    assert_eq!(found, all.into_iter().map(str::to_owned).collect());
}

/// Each failpoint with each kind of daemon that comes by it.
fn for_each(failpoints: &[&str], kinds: &[&str], test: impl Fn(&str, &str)) {
    for failpoint in failpoints {
        let name = failpoint.split('@').next().expect("a name");
        let of_one = match name {
            "before-kept" | "after-kept" => Some("passed"),
            "before-heard" | "after-heard" => Some("says"),
            name => OF_FORKING_AWAY.contains(&name).then_some("away"),
        };
        for service in kinds.iter().filter(|service| of_one.is_none_or(|one| one == **service)) {
            let _case = Case(failpoint, service);
            test(failpoint, service);
        }
    }
}

/// The next broker is started, all agrees, and a client is served; by a backend which is the `starts`-th at most.
#[track_caller]
fn goes_on(broker: &mut Broker, service: &str, starts: usize) {
    broker.start_again();
    assert_agreement(broker, &[service]);
    let _ = settled(broker, service);
    assert_agreement(broker, &[service]);
    let started = broker.starts(service);
    assert!(started.len() <= starts, "{starts} starts were enough: {started:?}");
    ends_with_its_broker(broker, &[service]);
}

/// SIGINT leaves nothing.
fn ends_with_its_broker(broker: &mut Broker, services: &[&str]) {
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success());
    services.iter().for_each(|service| broker.assert_gone(service));
}

/// A broker with that service that is going to die there.
fn armed(failpoint: &str, service: &str) -> Broker {
    armed_in(Setup::new(), failpoint, service)
}

fn armed_in(setup: Setup, failpoint: &str, service: &str) -> Broker {
    // A backoff that is to be seen is not over by then.
    let backoff = if failpoint.ends_with("rest") { "1s" } else { "20ms" };
    let service = kind(service).toml(&format!("[recovery]\nretry_backoff = \"{backoff}\""));
    let mut broker = setup.service(&service).unstarted();
    broker.start_armed(failpoint);
    broker.wait_until_it_answers();
    broker
}

fn killed_on_the_way_to_a_first_start() {
    for_each(&[OF_A_START.as_slice(), &OF_FORKING_AWAY].concat(), &KINDS, |failpoint, service| {
        let mut broker = armed(failpoint, service);
        let mut session = broker.session();
        session.hello(service);
        broker.dies();
        goes_on(&mut broker, service, 1);
    });
}

/// The two kinds of which the service manager keeps something.
const KEPT: [&str; 2] = ["passed", "says"];

/// What is kept of a backend that runs.
fn kept_of(service: &str, generation: &str) -> String {
    match service {
        "passed" => "passed@1.0.0~default.sock".to_owned(),
        service => format!("{service}@1.0.0~default.{generation}.notify"),
    }
}

/// The next broker goes on with what was kept, and nothing else is kept for it.
#[track_caller]
fn goes_on_with_what_was_kept(broker: &mut Broker, service: &str, starts: usize) {
    broker.start_again();
    assert_agreement(broker, &[service]);
    let _ = settled(broker, service);
    let generation = broker.backend(service)["generation"].to_string();
    wait_until("what is of use is kept", || broker.kept() == [kept_of(service, &generation)]);
    let started = broker.starts(service);
    assert!(started.len() <= starts, "{starts} starts were enough: {started:?}");
    ends_with_its_broker(broker, &[service]);
    assert_eq!(broker.kept(), Vec::<String>::new());
}

fn killed_on_the_way_to_a_first_start_of_what_is_kept() {
    for_each(&[OF_A_START.as_slice(), &OF_KEEPING].concat(), &KEPT, |failpoint, service| {
        let mut broker = armed_in(Setup::new().kept(), failpoint, service);
        let mut session = broker.session();
        session.hello(service);
        broker.dies();
        goes_on_with_what_was_kept(&mut broker, service, 1);
    });
}

fn killed_on_the_way_to_the_end_of_what_is_kept() {
    for_each(&[OF_AN_END.as_slice(), &OF_ASKING].concat(), &KEPT, |failpoint, service| {
        let mut broker = armed_in(Setup::new().kept(), failpoint, service);
        let _ = broker.resolve(service);
        let _session = order(&broker, AdminRequest::Stop { selection: all_of(service), deadline_ms: None });
        broker.dies();
        goes_on_with_what_was_kept(&mut broker, service, 2);
    });
}

fn killed_while_it_takes_over_what_was_kept() {
    let on_its_way_out = ["leaving", "before-flush", "after-flush"].map(|name| (name, true));
    for (failpoint, leaves) in
        on_its_way_out.into_iter().chain(["sweep-begun", "sweep-midway", "sweep-done"].map(|name| (name, false)))
    {
        let _case = Case(failpoint, "what was kept");
        let setup = KEPT.iter().fold(Setup::new().kept(), |setup, service| setup.service(&kind(service)));
        let mut broker = setup.start();
        let pids = KEPT.map(|service| settled(&broker, service));
        broker.kill();
        broker.start_armed(failpoint);
        if leaves {
            broker.wait_until_it_answers();
            broker.signal(Signal::SIGTERM);
        }
        broker.dies();
        broker.start_again();
        assert_eq!(KEPT.map(|service| served(&broker, service).0), pids);
        assert_eq!(broker.kept(), KEPT.map(|service| kept_of(service, "1")));
        ends_with_its_broker(&mut broker, &KEPT);
        assert_eq!(broker.kept(), Vec::<String>::new());
    }
}

fn killed_on_the_way_to_a_retry() {
    let second = OF_A_START.map(|name| format!("{name}@2"));
    for_each(&second.each_ref().map(String::as_str), &FEWER, |failpoint, service| {
        let mut broker = armed(failpoint, service);
        let mut session = broker.session();
        let _ = session.hold(service);
        kill(settled(&broker, service));
        broker.dies();
        goes_on(&mut broker, service, 2);
    });
}

fn killed_while_a_backend_is_stopped() {
    for_each(&[OF_AN_END.as_slice(), &OF_ASKING].concat(), &KINDS, |failpoint, service| {
        let mut broker = armed(failpoint, service);
        let _ = broker.resolve(service);
        let _session = order(&broker, AdminRequest::Stop { selection: all_of(service), deadline_ms: None });
        broker.dies();
        goes_on(&mut broker, service, 2);
    });
}

fn killed_while_a_crash_is_worked_off() {
    for_each(&OF_AN_END, &KINDS, |failpoint, service| {
        let mut broker = armed(failpoint, service);
        let mut session = broker.session();
        let _ = session.hold(service);
        kill(settled(&broker, service));
        broker.dies();
        goes_on(&mut broker, service, 2);
    });
}

/// A broker of every kind, each of which runs; their processes.
fn every_kind_runs() -> (Broker, Vec<u64>) {
    let broker = every_kind().start();
    let pids = KINDS.map(|service| settled(&broker, service)).to_vec();
    (broker, pids)
}

/// The next broker has every one of them, as it was.
fn all_are_kept(broker: &mut Broker, pids: &[u64]) {
    broker.start_again();
    assert_agreement(broker, &KINDS);
    for (service, pid) in KINDS.iter().zip(pids) {
        let backend = broker.backend(service);
        assert_eq!((pid_of(&backend), &backend["adopted"]), (*pid, &true.into()), "{backend}");
        let (_, backend) = served(broker, service);
        assert_eq!((pid_of(&backend), &backend["generation"]), (*pid, &1.into()), "{backend}");
        assert_eq!(broker.starts(service).len(), 1);
    }
    ends_with_its_broker(broker, &KINDS);
}

fn killed_while_it_makes_way() {
    for failpoint in ["leaving", "before-flush", "after-flush"] {
        for is_ordered in [false, true] {
            let _case = Case(failpoint, if is_ordered { "an order" } else { "SIGTERM" });
            let (mut broker, pids) = every_kind_runs();
            broker.kill();
            broker.start_armed(failpoint);
            broker.wait_until_it_answers();
            let _session = is_ordered.then(|| order(&broker, AdminRequest::HandOver));
            if !is_ordered {
                broker.signal(Signal::SIGTERM);
            }
            broker.dies();
            all_are_kept(&mut broker, &pids);
        }
    }
}

fn killed_while_it_stops_everything() {
    let of_ends = [OF_AN_END.as_slice(), &OF_ASKING].concat().into_iter().map(|name| format!("{name}@3"));
    for failpoint in of_ends.chain(["leaving", "before-flush", "after-flush"].map(str::to_owned)) {
        let _case = Case(&failpoint, "every kind");
        let mut broker = every_kind().unstarted();
        broker.start_armed(&failpoint);
        broker.wait_until_it_answers();
        KINDS.iter().for_each(|service| drop(broker.resolve(service)));
        broker.signal(Signal::SIGINT);
        broker.dies();
        broker.start_again();
        assert_agreement(&broker, &KINDS);
        for service in KINDS {
            let _ = served(&broker, service);
            assert!(broker.starts(service).len() <= 2);
        }
        assert_agreement(&broker, &KINDS);
        ends_with_its_broker(&mut broker, &KINDS);
    }
}

fn killed_while_it_takes_over_what_lives() {
    let steps = ["before-ready", "after-ready", "before-main", "after-main"].map(|name| format!("{name}@3"));
    for failpoint in ["sweep-begun", "sweep-midway", "sweep-done"].map(str::to_owned).iter().chain(&steps) {
        let _case = Case(failpoint, "every kind");
        let (mut broker, pids) = every_kind_runs();
        broker.kill();
        broker.start_armed(failpoint);
        broker.dies();
        all_are_kept(&mut broker, &pids);
    }
}

/// What died while no broker ran is a crash, once, however many brokers die of it.
fn killed_while_it_takes_over_what_died() {
    let steps = OF_AN_END.into_iter().flat_map(|name| [name.to_owned(), format!("{name}@4")]);
    for failpoint in ["sweep-begun", "sweep-midway", "sweep-done"].map(str::to_owned).into_iter().chain(steps) {
        let _case = Case(&failpoint, "every kind");
        let (mut broker, pids) = every_kind_runs();
        broker.kill();
        pids.iter().copied().for_each(kill);
        wait_until("they are gone", || !pids.iter().any(|&pid| process_exists(pid)));
        broker.start_armed(&failpoint);
        broker.dies();
        broker.start_again();
        assert_agreement(&broker, &KINDS);
        for service in KINDS {
            let backend = broker.backend(service);
            assert_eq!((&backend["crashes_in_window"], &backend["generation"]), (&1.into(), &1.into()), "{backend}");
            let (_, backend) = served(&broker, service);
            assert_eq!(backend["generation"], 2, "{backend}");
            assert_eq!(broker.starts(service).len(), 2);
        }
        assert_agreement(&broker, &KINDS);
        ends_with_its_broker(&mut broker, &KINDS);
    }
}

/// The broker before was told to stop it and did not live to do so.
fn killed_while_it_ends_what_was_to_be_ended() {
    for_each(&[OF_AN_END.as_slice(), &OF_ASKING].concat(), &FEWER, |failpoint, service| {
        let mut broker = armed("after-stopping", service);
        let _ = broker.resolve(service);
        let _session = order(&broker, AdminRequest::Stop { selection: all_of(service), deadline_ms: None });
        broker.dies();
        broker.start_armed(failpoint);
        broker.dies();
        broker.start_again();
        assert_agreement(&broker, &[service]);
        let crashes = &broker.backend(service)["crashes_in_window"];
        assert!(crashes.is_null() || *crashes == 0, "a stop is no crash: {}", broker.backend(service));
        broker.signal(Signal::SIGTERM);
        assert!(broker.ended().success());
        goes_on(&mut broker, service, 2);
    });
}
