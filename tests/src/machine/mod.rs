//! Machines with a systemd of their own: the host's real one as PID 1 of new namespaces, over a throw-away overlay of `/`,
//! with the built programs and the shipped unit files installed. What happens in one never reaches the host.
//!
//! A machine ends with its test, whatever still runs in it; if the test fails, the journal is shown.

mod boot;
mod cgroup;
mod files;
mod looks;
mod user;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

use broker_proto::AdminRequest;
use serde_json::Value;

use self::boot::Namespaces;
pub use self::boot::hindrance as machine_hindrance;
pub use self::user::User;
use crate::command::{Output, Running};
use crate::dial::Connection;
use crate::service::Service;
use crate::session::Session;

/// Where the fake backends of a machine note their starts, and what else trials leave in it.
const NOTES: &str = "/run/trial";

/// The fake backend, as a machine has it.
const FAKE_BACKEND: &str = "/usr/bin/fake-backend";

/// Where programs of a machine are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a system's broker listens.
const SOCKET: &str = "/run/broker/broker.sock";

/// Which of these programs a machine would lack, as the host does, if one.
#[must_use]
pub fn machine_lacks(programs: &[&str]) -> Option<String> {
    let is_there = |program: &&&str| PATH.split(':').any(|folder| Path::new(folder).join(program).is_file());
    programs.iter().find(|program| !is_there(program)).map(|missing| format!("{missing} is not installed"))
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    namespaces: Namespaces,
}

impl Machine {
    /// A machine on which the broker is installed as a distribution would, and nothing of it runs.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    #[must_use]
    pub fn boot() -> Self {
        let machine = Self { namespaces: Namespaces::boot(files::with_broker) };
        machine.ready();
        let _ = machine.run(&["systemd-sysusers", "broker.conf"]).done();
        let _ = machine.run(&["systemd-tmpfiles", "--create", "broker.conf"]).done();
        machine
    }

    /// A machine that has never heard of the broker.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    #[must_use]
    pub fn bare() -> Self {
        let machine = Self { namespaces: Namespaces::boot(files::without_broker) };
        machine.ready();
        machine
    }

    /// The same, but for the broker's sources and what was built of them, in [`Self::SOURCES`].
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    #[must_use]
    pub fn with_sources() -> Self {
        let machine = Self { namespaces: Namespaces::boot(files::with_sources) };
        machine.ready();
        machine
    }

    /// The sources, where they are.
    pub const SOURCES: &'static str = files::SOURCES;

    fn ready(&self) {
        let notes = self.path(NOTES);
        fs::create_dir(&notes).expect("a new /run is empty");
        fs::set_permissions(notes, fs::Permissions::from_mode(0o777)).expect("an own folder");
    }

    /// A command that runs inside as root, in `/`; it is killed if whoever started it gives it up.
    ///
    /// # Panics
    /// There is no program in it.
    #[must_use]
    pub fn command(&self, command: &[&str]) -> Command {
        assert!(!command.is_empty(), "a command has a program");
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--target={}", self.namespaces.pid1()));
        inside.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"]);
        inside.args(["setpriv", "--pdeathsig", "SIGKILL", "--"]).args(command);
        inside.env_clear().env("PATH", PATH);
        inside.envs([("LANG", "C.UTF-8"), ("SYSTEMD_PAGER", ""), ("SYSTEMD_COLORS", "0")]);
        inside.stdin(Stdio::null());
        inside
    }

    /// Runs a command inside.
    #[track_caller]
    #[must_use]
    pub fn run(&self, command: &[&str]) -> Output {
        self.spawn(command).finish()
    }

    /// Runs a command inside as another user, with that user's groups and an environment as at a login.
    #[track_caller]
    #[must_use]
    pub fn run_as(&self, user: &str, command: &[&str]) -> Output {
        let become_user = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env", "--"];
        self.run(&[&become_user, command].concat())
    }

    /// Starts a command inside.
    #[track_caller]
    #[must_use]
    pub fn spawn(&self, command: &[&str]) -> Running {
        Running::start(&mut self.command(command))
    }

    /// Runs a script inside, by the shell, to its first failure.
    #[track_caller]
    #[must_use]
    pub fn shell(&self, script: &str) -> Output {
        self.run(&["sh", "-euc", script])
    }

    /// Where a path of the machine is seen from outside. Symbolic links in it must not be absolute: those lead outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.namespaces.root().join(inside.trim_start_matches('/'))
    }

    /// Writes a file inside, readable by everybody, and the folders that it takes.
    ///
    /// # Panics
    /// It cannot be written.
    #[track_caller]
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>) {
        files::write(&self.path(inside), content);
    }

    /// Reads a file inside.
    ///
    /// # Panics
    /// It cannot be read.
    #[track_caller]
    #[must_use]
    pub fn read(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap_or_else(|error| panic!("cannot read {inside}: {error}"))
    }

    /// Whether there is something at that path.
    #[must_use]
    pub fn exists(&self, inside: &str) -> bool {
        fs::symlink_metadata(self.path(inside)).is_ok()
    }

    /// Writes a service file of the system's broker, which learns of it at its next start or reload.
    #[track_caller]
    pub fn service(&self, service: &Service) {
        let name = &service.name;
        let text = service.text(&Path::new(NOTES).join(name), Path::new(FAKE_BACKEND));
        self.write(&format!("/etc/broker/services.d/{name}.toml"), &text);
    }

    /// Adds settings to a unit, and has the system's manager read its units again.
    #[track_caller]
    pub fn drop_in(&self, unit: &str, text: &str) {
        self.write(&format!("/etc/systemd/system/{unit}.d/trial.conf"), text);
        self.systemctl(&["daemon-reload"]);
    }

    /// Runs systemctl, which must succeed.
    #[track_caller]
    pub fn systemctl(&self, arguments: &[&str]) {
        let _ = self.run(&[&["systemctl"], arguments].concat()).done();
    }

    /// Runs brokerctl inside.
    #[track_caller]
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.run(&[&["brokerctl"], arguments].concat())
    }

    /// Runs brokerctl inside with `--json`.
    #[track_caller]
    #[must_use]
    pub fn ctl_json(&self, arguments: &[&str]) -> Output {
        self.ctl(&[&["--json"], arguments].concat())
    }

    /// `brokerctl resolve --json`: the backend.
    #[track_caller]
    #[must_use]
    pub fn resolve(&self, service: &str) -> Value {
        self.ctl_json(&["resolve", service]).done().json()
    }

    /// The socket of the system's broker, as seen from outside.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// A session of root with the system's broker, spoken by hand.
    #[track_caller]
    #[must_use]
    pub fn session(&self) -> Session {
        Session::open(&self.socket())
    }

    /// The status report of the system's broker.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Value {
        self.session().admin(AdminRequest::Status).expect("root may ask for the status")
    }

    /// Connects to a backend's Unix endpoint, as `resolve` or `status` show it.
    ///
    /// # Panics
    /// Nobody listens there.
    #[track_caller]
    #[must_use]
    pub fn dial(&self, backend: &Value) -> Connection {
        let endpoint = backend["endpoint"].as_str().unwrap_or_else(|| panic!("no endpoint in {backend}"));
        let path = endpoint.strip_prefix("unix:").expect("a tcp port inside is not seen from outside");
        let outside = format!("unix:{}", self.path(path).display());
        Connection::to(&outside).unwrap_or_else(|error| panic!("cannot connect to {endpoint}: {error}"))
    }
}

impl Drop for Machine {
    #[expect(clippy::print_stderr, reason = "a failed test shows the machine's journal")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}
