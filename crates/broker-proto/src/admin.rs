//! What operators order and ask.
//!
//! Texts stay texts here, and enums grow only at the end, as in `message`.

use serde::{Deserialize, Serialize};

/// Orders and reports of an operator: root, or the user that the broker runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Reports the broker and every backend.
    Status,
    /// Reports the services and their versions.
    Services,
    /// Starts one backend and waits until it is ready; clears its crash budget and its drain.
    Start {
        /// Which. A version is picked as for a Hello.
        target: Target,
        /// How long to wait, in milliseconds.
        deadline_ms: Option<u64>,
    },
    /// Stops backends and waits until nothing of them is left.
    Stop {
        /// Which.
        selection: Selection,
        /// How long to wait, in milliseconds.
        deadline_ms: Option<u64>,
    },
    /// Stops backends, starts them again and waits until they are ready; clears their crash budgets.
    Restart {
        /// Which.
        selection: Selection,
        /// How long to wait, in milliseconds.
        deadline_ms: Option<u64>,
    },
    /// Refuses new Hellos for backends, and stops each when its last hold is gone.
    Drain {
        /// Which.
        selection: Selection,
    },
    /// Names the log files of backends.
    Logs {
        /// Which.
        selection: Selection,
    },
    /// Reads the service files again.
    Reload,
    /// Stops every backend, then the broker.
    Shutdown,
    /// Reports what happened to backends, held by this session or not.
    Events {
        /// Of which.
        selection: Selection,
        /// Only what came after: `next` of an earlier report. `None` is all that is kept.
        after: Option<String>,
        /// How long to wait, in milliseconds, if nothing came after; `None` answers at once.
        wait_ms: Option<u64>,
    },
    /// Releases backends from quarantine: the next Hello starts them. What they were held for is left alone.
    Release {
        /// Which.
        selection: Selection,
    },
    /// Ends the broker and keeps its backends for the next one.
    HandOver,
    /// Registers a durable process, which is run to its end under its id even if the broker dies meanwhile. The same
    /// again under the same id is no second one.
    Run {
        /// What.
        spec: ProcessSpec,
    },
    /// Reports a durable process once it has ended.
    Wait {
        /// Its id.
        id: String,
        /// How long to wait for its end, in milliseconds; then it is reported as it is. `None` waits for ever.
        wait_ms: Option<u64>,
    },
    /// Reports the durable processes.
    Processes {
        /// Only this one.
        id: Option<String>,
    },
    /// Ends a durable process: SIGTERM, then SIGKILL. Answered at once; `Wait` sees the end.
    Cancel {
        /// Its id.
        id: String,
        /// Why, for its record.
        reason: String,
    },
    /// Forgets durable processes that have ended, with their output.
    Prune {
        /// Only this one.
        id: Option<String>,
        /// Only those that ended so many milliseconds ago or earlier.
        older_than_ms: Option<u64>,
    },
}

/// A durable process to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Under which it is registered ([`ProcessId`](crate::ProcessId)); `None` has the broker choose one.
    pub id: Option<String>,
    /// What is run.
    pub work: Work,
    /// Variables on top of what the broker passes on (`PATH`, `HOME`, `LANG`, or what the service file says), in order.
    pub environment: Vec<(String, String)>,
    /// Where it runs; `None` is what the service file says, or `/`.
    pub working_directory: Option<String>,
    /// How long one attempt may take, in milliseconds; `None` is what the service file says, or for ever.
    pub timeout_ms: Option<u64>,
    /// How often it is started at most, when attempts are lost with their machine or their reaper; `None` is what the
    /// service file says, or 3.
    pub max_attempts: Option<u32>,
}

/// What a durable process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// A program, by its path or a name that is looked for in `PATH`, and its arguments.
    Command {
        /// The program first.
        argv: Vec<String>,
    },
    /// A service of kind `process`.
    Service {
        /// Which. A version is picked as for a Hello.
        target: Target,
    },
}

/// One backend to be, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The instance.
    pub instance: String,
    /// The service.
    pub service: String,
    /// Which version.
    pub version_requirement: String,
}

/// Backends that exist; a part that is absent matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The instance.
    pub instance: Option<String>,
    /// The service.
    pub service: Option<String>,
    /// Which versions.
    pub version_requirement: Option<String>,
}
