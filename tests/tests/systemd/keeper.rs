//! The keeper of the backends' cgroup: when it goes.

use broker_tests::{Machine, Service, trials, wait_until};

trials![who_takes_his_time_to_end_with_the_unit_is_asked_once];

const BROKER: &str = "brokerd.service";
const BACKENDS: &str = "brokerd-backends.service";

/// Not a second time when the keeper has ended, which to many a daemon says that it is to give up.
fn who_takes_his_time_to_end_with_the_unit_is_asked_once() {
    let script =
        "trap 'echo asked >>\"$0.asked\"; kill $!; sleep 0.5; echo done >>\"$0.asked\"; exit 0' TERM; \"$@\" & wait";
    let command = ["/bin/sh", "-c", script, "{starts}", "{fake-backend}", "--listen", "{endpoint}"];
    let machine = Machine::boot();
    machine.service(&Service::named("slow").command("1.0.0", &command));
    machine.systemctl(&["start", BROKER]);
    for (times, what) in [(1, ["stop", BACKENDS]), (2, ["kill", BACKENDS])] {
        let pid = machine.resolve("slow")["pid"].as_u64().expect("it runs");
        let keeper = machine.main_pid(BACKENDS);
        machine.systemctl(&what);
        wait_until("the unit is gone", || !machine.process_exists(pid) && machine.main_pid(BACKENDS) != keeper);
        assert_eq!(machine.read("/run/trial/slow.asked"), "asked\ndone\n".repeat(times));
        machine.systemctl(&["start", BROKER]);
        machine.wait_unit(BACKENDS, "active");
        machine.wait_unit(BROKER, "active");
    }
}
