//! Brokers that clients start where none runs: one for all of them, in the background, gone when nobody needs it.
//!
//! `brokerctl` does so by itself for ordinary users alone, so where these tests run as root their clients are another
//! user.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use broker_client::{Autostart, AutostartError, Client, Error, ReconnectConfig, Request, SessionEvent};
use broker_tests::{
    BOUND, Output, Running, Service, Session, Setup, end_processes, process_exists, processes_mentioning,
    remove_cgroups, sibling, trials, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;

use crate::access::OTHER;
use crate::library::block_on;

trials![
    whenever_a_client_comes_it_is_served,
    who_comes_while_a_broker_leaves_is_served_by_the_next,
    of_fifty_clients_one_starts_a_broker_and_all_are_served,
    it_leaves_when_nobody_uses_it_and_the_next_client_starts_another,
    the_pipes_of_a_step_end_with_it,
    a_broker_that_cannot_start_says_why,
    none_is_started_where_that_is_not_wanted,
    a_broker_is_started_at_a_named_socket_if_that_is_wanted,
    a_session_whose_broker_is_gone_starts_another,
];

/// The folders of an ordinary user, with a service x. What was started there ends with the test.
struct Home {
    setup: Setup,
}

impl Home {
    fn new() -> Self {
        Self::with(&[], "")
    }

    /// With these arguments and tables of x.
    fn with(arguments: &[&str], toml: &str) -> Self {
        let setup = Setup::new();
        // Where a root's programs lie others may not go.
        fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o755)).expect("own folder");
        fs::create_dir(setup.folder().join("bin")).expect("a new folder");
        for name in ["brokerctl", "brokerd", "fake-backend"] {
            let (from, to) = (sibling(name), setup.folder().join("bin").join(name));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).expect("the folder takes a program");
        }
        let program = setup.path("bin/fake-backend");
        let command = [&[program.as_str(), "--log-start", "{starts}", "--listen", "{endpoint}"], arguments].concat();
        let home = Self { setup: setup.service(&Service::named("x").command("1.0.0", &command).toml(toml)) };
        fs::create_dir_all(home.path("config/broker")).expect("a new folder");
        fs::rename(home.path("services.d"), home.path("config/broker/services.d")).expect("the same disk");
        for name in ["run", "state", "named"] {
            fs::DirBuilder::new().mode(0o700).create(home.path(name)).expect("a new folder");
        }
        if is_root() {
            for name in ["run", "state", "named", "starts", "home"] {
                chown(home.path(name), Some(OTHER), Some(OTHER)).expect("root may");
            }
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.setup.folder().join(name)
    }

    /// Where an ordinary user's broker listens.
    fn socket(&self) -> PathBuf {
        self.path("run/broker/broker.sock")
    }

    /// A program of an ordinary user.
    fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.path("home"));
        for (name, folder) in [("RUNTIME_DIR", "run"), ("STATE_HOME", "state"), ("CONFIG_HOME", "config")] {
            command.env(format!("XDG_{name}"), self.path(folder));
        }
        if is_root() {
            command.uid(OTHER).gid(OTHER);
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(self.path("bin/brokerctl")).args(arguments))
    }

    #[track_caller]
    fn resolve(&self, arguments: &[&str]) -> Value {
        self.ctl(&[&["--json", "resolve", "x"], arguments].concat()).finish().done().json()
    }

    /// Runs a script of an ordinary user, to whom `brokerctl` is `$1`.
    #[track_caller]
    fn shell(&self, script: &str) -> Output {
        let mut shell = self.command("/bin/sh");
        Running::start(shell.args(["-c", script, "sh"]).arg(self.path("bin/brokerctl"))).finish()
    }

    /// The brokers that run here, launching processes among them.
    fn brokers(&self) -> Vec<u64> {
        let all = processes_mentioning(self.setup.folder()).into_iter();
        let pids = all.filter(|(_, command)| command.contains("brokerd --detach")).map(|(pid, _)| pid);
        pids.map(|pid| u64::try_from(pid).expect("a process number")).collect()
    }

    /// The one broker that runs here.
    #[track_caller]
    fn broker(&self) -> u64 {
        let text = fs::read_to_string(self.path("run/broker/broker.sock.lock")).expect("a broker was started");
        let pid = text.lines().next().and_then(|line| line.parse().ok()).expect("a number");
        wait_until("no other broker is left", || self.brokers() == [pid]);
        pid
    }

    /// What the brokers that ran here have logged.
    fn log(&self) -> String {
        let files = fs::read_dir(self.path("state/broker/log")).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).expect("a log")).collect()
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.path("starts/x")).unwrap_or_default().lines().count()
    }
}

impl Drop for Home {
    #[expect(clippy::print_stderr, reason = "a failed test shows the broker's log")]
    fn drop(&mut self) {
        let deaf = end_processes(self.setup.folder());
        remove_cgroups(&self.path("own-state"));
        if thread::panicking() {
            eprintln!("--- log of brokerd in {}\n{}---", self.setup.folder().display(), self.log());
        } else {
            assert_eq!(deaf, [] as [String; 0], "these did not end at SIGTERM");
        }
    }
}

fn is_root() -> bool {
    Uid::effective().is_root()
}

fn of_fifty_clients_one_starts_a_broker_and_all_are_served() {
    let home = Home::new();
    let clients: Vec<_> = (0..50).map(|_| home.ctl(&["--json", "resolve", "x"])).collect();
    let answers: Vec<Value> = clients.into_iter().map(|client| client.finish().done().json()).collect();
    for answer in &answers {
        assert_eq!((answer, &answer["generation"]), (&answers[0], &1.into()));
    }
    home.broker();
    assert_eq!(home.starts(), 1);
    let log = home.log();
    assert_eq!(log.matches(" ready pid=").count(), 1, "no other broker came as far as that: {log}");
}

/// A shell ends only when nobody has the pipe any more that it reads.
fn the_pipes_of_a_step_end_with_it() {
    for script in [
        "found=$(\"$1\" resolve x 2>&1 3>&1 9>&1); echo \"$? $found\"",
        "{ \"$1\" resolve x; echo $?; } 2>&1 7>&1 | cat | tr '\\n' ' '; echo",
    ] {
        let home = Home::new();
        let stdout = home.shell(script).done().stdout;
        let mut words: Vec<&str> = stdout.split_whitespace().collect();
        words.sort_unstable();
        let [code, endpoint] = words[..] else { panic!("{stdout}") };
        assert!(code == "0" && endpoint.starts_with("unix:/"), "{stdout}");
        let broker = home.broker();
        Session::open(&home.socket()).ping();
        assert!(process_exists(broker), "it goes on");
    }
}

fn it_leaves_when_nobody_uses_it_and_the_next_client_starts_another() {
    let home = Home::new();
    let mut brokers = Vec::new();
    for round in 1..=2 {
        let answer = home.resolve(&["--idle-exit", "1s"]);
        assert_eq!(answer["generation"], round, "generations are counted over brokers");
        let text = fs::read_to_string(home.path("run/broker/broker.sock.lock")).expect("a broker was started");
        brokers.push(text);
        wait_until("it has left, with its backend", || processes_mentioning(home.setup.folder()).is_empty());
        assert!(!home.socket().exists());
        assert_eq!((home.starts(), home.log().matches("nobody has used this broker for 1s").count()), (round, round));
    }
    assert_ne!(brokers[0], brokers[1]);
}

fn who_comes_while_a_broker_leaves_is_served_by_the_next() {
    let home = Home::new();
    let before = home.resolve(&[]);
    for round in 1..=3 {
        let broker = i32::try_from(home.broker()).expect("a process number");
        kill(Pid::from_raw(broker), Signal::SIGTERM).expect("it runs");
        wait_until("it leaves", || home.log().matches("INFO shutting down sessions=").count() == round);
        assert_eq!(home.resolve(&[]), before, "by the same backend");
    }
}

/// Clients come about when the broker has been idle for long enough: a little earlier, a little later, and in between.
fn whenever_a_client_comes_it_is_served() {
    const IDLE_MS: u64 = 100;
    let home = Home::new();
    let idle_exit = format!("{IDLE_MS}ms");
    for round in 0..20 {
        let answer = home.resolve(&["--idle-exit", &idle_exit, "--max-reconnect-delay", "100ms"]);
        assert_eq!(answer["state"], "ready", "{round}");
        thread::sleep(Duration::from_millis(IDLE_MS - 6 + round));
    }
    wait_until("the last one has left", || processes_mentioning(home.setup.folder()).is_empty());
}

fn a_broker_that_cannot_start_says_why() {
    let home = Home::new();
    let file = home.path("config/broker/broker.toml");
    fs::write(&file, "[limits]\nbackend = 1\n").expect("the folder takes a file");
    let output = home.ctl(&["resolve", "x"]).finish().exits(69);
    for part in ["none could be started", "broker.toml:2:1: unknown key `backend`"] {
        assert!(output.stderr.contains(part), "`{part}` is missing: {}", output.stderr);
    }
    assert_eq!(processes_mentioning(home.setup.folder()), []);
    fs::remove_file(file).expect("it is there");
    assert_eq!(home.resolve(&[])["state"], "ready", "nothing is left locked");
}

fn none_is_started_where_that_is_not_wanted() {
    let home = Home::new();
    let never = home.ctl(&["resolve", "x", "--autostart", "never"]);
    let mut command = home.command(home.path("bin/brokerctl"));
    let named = Running::start(command.args(["resolve", "x"]).env("BROKER_SOCKET", home.path("named/b.sock")));
    let socket = home.path("named/b.sock").display().to_string();
    let by_option = home.ctl(&["resolve", "x", "--socket", &socket]);
    let report = home.ctl(&["status"]);
    for client in [never, named, by_option, report] {
        let output = client.finish().exits(69);
        assert!(output.stderr.contains("no broker is running"), "{}", output.stderr);
    }
    assert_eq!(processes_mentioning(home.setup.folder()), []);
    assert!(!home.path("run/broker").exists() && !home.path("named/b.sock.start").exists(), "nothing was made");
}

fn a_broker_is_started_at_a_named_socket_if_that_is_wanted() {
    let home = Home::new();
    let socket = home.path("named/deeper/b.sock");
    let name = socket.display().to_string();
    let answer = home.resolve(&["--socket", &name, "--autostart", "always"]);
    assert!(answer["endpoint"].as_str().is_some_and(|text| text.contains("named/deeper/")), "{answer}");
    Session::open(&socket).ping();
    assert!(!home.socket().exists());
}

fn a_session_whose_broker_is_gone_starts_another() {
    let home = Home::new();
    let folder = |name: &str| home.path(name).into_os_string();
    let autostart = Autostart::new()
        .program(home.path("bin/brokerd"))
        .argument("--state-dir")
        .argument(folder("own-state"))
        .argument("--services")
        .argument(folder("config/broker/services.d"));
    let config = ReconnectConfig::new(Duration::from_millis(5), Duration::from_millis(50), 20).expect("sound settings");
    let builder = Client::builder().socket(home.path("own/b.sock")).deadline(BOUND).reconnect(config);
    let broken = Autostart::new().program(home.path("bin/nothing"));
    block_on(async {
        let error = builder.clone().autostart(broken).connect().await.expect_err("there is no such program");
        assert!(matches!(error, Error::Autostart(AutostartError::Program { .. })), "{error:?}");

        let client = builder.autostart(autostart).connect().await.expect("it is started");
        let mut events = client.events();
        let held = client.resolve(Request::new("x")).await.expect("ready");
        for _ in 0..2 {
            let text = fs::read_to_string(home.path("own/b.sock.lock")).expect("a broker was started");
            let pid: i32 = text.lines().next().and_then(|line| line.parse().ok()).expect("a number");
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
            while events.next().await.expect("the session goes on") != SessionEvent::Reconnected {}
            assert!(held.is_held());
            assert_eq!(home.starts(), 1, "the next broker adopts it");
            assert_ne!(text, fs::read_to_string(home.path("own/b.sock.lock")).expect("another was started"));
        }
    });
}
