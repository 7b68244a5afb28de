//! What the driver and the keeper of durable processes say to each other.

use broker_proto::{ProcessId, Refusal, RequestId};
use serde_json::Value;

use super::spec::Registration;
use crate::core::backend::Ticket;
use crate::core::durable::Ended;
use crate::daemon::session::SessionId;

/// Who asks, and under which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) session: SessionId,
    pub(super) request_id: RequestId,
}

/// What the keeper is told.
#[derive(Debug)]
pub(super) enum Order {
    Run {
        asker: Asker,
        registration: Box<Registration>,
    },
    Wait {
        ticket: Ticket,
        id: ProcessId,
    },
    /// The wait is answered as it is.
    WaitIsOver {
        ticket: Ticket,
    },
    /// Nobody waits any more.
    Forget {
        ticket: Ticket,
    },
    List {
        asker: Asker,
        id: Option<ProcessId>,
    },
    Cancel {
        asker: Asker,
        id: ProcessId,
        reason: String,
    },
    Prune {
        asker: Asker,
        id: Option<ProcessId>,
        older_than_ms: Option<u64>,
    },
    /// The leases are given up, and the keeper ends.
    Stop,
}

/// What the keeper tells.
#[derive(Debug)]
pub(in crate::daemon) enum News {
    Waited { ticket: Ticket, result: Result<Value, Box<Refusal>> },
    Happened { id: ProcessId, happening: Happening },
}

/// Something that happened to a durable process, as far as this broker had a part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) enum Happening {
    Registered,
    Started { attempt: u32, pid: Option<i32> },
    Adopted { attempt: u32, pid: Option<i32> },
    Lost { attempt: u32 },
    Ended { state: &'static str, attempt: u32, ended: Ended, reason: Option<String> },
}
