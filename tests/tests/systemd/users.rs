//! The broker of an ordinary user, under the user's own service manager.

use broker_tests::{Machine, Service, trials};

trials![a_user_enables_the_socket_and_has_a_broker, a_user_installs_the_broker_at_home];

fn a_user_enables_the_socket_and_has_a_broker() {
    let machine = Machine::boot();
    let alice = machine.user("alice");
    alice.service(&Service::fake("x", &[]));
    alice.systemctl(&["enable", "--now", "brokerd.socket"]);
    assert_eq!(alice.property("brokerd.service", "ActiveState"), "inactive");

    let backend = alice.resolve("x");
    let (pid, broker) = (backend["pid"].as_u64().expect("a number"), alice.property("brokerd.service", "MainPID"));
    assert_eq!(alice.property("brokerd.service", "ActiveState"), "active");
    assert_eq!(machine.dial(&backend).pid(), pid);
    let place = alice.property("brokerd-backends.service", "ControlGroup");
    assert!(place.contains(&alice.manager()), "{place}");
    assert_eq!(machine.cgroup_of(pid), format!("{place}/x@1.0.0~default.1"));

    alice.systemctl(&["restart", "brokerd.service"]);
    assert_ne!(alice.property("brokerd.service", "MainPID"), broker);
    let after = alice.resolve("x");
    assert_eq!((&after["pid"], &after["generation"]), (&backend["pid"], &backend["generation"]));

    alice.systemctl(&["stop", "brokerd-backends.service"]);
    assert!(!machine.process_exists(pid), "the backends end with their unit");
    assert_eq!(alice.property("brokerd.socket", "ActiveState"), "active", "the next client starts it all again");
    assert_eq!(alice.resolve("x")["generation"], 2);
}

fn a_user_installs_the_broker_at_home() {
    let machine = Machine::with_sources();
    let alice = machine.user("alice");
    alice.service(&Service::fake("x", &[]));
    let install = format!("{}/systemd/install --user", Machine::SOURCES);
    let said = alice.shell(&install).done().stdout;
    assert!(said.contains("systemctl --user enable --now brokerd.socket"), "{said}");
    alice.systemctl(&["enable", "--now", "brokerd.socket"]);
    let resolved = alice.shell("~/.local/bin/brokerctl --json resolve x").done().json();
    assert_eq!(resolved["state"], "ready");
    let broker = alice.property("brokerd.service", "MainPID");
    let program = machine.run(&["readlink", &format!("/proc/{broker}/exe")]).done().stdout;
    assert_eq!(program.trim(), alice.home(".local/bin/brokerd"));

    let _ = alice.shell(&format!("{install} --uninstall")).done();
    let pid = resolved["pid"].as_u64().expect("a number");
    assert!(!machine.process_exists(pid), "the backends end with the broker");
    let own = "-not -path '*/state/*' -not -path '*/services.d/*'";
    let left = alice.shell(&format!("find ~/.local ~/.config \\( -type f -o -type l \\) {own}")).done().stdout;
    assert_eq!(left, "");
}
