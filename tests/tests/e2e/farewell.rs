//! A broker that leaves closes no connection over what its peer has said: nobody sees a reset.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use broker_proto::{Code, Preamble, ServerMessage};
use broker_tests::{Asked, BOUND, Broker, Service, Session, Setup, trials, wait_until};
use nix::sys::signal::Signal;

use crate::library::{block_on, client};

trials![
    nobody_who_asks_without_pause_is_reset_by_a_broker_that_leaves,
    a_hello_that_crosses_the_goodbye_is_answered_and_the_stream_ends,
    who_waits_to_be_let_in_is_told_too,
    who_talks_on_and_never_reads_sees_the_end_all_the_same,
    clients_that_close_at_the_goodbye_cost_no_time,
    who_is_turned_away_sees_the_end_of_the_stream,
];

/// How a broker leaves.
const WAYS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Has the broker find all of it at once: what is done here, and then the signal.
fn at_once(broker: &Broker, signal: Signal, first: impl FnOnce()) {
    broker.signal(Signal::SIGSTOP);
    first();
    broker.signal(signal);
    broker.signal(Signal::SIGCONT);
}

fn is_goodbye(message: &ServerMessage) -> bool {
    matches!(message, ServerMessage::GoAway { .. })
}

fn a_hello_that_crosses_the_goodbye_is_answered_and_the_stream_ends() {
    for signal in WAYS {
        let mut broker = Broker::start(&[&Service::fake("x", &[])]);
        let mut sessions: Vec<Session> = (0..20).map(|_| broker.session()).collect();
        sessions.iter_mut().for_each(Session::ping);
        let mut ids = Vec::new();
        at_once(&broker, signal, || ids.extend(sessions.iter_mut().map(|session| session.hello("x"))));
        for (session, id) in sessions.iter_mut().zip(ids) {
            if let Err(refusal) = session.answer(id) {
                assert_eq!(refusal.code, Code::ShuttingDown, "{refusal:?}");
            }
            let said = session.end_of_stream().expect("no reset");
            assert!(session.aside.iter().chain(&said).any(is_goodbye), "{said:?}, {:?}", session.aside);
        }
        drop(sessions);
        assert!(broker.ended().success());
        broker.may_leave_processes();
    }
}

fn who_waits_to_be_let_in_is_told_too() {
    for signal in WAYS {
        let mut broker = Broker::start(&[&Service::fake("x", &[])]);
        let mut waiting: Vec<Session> = Vec::new();
        at_once(&broker, signal, || {
            waiting = (0..50).map(|_| broker.session()).collect();
            for session in &mut waiting {
                session.hello("x");
            }
        });
        for session in &mut waiting {
            let said = session.end_of_stream().expect("no reset");
            assert!(said.iter().any(is_goodbye), "{said:?}");
            let is_answer = |message: &ServerMessage| {
                matches!(message, ServerMessage::Refused { request_id: 1, .. } | ServerMessage::Negotiated(_))
            };
            assert!(said.iter().any(is_answer), "{said:?}");
        }
        drop(waiting);
        assert!(broker.ended().success());
        broker.may_leave_processes();
    }
}

/// It is told to read, and does not; it is told to close, and does not: that is the end of it, and not a reset.
fn who_talks_on_and_never_reads_sees_the_end_all_the_same() {
    for signal in WAYS {
        let mut broker = Broker::start(&[]);
        let mut stream = UnixStream::connect(broker.socket()).expect("it accepts");
        stream.write_all(&Preamble::writing(1).to_bytes()).expect("it reads");
        let mut writer = stream.try_clone().expect("a descriptor");
        let talking = thread::spawn(move || {
            // A Ping with nonce 0.
            loop {
                if let Err(error) = writer.write_all(&[2, 0, 0, 0, 2, 0]) {
                    return error.kind();
                }
                thread::yield_now();
            }
        });
        wait_until("it is served", || broker.status()["broker"]["sessions"] == 2);
        broker.signal(signal);
        assert!(broker.ended().success());
        assert_eq!(talking.join().expect("no panic"), ErrorKind::BrokenPipe);
        stream.set_read_timeout(Some(BOUND)).expect("a socket");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("no reset");
        assert!(!said.is_empty());
    }
}

fn clients_that_close_at_the_goodbye_cost_no_time() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    block_on(async {
        let mut clients = Vec::new();
        for _ in 0..20 {
            let client = client(&broker).await;
            let held = client.resolve(broker_client::Request::new("x")).await.expect("ready");
            clients.push((client, held));
        }
        broker.signal(Signal::SIGTERM);
        assert!(broker.ended().success());
    });
    assert!(!broker.log().contains("have not closed their sessions"), "all have");
    broker.may_leave_processes();
}

fn who_is_turned_away_sees_the_end_of_the_stream() {
    let broker = Setup::new().config("[limits]\nsessions_per_user = 1\n").service(&Service::fake("x", &[])).start();
    // The one that found out that the broker answers has ended, and the broker may not know that yet.
    let mut first = broker.session();
    wait_until("there is room for one", || {
        let is_let_in = first.try_ping().is_ok();
        if !is_let_in {
            first = broker.session();
        }
        is_let_in
    });
    for _ in 0..20 {
        broker.signal(Signal::SIGSTOP);
        let mut late = broker.session();
        late.hello("x");
        broker.signal(Signal::SIGCONT);
        let said = late.end_of_stream().expect("no reset");
        let is_refusal = |message: &ServerMessage| matches!(message, ServerMessage::Refused { request_id: 0, refusal } if refusal.code == Code::RateLimited);
        assert!(said.iter().any(is_refusal), "{said:?}");
    }
}

/// What clients without a library see of brokers that leave.
#[derive(Default)]
struct Seen {
    enough: AtomicBool,
    answers: AtomicU32,
    resets: AtomicU32,
    broken: AtomicU32,
}

impl Seen {
    fn failed(&self, error: &io::Error) {
        match error.kind() {
            ErrorKind::ConnectionReset => self.resets.fetch_add(1, Ordering::Relaxed),
            ErrorKind::BrokenPipe => self.broken.fetch_add(1, Ordering::Relaxed),
            // No broker is there just now.
            _ => 0,
        };
    }
}

/// Has the clients end with the trial, however that ends.
struct End<'s>(&'s Seen);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.enough.store(true, Ordering::Relaxed);
    }
}

/// Says Hello after Hello, on one session until it ends, and then on the next.
fn ask_without_pause(socket: &Path, seen: &Seen) {
    while !seen.enough.load(Ordering::Relaxed) {
        let Ok(mut session) = Session::try_open(socket).map_err(|error| seen.failed(&error)) else {
            thread::yield_now();
            continue;
        };
        while !seen.enough.load(Ordering::Relaxed) {
            match session.try_ask("x") {
                Ok(Asked { stays, .. }) => {
                    seen.answers.fetch_add(1, Ordering::Relaxed);
                    if !stays {
                        break;
                    }
                }
                Err(error) => {
                    seen.failed(&error);
                    break;
                }
            }
        }
    }
}

fn nobody_who_asks_without_pause_is_reset_by_a_broker_that_leaves() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let before = broker.resolve("x");
    let seen = Arc::new(Seen::default());
    let _end = End(&seen);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (seen, socket) = (Arc::clone(&seen), broker.socket());
            thread::spawn(move || ask_without_pause(&socket, &seen))
        })
        .collect();
    for _ in 0..10 {
        let answered = seen.answers.load(Ordering::Relaxed);
        wait_until("they are answered", || seen.answers.load(Ordering::Relaxed) > answered + 100);
        broker.hand_over();
    }
    seen.enough.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("no panic"));
    let Seen { resets, broken, .. } = &*seen;
    assert_eq!((resets.load(Ordering::Relaxed), broken.load(Ordering::Relaxed)), (0, 0), "resets and broken pipes");
    let after = broker.resolve("x");
    assert_eq!((&after["pid"], &after["generation"]), (&before["pid"], &before["generation"]));
}
