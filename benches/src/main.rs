//! `broker-bench`: what the broker costs.

use std::process::ExitCode;

fn main() -> ExitCode {
    broker_bench::main(std::env::args_os())
}
