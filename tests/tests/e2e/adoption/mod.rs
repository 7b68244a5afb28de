//! What outlives a broker is the next one's, whatever that one died of: nothing is lost, nothing is started twice.

mod agreement;
mod budget;
mod everywhere;
mod journal;
mod kept;
mod many;
mod starting;
mod strangers;
mod taken_over;
mod torture;
mod trouble;

use broker_proto::{AdminRequest, ClientMessage, Selection};
use broker_tests::{Broker, Service, Session, Setup};
use nix::sys::signal::Signal;
use serde_json::Value;

pub(crate) use budget::TRIALS as BUDGET;
pub(crate) use everywhere::TRIALS as EVERYWHERE;
pub(crate) use kept::TRIALS as KEPT;
pub(crate) use many::TRIALS as MANY;
pub(crate) use starting::TRIALS as STARTING;
pub(crate) use strangers::TRIALS as STRANGERS;
pub(crate) use taken_over::TRIALS as TAKEN_OVER;
pub(crate) use torture::TRIALS as TORTURE;
pub(crate) use trouble::{TRIALS as TROUBLE, full};

/// Kinds of daemons, each a service.
const KINDS: [&str; 6] = ["path", "port", "says", "passed", "away", "workers"];

/// The service of that kind. Its daemon screams if another of its key lives.
fn kind(name: &str) -> Service {
    let fake = |more: &[&str]| Service::fake(name, &[&["--lock", "{starts}.lock"], more].concat());
    match name {
        "path" => fake(&[]),
        "port" => fake(&[]).toml("[endpoint]\nkind = \"tcp\""),
        // What it says while no broker listens is made good when its time is over.
        "says" => fake(&["--notify"]).toml("[readiness]\nprobe = \"notify\"\nhard_ceiling = \"3s\""),
        "passed" => {
            Service::fake_on_passed_socket(name, &["--lock", "{starts}.lock"]).toml("[readiness]\nprobe = \"socket\"")
        }
        "away" => fake(&["--fork-away"]),
        "workers" => fake(&["--workers", "2"]),
        other => panic!("there is no kind {other}"),
    }
}

/// A window that no test outlasts, however busy the machine is.
const LONG_WINDOW: &str = "[recovery]\nbudget_window = \"1h\"";

/// What a broker of every kind is started with.
fn every_kind() -> Setup {
    KINDS.iter().fold(Setup::new(), |setup, name| setup.service(&kind(name).toml(LONG_WINDOW)))
}

/// Every backend of a service.
fn all_of(service: &str) -> Selection {
    Selection { service: Some(service.to_owned()), ..Selection::default() }
}

/// Gives an order to a broker that may not live to answer it. The session must outlive the order: a broker that cannot
/// write to whoever connects does not read what he has yet to say.
#[must_use]
fn order(broker: &Broker, request: AdminRequest) -> Session {
    let mut session = broker.session();
    session.send(&ClientMessage::Admin { request_id: u64::from(u32::MAX), request });
    session
}

fn pid_of(backend: &Value) -> u64 {
    backend["pid"].as_u64().unwrap_or_else(|| panic!("it does not run: {backend}"))
}

/// The process of a backend, once a daemon that forks away has done so: it may be ready an instant before.
#[track_caller]
fn settled(broker: &Broker, service: &str) -> u64 {
    let backend = broker.resolve(service);
    let serving = broker.dial(&backend).pid();
    // One with workers never answers itself.
    let is_settled = |backend: &Value| service == "workers" || backend["pid"] == serving;
    pid_of(&broker.wait_backend(service, "the one that serves", is_settled))
}

fn kill(pid: u64) {
    signal(pid, Signal::SIGKILL);
}

fn signal(pid: u64, signal: Signal) {
    let pid = i32::try_from(pid).expect("a process number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it runs");
}

/// Resolves a service and asks what serves there; its process, and the backend.
#[track_caller]
fn served(broker: &Broker, service: &str) -> (u64, Value) {
    let backend = broker.resolve(service);
    (broker.dial(&backend).pid(), backend)
}
