//! What outlives the broker is kept in SQLite: how such a file is opened, what its schema's version means, and what is
//! done with a damaged one.
//!
//! Knows files and no content: the journal and the store of durable processes say what is in theirs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, ffi};

/// How long a statement waits for another process that writes.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// How much of the file is kept in memory, in KiB. Everything is known without it: rows are read once and written often, and
/// the kernel keeps the pages, too.
const CACHE_KIB: i64 = 128;

/// What belongs to a database besides its own file, in WAL mode.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];

/// How a kind of database looks. Each migration takes the schema from its place in the list to the next version, so the
/// newest version is their number. What shipped is never changed; new ones are appended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schema {
    /// For messages: `the journal`.
    pub(crate) what: &'static str,
    pub(crate) migrations: &'static [&'static str],
    pub(crate) durability: Durability,
}

impl Schema {
    /// The newest version.
    pub(crate) fn version(&self) -> u32 {
        u32::try_from(self.migrations.len()).unwrap_or(u32::MAX)
    }
}

/// What a commit outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The death of every process. A power failure may take the last commits, and leaves the file whole.
    Processes,
    /// A power failure, too.
    Power,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A newer broker wrote it, and this one would not understand it.
    #[error(
        "{what} `{}` has version {found} of its schema and this broker knows {known}: a newer broker wrote it; start \
         that one, or give this one a --state-dir of its own",
        .path.display()
    )]
    Newer { what: &'static str, path: PathBuf, found: u32, known: u32 },
    /// It is no database, or its content is broken.
    #[error("{what} `{}` is damaged", .path.display())]
    Damaged {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// Anything else, a full disk among it.
    #[error("cannot open {what} `{}`", .path.display())]
    Unusable {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
}

/// Opens the database, making it or migrating it if need be.
pub(crate) fn open(path: &Path, schema: &Schema) -> Result<Connection, StoreError> {
    let what = schema.what;
    let failed = |source| {
        let path = path.to_owned();
        match is_damage(&source) {
            true => StoreError::Damaged { what, path, source },
            false => StoreError::Unusable { what, path, source },
        }
    };
    let known = schema.version();
    // One connection is used by one thread at a time, which the types see to.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_PATIENCE).map_err(failed)?;
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > known {
        return Err(StoreError::Newer { what, path: path.to_owned(), found, known });
    }
    // SQLite opens a file for reading alone that it may not write, and the connection would never write.
    if connection.is_readonly(MAIN_DB).map_err(failed)? {
        return Err(failed(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_READONLY), None)));
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    let synchronous = match schema.durability {
        Durability::Processes => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(failed)?;
    // A file that needs nothing is not written to: to begin its log anew would take a sync.
    if found < known {
        migrate(&mut connection, schema, known).map_err(failed)?;
    }
    Ok(connection)
}

/// Takes the schema to the newest version. Whoever else opens the file meanwhile waits, and then finds it done.
fn migrate(connection: &mut Connection, schema: &Schema, known: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let from: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    for migration in schema.migrations.iter().skip(from) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()
}

/// Whether an error means that the file's content cannot be trusted.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Puts a damaged database out of the way, under a name that says when; where it is now. Nothing is deleted.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S").to_string();
    let named = |count: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{stamp}"));
        if count > 0 {
            name.push(format!("-{count}"));
        }
        PathBuf::from(name)
    };
    let aside = (0..).map(named).find(|aside| !aside.exists()).unwrap_or_else(|| named(0));
    fs::rename(path, &aside)?;
    for companion in COMPANIONS {
        let with = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(companion);
            PathBuf::from(name)
        };
        match fs::rename(with(path), with(&aside)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

/// An error with what caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::thread;

    use super::*;

    const SCHEMA: Schema = Schema {
        what: "the test",
        migrations: &["CREATE TABLE things (name TEXT)", "ALTER TABLE things ADD COLUMN size INTEGER"],
        durability: Durability::Processes,
    };

    #[test]
    fn an_older_schema_migrates_forward_and_keeps_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let older = Schema { migrations: &SCHEMA.migrations[..1], ..SCHEMA };
        open(&path, &older).unwrap().execute("INSERT INTO things (name) VALUES ('a')", []).unwrap();
        let connection = open(&path, &SCHEMA).unwrap();
        let row = connection.query_row("SELECT name, size FROM things", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<u32>>(1)?))
        });
        assert_eq!(row.unwrap(), ("a".to_owned(), None));
        drop(connection);
        let error = open(&path, &older).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("a newer broker wrote it"), "{error}");
    }

    #[test]
    fn a_file_that_needs_nothing_is_opened_without_a_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        drop(open(&path, &SCHEMA).unwrap());
        let before = fs::read(&path).unwrap();
        let connection = open(&path, &SCHEMA).unwrap();
        assert_eq!(fs::metadata(folder.path().join("x.db-wal")).unwrap().len(), 0, "its log is not begun");
        drop(connection);
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        drop(open(&path, &SCHEMA).unwrap());
        let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(folder.path(), 0o777);
        set_mode(&path, 0o444);
        let opened = thread::spawn({
            let path = path.clone();
            move || {
                // For this thread alone: root may write everything.
                let _ = nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
                open(&path, &SCHEMA).map(drop)
            }
        });
        let error = opened.join().unwrap().unwrap_err();
        assert!(
            matches!(&error, StoreError::Unusable { source, .. } if source.to_string().contains("readonly")),
            "{error:?}"
        );
        set_mode(&path, 0o644);
        open(&path, &SCHEMA).unwrap();
    }

    #[test]
    fn what_is_no_database_is_damaged_and_can_be_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        fs::write(&path, "this is no database, whatever its name says".repeat(20)).unwrap();
        assert!(matches!(open(&path, &SCHEMA), Err(StoreError::Damaged { .. })));
        let first = set_aside(&path).unwrap();
        fs::write(&path, "nor is this").unwrap();
        let second = set_aside(&path).unwrap();
        assert_ne!(first, second);
        assert!(!path.exists() && first.exists() && second.exists());
        open(&path, &SCHEMA).unwrap();
    }
}
