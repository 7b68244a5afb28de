//! What systemd is told of the broker, and what it does about one that hangs.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use broker_proto::AdminRequest;
use broker_tests::{Machine, Service, trials, wait_until};
use nix::sys::signal::Signal;
use rusqlite::Connection;
use serde_json::Value;

trials![
    a_slow_disk_is_no_reason_to_restart_the_broker,
    a_stop_takes_the_time_that_a_backend_is_given,
    a_broker_that_cannot_end_is_given_no_time_for_ever,
    a_stopped_broker_is_killed_and_the_next_one_has_its_backends,
    a_stuck_broker_is_killed_and_the_next_one_has_its_backends,
    the_status_tells_what_goes_on,
    a_reload_is_one_for_systemd_too,
    it_is_not_ready_before_it_has_found_what_an_earlier_one_left,
];

const UNIT: &str = "brokerd.service";

/// A machine whose broker runs with these settings of its unit.
fn machine(settings: &str, services: &[&Service]) -> Machine {
    let machine = Machine::boot();
    services.iter().for_each(|service| machine.service(service));
    machine.drop_in(UNIT, &format!("[Service]\n{settings}\n"));
    machine.systemctl(&["start", UNIT]);
    machine
}

fn status(machine: &Machine) -> String {
    machine.property(UNIT, "StatusText")
}

fn wait_status(machine: &Machine, begins: &str) -> String {
    machine.wait_property(UNIT, "StatusText", |text| text.starts_with(begins))
}

fn restarts(machine: &Machine) -> String {
    machine.property(UNIT, "NRestarts")
}

/// Waits until systemd has restarted it: once at least, for on a busy machine the next one may be too slow as well.
fn wait_restart(machine: &Machine) {
    let _ = machine.wait_property(UNIT, "NRestarts", |number| number != "0");
}

/// The same process and generation, taken over.
#[track_caller]
fn assert_kept(machine: &Machine, before: &Value) {
    let service = before["service"].as_str().expect("a name");
    let after = machine.resolve(service);
    assert_eq!((&after["pid"], &after["generation"]), (&before["pid"], &before["generation"]), "{service}");
    assert_eq!(machine.starts(service).len(), 1, "{service}");
}

fn the_status_tells_what_goes_on() {
    let machine = machine("", &[&Service::fake("x", &[])]);
    assert!(status(&machine).starts_with("no backends; "), "{}", status(&machine));
    let backend = machine.resolve("x");
    wait_status(&machine, "1 backend ready; no sessions");
    let facts = machine.dial(&backend).facts();
    let names = facts["environment"].as_object().expect("variables").keys();
    let told: Vec<_> =
        names.filter(|name| ["NOTIFY", "WATCHDOG", "LISTEN"].iter().any(|of| name.starts_with(of))).collect();
    assert!(told.is_empty(), "what systemd tells the broker is for the broker: {told:?}");
    let session = machine.session();
    wait_status(&machine, "1 backend ready; 1 session");
    drop(session);
    let _ = machine.ctl(&["stop", "x"]).done();
    wait_status(&machine, "no backends; no sessions");
}

fn a_reload_is_one_for_systemd_too() {
    let machine = machine("", &[&Service::fake("x", &[])]);
    let pid = machine.main_pid(UNIT);
    machine.service(&Service::fake("y", &[]));
    machine.systemctl(&["reload", UNIT]);
    wait_status(&machine, "reloaded 2 services, 1 added; ");
    machine.wait_unit(UNIT, "active");
    machine.write("/etc/broker/services.d/z.toml", "[service]\nnme = \"z\"\n");
    // One that systemd did not ask for: it was told, or the unit has been active all the time.
    let since = || machine.property(UNIT, "StateChangeTimestampMonotonic");
    let before = since();
    // What came of a reload is said until something else is to be said: whoever asks for it stays.
    let mut session = machine.session();
    let _ = machine.wait_property(UNIT, "StatusText", |text| text.contains("1 session"));
    let _ = session.admin(AdminRequest::Reload).expect("it is the operator's");
    let text = wait_status(&machine, "reloaded 2 services; ");
    assert!(text.contains("/etc/broker/services.d/z.toml"), "{text}");
    machine.wait_unit(UNIT, "active");
    assert_ne!(since(), before, "it was reloading");
    assert_eq!(machine.main_pid(UNIT), pid);
}

fn it_is_not_ready_before_it_has_found_what_an_earlier_one_left() {
    let machine = machine("", &[&Service::fake("x", &[])]);
    let before = machine.resolve("x");
    let limits = "[Service]\nTimeoutStartSec=3s\nTimeoutStopSec=1s\nRestart=no\n";
    machine.drop_in(UNIT, &format!("{limits}Environment=BROKER_FAILPOINT=stuck:sweep-done\n"));
    let restart = machine.spawn(&["systemctl", "restart", UNIT]);
    let _ = machine.wait_property(UNIT, "SubState", |state| state == "start");
    let mut session = machine.session();
    let id = session.hello("x");
    // Whoever waits at the socket has systemd start the next one, which is to get through.
    machine.drop_in(UNIT, limits);
    let _ = restart.finish().exits(1);
    machine.wait_journal(UNIT, "start operation timed out");
    let negotiated = session.answer(id).expect("the next broker answers");
    assert_eq!((negotiated.pid.map(u64::from), negotiated.generation), (before["pid"].as_u64(), 1));
    assert_kept(&machine, &before);
}

fn a_stopped_broker_is_killed_and_the_next_one_has_its_backends() {
    let machine = machine("WatchdogSec=2s", &[&Service::fake("x", &["--workers", "1"])]);
    let before = machine.resolve("x");
    machine.signal(machine.main_pid(UNIT), Signal::SIGSTOP);
    wait_restart(&machine);
    assert_kept(&machine, &before);
    machine.wait_journal(UNIT, "Watchdog timeout");
}

fn a_stuck_broker_is_killed_and_the_next_one_has_its_backends() {
    let settings = "WatchdogSec=2s\nEnvironment=BROKER_FAILPOINT=stuck:before-starting@2";
    let machine = machine(settings, &[&Service::fake("x", &[]), &Service::fake("y", &[])]);
    let before = machine.resolve("x");
    let mut session = machine.session();
    session.hello("y");
    wait_restart(&machine);
    machine.wait_journal(UNIT, "Watchdog timeout");
    assert_kept(&machine, &before);
    assert_eq!(machine.resolve("y")["generation"], 1, "the start that hung was none");
}

/// Takes a database inside for itself, as long as the connection is kept. SQLite follows links by itself, and those that
/// lead into a machine look to it as if they led nowhere: so a thread goes inside.
fn lock(machine: &Machine, database: &str) -> Connection {
    let place = File::open(machine.path("/proc/1/ns/mnt")).expect("the machine runs");
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: two system calls without memory, which change this thread alone; it does nothing else and ends soon.
            let entered = unsafe { (libc::unshare(libc::CLONE_FS), libc::setns(place.as_raw_fd(), libc::CLONE_NEWNS)) };
            assert_eq!(entered, (0, 0), "{}", io::Error::last_os_error());
            let disk = Connection::open(database).expect("a database");
            disk.busy_timeout(Duration::from_secs(10)).expect("a setting");
            disk.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
            disk
        });
        inside.join().expect("no panic")
    })
}

fn a_slow_disk_is_no_reason_to_restart_the_broker() {
    let machine = machine("WatchdogSec=5s", &[&Service::fake("x", &[]), &Service::fake("y", &[])]);
    let (before, pid) = (machine.resolve("x"), machine.main_pid(UNIT));
    let mut session = machine.session();
    session.ping();
    let disk = lock(&machine, "/var/lib/broker/journal.db");
    // A start waits for the disk, and is written down later.
    let late = machine.spawn(&["brokerctl", "--json", "resolve", "y"]);
    // Two and a half seconds from each to the next.
    session.wait_heartbeats(3);
    assert_eq!(machine.resolve("x")["pid"], before["pid"], "a warm Hello needs no disk");
    assert_eq!(late.finish().done().json()["state"], "ready");
    assert_eq!((machine.main_pid(UNIT), restarts(&machine).as_str()), (pid, "0"));
    // Even the end, which is written down in any case, is not held up for ever.
    drop(session);
    machine.systemctl(&["stop", UNIT]);
    assert_eq!(machine.property(UNIT, "Result"), "success");
    drop(disk);
    machine.systemctl(&["start", UNIT]);
    assert_kept(&machine, &before);
    assert_eq!(machine.resolve("y")["generation"], 1);
}

fn a_stop_takes_the_time_that_a_backend_is_given() {
    let deaf = Service::fake("deaf", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"6s\"");
    let machine = machine("TimeoutStopSec=2s", &[&deaf]);
    let pid = machine.resolve("deaf")["pid"].as_u64().expect("a number");
    let shutdown = machine.spawn(&["brokerctl", "shutdown"]);
    // It says so itself, and that it takes longer.
    machine.wait_unit(UNIT, "deactivating");
    let _ = shutdown.finish().done();
    machine.wait_unit(UNIT, "inactive");
    assert_eq!(machine.property(UNIT, "Result"), "success");
    assert!(!machine.process_exists(pid));
}

fn a_broker_that_cannot_end_is_given_no_time_for_ever() {
    let machine = machine("TimeoutStopSec=2s\nEnvironment=BROKER_FAILPOINT=stuck:leaving", &[&Service::fake("x", &[])]);
    let before = machine.resolve("x");
    machine.systemctl(&["stop", UNIT]);
    assert_eq!(machine.property(UNIT, "Result"), "timeout");
    let pid = before["pid"].as_u64().expect("a number");
    wait_until("what it left is left alone", || machine.process_exists(pid));
    machine.systemctl(&["start", UNIT]);
    assert_kept(&machine, &before);
}
