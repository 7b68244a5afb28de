//! Control groups (cgroup2): where they are, and what is done to them through their files.
//!
//! Nothing here decides when a backend is started or ended, and no cgroup is touched that is not the broker's own to use.

pub(crate) mod hierarchy;

/// The controllers by which the broker limits anything.
pub(crate) const LIMITING: [&str; 3] = ["cpu", "memory", "pids"];
