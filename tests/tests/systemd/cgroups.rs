//! Backends and durable processes in cgroups of their own, below a unit that is not the broker's.

use broker_proto::{ClientMessage, Code, Hello};
use broker_tests::{Machine, Service, Session, trials, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

trials![
    nothing_that_the_broker_starts_lives_in_its_own_unit,
    what_hides_from_everything_is_gone_after_a_stop,
    stopping_the_unit_of_the_backends_asks_them_first_and_is_no_crash,
    the_unit_of_the_backends_is_restarted_with_the_broker,
    what_is_killed_with_its_unit_did_not_crash,
    what_ends_before_the_keeper_that_was_told_to_did_not_crash,
    a_keeper_that_dies_takes_all_with_it_and_comes_back,
    nothing_is_started_while_the_unit_is_not_there,
    a_durable_process_runs_through_a_restart_of_the_broker,
    a_durable_process_whose_unit_is_stopped_is_run_again,
    a_durable_process_is_not_run_again_in_a_unit_that_goes,
    a_broker_without_a_unit_for_its_backends_says_so,
    without_cgroups_a_restart_ends_backends_unless_the_unit_keeps_them,
    the_units_start_on_a_machine_without_cgroup2,
    a_limit_without_its_controller_is_said_not_to_hold,
];

const BROKER: &str = "brokerd.service";
const BACKENDS: &str = "brokerd-backends.service";

/// Where a broker of the system makes its cgroups.
const PLACE: &str = "/system.slice/brokerd-backends.service";

/// A machine on which the broker runs, with these services.
fn machine(services: &[&Service]) -> Machine {
    let machine = Machine::boot();
    services.iter().for_each(|service| machine.service(service));
    machine.systemctl(&["start", BROKER]);
    machine
}

/// A daemon that notes when it is asked to end, and does.
fn polite() -> Service {
    let script = "trap 'echo asked >>\"$0.asked\"; kill $!; exit 0' TERM; \"$@\" & wait";
    let command = ["/bin/sh", "-c", script, "{starts}", "{fake-backend}", "--log-start", "{starts}"];
    Service::named("polite").command("1.0.0", &[&command[..], &["--listen", "{endpoint}"]].concat())
}

fn pid_of(backend: &Value) -> u64 {
    backend["pid"].as_u64().unwrap_or_else(|| panic!("it does not run: {backend}"))
}

/// The backend of a service, as `status` shows it.
fn backend(machine: &Machine, service: &str) -> Value {
    let mut status = machine.status();
    let backends = status["backends"].as_array_mut().expect("status lists backends");
    backends.iter_mut().find(|backend| backend["service"] == service).map(Value::take).unwrap_or_default()
}

/// Waits until both units are up.
fn wait_until_up(machine: &Machine) {
    machine.wait_unit(BACKENDS, "active");
    machine.wait_unit(BROKER, "active");
}

/// What did not crash is started anew at once, as another generation.
fn assert_no_crash(machine: &Machine, service: &str) {
    let before = backend(machine, service);
    assert_eq!((&before["state"], &before["crashes_in_window"]), (&"inactive".into(), &0.into()), "{before}");
    let events = machine.ctl(&["events"]).done().stdout;
    assert!(events.contains("ended with the unit of all backends"), "{events}");
    let after = machine.resolve(service);
    assert!(after["generation"].as_u64() > before["generation"].as_u64(), "{after}");
    assert!(machine.cgroup_of(pid_of(&after)).starts_with(PLACE));
}

fn nothing_that_the_broker_starts_lives_in_its_own_unit() {
    let workers = Service::fake("workers", &["--workers", "2"]);
    let machine = machine(&[&workers, &Service::fake("x", &[]), &Service::fake("away", &["--fork-away"])]);
    for service in ["workers", "x", "away"] {
        // Who serves is in it for good; a daemon that forks away may not be there yet.
        let pid = machine.dial(&machine.resolve(service)).pid();
        assert_eq!(machine.cgroup_of(pid), format!("{PLACE}/{service}@1.0.0~default.1"));
    }
    let _ = machine.ctl(&["run", "--detach", "--id", "job", "--", "sleep", "1000"]).done();
    wait_until("the process runs", || machine.exists(&format!("/sys/fs/cgroup{PLACE}/run~job.1/command")));
    wait_until("only the broker is in its unit", || machine.pids(BROKER) == [machine.main_pid(BROKER)]);
    let keeper = machine.main_pid(BACKENDS);
    assert_eq!(machine.cgroup_of(keeper), format!("{PLACE}/keeper"));
    // The daemons, of which one has two workers, the process and its reaper, and the keeper.
    wait_until("all are in the other unit", || machine.pids(BACKENDS).len() == 3 + 1 + 1 + 2 + 1);
}

fn what_hides_from_everything_is_gone_after_a_stop() {
    let hide = "setsid -f sh -c 'echo $$ >\"$0\"; exec env -i sleep 1000' \"$0.hidden\" </dev/null >/dev/null 2>&1";
    let script = format!("{hide}; exec \"$@\"");
    let command = ["/bin/sh", "-c", &script, "{starts}", "{fake-backend}", "--listen", "{endpoint}"];
    let machine = machine(&[&Service::named("x").command("1.0.0", &command)]);
    let pid = pid_of(&machine.resolve("x"));
    wait_until("a process hides", || machine.exists("/run/trial/x.hidden"));
    let hidden = || machine.pids(BACKENDS).len();
    wait_until("it is there, with the daemon and the keeper", || hidden() == 3);
    machine.systemctl(&["restart", BROKER]);
    assert_eq!(pid_of(&machine.resolve("x")), pid);
    let _ = machine.ctl(&["stop", "x"]).done();
    assert_eq!(machine.pids(BACKENDS), [machine.main_pid(BACKENDS)]);
    assert!(!machine.exists(&format!("/sys/fs/cgroup{PLACE}/x@1.0.0~default.1")));
}

fn stopping_the_unit_of_the_backends_asks_them_first_and_is_no_crash() {
    let machine = machine(&[&polite()]);
    let pid = pid_of(&machine.resolve("polite"));
    machine.systemctl(&["stop", BACKENDS]);
    assert!(!machine.process_exists(pid));
    assert_eq!(machine.read("/run/trial/polite.asked"), "asked\n");
    assert_eq!(machine.property(BROKER, "ActiveState"), "inactive");
    assert_eq!(machine.property(BACKENDS, "Result"), "success");
    machine.systemctl(&["start", BROKER]);
    assert_no_crash(&machine, "polite");
    machine.wait_journal(BROKER, "ended with the unit of all backends");
}

fn the_unit_of_the_backends_is_restarted_with_the_broker() {
    let machine = machine(&[&polite()]);
    let (pid, broker) = (pid_of(&machine.resolve("polite")), machine.main_pid(BROKER));
    machine.systemctl(&["restart", BACKENDS]);
    wait_until_up(&machine);
    assert_ne!(machine.main_pid(BROKER), broker);
    assert!(!machine.process_exists(pid));
    assert_no_crash(&machine, "polite");
}

fn what_is_killed_with_its_unit_did_not_crash() {
    let machine = machine(&[&Service::fake("x", &[])]);
    let (pid, keeper) = (pid_of(&machine.resolve("x")), machine.main_pid(BACKENDS));
    machine.systemctl(&["kill", "--signal=KILL", BACKENDS]);
    wait_until("the unit is made anew", || !machine.process_exists(pid) && machine.main_pid(BACKENDS) != keeper);
    wait_until_up(&machine);
    let backend = backend(&machine, "x");
    assert_eq!((&backend["state"], &backend["crashes_in_window"]), (&"inactive".into(), &0.into()), "{backend}");
    assert_eq!(machine.resolve("x")["generation"], 2);
}

fn what_ends_before_the_keeper_that_was_told_to_did_not_crash() {
    let machine = machine(&[&Service::fake("x", &[])]);
    let mut clients: Vec<Session> = (0..10).map(|_| machine.session()).collect();
    let (pid, keeper) = (pid_of(&machine.resolve("x")), machine.main_pid(BACKENDS));
    // What it is told waits for it until it goes on.
    machine.signal(keeper, Signal::SIGSTOP);
    wait_until("the keeper is stopped", || machine.read(&format!("/proc/{keeper}/stat")).contains(") T "));
    machine.systemctl(&["kill", BACKENDS]);
    wait_until("the daemon has ended", || !machine.process_exists(pid));
    let asked = clients.iter_mut().map(|client| {
        let hello = Hello { found_dead: Some(1), ..client.hello_for("x") };
        let id = hello.request_id;
        client.send(&ClientMessage::Hello(hello));
        id
    });
    let asked: Vec<u64> = asked.collect();
    for (client, id) in clients.iter_mut().zip(asked) {
        assert_eq!(client.answer(id).expect_err("nothing is started there").code, Code::ShuttingDown);
    }
    assert_eq!(backend(&machine, "x")["crashes_in_window"], 0);
    let events = machine.ctl(&["events"]).done().stdout;
    assert!(events.contains("ended with the unit of all backends"), "{events}");
    machine.signal(keeper, Signal::SIGCONT);
    wait_until("the unit is made anew", || ![0, keeper].contains(&machine.main_pid(BACKENDS)));
    wait_until_up(&machine);
    assert!(machine.cgroup_of(pid_of(&machine.resolve("x"))).starts_with(PLACE));
}

fn a_keeper_that_dies_takes_all_with_it_and_comes_back() {
    let machine = machine(&[&polite()]);
    let (pid, keeper) = (pid_of(&machine.resolve("polite")), machine.main_pid(BACKENDS));
    machine.signal(keeper, Signal::SIGKILL);
    wait_until("the unit is made anew", || ![0, keeper].contains(&machine.main_pid(BACKENDS)));
    wait_until_up(&machine);
    assert!(!machine.process_exists(pid));
    assert_eq!(machine.read("/run/trial/polite.asked"), "asked\n");
    let backend = backend(&machine, "polite");
    assert_eq!((&backend["state"], &backend["crashes_in_window"]), (&"inactive".into(), &0.into()), "{backend}");
    assert!(machine.cgroup_of(pid_of(&machine.resolve("polite"))).starts_with(PLACE));
}

fn nothing_is_started_while_the_unit_is_not_there() {
    let machine = Machine::boot();
    machine.service(&Service::fake("x", &[]));
    // It comes back when it is told to.
    machine.drop_in(BACKENDS, "[Service]\nRestartSec=1h\n");
    machine.systemctl(&["start", BROKER]);
    machine.signal(machine.main_pid(BACKENDS), Signal::SIGKILL);
    wait_until("its cgroup is removed", || !machine.exists(&format!("/sys/fs/cgroup{PLACE}")));
    let refused = machine.ctl_json(&["resolve", "x"]).exits(75).json();
    assert_eq!(refused["refused"]["code"], "shutting_down", "{refused}");
    assert!(machine.starts("x").is_empty(), "not in the broker's own unit");
    machine.systemctl(&["restart", BACKENDS]);
    wait_until_up(&machine);
    assert!(machine.cgroup_of(pid_of(&machine.resolve("x"))).starts_with(PLACE));
}

fn a_durable_process_runs_through_a_restart_of_the_broker() {
    let machine = machine(&[]);
    let script = "echo began; until test -e /run/trial/go; do sleep 0.05; done; exit 7";
    let _ = machine.ctl(&["run", "--detach", "--id", "job", "--", "sh", "-c", script]).done();
    wait_until("it runs", || machine.exists(&format!("/sys/fs/cgroup{PLACE}/run~job.1/command")));
    let before = machine.pids(BACKENDS);
    machine.systemctl(&["restart", BROKER]);
    assert_eq!(machine.property(BROKER, "KillMode"), "control-group");
    machine.write("/run/trial/go", "");
    let waited = machine.ctl(&["wait", "job"]).exits(7);
    assert_eq!(waited.stdout, "began\n", "once, of {before:?}");
    wait_until("its cgroup is removed", || !machine.exists(&format!("/sys/fs/cgroup{PLACE}/run~job.1")));
}

fn a_durable_process_whose_unit_is_stopped_is_run_again() {
    let machine = machine(&[]);
    let script =
        "echo $BROKER_PROCESS_ATTEMPT; >/run/trial/began; until test -e /run/trial/go; do sleep 0.05; done; exit 7";
    let _ = machine.ctl(&["run", "--detach", "--id", "job", "--", "sh", "-c", script]).done();
    wait_until("it runs", || machine.exists("/run/trial/began"));
    machine.systemctl(&["stop", BACKENDS]);
    machine.write("/run/trial/go", "");
    machine.systemctl(&["start", BROKER]);
    assert_eq!(machine.ctl(&["wait", "job"]).exits(7).stdout, "1\n2\n", "what either attempt wrote");
}

fn a_durable_process_is_not_run_again_in_a_unit_that_goes() {
    // It is asked to end, and takes its time.
    let script = "trap '' TERM; \"$@\" & until test -e \"$0.go\"; do sleep 0.05; done; kill -9 $!";
    let command = ["/bin/sh", "-c", script, "{starts}", "{fake-backend}", "--listen", "{endpoint}"];
    let machine = machine(&[&Service::named("slow").command("1.0.0", &command)]);
    let slow = pid_of(&machine.resolve("slow"));
    let script = "echo $BROKER_PROCESS_ATTEMPT; >/run/trial/began; until test -e /run/trial/go; do sleep 0.05; done";
    let _ = machine.ctl(&["run", "--detach", "--id", "job", "--", "sh", "-c", script]).done();
    wait_until("it runs", || machine.exists("/run/trial/began"));
    machine.signal(machine.main_pid(BACKENDS), Signal::SIGKILL);
    wait_until("its next attempt is put off", || {
        machine.journal(BROKER).contains("not started while the unit of all backends is stopped, or being restarted")
    });
    assert!(machine.process_exists(slow));
    machine.write("/run/trial/go", "");
    machine.write("/run/trial/slow.go", "");
    assert_eq!(machine.ctl(&["wait", "job"]).done().stdout, "1\n2\n", "what either attempt wrote");
    wait_until_up(&machine);
}

fn a_broker_without_a_unit_for_its_backends_says_so() {
    let machine = Machine::boot();
    machine.service(&Service::fake("x", &[]));
    let arguments = ["--unit=lone", "--property=Type=notify", "--setenv=PATH=/usr/bin:/bin", "/usr/bin/brokerd"];
    let _ = machine.run(&[&["systemd-run"], &arguments[..]].concat()).done();
    let pid = pid_of(&machine.resolve("x"));
    assert_eq!(machine.cgroup_of(pid), "/system.slice/lone.service");
    let why = "the broker is the unit lone.service, in whose own cgroup nothing may live that outlasts it, and there is no \
               lone-backends.service beside it";
    let cgroups = &machine.status()["broker"]["cgroups"];
    assert_eq!((&cgroups["place"], cgroups["why_not"].as_str()), (&Value::Null, Some(why)));
    machine.wait_journal("lone.service", why);
    assert_eq!(machine.journal("lone.service").matches(why).count(), 1);
}

/// What the README says is to be added to the unit of a broker without cgroups.
fn drop_in_of_readme() -> &'static str {
    let readme = include_str!("../../../README.md");
    let (_, block) = readme.split_once("```ini\n").expect("a block");
    block.split_once("```").expect("it ends").0
}

fn without_cgroups_a_restart_ends_backends_unless_the_unit_keeps_them() {
    let machine = Machine::boot();
    machine.service(&Service::fake("x", &[]));
    machine.write("/etc/broker/broker.toml", "cgroups = \"off\"\n");
    machine.systemctl(&["start", BROKER]);
    let pid = pid_of(&machine.resolve("x"));
    let why = "unless the unit has `KillMode=process`";
    machine.wait_journal(BROKER, why);
    let said = machine.ctl(&["status"]).done().stderr;
    assert!(said.contains(why), "{said}");
    machine.systemctl(&["restart", BROKER]);
    assert!(!machine.process_exists(pid), "the service manager ends all that is in the unit");

    // What would bind the broker alone, if they lived elsewhere, binds them now.
    let bounds = ["IPAddressDeny", "IPAddressAllow", "DevicePolicy", "TasksMax", "LogRateLimitBurst"];
    let bounds = || bounds.map(|bound| machine.property(BROKER, bound));
    assert!(bounds()[0].contains("0.0.0.0/0") && bounds()[2] == "closed", "{:?}", bounds());
    machine.drop_in(BROKER, drop_in_of_readme());
    assert_eq!(bounds(), ["", "", "auto", "infinity", "1000000"]);
    machine.systemctl(&["restart", BROKER]);
    let before = machine.resolve("x");
    machine.systemctl(&["restart", BROKER]);
    let after = machine.resolve("x");
    assert_eq!((&after["pid"], &after["generation"]), (&before["pid"], &before["generation"]));
    let _ = machine.ctl(&["stop", "x"]).done();
    assert!(!machine.process_exists(pid_of(&after)));
}

fn the_units_start_on_a_machine_without_cgroup2() {
    let machine = Machine::boot();
    machine.service(&Service::fake("x", &[]));
    // What both programs see is a machine of v1 alone.
    for (unit, command) in [(BROKER, "/usr/bin/brokerd"), (BACKENDS, "/usr/bin/brokerd --keep-cgroup")] {
        let unmounted = format!("unshare --mount sh -c 'umount --lazy /sys/fs/cgroup && exec {command}'");
        let without = format!("[Service]\nExecStart=\nExecStart=+{unmounted}\n");
        machine.write(&format!("/run/systemd/system/{unit}.d/without.conf"), without);
    }
    machine.systemctl(&["daemon-reload"]);
    machine.systemctl(&["start", BROKER]);
    assert_eq!(machine.property(BACKENDS, "StatusText"), "Keeping nothing: cgroup2 is not mounted");
    let _ = machine.resolve("x");
    let why = machine.status()["broker"]["cgroups"]["why_not"].clone();
    assert!(why.as_str().is_some_and(|why| why.starts_with("cgroup2 is not mounted; ")), "{why}");
}

fn a_limit_without_its_controller_is_said_not_to_hold() {
    let machine = machine(&[&Service::fake("x", &[]).toml("[limits]\nmemory_max = \"512MiB\"\nnofile = 321")]);
    let pid = pid_of(&machine.resolve("x"));
    let limits = machine.read(&format!("/proc/{pid}/limits"));
    let nofile = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(nofile.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["321", "321"]);
    let is_offered = machine.read(&format!("/sys/fs/cgroup{PLACE}/cgroup.controllers")).contains("memory");
    let said = backend(&machine, "x")["limits"]["not_enforced"].clone();
    if is_offered {
        let written = machine.read(&format!("/sys/fs/cgroup{}/memory.max", machine.cgroup_of(pid)));
        assert_eq!((written.trim(), said), ("536870912", Value::Array(Vec::new())));
        return;
    }
    let why = format!("the controller `memory` is not offered by /sys/fs/cgroup{PLACE}: ");
    assert!(
        said[0]["limit"] == "memory_max" && said[0]["why"].as_str().is_some_and(|said| said.starts_with(&why)),
        "{said}"
    );
    assert!(machine.ctl(&["status"]).done().stdout.contains(&why));
    let checked = machine.ctl(&["check"]).done().stdout;
    assert!(checked.contains("`memory_max` in [limits] is not enforced on this machine"), "{checked}");
    let status = machine.property(BACKENDS, "StatusText");
    assert_eq!(status, "Keeping the cgroup of the backends; no limits can be enforced here");
}

/// Those that need a controller to be handed down.
pub(crate) mod with_controllers {
    use std::fs;

    use broker_tests::{Machine, Service, is_root_cgroup, own_cgroup, trials};

    use super::{BACKENDS, BROKER, PLACE, backend, machine, pid_of};

    trials![the_broker_is_restarted_while_controllers_are_enabled_for_what_runs];

    /// Why these tests cannot run here, if they cannot.
    pub(crate) fn hindrance() -> Option<String> {
        let root = own_cgroup().filter(|own| is_root_cgroup(own));
        match root.and_then(|root| fs::read_to_string(root.join("cgroup.controllers")).ok()) {
            Some(offered) if !offered.trim().is_empty() => None,
            _ => Some("no controller of cgroup2 can be handed to a machine".to_owned()),
        }
    }

    /// Hands one down to every backend.
    fn enable(machine: &Machine) -> String {
        let offered = machine.read("/sys/fs/cgroup/cgroup.controllers");
        let controller = offered.split_whitespace().next().expect("there is one").to_owned();
        for folder in ["", "/system.slice", PLACE] {
            let _ = machine.shell(&format!("echo +{controller} >/sys/fs/cgroup{folder}/cgroup.subtree_control")).done();
        }
        controller
    }

    fn the_broker_is_restarted_while_controllers_are_enabled_for_what_runs() {
        let machine = machine(&[&Service::fake("x", &[])]);
        let before = machine.resolve("x");
        let controller = enable(&machine);
        let cgroup = format!("/sys/fs/cgroup{}", machine.cgroup_of(pid_of(&before)));
        assert!(machine.read(&format!("{cgroup}/cgroup.controllers")).contains(&controller));
        for _ in 0..3 {
            let broker = machine.main_pid(BROKER);
            machine.systemctl(&["restart", BROKER]);
            assert_ne!(machine.main_pid(BROKER), broker);
            let after = backend(&machine, "x");
            assert_eq!((&after["pid"], &after["generation"]), (&before["pid"], &before["generation"]));
        }
        machine.systemctl(&["restart", BACKENDS]);
        machine.wait_unit(BROKER, "active");
        assert!(machine.cgroup_of(pid_of(&machine.resolve("x"))).starts_with(PLACE));
    }
}
