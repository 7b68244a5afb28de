//! What the broker costs, measured against bare servers in the same run: `cargo run --release -p broker-bench`.
//!
//! Every figure is a ratio or a difference between the broker and something that does only what must be done: a bare echo
//! server, or the daemon started by hand. Both take turns, so that whatever else the machine does meets both alike.

mod args;
mod broker;
mod cgroups;
mod children;
mod client;
mod contest;
mod echo;
mod facts;
mod folder;
mod goals;
mod kernel;
mod programs;
mod report;
mod run;
mod stats;
mod strace;
mod swarm;
mod world;

pub use facts::{Facts, die_with_parent, monotonic_ns};
pub use run::main;
