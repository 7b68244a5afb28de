//! The namespaces of a machine: made by `boot.sh`, ended with everything in them.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use tempfile::TempDir;

use super::cgroup::Cgroup;
use super::files;
use crate::programs::missing;
use crate::wait::wait;

const SCRIPT: &str = include_str!("boot.sh");

/// Programs of the host without which no machine can be booted.
const NEEDED: [&str; 5] = ["unshare", "nsenter", "setpriv", "systemctl", "journalctl"];

/// What PID 1 is called once it is systemd, and the machine's files are its root.
const SYSTEMD: &str = "systemd";

static MACHINES: AtomicU32 = AtomicU32::new(0);

/// Why no machine can be booted here, if so.
#[must_use]
pub fn hindrance() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("needs root".to_owned());
    }
    if let Some(missing) = missing(&NEEDED) {
        return Some(missing);
    }
    if !["/usr/lib/systemd/systemd", "/lib/systemd/systemd"].iter().any(|path| Path::new(path).is_file()) {
        return Some("systemd is not installed".to_owned());
    }
    let cgroup = match Cgroup::new(&name()) {
        Ok(cgroup) => cgroup,
        Err(error) => return Some(format!("cannot make a cgroup: {error}")),
    };
    let folder = folder(files::without_broker);
    let tried = script(&folder, &cgroup, "try").stdin(Stdio::null()).output();
    let tried = tried.map_err(|error| error.to_string()).and_then(|output| {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        if output.status.success() { Ok(()) } else { Err(said) }
    });
    tried.err().map(|error| format!("cannot make a machine: {error}"))
}

/// The namespaces of a machine. Whatever runs in them is killed when they are dropped.
#[derive(Debug)]
pub(super) struct Namespaces {
    outer: Child,
    pid1: u32,
    cgroup: Cgroup,
    folder: TempDir,
}

impl Namespaces {
    /// Boots systemd over the host's files and those that are filled in, and waits until it is up.
    #[track_caller]
    pub(super) fn boot(fill: fn(&Path)) -> Self {
        let folder = folder(fill);
        let cgroup = Cgroup::new(&name()).expect("a cgroup can be made, as it could before");
        let log = File::create(folder.path().join("boot.log")).expect("the folder takes a file");
        let mut command = script(&folder, &cgroup, "boot");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let mut outer = command.spawn().expect("a shell can be executed");
        let pid1 = wait(|| pid1_of(&mut outer, &folder), || format!("systemd starts: {}", log_of(&folder)));
        let machine = Self { outer, pid1, cgroup, folder };
        machine.wait_until_up();
        machine
    }

    /// The number of its first process, as seen from outside.
    pub(super) fn pid1(&self) -> u32 {
        self.pid1
    }

    /// Its files, as seen from outside.
    pub(super) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid1))
    }

    /// What its first process printed.
    pub(super) fn log(&self) -> String {
        log_of(&self.folder)
    }

    fn wait_until_up(&self) {
        let state = || {
            let mut command = Command::new("nsenter");
            command.arg(format!("--target={}", self.pid1)).args(["--mount", "--pid", "--cgroup", "--"]);
            let output = command.args(["systemctl", "is-system-running"]).stdin(Stdio::null()).output();
            String::from_utf8(output.expect("nsenter can be executed").stdout).unwrap_or_default()
        };
        let up = || ["running", "degraded"].contains(&state().trim()).then_some(());
        wait(up, || format!("systemd is up, not `{}`: {}", state().trim(), self.log()));
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.cgroup.kill();
        // Who made the namespaces takes PID 1 with it, and PID 1 all others: where a cgroup cannot be killed.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

fn name() -> String {
    format!("machine-{}-{}", std::process::id(), MACHINES.fetch_add(1, Ordering::Relaxed))
}

/// A folder with the script, and what the machine is made of.
fn folder(fill: fn(&Path)) -> TempDir {
    let folder = tempfile::Builder::new().prefix("machine.").tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("box")).expect("a new folder is empty");
    fill(folder.path());
    fs::write(folder.path().join("boot.sh"), SCRIPT).expect("the folder takes a file");
    folder
}

fn script(folder: &TempDir, cgroup: &Cgroup, what: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg(folder.path().join("boot.sh")).args(["outer", what]).arg(folder.path()).arg(cgroup.path());
    // Should this test be killed, its machine goes with it. Trials have a thread each, which outlives their machine.
    let die_with_us = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into);
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(die_with_us) };
    command
}

/// The child of the shell that made the namespaces, once it is systemd.
fn pid1_of(outer: &mut Child, folder: &TempDir) -> Option<u32> {
    let ended = outer.try_wait().expect("a child can be waited for");
    assert!(ended.is_none(), "the machine does not start: {}", log_of(folder));
    let parent = outer.id().to_string();
    let is_pid1 = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (head, rest) = stat.rsplit_once(") ").unwrap_or_default();
        head.ends_with(&format!("({SYSTEMD}")) && rest.split(' ').nth(1) == Some(&parent)
    };
    let entries = fs::read_dir("/proc").expect("/proc can be listed").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_pid1)
}

fn log_of(folder: &TempDir) -> String {
    fs::read_to_string(folder.path().join("boot.log")).unwrap_or_default()
}
