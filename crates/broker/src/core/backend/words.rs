//! The words between a machine and its driver: events in, effects out.

use std::time::Duration;

use broker_proto::{Exit, Refusal};
use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::readiness::Pace;
use super::super::recovery;
use super::super::waiters::{Ticket, Waiter};

/// How soon to ask again where nothing better is known.
pub(crate) const RETRY_HINT: Duration = Duration::from_secs(1);

/// What a service file decides about the life of its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policies {
    /// How its readiness is learned.
    pub(crate) pace: Pace,
    /// It is ready as soon as its program runs: the broker holds its listening socket.
    pub(crate) ready_at_exec: bool,
    /// The longest that a start may take.
    pub(crate) hard_ceiling: Duration,
    pub(crate) recovery: recovery::Policy,
    /// From the last release to the stop; `None` is never.
    pub(crate) idle_timeout: Option<Duration>,
    /// From the polite signal to SIGKILL.
    pub(crate) stop_timeout: Duration,
    /// How many may wait at once.
    pub(crate) waiters_max: usize,
}

/// What a backend is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A client wants the backend.
    Hello(Waiter),
    /// A client or an operator wants it no longer, as a waiter or as a holder.
    Withdraw(Ticket),
    /// An operator orders a start.
    Start(Waiter),
    /// An operator orders a stop and waits for its end; without one who waits it is the broker itself that ends.
    Stop(Option<Waiter>),
    /// An operator orders a stop and a start.
    Restart(Waiter),
    /// An operator wants no new holds.
    Drain,
    /// The service file has changed.
    Redefine(Policies),
    /// The broker goes and leaves the backend to the next one.
    HandOver,
    /// An operator ends its quarantine.
    Release,
    /// The process of a restored generation is proved to live, and is ours from now on.
    Adopted { generation: u64 },
    /// The program runs.
    Started { generation: u64 },
    /// The program could not be started at all.
    StartFailed { generation: u64, refusal: Refusal },
    /// The socket file appeared.
    Appeared { generation: u64 },
    /// A probe's result; the text says what is in the way, if the broker sees it.
    Probed { generation: u64, ready: bool, obstacle: Option<String> },
    /// The daemon said something on its notify socket.
    Notified { generation: u64, word: Word },
    /// The main process ended; `survivors` says that descendants of it live on elsewhere.
    Exited { generation: u64, exit: Exit, survivors: bool },
    /// The main process ended, and not by itself: the service manager took down the place that all backends live in.
    TakenDown { generation: u64, exit: Exit },
    /// Nothing of the generation is left.
    Gone { generation: u64, trace: Trace },
    /// How many connections the endpoint has.
    Connections { generation: u64, count: usize },
    /// Time has passed.
    Tick,
}

/// What a daemon may say of itself (`sd_notify(3)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    Ready,
    Status(String),
    ExtendTimeout(Duration),
}

/// What a generation left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trace {
    /// The last lines of its log.
    pub(crate) stderr: Option<String>,
    /// Its log file.
    pub(crate) log_path: Option<String>,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start the program; answer with `Started` or `StartFailed`.
    Start { generation: u64 },
    /// Look whether it is ready; answer with `Probed`.
    Probe { generation: u64 },
    /// Its main process ended on purpose and descendants are the daemon: follow them.
    Follow { generation: u64 },
    /// Ask the whole group to end.
    Terminate { generation: u64 },
    /// End what is left of the group, and answer with `Gone` when nothing is.
    End { generation: u64 },
    /// Count the connections of its endpoint; answer with `Connections`.
    CountConnections { generation: u64 },
    /// Answer: the backend is ready.
    Negotiate { ticket: Ticket, generation: u64 },
    /// Answer: no.
    Refuse { ticket: Ticket, refusal: Box<Refusal> },
    /// Answer the one who ordered a stop: nothing runs.
    Stopped { ticket: Ticket },
    /// Tell one who waits what is going on.
    Progress { ticket: Ticket, progress: Progress },
    /// Tell one who holds what happened.
    Tell { ticket: Ticket, news: News },
    /// Put down what happened, whether anybody holds the backend or not.
    Record { generation: u64, happening: Happening },
}

/// What is going on, for one who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) state: broker_proto::State,
    pub(crate) attempt: u32,
    pub(crate) elapsed: Duration,
    pub(crate) status: Option<String>,
}

/// What happened, for one who holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    Exited {
        generation: u64,
        exit: Exit,
        lived: Duration,
    },
    Restarting {
        delay: Duration,
    },
    Ready {
        generation: u64,
    },
    Failed {
        refusal: Box<Refusal>,
    },
    Draining,
    /// The hold is over.
    Stopped,
}

/// What happened, for the record. Each is said once; the driver adds process numbers and the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happening {
    /// A generation begins.
    Starting { attempt: u32 },
    /// Its program runs.
    Started,
    /// Its first process ended on purpose, and another one is followed.
    Forked,
    /// It serves.
    Ready { after: Duration },
    /// Its main process ended by itself or as it was asked to; `crash` says that recovery counts it.
    Exited { exit: Exit, lived: Duration, crash: bool },
    /// It did not end in the time that it had, and is ended.
    Killed { after: Duration },
    /// It is to be started again, if somebody still wants it then.
    Restarting { delay: Duration },
    /// It will not be started before the refusal's time is over.
    Failed { refusal: Box<Refusal> },
    /// It is asked to end.
    Stopping { why: Why },
    /// What was asked to end is gone.
    Stopped,
    /// It ended by itself while nobody held it, which is no crash, and is gone.
    Finished,
    /// It was ended with the place that all backends live in, which is no crash.
    TakenDown,
    /// It takes no new holds.
    Draining,
    /// It takes new holds again.
    DrainEnded,
    /// It was started by an earlier broker, and lives.
    Adopted,
    /// It cannot be proved what became of it, and it is set apart.
    Quarantined { reason: String },
    /// Its quarantine is over.
    Released,
}

/// Why a backend is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// An operator ordered it.
    Order,
    /// An operator ordered another start.
    Restart,
    /// Nobody has held it for its idle timeout, nor is connected.
    Idle,
    /// It was drained, and its last hold is gone.
    Drain,
    /// The broker ends.
    Shutdown,
    /// It was not ready in time.
    Ceiling,
}

impl Why {
    /// The reason as `--json` prints it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Restart => "restart",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::Shutdown => "shutdown",
            Self::Ceiling => "ceiling",
        }
    }
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: broker_proto::State,
    pub(crate) since: Timestamp,
    pub(crate) generation: u64,
    pub(crate) attempt: u32,
    pub(crate) holds: usize,
    pub(crate) waiters: usize,
    pub(crate) crashes_in_window: u32,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) draining: bool,
    pub(crate) status: Option<String>,
    /// Why it is quarantined.
    pub(crate) quarantine: Option<String>,
}
