//! The journal's file: opened, looked at before each write, written, written anew from the image, set aside if damaged.
//!
//! One thread uses it. It knows no image and no patience: it is handed what to write, and says how that went.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::core::registry::BackendKey;
use crate::store::{self, StoreError};

use super::Row;
use super::sql::{self, Content, RawRow, SCHEMA};

/// What every SQLite file begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The file, and the connection to it while there is one.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    open: Option<OpenFile>,
    /// Whether the file may hold rows that nobody has read yet, since it could not be opened.
    is_unread: bool,
    /// Where files were put out of the way, until somebody asks.
    set_aside: Vec<PathBuf>,
}

#[derive(Debug)]
struct OpenFile {
    connection: Connection,
    /// How the files were after the last write of ours.
    seen: Stamp,
    /// Something was written since it was opened, so its log is begun.
    is_begun: bool,
}

/// A file that was opened for the first time.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) disk: Disk,
    pub(super) content: Content,
    /// Why it cannot be written for now.
    pub(super) trouble: Option<DiskError>,
}

/// Everything that the file should hold.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) rows: Vec<Row>,
    pub(super) unreadable: Vec<RawRow>,
    /// Keys of which more is known than the file may hold.
    pub(super) changed: HashSet<BackendKey>,
}

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error(transparent)]
    Open(#[from] StoreError),
    #[error("cannot write the journal")]
    Write(#[from] rusqlite::Error),
    #[error("cannot look at the journal's file")]
    Look(#[source] io::Error),
    #[error("cannot set the damaged journal aside")]
    SetAside(#[source] io::Error),
}

impl DiskError {
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Open(StoreError::Damaged { .. }) => true,
            Self::Write(error) => store::is_damage(error),
            Self::Open(_) | Self::Look(_) | Self::SetAside(_) => false,
        }
    }
}

impl Disk {
    /// Opens the file for the first time and reads it. What is damaged is set aside; what cannot be opened is still
    /// read, if that can be done without writing a byte.
    ///
    /// # Errors
    /// A newer broker wrote it.
    pub(super) fn begin(path: &Path) -> Result<Begun, StoreError> {
        let mut disk = Self { path: path.to_owned(), open: None, is_unread: true, set_aside: Vec::new() };
        let mut loaded = disk.load();
        if let Err(error) = &loaded
            && error.is_damage()
        {
            loaded = disk.put_aside(error.to_string()).and_then(|()| disk.load());
        }
        match loaded {
            Ok(content) => Ok(Begun { disk, content, trouble: None }),
            Err(DiskError::Open(error @ StoreError::Newer { .. })) => Err(error),
            Err(error) => {
                let content = disk.peek().unwrap_or_default();
                Ok(Begun { disk, content, trouble: Some(error) })
            }
        }
    }

    fn load(&mut self) -> Result<Content, DiskError> {
        let connection = store::open(&self.path, &SCHEMA)?;
        sql::check(&connection)?;
        let content = sql::read(&connection)?;
        self.adopt(connection)?;
        Ok(content)
    }

    /// Reads a file that cannot be opened as it should be, above all on a full disk: an exclusive connection keeps in
    /// its own memory what would need room beside the file.
    fn peek(&mut self) -> Option<Content> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).ok()?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).ok()?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").ok()?;
        let version: isize = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).ok()?;
        if usize::try_from(version) != Ok(SCHEMA.migrations.len()) {
            return None;
        }
        sql::check(&connection).ok()?;
        let content = sql::read(&connection).ok()?;
        self.is_unread = false;
        Some(content)
    }

    fn adopt(&mut self, connection: Connection) -> Result<(), DiskError> {
        let seen = Stamp::of(&self.path).map_err(DiskError::Look)?;
        if seen.main.is_none() {
            return Err(DiskError::Look(io::Error::from(io::ErrorKind::NotFound)));
        }
        self.open = Some(OpenFile { connection, seen, is_begun: false });
        self.is_unread = false;
        Ok(())
    }

    /// Whether changes can be written: the file is open and is as we left it. If not, it has to be written whole.
    ///
    /// The file itself is never opened here: closing it again would drop the locks that SQLite holds on it.
    pub(super) fn is_as_we_left_it(&mut self) -> Result<bool, DiskError> {
        let Some(open) = &self.open else { return Ok(false) };
        let now = Stamp::of(&self.path).map_err(DiskError::Look)?;
        if now == open.seen {
            return Ok(true);
        }
        let (before, path) = (open.seen.main.map(|main| main.id), self.path.display());
        match now.main.map(|main| main.id) {
            None => tracing::warn!(%path, "the journal was deleted; it is written anew"),
            id if id == before => tracing::info!(%path, "somebody else has written to the journal; it is written over"),
            Some(_) => {
                // What was ours beside the old file must not be taken for a part of this one.
                self.close();
                self.put_aside("somebody else has put it there".to_owned())?;
            }
        }
        self.close();
        Ok(false)
    }

    /// Writes rows, and deletes those of keys that have none, in one transaction. `false` if the file was taken away
    /// meanwhile, so that nobody will ever read what was written.
    pub(super) fn write<'r>(
        &mut self,
        changes: impl IntoIterator<Item = (&'r BackendKey, Option<&'r Row>)>,
    ) -> Result<bool, DiskError> {
        let Some(open) = &mut self.open else {
            return Err(DiskError::Look(io::Error::from(io::ErrorKind::NotConnected)));
        };
        sql::write(&mut open.connection, changes)?;
        let now = Stamp::of(&self.path).map_err(DiskError::Look)?;
        let id = |stamp: &Stamp| stamp.main.map(|main| main.id);
        if id(&now) != id(&open.seen) {
            return Ok(false);
        }
        (open.seen, open.is_begun) = (now, true);
        Ok(true)
    }

    /// Writes and syncs the head of the log if that is still to be done, so that no start has to wait for it; a disk that
    /// takes nothing is noticed, too.
    pub(super) fn begin_log(&mut self) -> Result<bool, DiskError> {
        match &self.open {
            Some(open) if !open.is_begun => self.write([]),
            _ => Ok(true),
        }
    }

    /// Opens the file afresh and makes it hold everything. Returns what else it held that nobody had read yet, and
    /// still holds.
    pub(super) fn rewrite(&mut self, whole: &Whole) -> Result<Content, DiskError> {
        match self.reopen(whole) {
            Err(error) if error.is_damage() => {
                self.put_aside(error.to_string())?;
                self.reopen(whole)
            }
            other => other,
        }
    }

    fn reopen(&mut self, whole: &Whole) -> Result<Content, DiskError> {
        self.close();
        // With the log beside it SQLite may make up for any head, and so for a file that is overwritten. Without need
        // nothing is read through it: the image knows better. It is the only source of what was never read.
        if !self.is_unread && self.has_foreign_head() {
            return Err(DiskError::Write(sql::damage("it does not begin as a database does".to_owned())));
        }
        let mut connection = store::open(&self.path, &SCHEMA)?;
        sql::check(&connection)?;
        let mut kept = if self.is_unread { sql::read(&connection)? } else { Content::default() };
        kept.rows.retain(|row| !whole.changed.contains(&row.key));
        kept.unreadable.retain(|raw| raw.unreadable.key.as_ref().is_none_or(|key| !whole.changed.contains(key)));
        let rows = whole.rows.iter().chain(&kept.rows);
        sql::rewrite(&mut connection, rows, whole.unreadable.iter().chain(&kept.unreadable))?;
        self.adopt(connection)?;
        Ok(kept)
    }

    fn has_foreign_head(&self) -> bool {
        let mut head = [0; MAGIC.len()];
        match fs::File::open(&self.path).and_then(|mut file| file.read(&mut head)) {
            Ok(read) => read > 0 && head != *MAGIC,
            Err(_) => false,
        }
    }

    /// Leaves the file as it is, without a last tidying by SQLite: it may be full, damaged, or not ours any more.
    pub(super) fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        if let Err(error) = open.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
            tracing::debug!(%error, "the journal is tidied while it is closed");
        }
    }

    /// Puts what lies at the path out of the way.
    fn put_aside(&mut self, why: String) -> Result<(), DiskError> {
        self.close();
        let aside = store::set_aside(&self.path).map_err(DiskError::SetAside)?;
        let (path, to) = (self.path.display(), aside.display());
        tracing::warn!(%path, set_aside = %to, why, "the journal's file is put out of the way, and a new one begun");
        self.set_aside.push(aside);
        self.is_unread = false;
        Ok(())
    }

    /// The files that were put out of the way since the last question.
    pub(super) fn take_set_aside(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.set_aside)
    }
}

/// What tells whether somebody else had his hands in the journal's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    main: Option<Facts>,
    log: Option<Facts>,
    /// The index of the log changes with every reader; only which file it is counts.
    index: Option<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    id: Id,
    size: u64,
    modified: (i64, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    device: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let beside = |companion: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(companion);
            facts(Path::new(&name))
        };
        Ok(Self { main: facts(path)?, log: beside("-wal")?, index: beside("-shm")?.map(|facts| facts.id) })
    }
}

fn facts(path: &Path) -> io::Result<Option<Facts>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Facts {
            id: Id { device: metadata.dev(), inode: metadata.ino() },
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
