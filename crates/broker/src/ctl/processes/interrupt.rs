//! The signals that end a command which waits, and not what it waits for.

use std::io;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::oneshot;

use super::super::exec::ignored_signals;

/// Ctrl-C and SIGTERM, taken over.
pub(super) struct Interrupt {
    came: oneshot::Receiver<i32>,
}

impl Interrupt {
    /// What was ignored from the start (a job in the background of a script) stays ignored.
    pub(super) fn begin() -> io::Result<Self> {
        let ignored = ignored_signals();
        let taken = [SIGINT, SIGTERM].into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut signals = Signals::new(taken)?;
        let (tell, came) = oneshot::channel();
        // The thread ends with the process.
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let _ = tell.send(signal);
            }
        });
        Ok(Self { came })
    }

    /// Waits for the first of them.
    pub(super) async fn comes(self) -> i32 {
        match self.came.await {
            Ok(signal) => signal,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The exit code of a command that the signal has ended, as shells have it.
pub(super) fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
