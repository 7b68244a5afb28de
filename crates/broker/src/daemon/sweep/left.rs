//! What an earlier broker wrote down, put together: the journal's rows, and start records that know more than they do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::core::backend::Memory;
use crate::core::registry::BackendKey;
use crate::daemon::ledger::{Remembered, Start};
use crate::daemon::places::Places;
use crate::journal::{Phase, Row};
use crate::process::log_place::LogPlace;
use crate::process::{log_file, start_record};

/// A backend as it was left.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) key: BackendKey,
    pub(super) memory: Memory,
    /// In which boot that was; not known where the start tells.
    pub(super) boot_id: Option<Arc<str>>,
    /// Of the definition that the memory was made for, if it is known.
    pub(super) fingerprint: Option<u64>,
    pub(super) start: Option<Start>,
    /// The journal says that nothing is left of it: its broker died before it decided what follows.
    pub(super) is_over: bool,
}

/// Puts all of it together. Records of starts that are over are removed.
pub(super) fn gather(rows: Vec<Row>, places: &Places) -> Vec<Left> {
    let mut records = newest_records(&rows, places);
    let mut all: Vec<Left> = rows
        .into_iter()
        .map(|row| {
            let record = records.remove(&row.key);
            of_row(row, record)
        })
        .collect();
    all.extend(records.into_values().map(|start| of_record(None, start)));
    all
}

/// The newest start that a record tells of, for each backend of which the journal does not know as much.
fn newest_records(rows: &[Row], places: &Places) -> HashMap<BackendKey, Start> {
    // A row that tells of no start that is understood, while something may run, knows less of that generation than a
    // record does; and so does one that tells of an intent and of no process.
    let is_told = |row: &&Row| {
        let is_whole = |start: Start| start.process.is_some() || start.record.is_none();
        understood(row).is_some_and(|start| start.is_ok_and(is_whole))
            || matches!(row.phase, Phase::Inactive | Phase::Quarantined)
    };
    let known: HashMap<&BackendKey, u64> = rows
        .iter()
        .map(|row| (&row.key, if is_told(&row) { row.generation } else { row.generation.saturating_sub(1) }))
        .collect();
    let expected: std::collections::HashSet<PathBuf> =
        rows.iter().filter(is_told).map(|row| places.start(&row.key, row.generation)).collect();
    let files = start_record::list(&places.starts()).unwrap_or_else(|error| {
        tracing::error!(%error, "the start records cannot be read");
        Vec::new()
    });
    let mut newest: HashMap<BackendKey, Start> = HashMap::new();
    for path in files.into_iter().filter(|path| !expected.contains(path) && start_record::start_of(path).is_none()) {
        let Some(start) = read(&path) else { continue };
        let is_older = known.get(&start.key).is_some_and(|generation| start.generation <= *generation)
            || newest.get(&start.key).is_some_and(|other| start.generation <= other.generation);
        if is_older {
            discard(&path);
        } else if let Some(older) = newest.insert(start.key.clone(), start) {
            older.record.iter().for_each(|path| discard(path));
        }
    }
    newest
}

/// Puts the log of a start in its place whose broker did not live to do so, nor to write down what the start became.
pub(super) fn settle_log(start: &Start) {
    let (None, Some(record)) = (&start.process, &start.record) else { return };
    let Some(log) = start.log.as_ref().and_then(LogPlace::file) else { return };
    let aside = start_record::aside(record);
    match log_file::settle_for_another(&aside, log) {
        Ok(()) => tracing::debug!(backend = %start.key, log = %log.display(), "put a log in its place"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(backend = %start.key, %error, log = %aside.display(), "a log is not in its place"),
    }
}

fn read(path: &Path) -> Option<Start> {
    let read = || -> Result<Start, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(path)?;
        Ok(serde_json::from_str(text.lines().next().unwrap_or_default())?)
    };
    match read() {
        Ok(start) => Some(Start { record: Some(path.to_owned()), ..start }),
        Err(error) => {
            // Its broker died while it wrote this, which is before it forks.
            tracing::warn!(%error, record = %path.display(), "removing a start record that is not whole");
            discard(path);
            None
        }
    }
}

pub(super) fn discard(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, record = %path.display(), "cannot remove the record of a start that is over");
    }
}

fn of_row(row: Row, newer: Option<Start>) -> Left {
    let remembered: Result<Remembered, _> = serde_json::from_str(&row.memory);
    let (memory, fingerprint, boot_id) = match remembered {
        Ok(Remembered { definition, boot_id, machine }) => (machine, Some(definition), Some(boot_id)),
        Err(error) => {
            tracing::error!(backend = %row.key, %error, "what the journal remembers of it is not understood");
            let reason = format!("what the journal remembers of it is not understood: {error}");
            let memory = Memory::of_a_start(row.generation, Default::default(), Duration::ZERO).quarantined(reason);
            (memory, None, None)
        }
    };
    match newer {
        Some(start) if start.generation == memory.generation => {
            return Left { key: row.key, memory, boot_id, fingerprint, start: Some(start), is_over: false };
        }
        Some(start) => {
            // Times of another boot are of another clock.
            let is_old = boot_id.is_some_and(|boot_id| boot_id != start.here.boot_id);
            let memory = if is_old { memory.in_another_boot() } else { memory };
            return of_record(Some((memory, fingerprint)), start);
        }
        None => {}
    }
    let is_over = row.launch.is_none() && row.phase == Phase::Stopping;
    let (memory, start) = match understood(&row) {
        None => (memory, None),
        Some(Ok(start)) => (memory, Some(start).filter(|start| start.generation == row.generation)),
        // Nor is there a record that would make it good.
        Some(Err(error)) if memory.is_live() => {
            let reason = format!("what the journal tells of its start is not understood: {error}");
            (memory.quarantined(reason), None)
        }
        Some(Err(_)) => (memory, None),
    };
    Left { key: row.key, memory, boot_id, fingerprint, start, is_over }
}

/// What a row tells of its start, if it tells of one.
fn understood(row: &Row) -> Option<serde_json::Result<Start>> {
    row.launch.as_ref().map(|launch| serde_json::from_str(&launch.to_string()))
}

fn of_record(known: Option<(Memory, Option<u64>)>, start: Start) -> Left {
    let ceiling = start.definition.readiness.hard_ceiling;
    let (memory, fingerprint) = match known {
        Some((memory, fingerprint)) => (memory.with_a_start(start.generation, start.began, ceiling), fingerprint),
        None => (Memory::of_a_start(start.generation, start.began, ceiling), None),
    };
    let memory = memory.past_its_ceiling(crate::daemon::clock::now());
    Left { key: start.key.clone(), memory, boot_id: None, fingerprint, start: Some(start), is_over: false }
}
