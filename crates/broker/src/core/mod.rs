//! The broker's decisions: pure, without a clock, a task, a file or a process.
//!
//! Time is an argument everywhere. Whatever the outside learns comes in as an event, whatever it must do goes out as an
//! effect, so that all of it runs in the simulation as it runs in the daemon.

pub(crate) mod admission;
pub(crate) mod backend;
mod by_id;
pub(crate) mod durable;
pub(crate) mod farewell;
pub(crate) mod heartbeat;
pub(crate) mod idle_exit;
pub(crate) mod lease;
pub(crate) mod limits;
#[cfg(feature = "measured")]
pub(crate) mod measured;
pub(crate) mod notices;
pub(crate) mod patience;
pub(crate) mod quota;
pub(crate) mod readiness;
pub(crate) mod recovery;
pub(crate) mod registry;
#[cfg(test)]
mod simulation;
mod time;
pub(crate) mod trimming;
pub(crate) mod versions;
mod waiters;

pub(crate) use time::{Timestamp, first_of, millis, millis_up};

pub(crate) use by_id::{ById, IdSet};
