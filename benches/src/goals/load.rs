//! A load without a measurement: something for `perf` and `strace` to look at.

use std::time::{Duration, Instant};

use broker_proto::Delivery;

use super::cold::through;
use crate::args::Load;
use crate::broker::{Broker, Kind, Service, Warm, facts_of};
use crate::children::say;
use crate::client::{Kept, Key, exchange, exchange_for_descriptor};
use crate::programs::Programs;

const LASTING: Duration = Duration::from_secs(10);

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
    let mut kept = (kind == Load::Kept).then(|| Kept::with_broker(&socket, &warm.opening, &warm.opening_answer));
    let releasing = [&warm.release[..], &warm.frame].concat();
    let (began, mut count) = (Instant::now(), 0_u64);
    while began.elapsed() < LASTING {
        match (kind, &mut kept) {
            (Load::Kept, Some(kept)) => kept.exchange(&releasing, &warm.answer),
            (Load::Connected, _) => exchange_for_descriptor(&socket, &warm.opening, &warm.opening_answer),
            (Load::Cold, _) => {
                through(&broker, &Key::new("load", format!("load{count}")));
                0
            }
            (Load::Connect | Load::Kept, _) => exchange(&socket, &warm.opening, &warm.opening_answer),
        };
        count += 1;
        if count % 64 == 0 {
            // A backend that accepts what is handed out is given the time for it.
            facts_of(&negotiated.endpoint).expect("the backend answers");
        }
    }
    say(&format!("{count} Hellos in {:.1} s", began.elapsed().as_secs_f64()));
}
