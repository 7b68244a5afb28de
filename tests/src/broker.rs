//! A broker in a folder of its own, and the guard that ends it with everything it started.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use broker_proto::AdminRequest;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroups;
use crate::command::{Output, Running};
use crate::dial::Connection;
use crate::leftovers::processes_mentioning;
use crate::programs::sibling;
use crate::service::Service;
use crate::session::Session;
use crate::setup::Setup;
use crate::wait::{BOUND, try_wait, wait, wait_for, wait_until};

/// Lines of the broker's log that a failed test shows.
const LOG_LINES: usize = 120;

/// A running broker. At the end of the test it is told to stop, must stop well, and must leave no process behind.
#[derive(Debug)]
pub struct Broker {
    pub(crate) setup: Setup,
    pub(crate) child: Option<Child>,
    may_leave_processes: bool,
}

impl Broker {
    /// A broker with these services.
    ///
    /// # Panics
    /// It does not answer.
    #[track_caller]
    #[must_use]
    pub fn start(services: &[&Service]) -> Self {
        services.iter().fold(Setup::new(), |setup, service| setup.service(service)).start()
    }

    #[track_caller]
    pub(crate) fn of(setup: Setup) -> Self {
        let mut broker = Self::unstarted(setup);
        broker.start_again();
        broker
    }

    pub(crate) fn unstarted(setup: Setup) -> Self {
        Self { setup, child: None, may_leave_processes: false }
    }

    /// Starts brokerd on the same folder again, after its end, and waits until it answers: it accepts before that.
    ///
    /// # Panics
    /// It does not answer.
    #[track_caller]
    pub fn start_again(&mut self) {
        let command = self.daemon();
        self.spawn(command);
        self.wait_until_it_answers();
    }

    /// Runs brokerd by this command, once nothing is left of the one before.
    #[track_caller]
    pub(crate) fn spawn(&mut self, command: Command) {
        self.wait_until_free();
        self.execute(command);
    }

    pub(crate) fn execute(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the folder takes a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        if let Some(keeper) = &self.setup.keeper {
            keeper.pass_on(&mut command);
        }
        self.child = Some(command.spawn().expect("brokerd can be executed"));
    }

    /// Waits until brokerd answers.
    ///
    /// # Panics
    /// It ends before.
    #[track_caller]
    pub fn wait_until_it_answers(&mut self) {
        let child = self.child.as_mut().expect("brokerd was started");
        let socket = self.setup.folder().join("run/broker.sock");
        wait_until("brokerd answers", || {
            let ended = child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "brokerd ended at once: {ended:?}");
            Session::try_open(&socket).is_ok_and(|mut session| session.try_ping().is_ok())
        });
    }

    /// The command line of a brokerd on this folder.
    #[must_use]
    pub fn daemon(&self) -> Command {
        let folder = self.folder();
        let mut command = self.setup.program();
        command.arg("--socket").arg(self.socket());
        command.arg("--services").arg(folder.join("services.d"));
        command.arg("--state-dir").arg(folder.join("state"));
        command.args(&self.setup.arguments);
        self.with_environment(&mut command);
        command.envs(self.setup.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn with_environment(&self, command: &mut Command) {
        let home = self.folder().join("home");
        command.env_clear().current_dir("/");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &home);
        for name in ["XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
            command.env(name, home.join(name.to_lowercase()));
        }
    }

    /// The folder of this test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The broker's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run/broker.sock")
    }

    fn log_path(&self) -> PathBuf {
        self.path("brokerd.log")
    }

    /// What brokerd has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// brokerd's process number.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("brokerd runs").id()
    }

    /// Sends brokerd a signal.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("brokerd runs");
    }

    /// Waits for brokerd's end.
    ///
    /// # Panics
    /// It does not end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("brokerd was started");
        wait_for("brokerd ends", || child.try_wait().expect("a child can be waited for"))
    }

    /// Says that this test ends brokerd in a way that leaves its backends running; they are ended with the test.
    pub fn may_leave_processes(&mut self) {
        self.may_leave_processes = true;
    }

    /// Writes or replaces a service file; the broker learns of it at its next reload.
    pub fn write_service(&self, service: &Service) {
        self.setup.write(service);
    }

    /// Makes an empty file, which opens the gate that waits for it.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn open_gate(&self, name: &str) {
        fs::write(self.path(name), "").expect("the folder takes a file");
    }

    /// A brokerctl that talks to this broker.
    #[must_use]
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(sibling("brokerctl"));
        self.with_environment(&mut command);
        command.env("BROKER_SOCKET", self.socket()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs brokerctl.
    #[track_caller]
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.ctl_in_background(arguments).finish()
    }

    /// Runs brokerctl with `--json`.
    #[track_caller]
    #[must_use]
    pub fn ctl_json(&self, arguments: &[&str]) -> Output {
        self.ctl(&[&["--json"], arguments].concat())
    }

    /// Starts brokerctl.
    #[track_caller]
    #[must_use]
    pub fn ctl_in_background(&self, arguments: &[&str]) -> Running {
        Running::start(&mut self.ctl_command(arguments))
    }

    /// `brokerctl resolve --json`: the backend.
    #[track_caller]
    #[must_use]
    pub fn resolve(&self, service: &str) -> Value {
        self.ctl_json(&["resolve", service]).done().json()
    }

    /// A new session, spoken by hand.
    #[track_caller]
    #[must_use]
    pub fn session(&self) -> Session {
        Session::open(&self.socket())
    }

    /// The status report.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Value {
        self.session().admin(AdminRequest::Status).expect("the broker's own user may ask for the status")
    }

    /// The backend of a service in the default instance, of any version, as `status` shows it; null if there is none.
    #[track_caller]
    #[must_use]
    pub fn backend(&self, service: &str) -> Value {
        let mut status = self.status();
        let backends = status["backends"].as_array_mut().expect("status lists backends");
        let found = backends.iter_mut().find(|b| b["service"] == service && b["instance"] == "default");
        found.map_or(Value::Null, Value::take)
    }

    /// Waits until `status` shows the backend so.
    #[track_caller]
    pub fn wait_backend(&self, service: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let last = RefCell::new(Value::Null);
        let look = || {
            let backend = self.backend(service);
            last.replace(backend.clone());
            condition(&backend).then_some(backend)
        };
        wait(look, || format!("{service} is not {what}: {}", last.borrow()))
    }

    /// Waits until the backend is in that state; for `inactive` it may also be unknown.
    #[track_caller]
    pub fn wait_state(&self, service: &str, state: &str) -> Value {
        self.wait_backend(service, state, |backend| {
            backend["state"] == state || state == "inactive" && backend.is_null()
        })
    }

    /// Connects to a backend's endpoint, as `resolve` or `status` show it.
    ///
    /// # Panics
    /// Nobody listens there.
    #[track_caller]
    #[must_use]
    pub fn dial(&self, backend: &Value) -> Connection {
        let endpoint = backend["endpoint"].as_str().unwrap_or_else(|| panic!("no endpoint in {backend}"));
        Connection::to(endpoint).unwrap_or_else(|error| panic!("cannot connect to {endpoint}: {error}"))
    }

    /// The starts of a fake backend so far: process number and CLOCK_MONOTONIC in milliseconds.
    ///
    /// # Panics
    /// The note is not the fake backend's.
    #[must_use]
    pub fn starts(&self, service: &str) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(self.path("starts").join(service)).unwrap_or_default();
        let parse = |line: &str| {
            let (pid, at) = line.split_once(' ')?;
            Some((pid.parse().ok()?, at.parse().ok()?))
        };
        text.lines().map(|line| parse(line).expect("`PID MS`")).collect()
    }

    /// The processes of a service whose command line is the fake backend's.
    #[must_use]
    pub fn processes(&self, service: &str) -> Vec<i32> {
        let note = self.path("starts").join(service).display().to_string();
        let all = processes_mentioning(self.folder()).into_iter();
        let own = |command: &str| command.split(' ').any(|word| word == note);
        all.filter(|(_, command)| own(command)).map(|(pid, _)| pid).collect()
    }

    /// Checks that no process of the service is left.
    ///
    /// # Panics
    /// There is one.
    #[track_caller]
    pub fn assert_gone(&self, service: &str) {
        assert_eq!(self.processes(service), Vec::<i32>::new(), "processes of {service} are left");
    }

    fn stop_at_the_end_of_the_test(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let group = Pid::from_raw(child.id().cast_signed());
        let _ = kill(group, Signal::SIGINT);
        let status = try_wait(|| child.try_wait().ok().flatten());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("brokerd ended with {status} at SIGINT")),
            None => Err(format!("brokerd did not end within {BOUND:?} of SIGINT")),
        }
    }

    fn kill_leftovers(&self) -> Result<(), String> {
        let mut left = processes_mentioning(self.folder());
        let place = cgroups::place(&self.path("state"));
        // Some have nothing in them that names the folder.
        let hidden =
            place.iter().flat_map(|place| cgroups::members(place)).filter(|pid| !left.iter().any(|(p, _)| p == pid));
        let hidden: Vec<_> = hidden.map(|pid| (pid, "in a cgroup of the broker".to_owned())).collect();
        left.extend(hidden);
        let kill_all = |found: &[(i32, String)]| {
            found.iter().for_each(|(pid, _)| _ = kill(Pid::from_raw(*pid), Signal::SIGKILL));
        };
        kill_all(&left);
        // Until nobody is left: what forked meanwhile is found by the next look. A panic here would end the whole run.
        let gone = try_wait(|| {
            let living = processes_mentioning(self.folder());
            kill_all(&living);
            if let Some(place) = &place {
                let _ = fs::write(place.join("cgroup.kill"), "1");
            }
            let are_removed = living.is_empty() && place.as_ref().is_none_or(|place| cgroups::remove(place).is_ok());
            are_removed.then_some(())
        });
        if gone.is_none() {
            let living = processes_mentioning(self.folder());
            return Err(format!("killed processes, or the broker's cgroups, remain: {living:?}"));
        }
        if left.is_empty() || self.may_leave_processes { Ok(()) } else { Err(format!("processes were left: {left:?}")) }
    }
}

impl Drop for Broker {
    #[expect(clippy::print_stderr, reason = "a failed test shows the broker's log")]
    fn drop(&mut self) {
        let stopped = self.stop_at_the_end_of_the_test();
        let clean = self.kill_leftovers();
        let log = self.log();
        let sound = if log.contains("panicked at") { Err("brokerd panicked".to_owned()) } else { Ok(()) };
        let fault = stopped.and(clean).and(sound).err();
        if fault.is_some() || thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("--- log of brokerd in {}\n{tail}\n---", self.folder().display());
        }
        if let (Some(fault), false) = (fault, thread::panicking()) {
            panic!("{fault}");
        }
    }
}
