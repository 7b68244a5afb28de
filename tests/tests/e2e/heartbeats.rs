//! Signs of life: to every session that reads, on one timer, and none for those who are not there.

use std::fs;
use std::path::PathBuf;

use broker_proto::{AdminRequest, ClientMessage, HEARTBEAT_INTERVAL, ServerMessage};
use broker_tests::{Broker, Service, Session, Setup, trials, wait_until};
use nix::sys::signal::Signal;

trials![
    a_peer_that_does_not_read_has_one_to_read_and_keeps_its_session,
    a_peer_that_owes_its_reading_is_sent_none_in_between,
    every_session_hears_from_the_broker_again_and_again,
    a_connection_that_has_not_said_what_it_speaks_hears_nothing,
    a_broker_that_was_stopped_gives_signs_of_life_again,
    without_a_session_nothing_wakes_the_broker,
    a_broker_that_stays_awake_after_an_answer_sleeps_in_the_end,
];

/// A session that has its preamble and was heard.
fn session(broker: &Broker) -> Session {
    let mut session = broker.session();
    session.ping();
    session
}

/// What the kernel says of the broker's one timer: `ticks: 0`, `it_value: (2, 417)` and more.
pub(crate) fn timer(broker: &Broker) -> String {
    let process = PathBuf::from(format!("/proc/{}", broker.pid()));
    let mut entries = fs::read_dir(process.join("fd")).expect("brokerd runs").flatten();
    let is_timer = |path: PathBuf| fs::read_link(path).is_ok_and(|to| to.as_os_str() == "anon_inode:[timerfd]");
    let timer = entries.find(|entry| is_timer(entry.path())).expect("a timer");
    fs::read_to_string(process.join("fdinfo").join(timer.file_name())).expect("it is open")
}

pub(crate) fn is_set(broker: &Broker) -> bool {
    !timer(broker).contains("it_value: (0, 0)")
}

/// Whether the broker sleeps on but for what it looks at while daemons run, every ten seconds at most.
pub(crate) fn rests(broker: &Broker) -> bool {
    let timer = timer(broker);
    let left = timer.split("it_value: (").nth(1).and_then(|rest| rest.split(',').next());
    let seconds: u64 = left.and_then(|left| left.parse().ok()).expect("whole seconds");
    !is_set(broker) || seconds > 2 * HEARTBEAT_INTERVAL.as_secs()
}

fn every_session_hears_from_the_broker_again_and_again() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut sessions: Vec<Session> = (0..100).map(|_| session(&broker)).collect();
    for _ in 0..3 {
        sessions.iter_mut().for_each(|session| session.wait_heartbeats(1));
    }
    assert!(sessions.iter().all(|session| session.aside.is_empty()), "nothing else is said");
    assert_eq!(sessions[0].hold("x").generation, 1);
}

fn a_connection_that_has_not_said_what_it_speaks_hears_nothing() {
    let mut broker = Setup::new().config("[limits]\nfirst_message_timeout = \"1h\"\n").start();
    let mut silent = Session::silent(&broker.socket());
    session(&broker).wait_heartbeats(1);
    broker.signal(Signal::SIGTERM);
    assert_eq!((silent.closed(), silent.heartbeats), (vec![], 0));
    assert!(broker.ended().success());
}

fn a_peer_that_does_not_read_has_one_to_read_and_keeps_its_session() {
    let broker = Broker::start(&[]);
    let (mut sleeper, mut reader) = (session(&broker), session(&broker));
    let before = sleeper.heartbeats;
    reader.wait_heartbeats(4);
    sleeper.ping();
    // The next one may come while it reads the first.
    let unread = sleeper.heartbeats - before;
    assert!((1..=2).contains(&unread), "{unread} were waiting for it");
    sleeper.wait_heartbeats(1);
}

fn a_peer_that_owes_its_reading_is_sent_none_in_between() {
    const REPORTS: u64 = 2000;
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let (mut sleeper, mut reader) = (session(&broker), session(&broker));
    for request_id in 1..=REPORTS {
        sleeper.send(&ClientMessage::Admin { request_id, request: AdminRequest::Status });
    }
    reader.wait_heartbeats(3);
    let before = sleeper.heartbeats;
    for expected in 1..=REPORTS {
        let message = sleeper.receive().expect("the session goes on");
        let ServerMessage::AdminReply { request_id, .. } = message else { panic!("the broker said {message:?}") };
        assert_eq!(request_id, expected);
    }
    let among = sleeper.heartbeats - before;
    assert!(among <= 2, "{among} among what was not read");
    sleeper.wait_heartbeats(1);
}

fn a_broker_that_was_stopped_gives_signs_of_life_again() {
    let broker = Broker::start(&[]);
    let mut session = session(&broker);
    broker.signal(Signal::SIGSTOP);
    wait_until("the time for one has come", || timer(&broker).contains("ticks: 1"));
    broker.signal(Signal::SIGCONT);
    session.wait_heartbeats(2);
}

fn without_a_session_nothing_wakes_the_broker() {
    let broker = Broker::start(&[]);
    wait_until("the timer rests", || !is_set(&broker));
    let first = session(&broker);
    assert!(is_set(&broker), "{}", timer(&broker));
    let others: Vec<Session> = (0..50).map(|_| session(&broker)).collect();
    drop(first);
    assert!(is_set(&broker), "others are there");
    drop(others);
    wait_until("the timer rests again", || !is_set(&broker));
}

fn a_broker_that_stays_awake_after_an_answer_sleeps_in_the_end() {
    let broker = Setup::new().config("busy_poll = \"1ms\"\n").service(&Service::fake("x", &[])).start();
    let mut session = session(&broker);
    for _ in 0..100 {
        let id = session.hello("x");
        session.answer(id).expect("ready");
        session.release(id);
    }
    let sleeps = || fs::read_to_string(format!("/proc/{}/stat", broker.pid())).is_ok_and(|stat| stat.contains(") S "));
    // One that does not is never seen asleep: it gives its processor up and takes it again.
    wait_until("it sleeps", sleeps);
    drop(session);
    wait_until("the timer rests", || rests(&broker));
}
