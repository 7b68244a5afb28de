//! The options of the commands about backends, and of those about nothing that runs.

use std::path::PathBuf;
use std::time::Duration;

use broker_proto::{Address, InstanceName};
use clap::{ArgGroup, Args};

use super::super::keeping::{Keeping, Starting};
use super::duration;

/// One backend that a client asks for.
#[derive(Debug, Clone, Args)]
pub(in crate::ctl) struct Wanted {
    /// The service, a version requirement such as ^7, and an instance
    #[arg(value_name = "SERVICE[@REQ][/INSTANCE]")]
    pub(in crate::ctl) backend: Address,
    #[command(flatten)]
    pub(in crate::ctl) instance: Instance,
    #[command(flatten)]
    pub(in crate::ctl) keeping: Keeping,
    #[command(flatten)]
    pub(in crate::ctl) starting: Starting,
}

#[derive(Debug, Clone, Default, Args)]
pub(in crate::ctl) struct Instance {
    /// The instance, unless the name says it
    #[arg(short, long, value_name = "INSTANCE")]
    pub(in crate::ctl) instance: Option<InstanceName>,
}

/// Several backends that an operator asks for.
#[derive(Debug, Clone, Args)]
pub(in crate::ctl) struct Started {
    /// The service, a version requirement such as ^7, and an instance
    #[arg(value_name = "SERVICE[@REQ][/INSTANCE]", required = true)]
    pub(in crate::ctl) backends: Vec<Address>,
    #[command(flatten)]
    pub(in crate::ctl) instance: Instance,
}

/// Backends that exist.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["backends", "all"]))]
pub(in crate::ctl) struct Selected {
    /// The service, a version requirement such as ^7, and an instance
    #[arg(value_name = "SERVICE[@REQ][/INSTANCE]")]
    pub(in crate::ctl) backends: Vec<Address>,
    /// All backends, or all of the instance
    #[arg(short, long)]
    pub(in crate::ctl) all: bool,
    #[command(flatten)]
    pub(in crate::ctl) instance: Instance,
}

/// Backends that exist; none named means all.
#[derive(Debug, Clone, Args)]
pub(in crate::ctl) struct Filter {
    /// Only these; a part that is left out matches all
    #[arg(value_name = "SERVICE[@REQ][/INSTANCE]")]
    pub(in crate::ctl) backends: Vec<Address>,
    #[command(flatten)]
    pub(in crate::ctl) instance: Instance,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Exec {
    #[command(flatten)]
    pub(in crate::ctl) wanted: Wanted,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(in crate::ctl) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Logs {
    #[command(flatten)]
    pub(in crate::ctl) filter: Filter,
    #[command(flatten)]
    pub(in crate::ctl) keeping: Keeping,
    /// Go on printing what is written, over restarts of backends and of the broker
    #[arg(short, long)]
    pub(in crate::ctl) follow: bool,
    /// Begin with the last LINES lines of each log
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 50)]
    pub(in crate::ctl) lines: usize,
    /// Print the logs of earlier starts too
    #[arg(short, long)]
    pub(in crate::ctl) previous: bool,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Events {
    #[command(flatten)]
    pub(in crate::ctl) filter: Filter,
    #[command(flatten)]
    pub(in crate::ctl) keeping: Keeping,
    /// Go on printing what happens
    #[arg(short, long)]
    pub(in crate::ctl) follow: bool,
    /// Begin with the last LINES events [default: 50, or all that --since admits]
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(in crate::ctl) lines: Option<usize>,
    /// Begin with what happened in this last while, such as 10m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::ctl) since: Option<Duration>,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Shutdown {
    /// Keep the backends for the next broker
    #[arg(long)]
    pub(in crate::ctl) handover: bool,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Check {
    /// Service files, or directories of them [default: the broker's own]
    #[arg(value_name = "FILE|DIR")]
    pub(in crate::ctl) paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Demo {
    /// Keep the temporary folder
    #[arg(long)]
    pub(in crate::ctl) keep: bool,
}
