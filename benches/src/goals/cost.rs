//! Goal 2: what a warm Hello takes of the server, and what an idle broker takes of the machine.

use std::time::Duration;

use super::warm::{BUSY_POLL, Tracks};
use crate::broker::{Broker, Kind, Service};
use crate::client::Key;
use crate::contest::Track;
use crate::facts::monotonic_ns;
use crate::kernel::{Cost, sleeps_by_thread};
use crate::report::{Bound, Row, Unit};
use crate::swarm::Waiters;
use crate::world::World;

const SESSIONS: usize = 1000;
const BACKENDS: usize = 100;

/// What follows a start, its proof of health included, is over when the time begins.
const HEALTHY_AFTER: &str = "[recovery]\nhealthy_after = \"1s\"\n";
const SETTLING: Duration = Duration::from_secs(3);

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let Tracks { connect: [echo, tokio, ours], kept: [kept_echo, kept_tokio, kept, _], awake, .. } = Tracks::of(world);
    let cpu = |what: &str, baseline: &Track, ours: &Track, bound| {
        let (baseline, ours) =
            (baseline.each(|slice| slice.cpu_per_request()), ours.each(|slice| slice.cpu_per_request()));
        Row::ratio(2, what, Unit::Time, &baseline, &ours).bound(bound)
    };
    let sleeps = |what: &str, baseline: &Track, ours: &Track, bound| {
        let (baseline, ours) =
            (baseline.each(|slice| slice.sleeps_per_request()), ours.each(|slice| slice.sleeps_per_request()));
        Row::ratio(2, what, Unit::Count, &baseline, &ours).bound(bound)
    };
    let mut rows = vec![
        cpu("server CPU, one connection per Hello", echo, ours, Bound::AtMost(1.3)),
        cpu("(echo on tokio, the same)", echo, tokio, Bound::None),
        cpu("server CPU, kept session", kept_echo, kept, Bound::AtMost(1.3)),
        cpu("(echo on tokio, the same)", kept_echo, kept_tokio, Bound::None),
        cpu(
            &format!("server CPU, one connection per Hello, busy_poll {BUSY_POLL}"),
            &awake.0[0],
            &awake.0[2],
            Bound::None,
        ),
        cpu(&format!("server CPU, kept session, busy_poll {BUSY_POLL}"), &awake.1[0], &awake.1[2], Bound::None),
        sleeps("times the server sleeps per connection and Hello", echo, ours, Bound::AtMost(1.1)),
        sleeps("times the server sleeps per Hello, kept session", kept_echo, kept, Bound::AtMost(1.1)),
    ];
    rows.extend(idle(world));
    rows
}

/// 1,000 sessions that hold backends, of which there are 100, and nobody says anything.
fn idle(world: &World) -> Vec<Row> {
    let programs = &world.programs;
    let mut service = Service::new("idle", Kind::Unix, &programs.daemon);
    service.toml = HEALTHY_AFTER.to_owned();
    let broker = Broker::start(programs, &[service]);
    let mut sessions: Vec<Waiters> = (0..BACKENDS)
        .map(|number| {
            let mut waiters = Waiters::connect(&broker.socket(), SESSIONS / BACKENDS);
            waiters.ask(&Key::new("idle", format!("b{number}")));
            assert!(waiters.await_answers().iter().all(|answer| answer.result.is_ok()), "a backend for each");
            waiters
        })
        .collect();
    let listen = |sessions: &mut Vec<Waiters>, lasting: Duration| -> u64 {
        let each = lasting / u32::try_from(BACKENDS).expect("a small number");
        sessions.iter_mut().map(|waiters| waiters.listen(each)).sum()
    };
    listen(&mut sessions, SETTLING);
    let (before, threads_before, began) = (Cost::of(broker.pid()), sleeps_by_thread(broker.pid()), monotonic_ns());
    let heard = listen(&mut sessions, Duration::from_secs(world.args.pick(20, 40)));
    let took = Duration::from_nanos(monotonic_ns() - began);
    let (cost, threads) = (Cost::of(broker.pid()).since(before), sleeps_by_thread(broker.pid()));
    let beats = took.as_secs_f64() / broker_proto::HEARTBEAT_INTERVAL.as_secs_f64();
    let fault = (heard == 0).then(|| "no session heard a sign of life".to_owned());
    let mut by_thread: Vec<String> = Vec::new();
    for (name, sleeps) in threads {
        let earlier: u64 =
            threads_before.iter().filter(|(earlier, _)| *earlier == name).map(|(_, sleeps)| sleeps).sum();
        by_thread.push(format!("{name} {}", sleeps.saturating_sub(earlier)));
    }
    let per_minute = |count: f64| count * 60.0 / took.as_secs_f64();
    vec![
        Row::difference(
            2,
            "wake-ups a minute, idle with 1,000 sessions and 100 backends, over its heartbeats",
            Unit::Count,
            &[per_minute(beats)],
            &[per_minute(cost.slept as f64)],
        )
        // The one that begins or ends within the time.
        .bound(Bound::AtMost(per_minute(1.0)))
        .unless(fault)
        .note(format!("in {:.0} s, by thread: {}", took.as_secs_f64(), by_thread.join(", "))),
        Row::itself(2, "CPU a minute of that", Unit::Time, &[per_minute(cost.cpu_ns as f64)]),
    ]
}
