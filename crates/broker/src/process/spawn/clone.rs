//! The clone itself: a child on a stack of its own that shares our memory until it executes its program.
//!
//! A child that is to be in a cgroup is born there (`clone3` with `CLONE_INTO_CGROUP`, Linux 5.7). To be moved afterwards
//! takes ten milliseconds and more, because the kernel waits until nobody forks or ends anywhere
//! (`cgroup_threadgroup_rwsem`); so that is for where the kernel, or what filters its calls, knows no better.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::child::{self, Context};

/// The child's stack while it shares our memory; it calls a dozen functions and no deep ones.
const STACK_BYTES: usize = 128 * 1024;

/// As glibc's `posix_spawn`: the memory is shared, and we are suspended until the child has left it.
const FLAGS: libc::c_int = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;

/// With the descriptors, where the child knows to take a table of its own.
fn flags(context: &Context) -> libc::c_int {
    if context.shares_descriptors { FLAGS | libc::CLONE_FILES } else { FLAGS }
}

/// From the kernel's include/uapi/linux/sched.h; a flag of `clone3` alone.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones with every signal blocked, so that no handler of ours runs on the memory shared with the child.
pub(super) fn clone(context: &mut Context, stack: &Stack, cgroup: Option<RawFd>) -> io::Result<(Pid, OwnedFd)> {
    let previous = child::set_signal_mask(u64::MAX);
    let made = match cgroup.map(|cgroup| (cgroup, born_in(context, stack, cgroup))) {
        // Those are a lack of resources, the limits of the cgroup among them, and none of the way.
        Some((_, made @ (Ok(_) | Err(Errno::EAGAIN | Errno::ENOMEM)))) => made,
        Some((cgroup, Err(_))) => {
            context.cgroup = cgroup;
            born_here(context, stack)
        }
        None => born_here(context, stack),
    };
    child::set_signal_mask(previous);
    let (pid, pidfd) = made?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

fn born_here(context: &mut Context, stack: &Stack) -> Result<(Pid, libc::c_int), Errno> {
    let mut pidfd: libc::c_int = -1;
    let flags = flags(context) | libc::SIGCHLD;
    // SAFETY: the stack is ours, writable, large enough and aligned; `CLONE_VFORK` returns only after the child has
    // left our memory by exec or exit, so the context and all that it points to outlive the child's use; `child::run`
    // makes async-signal-safe system calls only. `CLONE_PIDFD` stores through the fifth argument.
    let pid = unsafe { libc::clone(child::run, stack.top(), flags, (&raw mut *context).cast(), &raw mut pidfd) };
    Ok((Pid::from_raw(Errno::result(pid)?), pidfd))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn born_in(context: &mut Context, stack: &Stack, cgroup: RawFd) -> Result<(Pid, libc::c_int), Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: plain data for which all zeros is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags(context) as u64 | CLONE_INTO_CGROUP;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = stack.lowest() as u64;
    arguments.stack_size = STACK_BYTES as u64;
    arguments.cgroup = cgroup as u64;
    let result: libc::c_long;
    // The child comes out of the call on its own stack, where nothing of this function is to be found; so it may only go
    // on from registers, which the kernel hands it as they were.
    // SAFETY: as for `born_here`; `child::run` does not return. The parent's stack is not touched, and of its registers
    // those are declared that the system call changes.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw mut arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") &raw mut *context,
            in("r9") child::run as extern "C" fn(*mut libc::c_void) -> libc::c_int,
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x10",
            "blr x11",
            "brk #1",
            "2:",
            inlateout("x0") &raw mut arguments => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x10") &raw mut *context,
            in("x11") child::run as extern "C" fn(*mut libc::c_void) -> libc::c_int,
        );
    }
    // The raw call returns the negated number of an error.
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok((Pid::from_raw(pid), pidfd)),
        Ok(errno) => Err(Errno::from_raw(-errno)),
        Err(_) => Err(Errno::UnknownErrno),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn born_in(_: &mut Context, _: &Stack, _: RawFd) -> Result<(Pid, libc::c_int), Errno> {
    Err(Errno::ENOSYS)
}

/// Memory for the child's stack, below which a guard page lies.
pub(super) struct Stack {
    base: *mut libc::c_void,
    guard: usize,
}

/// The stack of the child that was made last.
static SPARE: Mutex<Option<Stack>> = Mutex::new(None);

// SAFETY: memory that belongs to whoever has the value, and to no thread.
unsafe impl Send for Stack {}

impl Stack {
    /// One that was given back, or a new one.
    pub(super) fn take() -> io::Result<Self> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(Self::new, Ok)
    }

    /// Keeps it for the next child. One is enough: so many starts at once are rare, and each keeps memory.
    pub(super) fn give_back(self) {
        let surplus = SPARE.lock().unwrap_or_else(PoisonError::into_inner).replace(self);
        drop(surplus);
    }

    fn new() -> io::Result<Self> {
        // SAFETY: sysconf reads a constant.
        let guard = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let bytes = guard + STACK_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base, guard };
        // SAFETY: the page is the lowest of our own mapping, and nothing is stored in it.
        Errno::result(unsafe { libc::mprotect(base, guard, libc::PROT_NONE) })?;
        Ok(stack)
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn lowest(&self) -> *mut libc::c_void {
        // SAFETY: the guard page is within the mapping.
        unsafe { self.base.byte_add(self.guard) }
    }

    fn top(&self) -> *mut libc::c_void {
        // SAFETY: one past the end of the mapping; page-aligned, so aligned for any stack.
        unsafe { self.base.byte_add(self.guard + STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the child that ran on it is gone (`CLONE_VFORK`).
        unsafe { libc::munmap(self.base, self.guard + STACK_BYTES) };
    }
}
