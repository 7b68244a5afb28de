//! The Debian package: made of what was built, installed, upgraded, removed and purged.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use broker_tests::{Machine, Output, Running, Service, find_program, missing, sibling, trials};

use crate::installing::{INSTALLED, install_command};

trials![
    an_upgrade_replaces_the_broker_under_a_running_backend,
    a_removal_keeps_what_a_purge_forgets,
    what_is_mounted_is_not_forgotten,
    what_was_enabled_comes_back_with_the_package,
    neither_of_two_installations_takes_the_other_away,
    the_package_has_what_the_install_command_installs,
];

/// Where the package lies in a machine.
const PACKAGE: &str = "/var/cache/broker.deb";

/// The version that is installed first, and the one it is upgraded to.
const VERSIONS: [&str; 2] = ["0.1.0-1", "0.1.0-2"];

/// Why these trials cannot run here, if so.
pub(crate) fn hindrance() -> Option<String> {
    if find_program("cargo-deb").is_none() {
        Some("cargo-deb is not installed".to_owned())
    } else if find_program("dpkg").is_none() || !Path::new("/var/lib/dpkg/status").is_file() {
        Some("this is no Debian".to_owned())
    } else {
        missing(&["dpkg-shlibdeps"])
    }
}

/// The package in both versions, made once for all trials.
fn packages() -> &'static [Vec<u8>; 2] {
    static PACKAGES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        // As if these programs were a release: what they were built as makes no difference here.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let release = folder.path().join("release");
        fs::create_dir(&release).expect("a new folder is empty");
        for program in ["brokerd", "brokerctl"] {
            symlink(sibling(program), release.join(program)).expect("a new folder is empty");
        }
        VERSIONS.map(|version| {
            let mut command = Command::new(find_program("cargo-deb").expect("found before"));
            command.args(["--no-build", "--fast", "--quiet", "--deb-version", version, "--manifest-path"]);
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/broker/Cargo.toml"));
            command.arg("--output").arg(folder.path().join("broker.deb"));
            command.env("CARGO_TARGET_DIR", folder.path()).env("CARGO_NET_OFFLINE", "true").stdin(Stdio::null());
            let _ = Running::start(&mut command).finish().done();
            fs::read(folder.path().join("broker.deb")).expect("it was made")
        })
    })
}

/// Installs the package in a version, as the machine's first or as an upgrade.
fn install(machine: &Machine, package: &[u8]) {
    machine.write(PACKAGE, package);
    let _ = dpkg(machine, &["--install", PACKAGE]);
}

fn dpkg(machine: &Machine, arguments: &[&str]) -> Output {
    machine.run(&[&["env", "DEBIAN_FRONTEND=noninteractive", "dpkg"], arguments].concat()).done()
}

/// A machine on which the package was installed.
fn installed() -> Machine {
    let machine = Machine::bare();
    install(&machine, &packages()[0]);
    for unit in ["brokerd.socket", "brokerd.service"] {
        assert_eq!(machine.property(unit, "ActiveState"), "active", "{unit}");
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    machine.service(&Service::fake("x", &[]));
    let _ = machine.ctl(&["reload"]).done();
    machine
}

fn an_upgrade_replaces_the_broker_under_a_running_backend() {
    let machine = installed();
    let _ = machine.run(&["getent", "group", "broker", "broker-admin"]).done();
    let completion = ". /usr/share/bash-completion/completions/brokerctl; complete -p brokerctl";
    let _ = machine.run(&["bash", "-euc", completion]).done();
    let backend = machine.resolve("x");
    let pids = || ["brokerd.service", "brokerd-backends.service"].map(|unit| machine.main_pid(unit));
    let [broker, keeper] = pids();
    install(&machine, &packages()[1]);
    let version = machine.run(&["dpkg-query", "--show", "--showformat=${Version}", "broker"]).done().stdout;
    assert_eq!(version, VERSIONS[1]);
    let [new_broker, same_keeper] = pids();
    assert!(new_broker != broker && new_broker != 0, "the new broker runs");
    assert_eq!(same_keeper, keeper, "the place of the backends is not touched");
    let after = machine.resolve("x");
    assert_eq!((&after["pid"], &after["generation"]), (&backend["pid"], &backend["generation"]));

    machine.systemctl(&["disable", "--now", "brokerd.socket", "brokerd.service"]);
    install(&machine, &packages()[1]);
    assert_eq!(machine.property("brokerd.service", "ActiveState"), "inactive", "what is off stays off");
    assert_eq!(machine.property("brokerd.service", "UnitFileState"), "disabled");
}

fn a_removal_keeps_what_a_purge_forgets() {
    let machine = installed();
    let backend = machine.resolve("x")["pid"].as_u64().expect("a number");
    let _ = dpkg(&machine, &["--remove", "broker"]);
    assert!(!machine.process_exists(backend), "the backends end with the broker");
    assert_eq!(machine.property("brokerd.service", "LoadState"), "not-found");
    assert!(machine.exists("/etc/broker/services.d/x.toml") && machine.exists("/var/lib/broker/journal.db"));
    let _ = dpkg(&machine, &["--purge", "broker"]);
    let places = "/etc /run /var/lib /usr/lib/systemd /usr/lib/sysusers.d /usr/lib/tmpfiles.d";
    let find = format!("find {places} -name 'broker*' -not -path '/var/lib/dpkg/*'");
    assert_eq!(machine.shell(&find).done().stdout, "");
}

fn what_is_mounted_is_not_forgotten() {
    let machine = installed();
    let _ = machine.shell("cd /var/lib/broker; mkdir disk; mount -t tmpfs disk disk; touch disk/file other").done();
    let purged = dpkg(&machine, &["--purge", "broker"]).stdout;
    assert!(purged.contains("something could not be removed"), "{purged}");
    assert!(machine.exists("/var/lib/broker/disk/file") && !machine.exists("/var/lib/broker/other"));
    assert!(!machine.exists("/etc/broker") && !machine.exists("/run/broker"), "the others are forgotten all the same");
}

fn what_was_enabled_comes_back_with_the_package() {
    let machine = installed();
    machine.systemctl(&["disable", "brokerd.service"]);
    machine.systemctl(&["enable", "brokerd.socket"]);
    let _ = dpkg(&machine, &["--remove", "broker"]);
    assert_eq!(machine.property("brokerd.socket", "ActiveState"), "inactive");
    install(&machine, &packages()[1]);
    assert_eq!(machine.property("brokerd.socket", "ActiveState"), "active");
    assert_eq!(machine.property("brokerd.service", "ActiveState"), "inactive");
    assert_eq!(machine.resolve("x")["state"], "ready");
}

/// Both have units of the same names, and the same places: that of `systemd/install` goes before the package's.
fn neither_of_two_installations_takes_the_other_away() {
    let machine = Machine::with_sources();
    install(&machine, &packages()[0]);
    machine.service(&Service::fake("x", &[]));
    let _ = install_command(&machine, "").done();
    let runs = |program: &str| {
        let broker = machine.main_pid("brokerd.service");
        assert_eq!(machine.run(&["readlink", &format!("/proc/{broker}/exe")]).done().stdout.trim(), program);
        broker
    };
    let is_enabled = || ["brokerd.socket", "brokerd.service"].map(|unit| machine.property(unit, "UnitFileState"));
    let backend = machine.resolve("x");
    let broker = runs("/usr/local/bin/brokerd");
    for step in ["--remove", "--purge"] {
        let said = dpkg(&machine, &[step, "broker"]).stdout;
        assert!(said.contains("not of this package"), "{said}");
        assert_eq!(runs("/usr/local/bin/brokerd"), broker);
        assert_eq!(machine.resolve("x"), backend);
        assert_eq!(is_enabled(), ["enabled", "enabled"], "{step}");
    }
    assert!(machine.exists("/etc/broker/services.d/x.toml") && machine.exists("/var/lib/broker/journal.db"));
    machine.systemctl(&["stop", "brokerd.socket", "brokerd.service", "brokerd-backends.service"]);
    install(&machine, &packages()[1]);
    let _ = dpkg(&machine, &["--remove", "broker"]);
    machine.systemctl(&["stop", "brokerd.socket", "brokerd.service", "brokerd-backends.service"]);
    let _ = dpkg(&machine, &["--purge", "broker"]);
    assert!(machine.exists("/var/lib/broker/journal.db"), "it is installed, if it does not run");

    install(&machine, &packages()[1]);
    let said = install_command(&machine, "--uninstall").done().stdout;
    assert!(said.contains("/lib/systemd/system/brokerd.service") && said.contains("start brokerd.socket"), "{said}");
    assert_eq!(machine.property("brokerd.service", "ActiveState"), "inactive", "what is removed does not run on");
    assert_eq!(is_enabled(), ["enabled", "enabled"], "the package's");
    machine.systemctl(&["start", "brokerd.socket"]);
    let backend = machine.resolve("x");
    let broker = runs("/usr/bin/brokerd");
    let _ = install_command(&machine, "--uninstall").done();
    assert_eq!((runs("/usr/bin/brokerd"), machine.resolve("x")), (broker, backend), "what is not its own goes on");
}

fn the_package_has_what_the_install_command_installs() {
    let machine = Machine::bare();
    machine.write(PACKAGE, &packages()[0]);
    let listed = machine.run(&["dpkg-deb", "--contents", PACKAGE]).done().stdout;
    let packaged = |path: &str| listed.lines().any(|line| line.ends_with(&format!(" ./usr/{path}")));
    // Debian has a place of its own for completions of zsh, and for the licence.
    let own = |path: &&&str| !path.contains("/zsh/") && !path.contains("/LICENSE");
    let missing: Vec<_> = INSTALLED.iter().filter(own).filter(|path| !packaged(path)).collect();
    assert!(missing.is_empty(), "{missing:?} are not in the package:\n{listed}");
    assert!(packaged("share/zsh/vendor-completions/_brokerctl") && packaged("share/doc/broker/copyright"), "{listed}");
}
