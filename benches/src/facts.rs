//! What a daemon of the benchmark tells of itself, and the clock that all of them share.

use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the same for every process of the machine.
///
/// # Panics
/// Never: the clock is always there.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("nanoseconds since the boot")
}

/// Has the kernel kill this process when the one that started it is gone.
///
/// # Panics
/// Never: the signal is a valid one.
pub fn die_with_parent() {
    prctl::set_pdeathsig(Signal::SIGKILL).expect("a valid signal");
}

/// What a daemon knows of its own start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its process.
    pub pid: u64,
    /// When it entered `main`.
    pub main_ns: u64,
    /// When it had begun to listen, and had said so.
    pub ready_ns: u64,
}

impl Facts {
    /// Bytes of the facts on the wire.
    pub const LENGTH: usize = 24;

    /// The facts as they are sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        for (part, number) in bytes.chunks_mut(8).zip([self.pid, self.main_ns, self.ready_ns]) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The facts as they arrive.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|offset| bytes[at + offset]));
        Self { pid: number(0), main_ns: number(8), ready_ns: number(16) }
    }
}
