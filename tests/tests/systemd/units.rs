//! The shipped units as they are: what systemd says of them, and that they start.

use broker_tests::{Machine, Service, trials};

trials![
    systemd_has_nothing_to_say_about_the_units,
    the_services_are_no_more_exposed_than_they_must_be,
    the_service_starts_and_a_backend_is_resolved,
    what_binds_the_broker_does_not_bind_a_backend,
];

const UNITS: [&str; 3] = ["brokerd.socket", "brokerd.service", "brokerd-backends.service"];

/// What `systemd-analyze security` may say at most, ten times its figure. The units say what is left out, and why.
const EXPOSURE: [(&str, &str); 2] = [("brokerd.service", "80"), ("brokerd-backends.service", "20")];

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
    machine.systemctl(&["start", "brokerd.service"]);
    let pid = machine.main_pid("brokerd.service");
    assert_eq!(machine.ctl_json(&["status"]).done().json()["broker"]["pid"], pid);
    let backend = machine.resolve("x");
    assert_eq!(machine.dial(&backend).pid(), backend["pid"]);
    assert_eq!(machine.starts("x"), [backend["pid"].as_u64().expect("a number")]);
}

fn the_services_are_no_more_exposed_than_they_must_be() {
    let machine = Machine::boot();
    for (unit, most) in EXPOSURE {
        let threshold = format!("--threshold={most}");
        let _ = machine.run(&["systemd-analyze", "security", "--no-pager", &threshold, unit]).done();
    }
}

fn what_binds_the_broker_does_not_bind_a_backend() {
    let machine = Machine::boot();
    let tcp = Service::named("tcp").version("1.0.0", &["--listen", "{endpoint}"]).toml("[endpoint]\nkind = \"tcp\"");
    machine.service(&tcp);
    machine.service(&Service::fake("x", &[]));
    machine.systemctl(&["start", "brokerd.service"]);
    // The broker itself has no network but the machine's own, which is all that it needs.
    let said = machine.shell("echo who | brokerctl connect tcp").done().stdout;
    let pid = machine.resolve("tcp")["pid"].as_u64().expect("a number");
    assert!(said.starts_with(&format!("{pid} ")), "{said}");

    let pid = machine.resolve("x")["pid"].as_u64().expect("a number");
    let place = machine.property("brokerd-backends.service", "ControlGroup");
    assert!(machine.cgroup_of(pid).starts_with(&format!("{place}/")), "{}", machine.cgroup_of(pid));
    let namespaces =
        |pid: u64| machine.shell(&format!("cd /proc/{pid}/ns; readlink cgroup ipc mnt net pid user uts")).done();
    assert_eq!(namespaces(pid).stdout, namespaces(1).stdout, "a backend sees what everybody sees");
    let status = machine.read(&format!("/proc/{pid}/status"));
    assert!(status.contains("NoNewPrivs:\t0"), "{status}");
}
