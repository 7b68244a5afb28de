//! The command line of brokerctl: its commands, options, help and examples. Owns the words; does nothing.

mod backends;
mod processes;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(super) use backends::{Check, Demo, Events, Exec, Filter, Instance, Logs, Selected, Shutdown, Started, Wanted};
pub(super) use processes::{Cancel, Listed, Prune, Run, Waited};

const TOP_HELP: &str = "\
Examples:
  brokerctl demo                         see it work, in a temporary folder
  brokerctl resolve redis@^7             start redis if need be, print where it listens
  brokerctl exec redis -- redis-cli ping hold redis while a command runs
  brokerctl run -- make world            run a command to its end, even if the broker dies
  brokerctl status                       what runs, since when, and for how many clients

A backend is named SERVICE[@VERSION][/INSTANCE]: redis, redis@^7, redis@7.0.15/tenant-a.

Exit codes:
   0  done
   1  failed
   2  wrong usage
  69  no broker runs, or refused for good (unknown service or version, cannot be executed)
  75  refused for now: try again when the message says
  77  not permitted
`exec`, `run` and `wait` exit with the status of the command (128 + N if signal N ended it).";

/// Talks to the process broker: starts daemons on demand, says where they listen, and looks after them.
#[derive(Debug, Parser)]
#[command(
    name = "brokerctl",
    version,
    arg_required_else_help = true,
    after_help = TOP_HELP,
    max_term_width = 100,
    subcommand_value_name = "COMMAND"
)]
pub(in crate::ctl) struct Cli {
    #[command(flatten)]
    pub(in crate::ctl) global: Global,
    #[command(subcommand)]
    pub(in crate::ctl) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(in crate::ctl) struct Global {
    /// The broker's socket [default: $BROKER_SOCKET, else the user's, then the system's]
    #[arg(long, value_name = "PATH", global = true)]
    pub(in crate::ctl) socket: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub(in crate::ctl) json: bool,
    /// Wait at most this long, such as 500ms, 10s or 2m
    #[arg(long, value_name = "DURATION", value_parser = duration, global = true)]
    pub(in crate::ctl) timeout: Option<Duration>,
    /// Show no progress
    #[arg(short, long, global = true)]
    pub(in crate::ctl) quiet: bool,
    /// Show each change of state as a line on stderr
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(in crate::ctl) verbose: bool,
    /// When to use colours
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", global = true)]
    pub(in crate::ctl) color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::ctl) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum Command {
    /// Show the backends: state, clients, endpoint, and what is wrong with them.
    #[command(after_help = "\
Examples:
  brokerctl status
  brokerctl status redis/tenant-a
  brokerctl status --json | jq '.backends[] | select(.state == \"failed\")'")]
    Status(Filter),
    /// Show the services, their versions, and the problems in their files.
    #[command(after_help = "\
Examples:
  brokerctl services
  brokerctl services --json | jq -r '.services[].name'")]
    Services,
    /// Start a backend if need be, wait until it is ready, and print its endpoint.
    #[command(after_help = "\
The endpoint is unix:/path or tcp:127.0.0.1:PORT. The backend is held only until this command ends:
its idle timeout, if it has one, counts from then on. `exec` and `connect` hold it longer.

Examples:
  brokerctl resolve redis
  brokerctl resolve 'redis@>=6, <8' -i tenant-a --timeout 5s
  brokerctl resolve redis --json | jq -r .pid")]
    Resolve(Wanted),
    /// Connect stdin and stdout to a backend, starting it if need be.
    #[command(after_help = "\
The end of stdin is passed on to the backend, and what it still sends is printed: the command ends
when the backend closes the connection. If the backend crashes, it goes on with the next start of it
where the service file says `[session] resume = \"reconnect\"`, and fails otherwise.

Examples:
  brokerctl connect redis
  printf 'PING\\r\\n' | brokerctl connect redis
  ssh build-host brokerctl connect zccache@^1")]
    Connect(Wanted),
    /// Run a command while holding a backend, starting it if need be.
    #[command(
        override_usage = "brokerctl exec [OPTIONS] <SERVICE[@REQ][/INSTANCE]> -- <COMMAND>...",
        after_help = "\
COMMAND finds in its environment BROKER_ENDPOINT (unix:/path or tcp:host:port), BROKER_ADDRESS
(the bare path or host:port), BROKER_SERVICE, BROKER_VERSION, BROKER_INSTANCE, BROKER_GENERATION
and BROKER_SOCKET.

Examples:
  brokerctl exec redis -- sh -c 'redis-cli -s \"$BROKER_ADDRESS\" ping'
  brokerctl exec postgres@15/ci-7 -- cargo test"
    )]
    Exec(Exec),
    /// Start backends and wait until they are ready.
    #[command(after_help = "\
The crashes of the backends are forgotten, so a failed one is tried at once; a drain of them ends.

Examples:
  brokerctl start redis
  brokerctl start redis@7/tenant-a postgres --timeout 30s")]
    Start(Started),
    /// Stop backends and wait until nothing of them is left.
    #[command(after_help = "\
The next client starts them again; `drain` keeps clients away.
A part of the name that is left out matches all: `redis` is every version and instance of redis.

Examples:
  brokerctl stop redis/tenant-a
  brokerctl stop --all")]
    Stop(Selected),
    /// Stop backends, start them again and wait until they are ready.
    #[command(after_help = "\
The crashes of the backends are forgotten, and changed service files applied.
A part of the name that is left out matches all: `redis` is every version and instance of redis.

Examples:
  brokerctl restart redis
  brokerctl restart --all --timeout 1m")]
    Restart(Selected),
    /// Refuse new clients, and stop backends when their last client is gone.
    #[command(after_help = "\
`start` ends the drain.
A part of the name that is left out matches all: `redis` is every version and instance of redis.

Examples:
  brokerctl drain redis@7.0.3
  brokerctl drain --all")]
    Drain(Selected),
    /// Release backends from quarantine, so that the next client starts them.
    #[command(after_help = "\
A backend is in quarantine when an earlier broker left something of it of which nobody can prove whose
it is: `status` says what. Look, end it yourself if it is yours, then release the backend: what it was
held for is left alone.
A part of the name that is left out matches all: `redis` is every version and instance of redis.

Examples:
  brokerctl release redis@7.0.15/tenant-a
  brokerctl release --all")]
    Release(Selected),
    /// Run a command, or a service of kind "process", to its end, even if the broker dies meanwhile.
    #[command(override_usage = processes::RUN_USAGE, after_help = processes::RUN_HELP)]
    Run(Run),
    /// Wait until a process has ended, show its output, and end as it did.
    #[command(after_help = processes::WAIT_HELP)]
    Wait(Waited),
    /// Show the processes that `run` began: state, attempt, and how they ended.
    #[command(after_help = processes::PROCESSES_HELP)]
    Processes(Listed),
    /// End a process, and wait until it has ended.
    #[command(after_help = processes::CANCEL_HELP)]
    Cancel(Cancel),
    /// Forget processes that have ended, with their output.
    #[command(after_help = processes::PRUNE_HELP)]
    Prune(Prune),
    /// Print what backends wrote to their logs: files, or the journal of systemd.
    #[command(after_help = "\
Examples:
  brokerctl logs redis
  brokerctl logs -f -n 0 redis/tenant-a
  brokerctl logs --previous redis        with the logs of earlier starts")]
    Logs(Logs),
    /// Show what happened to backends and processes: starts, crashes, refusals, ends.
    #[command(after_help = "\
The broker keeps the last 1000 events of its life in memory. With --json each is an object on a line
of its own.

Examples:
  brokerctl events
  brokerctl events -f redis/tenant-a
  brokerctl events --since 10m
  brokerctl events -f --json | jq -r 'select(.event == \"failed\").refused.reason'")]
    Events(Events),
    /// Check service files; needs no broker.
    #[command(after_help = "\
Each problem is printed as file:line:column: error: message. Exits with 1 if there is an error;
warnings do not count.

Examples:
  brokerctl check                        the files of this user's broker, or the system's
  brokerctl check redis.toml
  brokerctl check ./services.d --json")]
    Check(Check),
    /// Have the broker read its service files again.
    #[command(after_help = "\
Backends that run keep the definition they were started with; `status` marks them as outdated,
`restart` applies the new one.

Examples:
  brokerctl reload")]
    Reload,
    /// Stop every backend, then the broker, and wait until it is gone.
    #[command(after_help = "\
Processes go on in any case, and so do backends with --handover: the next broker finds them.

Examples:
  brokerctl shutdown
  brokerctl shutdown --timeout 30s
  brokerctl shutdown --handover          then start another broker, such as a newer one")]
    Shutdown(Shutdown),
    /// Show what the broker does, with real processes; leaves nothing behind.
    #[command(after_help = "\
It runs in a temporary folder. Every statement that it prints was measured; it exits with 1 if one
does not hold.

Examples:
  brokerctl demo
  brokerctl demo --keep                  and look at the service files and logs afterwards")]
    Demo(Demo),
    /// Print a completion script for a shell.
    #[command(after_help = "\
Examples:
  brokerctl completions bash > ~/.local/share/bash-completion/completions/brokerctl
  brokerctl completions fish > ~/.config/fish/completions/brokerctl.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Reads `500ms`, `10s`, `2m`, `1h30m`.
pub(in crate::ctl) fn duration(text: &str) -> Result<Duration, String> {
    if text.parse::<f64>().is_ok() {
        return Err(format!("a unit is missing: write {text}s or {text}ms"));
    }
    let signed: jiff::SignedDuration = text.parse().map_err(|_| "write it as 500ms, 10s, 2m or 1h30m".to_owned())?;
    Duration::try_from(signed).map_err(|_| "a wait cannot be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("10"), Err("a unit is missing: write 10s or 10ms".to_owned()));
        assert!(duration("-1s").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn what_follows_the_command_of_exec_belongs_to_it() {
        for line in ["brokerctl exec redis -- ls -l --json", "brokerctl exec redis ls -l --json"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("valid");
            assert!(!cli.global.json);
            let Command::Exec(exec) = cli.command else { panic!("not exec") };
            assert_eq!(exec.command, ["ls", "-l", "--json"]);
        }
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has none", command.get_name());
        }
    }
}
