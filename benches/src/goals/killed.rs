//! Goal 6: a Hello right after the backend was killed.
//!
//! A client does what the library does: it says Hello, connects, and if nobody is there it says Hello again and names the
//! generation that it found dead. A SIGKILL takes the kernel some time, in which the dying process can still be connected
//! to; what counts is whether the client ends up with a backend that answers.

use std::time::{Duration, Instant};

use broker_proto::{Delivery, Negotiated};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::broker::{Broker, Kind, Service, facts_of};
use crate::children::{pidfd_open, signal};
use crate::client::{Key, wait_until};
use crate::facts::monotonic_ns;
use crate::kernel;
use crate::report::{Bound, Row, Unit};
use crate::world::World;

/// A client that has found nobody alive for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause before the one retry. Its default of 250 ms would be all that is measured.
const RETRY_BACKOFF: &str = "[recovery]\nretry_backoff = \"1ms\"\n";

struct Recovered {
    took_ns: f64,
    /// The first answer was a living backend.
    at_once: bool,
}

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let rounds = world.args.pick(100, 1000);
    let mut service = Service::new("killed", Kind::Unix, &world.programs.daemon);
    service.toml = RETRY_BACKOFF.to_owned();
    let broker = Broker::start(&world.programs, &[service]);
    let mut recovered = Vec::new();
    let mut failures = Vec::new();
    for round in 0..rounds {
        let key = Key::new("killed", format!("killed{round}"));
        let (held, negotiated) = broker.hold(&key);
        let facts = facts_of(&negotiated.endpoint).expect("what is ready answers");
        let pid = negotiated.pid.expect("it is known").cast_signed();
        assert_eq!(u64::from(pid.cast_unsigned()), facts.pid);
        let pidfd = pidfd_open(Pid::from_raw(pid)).expect("it lives");
        let began = monotonic_ns();
        signal(&pidfd, Signal::SIGKILL);
        match recover(&broker, &key, facts.pid) {
            Ok(at_once) => recovered.push(Recovered { took_ns: (monotonic_ns() - began) as f64, at_once }),
            Err(reason) => failures.push(format!("round {round}: {reason}")),
        }
        drop(held);
        broker.stop(Some(&key));
    }
    let is_zombie = |(_, state): &(Pid, char)| *state == 'Z';
    wait_until("the dead are reaped", || !kernel::children(broker.pid()).iter().any(is_zombie));
    let stale = broker.endpoint_files();
    let fault = (!stale.is_empty()).then(|| format!("sockets are left: {stale:?}"));
    let share = 100.0 * recovered.len() as f64 / rounds as f64;
    let at_once = recovered.iter().filter(|one| one.at_once).count();
    let took: Vec<f64> = recovered.iter().map(|one| one.took_ns).collect();
    let row =
        Row::itself(6, format!("{rounds} Hellos right after SIGKILL: given a live backend"), Unit::Percent, &[share])
            .bound(Bound::AtLeast(99.9))
            .unless(fault)
            .note("no zombie and no socket was left");
    let row = failures.iter().take(3).fold(row, |row, failure| row.note(failure.clone()));
    vec![
        row,
        Row::itself(6, "the first answer was the live one", Unit::Percent, &[100.0 * at_once as f64 / rounds as f64]),
        Row::itself(6, "from SIGKILL until a new one has answered (retry_backoff of 1 ms)", Unit::Time, &took),
    ]
}

/// Says Hello until what it is given answers. Whether the first did; or why none did.
fn recover(broker: &Broker, key: &Key, dead: u64) -> Result<bool, String> {
    let began = Instant::now();
    let mut found_dead = None;
    while began.elapsed() < PATIENCE {
        let mut hello = key.hello(1, Delivery::Endpoint);
        hello.found_dead = found_dead;
        let Negotiated { endpoint, generation, pid, .. } =
            broker.session().hello(hello).map_err(|refusal| format!("refused: {}", refusal.reason))?;
        match facts_of(&endpoint) {
            Ok(facts) if facts.pid != dead => {
                let expected = (Some(facts.pid), 2);
                let given = (pid.map(u64::from), generation);
                return if given == expected { Ok(found_dead.is_none()) } else { Err(format!("{given:?}")) };
            }
            _ => found_dead = Some(generation),
        }
    }
    Err(format!("no live backend within {PATIENCE:?}"))
}
