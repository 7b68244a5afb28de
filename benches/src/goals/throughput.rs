//! Goal 3: 64 clients at once, connecting anew for each request or keeping their connections.

use std::iter;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use broker_proto::{Delivery, Negotiated, ServerMessage};

use crate::broker::{Broker, Kind, Service, Warm};
use crate::client::{Key, frame};
use crate::contest::{Contender, Placement, Track, contest};
use crate::echo::{Echo, WORDS};
use crate::report::{Bound, Row, Unit};
use crate::swarm;
use crate::world::World;

pub(super) const CLIENTS: usize = 64;

/// More than a connection can have answered in one slice.
const REQUESTS_MAX: usize = 20_000;

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let World { args, programs, .. } = world;
    let broker = Broker::start(programs, &[Service::new("warm", Kind::Unix, &programs.daemon)]);
    let echo = Echo::start(&programs.echo, &[]);
    let tokio = Echo::start(&programs.echo_tokio, &[]);
    let (rounds, lasting) = (args.pick(6, 15), args.pick(Duration::from_millis(300), Duration::from_millis(800)));
    let key = Key::new("warm", "default");
    let (_held, negotiated) = broker.hold(&key);

    let warm = Warm::of(&key, &negotiated, 1, Delivery::Endpoint);
    let (words, hello) = ((&WORDS[..], &WORDS[..]), (&warm.opening[..], &warm.opening_answer[..]));
    let connects = contest(
        rounds,
        Placement::Apart,
        &mut [
            Contender::new(echo.pid(), |out| swarm::reconnecting(echo.socket(), CLIENTS, lasting, words, out)),
            Contender::new(tokio.pid(), |out| swarm::reconnecting(tokio.socket(), CLIENTS, lasting, words, out)),
            Contender::new(broker.pid(), |out| swarm::reconnecting(&broker.socket(), CLIENTS, lasting, hello, out)),
        ],
    );

    let hellos = hellos(&key, &negotiated);
    let mut releasing = vec![([&warm.release[..], &warm.frame].concat(), warm.answer.clone()); REQUESTS_MAX];
    releasing[0] = hellos[0].clone();
    let words = vec![(WORDS.to_vec(), WORDS.to_vec()); REQUESTS_MAX];
    let heartbeat = frame(&ServerMessage::Heartbeat);
    let trips = contest(
        rounds,
        Placement::Apart,
        &mut [
            Contender::new(echo.pid(), |out| swarm::kept(open(echo.socket()), lasting, &words, &[], out)),
            Contender::new(tokio.pid(), |out| swarm::kept(open(tokio.socket()), lasting, &words, &[], out)),
            Contender::new(broker.pid(), |out| swarm::kept(open(&broker.socket()), lasting, &hellos, &heartbeat, out)),
            Contender::new(broker.pid(), |out| {
                swarm::kept(open(&broker.socket()), lasting, &releasing, &heartbeat, out)
            }),
        ],
    );

    let compare = |what: &str, baseline: &Track, ours: &Track, bound| {
        let (baseline, ours) = (baseline.each(|slice| slice.per_second()), ours.each(|slice| slice.per_second()));
        Row::ratio(3, what, Unit::PerSecond, &baseline, &ours).bound(bound)
    };
    vec![
        compare("64 clients, a connection per Hello", &connects[0], &connects[2], Bound::AtLeast(0.85)),
        compare("the same, echo on tokio over the floor", &connects[0], &connects[1], Bound::None),
        compare("64 clients, kept sessions", &trips[0], &trips[2], Bound::AtLeast(0.8)),
        compare("the same, each releases the one before", &trips[0], &trips[3], Bound::None),
        compare("the same, echo on tokio over the floor", &trips[0], &trips[1], Bound::None),
    ]
}

/// What a connection says and is told, Hello after Hello with new numbers, none of them released. The first opens it.
pub(super) fn hellos(key: &Key, negotiated: &Negotiated) -> Vec<(Vec<u8>, Vec<u8>)> {
    let warm = |number| Warm::of(key, negotiated, u64::try_from(number).expect("a small number"), Delivery::Endpoint);
    let first = warm(1);
    let others = (2..=REQUESTS_MAX).map(warm).map(|warm| (warm.frame, warm.answer));
    iter::once((first.opening, first.opening_answer)).chain(others).collect()
}

pub(super) fn open(socket: &Path) -> Vec<UnixStream> {
    (0..CLIENTS).map(|_| UnixStream::connect(socket).expect("the server accepts")).collect()
}
