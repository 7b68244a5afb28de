//! The command line of `brokerd`.

use std::path::PathBuf;

use clap::Parser;

use crate::config::{LogFormat, Options};

/// Starts and shares backends for the clients of its Unix socket.
///
/// It runs in the foreground, logs to stderr unless the configuration names a folder, and says that it is ready by
/// sd_notify once it accepts.
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
    /// How the log is written
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

const EXAMPLES: &str = "\
Examples:
  brokerd
      with the defaults of this user
  brokerd --socket /tmp/b/broker.sock --state-dir /tmp/b/state --services ./services.d
      all in places of your own; nothing else is touched

Signals:
  SIGTERM, SIGINT  end the backends and then the broker; a second one ends it at once
  SIGHUP           read the service files again

Exit codes: 0 ended as told, 1 failed, 2 usage, 75 another broker holds the socket or the state folder";

impl From<Args> for Options {
    fn from(args: Args) -> Self {
        let Args { config, socket, services, state_dir, log_format } = args;
        Self { config, socket, services, state_dir, log_format }
    }
}
