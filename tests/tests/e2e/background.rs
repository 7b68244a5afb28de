//! A broker in the background: what its launcher says, and what it keeps of where it came from.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use broker_proto::AdminRequest;
use broker_tests::{
    BOUND, Connection, Output, Running, Service, Session, Setup, process_exists, processes_mentioning, remove_cgroups,
    sibling, trials, wait_for, wait_until,
};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::unistd::{Pid, setsid};
use serde_json::{Value, json};

trials![
    the_launcher_returns_when_the_broker_accepts,
    what_the_launcher_was_given_ends_with_it,
    it_is_a_daemon,
    nothing_of_a_service_manager_is_passed_on,
    a_hangup_of_the_terminal_does_not_reach_it,
    one_of_two_says_who_holds_the_socket,
    what_is_wrong_is_said_by_the_launcher,
    an_end_without_a_word_is_told,
    it_logs_to_a_file,
    it_leaves_when_nobody_uses_it,
    it_starts_without_stdin_stdout_and_stderr,
];

/// A folder in which a broker may run in the background. It ends with the test.
struct Background {
    setup: Setup,
}

impl Background {
    fn new() -> Self {
        Self { setup: Setup::new() }
    }

    fn of(service: &Service) -> Self {
        Self { setup: Setup::new().service(service) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.setup.folder().join(name)
    }

    /// A launcher, with relative paths for what is in the folder.
    fn launcher(&self) -> Command {
        let mut command = Command::new(sibling("brokerd"));
        command.args(["--detach", "--socket", "run/b.sock", "--state-dir", "state", "--services", "services.d"]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.current_dir(self.setup.folder()).stdin(Stdio::null());
        command
    }

    /// Starts a broker in the background.
    #[track_caller]
    fn launch(&self) -> u64 {
        let output = Running::start(&mut self.launcher()).finish().done();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "it is silent");
        self.pid()
    }

    /// The broker's process number, as its lock has it.
    #[track_caller]
    fn pid(&self) -> u64 {
        let text = fs::read_to_string(self.path("state/lock")).expect("a broker was started");
        text.lines().next().and_then(|line| line.parse().ok()).expect("a number")
    }

    #[track_caller]
    fn session(&self) -> Session {
        let mut session = Session::open(&self.path("run/b.sock"));
        session.ping();
        session
    }

    fn log(&self, folder: &str) -> String {
        let files = fs::read_dir(self.path(folder)).expect("a folder of logs").flatten();
        files.map(|file| fs::read_to_string(file.path()).expect("a log")).collect()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let end = |signal| {
            let found = processes_mentioning(self.setup.folder());
            for (pid, _) in &found {
                let _ = kill(Pid::from_raw(*pid), signal);
            }
            found.len()
        };
        let began = Instant::now();
        end(Signal::SIGTERM);
        while began.elapsed() < BOUND && !processes_mentioning(self.setup.folder()).is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        let left = end(Signal::SIGKILL);
        remove_cgroups(&self.path("state"));
        assert!(left == 0 || thread::panicking(), "{left} processes did not end at SIGTERM");
    }
}

/// Runs the launcher from a shell, which has it as `"$@"`.
fn shell(background: &Background, script: &str) -> Output {
    let launcher = background.launcher();
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(launcher.get_program()).args(launcher.get_args());
    Running::start(shell.current_dir(background.setup.folder()).stdin(Stdio::null())).finish()
}

/// Fields of `/proc/PID/stat` from the third on: state, parent, group, session, terminal.
fn stat(pid: u64) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = text.rsplit_once(") ").expect("a name in parentheses");
    fields.split(' ').map(str::to_owned).collect()
}

/// A set of signals in `/proc/PID/status`.
fn signals(pid: u64, set: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let value = text.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t")).expect("a field");
    u64::from_str_radix(value, 16).expect("a mask")
}

fn the_launcher_returns_when_the_broker_accepts() {
    let background = Background::new();
    let pid = background.launch();
    assert_eq!(background.session().admin(AdminRequest::Status).expect("permitted")["broker"]["pid"], pid);
}

/// The shell ends only when nobody has its pipes any more.
fn what_the_launcher_was_given_ends_with_it() {
    let background = Background::new();
    let script = "x=$(\"$@\" 2>&1 3>&1 9>&1); echo \"$? [$x]\"";
    assert_eq!(shell(&background, script).done().stdout, "0 []\n");
    let second = shell(&background, script).done().stdout;
    assert!(second.starts_with("75 [brokerd: error: another broker"), "{second}");

    let background = Background::new();
    assert_eq!(shell(&background, "{ \"$@\"; echo $?; } 2>&1 7>&1 | cat; echo ended").done().stdout, "0\nended\n");
}

fn it_is_a_daemon() {
    let background = Background::new();
    let mut launcher = background.launcher();
    // SAFETY: system calls only.
    unsafe {
        launcher.pre_exec(|| {
            signal(Signal::SIGHUP, SigHandler::SigIgn)?;
            signal(Signal::SIGUSR1, SigHandler::SigIgn)?;
            SigSet::all().thread_set_mask()?;
            let copied = libc::dup2(2, 57);
            if copied == 57 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let launching = Running::start(&mut launcher);
    let before = launching.pid();
    let _ = launching.finish().done();
    let pid = background.pid();

    let [_, parent, group, session, terminal] = &stat(pid)[..5] else { panic!("five fields") };
    assert_ne!(*parent, before.to_string());
    assert_eq!((group, terminal.as_str()), (session, "0"), "a session of its own, without a terminal");
    assert_ne!(*session, nix::unistd::getsid(None).expect("a session").to_string());
    assert_ne!(*session, pid.to_string(), "and it cannot get one");
    assert!(!process_exists(session.parse().expect("a number")), "nobody stands in between");

    let process = PathBuf::from(format!("/proc/{pid}"));
    assert_eq!(fs::read_link(process.join("cwd")).expect("it runs"), Path::new("/"));
    for entry in fs::read_dir(process.join("fd")).expect("it runs").flatten() {
        // One that was closed meanwhile is nothing that it keeps.
        let (number, Ok(to)) = (entry.file_name(), fs::read_link(entry.path())) else { continue };
        let is_standard = ["0", "1", "2"].iter().any(|standard| number == *standard);
        let to = to.to_str().expect("ASCII");
        let is_own = to.starts_with(background.setup.folder().to_str().expect("ASCII"))
            || ["socket:", "anon_inode:"].iter().any(|kind| to.starts_with(kind));
        assert!(to == "/dev/null" || !is_standard && is_own, "{number:?} is {to}");
    }
    assert_eq!(signals(pid, "SigBlk"), 0);
    // The C library keeps signals 32 and 33 for itself and lets nobody reset what was inherited of them.
    let own = !(0b11 << 31);
    assert_eq!(signals(pid, "SigIgn") & own, 1 << (Signal::SIGPIPE as u32 - 1), "as in every Rust program");
}

fn nothing_of_a_service_manager_is_passed_on() {
    let inherit = "inherit = [\"KEPT\"]";
    let background = Background::of(&Service::fake("x", &[]).toml(&format!("[service.environment]\n{inherit}")));
    let manager = UnixDatagram::bind(background.path("notify")).expect("a short path");
    manager.set_nonblocking(true).expect("a socket");
    let mut launcher = background.launcher();
    launcher.env("NOTIFY_SOCKET", background.path("notify")).env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    launcher.env("WATCHDOG_PID", "1").env("WATCHDOG_USEC", "1000000").env("KEPT", "yes");
    let _ = Running::start(&mut launcher).finish().done();

    let endpoint = background.session().hold("x").endpoint.to_string();
    let facts = Connection::to(&endpoint).expect("it serves").facts();
    assert_eq!(facts["environment"], json!({ "KEPT": "yes" }));
    let heard = manager.recv(&mut [0; 100]).expect_err("nothing is said to the manager");
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
}

/// A terminal: its two ends. Neither is passed on to what is started from here.
fn terminal() -> (PtyMaster, File) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("it is ours");
    let path = ptsname_r(&master).expect("it has a name");
    let slave = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path);
    (master, slave.expect("its other end"))
}

fn a_hangup_of_the_terminal_does_not_reach_it() {
    let background = Background::new();
    let (master, slave) = terminal();
    let end = || Stdio::from(slave.try_clone().expect("another descriptor"));
    let launcher = background.launcher();
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" && touch launched && exec sleep 1000", "sh"]);
    shell.arg(launcher.get_program()).args(launcher.get_args()).current_dir(background.setup.folder());
    shell.stdin(end()).stdout(end()).stderr(end());
    // SAFETY: system calls only.
    unsafe {
        shell.pre_exec(|| {
            setsid()?;
            // Whoever runs the tests under nohup has it ignored.
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            let result = libc::ioctl(0, libc::TIOCSCTTY, 0);
            if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let mut child = shell.spawn().expect("sh runs");
    wait_until("the broker is launched", || background.path("launched").exists());
    let mut session = background.session();
    drop((master, slave, shell));
    let ended = wait_for("the terminal's session ends", || child.try_wait().expect("a child"));
    assert_eq!(ended.signal(), Some(libc::SIGHUP));
    session.ping();
    background.session().ping();
}

fn one_of_two_says_who_holds_the_socket() {
    let background = Background::new();
    let both = [(); 2].map(|()| Running::start(&mut background.launcher()));
    let mut outputs = both.map(Running::finish);
    outputs.sort_by_key(|output| output.code);
    let [first, second] = outputs.map(|output| (output.code, output.stdout, output.stderr));
    assert_eq!(first, (0, String::new(), String::new()));
    assert_eq!((second.0, second.1.as_str()), (75, ""));
    let pid = background.pid();
    assert!(second.2.contains("another broker") && second.2.contains(&pid.to_string()), "{pid}: {}", second.2);
    assert_eq!(second.2.lines().count(), 1, "{}", second.2);
    let running: Vec<_> = processes_mentioning(background.setup.folder()).into_iter().map(|(pid, _)| pid).collect();
    assert_eq!(running, [i32::try_from(pid).expect("a number")], "nothing is left of the other");
    background.session().ping();
}

fn what_is_wrong_is_said_by_the_launcher() {
    let background = Background::new();
    fs::write(background.path("bad.toml"), "[limits]\nbackend = 1\n").expect("the folder takes a file");
    let output = Running::start(background.launcher().args(["--config", "bad.toml"])).finish().exits(1);
    assert!(output.stderr.contains("bad.toml:2:1: unknown key `backend`"), "{}", output.stderr);

    fs::write(background.path("run"), "precious").expect("the folder takes a file");
    let output = Running::start(&mut background.launcher()).finish().exits(1);
    let expected = format!("brokerd: error: cannot make the socket's folder `{}`", background.path("run").display());
    assert!(output.stderr.starts_with(&expected) && output.stdout.is_empty(), "{}", output.stderr);
    assert_eq!(processes_mentioning(background.setup.folder()), []);
}

fn an_end_without_a_word_is_told() {
    let background = Background::new();
    let mut launcher = background.launcher();
    // SAFETY: system calls only.
    unsafe {
        launcher.pre_exec(|| {
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            // Who writes to a file is killed.
            Ok(setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?)
        });
    }
    let output = Running::start(&mut launcher).finish().exits(1);
    for part in ["brokerd: error: the broker was ended by SIGXFSZ", "state/log`"] {
        assert!(output.stderr.contains(part), "`{part}` is missing: {}", output.stderr);
    }
    assert_eq!(processes_mentioning(background.setup.folder()), []);
}

fn it_logs_to_a_file() {
    let background = Background::new();
    let _ = Running::start(background.launcher().args(["--log-format", "json"])).finish().done();
    let ready = || background.log("state/log").lines().find(|line| line.contains("\"ready\"")).map(str::to_owned);
    let ready: Value = serde_json::from_str(&wait_for("it has logged", ready)).expect("JSON");
    assert_eq!((&ready["message"], &ready["pid"]), (&"ready".into(), &background.pid().into()));
    for (path, mode) in [("state", 0o700), ("state/log", 0o700), ("run", 0o700)] {
        let metadata = fs::metadata(background.path(path)).expect("made by the broker");
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
    }

    let background = Background::new();
    let elsewhere = format!("[log]\ndirectory = {:?}\n", background.path("elsewhere"));
    fs::write(background.path("broker.toml"), elsewhere).expect("the folder takes a file");
    let _ = Running::start(background.launcher().args(["--config", "broker.toml"])).finish().done();
    wait_until("it has logged", || background.log("elsewhere").contains("ready"));
    assert!(!background.path("state/log").exists());
}

fn it_leaves_when_nobody_uses_it() {
    let background = Background::new();
    let _ = Running::start(background.launcher().args(["--idle-exit", "200ms"])).finish().done();
    let pid = background.pid();
    wait_until("it has left", || !process_exists(pid));
    assert!(!background.path("run/b.sock").exists());
    assert!(background.log("state/log").contains("nobody has used this broker for 200ms"));
}

fn it_starts_without_stdin_stdout_and_stderr() {
    let background = Background::new();
    let _ = shell(&background, "\"$@\" <&- >&- 2>&-").done();
    background.session().ping();
}
