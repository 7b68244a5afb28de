//! The records of durable processes in SQLite, shared by every broker that is given the same store.
//!
//! A write of an owner names its fencing token, so one that was passed over changes nothing; an end is written once.
//! Decides nothing: who may claim what is `core::lease`'s affair.

use std::io;
use std::path::Path;
use std::time::Duration;

use broker_proto::ProcessId;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::record::{Owner, Record, State, get, select, text};
use super::spec::Registration;
use crate::core::durable::{Ended, Verdict};
use crate::core::lease::{Decision, Lease, Me, Seen, decide};
use crate::core::millis;
use crate::process::boot::since_boot;
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

/// What a sweep found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Ours, as of now or before.
    pub(super) ours: Vec<Record>,
    /// When the first of our leases is due, in milliseconds since the boot.
    pub(super) renew_at: Option<u64>,
    /// Others' and when the first of their leases ends.
    pub(super) owners: Vec<Owner>,
    pub(super) look_again_at: Option<u64>,
    /// Whether more wait to be run than were asked for.
    pub(super) more: bool,
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
    connection: Connection,
    me: Me,
    owner: Owner,
    life: Duration,
}

impl Records {
    pub(super) fn open(path: &Path, me: Me, owner: Owner, life: Duration) -> Result<Self, StoreError> {
        Ok(Self { connection: open(path, &SCHEMA)?, me, owner, life })
    }

    fn write<T, E: From<rusqlite::Error>>(
        &mut self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let written = write(&transaction)?;
        transaction.commit()?;
        Ok(written)
    }

    /// Registers a process, or finds it. The folder is made while nobody else writes.
    pub(super) fn register(
        &mut self,
        registration: &Registration,
        claims: bool,
        make_folder: impl FnOnce(i64) -> Result<(), RecordError>,
    ) -> Result<(Record, bool), RecordError> {
        let claim = claims.then(|| self.claim());
        self.write(|transaction| {
            if let Some(record) = get(transaction, &registration.id)? {
                return Ok((record, false));
            }
            let count: i64 = transaction.query_row("SELECT count(*) FROM processes", [], |row| row.get(0))?;
            if count >= PROCESSES_MAX {
                return Err(RecordError::Full);
            }
            let token = next_token(transaction)?;
            make_folder(token)?;
            let Registration { id, asked, program } = registration;
            transaction.execute(
                "INSERT INTO processes (id, spec, program, state, attempt, max_attempts, registered_at, fencing_token)
                 VALUES (?1, ?2, ?3, 'pending', 0, ?4, ?5, ?6)",
                params![id.as_str(), text(asked)?, text(program)?, program.max_attempts, utc_now(), token],
            )?;
            if let Some(claim) = claim {
                claim.write(transaction, id, token)?;
            }
            let record = get(transaction, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            Ok((record, true))
        })
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

    /// Claims what is to be claimed: all that may run already, and of what waits as many as there is room for. What is
    /// read and what is written is one transaction, so nobody comes between.
    pub(super) fn sweep(&mut self, room: usize, seen: &mut dyn FnMut(&Owner) -> Seen) -> rusqlite::Result<Swept> {
        let claim = self.claim();
        let me = self.me.clone();
        self.write(|transaction| {
            let mut swept = Swept::default();
            let room = i64::try_from(room).unwrap_or(i64::MAX);
            let leased =
                select(transaction, "WHERE state = 'running' OR (state = 'pending' AND lease_token NOT NULL)", [])?;
            let mut waiting = select(
                transaction,
                "WHERE state = 'pending' AND lease_token IS NULL ORDER BY seq LIMIT ?1",
                [room.saturating_add(1)],
            )?;
            swept.more = i64::try_from(waiting.len()).unwrap_or(i64::MAX) > room;
            waiting.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            for record in leased.into_iter().chain(waiting) {
                let lease = record.lease.as_ref();
                let owner = lease.map_or(Seen::Unknown, |(_, owner)| seen(owner));
                match decide(claim.now, &me, lease.map(|(lease, _)| lease), owner) {
                    Decision::Claim => {
                        let token = next_token(transaction)?;
                        claim.write(transaction, &record.id, token)?;
                        let lease = Some((claim.lease.clone(), claim.owner.clone()));
                        swept.ours.push(Record { fencing_token: token, lease, ..record });
                    }
                    Decision::Mine { renew_at } => {
                        swept.renew_at = Some(swept.renew_at.map_or(renew_at, |other| other.min(renew_at)));
                        swept.ours.push(record);
                    }
                    Decision::Skip { look_again_at } => {
                        let at = swept.look_again_at.map_or(look_again_at, |other| other.min(look_again_at));
                        swept.look_again_at = Some(at);
                        swept.owners.extend(record.lease.map(|(_, owner)| owner));
                    }
                }
            }
            swept.owners.sort_by_key(|owner| owner.pid);
            swept.owners.dedup();
            Ok(swept)
        })
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
        self.write(|transaction| {
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
            Ok(if was_pending { Cancelled::Ended(record) } else { Cancelled::Asked(record) })
        })
    }

    /// Renews all our leases; how many there are, and when they are due again.
    pub(super) fn renew(&mut self) -> rusqlite::Result<usize> {
        let Claim { lease, .. } = self.claim();
        self.connection.execute(
            "UPDATE processes SET claimed_at = ?2, expires_at = ?3
             WHERE lease_token = ?1 AND state IN ('pending', 'running')",
            params![lease.token, i64_of(lease.claimed_at), i64_of(lease.expires_at)],
        )
    }

    /// Gives all our leases up.
    pub(super) fn release(&mut self) -> rusqlite::Result<usize> {
        self.connection.execute(
            "UPDATE processes SET owner = NULL, lease_token = NULL, boot_id = NULL, claimed_at = NULL, expires_at = NULL
             WHERE lease_token = ?1",
            [&self.me.token],
        )
    }

    /// Forgets a process that has ended. The folder is removed while nobody else writes.
    pub(super) fn forget(
        &mut self,
        id: &ProcessId,
        remove_folder: impl FnOnce() -> Result<(), RecordError>,
    ) -> Result<bool, RecordError> {
        self.write(|transaction| {
            let over = "state IN ('succeeded', 'failed', 'cancelled')";
            let sql = format!("DELETE FROM processes WHERE id = ?1 AND {over}");
            if transaction.execute(&sql, [id.as_str()])? == 0 {
                return Ok(false);
            }
            remove_folder()?;
            Ok(true)
        })
    }

    /// A number that changes with every write of somebody else.
    pub(super) fn version(&self) -> rusqlite::Result<i64> {
        self.connection.query_row("PRAGMA data_version", [], |row| row.get(0))
    }

    fn claim(&self) -> Claim {
        let now = millis(since_boot());
        let Me { token, boot_id } = self.me.clone();
        let expires_at = now.saturating_add(millis(self.life));
        Claim { now, lease: Lease { token, boot_id, claimed_at: now, expires_at }, owner: self.owner.clone() }
    }
}

/// A claim about to be made.
struct Claim {
    now: u64,
    lease: Lease,
    owner: Owner,
}

impl Claim {
    fn write(&self, connection: &Connection, id: &ProcessId, token: i64) -> rusqlite::Result<()> {
        let Lease { token: lease_token, boot_id, claimed_at, expires_at } = &self.lease;
        connection.execute(
            "UPDATE processes SET owner = ?2, lease_token = ?3, boot_id = ?4, claimed_at = ?5, expires_at = ?6,
                 fencing_token = ?7 WHERE id = ?1",
            params![
                id.as_str(),
                text(&self.owner)?,
                lease_token,
                boot_id,
                i64_of(*claimed_at),
                i64_of(*expires_at),
                token
            ],
        )?;
        Ok(())
    }
}

fn next_token(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("UPDATE fence SET newest = newest + 1 RETURNING newest", [], |row| row.get(0))
}

fn i64_of(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
