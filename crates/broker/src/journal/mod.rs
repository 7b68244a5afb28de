//! The journal of backends: what must be known of each, whatever becomes of the broker, in SQLite behind one interface.
//!
//! It keeps what it is told, and never decides anything about a backend. The truth of the moment is an image in memory;
//! one thread brings the file after it. So a disk that hangs, fills up or breaks costs durability and nothing else, and
//! is made good from the image as soon as it can be.

mod disk;
mod document;
mod image;
mod sql;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::core::registry::BackendKey;
use crate::store::StoreError;

use disk::Disk;
pub(crate) use document::Document;
use writer::Shared;

/// What is known of a backend, whatever becomes of the broker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) key: BackendKey,
    pub(crate) generation: u64,
    pub(crate) phase: Phase,
    /// What the machine remembers, as a JSON document that only the driver reads.
    pub(crate) memory: String,
    /// The start of this generation; none before its intent.
    pub(crate) launch: Option<Document>,
    /// The main process, for whoever proves identity, and for people who look with `sqlite3`.
    pub(crate) process: Option<Process>,
    pub(crate) endpoint: Option<String>,
    /// How the last generation ended, as a JSON document.
    pub(crate) outcome: Option<String>,
}

/// A process as the row names it: number, start time in clock ticks, and where those are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pub(crate) boot_id: Arc<str>,
    pub(crate) pid_namespace: u64,
}

/// Where a backend is in its life, as far as the next broker must know. In the file it is the word in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Inactive,
    /// About to be forked, or forked and not yet noted.
    Intent,
    Starting,
    Ready,
    Stopping,
    Quarantined,
}

/// What the journal can be told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// What the machine remembers now. Another generation than the row's begins a new one: launch, process and endpoint
    /// of the old one are dropped. Makes the row if there is none.
    Told { key: BackendKey, generation: u64, phase: Phase, memory: String },
    /// The intent of a start, before the fork, without a process; and the same again with its process after it. Ignored
    /// if the row has another generation, or does not exist. A row that is starting becomes `Intent` without a process
    /// and `Starting` with one; any other phase is left.
    Launch { key: BackendKey, generation: u64, launch: Document, endpoint: String, process: Option<Process> },
    /// How a generation ended. Drops launch, process and endpoint of that generation; ignored for another one.
    Ended { key: BackendKey, generation: u64, outcome: String },
    /// Nothing needs to be remembered of it any more.
    Forgotten { key: BackendKey },
}

/// The handle of the journal, cheap to clone. When the last one is dropped, what is left is written.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

/// A change that is on its way to the disk.
#[derive(Debug)]
#[must_use]
pub(crate) struct Begun(u64);

/// A journal, and what it knew when it was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) journal: Journal,
    pub(crate) rows: Vec<Row>,
    /// Rows that could not be understood. They stay in the file until a change for their key comes.
    pub(crate) unreadable: Vec<Unreadable>,
}

/// A row that is not understood: what can be had of it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) instance: String,
    pub(crate) service: String,
    pub(crate) version: String,
    /// The key, if its texts are one.
    pub(crate) key: Option<BackendKey>,
    pub(crate) pid: Option<i32>,
    pub(crate) start_time: Option<u64>,
    pub(crate) launch: Option<String>,
    pub(crate) reason: String,
}

/// How the journal does, for people.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) path: PathBuf,
    /// Why the file is behind; none while it is not.
    pub(crate) trouble: Option<Trouble>,
    /// Damaged files that were put out of the way in this life of the broker; the latest ones, if they are many.
    pub(crate) set_aside: Vec<PathBuf>,
    /// How many rows are kept, those included that are not understood.
    pub(crate) rows: usize,
}

/// What keeps the journal from its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) since: jiff::Timestamp,
    /// The latest reason, with its causes.
    pub(crate) what: String,
}

impl Journal {
    /// Opens the file, or makes it, and reads every row; from then on a thread of its own writes.
    ///
    /// A damaged file is set aside and a new one begun. One that cannot be opened or written leaves the journal in
    /// trouble from the start: it works from memory, and heals.
    ///
    /// # Errors
    /// A newer broker wrote the file.
    pub(crate) fn open(path: &Path) -> Result<Opened, StoreError> {
        let begun = Disk::begin(path)?;
        let rows = begun.content.rows.clone();
        let unreadable = begun.content.unreadable.iter().map(|raw| raw.unreadable.clone()).collect();
        let shared = Shared::begin(path, begun);
        Ok(Opened { journal: Self(Arc::new(Handle { shared })), rows, unreadable })
    }

    /// Notes a change. Never waits for the disk.
    pub(crate) fn tell(&self, change: Change) {
        let _ = self.0.shared.tell(change);
    }

    /// Notes a change that is written with the next one, or after [`Journal::wake`]: to wake the thread takes a processor
    /// from whoever is just waited for.
    pub(crate) fn tell_quietly(&self, change: Change) {
        self.0.shared.tell_quietly(change);
    }

    /// Has everything written that was told.
    pub(crate) fn wake(&self) {
        self.0.shared.wake();
    }

    /// Notes a change that is waited for with [`Journal::settled`]; meanwhile it is being written.
    pub(crate) fn begin(&self, change: Change) -> Begun {
        Begun(self.0.shared.tell(change))
    }

    /// Blocks until a change is committed: true; or until it is known that it cannot be now: false. Even then it is noted,
    /// and is written when the journal heals.
    pub(crate) fn settled(&self, change: Begun) -> bool {
        self.0.shared.settled(change.0)
    }

    /// Blocks until all that was told until now, quietly or not, is committed, or it is known that it cannot be now.
    pub(crate) fn catch_up(&self) {
        let told = Begun(self.0.shared.told());
        self.wake();
        self.settled(told);
    }

    /// How many rows the file lacks.
    #[cfg(test)]
    pub(crate) fn behind(&self) -> usize {
        self.0.shared.behind()
    }

    #[cfg(test)]
    fn settle(&self, change: Change) -> bool {
        self.settled(self.begin(change))
    }

    /// Is over once all that was told is committed, or it is known that it cannot be now: at once where the disk is in trouble,
    /// and within [`writer::HUNG`] where it hangs. Takes no thread meanwhile.
    pub(crate) async fn written(&self) {
        if let Some((written, patience)) = self.0.shared.written() {
            let _ = tokio::time::timeout(patience, written).await;
        }
    }

    /// Blocks until all that was told is committed: true; or until an attempt made for it has failed, or the disk has
    /// not answered within [`writer::PATIENCE`]: false.
    pub(crate) fn flush(&self) -> bool {
        self.0.shared.flush()
    }

    pub(crate) fn health(&self) -> Health {
        self.0.shared.health()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}
