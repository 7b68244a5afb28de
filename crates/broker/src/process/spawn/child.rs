//! What the child does between clone and exec, while it shares the broker's memory.
//!
//! Async-signal-safe system calls only: it never allocates, locks, logs or panics, and leaves nothing open.

mod record;

use std::ffi::c_void;
use std::sync::OnceLock;

use libc::{c_char, c_int, c_long};

pub(super) use self::record::Birth;
use super::slots;

/// The slot of the environment that the child completes.
pub(super) const LISTEN_PID: &[u8] = b"LISTEN_PID=";
/// Room for a number and its terminating NUL.
pub(super) const NUMBER_BYTES: usize = 12;

/// The signals are 1 to 64 on every architecture of ours.
const SIGNAL_LAST: c_int = 64;
const SIGNAL_SET_BYTES: usize = 8;
/// At least as large as the kernel's own `struct sigaction`, of which all zeros is `SIG_DFL` everywhere.
type Action = [u64; 8];

/// Where the child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    None,
    /// A table of descriptors that is the child's alone.
    OwnDescriptors,
    Session,
    ParentDeath,
    Descriptors,
    Limit,
    Directory,
    Execute,
}

/// What the child reads, and in `failed` and `errno` writes. Every pointer is valid until the child has left our
/// memory.
pub(super) struct Context {
    pub(super) program: *const c_char,
    pub(super) argv: *const *const c_char,
    pub(super) envp: *const *const c_char,
    pub(super) directory: *const c_char,
    pub(super) umask: u32,
    /// The signals that are to be neither handled nor ignored any more.
    pub(super) signals: u64,
    /// Whether the descriptors are the broker's own table. Then all that are passed are below [`slots::END`].
    pub(super) shares_descriptors: bool,
    /// Become descriptors 0, 1, 2, … in this order. The child overwrites the numbers.
    pub(super) descriptors: *mut c_int,
    pub(super) count: c_int,
    /// [`NUMBER_BYTES`] bytes, or null.
    pub(super) listen_pid: *mut u8,
    pub(super) broker: libc::pid_t,
    /// Set by the child as well, if it cannot say who it is.
    pub(super) die_with_parent: bool,
    /// The start record, or -1.
    pub(super) record: c_int,
    pub(super) birth: Birth,
    /// The folder of a cgroup to move into, or -1 where the kernel has put the child there already.
    pub(super) cgroup: c_int,
    /// Written by the child: the error by which it is not there.
    pub(super) not_in_cgroup: c_int,
    /// The places at which a test has the broker die while its child goes on.
    pub(super) kill_broker_before_record: bool,
    pub(super) kill_broker_after_record: bool,
    pub(super) nofile_soft: Option<u64>,
    pub(super) nofile: Option<u64>,
    /// Written by the child: the highest that it may have, where `nofile` is more.
    pub(super) nofile_lowered_to: u64,
    pub(super) failed: Step,
    pub(super) errno: c_int,
}

/// Sets the calling thread's signal mask, the C library's own signals included, and returns the earlier one.
pub(super) fn set_signal_mask(mask: u64) -> u64 {
    let mut previous = 0_u64;
    // SAFETY: both masks are live and have the size that is passed along. The C library's wrapper would leave its
    // internal signals out, whose handlers must not run on shared memory either.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            c_long::from(libc::SIG_SETMASK),
            &raw const mask,
            &raw mut previous,
            SIGNAL_SET_BYTES,
        );
    }
    previous
}

/// The child's whole life.
pub(super) extern "C" fn run(context: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its own context, which nobody else touches until this child has left our memory.
    let context = unsafe { &mut *context.cast::<Context>() };
    let failed = match prepare(context) {
        Ok(()) => {
            // SAFETY: a path and two NULL-terminated lists of strings, prepared by `spawn`.
            unsafe { libc::execve(context.program, context.argv, context.envp) };
            Step::Execute
        }
        Err(step) => step,
    };
    // SAFETY: errno is thread-local; the thread it belongs to is suspended until we exit.
    context.errno = unsafe { *libc::__errno_location() };
    context.failed = failed;
    // SAFETY: ends this child only, without running what the broker registered for its own end.
    unsafe { libc::_exit(127) }
}

fn prepare(context: &mut Context) -> Result<(), Step> {
    // Before anything is done to them.
    if context.shares_descriptors {
        own_descriptors()?;
    }
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }, Step::Session)?;
    reset_dispositions(context.signals);
    // Before it says who it is: who reads that finds it where it was to be.
    if context.cgroup >= 0 && !move_into(context.cgroup) {
        // SAFETY: errno is thread-local; the thread it belongs to is suspended until we exit.
        context.not_in_cgroup = unsafe { *libc::__errno_location() };
    }
    if context.kill_broker_before_record {
        kill_broker(context);
    }
    context.die_with_parent |= context.record >= 0 && !record::write(context.record, context.birth);
    if context.kill_broker_after_record {
        kill_broker(context);
    }
    if context.die_with_parent {
        // SAFETY: an option that takes one integer.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) }, Step::ParentDeath)?;
        // If the broker died before the line above there is nobody left to report to.
        // SAFETY: getppid takes nothing; _exit ends this child only.
        unsafe {
            if libc::getppid() != context.broker {
                libc::_exit(127);
            }
        }
    }
    // SAFETY: an integer in, an integer out.
    unsafe { libc::umask(context.umask) };
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::chdir(context.directory) }, Step::Directory)?;
    arrange_descriptors(context)?;
    seal_descriptors(context.count);
    // Only now, since the limit counts for the numbers that the steps above handle.
    match (context.nofile, context.nofile_soft) {
        (Some(limit), _) => context.nofile_lowered_to = limit_descriptors_to(limit)?,
        (None, Some(soft)) => limit_descriptors(soft)?,
        (None, None) => {}
    }
    write_pid(context.listen_pid);
    set_signal_mask(0);
    Ok(())
}

/// Takes a table of its own, with the low numbers alone if the kernel knows how to (Linux 5.9).
fn own_descriptors() -> Result<(), Step> {
    // SAFETY: integers; either call leaves the broker's table as it is.
    unsafe {
        if libc::syscall(libc::SYS_close_range, slots::END, u32::MAX, libc::CLOSE_RANGE_UNSHARE) == 0 {
            return Ok(());
        }
        check(libc::unshare(libc::CLONE_FILES), Step::OwnDescriptors).map(drop)
    }
}

/// Moves this process into a cgroup, which takes the kernel up to tens of milliseconds.
fn move_into(cgroup: c_int) -> bool {
    // SAFETY: a NUL-terminated path below a folder that is open, and one byte that is live. `0` is whoever writes it.
    unsafe {
        let procs = libc::openat(cgroup, c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        procs >= 0 && libc::write(procs, c"0".as_ptr().cast(), 1) == 1 && libc::close(procs) == 0
    }
}

fn kill_broker(context: &Context) {
    // SAFETY: two integers.
    unsafe { libc::kill(context.broker, libc::SIGKILL) };
}

fn check(result: c_int, step: Step) -> Result<c_int, Step> {
    if result < 0 { Err(step) } else { Ok(result) }
}

/// Without `CLONE_SIGHAND` the table is a copy, so this changes nothing for the broker. What is ignored (SIGPIPE, in a
/// Rust program) would stay so in the program. Exec resets handlers by itself, but only after the mask is lifted, and one
/// that ran in between would run on the broker's memory.
fn reset_dispositions(signals: u64) {
    let action: Action = [0; 8];
    for signal in 1..=SIGNAL_LAST {
        if signals >> (signal - 1) & 1 == 1 {
            let none = std::ptr::null::<c_void>();
            // SAFETY: the action is larger than what the kernel reads.
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, SIGNAL_SET_BYTES) };
        }
    }
}

/// The signals that this process handles or ignores, one bit each. They are asked for once, at the first spawn: the broker
/// has installed its handlers by then, and installs no more.
pub(super) fn signals_to_reset() -> u64 {
    static SIGNALS: OnceLock<u64> = OnceLock::new();
    *SIGNALS
        .get_or_init(|| (1..=SIGNAL_LAST).filter(|&signal| !is_default(signal)).fold(0, |all, s| all | 1 << (s - 1)))
}

fn is_default(signal: c_int) -> bool {
    let mut action: Action = [0; 8];
    let none = std::ptr::null::<c_void>();
    // SAFETY: the action is larger than what the kernel writes, which begins with the handler.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut action, SIGNAL_SET_BYTES) };
    // One that it does not tell of is reset all the same.
    result == 0 && action[0] == libc::SIG_DFL as u64
}

/// Moves every source above the target numbers first, so that no target overwrites a source still needed.
fn arrange_descriptors(context: &Context) -> Result<(), Step> {
    let mut target = 0;
    while target < context.count {
        // SAFETY: `target` counts up to the length of the list.
        let source = unsafe { &mut *context.descriptors.offset(target as isize) };
        if *source < context.count {
            // SAFETY: three integers.
            let moved = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, context.count) };
            *source = check(moved, Step::Descriptors)?;
        }
        target += 1;
    }
    target = 0;
    while target < context.count {
        // SAFETY: as above; dup2 takes two integers, and clears FD_CLOEXEC of the target.
        check(unsafe { libc::dup2(*context.descriptors.offset(target as isize), target) }, Step::Descriptors)?;
        target += 1;
    }
    Ok(())
}

/// Lets exec close everything from `first` on.
fn seal_descriptors(first: c_int) {
    for flags in [libc::CLOSE_RANGE_CLOEXEC, 0] {
        // SAFETY: three integers. The descriptor table is the child's own copy, so closing at once is as good: that is
        // for Linux 5.9 and 5.10, which know the call and not the flag.
        if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) } == 0 {
            return;
        }
    }
    seal_descriptors_one_by_one(first);
}

/// For kernels before 5.9, and for sandboxes that forbid `close_range`.
pub(super) fn seal_descriptors_one_by_one(first: c_int) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the limit, which is live.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        limit.rlim_cur = 1024 * 1024;
    }
    let end = if limit.rlim_cur > 0x7fff_ffff { 0x7fff_ffff } else { limit.rlim_cur as c_int };
    let mut fd = first;
    while fd < end {
        // SAFETY: integers; a number that is not open fails, harmlessly.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        fd += 1;
    }
}

fn limit_descriptors(soft: u64) -> Result<(), Step> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the limit, then reads it; it is live.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), Step::Limit)?;
        limit.rlim_cur = if soft < limit.rlim_max { soft } else { limit.rlim_max };
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), Step::Limit)?;
    }
    Ok(())
}

/// Limits them for good; to what it may have, which is returned, where that is less.
fn limit_descriptors_to(most: u64) -> Result<u64, Step> {
    let mut limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the kernel reads the limit, or fills it; it is live.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0 {
            return Ok(0);
        }
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), Step::Limit)?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), Step::Limit)?;
    }
    Ok(limit.rlim_max)
}

/// Writes the child's own number, in decimal and NUL-terminated.
fn write_pid(slot: *mut u8) {
    if slot.is_null() {
        return;
    }
    // SAFETY: getpid takes nothing.
    let pid = unsafe { libc::getpid() };
    let mut room = [0; 20];
    let digits = decimal(pid.unsigned_abs().into(), &mut room);
    // SAFETY: a pid_t has at most ten digits, and the slot has room for them and the NUL.
    unsafe {
        slot.copy_from_nonoverlapping(digits.as_ptr(), digits.len());
        slot.add(digits.len()).write(0);
    }
}

/// A number in decimal, at the end of the room for it. The largest has twenty digits.
fn decimal(number: u64, room: &mut [u8; 20]) -> &[u8] {
    let (mut rest, mut begin) = (number, 0);
    for (place, digit) in room.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        begin = place;
        if rest == 0 {
            break;
        }
    }
    room.get(begin..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_everybody_writes_them() {
        for number in [0, 9, 10, 4711, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
