//! The system calls of a process, as strace sees them.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::children::Process;
use crate::client::wait_until;
use crate::folder::Folder;

/// A system call that was made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// It named a file, or worked on an open one. Sockets, pipes, timers and the like are none.
    pub(crate) is_on_file: bool,
}

/// The calls of all threads of a process while something is done.
///
/// # Errors
/// There is no strace, or it may not look.
pub(crate) fn trace(pid: Pid, work: impl FnOnce()) -> Result<Vec<Call>, String> {
    let folder = Folder::new();
    let output = folder.join("calls");
    let version = Command::new("strace").arg("--version").stdout(Stdio::null()).status();
    version.map_err(|error| format!("strace cannot be executed: {error}"))?;
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "0", "-p", &pid.to_string(), "-o"]).arg(&output);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let strace = Process::start(command, Signal::SIGINT);
    let is_traced =
        |status: String| status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
    let mut may_look = true;
    wait_until("strace looks at every thread", || {
        may_look = !strace.has_ended();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let mut statuses = tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default());
        !may_look || statuses.all(is_traced)
    });
    if !may_look {
        return Err("strace may not look at a process of this user".to_owned());
    }
    work();
    strace.end();
    let text = fs::read_to_string(&output).map_err(|error| format!("strace wrote nothing: {error}"))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// A line of `strace -f -y`: `PID name(arguments) = result`. Ends of interrupted ones, signals and exits are no calls.
fn parse(line: &str) -> Option<Call> {
    let call = line.split_once(' ')?.1.trim_start();
    let (name, arguments) = call.split_once('(')?;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return None;
    }
    let first = arguments.split([',', ')']).next().unwrap_or_default();
    // Open files are shown as `7</path>`, others as `7<socket:[1234]>`, `7<anon_inode:[eventpoll]>`.
    let is_open_file = first.contains("</") && !first.contains("</dev/");
    let is_path = first.starts_with('"') || first.starts_with("AT_FDCWD");
    Some(Call { name: name.to_owned(), is_on_file: is_open_file || is_path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_on_files_are_told_from_the_others() {
        let found = |line: &str| parse(line).map(|call| (call.name, call.is_on_file));
        let is = |name: &str, on_file| Some((name.to_owned(), on_file));
        assert_eq!(found("12 epoll_wait(5<anon_inode:[eventpoll]>, [], 1024, -1) = 1"), is("epoll_wait", false));
        assert_eq!(found("12  write(9<socket:[77]>, \"\"..., 98) = 98"), is("write", false));
        assert_eq!(found("13 pwrite64(7</tmp/x/journal.db-wal>, \"\"..., 24, 0) = 24"), is("pwrite64", true));
        assert_eq!(found("13 openat(AT_FDCWD</>, \"\"..., O_RDONLY) = 3"), is("openat", true));
        assert_eq!(found("13 unlink(\"\"...) = 0"), is("unlink", true));
        assert_eq!(found("13 futex(0x7f, FUTEX_WAIT_PRIVATE, 1, NULL <unfinished ...>"), is("futex", false));
        assert_eq!(found("13 <... futex resumed>) = 0"), None);
        assert_eq!(found("13 --- SIGCHLD {si_signo=SIGCHLD} ---"), None);
    }
}
