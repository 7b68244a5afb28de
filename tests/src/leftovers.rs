//! Processes that a test left behind, found by what /proc says of every process.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{BOUND, wait_until};

const PAUSE: Duration = Duration::from_millis(5);

/// Whether a process of that number runs.
#[must_use]
pub fn process_exists(pid: u64) -> bool {
    lives(&Path::new("/proc").join(pid.to_string()))
}

/// Whether the process of that folder in a `/proc` runs. One whose first thread is a zombie does as long as it has others:
/// even killed they may accept what connects meanwhile.
pub(crate) fn lives(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let Some(rest) = stat.rsplit(") ").next().filter(|rest| !rest.is_empty()) else { return false };
    !rest.starts_with(['Z', 'X']) || fs::read_dir(process.join("task")).is_ok_and(|tasks| tasks.count() > 1)
}

/// The processes, besides this one, that name the folder in their command line, environment, working directory or open
/// files: number and command line.
///
/// A child of this process that has not executed its program yet still has our files open, those of other tests among
/// them; it is known by our own executable.
#[must_use]
pub fn processes_mentioning(folder: &Path) -> Vec<(i32, String)> {
    let own = std::process::id().to_string();
    let own_executable = executable(Path::new("/proc/self"));
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let pid: i32 = name.parse().ok()?;
            // In this order: who executes something else by now has closed our files.
            let is_ours = name == own || executable(&entry.path()).is_some_and(|path| Some(path) == own_executable);
            if is_ours || !mentions(&entry.path(), folder) {
                return None;
            }
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
        })
        .collect()
}

/// Ends the processes that name the folder: tells them to, and kills those that do not, whose command
/// lines are returned.
///
/// # Panics
/// Killed ones remain.
pub fn end_processes(folder: &Path) -> Vec<String> {
    let tell = |signal| {
        let found = processes_mentioning(folder);
        found.iter().for_each(|(pid, _)| {
            let _ = kill(Pid::from_raw(*pid), signal);
        });
        found
    };
    let began = Instant::now();
    tell(Signal::SIGTERM);
    while began.elapsed() < BOUND && !processes_mentioning(folder).is_empty() {
        thread::sleep(PAUSE);
    }
    let deaf = tell(Signal::SIGKILL);
    wait_until("killed processes are gone", || processes_mentioning(folder).is_empty());
    deaf.into_iter().map(|(_, command)| command).collect()
}

fn executable(process: &Path) -> Option<PathBuf> {
    fs::read_link(process.join("exe")).ok()
}

fn mentions(process: &Path, folder: &Path) -> bool {
    let needle = folder.as_os_str().as_bytes();
    let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let link = |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with(folder));
    let file = |name: &str| fs::read(process.join(name)).is_ok_and(|bytes| holds(&bytes));
    let open = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|entry| link(&entry.path()));
    file("cmdline") || file("environ") || link(&process.join("cwd")) || open()
}
