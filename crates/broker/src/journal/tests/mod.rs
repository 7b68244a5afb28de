//! The journal with real files: what is told is there for the next one. Helpers of the other tests, too.

mod measure;
mod trouble;

use std::path::Path;
use std::sync::Barrier;

use broker_proto::{InstanceName, ServiceName};
use rusqlite::Connection;
use semver::Version;

use super::*;

pub(super) fn key(instance: &str) -> BackendKey {
    BackendKey {
        instance: InstanceName::parse(instance).unwrap(),
        service: ServiceName::parse("redis").unwrap(),
        version: Version::new(7, 0, 15),
    }
}

pub(super) fn told(instance: &str, generation: u64, phase: Phase) -> Change {
    Change::Told { key: key(instance), generation, phase, memory: format!("{{\"generation\":{generation}}}") }
}

pub(super) fn launch(instance: &str, generation: u64, pid: Option<i32>) -> Change {
    let (launch, endpoint) = ("{\"argv\":[\"redis-server\"]}".to_owned().into(), "unix:/run/redis.sock".to_owned());
    Change::Launch { key: key(instance), generation, launch, endpoint, process: pid.map(process) }
}

pub(super) fn process(pid: i32) -> Process {
    Process { pid, start_time: 123_456, boot_id: "0b6b8c6e".into(), pid_namespace: 4_026_531_836 }
}

pub(super) fn ended(instance: &str, generation: u64, outcome: &str) -> Change {
    Change::Ended { key: key(instance), generation, outcome: outcome.to_owned() }
}

pub(super) fn forgotten(instance: &str) -> Change {
    Change::Forgotten { key: key(instance) }
}

#[track_caller]
pub(super) fn open(path: &Path) -> Opened {
    Journal::open(path).unwrap()
}

/// The rows by instance, as a second connection sees them: instance, generation, phase, pid.
pub(super) fn on_disk(path: &Path) -> Vec<(String, u64, String, Option<i32>)> {
    let connection = Connection::open(path).unwrap();
    let mut statement =
        connection.prepare("SELECT instance, generation, phase, pid FROM backends ORDER BY instance").unwrap();
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.try_into().unwrap(), row.get(2)?, row.get(3)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

pub(super) fn instances(path: &Path) -> Vec<String> {
    on_disk(path).into_iter().map(|(instance, ..)| instance).collect()
}

#[test]
fn what_is_told_is_known_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let opened = open(&path);
    assert_eq!((opened.rows, opened.unreadable), (Vec::new(), Vec::new()));
    let journal = opened.journal;
    journal.tell(told("a", 1, Phase::Starting));
    journal.tell(launch("a", 1, None));
    journal.tell(launch("a", 1, Some(42)));
    journal.tell(told("a", 1, Phase::Ready));
    journal.tell(told("b", 3, Phase::Starting));
    journal.tell(ended("b", 3, "{\"crashed\":true}"));
    journal.tell(told("b", 3, Phase::Quarantined));
    journal.tell(told("c", 1, Phase::Inactive));
    journal.tell(forgotten("c"));
    drop(journal);
    let mut rows = open(&path).rows;
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    let a = Row {
        key: key("a"),
        generation: 1,
        phase: Phase::Ready,
        memory: "{\"generation\":1}".to_owned(),
        launch: Some("{\"argv\":[\"redis-server\"]}".to_owned().into()),
        process: Some(process(42)),
        endpoint: Some("unix:/run/redis.sock".to_owned()),
        outcome: None,
    };
    let b = Row {
        key: key("b"),
        generation: 3,
        phase: Phase::Quarantined,
        memory: "{\"generation\":3}".to_owned(),
        launch: None,
        process: None,
        endpoint: None,
        outcome: Some("{\"crashed\":true}".to_owned()),
    };
    assert_eq!(rows, [a, b]);
}

#[test]
fn what_is_settled_is_committed_when_it_returns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = open(&path).journal;
    for generation in 1..=20 {
        assert!(journal.settle(told("a", generation, Phase::Starting)));
        assert!(journal.settle(launch("a", generation, Some(7))));
        assert_eq!(on_disk(&path), [("a".to_owned(), generation, "starting".to_owned(), Some(7))]);
    }
    assert!(journal.settle(forgotten("a")));
    assert_eq!(on_disk(&path), []);
    assert!(journal.settle(launch("a", 20, None)), "what is ignored is settled");
}

#[test]
fn what_is_told_quietly_is_written_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = open(&path).journal;
    assert!(journal.flush());
    let attempts = journal.0.shared.attempts();
    journal.tell_quietly(told("a", 1, Phase::Starting));
    assert_eq!((on_disk(&path), journal.behind()), (Vec::new(), 1));
    let intent = journal.begin(launch("a", 1, None));
    assert!(journal.settled(intent));
    assert_eq!(on_disk(&path), [("a".to_owned(), 1, "intent".to_owned(), None)]);
    assert_eq!(journal.0.shared.attempts(), attempts + 1);
    journal.tell_quietly(told("a", 1, Phase::Ready));
    journal.wake();
    crate::process::testing::wait_for("it is written", || on_disk(&path)[0].2 == "ready");
    journal.tell_quietly(told("b", 1, Phase::Starting));
    drop(journal);
    assert_eq!(instances(&path), ["a", "b"]);
}

#[test]
fn changes_of_one_key_become_one_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = open(&path).journal;
    assert!(journal.flush());
    // As long as somebody else holds the file's lock, the writer waits, and changes gather.
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    journal.tell(told("a", 1, Phase::Starting));
    for generation in 2..=5_000 {
        journal.tell(told("a", generation, Phase::Ready));
        journal.tell(told("b", generation, Phase::Ready));
    }
    assert_eq!(journal.behind(), 2);
    other.execute_batch("ROLLBACK").unwrap();
    let before = journal.0.shared.attempts();
    assert!(journal.flush());
    assert!(journal.0.shared.attempts() <= before + 3, "thousands of changes are a few commits");
    let row = |instance: &str| (instance.to_owned(), 5_000, "ready".to_owned(), None);
    assert_eq!(on_disk(&path), [row("a"), row("b")]);
}

#[test]
fn twenty_threads_settle_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = open(&path).journal;
    let gate = Barrier::new(20);
    std::thread::scope(|scope| {
        for number in 0..20 {
            let (journal, gate) = (journal.clone(), &gate);
            scope.spawn(move || {
                gate.wait();
                for generation in 1..=10 {
                    assert!(journal.settle(told(&format!("i{number}"), generation, Phase::Ready)));
                }
            });
        }
    });
    let rows = on_disk(&path);
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|(_, generation, ..)| *generation == 10), "{rows:?}");
}

#[test]
fn a_row_that_is_not_understood_stays_until_a_change_of_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = open(&path).journal;
    for instance in ["a", "b", "c", "d"] {
        journal.tell(told(instance, 1, Phase::Starting));
        journal.tell(launch(instance, 1, Some(42)));
    }
    drop(journal);
    let by_hand = Connection::open(&path).unwrap();
    by_hand
        .execute_batch(
            "UPDATE backends SET phase = 'paused' WHERE instance = 'a';
             UPDATE backends SET instance = 'No Name' WHERE instance = 'b';
             UPDATE backends SET boot_id = NULL, memory = x'ff' WHERE instance = 'c';",
        )
        .unwrap();
    drop(by_hand);
    let opened = open(&path);
    assert_eq!(opened.rows.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), [key("d")]);
    let reasons: Vec<_> = opened.unreadable.iter().map(|row| (row.instance.as_str(), row.reason.as_str())).collect();
    let [("No Name", b), ("a", a), ("c", c)] = reasons[..] else { panic!("{reasons:?}") };
    assert_eq!(a, "`paused` is no phase that this broker knows");
    assert!(b.contains("No Name"), "{b}");
    assert_eq!(c, "its boot_id is empty instead of text");
    let first = &opened.unreadable[1];
    assert_eq!((first.key.as_ref(), first.pid, first.start_time), (Some(&key("a")), Some(42), Some(123_456)));
    assert!(first.launch.is_some());
    assert_eq!(opened.unreadable[0].key, None);
    assert_eq!(opened.journal.health().rows, 4);
    // What concerns others leaves it, and so does what is known of it only if its row is understood.
    let journal = opened.journal;
    journal.tell(told("d", 2, Phase::Ready));
    journal.tell(launch("a", 1, None));
    assert!(journal.settle(ended("a", 1, "late")));
    assert_eq!(on_disk(&path)[1], ("a".to_owned(), 1, "paused".to_owned(), Some(42)));
    // Nor does it go when the whole file is written anew.
    std::fs::remove_file(&path).unwrap();
    assert!(journal.flush());
    assert_eq!(instances(&path), ["No Name", "a", "c", "d"]);
    assert_eq!(on_disk(&path)[1], ("a".to_owned(), 1, "paused".to_owned(), Some(42)));
    assert!(journal.settle(told("a", 2, Phase::Quarantined)));
    assert!(journal.settle(forgotten("c")));
    assert_eq!(instances(&path), ["No Name", "a", "d"]);
    assert_eq!(on_disk(&path)[1], ("a".to_owned(), 2, "quarantined".to_owned(), None));
}

#[test]
fn the_file_of_a_newer_broker_is_refused_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    drop(open(&path));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = Journal::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }), "{error}");
    let version = Connection::open(&path).unwrap().query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0));
    assert_eq!(version, Ok(7));
}
