//! The long one: many sessions that go on asking while their broker is restarted again and again.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker_client::{Client, Error, Events, Held, Request, SessionEvent};
use broker_tests::{Broker, Service, trials, wait_until};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::{pid, undaunted, who};
use crate::library::block_on_steps;

trials![
    fifty_sessions_live_through_a_hundred_restarts,
    brokers_that_are_hardly_there_when_they_go_cost_no_caller_anything,
];

const SESSIONS: usize = 50;
const RESTARTS: u32 = 100;
const HASTY_RESTARTS: u32 = 60;
const SERVICES: [&str; 3] = ["path", "port", "passed"];

/// How often one that resolves connects, too.
const CONNECTS_EVERY: u64 = 4;

/// Between two requests of a session: fifty that never pause would have the machine to themselves.
const PAUSE: Duration = Duration::from_millis(10);

/// What the events of a session told.
#[derive(Debug, Default)]
struct Told {
    goodbyes: AtomicU32,
    returns: AtomicU32,
}

/// How far a session's own task has come.
#[derive(Debug, Default)]
struct Work {
    rounds: AtomicU64,
    enough: AtomicBool,
    /// For the message, should it go on for too long.
    at: Mutex<String>,
}

impl Work {
    fn is_at(&self, what: String) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

/// A session, what it holds for its whole life, and the task that goes on resolving.
struct Member {
    client: Client,
    service: &'static str,
    held: Held,
    told: Arc<Told>,
    work: Arc<Work>,
    resolving: JoinHandle<HashSet<(&'static str, u64)>>,
}

impl Member {
    async fn join(broker: &Broker, number: usize) -> Self {
        let client = undaunted(broker).jitter_seed(number as u64).connect().await.expect("it accepts");
        let service = SERVICES[number % SERVICES.len()];
        let held = client.resolve(Request::new(service)).await.expect("ready");
        let (told, work) = (Arc::default(), Arc::default());
        tokio::spawn(listen(client.events(), Arc::clone(&told)));
        let resolving = tokio::spawn(go_on(client.clone(), number, Arc::clone(&work)));
        Self { client, service, held, told, work, resolving }
    }

    fn has_returned(&self, times: u32) -> bool {
        self.told.returns.load(Ordering::Relaxed) == times && self.client.is_connected()
    }

    fn rounds(&self) -> u64 {
        self.work.rounds.load(Ordering::Relaxed)
    }
}

async fn listen(mut events: Events, told: Arc<Told>) {
    while let Some(event) = events.next().await {
        match event {
            SessionEvent::GoAway(_) => told.goodbyes.fetch_add(1, Ordering::Relaxed),
            SessionEvent::Reconnected => told.returns.fetch_add(1, Ordering::Relaxed),
            _ => continue,
        };
    }
}

/// Resolves, holds and releases, round after round. Who answered.
async fn go_on(client: Client, number: usize, work: Arc<Work>) -> HashSet<(&'static str, u64)> {
    let mut answered = HashSet::new();
    while !work.enough.load(Ordering::Relaxed) {
        let round = work.rounds.fetch_add(1, Ordering::Relaxed);
        let service = SERVICES[(number + round as usize) % SERVICES.len()];
        work.is_at(format!("resolving {service}"));
        let held = client.resolve(Request::new(service)).await.expect("no error reaches a caller");
        assert!(held.is_held() && held.service() == service, "{held:?}");
        if round.is_multiple_of(CONNECTS_EVERY) {
            work.is_at(format!("connecting to {}", held.endpoint()));
            match held.connect().await {
                // The daemon may die with its broker in the middle of it, which no session can help.
                Ok(mut stream) => {
                    work.is_at(format!("talking to {}, process {:?}", held.endpoint(), held.pid()));
                    answered.extend(who(&mut stream).await.map(|pid| (service, pid)));
                }
                Err(Error::Endpoint { .. }) => {}
                Err(error) => panic!("an error reached a caller: {error:?}"),
            }
        }
        drop(held);
        tokio::time::sleep(PAUSE).await;
    }
    answered
}

/// Waits until that is so of every session. The message tells of those of whom it is not.
#[track_caller]
fn wait_all(members: &[Member], what: &str, is_so: impl Fn(&Member) -> bool) {
    let missing = Missing { members, what, is_so: &is_so };
    wait_until(missing, || {
        assert!(!members.iter().any(|member| member.resolving.is_finished()), "a task failed");
        members.iter().all(&is_so)
    });
}

struct Missing<'a> {
    members: &'a [Member],
    what: &'a str,
    is_so: &'a dyn Fn(&Member) -> bool,
}

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        for (number, Member { client, told, work, .. }) in
            self.members.iter().enumerate().filter(|(_, member)| !(self.is_so)(member))
        {
            write!(f, "\n  {number} is not: connected {}, {told:?}, {work:?}", client.is_connected())?;
        }
        Ok(())
    }
}

/// A broker with the three services, and the sessions.
async fn crowd() -> (Broker, Vec<Member>) {
    let port = Service::fake("port", &[]).toml("[endpoint]\nkind = \"tcp\"");
    let passed = Service::fake_on_passed_socket("passed", &[]).toml("[readiness]\nprobe = \"socket\"");
    let broker = Broker::start(&[&Service::fake("path", &[]), &port, &passed]);
    let mut members = Vec::new();
    for number in 0..SESSIONS {
        members.push(Member::join(&broker, number).await);
    }
    (broker, members)
}

fn restart(broker: &mut Broker, signal: Signal) {
    broker.signal(signal);
    let status = broker.ended();
    assert!(status.success() || signal == Signal::SIGKILL, "{status}");
    broker.start_again();
}

/// Waits until every session goes on resolving, then ends that, and looks at what is left: what each holds for its life.
async fn settle(broker: &Broker, members: &mut [Member]) {
    let before = members.iter().map(Member::rounds).max().unwrap_or_default();
    wait_all(members, "every session resolves on", |member| member.rounds() > before + 1);
    let mut answered = HashSet::new();
    for member in &mut *members {
        member.work.enough.store(true, Ordering::Relaxed);
        answered.extend((&mut member.resolving).await.expect("no panic"));
    }
    for service in SERVICES {
        let holders = members.iter().filter(|member| member.service == service).count();
        broker.wait_backend(service, "held by its members alone", |b| b["holds"] == holders);
    }
    // And the one that asks; what came and went before may still be counted.
    wait_until("every session is there once", || broker.status()["broker"]["sessions"] == SESSIONS + 1);
    for Member { client, service, held, .. } in &*members {
        assert!(client.is_connected() && held.is_held(), "{held:?}");
        let mut stream = held.connect().await.expect("it serves");
        assert_eq!(who(&mut stream).await.expect("served"), pid(broker, service));
    }
    for (service, pid) in answered {
        let is_start = broker.starts(service).iter().any(|(started, _)| *started == pid);
        assert!(is_start, "{pid} answered for {service}, and is none of its starts");
    }
}

fn fifty_sessions_live_through_a_hundred_restarts() {
    let broker = block_on_steps(async {
        let (mut broker, mut members) = crowd().await;
        for number in 0..RESTARTS {
            wait_all(&members, "every session is back", |member| member.has_returned(number));
            restart(&mut broker, if number % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        }
        wait_all(&members, "every session is back", |member| member.has_returned(RESTARTS));
        settle(&broker, &mut members).await;
        for member in &members {
            let goodbyes = member.told.goodbyes.load(Ordering::Relaxed);
            assert_eq!(goodbyes, RESTARTS / 2, "each SIGTERM was announced to each session, once");
        }
        broker
    });
    for service in SERVICES {
        broker.wait_backend(service, "held by nobody", |b| b["holds"] == 0);
    }
    assert_each_was_started_once(&broker);
}

/// Nobody waits until all sessions are back: brokers go while holds are being taken again and backends start.
fn brokers_that_are_hardly_there_when_they_go_cost_no_caller_anything() {
    let broker = block_on_steps(async {
        let (mut broker, mut members) = crowd().await;
        for number in 0..HASTY_RESTARTS {
            let some = number as usize * 7 % SESSIONS;
            wait_until(format_args!("{some} sessions are connected"), || {
                members.iter().filter(|member| member.client.is_connected()).count() >= some
            });
            restart(&mut broker, if number % 3 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        }
        wait_all(&members, "every session is connected", |member| member.client.is_connected());
        settle(&broker, &mut members).await;
        broker
    });
    for service in SERVICES {
        broker.wait_backend(service, "held by nobody", |b| b["holds"] == 0);
    }
    assert_each_was_started_once(&broker);
}

/// Whatever became of the brokers, each backend went on.
fn assert_each_was_started_once(broker: &Broker) {
    for service in SERVICES {
        assert_eq!(broker.starts(service).len(), 1, "{service}");
    }
}
