//! The records of durable processes in SQLite, shared by every broker that is given the same store.
//!
//! A write of an owner names its fencing token, so one that was passed over changes nothing; an end is written once.
//! How owners come and go is in `claims`.

use std::fs::File;
use std::io;

use broker_proto::ProcessId;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::record::{Record, State, get, select, text};
use super::spec::Registration;
use super::store::{Place, database};
use crate::core::durable::{Ended, Verdict};
use crate::reaper::folder::utc_now;
use crate::store::{Durability, Schema, StoreError, open};

/// The most processes of a store, those included that have ended and were not pruned.
const PROCESSES_MAX: i64 = 10_000;

/// The fencing tokens begin at the time of the store's making, so that a store made anew beside the folders of a damaged
/// one goes on above it.
const SCHEMA: Schema = Schema {
    what: "the store of durable processes",
    migrations: &["
        CREATE TABLE processes (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            spec TEXT NOT NULL,
            program TEXT NOT NULL,
            state TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            max_attempts INTEGER NOT NULL,
            registered_at TEXT NOT NULL,
            started_at TEXT,
            ended_at TEXT,
            cancel_reason TEXT,
            outcome TEXT,
            owner TEXT,
            lease_token TEXT,
            boot_id TEXT,
            claimed_at INTEGER,
            expires_at INTEGER,
            fencing_token INTEGER NOT NULL
        );
        CREATE INDEX processes_by_state ON processes (state, lease_token, seq);
        CREATE TABLE fence (newest INTEGER NOT NULL);
        INSERT INTO fence VALUES (CAST(strftime('%s', 'now') AS INTEGER));
    "],
    durability: Durability::Power,
};

/// Why a record cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("{PROCESSES_MAX} processes are registered, which is the limit")]
    Full,
    #[error("an earlier process of that id still runs, of which the store knows nothing")]
    Busy,
    #[error("the folder of the process")]
    Folder(#[from] io::Error),
    #[error("the store")]
    Store(#[from] rusqlite::Error),
}

/// What a cancellation found.
#[derive(Debug)]
pub(super) enum Cancelled {
    Unknown,
    /// It had ended before.
    Over(Record),
    /// Nobody had started it: it has ended now.
    Ended(Record),
    /// It is on record: whoever runs it is to be told.
    Asked(Record),
}

pub(super) struct Records {
    pub(super) connection: Connection,
    pub(super) place: Place,
}

impl Records {
    /// Opens the database of a place.
    ///
    /// What must outlive a power failure is synced after its commit and not within it: a broker that is stopped while it
    /// has the write lock keeps all others from writing, and most of a commit's time is its sync.
    pub(super) fn open(place: &Place) -> Result<Self, StoreError> {
        let path = database(&place.store);
        let connection = open(&path, &SCHEMA)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(|source| StoreError::Unusable {
            what: SCHEMA.what,
            path,
            source,
        })?;
        Ok(Self { connection, place: place.clone() })
    }

    /// Waits until all commits so far would outlive a power failure.
    fn sync(&self) -> rusqlite::Result<()> {
        let mut log = database(&self.place.store).into_os_string();
        log.push("-wal");
        // SQLite has no lock on this file, which closing it would give up.
        match File::open(log).and_then(|log| log.sync_data()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let failure = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
                Err(rusqlite::Error::SqliteFailure(failure, Some(error.to_string())))
            }
            _ => Ok(()),
        }
    }

    /// Whose it is.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    pub(super) fn write<T, E: From<rusqlite::Error>>(
        &mut self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let written = write(&transaction)?;
        transaction.commit()?;
        Ok(written)
    }

    /// Registers a process, or finds it. The folder is made while nobody else writes, and is on the disk before the record
    /// is.
    pub(super) fn register(
        &mut self,
        registration: &Registration,
        claims: bool,
        make_folder: impl FnOnce(i64) -> Result<(), RecordError>,
        sync_folder: impl FnOnce() -> io::Result<()>,
    ) -> Result<(Record, bool), RecordError> {
        let claim = claims.then(|| self.claim());
        let (record, created) = self.write(|transaction| {
            if let Some(record) = get(transaction, &registration.id)? {
                return Ok((record, false));
            }
            let count: i64 = transaction.query_row("SELECT count(*) FROM processes", [], |row| row.get(0))?;
            if count >= PROCESSES_MAX {
                return Err(RecordError::Full);
            }
            let token = next_token(transaction)?;
            make_folder(token)?;
            insert(transaction, registration, token)?;
            let id = &registration.id;
            if let Some(claim) = claim {
                claim.write(transaction, id, token)?;
            }
            let record = get(transaction, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            Ok::<_, RecordError>((record, true))
        })?;
        if created {
            sync_folder()?;
        }
        // Also for one who is told that it was there: its record may have been written just now.
        self.sync()?;
        Ok((record, created))
    }

    pub(super) fn get(&self, id: &ProcessId) -> rusqlite::Result<Option<Record>> {
        get(&self.connection, id)
    }

    /// All records, in the order of their registration.
    pub(super) fn all(&self) -> rusqlite::Result<Vec<Record>> {
        select(&self.connection, "ORDER BY seq", [])
    }

    /// The ids of all, the newest first.
    pub(super) fn ids(&self) -> rusqlite::Result<Vec<String>> {
        let mut statement = self.connection.prepare("SELECT id FROM processes ORDER BY seq DESC")?;
        statement.query_map([], |row| row.get(0))?.collect()
    }

    /// An attempt is about to be started; false if the record is not ours any more, or has ended.
    pub(super) fn begin(&mut self, id: &ProcessId, token: i64, attempt: u32) -> rusqlite::Result<bool> {
        let changed = self.connection.execute(
            "UPDATE processes SET state = 'running', attempt = ?3, started_at = ?4
             WHERE id = ?1 AND fencing_token = ?2 AND state IN ('pending', 'running')",
            params![id.as_str(), token, attempt, utc_now()],
        )?;
        Ok(changed == 1)
    }

    /// The end; false if the record is not ours any more, or has ended.
    pub(super) fn finish(
        &mut self,
        id: &ProcessId,
        token: i64,
        attempt: u32,
        verdict: Verdict,
        ended: &Ended,
        ended_at: &str,
    ) -> rusqlite::Result<bool> {
        let changed = self.connection.execute(
            "UPDATE processes SET state = ?3, attempt = ?4, outcome = ?5, ended_at = ?6, owner = NULL,
                 lease_token = NULL, boot_id = NULL, claimed_at = NULL, expires_at = NULL
             WHERE id = ?1 AND fencing_token = ?2 AND state IN ('pending', 'running')",
            params![id.as_str(), token, State::Over(verdict).as_str(), attempt, text(ended)?, ended_at],
        )?;
        Ok(changed == 1)
    }

    /// Puts a cancellation on record, the first reason of all. Anybody may cancel, owner or not.
    pub(super) fn cancel(&mut self, id: &ProcessId, reason: &str) -> rusqlite::Result<Cancelled> {
        let cancelled = self.write(|transaction| {
            let Some(record) = get(transaction, id)? else { return Ok(Cancelled::Unknown) };
            if record.state.is_over() {
                return Ok(Cancelled::Over(record));
            }
            let reason = record.cancel_reason.unwrap_or_else(|| reason.to_owned());
            transaction
                .execute("UPDATE processes SET cancel_reason = ?2 WHERE id = ?1", params![id.as_str(), reason])?;
            // An owner says that it runs before it runs it.
            if record.state == State::Pending {
                let ended = Ended { ended_by: crate::core::durable::EndedBy::Cancel, ..Ended::default() };
                transaction.execute(
                    "UPDATE processes SET state = 'cancelled', outcome = ?2, ended_at = ?3, owner = NULL,
                         lease_token = NULL, boot_id = NULL, claimed_at = NULL, expires_at = NULL WHERE id = ?1",
                    params![id.as_str(), text(&ended)?, utc_now()],
                )?;
            }
            let was_pending = record.state == State::Pending;
            let record = get(transaction, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            Ok::<_, rusqlite::Error>(if was_pending { Cancelled::Ended(record) } else { Cancelled::Asked(record) })
        })?;
        self.sync()?;
        Ok(cancelled)
    }

    /// Puts a process on record again of which only the folder is left: as one that was running, so that whoever claims it
    /// looks what became of it.
    pub(super) fn restore(
        &mut self,
        registration: &Registration,
        token: i64,
        begun: Option<(u32, &str)>,
        cancel_reason: Option<&str>,
    ) -> rusqlite::Result<()> {
        self.write(|transaction| {
            // Above whatever a reaper of the lost store was given.
            transaction.execute("UPDATE fence SET newest = max(newest, ?1)", [token])?;
            let token = next_token(transaction)?;
            insert(transaction, registration, token)?;
            let (attempt, started_at) = begun.unzip();
            transaction.execute(
                "UPDATE processes SET state = 'running', attempt = ?2, started_at = ?3, cancel_reason = ?4 WHERE id = ?1",
                params![registration.id.as_str(), attempt.unwrap_or(0), started_at, cancel_reason],
            )?;
            Ok(())
        })
    }

    /// Forgets processes that have ended; which, and what hindered the others. Their folders are removed while nobody else
    /// writes.
    pub(super) fn forget(
        &mut self,
        ids: &[ProcessId],
        mut remove_folder: impl FnMut(&ProcessId) -> Result<(), RecordError>,
    ) -> rusqlite::Result<Vec<(ProcessId, Result<(), RecordError>)>> {
        // A folder must not be gone while its record could come back as one that runs.
        self.sync()?;
        self.write(|transaction| {
            let mut forgotten = Vec::new();
            for id in ids {
                if get(transaction, id)?.is_none_or(|record| !record.state.is_over()) {
                    continue;
                }
                let removed = remove_folder(id);
                if removed.is_ok() {
                    transaction.execute("DELETE FROM processes WHERE id = ?1", [id.as_str()])?;
                }
                forgotten.push((id.clone(), removed));
            }
            Ok(forgotten)
        })
    }

    /// A number that changes with every write of somebody else.
    pub(super) fn version(&self) -> rusqlite::Result<i64> {
        self.connection.query_row("PRAGMA data_version", [], |row| row.get(0))
    }
}

fn insert(connection: &Connection, registration: &Registration, token: i64) -> rusqlite::Result<()> {
    let Registration { id, registered_at, asked, program } = registration;
    connection.execute(
        "INSERT INTO processes (id, spec, program, state, attempt, max_attempts, registered_at, fencing_token)
         VALUES (?1, ?2, ?3, 'pending', 0, ?4, ?5, ?6)",
        params![id.as_str(), text(asked)?, text(program)?, program.max_attempts, registered_at, token],
    )?;
    Ok(())
}

pub(super) fn next_token(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("UPDATE fence SET newest = newest + 1 RETURNING newest", [], |row| row.get(0))
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
