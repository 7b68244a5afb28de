//! Goal 9: what the journal costs a cold start, and that a warm Hello touches no file.
//!
//! The broker has no switch that turns its journal off. One whose file cannot be opened works from memory and waits for no
//! disk, so the same cold start in turns through both is the price of writing.

use std::collections::BTreeMap;
use std::time::Duration;

use broker_proto::Delivery;

use super::cold::{service_name, through};
use crate::broker::{Broker, Kind, Service, Warm};
use crate::client::{Kept, Key, exchange, wait_until};
use crate::report::{Bound, Row, Unit};
use crate::strace::{Call, trace};
use crate::world::World;

/// Warm Hellos whose system calls are looked at.
const HELLOS: usize = 200;

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let name = service_name(Kind::Notify, Duration::ZERO);
    let services = [Service::new(&name, Kind::Notify, &world.programs.daemon)];
    let broker = Broker::start(&world.programs, &services);
    vec![cold(world, &broker, &services), warm(&broker, &name, Way::Connect), warm(&broker, &name, Way::Keep)]
}

fn cold(world: &World, sound: &Broker, services: &[Service]) -> Row {
    let broken = Broker::with_broken_journal(&world.programs, services);
    let has_none = |broker: &Broker| broker.log().contains("the journal cannot be written");
    // The log is written by a thread of its own.
    wait_until("one of the two has said that it has no journal", || has_none(&broken));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..=world.args.pick(60, 200) {
        let key = Key::new(&services[0].name, format!("journal{round}"));
        let mut took = [0.0; 2];
        for turn in [round % 2, (round + 1) % 2] {
            took[turn] = through([&broken, sound][turn], &key).whole;
        }
        if round > 0 {
            without.push(took[0]);
            with.push(took[1]);
        }
    }
    assert!(!has_none(sound), "the other one has");
    Row::difference(9, "a cold start with the journal, over one without", Unit::Time, &without, &with)
        .bound(Bound::AtMost(0.3e6))
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Connect,
    Keep,
}

fn warm(broker: &Broker, name: &str, way: Way) -> Row {
    let what = match way {
        Way::Connect => "file system calls per warm Hello, a connection for each",
        Way::Keep => "file system calls per warm Hello, kept session",
    };
    let key = Key::new(name, "default");
    let (_held, negotiated) = broker.hold(&key);
    let warm = Warm::of(&key, &negotiated, 1, Delivery::Endpoint);
    let releasing = [&warm.release[..], &warm.frame].concat();
    let socket = broker.socket();
    let hellos = || match way {
        Way::Connect => (0..HELLOS).for_each(|_| {
            exchange(&socket, &warm.opening, &warm.opening_answer);
        }),
        Way::Keep => {
            let mut kept = Kept::with_broker(&socket, &warm.opening, &warm.opening_answer);
            (0..HELLOS).for_each(|_| {
                kept.exchange(&releasing, &warm.answer);
            });
        }
    };
    match trace(broker.pid(), hellos) {
        Ok(calls) => {
            let touching = calls.iter().filter(|call| call.is_on_file).count();
            Row::itself(9, what, Unit::Count, &[touching as f64 / HELLOS as f64])
                .bound(Bound::AtMost(0.0))
                .note(format!("system calls per Hello: {}", summary(&calls)))
        }
        Err(reason) => Row::skipped(9, what, reason),
    }
}

/// How often each call was made per Hello, those apart that are not made for each.
fn summary(calls: &[Call]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for call in calls {
        *counts.entry(&call.name).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count >= HELLOS / 10).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let each = |count: usize| count as f64 / HELLOS as f64;
    let total = each(counts.iter().map(|(_, count)| count).sum());
    let list: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {:.1}", each(*count))).collect();
    format!("{total:.1} ({})", list.join(", "))
}
