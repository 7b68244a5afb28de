//! Goal 7: a warm Hello in a large registry beside one in a registry of a single backend.

use std::path::Path;
use std::time::Duration;

use broker_proto::Delivery;

use super::cold::service_name;
use super::large::{ENTRIES, LIVE};
use crate::broker::{Broker, Kind, Service, Warm};
use crate::client::{Kept, Key, exchange};
use crate::contest::{Contender, Placement, Track, contest};
use crate::report::{Bound, Row, Unit};
use crate::world::World;

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let (rounds, requests) = (world.args.pick(15, 41), world.args.pick(1000, 2000));
    let name = service_name(Kind::Unix, Duration::ZERO);
    let small = Broker::start(&world.programs, &[Service::new(&name, Kind::Unix, &world.programs.daemon)]);
    let key = Key::new(&name, "default");
    let (_held, negotiated) = small.hold(&key);
    // The client has as many different bytes in its hands either way.
    let one = vec![Warm::of(&key, &negotiated, 1, Delivery::Endpoint); LIVE];
    let large = world.large();
    let many: Vec<Warm> =
        large.live.iter().map(|(key, negotiated)| Warm::of(key, negotiated, 1, Delivery::Endpoint)).collect();
    let releasing =
        |all: &[Warm]| -> Vec<Vec<u8>> { all.iter().map(|warm| [&warm.release[..], &warm.frame].concat()).collect() };
    let (one_releasing, many_releasing) = (releasing(&one), releasing(&many));
    let (small_socket, large_socket) = (small.socket(), large.broker().socket());
    let (small, large) = (small.pid(), large.broker().pid());

    let connect = |socket: &Path, all: &[Warm], out: &mut Vec<u64>| {
        let turns = all.iter().cycle().take(requests);
        out.extend(turns.map(|warm| exchange(socket, &warm.opening, &warm.opening_answer)));
    };
    let keep = |socket: &Path, all: &[Warm], releasing: &[Vec<u8>], out: &mut Vec<u64>| {
        let mut kept = Kept::with_broker(socket, &all[0].opening, &all[0].opening_answer);
        let turns = all.iter().zip(releasing).cycle().take(requests);
        out.extend(turns.map(|(warm, releasing)| kept.exchange(releasing, &warm.answer)));
    };
    let same = vec![many[0].clone(); LIVE];
    let connects = contest(
        rounds,
        Placement::Apart,
        &mut [
            Contender::new(small, |out| connect(&small_socket, &one, out)),
            Contender::new(large, |out| connect(&large_socket, &same, out)),
            Contender::new(large, |out| connect(&large_socket, &many, out)),
        ],
    );
    let kept = contest(
        rounds,
        Placement::Together,
        &mut [
            Contender::new(small, |out| keep(&small_socket, &one, &one_releasing, out)),
            Contender::new(large, |out| keep(&large_socket, &many, &many_releasing, out)),
        ],
    );
    let compare = |what: &str, baseline: &Track, ours: &Track, bound| {
        let (baseline, ours) = (baseline.each(|slice| slice.at(50)), ours.each(|slice| slice.at(50)));
        Row::ratio(7, what, Unit::Time, &baseline, &ours).bound(bound)
    };
    let size = format!("{ENTRIES} entries and {LIVE} live backends over one");
    vec![
        compare(&format!("{size}: connect, all in turn, P50"), &connects[0], &connects[2], Bound::AtMost(1.05)),
        compare(&format!("{size}: connect, always the same, P50"), &connects[0], &connects[1], Bound::None),
        compare(&format!("{size}: kept, one core, all in turn, P50"), &kept[0], &kept[1], Bound::None),
    ]
}
