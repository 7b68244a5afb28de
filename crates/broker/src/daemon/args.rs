//! The command line of `brokerd`.

use std::path::PathBuf;

use clap::Parser;

use crate::config::{IdleExit, LogFormat, Options};

/// Starts and shares backends for the clients of its Unix socket.
///
/// It runs in the foreground unless told to detach, logs to stderr (to the journal under systemd) unless the configuration
/// names a folder, and tells a service manager that it is ready once it accepts.
#[derive(Debug, Parser)]
#[command(name = "brokerd", version, after_help = EXAMPLES)]
pub(super) struct Args {
    /// Configuration file [default: /etc/broker/broker.toml, or $XDG_CONFIG_HOME/broker/broker.toml for a user]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Socket to listen on [default: /run/broker/broker.sock, or $XDG_RUNTIME_DIR/broker/broker.sock for a user]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Folder of service files, may be given several times [default: services.d beside the configuration file]
    #[arg(long, value_name = "DIR")]
    services: Vec<PathBuf>,
    /// Folder for what outlives a start [default: /var/lib/broker, or $XDG_STATE_HOME/broker for a user]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How the log is written [default: journal under systemd, else text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// Leave when nobody has used the broker for this long, such as 10m [default: never]
    #[arg(long, value_name = "DURATION")]
    idle_exit: Option<IdleExit>,
    /// Go into the background, and return once the broker accepts; if it cannot, say why
    #[arg(long)]
    pub(super) detach: bool,
    /// Run no broker, but keep the cgroup of a unit for backends to live in; brokerd-backends.service does
    #[arg(long, exclusive = true)]
    keep_cgroup: bool,
}

const EXAMPLES: &str = "\
Examples:
  brokerd
      with the defaults of this user
  brokerd --socket /tmp/b/broker.sock --state-dir /tmp/b/state --services ./services.d
      all in places of your own; nothing else is touched
  brokerd --detach --idle-exit 10m
      in the background for as long as it is needed, as a script or a CI step starts one

Idle exit:
  The broker is used while a session is open, while somebody is connected to a backend, and while a backend is \
starting, and while durable processes of its own wait or run. A backend that merely runs does not keep the broker, not even with `idle_timeout = \"never\"`, the default: \
the broker ends it and leaves. broker.toml may say `idle_exit = \"10m\"`; this option goes over it.

In the background:
  The broker has a session of its own, the working directory /, and none of the descriptors that it was started with. \
It logs to a daily file in `log/` of the state folder, unless [log] in broker.toml names another `directory`. A service \
manager wants it in the foreground instead.

Socket activation:
  Sockets that a service manager passes (LISTEN_FDS) are served instead of one of the broker's own, and their files stay. \
Its places are those beside the first of them, or beside the one that --socket names.

The cgroup of the backends:
  With --keep-cgroup, alone, it is the main process of a systemd unit with `Delegate=yes`: it moves into a leaf of its \
own, hands the controllers `cpu`, `memory` and `pids` down as far as there are any, says that it is ready and waits for \
SIGTERM, and then for all others to end. Backends live beside it, each in a cgroup of its own, whatever becomes of the \
broker. Elsewhere it fails with exit code 78.

Signals:
  SIGTERM   ends the broker and leaves its backends to the next one on the same state folder
  SIGINT    ends the backends and then the broker
  SIGHUP    reads the service files again
Sessions are told, and have a second to close. A second SIGTERM or SIGINT ends the broker at once; what runs then is found \
by the next one, too. Durable processes run on in any case.

Service manager:
  One that starts the broker with NOTIFY_SOCKET, as systemd does, is told by sd_notify that it is ready, what goes on, of \
reloads and of its end; with WATCHDOG_USEC it is given signs of life by the loop that serves.

Exit codes: 0 ended as told, 1 failed, 2 usage, 75 another broker holds the socket or the state folder, \
78 a newer broker wrote what is in the state folder";

impl From<Args> for Options {
    fn from(args: Args) -> Self {
        let Args { config, socket, services, state_dir, log_format, idle_exit, detach, keep_cgroup: _ } = args;
        Self { config, socket, services, state_dir, log_format, idle_exit, detach, passed: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_time_to_leave_after_has_a_unit() {
        let told = |value: &str| match Args::try_parse_from(["brokerd", "--idle-exit", value]) {
            Ok(args) => format!("{:?}", Options::from(args).idle_exit),
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
        };
        insta::assert_snapshot!(told("1m 30s"), @"Some(IdleExit(Some(90s)))");
        insta::assert_snapshot!(told("never"), @"Some(IdleExit(None))");
        insta::assert_snapshot!(told("10"), @r#"error: invalid value '10' for '--idle-exit <DURATION>': `10` has no unit: write "10s" or "10ms", or "never""#);
        insta::assert_snapshot!(told("0ms"), @r#"error: invalid value '0ms' for '--idle-exit <DURATION>': must be longer than zero, or "never""#);
    }
}
