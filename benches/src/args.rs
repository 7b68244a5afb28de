//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures what the process broker costs, against bare servers in the same run.
#[derive(Debug, Parser)]
#[command(name = "broker-bench")]
pub(crate) struct Args {
    /// Fewer rounds: everything in less than two minutes
    #[arg(long)]
    pub(crate) quick: bool,

    /// Only these goals, by their numbers
    #[arg(long, value_name = "GOAL,...", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) only: Vec<u8>,

    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Where brokers have their sockets and state; a folder with a short path. One in memory takes the disk out
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub(crate) folder: PathBuf,

    /// Do not build brokerd and the programs of the benchmark first, though cargo started this
    #[arg(long)]
    pub(crate) no_build: bool,

    /// The brokerd to measure, instead of the one that is built
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) brokerd: Option<PathBuf>,

    /// Measure nothing: put one broker under this load for ten seconds, for a profiler to look at
    #[arg(long, value_name = "LOAD", conflicts_with_all = ["only", "json", "strict"])]
    pub(crate) load: Option<Load>,

    /// Exit with 1 if a goal was not met
    #[arg(long)]
    pub(crate) strict: bool,
}

/// One client's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// A connection for each Hello
    Connect,
    /// A session that is kept
    Kept,
    /// A connection for each Hello, and a connected socket with each answer
    Connected,
    /// 64 clients at once, a connection for each Hello
    Many,
    /// 64 sessions that are kept
    ManyKept,
    /// A new backend for each Hello, stopped again
    Cold,
}

impl Args {
    pub(crate) fn wants(&self, goal: u8) -> bool {
        self.only.is_empty() || self.only.contains(&goal)
    }

    /// One number for a quick run and one for a full one.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}
