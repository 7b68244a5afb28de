//! The broker's decisions: pure, without a clock, a task, a file or a process.

pub(crate) mod admission;
pub(crate) mod versions;
