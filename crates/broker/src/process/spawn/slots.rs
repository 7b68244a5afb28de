//! Low numbers that are kept for what children are given, so that a child need not take all the others with it.
//!
//! A child that copies the broker's descriptors pays for each of them, and once more when its exec closes them: a tenth of a
//! millisecond for every thousand. So it shares them for an instant, until it takes a table of its own with the numbers below
//! [`END`] alone (`close_range` with `CLOSE_RANGE_UNSHARE` copies only what it does not close); there lies what it is given.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::null;

/// A process whose numbers are all below this has the smallest table that the kernel makes (`NR_OPEN_DEFAULT`).
pub(super) const END: RawFd = 64;
/// Numbers below are for what the broker has from its beginning.
const FIRST: RawFd = 32;
/// How many a start may need: its three, its record, its cgroup, and sockets to listen on.
const OF_A_START: usize = 8;

/// Those that no start has just now, `/dev/null` each. Who finds none has his child copy everything.
static FREE: Mutex<Vec<Vec<OwnedFd>>> = Mutex::new(Vec::new());

/// Keeps the numbers. To be called early, while they are free.
pub(crate) fn reserve() {
    let mut numbers = Vec::with_capacity(OF_A_START);
    while let Some(number) = next() {
        numbers.push(number);
        if numbers.len() == OF_A_START {
            free().push(std::mem::take(&mut numbers));
        }
    }
}

/// The next number that is free.
fn next() -> Option<OwnedFd> {
    let number = fcntl(null().ok()?.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(FIRST)).ok()?;
    // SAFETY: the kernel has just made this descriptor for us.
    let number = unsafe { OwnedFd::from_raw_fd(number) };
    (number.as_raw_fd() < END).then_some(number)
}

/// Keeps none any more: for a system where a child cannot take a table of its own.
pub(super) fn give_up() {
    let numbers = std::mem::take(&mut *free());
    drop(numbers);
}

fn free() -> MutexGuard<'static, Vec<Vec<OwnedFd>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The numbers of one start, which are free again when this is dropped.
pub(super) struct Slots {
    numbers: Vec<OwnedFd>,
    /// What lies there, in the same order.
    sources: Vec<RawFd>,
}

impl Slots {
    /// Puts what a start is given there, if there is room, and says under which numbers; a negative one stands for nothing.
    pub(super) fn with(given: &mut [&mut RawFd]) -> Option<Self> {
        let mut slots = Self { numbers: free().pop()?, sources: Vec::with_capacity(OF_A_START) };
        let numbers = given.iter().map(|source| slots.put(**source)).collect::<Option<Vec<RawFd>>>()?;
        for (source, number) in given.iter_mut().zip(numbers) {
            **source = number;
        }
        Some(slots)
    }

    fn put(&mut self, source: RawFd) -> Option<RawFd> {
        if source < 0 {
            return Some(source);
        }
        let known = self.sources.iter().position(|known| *known == source);
        let number = self.numbers.get(known.unwrap_or(self.sources.len()))?.as_raw_fd();
        if known.is_none() {
            place(source, number).ok()?;
            self.sources.push(source);
        }
        Some(number)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // What lies there would stay open: a log, the lock on a record.
        if let Ok(null) = null() {
            for number in &self.numbers[..self.sources.len()] {
                let _ = place(null.as_raw_fd(), number.as_raw_fd());
            }
        }
        free().push(std::mem::take(&mut self.numbers));
    }
}

/// Has one of the kept numbers stand for what the source stands for.
fn place(source: RawFd, number: RawFd) -> nix::Result<()> {
    // SAFETY: integers; the second number is one that is kept for this, so nobody else uses it.
    Errno::result(unsafe { libc::dup3(source, number, libc::O_CLOEXEC) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::as_broker;

    fn inode(number: RawFd) -> u64 {
        // SAFETY: only asked for numbers that are open.
        let number = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        nix::sys::stat::fstat(number).unwrap().st_ino
    }

    #[test]
    fn what_a_start_is_given_lies_there_while_it_has_them() {
        as_broker(|| {
            reserve();
            let kept = free().len();
            assert!(kept > 0);
            let root = std::fs::File::open("/").unwrap();
            let nothing = inode(null().unwrap().as_raw_fd());
            let (mut one, mut same, mut none, mut zero) = (root.as_raw_fd(), root.as_raw_fd(), -1, 0);
            let slots = Slots::with(&mut [&mut one, &mut same, &mut none, &mut zero]).unwrap();
            assert!(one == same && none == -1 && one != zero);
            assert!([one, zero].iter().all(|number| (FIRST..END).contains(number)));
            assert!(inode(one) == inode(root.as_raw_fd()) && free().len() == kept - 1);
            drop(slots);
            assert!(inode(one) == nothing && free().len() == kept);
        });
    }

    #[test]
    fn where_there_is_no_room_nothing_changes() {
        as_broker(|| {
            reserve();
            let kept = free().len();
            let files: Vec<_> = (0..=OF_A_START).map(|_| std::fs::File::open("/").unwrap()).collect();
            let mut numbers: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
            let before = numbers.clone();
            assert!(Slots::with(&mut numbers.iter_mut().collect::<Vec<_>>()).is_none());
            assert!(numbers == before && free().len() == kept);
            give_up();
            assert!(Slots::with(&mut [&mut numbers[0]]).is_none());
        });
    }
}
