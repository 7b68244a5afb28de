//! The journal's SQL: its schema, and how rows become columns and columns rows.

use broker_proto::{InstanceName, ServiceName};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, ffi, params, params_from_iter};
use semver::Version;

use crate::core::registry::BackendKey;
use crate::store::{Durability, Schema};

use super::{Document, Phase, Process, Row, Unreadable};

pub(super) const SCHEMA: Schema = Schema {
    what: "the journal",
    migrations: &["CREATE TABLE backends (
        instance TEXT NOT NULL,
        service TEXT NOT NULL,
        version TEXT NOT NULL,
        generation INTEGER NOT NULL,
        phase TEXT NOT NULL,
        memory TEXT NOT NULL,
        launch TEXT,
        pid INTEGER,
        start_time INTEGER,
        boot_id TEXT,
        pid_namespace INTEGER,
        endpoint TEXT,
        outcome TEXT,
        updated_at TEXT NOT NULL,
        PRIMARY KEY (instance, service, version)
    )"],
    durability: Durability::Processes,
};

/// The columns, in the order of every statement here.
const COLUMNS: usize = 14;

const SELECT: &str = "SELECT instance, service, version, generation, phase, memory, launch, pid, start_time, boot_id,
    pid_namespace, endpoint, outcome, updated_at FROM backends ORDER BY instance, service, version";

const UPSERT: &str = "INSERT INTO backends (instance, service, version, generation, phase, memory, launch, pid,
        start_time, boot_id, pid_namespace, endpoint, outcome, updated_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
    ON CONFLICT (instance, service, version) DO UPDATE SET generation = excluded.generation, phase = excluded.phase,
        memory = excluded.memory, launch = excluded.launch, pid = excluded.pid, start_time = excluded.start_time,
        boot_id = excluded.boot_id, pid_namespace = excluded.pid_namespace, endpoint = excluded.endpoint,
        outcome = excluded.outcome, updated_at = excluded.updated_at";

const DELETE: &str = "DELETE FROM backends WHERE instance = ?1 AND service = ?2 AND version = ?3";

/// What a journal's file holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) rows: Vec<Row>,
    pub(super) unreadable: Vec<RawRow>,
}

/// A row that is not understood, with its columns as they are.
#[derive(Debug, Clone)]
pub(super) struct RawRow {
    columns: Vec<Value>,
    pub(super) unreadable: Unreadable,
}

/// Fails, as damage does, if the file is broken inside or is somebody else's database.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    let said: String = connection.query_row("PRAGMA main.quick_check(1)", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(damage(said));
    }
    match connection.prepare(SELECT) {
        Ok(_) => Ok(()),
        // The only mistake that this statement can make is to be asked of another schema.
        Err(error @ rusqlite::Error::SqlInputError { .. }) => Err(damage(error.to_string())),
        Err(error) if error.sqlite_error().is_some_and(|sqlite| sqlite.extended_code == ffi::SQLITE_ERROR) => {
            Err(damage(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// An error that says that the content cannot be trusted.
pub(super) fn damage(what: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what))
}

pub(super) fn read(connection: &Connection) -> rusqlite::Result<Content> {
    let mut content = Content::default();
    let mut statement = connection.prepare(SELECT)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let columns = (0..COLUMNS).map(|column| row.get_ref(column).map(owned)).collect::<Result<Vec<_>, _>>()?;
        match understand(&columns) {
            Ok(row) => content.rows.push(row),
            Err(reason) => content.unreadable.push(raw(columns, reason)),
        }
    }
    Ok(content)
}

/// Writes rows, and deletes those of keys that have none; without any, the version of the schema again.
pub(super) fn write<'r>(
    connection: &mut Connection,
    changes: impl IntoIterator<Item = (&'r BackendKey, Option<&'r Row>)>,
) -> rusqlite::Result<()> {
    let now = now();
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut upsert = transaction.prepare(UPSERT)?;
    let mut is_empty = true;
    for (key, row) in changes {
        is_empty = false;
        match row {
            Some(row) => put(&mut upsert, row, &now)?,
            None => {
                let key = params![key.instance.as_str(), key.service.as_str(), key.version.to_string()];
                transaction.execute(DELETE, key)?;
            }
        }
    }
    drop(upsert);
    // A commit of nothing writes nothing.
    if is_empty {
        transaction.pragma_update(None, "user_version", SCHEMA.version())?;
    }
    transaction.commit()
}

/// Makes the table hold exactly these rows.
pub(super) fn rewrite<'r>(
    connection: &mut Connection,
    rows: impl IntoIterator<Item = &'r Row>,
    raw: impl IntoIterator<Item = &'r RawRow>,
) -> rusqlite::Result<()> {
    let now = now();
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute("DELETE FROM backends", [])?;
    let mut upsert = transaction.prepare(UPSERT)?;
    for row in rows {
        put(&mut upsert, row, &now)?;
    }
    for row in raw {
        upsert.execute(params_from_iter(&row.columns))?;
    }
    drop(upsert);
    transaction.commit()
}

/// For people: when a row was last written.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn put(upsert: &mut rusqlite::Statement<'_>, row: &Row, now: &str) -> rusqlite::Result<()> {
    let process = row.process.as_ref();
    upsert.execute(params![
        row.key.instance.as_str(),
        row.key.service.as_str(),
        row.key.version.to_string(),
        integer(row.generation),
        row.phase.word(),
        row.memory,
        row.launch.as_ref().map(ToString::to_string),
        process.map(|process| process.pid),
        process.map(|process| integer(process.start_time)),
        process.map(|process| &*process.boot_id),
        process.map(|process| integer(process.pid_namespace)),
        row.endpoint,
        row.outcome,
        now,
    ])?;
    Ok(())
}

/// SQLite's integers are signed. Nothing that is counted here comes near their end.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A value that is kept. Text that is no text is kept as its bytes.
fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Blob(bytes.to_owned()),
        },
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_owned()),
    }
}

/// The row that the columns are, or why they are none.
fn understand(columns: &[Value]) -> Result<Row, String> {
    let [instance, service, version, generation, phase, memory, launch, pid, start, boot, namespace, rest @ ..] =
        columns
    else {
        return Err("it lacks columns".to_owned());
    };
    let [endpoint, outcome, ..] = rest else { return Err("it lacks columns".to_owned()) };
    let word = text("phase", phase)?;
    let process = match (pid, start, boot, namespace) {
        (Value::Null, Value::Null, Value::Null, Value::Null) => None,
        (pid, start, boot, namespace) => Some(Process {
            pid: number("pid", pid)?,
            start_time: number("start_time", start)?,
            boot_id: text("boot_id", boot)?.into(),
            pid_namespace: number("pid_namespace", namespace)?,
        }),
    };
    Ok(Row {
        key: key(instance, service, version)?,
        generation: number("generation", generation)?,
        phase: Phase::parse(word).ok_or_else(|| format!("`{word}` is no phase that this broker knows"))?,
        memory: text("memory", memory)?.to_owned(),
        launch: optional("launch", launch)?.map(Document::from),
        process,
        endpoint: optional("endpoint", endpoint)?,
        outcome: optional("outcome", outcome)?,
    })
}

fn key(instance: &Value, service: &Value, version: &Value) -> Result<BackendKey, String> {
    let version = text("version", version)?;
    Ok(BackendKey {
        instance: InstanceName::parse(text("instance", instance)?).map_err(|error| error.to_string())?,
        service: ServiceName::parse(text("service", service)?).map_err(|error| error.to_string())?,
        version: Version::parse(version).map_err(|error| format!("`{version}` is no version: {error}"))?,
    })
}

fn text<'v>(column: &str, value: &'v Value) -> Result<&'v str, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(format!("its {column} is {} instead of text", kind(other))),
    }
}

fn optional(column: &str, value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        value => text(column, value).map(|text| Some(text.to_owned())),
    }
}

fn number<N: TryFrom<i64>>(column: &str, value: &Value) -> Result<N, String> {
    match value {
        Value::Integer(number) => N::try_from(*number).map_err(|_| format!("its {column} cannot be {number}")),
        other => Err(format!("its {column} is {} instead of a number", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Integer(_) | Value::Real(_) => "a number",
        Value::Text(_) => "text",
        Value::Blob(_) => "bytes",
    }
}

fn raw(columns: Vec<Value>, reason: String) -> RawRow {
    let column = |at: usize| columns.get(at).unwrap_or(&Value::Null);
    let shown = |at: usize| match column(at) {
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Null => String::new(),
    };
    let unreadable = Unreadable {
        instance: shown(0),
        service: shown(1),
        version: shown(2),
        key: key(column(0), column(1), column(2)).ok(),
        launch: text("launch", column(6)).ok().map(str::to_owned),
        pid: number("pid", column(7)).ok(),
        start_time: number("start_time", column(8)).ok(),
        reason,
    };
    RawRow { columns, unreadable }
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Inactive, Self::Intent, Self::Starting, Self::Ready, Self::Stopping, Self::Quarantined];

    fn word(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Intent => "intent",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Quarantined => "quarantined",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.word() == word)
    }
}
