//! Servers that take turns: each serves one slice per round, so that what else the machine does meets all alike.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::facts::monotonic_ns;
use crate::kernel::Cost;
use crate::stats::percentile;

/// Which processors the client and the servers run on. The scheduler left to itself puts both ends on one core when the
/// machine is busy and on two when it is not, which is a factor of five in the latency, and changes its mind in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The client on one, the server on another: waking a core is a part of every request.
    Apart,
    /// Both on the same one: what remains is the work.
    Together,
}

/// Runs the client's thread, which is the calling one, and the servers' where the placement says, until it is dropped.
struct Placed {
    everywhere: CpuSet,
    servers: Vec<Pid>,
}

impl Placed {
    fn new(placement: Placement, servers: Vec<Pid>) -> Self {
        let everywhere = sched_getaffinity(Pid::this()).expect("it is known where this runs");
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| everywhere.is_set(cpu).unwrap_or(false));
        let first = cpus.next().expect("this runs somewhere");
        let last = cpus.next_back().unwrap_or(first);
        let placed = Self { everywhere, servers };
        place(Pid::from_raw(0), only(last));
        let server = match placement {
            Placement::Apart => first,
            Placement::Together => last,
        };
        placed.servers.iter().for_each(|&pid| place(pid, only(server)));
        placed
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        place(Pid::from_raw(0), self.everywhere);
        self.servers.iter().for_each(|&pid| place(pid, self.everywhere));
    }
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a processor that there is");
    set
}

/// The main thread of a process; 0 is the calling thread.
fn place(pid: Pid, set: CpuSet) {
    sched_setaffinity(pid, &set).expect("own processes can be placed");
}

/// A slice of requests.
type Serve<'a> = Box<dyn FnMut(&mut Vec<u64>) + 'a>;

/// One that is measured.
pub(crate) struct Contender<'a> {
    /// Whose processor time and context switches are counted.
    pub(crate) server: Pid,
    /// Serves so many requests, or as many as it likes, and notes how long each took, in nanoseconds.
    pub(crate) serve: Serve<'a>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(server: Pid, serve: impl FnMut(&mut Vec<u64>) + 'a) -> Self {
        Self { server, serve: Box::new(serve) }
    }
}

/// What one contender did in one round.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Sorted, in nanoseconds.
    pub(crate) latencies: Vec<u64>,
    pub(crate) took_ns: u64,
    pub(crate) cost: Cost,
}

impl Slice {
    pub(crate) fn at(&self, percent: usize) -> f64 {
        percentile(&self.latencies, percent) as f64
    }

    pub(crate) fn cpu_per_request(&self) -> f64 {
        self.cost.cpu_ns as f64 / self.latencies.len() as f64
    }

    pub(crate) fn sleeps_per_request(&self) -> f64 {
        self.cost.slept as f64 / self.latencies.len() as f64
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 * 1e9 / self.took_ns as f64
    }
}

/// The slices of one contender, a round each.
#[derive(Debug, Default)]
pub(crate) struct Track(pub(crate) Vec<Slice>);

impl Track {
    pub(crate) fn each(&self, figure: impl Fn(&Slice) -> f64) -> Vec<f64> {
        self.0.iter().map(figure).collect()
    }

    /// All latencies of all rounds, sorted.
    pub(crate) fn pooled(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.0.iter().flat_map(|slice| slice.latencies.iter().copied()).collect();
        all.sort_unstable();
        all
    }
}

/// Has the contenders take turns. The first round warms up and does not count; who begins changes from round to round.
pub(crate) fn contest(rounds: usize, placement: Placement, contenders: &mut [Contender<'_>]) -> Vec<Track> {
    let _placed = Placed::new(placement, contenders.iter().map(|contender| contender.server).collect());
    let mut tracks: Vec<Track> = contenders.iter().map(|_| Track::default()).collect();
    for round in 0..=rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let slice = slice(&mut contenders[at]);
            if round > 0 {
                tracks[at].0.push(slice);
            }
        }
    }
    tracks
}

fn slice(contender: &mut Contender<'_>) -> Slice {
    let mut latencies = Vec::with_capacity(1 << 16);
    let before = Cost::of(contender.server);
    let began = monotonic_ns();
    (contender.serve)(&mut latencies);
    let took_ns = monotonic_ns() - began;
    let cost = Cost::of(contender.server).since(before);
    latencies.sort_unstable();
    Slice { latencies, took_ns, cost }
}
