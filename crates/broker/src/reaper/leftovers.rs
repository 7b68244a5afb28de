//! What a lost attempt left behind: its reaper was killed, and the kernel killed the command, but not what the command had
//! started.
//!
//! Ends only what is proved to be of that attempt. The caller holds the lock of the folder, so no attempt runs.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::folder::{Attempt, Folder, MARK};
use crate::process::boot::boot_id;
use crate::process::identity::{self, Identity, Stat, open_if};
use crate::process::kernel::{pidfd_signal, wait_ended};

/// How long killed processes are waited for. One in uninterruptible sleep takes longer than an instant.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long one round waits before it looks again for what was born meanwhile.
const ROUND: Duration = Duration::from_millis(50);

/// What was left of an attempt.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) killed: Vec<Pid>,
    /// They are gone. Until then no other attempt may begin.
    pub(crate) are_gone: bool,
}

/// Ends what is left of an attempt.
pub(crate) fn end_leftovers(folder: &Folder, attempt: &Attempt) -> Leftovers {
    let boot_id = boot_id().unwrap_or_default();
    let is_this_boot = boot_id == attempt.boot_id;
    let Ok(path) = folder.path().canonicalize() else { return Leftovers::default() };
    let variable = format!("BROKER_PROCESS_ID={}", path.file_name().unwrap_or_default().to_string_lossy());
    let writes_there = |pid: Pid| {
        let outputs = [1, 2].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")));
        outputs.iter().flatten().any(|target| target.starts_with(&path))
    };
    let has = |pid: Pid, variable: &str| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let mark = (is_this_boot && !attempt.mark.is_empty()).then(|| format!("{MARK}={}", attempt.mark));
    let is_marked = |pid: Pid| mark.as_deref().is_some_and(|mark| has(pid, mark));
    let command = attempt.command.filter(|_| is_this_boot);
    let is_of_it = |process: &Stat| {
        // A session's number is not given out again while it has members; that it is still that session is shown by the
        // variable, which a stranger in a later session of the number does not have.
        let in_session = command.is_some_and(|command| process.session == command.pid());
        let is_command =
            command.is_some_and(|command| process.pid == command.pid() && process.start_time == command.start_time);
        is_command || writes_there(process.pid) || is_marked(process.pid) || (in_session && has(process.pid, &variable))
    };
    let deadline = Instant::now() + PATIENCE;
    let mut killed = Vec::new();
    if let Some(cgroup) = attempt.cgroup_in(&boot_id) {
        killed.extend(cgroup.members());
        if !cgroup.end(PATIENCE).is_empty() {
            return Leftovers { killed, are_gone: false };
        }
        cgroup.remove();
    }
    loop {
        let found = look(&is_of_it);
        for pidfd in found.values() {
            let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        }
        for (identity, pidfd) in &found {
            wait_ended(pidfd.as_fd(), ROUND);
            if !killed.contains(&identity.pid) {
                killed.push(identity.pid);
            }
        }
        if found.is_empty() || Instant::now() >= deadline {
            return Leftovers { killed, are_gone: found.is_empty() };
        }
    }
}

/// Opens, and stops, what is of the attempt and what descends from it.
fn look(is_of_it: &dyn Fn(&Stat) -> bool) -> HashMap<Identity, OwnedFd> {
    let mut found = HashMap::new();
    let all = identity::all().unwrap_or_default();
    let mut add = |process: &Stat, passes: &dyn Fn(&Stat) -> bool| {
        if process.pid == Pid::this() || process.state == b'Z' {
            return;
        }
        // The pidfd comes before the facts that condemn it.
        if let Ok(Some((stat, pidfd))) = open_if(process.pid, passes) {
            let _ = pidfd_signal(pidfd.as_fd(), Signal::SIGSTOP);
            found.insert(stat.identity(), pidfd);
        }
    };
    let roots: Vec<&Stat> = all.iter().filter(|process| is_of_it(process)).collect();
    roots.iter().for_each(|process| add(process, is_of_it));
    let below = identity::below(roots.iter().map(|process| process.pid)).unwrap_or_default();
    let descends = |process: &Stat| {
        let mut parent = process.parent;
        for _ in 0..below.len() {
            if roots.iter().any(|root| root.pid == parent) {
                return true;
            }
            let Some(next) = below.iter().find(|other| other.pid == parent) else { return false };
            parent = next.parent;
        }
        false
    };
    for process in below.iter().filter(|process| descends(process)) {
        add(process, &|now| now.start_time == process.start_time);
    }
    found
}
