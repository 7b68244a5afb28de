//! The journal's file, as a person with `sqlite3` sees it, and as nobody but a test alters it.

use std::path::PathBuf;
use std::time::Duration;

use broker_tests::{Broker, wait_until};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Params};
use serde_json::Value;

/// A row, as far as tests care.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) generation: i64,
    pub(super) phase: String,
    pub(super) pid: Option<i64>,
}

pub(super) fn path(broker: &Broker) -> PathBuf {
    broker.path("state/journal.db")
}

/// The row of a service in the default instance.
pub(super) fn row(broker: &Broker, service: &str) -> rusqlite::Result<Option<Row>> {
    let journal = Connection::open_with_flags(path(broker), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    journal.busy_timeout(Duration::from_secs(5))?;
    let select = "SELECT generation, phase, pid FROM backends WHERE service = ?1 AND instance = 'default'";
    let read = |row: &rusqlite::Row<'_>| Ok(Row { generation: row.get(0)?, phase: row.get(1)?, pid: row.get(2)? });
    journal.query_row(select, [service], read).optional()
}

/// Waits until the file says so: it is written behind what happens.
#[track_caller]
pub(super) fn wait_phase(broker: &Broker, service: &str, phase: &str) {
    wait_until(format_args!("the journal says that {service} is {phase}"), || {
        row(broker, service).ok().flatten().is_some_and(|row| row.phase == phase)
    });
}

/// Waits until what the row remembers contains that.
#[track_caller]
pub(super) fn wait_text(broker: &Broker, service: &str, text: &str) {
    let remembered = || -> rusqlite::Result<String> {
        let journal = Connection::open_with_flags(path(broker), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        journal.query_row("SELECT memory FROM backends WHERE service = ?1", [service], |row| row.get(0))
    };
    wait_until(format_args!("the journal remembers {text}"), || remembered().is_ok_and(|found| found.contains(text)));
}

/// Alters the journal between two brokers.
///
/// # Panics
/// It changes nothing.
#[track_caller]
pub(super) fn alter(broker: &Broker, sql: &str, params: impl Params) {
    let journal = Connection::open(path(broker)).expect("a journal");
    let changed = journal.execute(sql, params).expect("sound SQL");
    assert!(changed > 0, "nothing was changed by {sql}");
}

/// Alters the documents of a row: each is handed over as what it is, and written back.
#[track_caller]
pub(super) fn alter_documents(broker: &Broker, service: &str, change: impl Fn(&mut Value, &mut Value)) {
    let journal = Connection::open(path(broker)).expect("a journal");
    let select = "SELECT memory, launch FROM backends WHERE service = ?1";
    let (memory, launch): (String, String) =
        journal.query_row(select, [service], |row| Ok((row.get(0)?, row.get(1)?))).expect("a row that runs");
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("a document");
    let (mut memory, mut launch) = (parse(&memory), parse(&launch));
    change(&mut memory, &mut launch);
    let update = "UPDATE backends SET memory = ?1, launch = ?2 WHERE service = ?3";
    journal.execute(update, [&memory.to_string(), &launch.to_string(), service]).expect("sound SQL");
}
