//! The broker as its users see it: brokerd, brokerctl, and daemons that do as they are told.
//!
//! Each module is one theme; what is in it is listed at its head. The slow ones come first: tests run several at a time.

mod access;
mod ends;
mod files;
mod hygiene;
mod library;
mod lifecycle;
mod operators;
mod racing;
mod readiness;
mod recovery;
mod refusals;
mod robustness;
mod streams;
mod waiters;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        readiness::TRIALS,
        recovery::TRIALS,
        ends::TRIALS,
        racing::TRIALS,
        lifecycle::TRIALS,
        waiters::TRIALS,
        hygiene::TRIALS,
        refusals::TRIALS,
        operators::TRIALS,
        files::TRIALS,
        robustness::TRIALS,
        streams::TRIALS,
        library::TRIALS,
    ];
    let mut trials: Vec<_> =
        modules.into_iter().flatten().map(|&(name, test)| broker_tests::trial(name, test)).collect();
    let hindrance = access::hindrance();
    trials.extend(access::TRIALS.iter().map(|&(name, test)| match hindrance {
        Some(reason) => broker_tests::skipped(name, reason),
        None => broker_tests::trial(name, test),
    }));
    broker_tests::run(trials).exit_code()
}
