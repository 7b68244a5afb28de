//! Control groups (cgroup2): where they are, and what is done to them through their files.
//!
//! Nothing here decides when a backend is started or ended, and no cgroup is touched that is not the broker's own to use.
//! Wherever there is none, or not one that may be used, process groups and evidence do as well as they can.

mod end;
pub(crate) mod hierarchy;
mod leaf;
mod limits;
mod place;
pub(crate) mod unit;
#[cfg(test)]
pub(crate) use self::place::testing;

pub(crate) use self::leaf::Leaf;
pub(crate) use self::limits::impossible;
pub(crate) use self::place::{NoPlace, Place};

/// The controllers by which the broker limits anything.
pub(crate) const LIMITING: [&str; 3] = ["cpu", "memory", "pids"];

/// The leaf that the keeper of a unit for backends lives in: a cgroup that hands controllers down may have no processes
/// of its own.
pub(crate) const KEEPER: &str = "keeper";
