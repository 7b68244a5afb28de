//! The goals, each with what it is measured by.

mod cold;
mod cost;
mod journal;
mod killed;
pub(crate) mod large;
mod load;
mod memory;
mod racing;
mod registry;
mod throughput;
pub(crate) mod warm;

pub(crate) use load::load;

use crate::report::Row;
use crate::world::World;

type Measure = fn(&mut World) -> Vec<Row>;

/// Their numbers, names and measurements.
pub(crate) const GOALS: [(u8, &str, Measure); 9] = [
    (1, "a warm Hello", warm::measure),
    (2, "what the server spends on it, and while idle", cost::measure),
    (3, "throughput", throughput::measure),
    (4, "a cold Hello", cold::measure),
    (5, "many waiters", racing::measure),
    (6, "a Hello after SIGKILL of the backend", killed::measure),
    (7, "a large registry", registry::measure),
    (8, "memory, and the start", memory::measure),
    (9, "the journal", journal::measure),
];
