//! Goal 5: many clients that wait for one start.

use std::fs::{self, File};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::broker::{Broker, Kind, Service, facts_of};
use crate::client::Key;
use crate::folder::Folder;
use crate::report::{Bound, Row, Unit};
use crate::swarm::{Answer, Waiters};
use crate::world::World;

const RACING: usize = 100;
const WAITING: usize = 10_000;

/// How long the daemon takes that 100 race for: all have said Hello by then.
const DELAY: Duration = Duration::from_millis(50);

/// Descriptors that neither side spends on connections.
const SPARE: usize = 500;

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let folder = Folder::new();
    let (starts, gate) = (folder.join("starts"), folder.join("gate"));
    mkfifo(&gate, Mode::S_IRUSR | Mode::S_IWUSR).expect("the folder takes a pipe");
    let text = |path: &std::path::Path| path.to_str().expect("an ASCII path").to_owned();
    let daemon = &world.programs.daemon;
    let noting = |name| Service::new(name, Kind::Unix, daemon).arguments(&["--starts", &text(&starts)]);
    let services = [noting("race").delayed(DELAY), noting("gate").arguments(&["--gate", &text(&gate)])];
    let broker = Broker::start(&world.programs, &services);
    let count_starts = || fs::read_to_string(&starts).unwrap_or_default().lines().count();

    let mut racing = Vec::new();
    for round in 0..world.args.pick(10, 40) {
        let key = Key::new("race", format!("race{round}"));
        let before = count_starts();
        let mut waiters = Waiters::connect(&broker.socket(), RACING);
        waiters.ask(&key);
        racing.push(last_after_ready(&waiters.await_answers(), RACING));
        assert_eq!(count_starts(), before + 1, "one start for all");
        drop(waiters);
        broker.stop(Some(&key));
    }

    let room = usize::try_from(world.descriptors).unwrap_or(usize::MAX).saturating_sub(SPARE);
    let clients = WAITING.min(room);
    let mut waiting = Vec::new();
    for round in 0..world.args.pick(2, 8) {
        let key = Key::new("gate", format!("gate{round}"));
        let mut waiters = Waiters::connect(&broker.socket(), clients);
        waiters.ask(&key);
        waiters.await_progress();
        // Whoever waits for it to be opened may read on now.
        drop(File::options().write(true).open(&gate).expect("the daemon waits at the gate"));
        waiting.push(last_after_ready(&waiters.await_answers(), clients));
        drop(waiters);
        broker.stop(Some(&key));
    }
    let fewer =
        (clients < WAITING).then(|| format!("only {clients}: the limit of open files is {}", world.descriptors));
    let row = Row::itself(5, "10,000 waiters: from ready to the last answer", Unit::Time, &waiting);
    vec![
        Row::itself(5, "100 clients race: from ready to the last answer", Unit::Time, &racing)
            .bound(Bound::AtMost(6e6))
            .note("one start in each round, and the same process for all"),
        fewer.into_iter().fold(row.bound(Bound::AtMost(150e6)), Row::note),
    ]
}

/// From the daemon's being ready to the last answer's being read; all have the same backend, which is the first of its key.
fn last_after_ready(answers: &[Answer], clients: usize) -> f64 {
    let granted: Vec<_> = answers.iter().filter_map(|answer| answer.result.as_ref().ok()).collect();
    let refused = answers.iter().find_map(|answer| answer.result.as_ref().err());
    assert_eq!(granted.len(), clients, "each has a backend: {refused:?}");
    assert!(granted.iter().all(|one| one.pid == granted[0].pid && one.generation == 1), "the same for all");
    let facts = facts_of(&granted[0].endpoint).expect("what is ready answers");
    assert_eq!(granted[0].pid.map(u64::from), Some(facts.pid));
    let last = answers.iter().map(|answer| answer.at_ns).max().expect("there are answers");
    last as f64 - facts.ready_ns as f64
}
