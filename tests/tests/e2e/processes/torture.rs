//! Durable processes under random deaths and stops. A failure names the seed that repeats it.

use std::thread;
use std::time::Duration;

use broker_tests::{Broker, processes_mentioning, trials, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::sharing::{Store, counts, note};
use super::{ended, run, sh, spec};

trials![brokers_that_come_and_go_run_each_process_once, attempts_never_overlap_whoever_dies];

/// Short leases, and more to do than can be done at once.
const SETTINGS: &str = "lease = \"200ms\"\nconcurrent = 4";

/// Random numbers that a seed repeats (Steele, Lea and Flood: SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// The random numbers of a test, and what repeats it.
fn random() -> (Random, String) {
    let given = std::env::var("BROKER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(broker_tests::monotonic_ms);
    (Random(seed), format!("BROKER_TEST_SEED={seed}"))
}

/// Something bad happens to a broker.
fn disturb(broker: &mut Broker, random: &mut Random) {
    let pause = Duration::from_millis(random.below(100));
    match random.below(4) {
        0 | 1 => {
            broker.signal(Signal::SIGKILL);
            broker.ended();
            broker.start_again();
        }
        2 => {
            broker.signal(Signal::SIGTERM);
            assert!(broker.ended().success());
            broker.start_again();
        }
        // Anywhere, past its leases or not.
        _ => {
            broker.signal(Signal::SIGSTOP);
            thread::sleep(pause * 4);
            broker.signal(Signal::SIGCONT);
        }
    }
    thread::sleep(pause);
}

fn brokers_that_come_and_go_run_each_process_once() {
    const COUNT: usize = 120;
    const FAULTS: usize = 30;
    let (mut random, what) = random();
    let store = Store::new();
    let runs = store.path("runs");
    let mut brokers = [store.broker(SETTINGS), store.broker(SETTINGS)];
    let mut session = brokers[0].session();
    for number in 0..COUNT {
        let script = format!("{}; sleep 0.0{}", note(&runs), random.below(10));
        run(&mut session, spec(&format!("x{number}"), sh(&script)));
    }
    drop(session);
    for _ in 0..FAULTS {
        let broker = &mut brokers[usize::from(random.below(2) == 0)];
        disturb(broker, &mut random);
    }
    for number in 0..COUNT {
        let process = ended(&mut brokers[number % 2].session(), &format!("x{number}"));
        assert_eq!((&process["state"], &process["attempt"]), (&"succeeded".into(), &1.into()), "{what}: {process}");
    }
    let counts = counts(&runs);
    assert_eq!(counts.len(), COUNT, "{what}");
    assert!(counts.values().all(|count| *count == 1), "{what}: {counts:?}");
}

/// Each attempt holds a lock of its own making, which its children inherit: so does whatever should not be left of it.
fn attempts_never_overlap_whoever_dies() {
    const COUNT: usize = 40;
    const FAULTS: usize = 40;
    let (mut random, what) = random();
    let store = Store::new();
    let (runs, overlaps) = (store.path("runs"), store.path("overlaps"));
    let mut brokers = [store.broker(SETTINGS), store.broker(SETTINGS)];
    let mut session = brokers[0].session();
    for number in 0..COUNT {
        let script = format!(
            "echo $BROKER_PROCESS_ID $BROKER_PROCESS_ATTEMPT >> {runs}; exec 9> {lock}; \
             flock -n 9 || echo $BROKER_PROCESS_ID $BROKER_PROCESS_ATTEMPT >> {overlaps}; \
             sleep 1000 & setsid sleep 1000 & while [ ! -e {gate} ]; do sleep 0.02; done; sleep 0.{pause}",
            runs = runs.display(),
            overlaps = overlaps.display(),
            lock = store.path(&format!("lock.{number}")).display(),
            gate = store.path("gate").display(),
            pause = random.below(6),
        );
        let mut often = spec(&format!("x{number}"), sh(&script));
        often.max_attempts = Some(1000);
        run(&mut session, often);
    }
    drop(session);
    // Both run as many as they may, or more where one has passed a slow other over; all of those wait at the gate.
    wait_until("as many run as may", || counts(&runs).len() >= 8);
    for fault in 0..FAULTS {
        if fault == FAULTS / 4 {
            std::fs::write(store.path("gate"), "").expect("it can be written");
        }
        if fault > 0 && random.below(3) == 0 {
            let broker = &mut brokers[usize::from(random.below(2) == 0)];
            disturb(broker, &mut random);
        } else {
            let reapers = || -> Vec<i32> {
                let all = processes_mentioning(store.0.path()).into_iter();
                all.filter(|(_, command)| command.contains("@reap")).map(|(pid, _)| pid).collect()
            };
            let found = reapers();
            if !found.is_empty() {
                let at = usize::try_from(random.below(found.len() as u64)).expect("an index");
                let _ = kill(Pid::from_raw(found[at]), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(random.below(50)));
        }
    }
    for number in 0..COUNT {
        let process = ended(&mut brokers[number % 2].session(), &format!("x{number}"));
        assert_eq!(process["state"], "succeeded", "{what}: {process}");
    }
    assert!(!overlaps.exists(), "{what}: {:?}", counts(&overlaps));
    let counts = counts(&runs);
    assert!(counts.values().all(|count| *count == 1), "{what}: an attempt is begun once: {counts:?}");
    assert!(counts.len() > COUNT, "{what}: some attempts were lost");
    let left = processes_mentioning(store.0.path());
    assert!(left.iter().all(|(_, command)| command.contains("brokerd --socket")), "{what}: {left:?}");
}
