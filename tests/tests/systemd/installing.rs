//! `systemd/install`, the way to install the broker from its sources.

use broker_tests::{Machine, Service, trials};

trials![
    what_is_installed_starts_and_is_replaced_under_a_running_backend,
    what_is_installed_can_be_removed,
    everybody_may_read_what_is_installed,
    a_package_can_be_made_with_destdir,
    what_cannot_be_installed_is_said,
];

/// All that is installed below the prefix.
pub(crate) const INSTALLED: &[&str] = &[
    "bin/brokerctl",
    "bin/brokerd",
    "lib/systemd/system/brokerd-backends.service",
    "lib/systemd/system/brokerd.service",
    "lib/systemd/system/brokerd.socket",
    "lib/systemd/user/brokerd-backends.service",
    "lib/systemd/user/brokerd.service",
    "lib/systemd/user/brokerd.socket",
    "lib/sysusers.d/broker.conf",
    "lib/tmpfiles.d/broker.conf",
    "share/bash-completion/completions/brokerctl",
    "share/doc/broker/CHANGELOG.md",
    "share/doc/broker/LICENSE",
    "share/doc/broker/LICENSE-APACHE",
    "share/doc/broker/LICENSE-MIT",
    "share/doc/broker/PROTOCOL.md",
    "share/doc/broker/README.md",
    "share/doc/broker/examples/echo.toml",
    "share/fish/vendor_completions.d/brokerctl.fish",
    "share/zsh/site-functions/_brokerctl",
];

/// A machine on which the install command was run.
fn installed() -> Machine {
    let machine = Machine::with_sources();
    let said = install_command(&machine, "").done().stdout;
    assert!(said.contains("systemctl enable --now brokerd.socket"), "{said}");
    machine.systemctl(&["enable", "--now", "brokerd.socket"]);
    machine.service(&Service::fake("x", &[]));
    machine
}

/// Runs it, with these arguments.
pub(crate) fn install_command(machine: &Machine, arguments: &str) -> broker_tests::Output {
    machine.shell(&format!("cd {}; systemd/install {arguments}", Machine::SOURCES))
}

fn files_below(machine: &Machine, folder: &str) -> Vec<String> {
    let found = machine.run(&["find", folder, "-type", "f", "-printf", "%P\\n"]).done().stdout;
    let mut files: Vec<String> = found.lines().map(str::to_owned).collect();
    files.sort();
    files
}

fn what_is_installed_starts_and_is_replaced_under_a_running_backend() {
    let machine = installed();
    let backend = machine.resolve("x");
    let broker = machine.main_pid("brokerd.service");
    let program = machine.run(&["readlink", &format!("/proc/{broker}/exe")]).done().stdout;
    assert_eq!(program.trim(), "/usr/local/bin/brokerd");
    let units = ["brokerd.socket", "brokerd.service", "brokerd-backends.service"];
    let verified = machine.run(&[&["systemd-analyze", "verify"], &units[..]].concat()).done();
    assert_eq!(verified.stderr, "");

    let said = install_command(&machine, "").done().stdout;
    assert!(said.contains("was restarted"), "{said}");
    assert_ne!(machine.main_pid("brokerd.service"), broker);
    let after = machine.resolve("x");
    assert_eq!((&after["pid"], &after["generation"]), (&backend["pid"], &backend["generation"]));
}

fn what_is_installed_can_be_removed() {
    let machine = installed();
    let backend = machine.resolve("x")["pid"].as_u64().expect("a number");
    let _ = install_command(&machine, "--uninstall").done();
    assert!(!machine.process_exists(backend), "the backends end with the broker");
    let find = format!("find /usr/local -newer {} \\( -type f -o -type l \\)", Machine::SOURCES);
    let links = "find /etc/systemd -name 'broker*'";
    assert_eq!(machine.shell(&format!("{find}; {links}")).done().stdout, "");
    assert_eq!(machine.property("brokerd.service", "LoadState"), "not-found");
    assert!(machine.exists("/etc/broker/services.d/x.toml") && machine.exists("/var/lib/broker"));
}

fn everybody_may_read_what_is_installed() {
    let machine = Machine::with_sources();
    let _ = machine.shell(&format!("umask 077; cd {}; systemd/install", Machine::SOURCES)).done();
    let hidden = "\\( -type f ! -perm -004 -o -type d ! -perm -005 \\)";
    let find = format!("find /usr/local -newer {} {hidden}", Machine::SOURCES);
    assert_eq!(machine.shell(&find).done().stdout, "");
}

fn a_package_can_be_made_with_destdir() {
    let machine = Machine::with_sources();
    let script = "cd {}; DESTDIR=/var/package PREFIX=/usr systemd/install; ! grep -r /usr/local /var/package/usr/lib";
    let _ = machine.shell(&script.replace("{}", Machine::SOURCES)).done();
    assert_eq!(files_below(&machine, "/var/package/usr"), sorted(INSTALLED));
    assert!(!machine.exists("/usr/lib/systemd/system/brokerd.service"), "nothing is installed on this machine");
    let script = "cd {}; DESTDIR=/var/package PREFIX=/usr systemd/install --uninstall";
    let _ = machine.shell(&script.replace("{}", Machine::SOURCES)).done();
    assert_eq!(files_below(&machine, "/var/package"), Vec::<String>::new());
}

fn sorted(files: &[&str]) -> Vec<String> {
    let mut sorted: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
    sorted.sort();
    sorted
}

fn what_cannot_be_installed_is_said() {
    let machine = Machine::with_sources();
    let script = format!("cd {}; BINARIES=/nowhere systemd/install", Machine::SOURCES);
    let output = machine.shell(&script).exits(1);
    assert!(output.stderr.contains("cargo build --release"), "{}", output.stderr);
    let script = format!("cd {}; PREFIX='/opt/my broker' systemd/install", Machine::SOURCES);
    let output = machine.shell(&script).exits(1);
    assert!(output.stderr.contains("/opt/my broker"), "{}", output.stderr);
    let _ = install_command(&machine, "--wrong").exits(2);
}
