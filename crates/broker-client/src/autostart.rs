//! Starting a broker where none runs: one, however many clients find that there is none at the same time.
//!
//! Owns the lock beside the socket that makes it one, and the launching process, which it never leaves behind. The broker
//! itself goes into the background (`brokerd --detach`) and is nobody's child.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::sync::oneshot;

const PROGRAM: &str = "brokerd";
const IDLE_EXIT: Duration = Duration::from_secs(10 * 60);

/// brokerd's exit code for a place that another broker holds.
const EXIT_TAKEN: i32 = 75;

/// How long a place may be taken while nobody answers there: by a broker that is just coming or just going.
const TAKEN_MAX: Duration = Duration::from_secs(2);

/// Pauses between two looks at the lock, at the socket, and at the launching process. One that has closed its stderr ends
/// in a moment, so there they double from the first on.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_FIRST: Duration = Duration::from_millis(1);

/// How much of what the launching process says is kept, in bytes.
const MESSAGE_MAX: usize = 64 << 10;

/// How a broker is started where none runs.
#[derive(Debug, Clone)]
pub struct Autostart {
    program: PathBuf,
    idle_exit: Duration,
    arguments: Vec<OsString>,
}

/// Why no broker was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AutostartError {
    /// There is no such program, or it may not be executed: install it, or name another.
    #[error("cannot execute `{}` to start a broker", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program ran and started no broker; it says why.
    #[error("`{}` started no broker: {}", program.display(), Said(message, *code))]
    Failed {
        /// The program.
        program: PathBuf,
        /// Its exit code; `None` if a signal ended it, or nobody knows.
        code: Option<i32>,
        /// What it wrote to stderr, up to 64 KiB.
        message: String,
    },
    /// The lock beside the socket cannot be had, and it is not that somebody else has it.
    #[error("cannot lock `{}` to start a broker", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nobody accepted in time.
    #[error("no broker was started within {after:?}")]
    Timeout {
        /// The limit that the caller set.
        after: Duration,
    },
}

impl Default for Autostart {
    fn default() -> Self {
        Self::new()
    }
}

impl Autostart {
    /// The `brokerd` in `PATH`, which leaves when nobody has used it for 10 minutes.
    #[must_use]
    pub fn new() -> Self {
        Self { program: PROGRAM.into(), idle_exit: IDLE_EXIT, arguments: Vec::new() }
    }

    /// Starts another program; a name without a slash is looked up in `PATH`.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Has the broker leave when nobody has used it for that long. It refuses to start with zero.
    #[must_use]
    pub fn idle_exit(mut self, idle_exit: Duration) -> Self {
        self.idle_exit = idle_exit;
        self
    }

    /// Adds an argument to those of the program: `--services`, then a folder.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts a broker at the socket unless one answers by then. Returns when one accepts there.
    ///
    /// A call that is dropped ends the launching process, if it has one, and gives the lock back.
    ///
    /// # Errors
    /// No broker was started, and the error says why.
    pub(crate) async fn start(&self, socket: &Path, timeout: Duration) -> Result<(), AutostartError> {
        let late = |_| Err(AutostartError::Timeout { after: timeout });
        tokio::time::timeout(timeout, self.start_one(socket)).await.unwrap_or_else(late)
    }

    async fn start_one(&self, socket: &Path) -> Result<(), AutostartError> {
        let Some(lock) = lock(socket).await? else { return Ok(()) };
        let lock = Arc::new(lock);
        let mut taken_since = None;
        while !answers(socket) {
            let (code, message) = self.launch(socket, &lock).await?;
            let patience = taken_since.get_or_insert_with(Instant::now);
            match code {
                _ if code == Some(0) || answers(socket) => break,
                Some(EXIT_TAKEN) if patience.elapsed() < TAKEN_MAX => tokio::time::sleep(PAUSE).await,
                _ => return Err(AutostartError::Failed { program: self.program.clone(), code, message }),
            }
        }
        Ok(())
    }

    /// Runs the program to its end, on a thread of its own; its exit code and what it said. The thread has the lock for as
    /// long as the program runs, even if nobody waits any more.
    async fn launch(&self, socket: &Path, lock: &Arc<Flock<File>>) -> Result<(Option<i32>, String), AutostartError> {
        let failed = |source| AutostartError::Program { program: self.program.clone(), source };
        let (answer, ended) = oneshot::channel();
        let (mut command, lock) = (self.command(socket), Arc::clone(lock));
        tracing::debug!(?command, "starting a broker");
        let work = move || {
            let result = command.spawn().map(|child| attend(child, || answer.is_closed()));
            drop(lock);
            // Nobody waits for it if the start was given up.
            let _ = answer.send(result);
        };
        std::thread::Builder::new().name("autostart".to_owned()).spawn(work).map_err(failed)?;
        let gone = |_| Err(io::Error::other("the thread that started it is gone"));
        ended.await.unwrap_or_else(gone).map_err(failed)
    }

    fn command(&self, socket: &Path) -> Command {
        let idle_exit = self.idle_exit.as_nanos().div_ceil(1_000_000);
        let mut command = Command::new(&self.program);
        command.args(["--detach", "--socket"]).arg(socket).arg("--idle-exit").arg(format!("{idle_exit}ms"));
        command.args(&self.arguments);
        // In a process group of its own: an interrupt from the terminal is for the client, and for nobody's broker.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        command
    }
}

/// Takes the lock beside the socket, in a folder that is made if need be. `None` if somebody answers at the socket first.
async fn lock(socket: &Path) -> Result<Option<Flock<File>>, AutostartError> {
    if answers(socket) {
        return Ok(None);
    }
    let mut path = socket.as_os_str().to_owned();
    path.push(".start");
    let path = PathBuf::from(path);
    let failed = |source| AutostartError::Lock { path: path.clone(), source };
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let mut file = options.open(&path).map_err(failed)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((unlocked, Errno::EWOULDBLOCK | Errno::EINTR)) => file = unlocked,
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        tokio::time::sleep(PAUSE).await;
        if answers(socket) {
            return Ok(None);
        }
    }
}

/// Whether a broker listens at the socket; a full backlog is one that is busy.
fn answers(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(address) = UnixAddr::new(path) else { return false };
    let Ok(dialling) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else { return false };
    matches!(connect(dialling.as_raw_fd(), &address), Ok(()) | Err(Errno::EAGAIN))
}

/// Waits for the end of the launching process; its exit code, and what it said. It is killed if it is given up.
fn attend(mut child: Child, is_given_up: impl Fn() -> bool) -> (Option<i32>, String) {
    let mut stderr = child.stderr.take();
    if let Some(pipe) = &stderr
        && let Err(error) = fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
    {
        tracing::warn!(%error, "what a launching process says cannot be read");
        stderr = None;
    }
    let mut said = Vec::new();
    let mut pause = PAUSE_FIRST;
    let code = loop {
        // First the look at the process, then at its words: so those before its end are all there, and who else may have
        // the pipe is not waited for.
        let ended = child.try_wait();
        let is_open = stderr.as_mut().is_some_and(|pipe| listen(pipe, &mut said));
        match ended {
            Ok(Some(status)) => break status.code(),
            Ok(None) => {}
            // Where SIGCHLD is ignored the kernel forgets how children ended.
            Err(_) => break None,
        }
        if is_given_up() {
            let _ = child.kill();
            break child.wait().ok().and_then(|status| status.code());
        }
        match stderr.as_ref().filter(|_| is_open) {
            Some(pipe) => {
                let timeout = PollTimeout::try_from(PAUSE).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout);
            }
            None => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE);
            }
        }
    };
    (code, String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// Reads what there is; `false` at the end.
fn listen(pipe: &mut ChildStderr, said: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 4096];
    // As much at a time as is kept at all: one that never pauses must not keep us from looking at the rest.
    for _ in 0..MESSAGE_MAX / bytes.len() {
        match pipe.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) => said.extend_from_slice(&bytes[..count.min(MESSAGE_MAX - said.len())]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// What a launching process said, or that it said nothing.
struct Said<'a>(&'a str, Option<i32>);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0, self.1) {
            ("", Some(code)) => write!(f, "it exited with code {code} and said nothing"),
            ("", None) => f.write_str("it was killed and said nothing"),
            (message, _) => {
                let message = message.strip_prefix("brokerd: ").unwrap_or(message);
                f.write_str(message.strip_prefix("error: ").unwrap_or(message))
            }
        }
    }
}

#[cfg(test)]
#[path = "autostart_tests.rs"]
mod tests;
