//! Restarts under load: systemd holds the socket, so nobody notices but by waiting a little.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use broker_client::{Client, ReconnectConfig, Request};
use broker_proto::Code;
use broker_tests::{Asked, BOUND, Machine, Service, Session, trials, wait_until};

trials![twenty_restarts_under_load_cost_no_connection];

const UNIT: &str = "brokerd.service";
const RESTARTS: u32 = 20;

/// Clients of each kind: one connection for each Hello, one for as long as it lasts, and with the library.
const BRIEF: usize = 15;
const LASTING: usize = 15;
const WITH_LIBRARY: usize = 20;

/// What the clients see.
#[derive(Debug, Default)]
struct Seen {
    enough: AtomicBool,
    answers: AtomicU64,
    /// Those that the library gave.
    of_library: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
    broken: AtomicU64,
    /// Connections that ended before the answer, cleanly, as those do that are told of the end.
    ended: AtomicU64,
    others: AtomicU64,
}

impl Seen {
    fn failed(&self, error: &io::Error) {
        let counter = match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => &self.refused,
            ErrorKind::ConnectionReset => &self.reset,
            ErrorKind::BrokenPipe => &self.broken,
            ErrorKind::UnexpectedEof => &self.ended,
            _ => &self.others,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn is_enough(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    /// Refused, reset, broken, others.
    fn faults(&self) -> [u64; 4] {
        [&self.refused, &self.reset, &self.broken, &self.others].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Has the clients end with the trial, however that ends.
struct End<'s>(&'s Seen);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.enough.store(true, Ordering::Relaxed);
    }
}

/// Goes on asking until that is enough, on new connections where they end. Every Hello is answered in the end: one that
/// was not is said again on the next connection, before anything else.
fn go_on(socket: &Path, seen: &Seen, is_brief: bool) {
    let mut owes = false;
    while owes || !seen.is_enough() {
        let mut session = match Session::try_open(socket) {
            Ok(session) => session,
            Err(error) => {
                seen.failed(&error);
                // Nobody owes anything to a broker that is not there.
                owes &= !seen.is_enough();
                thread::yield_now();
                continue;
            }
        };
        loop {
            owes = true;
            match session.try_ask("x") {
                Ok(Asked { refusal, stays }) => {
                    owes = refusal.is_some();
                    match refusal {
                        Some(refusal) => assert_eq!(refusal.code, Code::ShuttingDown, "{refusal:?}"),
                        None => _ = seen.answers.fetch_add(1, Ordering::Relaxed),
                    }
                    if is_brief || !stays || seen.is_enough() {
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

/// The same with the library, which hides all of it.
fn go_on_with_library(socket: PathBuf, seen: &Seen) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = ReconnectConfig::new(Duration::from_millis(5), Duration::from_millis(50), 3);
        let builder = Client::builder().socket(socket).reconnect(config.expect("sound settings"));
        let client = builder.connect().await.expect("the broker accepts");
        while !seen.is_enough() {
            let pending = client.resolve(Request::new("x"));
            let held =
                tokio::time::timeout(BOUND, pending).await.expect("an answer").expect("no error reaches a caller");
            assert!(held.is_held());
            seen.of_library.fetch_add(1, Ordering::Relaxed);
        }
    });
}

fn twenty_restarts_under_load_cost_no_connection() {
    let machine = Machine::boot();
    machine.service(&Service::fake("x", &[]));
    machine.systemctl(&["start", "brokerd.socket"]);
    let before = machine.resolve("x");
    let seen = Arc::new(Seen::default());
    let client = |number: usize| -> JoinHandle<()> {
        let (seen, socket) = (Arc::clone(&seen), machine.socket());
        thread::spawn(move || match number {
            ..BRIEF => go_on(&socket, &seen, true),
            number if number < BRIEF + LASTING => go_on(&socket, &seen, false),
            _ => go_on_with_library(socket, &seen),
        })
    };
    let _end = End(&seen);
    let clients: Vec<_> = (0..BRIEF + LASTING + WITH_LIBRARY).map(client).collect();
    let answers = || [&seen.answers, &seen.of_library].map(|counter| counter.load(Ordering::Relaxed));
    let has_failed = || clients.iter().any(JoinHandle::is_finished);
    let mut pid = machine.main_pid(UNIT);
    for _ in 0..RESTARTS {
        let before = answers();
        let are_answered = || answers().iter().zip(before).all(|(now, before)| *now > before + 100);
        wait_until("they are answered", || are_answered() || has_failed());
        machine.systemctl(&["restart", UNIT]);
        let now = machine.main_pid(UNIT);
        assert_ne!(now, pid, "it is another one");
        pid = now;
    }
    seen.enough.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("no panic"));
    assert_eq!(seen.faults(), [0; 4], "refused, reset, broken, others: {seen:?}");
    let after = machine.resolve("x");
    assert_eq!((&after["pid"], &after["generation"]), (&before["pid"], &before["generation"]));
    assert_eq!(machine.starts("x").len(), 1);
    assert!(!machine.journal(UNIT).contains("have not closed their sessions"), "all closed in time");
}
