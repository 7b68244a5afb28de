//! What a failure on the way to a start means to those who wait for it.

use std::fmt::Display;
use std::io;

use broker_proto::{Code, Refusal};

use crate::core::backend::RETRY_HINT;
use crate::core::millis_up;
use crate::process::spawn::SpawnError;

pub(super) fn refusal_of_spawn(error: &SpawnError) -> Box<Refusal> {
    let mut refusal = failed(error.to_string(), error);
    if error.is_exhausted() {
        refusal.code = Code::Overloaded;
        refusal.retry_after_ms = Some(millis_up(RETRY_HINT));
    }
    refusal
}

/// A start that cannot work, with the chain of causes below the message.
pub(super) fn failed(message: impl Display, error: &(dyn std::error::Error + 'static)) -> Box<Refusal> {
    let mut reason = message.to_string();
    // An i/o error that is given beside a message of ours is the cause itself.
    let mut cause = if reason == error.to_string() { error.source() } else { Some(error) };
    let mut is_exhausted = false;
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        is_exhausted |= error.downcast_ref::<io::Error>().is_some_and(is_lack);
        cause = error.source();
    }
    if is_exhausted {
        return Box::new(Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT)));
    }
    Box::new(Refusal::new(Code::SpawnFailed, reason))
}

/// Whether an error is a lack of something that comes back by itself: descriptors, memory, room on the disk.
fn is_lack(error: &io::Error) -> bool {
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::ENOSPC, libc::EDQUOT];
    error.raw_os_error().is_some_and(|errno| lacks.contains(&errno))
}
