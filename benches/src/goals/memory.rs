//! Goal 8: what the broker takes of memory, and how soon it serves.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::cold::service_name;
use super::large::{ENTRIES, LIVE, LIVE_FIRST};
use crate::broker::{Broker, Kind, Service, ping};
use crate::children::Process;
use crate::client::{Key, Session, try_exchange};
use crate::echo::WORDS;
use crate::facts::monotonic_ns;
use crate::folder::Folder;
use crate::kernel::Memory;
use crate::report::{Bound, Row, Unit};
use crate::world::World;

const MB: f64 = 1024.0 * 1024.0;
const SESSIONS: usize = 5000;

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let mut rows = sessions(world);
    rows.extend(backends(world));
    rows.extend(start(world));
    rows
}

/// A broker that has served one Hello, and then has thousands of sessions that hold a backend each and say nothing.
fn sessions(world: &World) -> Vec<Row> {
    let programs = &world.programs;
    let name = service_name(Kind::Unix, Duration::ZERO);
    let broker = Broker::start(programs, &[Service::new(&name, Kind::Unix, &programs.daemon)]);
    let key = Key::new(&name, "default");
    let (held, _) = broker.hold(&key);
    let idle = Memory::of(broker.pid());
    let sessions: Vec<Session> = (0..SESSIONS).map(|_| broker.hold(&key).0).collect();
    let full = Memory::of(broker.pid());
    drop((sessions, held));
    broker.session().settle();
    let after = Memory::of(broker.pid());
    let each = (full.rss as f64 - idle.rss as f64) / SESSIONS as f64;
    vec![
        Row::itself(8, "resident, idle", Unit::Bytes, &[idle.rss as f64]).bound(Bound::AtMost(5.0 * MB)).note(format!(
            "its own share: {:.2} MB; private: {:.2} MB",
            idle.pss as f64 / MB,
            idle.private as f64 / MB
        )),
        Row::itself(8, "each of 5,000 idle sessions that hold a backend", Unit::Bytes, &[each])
            .bound(Bound::AtMost(2048.0)),
        Row::itself(8, "resident, with 5,000 of them", Unit::Bytes, &[full.rss as f64])
            .bound(Bound::AtMost(15.0 * MB))
            .note(format!("{:.2} MB once they are closed", after.rss as f64 / MB)),
    ]
}

fn backends(world: &mut World) -> Vec<Row> {
    let [first, live, all] = world.large().memories.map(|memory| memory.rss as f64);
    let each = (live - first) / (LIVE - LIVE_FIRST) as f64;
    let entry = (all - live) / (ENTRIES - LIVE) as f64;
    vec![
        Row::itself(8, "each live backend, from 100 to 1,000", Unit::Bytes, &[each]).bound(Bound::AtMost(8192.0)),
        Row::itself(8, "each entry of a program that could not be started", Unit::Bytes, &[entry]),
    ]
}

/// From before the program is executed until a first client is let in, and until it is answered. Both are asked until they answer.
fn start(world: &World) -> Vec<Row> {
    let programs = &world.programs;
    let folder = Folder::new();
    let socket = folder.join("echo.sock");
    let echo = || {
        let mut command = Command::new(&programs.echo_tokio);
        command.arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        let answers = || try_exchange(&socket, &WORDS, WORDS.len()).is_ok();
        let took = until_it_answers(command, Signal::SIGKILL, &socket, answers);
        std::fs::remove_file(&socket).expect("a dead socket can be removed");
        took
    };
    let broker = Broker::unstarted(programs, &[Service::new("some", Kind::Unix, &programs.daemon)]);
    let answers = || ping(&broker.socket()).is_ok();
    let brokerd = || until_it_answers(broker.command(), Signal::SIGINT, &broker.socket(), answers);
    let (mut baseline, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=world.args.pick(20, 60) {
        let pair = (echo(), brokerd());
        if round > 0 {
            baseline.push(pair.0);
            ours.push(pair.1);
        }
    }
    let row = |what: &str, part: fn(&Started) -> f64| {
        let each = |all: &[Started]| all.iter().map(part).collect::<Vec<_>>();
        Row::ratio(8, what, Unit::Time, &each(&baseline), &each(&ours)).bound(Bound::AtMost(1.5))
    };
    vec![
        row("from exec until it accepts, over an echo on tokio", |started| started.accepts),
        row("from exec to the first answer, over the same", |started| started.answers),
    ]
}

/// How long after the exec, in nanoseconds.
struct Started {
    accepts: f64,
    answers: f64,
}

fn until_it_answers(command: Command, end: Signal, socket: &Path, answers: impl Fn() -> bool) -> Started {
    let began = monotonic_ns();
    let process = Process::start(command, end);
    let until = |does: &dyn Fn() -> bool| {
        while !does() {
            assert!(!process.has_ended(), "it ended at once");
            assert!(monotonic_ns() - began < 60_000_000_000, "no answer for a minute");
        }
        (monotonic_ns() - began) as f64
    };
    let accepts = until(&|| UnixStream::connect(socket).is_ok());
    let answers = until(&answers);
    process.end();
    Started { accepts, answers }
}
