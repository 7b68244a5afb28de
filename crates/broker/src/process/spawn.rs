//! Starting a program: `spawn` blocks until the program is executed, or says which step failed and why.
//!
//! It clones as glibc's `posix_spawn` does (`CLONE_VM | CLONE_VFORK`): no page tables are copied and a failure comes
//! back through shared memory. It never runs on the driver's thread, and only on threads that do not exit, because
//! `PR_SET_PDEATHSIG` is tied to the thread that spawned. What the child does is in `child`.

mod child;
mod clone;
mod error;
mod program;
mod slots;
#[cfg(test)]
mod tests;

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use self::child::{Birth, Context, Step};
use self::clone::{Stack, clone};
pub(crate) use self::error::SpawnError;
pub(crate) use self::program::resolve_program;
use self::slots::Slots;
pub(crate) use self::slots::reserve as reserve_descriptors;
use super::kernel::reap;
use crate::failpoint;

/// How often a program that is being written to is tried again, and how long after the last time. Another thread's
/// child holds a descriptor of a freshly installed program for the instant between its fork and its exec.
const BUSY_RETRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A listening socket that the program inherits.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    pub(crate) socket: Arc<OwnedFd>,
    /// Its name in `LISTEN_FDNAMES`; without a colon.
    pub(crate) name: String,
}

/// What to start, and how. Descriptors are shared, so one log file serves as stdout and stderr.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// Absolute; see [`resolve_program`].
    pub(crate) program: PathBuf,
    /// The arguments, the program's name for itself first.
    pub(crate) argv: Vec<OsString>,
    /// The whole environment. `LISTEN_*` is replaced if there is anything in `listen`.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) working_directory: PathBuf,
    pub(crate) umask: u32,
    pub(crate) stdout: Arc<OwnedFd>,
    pub(crate) stderr: Arc<OwnedFd>,
    /// Become descriptors 3, 4, … in this order, and set `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES`.
    pub(crate) listen: Vec<Listen>,
    /// Whether the kernel kills the program with the broker.
    pub(crate) die_with_parent: bool,
    /// Where the child writes who it is before it executes the program. If it cannot, the program dies with the broker.
    pub(crate) record: Option<Arc<OwnedFd>>,
    /// The folder of a cgroup, in which the program begins.
    pub(crate) cgroup: Option<Arc<OwnedFd>>,
    /// The soft limit of descriptors, if the broker raised its own.
    pub(crate) nofile_soft: Option<u64>,
    /// The limit of descriptors, soft and hard; goes over the other.
    pub(crate) nofile: Option<u64>,
}

/// A started program: our child, in a session and group of its own that bear its number.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Whether the kernel kills it with the broker: as it was asked for, or because it could not be recorded.
    pub(crate) dies_with_parent: bool,
    /// Why it is not in the cgroup that it was to be in.
    pub(crate) strayed: Option<io::Error>,
    /// The limit of descriptors that it has, if it could not be given the one that it was to have.
    pub(crate) nofile_lowered_to: Option<u64>,
}

/// Starts the program and returns once it is executed. Stdin is `/dev/null`.
///
/// # Errors
/// Says which step failed; nothing of the child is left then. [`SpawnError::is_exhausted`] tells a lack of resources,
/// which passes, from a command that cannot work.
pub(crate) fn spawn(command: &Command) -> Result<Spawned, SpawnError> {
    let prepared = Prepared::new(command)?;
    let mut tries = 0;
    loop {
        match prepared.run(command) {
            Err(error) if error.errno() == Some(libc::ETXTBSY) && tries < BUSY_RETRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            result => return result,
        }
    }
}

/// Everything that the child reads, in the form in which it reads it.
struct Prepared {
    program: CString,
    directory: CString,
    argv: Vec<CString>,
    environment: Vec<Vec<u8>>,
    /// Whether the last entry of `environment` is `LISTEN_PID=` with room for a number.
    listens: bool,
    stdin: &'static OwnedFd,
}

/// `/dev/null`, which is opened once.
fn null() -> io::Result<&'static OwnedFd> {
    static NULL: OnceLock<OwnedFd> = OnceLock::new();
    match NULL.get() {
        Some(null) => Ok(null),
        None => File::open("/dev/null").map(|null| NULL.get_or_init(|| null.into())),
    }
}

impl Prepared {
    fn new(command: &Command) -> Result<Self, SpawnError> {
        let text = |what, text: &OsStr| {
            CString::new(text.as_bytes())
                .map_err(|_| SpawnError::Nul { what, text: text.to_string_lossy().into_owned() })
        };
        let mut environment = Vec::with_capacity(command.environment.len() + 3);
        let listens = !command.listen.is_empty();
        for (name, value) in &command.environment {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(SpawnError::VariableName { name: name.to_string_lossy().into_owned() });
            }
            if listens && [&b"LISTEN_FDS"[..], b"LISTEN_PID", b"LISTEN_FDNAMES"].contains(&name.as_bytes()) {
                continue;
            }
            let mut entry = text("the name of an environment variable", name)?.into_bytes();
            entry.push(b'=');
            entry.extend_from_slice(text("the value of an environment variable", value)?.to_bytes_with_nul());
            environment.push(entry);
        }
        if listens {
            let names: Vec<&str> = command.listen.iter().map(|listen| listen.name.as_str()).collect();
            if let Some(name) = names.iter().find(|name| name.contains(':') || name.contains(char::is_control)) {
                return Err(SpawnError::ListenName { name: (*name).to_owned() });
            }
            environment.push(format!("LISTEN_FDS={}\0", names.len()).into_bytes());
            environment.push(format!("LISTEN_FDNAMES={}\0", names.join(":")).into_bytes());
            environment.push([child::LISTEN_PID, &[0; child::NUMBER_BYTES]].concat());
        }
        Ok(Self {
            program: text("the program's path", command.program.as_os_str())?,
            directory: text("the working directory", command.working_directory.as_os_str())?,
            argv: command.argv.iter().map(|argument| text("an argument", argument)).collect::<Result<_, _>>()?,
            environment,
            listens,
            stdin: null().map_err(|source| SpawnError::prepare("open /dev/null", source))?,
        })
    }

    fn run(&self, command: &Command) -> Result<Spawned, SpawnError> {
        let pointers = |strings: &mut dyn Iterator<Item = *const u8>| -> Vec<*const libc::c_char> {
            strings.map(<*const u8>::cast).chain([std::ptr::null()]).collect()
        };
        let argv = pointers(&mut self.argv.iter().map(|argument| argument.as_ptr().cast()));
        // The child writes its number into its own copy, because `Prepared` may be run again.
        let mut environment = self.environment.clone();
        let listen_pid = match environment.last_mut() {
            Some(entry) if self.listens => entry[child::LISTEN_PID.len()..].as_mut_ptr(),
            _ => std::ptr::null_mut(),
        };
        let envp = pointers(&mut environment.iter().map(|entry| entry.as_ptr()));
        let mut descriptors = vec![self.stdin.as_raw_fd(), command.stdout.as_raw_fd(), command.stderr.as_raw_fd()];
        descriptors.extend(command.listen.iter().map(|listen| listen.socket.as_raw_fd()));
        let count = i32::try_from(descriptors.len())
            .map_err(|_| SpawnError::prepare("pass the sockets", Errno::EMFILE.into()))?;

        let mut record = command.record.as_ref().map_or(-1, |record| record.as_raw_fd());
        let mut cgroup = command.cgroup.as_ref().map_or(-1, |cgroup| cgroup.as_raw_fd());
        let given = descriptors.iter_mut().chain([&mut record, &mut cgroup]);
        let slots = Slots::with(&mut given.collect::<Vec<_>>());

        let mut context = Context {
            program: self.program.as_ptr(),
            argv: argv.as_ptr(),
            envp: envp.as_ptr(),
            directory: self.directory.as_ptr(),
            umask: command.umask,
            signals: child::signals_to_reset(),
            descriptors: descriptors.as_mut_ptr(),
            count,
            listen_pid,
            broker: Pid::this().as_raw(),
            die_with_parent: command.die_with_parent,
            shares_descriptors: slots.is_some(),
            record,
            birth: Birth::to_come(),
            cgroup: -1,
            not_in_cgroup: 0,
            kill_broker_before_record: failpoint::is_next("child-before-record"),
            kill_broker_after_record: failpoint::is_next("child-after-record"),
            nofile_soft: command.nofile_soft,
            nofile: command.nofile,
            nofile_lowered_to: 0,
            failed: Step::None,
            errno: 0,
        };
        let stack = Stack::take().map_err(|source| SpawnError::prepare("reserve the child's stack", source))?;
        let cloned = clone(&mut context, &stack, (cgroup >= 0).then_some(cgroup));
        stack.give_back();
        drop(slots);
        let (pid, pidfd) = cloned.map_err(|source| SpawnError::prepare("clone", source))?;
        if context.failed == Step::None {
            let strayed = (context.not_in_cgroup != 0).then(|| io::Error::from_raw_os_error(context.not_in_cgroup));
            let nofile_lowered_to = Some(context.nofile_lowered_to).filter(|limit| *limit != 0);
            let dies_with_parent = context.die_with_parent;
            return Ok(Spawned { pid, pidfd, dies_with_parent, strayed, nofile_lowered_to });
        }
        // The child reported and is on its way out; nobody but its parent may reap it, so the wait is short.
        super::kernel::wait_ended(pidfd.as_fd(), Duration::from_secs(5));
        let _ = reap(&pidfd);
        if context.failed == Step::OwnDescriptors {
            slots::give_up();
            return self.run(command);
        }
        Err(SpawnError::in_child(context.failed, Errno::from_raw(context.errno).into(), command))
    }
}
