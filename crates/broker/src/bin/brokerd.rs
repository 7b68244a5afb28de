//! The broker's daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    broker::brokerd_main(std::env::args_os())
}
