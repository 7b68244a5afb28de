//! Looking at a machine from a trial: states of its units, its processes, its journal.

use std::fs;

use nix::sys::signal::Signal;

use super::{Machine, NOTES};
use crate::leftovers::lives;
use crate::wait::{wait, wait_until};

/// Lines of each journal that a failed test shows.
const JOURNAL_LINES: &str = "150";

impl Machine {
    /// A property of a unit, as `systemctl show` names it.
    #[track_caller]
    #[must_use]
    pub fn property(&self, unit: &str, property: &str) -> String {
        let output = self.run(&["systemctl", "show", "--value", "--property", property, unit]).done();
        output.stdout.trim().to_owned()
    }

    /// Waits until a property of a unit is so.
    #[track_caller]
    pub fn wait_property(&self, unit: &str, property: &str, condition: impl Fn(&str) -> bool) -> String {
        let look = || Some(self.property(unit, property)).filter(|value| condition(value));
        wait(look, || format!("{property} of {unit}, which is `{}`", self.property(unit, property)))
    }

    /// Waits until a unit is in that state: `active`, `inactive`, `failed`, ….
    #[track_caller]
    pub fn wait_unit(&self, unit: &str, state: &str) {
        let _ = self.wait_property(unit, "ActiveState", |value| value == state);
    }

    /// The main process of a unit, by its number inside; 0 if it has none.
    ///
    /// # Panics
    /// systemd says no number.
    #[track_caller]
    #[must_use]
    pub fn main_pid(&self, unit: &str) -> u64 {
        self.property(unit, "MainPID").parse().expect("a number")
    }

    /// The processes in the cgroup of a unit and below, by their numbers inside.
    #[track_caller]
    #[must_use]
    pub fn pids(&self, unit: &str) -> Vec<u64> {
        let cgroup = self.property(unit, "ControlGroup");
        if cgroup.is_empty() {
            return Vec::new();
        }
        let list = format!("find /sys/fs/cgroup{cgroup} -name cgroup.procs -exec cat '{{}}' + 2>/dev/null || true");
        self.shell(&list).done().stdout.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether a process of that number inside runs.
    #[must_use]
    pub fn process_exists(&self, pid: u64) -> bool {
        lives(&self.path(&format!("/proc/{pid}")))
    }

    /// The cgroup of a process inside, from the machine's root: `/system.slice/x.service`.
    #[must_use]
    pub fn cgroup_of(&self, pid: u64) -> String {
        // Asked from inside: what is read shows the path as the reader's own namespace has it.
        let text = self.run(&["cat", &format!("/proc/{pid}/cgroup")]).stdout;
        text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
    }

    /// Sends a signal to a process inside.
    #[track_caller]
    pub fn signal(&self, pid: u64, signal: Signal) {
        let _ = self.run(&["kill", "-s", signal.as_str().trim_start_matches("SIG"), &pid.to_string()]).done();
    }

    /// The starts of a fake backend so far, as the numbers of their processes inside.
    #[must_use]
    pub fn starts(&self, service: &str) -> Vec<u64> {
        let text = fs::read_to_string(self.path(NOTES).join(service)).unwrap_or_default();
        text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
    }

    /// Stops a process inside by a signal: what it is told from then on it does not read.
    #[track_caller]
    pub fn freeze(&self, pid: u64) {
        self.signal(pid, Signal::SIGSTOP);
        let state = self.path(&format!("/proc/{pid}/stat"));
        let is_stopped = || fs::read_to_string(&state).is_ok_and(|stat| stat.contains(") T "));
        wait_until(format!("{pid} is stopped"), is_stopped);
    }

    /// Waits until the journal of a unit has this text in it, which a process may have yet to write.
    #[track_caller]
    pub fn wait_journal(&self, unit: &str, text: &str) {
        wait(|| self.journal(unit).contains(text).then_some(()), || format!("`{text}` in {}", self.journal(unit)));
    }

    /// The journal of a unit since the boot, the messages alone, with all that was sent there until now.
    #[track_caller]
    #[must_use]
    pub fn journal(&self, unit: &str) -> String {
        let _ = self.run(&["journalctl", "--sync"]).done();
        self.run(&["journalctl", "--boot", "--quiet", "--output=cat", "--unit", unit]).done().stdout
    }

    /// What a failed test shows: the end of the journal, with that of its users, and what PID 1 printed itself.
    pub(super) fn last_words(&self) -> String {
        let journal = ["journalctl", "--boot", "--output=short-monotonic", "--lines", JOURNAL_LINES];
        let text = self.command(&journal).output().map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        format!("--- journal of the machine\n{text}\n--- its first process\n{}\n---", self.namespaces.log())
    }
}
