//! Helpers of the tests with real processes: a process that plays the broker, and starts of small scripts.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::identity;
use super::pool::SpawnPool;
use super::spawn::{Command, SpawnError, Spawned, spawn};
use super::start::StartFacts;

/// The bound of every wait; reached only when a test fails.
pub(crate) const GENEROUS: Duration = Duration::from_secs(30);

const ROLE: &str = "BROKER_TEST_ROLE";

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Waits for a state.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + GENEROUS;
    while !reached() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the body in a fresh process, on its main thread, as a child subreaper. Whatever it leaves is ended.
///
/// The test harness runs tests on threads of its own, and orphans go to the main one; so the test binary is executed
/// again, and plays the role before its `main`.
#[track_caller]
pub(crate) fn as_broker(body: fn()) {
    let role = (body as usize).wrapping_sub(as_broker as *const () as usize);
    let played =
        std::process::Command::new(std::env::current_exe().unwrap()).env(ROLE, role.to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&played.stderr);
    assert!(played.status.success(), "the broker's role failed ({}):\n{said}", played.status);
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = play_role;

extern "C" fn play_role() {
    let Some(role) = std::env::var(ROLE).ok().and_then(|role| role.parse::<usize>().ok()) else { return };
    // SAFETY: `as_broker` computed the distance within this same executable, so it leads to the same function.
    let body: fn() = unsafe { std::mem::transmute((as_broker as *const () as usize).wrapping_add(role)) };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    nix::unistd::alarm::set(120);
    let played = std::panic::catch_unwind(body);
    wait_for("nothing is left", || {
        let ours = identity::all().unwrap().into_iter().filter(|stat| stat.parent == Pid::this());
        let mut left = 0;
        for stat in ours {
            let _ = kill(stat.pid, Signal::SIGKILL);
            left += 1;
        }
        while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status.pid().is_some())
        {}
        left == 0
    });
    std::process::exit(if played.is_ok() { 0 } else { 1 });
}

/// A started script with its log, spawned by a worker thread as the broker does it.
pub(crate) struct Start {
    pub(crate) spawned: Spawned,
    pub(crate) facts: StartFacts,
    folder: tempfile::TempDir,
}

impl Start {
    pub(crate) fn sh(script: &str) -> Self {
        Self::program("/bin/sh", &["-c", script])
    }

    pub(crate) fn program(program: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        Self::new(folder, program, arguments, Some(socket))
    }

    /// Starts a program that is not told of any notify socket.
    pub(crate) fn untold(program: &str, arguments: &[&str]) -> Self {
        Self::new(tempfile::tempdir().unwrap(), program, arguments, None)
    }

    fn new(folder: tempfile::TempDir, program: &str, arguments: &[&str], notify: Option<PathBuf>) -> Self {
        let mut command = command(program, arguments, &folder.path().join("log"));
        command.environment.extend(notify.iter().map(|path| ("NOTIFY_SOCKET".into(), path.into())));
        let spawned = on_worker(command.clone()).unwrap();
        let facts = StartFacts::observe(&command, &spawned).unwrap();
        Self { spawned, facts, folder }
    }

    /// Where its log is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

/// A command whose output goes to the file.
pub(crate) fn command(program: &str, arguments: &[&str], output: &Path) -> Command {
    let output: Arc<OwnedFd> = Arc::new(File::create(output).unwrap().into());
    Command {
        program: PathBuf::from(program),
        argv: [program].iter().chain(arguments).map(Into::into).collect(),
        environment: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into())],
        working_directory: PathBuf::from("/"),
        umask: 0o077,
        stdout: Arc::clone(&output),
        stderr: output,
        listen: Vec::new(),
        die_with_parent: false,
        record: None,
        cgroup: None,
        nofile_soft: None,
        nofile: None,
    }
}

/// Spawns on a thread that does not end before the process.
pub(crate) fn on_worker(command: Command) -> Result<Spawned, SpawnError> {
    static POOL: OnceLock<SpawnPool> = OnceLock::new();
    let (done, result) = std::sync::mpsc::channel();
    POOL.get_or_init(SpawnPool::new).run(move || done.send(spawn(&command)).unwrap()).unwrap();
    result.recv_timeout(GENEROUS).unwrap()
}
