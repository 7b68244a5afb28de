//! What a service file limits of each start, and what of that does not hold.
//!
//! Plain data: what enforces it, and where, is decided elsewhere.

use serde::{Deserialize, Serialize};

/// The limits of one start; what is not there is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Bytes of memory, of all processes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_max: Option<u64>,
    /// Processes and threads, together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tasks_max: Option<u64>,
    /// From 1 to 10000, where one without has 100: the share of the processors, where they are wanted by more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_weight: Option<u64>,
    /// Open files of each process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nofile: Option<u64>,
}

/// A limit that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unenforced {
    /// Its key in the service file.
    pub(crate) limit: String,
    pub(crate) why: String,
}

/// One that a controller of cgroup2 enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfCgroup {
    /// Its key in the service file.
    pub(crate) limit: &'static str,
    pub(crate) controller: &'static str,
    /// Where it is written.
    pub(crate) file: &'static str,
    pub(crate) value: u64,
}

impl Limits {
    /// Whether nothing is limited.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that are a cgroup's.
    pub(crate) fn of_cgroup(&self) -> Vec<OfCgroup> {
        let all = [
            ("memory_max", "memory", "memory.max", self.memory_max),
            ("tasks_max", "pids", "pids.max", self.tasks_max),
            ("cpu_weight", "cpu", "cpu.weight", self.cpu_weight),
        ];
        let set = all.into_iter().filter_map(|(limit, controller, file, value)| {
            value.map(|value| OfCgroup { limit, controller, file, value })
        });
        set.collect()
    }

    /// What of it does not hold where there is no cgroup.
    pub(crate) fn without_a_cgroup(&self, why: &str) -> Vec<Unenforced> {
        self.of_cgroup().iter().map(|of| Unenforced { limit: of.limit.to_owned(), why: why.to_owned() }).collect()
    }
}
