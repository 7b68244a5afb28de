//! Twenty clients that go on asking, and brokers that go on dying, at moments that a seed picks.
//!
//! `BROKER_TORTURE_SEED` replays what was done; what came of it is the machine's affair. `BROKER_TORTURE_ROUNDS` makes it
//! shorter or longer.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use broker_client::{Client, Error, Request};
use broker_proto::{AdminRequest, ClientMessage, Code};
use broker_tests::{Broker, Session, Setup, trials, wait_until};
use fastrand::Rng;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::agreement::{assert_agreement, assert_no_screams, roots};
use super::everywhere::{OF_A_START, OF_AN_END, OF_ASKING, OF_FORKING_AWAY, OF_THE_BROKER};
use super::{KINDS, kind};
use crate::healing::{undaunted, who};
use crate::library::block_on_steps;

trials![nothing_is_lost_or_started_twice_however_often_the_broker_dies];

const CLIENTS: u64 = 20;
const ROUNDS: u64 = 500;
/// How often all that is there is looked at.
const ROUNDS_PER_CHECK: u64 = 50;
/// How long a broker is left alone at most, twice in a round.
const PEACE_MAX_US: u64 = 60_000;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(15);

/// One that goes on asking.
struct Asker {
    client: Client,
    work: Arc<Work>,
    task: JoinHandle<u64>,
}

/// How far it has come.
#[derive(Debug, Default)]
struct Work {
    rounds: AtomicU64,
    enough: AtomicBool,
    /// For the message, should it come no further.
    at: Mutex<String>,
}

impl Work {
    fn is_at(&self, what: String) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

impl Asker {
    async fn new(broker: &Broker, seed: u64) -> Self {
        let client = undaunted(broker).jitter_seed(seed).connect().await.expect("it accepts");
        let work = Arc::<Work>::default();
        let task = tokio::spawn(ask(client.clone(), Rng::with_seed(seed), Arc::clone(&work)));
        Self { client, work, task }
    }
}

/// Asks until it is told that it is enough. How often it was served by a backend.
async fn ask(client: Client, mut rng: Rng, work: Arc<Work>) -> u64 {
    let mut served = 0;
    while !work.enough.load(Ordering::Relaxed) {
        let service = rng.choice(KINDS).expect("there are some");
        work.is_at(format!("resolving {service}"));
        match client.resolve(Request::new(service)).await {
            Ok(held) if rng.u8(..4) == 0 => match held.connect().await {
                // The backend may be killed in the middle of it.
                Ok(mut stream) => {
                    work.is_at(format!("talking to {service}, process {:?}", held.pid()));
                    served += u64::from(who(&mut stream).await.is_ok());
                }
                Err(Error::Endpoint { .. } | Error::Refused(_)) => {}
                Err(error) => panic!("an error reached a caller: {error:?}"),
            },
            Ok(_) => {}
            // It was killed twice in a row.
            Err(Error::Refused(refusal)) if refusal.code == Code::BackendUnavailable => {}
            Err(error) => panic!("an error reached a caller: {error:?}"),
        }
        work.rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    served
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// A broker lives and dies.
fn round(broker: &mut Broker, rng: &mut Rng) {
    let all = [OF_A_START.as_slice(), &OF_FORKING_AWAY, &OF_AN_END, &OF_ASKING, &OF_THE_BROKER].concat();
    let failpoint = format!("{}@{}", rng.choice(all).expect("there are some"), rng.u8(1..6));
    broker.start_armed(if rng.bool() { &failpoint } else { "" });
    let peace = |rng: &mut Rng| thread::sleep(Duration::from_micros(rng.u64(..PEACE_MAX_US)));
    peace(rng);
    for _ in 0..rng.u8(..3) {
        // A daemon whose workers are killed and which does not end serves nobody, and no broker can tell.
        let mains = roots(&broker.processes(rng.choice(KINDS).expect("there are some")));
        if let Some(pid) = rng.choice(mains) {
            // It may have ended by now, and nobody else has had its number since.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    peace(rng);
    match rng.u8(..4) {
        0 => broker.signal(Signal::SIGTERM),
        1 if Session::try_open(&broker.socket()).is_ok_and(|mut session| ask_to_go(&mut session)) => {}
        _ => broker.signal(Signal::SIGKILL),
    }
    let _ = broker.ended();
}

/// Whether the broker was there to be asked. It may die before it answers.
fn ask_to_go(session: &mut Session) -> bool {
    let request = AdminRequest::HandOver;
    session.try_ping().is_ok() && session.try_send(&ClientMessage::Admin { request_id: 1, request }).is_ok()
}

/// Those who come no further.
struct Late<'a>(&'a RefCell<Vec<Arc<Work>>>);

impl fmt::Display for Late<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every client goes on; these do not: {:#?}", self.0.borrow())
    }
}

/// Every client is served on, and all agrees.
fn check(broker: &Broker, askers: &[Asker]) {
    let before: Vec<u64> = askers.iter().map(|asker| asker.work.rounds.load(Ordering::Relaxed)).collect();
    let late = RefCell::new(Vec::new());
    wait_until(Late(&late), || {
        assert!(!askers.iter().any(|asker| asker.task.is_finished()), "a client's task failed");
        let is_late = |(asker, before): &(&Asker, &u64)| asker.work.rounds.load(Ordering::Relaxed) <= **before + 1;
        late.replace(askers.iter().zip(&before).filter(is_late).map(|(asker, _)| Arc::clone(&asker.work)).collect());
        late.borrow().is_empty()
    });
    assert_agreement(broker, &KINDS);
}

#[expect(clippy::print_stderr, reason = "the seed, and how long it took")]
fn nothing_is_lost_or_started_twice_however_often_the_broker_dies() {
    let seed = number("BROKER_TORTURE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = number("BROKER_TORTURE_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("the torture: BROKER_TORTURE_SEED={seed}");
    let recovery = "[recovery]\nretry_backoff = \"10ms\"\nbudget_window = \"200ms\"\nhealthy_after = \"100ms\"";
    let services = KINDS.map(|name| kind(name).toml(recovery));
    let setup = services.iter().fold(Setup::new(), Setup::service);
    let mut broker = setup.start();
    let mut rng = Rng::with_seed(seed);
    let began = Instant::now();
    let served = block_on_steps(async {
        let mut askers = Vec::new();
        for _ in 0..CLIENTS {
            askers.push(Asker::new(&broker, rng.u64(..)).await);
        }
        for number in 1..=rounds {
            if number == 1 {
                check(&broker, &askers);
                broker.kill();
            }
            round(&mut broker, &mut rng);
            assert_no_screams(&broker);
            if number % ROUNDS_PER_CHECK == 0 || number == rounds {
                broker.start_again();
                check(&broker, &askers);
                if number < rounds {
                    broker.kill();
                }
            }
        }
        let mut served = 0;
        for asker in askers {
            asker.work.enough.store(true, Ordering::Relaxed);
            served += asker.task.await.expect("no panic");
            assert!(asker.client.is_connected());
        }
        served
    });
    assert_agreement(&broker, &KINDS);
    let starts: usize = KINDS.iter().map(|service| broker.starts(service).len()).sum();
    eprintln!("the torture: {rounds} rounds in {:?}, {starts} starts, served {served} times", began.elapsed());
}
