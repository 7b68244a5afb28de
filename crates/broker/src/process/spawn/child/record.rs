//! Who the child is, written by itself: its number and its start time, as `/proc` shows them to everybody else.
//!
//! Async-signal-safe like all that the child does: a few system calls, on buffers of its own stack.

use libc::c_int;

use super::decimal;

/// `/proc/PID/stat` is a line of some fifty numbers; the start time is the 22nd field.
const STAT_BYTES: usize = 1024;
/// Which of the fields behind the program's name the start time is: the first of them is the third of all.
const START_TIME: usize = 22 - 3;

/// By how much a look at the clock may differ from the kernel's own at the same instant: far more than it can.
const CLOCK_MARGIN: u64 = 1_000;

/// The clock by which the kernel says when a process began. It looks at it once, while it makes the process
/// (`start_boottime` in its kernel/fork.c), and `/proc` shows that in whole ticks (`do_task_stat` in its fs/proc/array.c).
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Birth {
    /// Nanoseconds of CLOCK_BOOTTIME, before the child is made.
    after: u64,
    /// Nanoseconds of a tick, or 0 if they are not known.
    tick: u64,
}

impl Birth {
    /// Of a child that is about to be made.
    pub(in super::super) fn to_come() -> Self {
        // SAFETY: sysconf reads a constant.
        let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(0);
        Self { after: boot_time(), tick: 1_000_000_000_u64.checked_div(ticks).unwrap_or(0) }
    }

    /// In ticks, for a child that is there by `before`. That is within the same tick in all but one of a hundred.
    fn start_time(self, before: u64) -> Option<u64> {
        let first = self.after.checked_sub(CLOCK_MARGIN)?.checked_div(self.tick)?;
        let last = before.checked_add(CLOCK_MARGIN)?.checked_div(self.tick)?;
        (first == last).then_some(first)
    }
}

/// CLOCK_BOOTTIME in nanoseconds; 0 if there is none.
fn boot_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is live. The C library asks the kernel's page for it, which is no call that could be interrupted.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) } != 0 {
        return 0;
    }
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Writes `PID START` and a newline in one piece. `false` if that cannot be found out, or written as a whole.
pub(super) fn write(record: c_int, birth: Birth) -> bool {
    let mut line = [0_u8; 64];
    let length = match birth.start_time(boot_time()) {
        Some(start_time) => {
            // SAFETY: getpid takes nothing.
            let pid = unsafe { libc::getpid() };
            put(decimal(pid.unsigned_abs().into(), &mut [0; 20]), decimal(start_time, &mut [0; 20]), &mut line)
        }
        // It takes several times as long to ask.
        None => ask(&mut line),
    };
    let Some(length) = length else { return false };
    // SAFETY: the first `length` bytes of the line are live.
    let written = unsafe { libc::write(record, line.as_ptr().cast(), length) };
    usize::try_from(written) == Ok(length)
}

/// Has `/proc` tell; how long the line is.
fn ask(line: &mut [u8; 64]) -> Option<usize> {
    let mut stat = [0_u8; STAT_BYTES];
    // SAFETY: a NUL-terminated path; the buffer is live and as long as it is said to be.
    let length = unsafe {
        let fd = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let length = libc::read(fd, stat.as_mut_ptr().cast(), STAT_BYTES);
        libc::close(fd);
        length
    };
    of_stat(stat.get(..usize::try_from(length).ok()?)?, line)
}

/// Puts the line together of what `/proc` says.
fn of_stat(stat: &[u8], line: &mut [u8; 64]) -> Option<usize> {
    let pid = stat.split(|&byte| byte == b' ').next()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let start_time = stat.get(name_end + 2..)?.split(|&byte| byte == b' ').nth(START_TIME)?;
    put(pid, start_time, line)
}

fn put(pid: &[u8], start_time: &[u8], line: &mut [u8; 64]) -> Option<usize> {
    let mut length = 0;
    for part in [pid, b" ", start_time, b"\n"] {
        line.get_mut(length..length + part.len())?.copy_from_slice(part);
        length += part.len();
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_what_proc_says() {
        let mut line = [0; 64];
        let stat = b"42 (tmux: s) (x) R 1\n) S 7 40 39 0 -1 4194564 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let length = of_stat(stat, &mut line).unwrap();
        assert_eq!(&line[..length], b"42 987654\n");
        assert_eq!(of_stat(b"", &mut line), None);
        assert_eq!(of_stat(b"1 (x) S 2", &mut line), None);
        let own = std::fs::read("/proc/self/stat").unwrap();
        let length = of_stat(&own, &mut line).unwrap();
        assert!(line[..length].starts_with(format!("{} ", std::process::id()).as_bytes()));
    }

    #[test]
    fn the_clock_tells_where_no_tick_lies_between() {
        const TICK: u64 = 10_000_000;
        let birth = |after| Birth { after, tick: TICK };
        assert_eq!(birth(7 * TICK + 2_000).start_time(7 * TICK + 300_000), Some(7));
        assert_eq!(birth(8 * TICK - 100_000).start_time(8 * TICK + 100_000), None);
        assert_eq!(birth(7 * TICK + 500).start_time(7 * TICK + 300_000), None, "too near to tell");
        assert_eq!(birth(7 * TICK + 2_000).start_time(8 * TICK - 500), None, "too near to tell");
        assert_eq!(birth(0).start_time(0), None);
        assert_eq!(Birth { after: 2_000, tick: 0 }.start_time(3_000), None, "a tick of unknown length");
    }
}
