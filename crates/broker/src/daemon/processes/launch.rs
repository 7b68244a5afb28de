//! Looking at a process's folder, launching its reaper, telling it to end.
//!
//! Everything here blocks, shortly, and belongs on the keeper's thread. Nothing here knows the store.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;

use super::records::RecordError;
use crate::core::durable::Found;
use crate::core::limits::Unenforced;
use crate::daemon::cgroups::{Cgroups, Closing, Made};
use crate::process::boot::boot_id;
use crate::process::cgroup::Leaf;
use crate::process::identity::open_if;
use crate::process::kernel::pidfd_signal;
use crate::process::spawn::{Command, SpawnError, Spawned, spawn};
use crate::reaper;
use crate::reaper::folder::{Attempt, Folder, Spec, cgroup_name};
use crate::reaper::leftovers::end_leftovers;

/// What a look at a folder showed.
pub(super) struct Look {
    pub(super) found: Found,
    /// The reaper that runs it.
    pub(super) reaper: Option<OwnedFd>,
    /// The command of the newest attempt.
    pub(super) pid: Option<i32>,
    pub(super) ended_at: Option<String>,
}

impl Look {
    fn only(found: Found) -> Self {
        Self { found, reaper: None, pid: None, ended_at: None }
    }
}

/// Looks, and ends what a lost attempt left.
pub(super) fn look(folder: &Folder) -> Look {
    try_look(folder).unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Look::only(Found::Missing),
        _ => {
            tracing::warn!(%error, folder = %folder.path().display(), "cannot look at a durable process");
            Look::only(Found::Unseen)
        }
    })
}

fn try_look(folder: &Folder) -> io::Result<Look> {
    let Some(_lock) = folder.try_lock()? else {
        let Some(attempt) = folder.attempt()? else { return Ok(Look::only(Found::Held)) };
        let Some(reaper) = open_reaper(&attempt)? else { return Ok(Look::only(Found::Held)) };
        let pid = attempt.command.map(|command| command.pid);
        let found = Found::Runs { attempt: attempt.attempt };
        return Ok(Look { reaper: Some(reaper), pid, ..Look::only(found) });
    };
    // Nobody runs it, so what cannot be read says nothing: it is put aside, and the attempt is lost.
    let (attempt, outcome) = (folder.attempt_or_aside()?, folder.outcome_or_aside()?);
    let attempts = attempt.as_ref().map_or(0, |attempt| attempt.attempt);
    if let Some(outcome) = outcome.filter(|outcome| outcome.attempt >= attempts) {
        // The reaper could not remove it with itself in it.
        attempt.iter().filter_map(|attempt| attempt.cgroup_in(&boot_id().ok()?)).for_each(Leaf::remove);
        let ended_at = Some(outcome.ended_at);
        let pid = attempt.and_then(|attempt| attempt.command).map(|command| command.pid);
        return Ok(Look {
            ended_at,
            pid,
            ..Look::only(Found::Ended { attempt: outcome.attempt, ended: outcome.ended })
        });
    }
    let pid = attempt.as_ref().and_then(|attempt| attempt.command).map(|command| command.pid);
    if let Some(attempt) = attempt {
        let leftovers = end_leftovers(folder, &attempt);
        if !leftovers.killed.is_empty() {
            tracing::warn!(folder = %folder.path().display(), ?leftovers, "ended what a lost attempt left");
        }
        if !leftovers.are_gone {
            return Ok(Look::only(Found::Held));
        }
    }
    Ok(Look { pid, ..Look::only(Found::Free { attempts }) })
}

/// Opens the reaper of an attempt, if it runs: the same number, start time and boot.
fn open_reaper(attempt: &Attempt) -> io::Result<Option<OwnedFd>> {
    if attempt.boot_id != boot_id()? {
        return Ok(None);
    }
    let reaper = attempt.reaper;
    Ok(open_if(reaper.pid(), |now| now.start_time == reaper.start_time)?.map(|(_, pidfd)| pidfd))
}

/// The command of the attempt, as long as its reaper runs.
pub(super) fn running_command(folder: &Folder) -> Option<i32> {
    let attempt = folder.attempt().ok()??;
    open_reaper(&attempt).ok()??;
    attempt.command.map(|command| command.pid)
}

/// Tells a reaper to end its command.
pub(super) fn ask_to_end(reaper: &impl AsFd) {
    if let Err(error) = pidfd_signal(reaper.as_fd(), Signal::SIGTERM) {
        tracing::warn!(%error, "cannot signal a reaper");
    }
}

/// Tells the reaper of a process that another broker owns.
pub(super) fn ask_stranger_to_end(folder: &Folder) {
    let reaper = folder.attempt().and_then(|attempt| attempt.map_or(Ok(None), |attempt| open_reaper(&attempt)));
    match reaper {
        Ok(reaper) => reaper.iter().for_each(ask_to_end),
        Err(error) => tracing::warn!(%error, folder = %folder.path().display(), "cannot look for a reaper"),
    }
}

/// A reaper on its way.
pub(super) struct Launched {
    pub(super) reaper: Spawned,
    /// Ends when the command is executed, or the reaper has ended.
    pub(super) announcement: OwnedFd,
}

/// Starts the reaper of an attempt: this program once more, in a session of its own, which outlives the broker.
pub(super) fn launch(
    folder: &Folder,
    attempt: u32,
    token: i64,
    nofile_soft: Option<u64>,
    cgroups: &Cgroups,
) -> Result<Launched, SpawnError> {
    let failed = |step| move |source: io::Error| SpawnError::Prepare { step, source };
    let (announcement, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("pipe")(errno.into()))?;
    let null = File::options().write(true).open("/dev/null").map_err(failed("open /dev/null"))?;
    let id = folder.path().file_name().unwrap_or_default().to_string_lossy();
    // What cannot be read has no limits, and its reaper declines.
    let limits = folder.spec().map(|spec| spec.limits).unwrap_or_default();
    let made = cgroups.make(&cgroup_name(&id, attempt), &limits);
    let Made { cgroup, unenforced } =
        made.map_err(|Closing| failed("make a cgroup")(io::Error::other("the unit of all backends is not there")))?;
    for Unenforced { limit, why } in unenforced {
        tracing::warn!(process = %id, limit, why, "a limit is not enforced");
    }
    let (cgroup, opened) = cgroup.unzip();
    let command = Command {
        program: "/proc/self/exe".into(),
        argv: vec![
            "broker-reaper".into(),
            reaper::MODE.into(),
            folder.path().into(),
            attempt.to_string().into(),
            token.to_string().into(),
        ],
        environment: Vec::new(),
        working_directory: "/".into(),
        umask: 0o077,
        stdout: Arc::new(write),
        stderr: Arc::new(null.into()),
        listen: Vec::new(),
        die_with_parent: false,
        record: None,
        cgroup: opened,
        nofile_soft,
        nofile: None,
    };
    let remove = || cgroup.iter().for_each(Leaf::remove);
    let reaper = spawn(&command).inspect_err(|_| remove())?;
    if let Some(error) = &reaper.strayed {
        tracing::warn!(%error, folder = %folder.path().display(), "a reaper cannot be put into its cgroup");
        remove();
    }
    Ok(Launched { reaper, announcement })
}

/// Makes the folder of a new process, which remains to be synced. What an earlier one of that id left, of which no record tells, gives way.
pub(super) fn make_folder(folder: &Folder, spec: &Spec) -> Result<(), RecordError> {
    if folder.path().exists() {
        remove_folder(folder)?;
    }
    DirBuilder::new().mode(0o700).create(folder.path())?;
    Ok(folder.write_spec(spec)?)
}

/// Removes the folder of a process that has ended.
pub(super) fn remove_folder(folder: &Folder) -> Result<(), RecordError> {
    let lock = match folder.try_lock() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        lock => lock?,
    };
    let _lock = lock.ok_or(RecordError::Busy)?;
    // First of all: without it no reaper begins, even one that waits at this very lock.
    remove_if_there(&folder.path().join("spec.json"))?;
    Ok(fs::remove_dir_all(folder.path())?)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
