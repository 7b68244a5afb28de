//! A broker that has much to remember: 1,000 live backends, and 10,000 entries in its registry.

use std::time::{Duration, Instant};

use broker_proto::{ClientMessage, Code, Delivery, Negotiated};

use super::cold::service_name;
use crate::broker::{Broker, Kind, Service};
use crate::children::say;
use crate::client::{Granted, Key, Session};
use crate::kernel::Memory;
use crate::programs::Programs;
use crate::world::World;

/// Live backends, and those at which the memory is looked at first: until then the heap takes its shape.
pub(crate) const LIVE: usize = 1000;
pub(crate) const LIVE_FIRST: usize = 100;

/// Entries of the registry, those of the live backends among them.
pub(crate) const ENTRIES: usize = 10_000;

/// Hellos that are under way at a time.
const AT_ONCE: usize = 50;

/// A service whose program is missing: its Hello is refused, and its entry remains.
const MISSING: &str = "missing";

pub(crate) struct Large {
    broker: Broker,
    /// It holds all that live.
    _holding: Session,
    pub(crate) live: Vec<(Key, Negotiated)>,
    /// With 100 live backends, with 1,000, and with all entries.
    pub(crate) memories: [Memory; 3],
}

impl Large {
    fn make(programs: &Programs) -> Self {
        let name = service_name(Kind::Unix, Duration::ZERO);
        let services = [
            Service::new(&name, Kind::Unix, &programs.daemon),
            Service::new(MISSING, Kind::Unix, "/nonexistent/program".as_ref()),
        ];
        let (broker, began) = (Broker::start(programs, &services), Instant::now());
        let mut holding = broker.session();
        let key = |number| Key::new(&name, format!("live{number}"));
        let mut live: Vec<(Key, Negotiated)> = Vec::new();
        let mut memories = [Memory::default(); 3];
        for (at, until) in [LIVE_FIRST, LIVE].into_iter().enumerate() {
            let keys: Vec<Key> = (live.len()..until).map(key).collect();
            let answers = ask(&mut holding, &keys, live.len());
            let negotiated = answers.into_iter().map(|answer| answer.expect("a backend"));
            live.extend(keys.into_iter().zip(negotiated));
            memories[at] = Memory::of(broker.pid());
        }
        let mut session = broker.session();
        let keys: Vec<Key> = (LIVE..ENTRIES).map(|number| Key::new(MISSING, format!("entry{number}"))).collect();
        for answer in ask(&mut session, &keys, 0) {
            assert_eq!(answer.expect_err("there is no such program").code, Code::SpawnFailed);
        }
        memories[2] = Memory::of(broker.pid());
        say(&format!("made a broker with {LIVE} live backends of {ENTRIES} entries in {:.0?}", began.elapsed()));
        Self { broker, _holding: holding, live, memories }
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memories[2]
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.broker.kill();
    }
}

/// Says Hello for each key, many at a time.
fn ask(session: &mut Session, keys: &[Key], first: usize) -> Vec<Granted> {
    let mut answers = Vec::new();
    for (chunk, keys) in keys.chunks(AT_ONCE).enumerate() {
        let number = |at: usize| u64::try_from(first + chunk * AT_ONCE + at + 1).expect("a small number");
        for (at, key) in keys.iter().enumerate() {
            session.send(&ClientMessage::Hello(key.hello(number(at), Delivery::Endpoint)));
        }
        answers.extend(session.answers(number(0)..number(keys.len())));
    }
    answers
}

impl World {
    /// The large broker, made when it is first needed.
    pub(crate) fn large(&mut self) -> &Large {
        let Self { programs, large, .. } = self;
        large.get_or_insert_with(|| Large::make(programs))
    }
}
