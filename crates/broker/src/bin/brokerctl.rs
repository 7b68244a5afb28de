//! The broker's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    broker::brokerctl_main(std::env::args_os())
}
