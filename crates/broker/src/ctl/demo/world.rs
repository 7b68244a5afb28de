//! The demo's processes and its folder: made, watched, and removed whatever happens.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::super::output::{Console, FAILED, Failure};
use super::DEMO_VARIABLE;
use crate::services::writable_by_others;

/// A folder path longer than this leaves too little of a socket path's 107 bytes.
const FOLDER_MAX: usize = 40;
/// How long the broker may take to begin or to end before something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(2);

/// A process of the demo; ends with it.
pub(super) struct Process(pub(super) Child);

impl Process {
    /// Starts this program with the arguments, apart from the terminal's signals: Ctrl-C is the demo's to answer.
    fn spawn(command: &mut Command) -> io::Result<Self> {
        command.process_group(0).env_remove("BROKER_SOCKET").env_remove("NOTIFY_SOCKET").spawn().map(Self)
    }

    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Waits without a runtime. `false` if it still runs.
    fn ended_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(GLANCE);
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command did.
pub(super) struct Finished {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) took: Duration,
}

pub(super) struct World {
    folder: Option<TempDir>,
    path: PathBuf,
    /// This program.
    program: PathBuf,
    /// This program, as the broker runs it for the daemons.
    daemon: PathBuf,
    broker: Option<Process>,
}

impl World {
    pub(super) fn new() -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| Failure::because(FAILED, "cannot find this program", e))?;
        let mut place = std::env::temp_dir();
        if place.as_os_str().len() > FOLDER_MAX {
            place = PathBuf::from("/tmp");
        }
        let folder = tempfile::Builder::new()
            .prefix("broker-demo-")
            .tempdir_in(&place)
            .map_err(|e| Failure::because(FAILED, format!("cannot make a folder in {}", place.display()), e))?;
        let path = folder.path().to_owned();
        let daemon = trusted(&program, &path)
            .map_err(|e| Failure::because(FAILED, format!("cannot copy {}", program.display()), e))?;
        Ok(Self { folder: Some(folder), path, program, daemon, broker: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn daemon(&self) -> &Path {
        &self.daemon
    }

    /// Writes a file that only this user can write, whatever the umask: the broker would not trust another.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.file(name);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }

    /// Starts the broker and waits until it accepts. Says its pid.
    pub(super) async fn start_broker(&mut self) -> Result<u32, Failure> {
        let failed = |e| Failure::because(FAILED, "cannot start the broker", e);
        let log = OpenOptions::new().append(true).create(true).open(self.file("brokerd.log")).map_err(failed)?;
        let mut command = Command::new(&self.program);
        command.arg("__brokerd").arg("--socket").arg(self.file("b.sock"));
        command.arg("--state-dir").arg(self.file("state")).arg("--services").arg(self.file("services"));
        command.env(DEMO_VARIABLE, "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut broker = Process::spawn(&mut command).map_err(failed)?;
        let pid = broker.0.id();
        let socket = self.file("b.sock");
        let accepts = async {
            loop {
                if tokio::net::UnixStream::connect(&socket).await.is_ok() {
                    return Ok(());
                }
                if let Ok(Some(status)) = broker.0.try_wait() {
                    return Err(Failure::told(FAILED, format!("the broker ended at once: {status}")));
                }
                tokio::time::sleep(GLANCE).await;
            }
        };
        let accepted = tokio::time::timeout(PATIENCE, accepts).await;
        self.broker = Some(broker);
        accepted.map_err(|_| Failure::told(FAILED, "the broker does not accept connections"))??;
        Ok(pid)
    }

    /// Kills the broker.
    pub(super) fn kill_broker(&mut self) {
        // The guard kills it, and waits until it is gone.
        self.broker = None;
    }

    /// Waits for the broker's end, by itself.
    pub(super) async fn broker_ended(&mut self) -> Result<ExitStatus, Failure> {
        let failed = |e| Failure::because(FAILED, "cannot wait for the broker", e);
        let Some(broker) = &mut self.broker else { return Err(Failure::told(FAILED, "no broker was started")) };
        let status = tokio::time::timeout(PATIENCE, broker.ended()).await;
        let status = status.map_err(|_| Failure::told(FAILED, "the broker does not end"))?.map_err(failed)?;
        self.broker = None;
        Ok(status)
    }

    /// Starts this program with arguments, its stdin and stdout in pipes.
    pub(super) fn spawn(&self, arguments: &[&str]) -> io::Result<Process> {
        let mut command = Command::new(&self.program);
        // Behind the first word, which says what this program is to be: a command to be run takes all that follows it.
        let (first, rest) = arguments.split_at(1.min(arguments.len()));
        command.args(first).arg("--socket").arg(self.file("b.sock")).args(rest);
        Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Runs this program to its end, as a person would.
    pub(super) async fn run(&self, line: &str) -> Result<Finished, Failure> {
        let failed = |e| Failure::because(FAILED, format!("cannot run `brokerctl {line}`"), e);
        let began = Instant::now();
        let mut process = self.spawn(&line.split(' ').collect::<Vec<_>>()).map_err(failed)?;
        drop(process.0.stdin.take());
        let stdout = read_all(process.0.stdout.take().map(OwnedFd::from)).await.map_err(failed)?;
        let stderr = read_all(process.0.stderr.take().map(OwnedFd::from)).await.map_err(failed)?;
        let code = process.ended().await.map_err(failed)?.code();
        Ok(Finished { code, stdout, stderr, took: began.elapsed() })
    }

    /// The last lines of the broker's own log, when something went wrong.
    pub(super) fn show_broker_log(&self, console: &Console) {
        let log = fs::read_to_string(self.file("brokerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(10)..] {
            console.note(format_args!("brokerd: {}", super::super::output::harmless(line)));
        }
    }

    /// This program's processes that name the demo's folder on their command lines.
    pub(super) fn processes(&self) -> Vec<i32> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let needle = self.path.as_os_str().as_encoded_bytes();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_ours = |pid: &i32| {
            let executable = fs::read_link(format!("/proc/{pid}/exe"));
            // A program that was built anew meanwhile has ` (deleted)` behind its name.
            let begins = |path: &Path, with: &Path| {
                path.as_os_str().as_encoded_bytes().starts_with(with.as_os_str().as_encoded_bytes())
            };
            executable.is_ok_and(|path| begins(&path, &self.program) || begins(&path, &self.daemon))
        };
        let names_folder = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line.windows(needle.len()).any(|window| window == needle))
        };
        pids.filter(|pid| *pid != own && is_ours(pid) && names_folder(pid)).collect()
    }

    /// The sockets in the demo's folder.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let mut sockets = Vec::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_socket() => sockets.push(entry.path()),
                    _ => {}
                }
            }
        }
        sockets
    }

    /// Ends every process and removes the folder, unless it is to be kept. Safe to call again.
    pub(super) fn clean_up(&mut self, keep: bool) {
        if let Some(mut broker) = self.broker.take() {
            if let Ok(pid) = i32::try_from(broker.0.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
            }
            broker.ended_within(PATIENCE);
        }
        // The broker ends its daemons; this is for the case that it could not.
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match self.folder.take() {
            Some(folder) if keep => drop(folder.keep()),
            folder => drop(folder),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.clean_up(false);
    }
}

/// The program, or a copy of it in the folder: the broker does not run what another user can write, such as a file that
/// was built by an ordinary user where the demo is run by root.
fn trusted(program: &Path, folder: &Path) -> io::Result<PathBuf> {
    let metadata = fs::metadata(program)?;
    if writable_by_others(&metadata, Uid::effective().as_raw()).is_none() {
        return Ok(program.to_owned());
    }
    let copy = folder.join("daemon");
    fs::copy(program, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o700))?;
    Ok(copy)
}

async fn read_all(pipe: Option<OwnedFd>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe::Receiver::from_owned_fd(pipe)?.read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
