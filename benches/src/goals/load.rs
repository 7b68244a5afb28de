//! A load without a measurement: something for `perf` and `strace` to look at.

use std::time::{Duration, Instant};

use broker_proto::{Delivery, ServerMessage};

use super::cold::through;
use super::throughput::{CLIENTS, hellos, open};
use crate::args::Load;
use crate::broker::{Broker, Kind, Service, Warm, facts_of};
use crate::children::say;
use crate::client::{Kept, Key, exchange, exchange_for_descriptor, frame};
use crate::programs::Programs;
use crate::swarm;

const LASTING: Duration = Duration::from_secs(10);

/// How long many clients are at it in one go.
const SLICE: Duration = Duration::from_millis(500);

pub(crate) fn load(programs: &Programs, kind: Load) {
    let broker = Broker::start(programs, &[Service::new("load", Kind::Unix, &programs.daemon)]);
    let key = Key::new("load", "default");
    let delivery = if kind == Load::Connected { Delivery::Connected } else { Delivery::Endpoint };
    let (held, negotiated) = broker.hold(&key);
    let warm = Warm::of(&key, &negotiated, 1, delivery);
    // As if nobody else were there: the last session that ends has its own price.
    drop(held);
    let socket = broker.socket();
    say(&format!("brokerd is process {}", broker.pid()));
    let mut answers = Vec::new();
    let mut request: Box<dyn FnMut(u64) -> usize> = match kind {
        Load::Connect => Box::new(|_| once(exchange(&socket, &warm.opening, &warm.opening_answer))),
        Load::Connected => Box::new(|_| once(exchange_for_descriptor(&socket, &warm.opening, &warm.opening_answer))),
        Load::Kept => {
            let mut kept = Kept::with_broker(&socket, &warm.opening, &warm.opening_answer);
            let releasing = [&warm.release[..], &warm.frame].concat();
            Box::new(move |_| once(kept.exchange(&releasing, &warm.answer)))
        }
        Load::Many => Box::new(|_| {
            let hello = (&warm.opening[..], &warm.opening_answer[..]);
            swarm::reconnecting(&socket, CLIENTS, SLICE, hello, &mut answers);
            answers.drain(..).count()
        }),
        Load::ManyKept => {
            let (hellos, heartbeat) = (hellos(&key, &negotiated), frame(&ServerMessage::Heartbeat));
            Box::new(move |_| {
                swarm::kept(open(&socket), SLICE, &hellos, &heartbeat, &mut answers);
                answers.drain(..).count()
            })
        }
        Load::Cold => Box::new(|count| {
            through(&broker, &Key::new("load", format!("load{count}")));
            1
        }),
    };
    let (began, mut turns, mut count) = (Instant::now(), 0, 0);
    while began.elapsed() < LASTING {
        count += request(turns);
        turns += 1;
        if turns % 64 == 0 {
            // A backend that accepts what is handed out is given the time for it.
            facts_of(&negotiated.endpoint).expect("the backend answers");
        }
    }
    say(&format!("{count} Hellos in {:.1} s", began.elapsed().as_secs_f64()));
}

/// A request that took so long.
fn once(_took: u64) -> usize {
    1
}
