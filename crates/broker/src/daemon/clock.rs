//! The clock of the driver: CLOCK_MONOTONIC as core's plain number, and one timer for the one next deadline.

use std::os::fd::AsFd;
use std::time::Duration;

use super::watched::Watched;
use crate::core::Timestamp;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// The time now. The clock stands still while the machine is suspended.
pub(super) fn now() -> Timestamp {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap_or(TimeSpec::new(0, 0));
    let duration = Duration::from(time);
    Timestamp::from_nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// A timer that is exact to the kernel's clock. The runtime's own rounds up to milliseconds, and the probes after a
/// socket's appearance begin at a tenth of one.
pub(super) struct Timer {
    timer: TimerFd,
    watched: Watched,
    armed: std::cell::Cell<Option<Timestamp>>,
}

impl Timer {
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let watched = Watched::duplicate_of(&timer)?;
        Ok(Self { timer, watched, armed: std::cell::Cell::new(None) })
    }

    /// Sets the deadline; `None` is none. Costs a system call only when it changes.
    pub(super) fn arm(&self, deadline: Option<Timestamp>) {
        if self.armed.replace(deadline) == deadline {
            return;
        }
        let result = match deadline {
            // Zero would disarm it; a time gone by fires at once.
            Some(time) => {
                let time = TimeSpec::from(Duration::from_nanos(time.as_nanos().max(1)));
                self.timer.set(Expiration::OneShot(time), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        if let Err(error) = result {
            tracing::error!(%error, "cannot set the timer");
        }
    }

    /// Waits until the deadline.
    pub(super) async fn expired(&self) {
        let Ok(mut guard) = self.watched.readable().await else {
            return std::future::pending().await;
        };
        let mut count = [0; 8];
        match nix::unistd::read(self.timer.as_fd(), &mut count) {
            Ok(_) => self.armed.set(None),
            Err(_) => guard.clear_ready(),
        }
    }
}
