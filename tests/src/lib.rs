//! The house of the end-to-end tests: a broker in a folder of its own that ends with the test and leaves nothing behind,
//! services made of the fake backend, commands whose output is looked at, sessions that speak the protocol by hand, and
//! machines with a systemd of their own.
//!
//! Nothing here waits for a time: it waits for a state, with one generous bound ([`BOUND`]).

mod broker;
mod cgroups;
mod command;
mod deaths;
mod dial;
mod keeper;
mod leftovers;
mod machine;
mod programs;
mod service;
mod session;
mod setup;
mod wait;

pub use broker::Broker;
pub use cgroups::{
    cgroup_hindrance, cgroup_of, is_root as is_root_cgroup, members as cgroup_members, own_cgroup, remove_cgroups,
};
pub use command::{Output, Running};
pub use dial::Connection;
pub use leftovers::{end_processes, process_exists, processes_mentioning};
pub use machine::{Machine, User, machine_hindrance, machine_lacks};
pub use programs::{fake_backend, find_program, missing, sibling};
pub use service::Service;
pub use session::{Answer, Asked, Session};
pub use setup::Setup;
pub use wait::{BOUND, monotonic_ms, wait_for, wait_until};

use libtest_mimic::{Arguments, Conclusion, Trial};

/// Tests run at the same time: they wait much and compute little.
const THREADS: usize = 6;

/// Names the tests of a module, each a function without arguments, for [`run`].
///
/// A test that is not named is dead code, which the compiler reports.
#[macro_export]
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        pub(crate) const TRIALS: &[(&str, fn())] =
            &[$((concat!(module_path!(), "::", stringify!($test)), $test)),*];
    };
}

/// A trial that passes unless the function panics.
#[must_use]
pub fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name.split_once("::").map_or(name, |(_, name)| name), move || {
        test();
        Ok(())
    })
}

/// A trial that cannot run here, shown as ignored with the reason in its name.
#[must_use]
pub fn skipped(name: &str, reason: &str) -> Trial {
    Trial::test(format!("{name} [skipped: {reason}]"), || Ok(())).with_ignored_flag(true)
}

/// Runs trials as `cargo test` expects it, several at a time.
pub fn run(trials: Vec<Trial>) -> Conclusion {
    run_at_once(THREADS, trials)
}

/// The same, so many at a time.
pub fn run_at_once(threads: usize, trials: Vec<Trial>) -> Conclusion {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(threads);
    libtest_mimic::run(&arguments, trials)
}
