//! The folder of a durable process: the documents through which its reaper and its owner know of each other, and the lock.
//!
//! Every document is replaced as a whole, so who reads one reads all of it. Nothing here decides.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::durable::Ended;
use crate::core::limits::Limits;
use crate::process::cgroup::Leaf;
use crate::process::identity::Identity;

/// The pause before an outcome is written again that could not be: a full disk becomes free some time.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What is run, in the form in which the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) id: String,
    /// Of the registration. An owner with a lower one means an earlier process of that id.
    pub(crate) fencing_token: i64,
    /// The program first: a bare name is looked for in the `PATH` of `environment`.
    pub(crate) argv: Vec<String>,
    /// All of it, but for what tells the id and the attempt.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) working_directory: String,
    pub(crate) umask: u32,
    /// Of one attempt.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) stop_signal: i32,
    /// From `stop_signal` to SIGKILL.
    pub(crate) stop_timeout_ms: u64,
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub(crate) limits: Limits,
    /// What the store says of the process, for a store that was lost. It means nothing to a reaper.
    pub(crate) record: String,
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
}

impl From<Identity> for Who {
    fn from(identity: Identity) -> Self {
        Self { pid: identity.pid.as_raw(), start_time: identity.start_time }
    }
}

impl Who {
    pub(crate) fn pid(self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

/// An attempt that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// From 1.
    pub(crate) attempt: u32,
    pub(crate) fencing_token: i64,
    pub(crate) boot_id: String,
    pub(crate) reaper: Who,
    /// The command, once it is executed.
    pub(crate) command: Option<Who>,
    pub(crate) started_at: String,
    /// In the environment of all that the command starts, as [`MARK`]; of this attempt alone.
    #[serde(default)]
    pub(crate) mark: String,
    /// What the reaper lives in, and below it all that the command starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<Leaf>,
}

impl Attempt {
    /// Its cgroup, in the boot in which there may be one.
    pub(crate) fn cgroup_in(&self, boot_id: &str) -> Option<&Leaf> {
        self.cgroup.as_ref().filter(|_| self.boot_id == boot_id)
    }
}

/// The name of an attempt's cgroup.
pub(crate) fn cgroup_name(id: &str, attempt: u32) -> String {
    format!("run~{id}.{attempt}")
}

/// The variable by which what an attempt left is known.
pub(crate) const MARK: &str = "BROKER_PROCESS_RUN";

/// Somebody asked for the end.
#[derive(Debug, Serialize, Deserialize)]
struct Cancel {
    reason: String,
    requested_at: String,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) attempt: u32,
    pub(crate) fencing_token: i64,
    pub(crate) ended_at: String,
    #[serde(flatten)]
    pub(crate) ended: Ended,
}

/// A durable process's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder(PathBuf);

/// Held by whoever runs the process, or looks at what a lost attempt left.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "it is there to be dropped")] Flock<File>);

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn stdout(&self, attempt: u32) -> PathBuf {
        self.file(&format!("stdout.{attempt}"))
    }

    pub(crate) fn stderr(&self, attempt: u32) -> PathBuf {
        self.file(&format!("stderr.{attempt}"))
    }

    /// Takes the lock, if nobody holds it. It is not inherited by what is executed.
    ///
    /// # Errors
    /// `NotFound` if the folder is gone.
    pub(crate) fn try_lock(&self) -> io::Result<Option<Lock>> {
        let path = self.file("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Lock(lock))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    pub(crate) fn spec(&self) -> io::Result<Spec> {
        self.read("spec.json")?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(crate) fn attempt(&self) -> io::Result<Option<Attempt>> {
        self.read("attempt.json")
    }

    pub(crate) fn outcome(&self) -> io::Result<Option<Outcome>> {
        self.read("outcome.json")
    }

    /// The attempt; a document that is damaged is put aside. The caller holds the lock.
    pub(crate) fn attempt_or_aside(&self) -> io::Result<Option<Attempt>> {
        self.read_or_aside("attempt.json")
    }

    /// The same for the outcome.
    pub(crate) fn outcome_or_aside(&self) -> io::Result<Option<Outcome>> {
        self.read_or_aside("outcome.json")
    }

    fn read_or_aside<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match self.read(name) {
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                let aside = self.file(&format!("{name}.damaged"));
                fs::rename(self.file(name), &aside)?;
                tracing::error!(%error, aside = %aside.display(), "a damaged document is put aside");
                Ok(None)
            }
            result => result,
        }
    }

    /// Why somebody asked for its end.
    pub(crate) fn cancel_reason(&self) -> Option<String> {
        let cancel: Option<Cancel> = self.read("cancel.json").ok()?;
        cancel.map(|cancel| cancel.reason)
    }

    /// Whether somebody asked for its end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.file("cancel.json").exists()
    }

    /// Writes the spec. [`Self::sync`] lets it outlive a power failure.
    pub(crate) fn write_spec(&self, spec: &Spec) -> io::Result<()> {
        fs::write(self.file("spec.json"), serde_json::to_vec(spec)?)
    }

    /// Waits until a new folder and its spec are on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(self.file("spec.json"))?.sync_all()?;
        File::open(&self.0)?.sync_all()?;
        self.0.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }

    pub(super) fn write_attempt(&self, attempt: &Attempt) -> io::Result<()> {
        self.write("attempt.json", attempt)
    }

    pub(crate) fn write_cancel(&self, reason: &str) -> io::Result<()> {
        self.write("cancel.json", &Cancel { reason: reason.to_owned(), requested_at: utc_now() })
    }

    /// Writes the outcome, and does not give up: as long as it is not written the lock is held, so nobody runs the
    /// process again.
    pub(super) fn write_outcome_patiently(&self, outcome: &Outcome) {
        while let Err(error) = self.write("outcome.json", outcome) {
            if error.kind() == io::ErrorKind::NotFound {
                // The folder was removed by force: nobody wants to know.
                return;
            }
            std::thread::sleep(WRITE_AGAIN);
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.file(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a document. It outlives a power failure.
    fn write(&self, name: &str, document: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(document)?;
        // Two may write the same one at the same time, each a whole one.
        let draft = self.file(&format!(".{name}.{}", Pid::this()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&draft, self.file(name))) {
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        File::open(&self.0)?.sync_all()
    }
}

/// The time as documents say it: RFC 3339, UTC, milliseconds.
pub(crate) fn utc_now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
