//! Sockets that systemd has for the broker: its own, which whoever comes first starts it by, and what it keeps of backends
//! in the FD store.

use std::os::unix::fs::MetadataExt as _;

use broker_tests::{Connection, Machine, Service, Session, trials, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

trials![
    who_connects_before_the_first_start_is_served,
    a_broker_that_is_killed_finds_its_sockets_again,
    what_a_daemon_says_to_a_broker_that_is_killed_is_heard,
    a_restart_loses_no_socket,
    a_stop_empties_the_store_and_no_living_endpoint_is_bound_again,
    what_nobody_knows_is_closed_and_forgotten,
];

const BROKER: &str = "brokerd.service";

/// A machine with the socket unit, a backend that inherits its socket, and one that says when it is ready.
fn machine() -> Machine {
    let machine = Machine::boot();
    machine.service(&Service::fake_on_passed_socket("passed", &[]).toml("[readiness]\nprobe = \"socket\""));
    machine.service(&Service::fake("says", &["--notify"]).toml("[readiness]\nprobe = \"notify\""));
    machine.systemctl(&["start", "brokerd.socket"]);
    machine
}

#[track_caller]
fn wait_kept(machine: &Machine, count: u32) {
    machine.wait_property(BROKER, "NFileDescriptorStore", |value| value == count.to_string());
}

/// Kills the broker, and waits for the one that systemd starts then.
fn kill_broker(machine: &Machine) {
    let pid = machine.main_pid(BROKER);
    machine.signal(pid, Signal::SIGKILL);
    machine.wait_property(BROKER, "MainPID", |value| value != "0" && value != pid.to_string());
    machine.wait_unit(BROKER, "active");
}

fn endpoint<'b>(machine: &Machine, backend: &'b Value) -> (&'b str, u64) {
    let path = backend["endpoint"].as_str().and_then(|endpoint| endpoint.strip_prefix("unix:")).expect("a path");
    (path, machine.path(path).metadata().expect("a socket").ino())
}

/// Connects to an endpoint where nobody may run; the connection waits.
#[track_caller]
fn connect(machine: &Machine, path: &str) -> Connection {
    Connection::to(&format!("unix:{}", machine.path(path).display())).expect("nobody is refused")
}

#[track_caller]
fn served(machine: &Machine, service: &str) -> (u64, Value) {
    let backend = machine.resolve(service);
    (machine.dial(&backend).pid(), backend)
}

fn who_connects_before_the_first_start_is_served() {
    let machine = machine();
    let file = || {
        let file = machine.socket().metadata().expect("a socket");
        (file.ino(), file.mode(), file.gid())
    };
    let before = file();
    assert_eq!(machine.main_pid(BROKER), 0, "nobody has come yet");
    let mut session = Session::open(&machine.socket());
    let id = session.hello("passed");
    let backend = session.answer(id).expect("who came first is served");
    assert_eq!(backend.generation, 1);
    machine.wait_unit(BROKER, "active");
    assert_eq!(file(), before, "the broker leaves the socket as systemd made it");
    machine.systemctl(&["stop", BROKER]);
    assert_eq!(file(), before);
    let (pid, again) = served(&machine, "passed");
    assert_eq!((Some(pid), again["generation"].as_u64()), (backend.pid.map(u64::from), Some(1)));
    let second = machine.run(&["brokerd"]).exits(75);
    assert!(second.stderr.contains(&machine.main_pid(BROKER).to_string()), "{}", second.stderr);
}

fn a_broker_that_is_killed_finds_its_sockets_again() {
    let machine = machine();
    let (pid, backend) = served(&machine, "passed");
    let (says, _) = served(&machine, "says");
    wait_kept(&machine, 2);
    let (path, file) = endpoint(&machine, &backend);
    for _ in 0..2 {
        kill_broker(&machine);
        assert_eq!((served(&machine, "passed").0, served(&machine, "says").0), (pid, says));
        wait_kept(&machine, 2);
    }
    // A backend dies while no broker looks, and a client comes before one does again.
    machine.freeze(machine.main_pid(BROKER));
    machine.signal(pid, Signal::SIGKILL);
    wait_until("it is gone", || !machine.process_exists(pid));
    let mut early = connect(&machine, path);
    kill_broker(&machine);
    // That it waits starts the backend; nobody says Hello.
    let second = early.pid();
    let again = machine.resolve("passed");
    assert_eq!((again["pid"].as_u64(), again["generation"].as_u64()), (Some(second), Some(2)));
    assert_eq!(endpoint(&machine, &again), (path, file), "it was never bound again");
}

fn what_a_daemon_says_to_a_broker_that_is_killed_is_heard() {
    let machine = Machine::boot();
    let gate = "/run/trial/gate";
    let says = Service::fake("says", &["--notify", "--ready-when", gate]);
    machine.service(&says.toml("[readiness]\nprobe = \"notify\"\nhard_ceiling = \"1h\""));
    machine.systemctl(&["start", "brokerd.socket"]);
    let mut session = machine.session();
    session.hello("says");
    wait_until("it is started", || machine.starts("says").len() == 1);
    wait_kept(&machine, 1);
    machine.freeze(machine.main_pid(BROKER));
    machine.write(gate, "");
    // It says so once it listens, and answers no sooner than it accepts.
    let path = "/run/broker/broker.sock.d/says@1.0.0~default.sock";
    wait_until("it listens", || machine.exists(path));
    let pid = connect(&machine, path).pid();
    kill_broker(&machine);
    let (served, backend) = served(&machine, "says");
    assert_eq!((served, &backend["generation"]), (pid, &1.into()));
}

fn a_restart_loses_no_socket() {
    let machine = machine();
    let (pid, backend) = served(&machine, "passed");
    let (says, _) = served(&machine, "says");
    let (path, file) = endpoint(&machine, &backend);
    machine.systemctl(&["restart", BROKER]);
    wait_kept(&machine, 2);
    assert_eq!((served(&machine, "passed").0, served(&machine, "says").0), (pid, says));
    let _ = machine.ctl(&["stop", "--all"]).done();
    wait_kept(&machine, 1);
    machine.systemctl(&["restart", BROKER]);
    let mut early = connect(&machine, path);
    let second = early.pid();
    let again = machine.resolve("passed");
    assert_eq!((endpoint(&machine, &again), again["pid"].as_u64()), ((path, file), Some(second)));
    let _ = machine.ctl(&["shutdown"]).done();
    machine.wait_unit(BROKER, "inactive");
    assert!(!machine.exists(path), "a broker that ends its backends leaves no endpoint");
}

fn a_stop_empties_the_store_and_no_living_endpoint_is_bound_again() {
    let machine = machine();
    let (pid, backend) = served(&machine, "passed");
    let (says, _) = served(&machine, "says");
    let before = endpoint(&machine, &backend);
    machine.systemctl(&["stop", BROKER]);
    machine.systemctl(&["start", BROKER]);
    let (again, adopted) = served(&machine, "passed");
    assert_eq!((again, endpoint(&machine, &adopted)), (pid, before));
    assert_eq!(served(&machine, "says").0, says);
    wait_kept(&machine, 1);
    let _ = machine.ctl(&["restart", "passed"]).done();
    wait_kept(&machine, 2);
    let (second, anew) = served(&machine, "passed");
    assert_ne!(second, pid);
    assert_ne!(endpoint(&machine, &anew), before, "the next start binds anew");
    kill_broker(&machine);
    assert_eq!(served(&machine, "passed").0, second);
}

fn what_nobody_knows_is_closed_and_forgotten() {
    let machine = machine();
    let (pid, _) = served(&machine, "passed");
    // A stranger's descriptor, put there as only the broker itself may.
    machine.drop_in(BROKER, "[Service]\nNotifyAccess=all\n");
    let put = "import array, os, socket\n\
               s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
               s.connect('/run/systemd/notify')\n\
               def send(text, fd):\n    \
                   rights = array.array('i', [fd])\n    \
                   s.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n\
               for name in ['strange', 'gone@1.0.0~default.7.notify']:\n    \
                   send(f'FDSTORE=1\\nFDNAME={name}\\nFDPOLL=0', os.open('/dev/null', 0))\n\
               end, theirs = os.pipe()\n\
               send('BARRIER=1', theirs)\n\
               os.close(theirs)\n\
               os.read(end, 1)\n";
    machine.write("/run/trial/put.py", put);
    let cgroup = machine.cgroup_of(machine.main_pid(BROKER));
    let join = format!("echo $$ > /sys/fs/cgroup{cgroup}/cgroup.procs; exec python3 /run/trial/put.py");
    let _ = machine.shell(&join).done();
    wait_kept(&machine, 3);
    kill_broker(&machine);
    wait_kept(&machine, 1);
    machine.wait_journal(BROKER, "\"strange\"");
    machine.wait_journal(BROKER, "gone@1.0.0~default.7.notify");
    assert_eq!(served(&machine, "passed").0, pid);
}
