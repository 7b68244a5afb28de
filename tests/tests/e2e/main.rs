//! The broker as its users see it: brokerd, brokerctl, and daemons that do as they are told.
//!
//! Each module is one theme; what is in it is listed at its head. The slow ones come first: tests run several at a time.

mod access;
mod activation;
mod adoption;
mod autostart;
mod background;
mod blocking;
mod bridging;
mod cgroups;
mod demand;
mod doubts;
mod ends;
mod events;
mod examples;
mod farewell;
mod files;
mod following;
mod healing;
mod heartbeats;
mod hygiene;
mod idle_exit;
mod library;
mod lifecycle;
mod limits;
mod manager;
mod namespaces;
mod operators;
mod processes;
mod python;
mod racing;
mod readiness;
mod recovery;
mod refusals;
mod resumable;
mod robustness;
mod streams;
mod waiters;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        adoption::MANY,
        adoption::TORTURE,
        healing::RESTARTS,
        adoption::EVERYWHERE,
        healing::TRIALS,
        heartbeats::TRIALS,
        idle_exit::TRIALS,
        manager::TRIALS,
        adoption::STARTING,
        adoption::KEPT,
        adoption::TAKEN_OVER,
        adoption::BUDGET,
        adoption::STRANGERS,
        adoption::TROUBLE,
        readiness::TRIALS,
        recovery::TRIALS,
        doubts::TRIALS,
        demand::TRIALS,
        ends::TRIALS,
        processes::torture::TRIALS,
        processes::sharing::TRIALS,
        processes::surviving::TRIALS,
        processes::ending::TRIALS,
        processes::TRIALS,
        background::TRIALS,
        autostart::TRIALS,
        racing::TRIALS,
        lifecycle::TRIALS,
        limits::TRIALS,
        waiters::TRIALS,
        hygiene::TRIALS,
        refusals::TRIALS,
        operators::TRIALS,
        events::TRIALS,
        following::TRIALS,
        resumable::TRIALS,
        farewell::TRIALS,
        files::TRIALS,
        robustness::TRIALS,
        streams::TRIALS,
        bridging::TRIALS,
        library::TRIALS,
        blocking::TRIALS,
        examples::TRIALS,
    ];
    let needy = [
        (python::TRIALS, python::hindrance()),
        (python::another_user::TRIALS, python::another_user::hindrance()),
        (namespaces::TRIALS, namespaces::hindrance()),
        (namespaces::in_python::TRIALS, namespaces::in_python::hindrance()),
        (access::TRIALS, access::hindrance()),
        (activation::TRIALS, activation::hindrance()),
        (cgroups::TRIALS, broker_tests::cgroup_hindrance()),
        (adoption::full::TRIALS, adoption::full::hindrance()),
    ];
    let others = modules.into_iter().map(|module| (module, None));
    let mut trials = Vec::new();
    for (module, hindrance) in needy.into_iter().chain(others) {
        trials.extend(module.iter().map(|&(name, test)| match hindrance {
            Some(reason) => broker_tests::skipped(name, reason),
            None => broker_tests::trial(name, test),
        }));
    }
    broker_tests::run(trials).exit_code()
}
