//! The process broker: everything behind `brokerd` and `brokerctl`.
//!
//! Dependencies point one way: the bins call `daemon` and `ctl`, `daemon` drives `core` and performs its effects through
//! `process`, `net` and `services`. `core` is pure and knows none of them.

mod cgroup_keeper;
mod config;
mod core;
mod ctl;
mod daemon;
mod documents;
mod failpoint;
mod journal;
mod journald;
mod net;
mod process;
mod reaper;
mod services;
mod store;

#[cfg(feature = "measured")]
pub use core::measured::Machines;
pub use ctl::main as brokerctl_main;
pub use daemon::main as brokerd_main;
