//! The broker as a citizen of a real systemd: each trial boots a machine of its own with the shipped unit files.
//!
//! Each module is one theme. Where no machine can be booted, every trial is reported as ignored, with the reason.

mod access;
mod cgroups;
mod installing;
mod keeper;
mod logs;
mod manager;
mod packaging;
mod restarts;
mod sockets;
mod units;
mod users;

use std::process::ExitCode;

use broker_tests::{machine_hindrance, machine_lacks, skipped, trial};

/// Machines at a time.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let machines = machine_hindrance();
    let modules = [
        (packaging::TRIALS, packaging::hindrance()),
        (installing::TRIALS, machine_lacks(&["systemd-analyze"])),
        (cgroups::with_controllers::TRIALS, cgroups::with_controllers::hindrance()),
        (cgroups::TRIALS, None),
        (keeper::TRIALS, None),
        (restarts::TRIALS, None),
        (manager::TRIALS, None),
        (access::TRIALS, machine_lacks(&["useradd"])),
        (users::TRIALS, machine_lacks(&["useradd"])),
        (logs::TRIALS, machine_lacks(&["useradd", "gpasswd"])),
        (sockets::TRIALS, machine_lacks(&["python3"])),
        (units::TRIALS, machine_lacks(&["systemd-analyze"])),
    ];
    let mut trials = Vec::new();
    for (module, hindrance) in modules {
        let hindrance = machines.clone().or(hindrance);
        trials.extend(module.iter().map(|&(name, test)| match &hindrance {
            Some(reason) => skipped(name, reason),
            None => trial(name, test),
        }));
    }
    broker_tests::run_at_once(THREADS, trials).exit_code()
}
