//! Goal 4: a cold Hello beside the same daemon started by hand.
//!
//! The daemon says itself when it entered `main` and when it was ready, on a clock that everybody shares. Its own start is
//! from before the spawn to then; the broker's is from before the client connects until it has read the answer.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use broker_proto::Endpoint;
use nix::sys::signal::Signal;

use crate::broker::{Broker, Kind, Service, facts_of};
use crate::children::Process;
use crate::client::{Key, wait_until};
use crate::echo::WORDS;
use crate::facts::{Facts, monotonic_ns};
use crate::folder::Folder;
use crate::programs::Programs;
use crate::report::{Bound, Row, Unit};
use crate::stats::Middle;
use crate::world::World;

/// What the big program is filled up to.
const BIG: u64 = 128 << 20;

/// The cost that a broker may add, and for tcp, of which the kernel tells nothing, a share of the daemon's own delay, too.
const ADDED_MOST: f64 = 0.5e6;
const ADDED_MOST_TCP: f64 = 2e6;
const ADDED_SHARE_TCP: f64 = 0.02;

/// One cold start, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) whole: f64,
    /// Until the daemon entered `main`.
    pub(super) to_main: f64,
    /// From the daemon's being ready to the answer's being read.
    pub(super) to_answer: f64,
}

/// Says Hello for a backend that does not run, checks that what answers is new, and stops it again.
pub(super) fn through(broker: &Broker, key: &Key) -> Start {
    let began = monotonic_ns();
    let (held, negotiated) = broker.hold(key);
    let answered = monotonic_ns();
    let facts = facts_of(&negotiated.endpoint).expect("what is ready answers");
    assert_eq!(negotiated.pid.map(u64::from), Some(facts.pid), "somebody else answers at {}", negotiated.endpoint);
    assert!(facts.main_ns > began, "a backend that ran already was taken for a cold one");
    drop(held);
    broker.stop(Some(key));
    let span = |from: u64, to: u64| to as f64 - from as f64;
    Start {
        whole: span(began, answered),
        to_main: span(began, facts.main_ns),
        to_answer: span(facts.ready_ns, answered),
    }
}

/// Starts the daemon by hand, waits until it answers, and kills it.
pub(super) fn alone(program: &Path, kind: Kind, delay: Duration, folder: &Folder) -> Start {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["--die-with-parent", "--delay-ms", &delay.as_millis().to_string()]);
    let (socket, manager) = (folder.join("alone.sock"), folder.join("notify.sock"));
    let endpoint = match kind {
        Kind::Tcp => Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: free_port() },
        Kind::Unix | Kind::Notify => Endpoint::Unix { path: socket.to_string_lossy().into_owned() },
    };
    let told = (kind == Kind::Notify).then(|| UnixDatagram::bind(&manager).expect("the folder takes a socket"));
    if told.is_some() {
        command.env("NOTIFY_SOCKET", &manager);
    }
    command.arg(if kind == Kind::Tcp { "--tcp" } else { "--unix" }).arg(endpoint.address());
    let began = monotonic_ns();
    let process = Process::start(command, Signal::SIGKILL);
    sleep(delay);
    let mut facts = None;
    wait_until("the daemon answers", || {
        assert!(!process.has_ended(), "the daemon ended at once");
        facts = facts_of(&endpoint).ok();
        facts.is_some()
    });
    let Facts { pid, main_ns, ready_ns } = facts.expect("it answered");
    assert_eq!(pid, u64::from(process.pid().as_raw().cast_unsigned()), "somebody else answers at {endpoint}");
    process.end();
    for path in [socket, manager] {
        remove(&path);
    }
    let span = |to: u64| to as f64 - began as f64;
    Start { whole: span(ready_ns), to_main: span(main_ns), to_answer: 0.0 }
}

/// A server that starts the daemon when it is asked for, and does nothing else.
struct Launcher {
    process: Process,
    socket: PathBuf,
    _folder: Folder,
}

impl Launcher {
    fn start(programs: &Programs, delay: Duration) -> Self {
        let folder = Folder::new();
        let socket = folder.join("launcher.sock");
        let mut command = Command::new(&programs.launcher);
        command.arg(&socket).arg(&programs.daemon).arg("--die-with-parent");
        command.args(["--delay-ms", &delay.as_millis().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(command, Signal::SIGKILL);
        wait_until("the launcher listens", || {
            assert!(!process.has_ended(), "the launcher ended at once");
            socket.exists()
        });
        Self { process, socket, _folder: folder }
    }

    /// Asks for the daemon, checks that it is new, and has it ended.
    fn ask(&self) -> Start {
        let endpoint = Endpoint::Unix { path: format!("{}.daemon", self.socket.display()) };
        let began = monotonic_ns();
        let mut stream = UnixStream::connect(&self.socket).expect("the launcher accepts");
        stream.write_all(&WORDS).expect("the launcher reads");
        stream.read_exact(&mut [0; WORDS.len()]).expect("the launcher answers");
        let answered = monotonic_ns();
        let Facts { main_ns, ready_ns, .. } = facts_of(&endpoint).expect("what is ready answers");
        assert!(main_ns > began, "a daemon that ran already was taken for a cold one");
        drop(stream);
        wait_until("the daemon is gone", || {
            assert!(!self.process.has_ended(), "the launcher has ended");
            !Path::new(endpoint.address().as_str()).exists()
        });
        let span = |from: u64, to: u64| to as f64 - from as f64;
        Start { whole: span(began, answered), to_main: span(began, main_ns), to_answer: span(ready_ns, answered) }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("`{}` stays: {error}", path.display()),
        _ => {}
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.expect("there is a free port").port()
}

/// A daemon in turns by hand, through a broker, and through a bare launcher.
struct Race<'a> {
    broker: &'a Broker,
    service: &'a str,
    program: &'a Path,
    kind: Kind,
    delay: Duration,
    rounds: usize,
    launcher: Option<Launcher>,
}

impl Race<'_> {
    /// Each in turn, a new key in each round. The first round warms up. What each took: by hand, brokered, launched.
    fn run(&self) -> [Vec<Start>; 3] {
        let folder = Folder::new();
        let mut taken = [const { Vec::new() }; 3];
        let warm_up = usize::from(self.delay < Duration::from_millis(100));
        let contenders = 2 + usize::from(self.launcher.is_some());
        for round in 0..self.rounds + warm_up {
            let key = Key::new(self.service, format!("cold{round}"));
            for turn in 0..contenders {
                let contender = (round + turn) % contenders;
                let start = match (contender, &self.launcher) {
                    (0, _) => alone(self.program, self.kind, self.delay, &folder),
                    (2, Some(launcher)) => launcher.ask(),
                    _ => through(self.broker, &key),
                };
                if round >= warm_up {
                    taken[contender].push(start);
                }
            }
        }
        taken
    }

    fn rows(&self, what: &str) -> Vec<Row> {
        let [by_hand, brokered, launched] = self.run();
        let each = |starts: &[Start], part: fn(&Start) -> f64| starts.iter().map(part).collect::<Vec<_>>();
        let middle = |starts: &[Start], part: fn(&Start) -> f64| Middle::of(&each(starts, part)).median / 1e3;
        let most = match self.kind {
            Kind::Tcp => ADDED_MOST_TCP + ADDED_SHARE_TCP * self.delay.as_nanos() as f64,
            Kind::Unix | Kind::Notify => ADDED_MOST,
        };
        let compared = |what: &str, starts: &[Start]| {
            let whole = |start: &Start| start.whole;
            let row = Row::difference(4, what, Unit::Time, &each(&by_hand, whole), &each(starts, whole));
            row.note(format!(
                "to `main` {:.0} µs by hand and {:.0} µs from the Hello; from ready to the answer {:.0} µs; {} of {} answered",
                middle(&by_hand, |start| start.to_main),
                middle(starts, |start| start.to_main),
                middle(starts, |start| start.to_answer),
                starts.len(),
                self.rounds,
            ))
        };
        let mut rows = vec![compared(what, &brokered).bound(Bound::AtMost(most))];
        if !launched.is_empty() {
            rows.push(compared("(a server that spawns it and passes on that it is ready, the same)", &launched));
        }
        rows
    }
}

pub(super) fn service_name(kind: Kind, delay: Duration) -> String {
    format!("{}-{}", kind.word(), delay.as_millis())
}

pub(crate) fn measure(world: &mut World) -> Vec<Row> {
    let quick = world.args.quick;
    let delays: &[(u64, usize, usize)] =
        &[(0, 40, 100), (20, 12, 40), (120, 5, 20), (300, 2, 10), (700, 0, 6), (5000, 0, 2)];
    let delays =
        delays.iter().map(|&(delay, few, many)| (Duration::from_millis(delay), if quick { few } else { many }));
    let delays: Vec<(Duration, usize)> = delays.filter(|(_, rounds)| *rounds > 0).collect();
    let programs = &world.programs;
    let services = Kind::ALL.iter().flat_map(|&kind| {
        let service = move |delay| Service::new(&service_name(kind, delay), kind, &programs.daemon).delayed(delay);
        delays.iter().map(move |&(delay, _)| service(delay))
    });
    let folder = Folder::new();
    let big = big_program(programs, &folder);
    let mut services: Vec<Service> = services.collect();
    services.push(Service::new("big", Kind::Unix, &big));
    let broker = Broker::start(programs, &services);
    let mut rows = Vec::new();
    for &(delay, rounds) in &delays {
        for kind in Kind::ALL {
            let race = Race {
                broker: &broker,
                service: &service_name(kind, delay),
                program: &programs.daemon,
                kind,
                delay,
                rounds,
                launcher: (kind == Kind::Notify).then(|| Launcher::start(programs, delay)),
            };
            rows.extend(race.rows(&format!("{}, ready after {} ms", kind.word(), delay.as_millis())));
        }
    }
    let (kind, delay, rounds) = (Kind::Unix, Duration::ZERO, world.args.pick(20, 60));
    let race = Race { broker: &broker, service: "big", program: &big, kind, delay, rounds, launcher: None };
    rows.extend(race.rows("unix, a program of 128 MB"));
    rows.push(again(&broker, rounds));
    drop(broker);
    let daemon = world.programs.daemon.clone();
    let large = world.large();
    let service = &service_name(kind, delay);
    let race = Race { broker: large.broker(), service, program: &daemon, kind, delay, rounds, launcher: None };
    rows.extend(race.rows(&format!("unix, a broker of {} MB", large.memory().rss >> 20)));
    rows
}

/// A key whose daemon has run before, and was stopped.
fn again(broker: &Broker, rounds: usize) -> Row {
    let key = Key::new(&service_name(Kind::Unix, Duration::ZERO), "again");
    through(broker, &key);
    let whole: Vec<f64> = (0..rounds).map(|_| through(broker, &key).whole).collect();
    Row::itself(4, "unix, a key that ran before", Unit::Time, &whole)
}

/// The daemon with so many bytes behind it that whoever reads programs whole takes long.
fn big_program(programs: &Programs, folder: &Folder) -> PathBuf {
    let big = folder.join("bench-daemon-big");
    fs::copy(&programs.daemon, &big).expect("the folder takes a program");
    let file = File::options().write(true).open(&big).expect("own files can be written");
    file.set_len(BIG).expect("a file may have holes");
    big
}
