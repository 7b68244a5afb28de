//! The options of the commands about durable processes, and their help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use broker_proto::ProcessId;
use clap::Args;

use super::super::keeping::{Keeping, Starting};
use super::{Instance, duration};

pub(super) const RUN_USAGE: &str = "brokerctl run [OPTIONS] -- <COMMAND>...
       brokerctl run [OPTIONS] <SERVICE[@REQ][/INSTANCE]>";

pub(super) const RUN_HELP: &str = "\
The broker runs the command, and goes on if it is restarted or killed meanwhile; if the machine dies
with the command, it is run again, at most --max-attempts times. BROKER_PROCESS_ATTEMPT in its
environment says which time this is.

The same id with the same content is the same process: whoever runs it again follows it, or sees
how it ended. Without --detach its output is shown, and this command ends as it does: with its exit
code, 128 + N if signal N ended it, 124 if it took longer than --timeout, 1 if it was cancelled.
Ctrl-C ends this command alone. With --json its document is printed at the end, and no output.

COMMAND gets PATH, HOME and LANG of the broker, and what --env says: `-e PATH` passes on your own.

Examples:
  brokerctl run -- cargo test --workspace
  brokerctl run --id nightly-2026-11-22 --timeout 2h -e AWS_PROFILE -- ./backup.sh --full
  id=$(brokerctl run --detach -- make world); brokerctl wait \"$id\"
  brokerctl run backup@^1/tenant-a       a service of kind \"process\"";

pub(super) const WAIT_HELP: &str = "\
Shows the output from its beginning, unless --quiet, then ends as the process does: with its exit
code, 128 + N if signal N ended it, 124 if it took longer than it may, 1 if it was cancelled. Any
number of callers may wait, before and after the end. --timeout bounds the wait, with exit code 75,
and not the process. With --json its document is printed at the end, and no output.

Examples:
  brokerctl wait nightly-2026-11-22
  brokerctl wait --quiet --timeout 10m nightly-2026-11-22
  brokerctl wait nightly-2026-11-22 --json | jq -r .process.state";

pub(super) const PROCESSES_HELP: &str = "\
Those that have ended are listed until they are pruned.

Examples:
  brokerctl processes
  brokerctl processes nightly-2026-11-22
  brokerctl processes --json | jq -r '.processes[] | select(.state == \"failed\").id'";

pub(super) const CANCEL_HELP: &str = "\
It gets SIGTERM, then SIGKILL. The reason is kept in its record and shown to whoever waits for it.
One that has ended already stays as it was.

Examples:
  brokerctl cancel nightly-2026-11-22 --reason 'the disk is full'
  brokerctl cancel --no-wait build-1";

pub(super) const PRUNE_HELP: &str = "\
Their ids are free again. What runs is left alone.

Examples:
  brokerctl prune nightly-2026-11-22
  brokerctl prune --older-than 168h";

/// A session that outlasts its broker, and a broker that is started if there is none.
#[derive(Debug, Clone, Default, Args)]
pub(in crate::ctl) struct Lasting {
    #[command(flatten)]
    pub(in crate::ctl) keeping: Keeping,
    #[command(flatten)]
    pub(in crate::ctl) starting: Starting,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Run {
    /// A service of kind "process", a version requirement such as ^1, and an instance
    // More than one is wrong, and more is said about it than that.
    #[arg(value_name = "SERVICE[@REQ][/INSTANCE]")]
    pub(in crate::ctl) services: Vec<String>,
    #[command(flatten)]
    pub(in crate::ctl) instance: Instance,
    /// Register it under this id [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(in crate::ctl) id: Option<ProcessId>,
    /// Do not wait: print the id
    #[arg(short, long)]
    pub(in crate::ctl) detach: bool,
    /// Set a variable, or pass on your own
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(in crate::ctl) environment: Vec<String>,
    /// Run it there [default: here; a service: as its file says]
    #[arg(long, value_name = "DIR")]
    pub(in crate::ctl) cwd: Option<PathBuf>,
    /// End an attempt that takes longer, such as 500ms, 10m or 2h [default: never; a service: as its file says]
    // In the place of the option of every command: to end this command alone early, Ctrl-C is there.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::ctl) timeout: Option<Duration>,
    /// How often it is started at most, if it is lost with its machine [default: 3; a service: as its file says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::services::ATTEMPTS_MAX)))]
    pub(in crate::ctl) max_attempts: Option<u32>,
    #[command(flatten)]
    pub(in crate::ctl) lasting: Lasting,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", last = true)]
    pub(in crate::ctl) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Waited {
    /// The process
    #[arg(value_name = "ID")]
    pub(in crate::ctl) id: ProcessId,
    #[command(flatten)]
    pub(in crate::ctl) lasting: Lasting,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Listed {
    /// Only this one
    #[arg(value_name = "ID")]
    pub(in crate::ctl) id: Option<ProcessId>,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Cancel {
    /// The process
    #[arg(value_name = "ID")]
    pub(in crate::ctl) id: ProcessId,
    /// Why, for its record [default: cancelled by USER with brokerctl]
    #[arg(short, long, value_name = "TEXT")]
    pub(in crate::ctl) reason: Option<String>,
    /// Do not wait until it has ended
    #[arg(long)]
    pub(in crate::ctl) no_wait: bool,
    #[command(flatten)]
    pub(in crate::ctl) lasting: Lasting,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Prune {
    /// Only this one
    #[arg(value_name = "ID")]
    pub(in crate::ctl) id: Option<ProcessId>,
    /// Only what ended so long ago, such as 30m or 168h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::ctl) older_than: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};

    #[test]
    fn what_follows_the_dashes_of_run_is_the_command() {
        let cli =
            Cli::try_parse_from("brokerctl run -e A=1 --timeout 5s -- ls -l --json -- x".split(' ')).expect("valid");
        assert!(!cli.global.json);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.command, ["ls", "-l", "--json", "--", "x"]);
        assert_eq!((run.services.len(), run.environment), (0, vec!["A=1".to_owned()]));
        assert_eq!(run.timeout, Some(std::time::Duration::from_secs(5)));
    }

    #[test]
    fn the_timeout_of_run_is_its_own_wherever_it_stands() {
        for line in ["brokerctl --timeout 5s run x", "brokerctl run --timeout 5s x", "brokerctl run x --timeout 5s"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("valid");
            let Command::Run(run) = cli.command else { panic!("not run") };
            assert_eq!((run.services, run.timeout.is_some()), (vec!["x".to_owned()], true), "{line}");
        }
    }
}
