//! The shipped units as they are: what systemd says of them, and that they start.

use broker_tests::{Machine, Service, trials};

trials![systemd_has_nothing_to_say_about_the_units, the_service_starts_and_a_backend_is_resolved,];

const UNITS: [&str; 3] = ["brokerd.socket", "brokerd.service", "brokerd-backends.service"];

fn systemd_has_nothing_to_say_about_the_units() {
    let machine = Machine::boot();
    for scope in ["--system", "--user"] {
        // The manager of a user takes its folder from the environment.
        let verify = ["env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "verify", scope];
        let output = machine.run(&[&verify, &UNITS[..]].concat()).done();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "{scope}");
    }
}

fn the_service_starts_and_a_backend_is_resolved() {
    let machine = Machine::boot();
    machine.service(&Service::fake("x", &[]));
    // Until brokerd takes a socket that systemd holds, and makes the place of the backends.
    machine.systemctl(&["mask", "brokerd.socket"]);
    machine.drop_in("brokerd-backends.service", "[Service]\nType=exec\nExecStart=\nExecStart=/bin/sleep infinity\n");
    machine.systemctl(&["start", "brokerd.service"]);
    let pid = machine.main_pid("brokerd.service");
    assert_eq!(machine.ctl_json(&["status"]).done().json()["broker"]["pid"], pid);
    let backend = machine.resolve("x");
    assert_eq!(machine.dial(&backend).pid(), backend["pid"]);
    assert_eq!(machine.starts("x"), [backend["pid"].as_u64().expect("a number")]);
}
