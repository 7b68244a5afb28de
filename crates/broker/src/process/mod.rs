//! Processes: how they are spawned, watched, attributed and ended.
//!
//! Everything here performs and reports; when a process is started or ended is decided elsewhere. Nothing here waits on
//! the driver's thread, except where a function says that it belongs there, and those never block.

pub(crate) mod boot;
pub(crate) mod census;
pub(crate) mod cgroup;
pub(crate) mod exit;
pub(crate) mod forked;
pub(crate) mod group;
pub(crate) mod identity;
pub(crate) mod kernel;
pub(crate) mod leftovers;
pub(crate) mod log_file;
pub(crate) mod log_place;
pub(crate) mod orphans;
pub(crate) mod pool;
pub(crate) mod printable;
pub(crate) mod proc;
pub(crate) mod spare;
pub(crate) mod spawn;
pub(crate) mod start;
pub(crate) mod start_record;
#[cfg(test)]
pub(crate) mod testing;
