//! Goal 1: a warm Hello beside a bare echo. A connection for each, a connection that is kept, a connected socket handed out.

use std::path::Path;

use broker_proto::{Delivery, Endpoint};

use crate::broker::{Broker, Kind, Service, Warm, facts_of};
use crate::client::{Kept, Key, exchange, exchange_for_descriptor};
use crate::contest::{Contender, Placement, Track, contest};
use crate::echo::{Echo, WORDS};
use crate::programs::Programs;
use crate::report::{Bound, Row, Unit};
use crate::world::World;

/// The backend, which accepts what is handed out, answers somebody after so many: its queue of connections never fills up.
const CATCHING_UP: usize = 64;

/// How long a broker stays awake after an answer, where that is tried.
pub(crate) const BUSY_POLL: &str = "50us";

/// What the rounds of goals 1 and 2 found, each with its baseline first.
pub(crate) struct Tracks {
    /// One connection per request: echo, echo on tokio, ours.
    pub(crate) connect: [Track; 3],
    /// One connection for all: echo, echo on tokio, ours, ours with the release of what was held before.
    pub(crate) kept: [Track; 4],
    /// A descriptor with each answer: echo without one, echo with one, echo with one that it connects to the daemon, ours.
    passed: [Track; 4],
    /// The first two again with both ends on one core.
    together: ([Track; 3], [Track; 4]),
    /// The first two again, with a broker that stays awake for [`BUSY_POLL`].
    pub(crate) awake: ([Track; 3], [Track; 4]),
}

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let Tracks {
        connect: [echo, tokio, ours],
        kept: [kept_echo, kept_tokio, kept, releasing],
        passed,
        together,
        awake,
    } = Tracks::of(world);
    let compare = |what: &str, baseline: &Track, ours: &Track, percent: usize, bound| {
        let what = format!("{what}, P{percent}");
        let sides = (baseline.each(|slice| slice.at(percent)), ours.each(|slice| slice.at(percent)));
        let row = Row::ratio(1, what, Unit::Time, &sides.0, &sides.1).bound(bound);
        row.latencies("baseline", &baseline.pooled()).latencies("ours", &ours.pooled())
    };
    let shown = Bound::None;
    vec![
        compare("one connection per Hello", echo, ours, 50, Bound::AtMost(1.2)),
        compare("one connection per Hello", echo, ours, 99, Bound::AtMost(1.5)),
        compare("(echo on tokio, the same)", echo, tokio, 50, shown),
        compare("kept session", kept_echo, kept, 50, Bound::AtMost(1.15)),
        compare("kept session", kept_echo, kept, 99, shown),
        compare("kept session, each releases the one before", kept_echo, releasing, 50, shown),
        compare("(echo on tokio, the same)", kept_echo, kept_tokio, 50, shown),
        compare("connected socket, over the connect floor", &passed[0], &passed[3], 50, Bound::AtMost(1.5)),
        compare("(an echo that passes a descriptor, over the same)", &passed[0], &passed[1], 50, shown),
        compare("(an echo that connects one to the daemon, over the same)", &passed[0], &passed[2], 50, shown),
        compare("one connection per Hello, all on one core", &together.0[0], &together.0[2], 50, shown),
        compare("(echo on tokio, the same)", &together.0[0], &together.0[1], 50, shown),
        compare("kept session, all on one core", &together.1[0], &together.1[2], 50, shown),
        compare("(echo on tokio, the same)", &together.1[0], &together.1[1], 50, shown),
        compare(&format!("one connection per Hello, busy_poll {BUSY_POLL}"), &awake.0[0], &awake.0[2], 50, shown),
        compare(&format!("kept session, busy_poll {BUSY_POLL}"), &awake.1[0], &awake.1[2], 50, shown),
    ]
}

impl Tracks {
    /// Those of this run.
    pub(crate) fn of(world: &mut World) -> &Self {
        let World { args, programs, warm, .. } = world;
        warm.get_or_insert_with(|| {
            let service = Service::new("warm", Kind::Unix, &programs.daemon);
            let broker = Broker::start(programs, std::slice::from_ref(&service));
            let awake = Broker::awake(programs, &[service], BUSY_POLL);
            let echo = Echo::start(&programs.echo, &[]);
            let tokio = Echo::start(&programs.echo_tokio, &[]);
            let (rounds, requests) = (args.pick(11, 41), args.pick(1000, 2000));
            let setting = Setting::new(&broker, requests);
            let awake = Setting::new(&awake, requests);
            let (apart, together) = ((rounds, Placement::Apart), (rounds / 2, Placement::Together));
            Self {
                connect: setting.connect(apart, &echo, &tokio),
                kept: setting.kept(apart, &echo, &tokio),
                passed: setting.passed(apart, programs, &echo),
                together: (setting.connect(together, &echo, &tokio), setting.kept(together, &echo, &tokio)),
                awake: (awake.connect(apart, &echo, &tokio), awake.kept(apart, &echo, &tokio)),
            }
        })
    }
}

struct Setting<'a> {
    broker: &'a Broker,
    key: Key,
    requests: usize,
}

impl<'a> Setting<'a> {
    fn new(broker: &'a Broker, requests: usize) -> Self {
        Self { broker, key: Key::new("warm", "default"), requests }
    }

    fn warm(&self, request_id: u64, delivery: Delivery) -> Warm {
        let (_, negotiated) = self.broker.hold(&self.key);
        Warm::of(&self.key, &negotiated, request_id, delivery)
    }

    fn connect(&self, (rounds, placement): (usize, Placement), echo: &Echo, tokio: &Echo) -> [Track; 3] {
        let (warm, socket) = (self.warm(1, Delivery::Endpoint), self.broker.socket());
        let repeat = |socket: &Path, request: &[u8], answer: &[u8], out: &mut Vec<u64>| {
            out.extend((0..self.requests).map(|_| exchange(socket, request, answer)));
        };
        exactly(contest(
            rounds,
            placement,
            &mut [
                Contender::new(echo.pid(), |out| repeat(echo.socket(), &WORDS, &WORDS, out)),
                Contender::new(tokio.pid(), |out| repeat(tokio.socket(), &WORDS, &WORDS, out)),
                Contender::new(self.broker.pid(), |out| repeat(&socket, &warm.opening, &warm.opening_answer, out)),
            ],
        ))
    }

    fn kept(&self, (rounds, placement): (usize, Placement), echo: &Echo, tokio: &Echo) -> [Track; 4] {
        let (first, socket) = (self.warm(1, Delivery::Endpoint), self.broker.socket());
        let (_, negotiated) = self.broker.hold(&self.key);
        // A request's id is its own for as long as what it asked for is held.
        let number = |number: usize| u64::try_from(number).expect("a small number") + 2;
        let all: Vec<Warm> = (0..self.requests)
            .map(|request| Warm::of(&self.key, &negotiated, number(request), Delivery::Endpoint))
            .collect();
        let releasing = [&first.release[..], &first.frame].concat();
        let open = || Kept::with_broker(&socket, &first.opening, &first.opening_answer);
        let echoes = |socket: &Path, out: &mut Vec<u64>| {
            let mut kept = Kept::with_echo(socket);
            out.extend((0..self.requests).map(|_| kept.exchange(&WORDS, &WORDS)));
        };
        exactly(contest(
            rounds,
            placement,
            &mut [
                Contender::new(echo.pid(), |out| echoes(echo.socket(), out)),
                Contender::new(tokio.pid(), |out| echoes(tokio.socket(), out)),
                Contender::new(self.broker.pid(), |out| {
                    let mut kept = open();
                    out.extend(all.iter().map(|warm| kept.exchange(&warm.frame, &warm.answer)));
                }),
                Contender::new(self.broker.pid(), |out| {
                    let mut kept = open();
                    out.extend((0..self.requests).map(|_| kept.exchange(&releasing, &first.answer)));
                }),
            ],
        ))
    }

    fn passed(&self, (rounds, placement): (usize, Placement), programs: &Programs, echo: &Echo) -> [Track; 4] {
        let (warm, socket) = (self.warm(1, Delivery::Connected), self.broker.socket());
        let (_held, negotiated) = self.broker.hold(&self.key);
        let Endpoint::Unix { path: daemon } = &negotiated.endpoint else { panic!("the daemon is at a path") };
        let passing = Echo::start(&programs.echo, &["--pass-descriptor"]);
        let connecting = Echo::start(&programs.echo, &["--connect", daemon]);
        let repeat = |socket: &Path, request: &[u8], answer: &[u8], out: &mut Vec<u64>| {
            for request_number in 0..self.requests {
                out.push(exchange_for_descriptor(socket, request, answer));
                if request_number % CATCHING_UP == 0 {
                    facts_of(&negotiated.endpoint).expect("the backend answers");
                }
            }
        };
        exactly(contest(
            rounds,
            placement,
            &mut [
                Contender::new(echo.pid(), |out| {
                    out.extend((0..self.requests).map(|_| exchange(echo.socket(), &WORDS, &WORDS)));
                }),
                Contender::new(passing.pid(), |out| repeat(passing.socket(), &WORDS, &WORDS, out)),
                Contender::new(connecting.pid(), |out| repeat(connecting.socket(), &WORDS, &WORDS, out)),
                Contender::new(self.broker.pid(), |out| repeat(&socket, &warm.opening, &warm.opening_answer, out)),
            ],
        ))
    }
}

fn exactly<const N: usize>(tracks: Vec<Track>) -> [Track; N] {
    tracks.try_into().expect("a track of each contender")
}
