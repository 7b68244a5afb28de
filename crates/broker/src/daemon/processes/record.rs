//! A record of a durable process, and how it is read from its row.
//!
//! It changes nothing.

use broker_proto::ProcessId;
use rusqlite::{Connection, OptionalExtension, Row as SqlRow};
use serde::{Deserialize, Serialize};

use super::spec::{Asked, Program};
use crate::core::durable::{Ended, Verdict};
use crate::core::lease::Lease;

const COLUMNS: &str = "id, spec, program, state, attempt, max_attempts, registered_at, started_at, ended_at, \
     cancel_reason, outcome, owner, lease_token, boot_id, claimed_at, expires_at, fencing_token";

/// A broker, so that others can see whether it lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) boot_id: String,
    /// Within which its pid means something.
    pub(super) pid_namespace: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    Running,
    Over(Verdict),
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Over(Verdict::Succeeded) => "succeeded",
            Self::Over(Verdict::Failed) => "failed",
            Self::Over(Verdict::Cancelled) => "cancelled",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let verdicts = [Verdict::Succeeded, Verdict::Failed, Verdict::Cancelled];
        let all = [Self::Pending, Self::Running].into_iter().chain(verdicts.map(Self::Over));
        all.into_iter().find(|state| state.as_str() == text)
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Over(_))
    }
}

/// A record.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) id: ProcessId,
    pub(super) asked: Asked,
    pub(super) program: Program,
    pub(super) state: State,
    pub(super) attempt: u32,
    pub(super) max_attempts: u32,
    pub(super) registered_at: String,
    pub(super) started_at: Option<String>,
    pub(super) ended_at: Option<String>,
    pub(super) cancel_reason: Option<String>,
    pub(super) ended: Option<Ended>,
    pub(super) lease: Option<(Lease, Owner)>,
    pub(super) fencing_token: i64,
}

pub(super) fn get(connection: &Connection, id: &ProcessId) -> rusqlite::Result<Option<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM processes WHERE id = ?1");
    connection.prepare(&sql)?.query_row([id.as_str()], read).optional()
}

pub(super) fn select(
    connection: &Connection,
    rest: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM processes {rest}");
    connection.prepare(&sql)?.query_map(values, read)?.collect()
}

fn read(row: &SqlRow<'_>) -> rusqlite::Result<Record> {
    let bad =
        |at| move || rusqlite::Error::InvalidColumnType(at, "no value of ours".to_owned(), rusqlite::types::Type::Text);
    let number = |at| Ok::<u64, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.unwrap_or(0).try_into().unwrap_or(0));
    let lease = match (row.get::<_, Option<String>>(11)?, row.get(12)?, row.get(13)?) {
        (Some(owner), Some(token), Some(boot_id)) => {
            let lease = Lease { token, boot_id, claimed_at: number(14)?, expires_at: number(15)? };
            Some((lease, parse(&owner, 11)?))
        }
        _ => None,
    };
    Ok(Record {
        id: ProcessId::parse(&row.get::<_, String>(0)?).map_err(|_| bad(0)())?,
        asked: parse(&row.get::<_, String>(1)?, 1)?,
        program: parse(&row.get::<_, String>(2)?, 2)?,
        state: State::parse(&row.get::<_, String>(3)?).ok_or_else(bad(3))?,
        attempt: row.get(4)?,
        max_attempts: row.get(5)?,
        registered_at: row.get(6)?,
        started_at: row.get(7)?,
        ended_at: row.get(8)?,
        cancel_reason: row.get(9)?,
        ended: row.get::<_, Option<String>>(10)?.map(|ended| parse(&ended, 10)).transpose()?,
        lease,
        fencing_token: row.get(16)?,
    })
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, at: usize) -> rusqlite::Result<T> {
    let failed = |error| rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, Box::new(error));
    serde_json::from_str(text).map_err(failed)
}

pub(super) fn text(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
