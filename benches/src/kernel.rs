//! What the kernel says of a process: processor time, context switches, memory, children.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Processor time and context switches of a process so far, all its threads together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu_ns: u64,
    /// It had nothing to do: each is one wake-up.
    pub(crate) slept: u64,
    /// It was made to give way.
    pub(crate) preempted: u64,
}

impl Cost {
    pub(crate) fn of(pid: Pid) -> Self {
        let clock = clock_getcpuclockid(pid).expect("the process runs");
        let time = clock_gettime(clock).expect("the process runs");
        let cpu_ns = u64::try_from(Duration::from(time).as_nanos()).expect("nanoseconds of one process");
        let mut cost = Self { cpu_ns, ..Self::default() };
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            cost.slept += field(&status, "voluntary_ctxt_switches");
            cost.preempted += field(&status, "nonvoluntary_ctxt_switches");
        }
        cost
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns - before.cpu_ns,
            slept: self.slept.saturating_sub(before.slept),
            preempted: self.preempted.saturating_sub(before.preempted),
        }
    }
}

/// Wake-ups of each thread of a process, by its name.
pub(crate) fn sleeps_by_thread(pid: Pid) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let name = status.lines().next().and_then(|line| line.strip_prefix("Name:\t")).unwrap_or_default();
            (name.to_owned(), field(&status, "voluntary_ctxt_switches"))
        })
        .collect()
}

/// The memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// All that is resident: what `ps` shows.
    pub(crate) rss: u64,
    /// Resident, shared pages divided among those that share them.
    pub(crate) pss: u64,
    /// What is its own: heap, stacks, changed data.
    pub(crate) private: u64,
}

impl Memory {
    pub(crate) fn of(pid: Pid) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("own processes can be looked at");
        let bytes = |name| field(&rollup, name) * 1024;
        Self { rss: bytes("Rss"), pss: bytes("Pss"), private: bytes("Private_Dirty") + bytes("Private_Clean") }
    }
}

/// A number in a file of the kind `Name: 12 kB`; 0 if it is not there.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The children of a process, with their states as the kernel writes them (`S`, `Z`).
pub(crate) fn children(parent: Pid) -> Vec<(Pid, char)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let (state, its_parent) = state_and_parent(&entry.path())?;
            (its_parent == parent).then_some((Pid::from_raw(pid), state))
        })
        .collect()
}

pub(crate) fn parent_of(pid: Pid) -> Option<Pid> {
    state_and_parent(Path::new(&format!("/proc/{pid}"))).map(|(_, parent)| parent)
}

fn state_and_parent(process: &Path) -> Option<(char, Pid)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    let state = rest.next()?.chars().next()?;
    Some((state, Pid::from_raw(rest.next()?.parse().ok()?)))
}

/// Lets this process and those that it starts open as many files as the system allows; how many.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit is known");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be as high as the hard one");
    hard
}

/// How busy the machine is: processes that ran or wanted to, over the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_what_the_kernel_says() {
        let own = Pid::this();
        assert!(Cost::of(own).cpu_ns > 0);
        assert!(Memory::of(own).rss >= Memory::of(own).private);
        assert_eq!(parent_of(own), Some(Pid::parent()));
        assert!(sleeps_by_thread(own).len() > 1);
        assert_eq!(field("Rss:    12 kB\nPss: 3 kB", "Pss"), 3);
    }
}
