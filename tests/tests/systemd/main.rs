//! The broker as a citizen of a real systemd: each trial boots a machine of its own with the shipped unit files.
//!
//! Each module is one theme. Where no machine can be booted, every trial is reported as ignored, with the reason.

mod installing;
mod units;

use std::process::ExitCode;

/// Machines at a time.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let modules = [installing::TRIALS, units::TRIALS];
    let hindrance = broker_tests::machine_hindrance();
    let trials = modules.into_iter().flatten().map(|&(name, test)| match &hindrance {
        Some(reason) => broker_tests::skipped(name, reason),
        None => broker_tests::trial(name, test),
    });
    broker_tests::run_at_once(THREADS, trials.collect()).exit_code()
}
