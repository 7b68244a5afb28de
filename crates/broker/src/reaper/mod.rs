//! The reaper: a tiny process for each attempt of a durable process, which outlives the broker and writes the outcome down.
//!
//! It is `brokerd` itself, executed in a hidden mode before anything of the broker is set up. It holds the lock of the
//! process's folder from before the command is executed until the outcome is on the disk, and that lock is what forbids
//! a second run: whoever cannot have it starts nothing. It touches no database, talks to nobody, and decides nothing
//! but what its folder says. If it is killed, the kernel kills the command with it.

pub(crate) mod folder;
pub(crate) mod leftovers;
mod life;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use nix::unistd::Pid;

use self::folder::{Attempt, Folder, Outcome, Spec, Who, cgroup_name, utc_now};
use self::life::Signals;
use crate::core::durable::{Ended, EndedBy};
use crate::process::boot::boot_id;
use crate::process::cgroup::Leaf;
use crate::process::identity::Identity;

/// The first argument of a brokerd that is a reaper. No option of a person's begins so.
pub(crate) const MODE: &str = "@reap";

/// Why a reaper ends without having run anything.
#[derive(Debug, thiserror::Error)]
enum Declined {
    #[error("another reaper runs the process")]
    Held,
    #[error("the process has ended")]
    Ended,
    #[error("a newer owner or a newer attempt was here")]
    Stale,
    #[error("the folder of the process is gone or cannot be used")]
    Folder(#[from] io::Error),
}

/// Plays the reaper, if the command line says so; `None` if this is a broker.
pub(crate) fn play(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, mode, folder, attempt, token] = arguments else { return None };
    if mode != MODE {
        return None;
    }
    let number = |text: &OsString| std::str::from_utf8(text.as_bytes()).ok()?.parse::<i64>().ok();
    let (Some(attempt), Some(token)) = (number(attempt).and_then(|n| u32::try_from(n).ok()), number(token)) else {
        return Some(ExitCode::from(2));
    };
    Some(match reap(&Folder::new(Path::new(folder)), attempt, token) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// The reaper's whole life.
fn reap(folder: &Folder, attempt: u32, token: i64) -> Result<(), Declined> {
    // From here on SIGTERM is read and not suffered.
    let signals = Signals::block()?;
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)?;
    let _lock = folder.try_lock()?.ok_or(Declined::Held)?;
    let spec = folder.spec()?;
    let may = may_begin(&spec, folder.attempt()?.as_ref(), folder.outcome()?.as_ref(), attempt, token);
    may?;
    let me = Identity::of(Pid::this())?.ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let mut begun = Attempt {
        attempt,
        fencing_token: token,
        boot_id: boot_id()?,
        reaper: Who::from(me),
        command: None,
        started_at: utc_now(),
        mark: format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
        // Where its owner could not put it into one it has none, and the command none either.
        cgroup: Leaf::own(&cgroup_name(&spec.id, attempt)),
    };
    folder.write_attempt(&begun)?;
    // Whoever cancels writes first and looks for a reaper then; this looks after it was written down. One of the two sees
    // the other.
    let ended = if folder.is_cancelled() {
        Ended { ended_by: EndedBy::Cancel, ..Ended::default() }
    } else {
        match life::execute(folder, &spec, &begun) {
            Ok(command) => {
                begun.command = Identity::of(command.main.pid).ok().flatten().map(Who::from);
                // For those who look; nothing depends on it.
                let _ = folder.write_attempt(&begun);
                announce();
                let ended = life::supervise(folder, &spec, &command, &signals);
                command.cgroup.iter().for_each(Leaf::remove);
                ended
            }
            Err(ended) => ended,
        }
    };
    let outcome = Outcome { attempt, fencing_token: token, ended_at: utc_now(), ended };
    folder.write_outcome_patiently(&outcome);
    Ok(())
}

/// Whether an attempt may begin. The caller holds the lock.
fn may_begin(
    spec: &Spec,
    before: Option<&Attempt>,
    outcome: Option<&Outcome>,
    attempt: u32,
    token: i64,
) -> Result<(), Declined> {
    // The folder of an id that was pruned and registered again belongs to the new one.
    if token < spec.fencing_token {
        return Err(Declined::Stale);
    }
    match outcome {
        Some(outcome) if outcome.attempt >= attempt || outcome.ended.is_final() => return Err(Declined::Ended),
        _ => {}
    }
    match before {
        Some(before) if before.fencing_token > token || before.attempt >= attempt => Err(Declined::Stale),
        _ => Ok(()),
    }
}

/// Tells the broker that the command is executed: it waits for the end of this pipe.
fn announce() {
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        // SAFETY: two valid numbers; stdout is not used in this process.
        unsafe { libc::dup2(null.as_raw_fd(), 1) };
    }
}
