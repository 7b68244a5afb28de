//! Records as two brokers see them: claims, fences, ends that are written once.

use std::time::Duration;

use broker_proto::{ProcessSpec, Work};

use super::super::claims::Swept;
use super::super::record::Owner;
use super::*;
use crate::core::durable::EndedBy;
use crate::core::lease::{Me, Seen};

/// A broker on a store; several share the folder.
fn broker(store: &std::path::Path, name: &str, lease: Duration) -> Records {
    let me = Me { token: name.to_owned(), boot_id: "boot".to_owned() };
    let owner = Owner { pid: 1, start_time: 1, boot_id: "boot".to_owned(), pid_namespace: None };
    Records::open(&Place { store: store.to_owned(), me, owner, lease }).unwrap()
}

fn registration(id: &str) -> Registration {
    let spec = ProcessSpec {
        id: Some(id.to_owned()),
        work: Work::Command { argv: vec!["true".to_owned()] },
        environment: Vec::new(),
        working_directory: None,
        timeout_ms: None,
        max_attempts: None,
    };
    Registration::parse(spec, |_| unreachable!("no service")).unwrap()
}

fn register(records: &mut Records, id: &str, claims: bool) -> Record {
    let (record, created) = records.register(&registration(id), claims, |_| Ok(()), || Ok(())).unwrap();
    assert!(created);
    record
}

const HOUR: Duration = Duration::from_secs(3600);
const ENDED: Ended = Ended { exit_code: Some(0), signal: None, ended_by: EndedBy::None, reason: None };

fn finish(records: &mut Records, record: &Record) -> bool {
    records.finish(&record.id, record.fencing_token, 1, Verdict::Succeeded, &ENDED, "then").unwrap()
}

#[test]
fn a_process_is_registered_once() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (broker(store.path(), "a", HOUR), broker(store.path(), "b", HOUR));
    let record = register(&mut one, "x", true);
    assert_eq!((record.state, record.attempt, record.max_attempts), (State::Pending, 0, 3));
    let (again, created) = other.register(&registration("x"), true, |_| unreachable!("it has one"), || Ok(())).unwrap();
    assert!(!created);
    assert_eq!(again.lease.unwrap().0.token, "a");
}

#[test]
fn a_folder_that_cannot_be_made_leaves_no_record() {
    let store = tempfile::tempdir().unwrap();
    let mut records = broker(store.path(), "a", HOUR);
    let failed = records.register(&registration("x"), true, |_| Err(RecordError::Busy), || Ok(()));
    assert!(matches!(failed, Err(RecordError::Busy)));
    assert!(records.get(&registration("x").id).unwrap().is_none());
}

#[test]
fn a_live_lease_is_respected_and_a_dead_owners_is_not() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (broker(store.path(), "a", HOUR), broker(store.path(), "b", HOUR));
    let first = register(&mut one, "x", true);
    let swept = other.sweep(10, &mut |_| Seen::Alive).unwrap();
    assert!(swept.ours.is_empty() && swept.look_again_at.is_some() && swept.owners.len() == 1, "{swept:?}");
    let swept = other.sweep(10, &mut |_| Seen::Dead).unwrap();
    assert_eq!(swept.ours.len(), 1);
    assert!(swept.ours[0].fencing_token > first.fencing_token);
    let swept = other.sweep(10, &mut |_| unreachable!("nobody asks whether he lives himself")).unwrap();
    assert_eq!((swept.ours.len(), swept.renew_at.is_some()), (1, true));
}

#[test]
fn a_stale_owner_changes_nothing() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (broker(store.path(), "a", Duration::ZERO), broker(store.path(), "b", HOUR));
    let stale = register(&mut one, "x", true);
    let fresh = other.sweep(10, &mut |_| Seen::Alive).unwrap().ours.remove(0);
    assert!(!one.begin(&stale.id, stale.fencing_token, 1).unwrap());
    assert!(!finish(&mut one, &stale));
    assert_eq!(one.renew().unwrap(), 0);
    assert!(other.begin(&fresh.id, fresh.fencing_token, 1).unwrap());
    assert!(finish(&mut other, &fresh));
    assert!(!finish(&mut other, &fresh), "an end is written once");
    let record = one.get(&fresh.id).unwrap().unwrap();
    assert_eq!(
        (record.state, record.ended, record.lease.is_none()),
        (State::Over(Verdict::Succeeded), Some(ENDED), true)
    );
}

#[test]
fn only_as_many_are_claimed_as_there_is_room_for_and_the_oldest_first() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (broker(store.path(), "a", HOUR), broker(store.path(), "b", HOUR));
    for number in 0..5 {
        register(&mut one, &format!("x{number}"), false);
    }
    let ids = |swept: &Swept| swept.ours.iter().map(|record| record.id.to_string()).collect::<Vec<_>>();
    let swept = one.sweep(2, &mut |_| Seen::Alive).unwrap();
    assert_eq!((ids(&swept), swept.more), (vec!["x0".to_owned(), "x1".to_owned()], true));
    let swept = other.sweep(9, &mut |_| Seen::Alive).unwrap();
    assert_eq!((ids(&swept).len(), swept.more), (3, false));
}

#[test]
fn leases_are_renewed_and_given_up_together() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (broker(store.path(), "a", HOUR), broker(store.path(), "b", HOUR));
    let first = register(&mut one, "x", true);
    register(&mut one, "y", true);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(one.renew().unwrap(), 2);
    let renewed = one.get(&first.id).unwrap().unwrap().lease.unwrap().0;
    assert!(renewed.expires_at > first.lease.unwrap().0.expires_at);
    assert_eq!(one.release().unwrap(), 2);
    assert_eq!(other.sweep(10, &mut |_| Seen::Alive).unwrap().ours.len(), 2);
}

#[test]
fn a_pending_process_is_cancelled_for_good_and_a_running_one_is_asked() {
    let store = tempfile::tempdir().unwrap();
    let (mut owner, mut other) = (broker(store.path(), "a", HOUR), broker(store.path(), "b", HOUR));
    let pending = register(&mut owner, "x", true);
    assert!(matches!(other.cancel(&pending.id, "why").unwrap(), Cancelled::Ended(record) if record.state.is_over()));
    assert!(!owner.begin(&pending.id, pending.fencing_token, 1).unwrap(), "its owner does not start it any more");
    assert!(matches!(other.cancel(&pending.id, "why").unwrap(), Cancelled::Over(_)));
    let running = register(&mut owner, "y", true);
    assert!(owner.begin(&running.id, running.fencing_token, 1).unwrap());
    for reason in ["the first", "the second"] {
        let Cancelled::Asked(record) = other.cancel(&running.id, reason).unwrap() else { panic!("it runs") };
        assert_eq!(record.cancel_reason.as_deref(), Some("the first"));
    }
    assert!(matches!(other.cancel(&registration("z").id, "why").unwrap(), Cancelled::Unknown));
}

#[test]
fn only_what_has_ended_is_forgotten() {
    let store = tempfile::tempdir().unwrap();
    let mut records = broker(store.path(), "a", HOUR);
    let (over, open, held) =
        (register(&mut records, "a", true), register(&mut records, "b", true), register(&mut records, "c", true));
    assert!(finish(&mut records, &over) && finish(&mut records, &held));
    let ids = [&over, &open, &held].map(|record| record.id.clone());
    let remove = |id: &ProcessId| if *id == held.id { Err(RecordError::Busy) } else { Ok(()) };
    let forgotten = records.forget(&ids, remove).unwrap();
    assert_eq!(
        forgotten.iter().map(|(id, result)| (id.as_str(), result.is_ok())).collect::<Vec<_>>(),
        [("a", true), ("c", false)]
    );
    assert_eq!(records.ids().unwrap(), ["c", "b"]);
}

#[test]
fn a_restored_process_is_looked_at_with_a_token_above_all_earlier_ones() {
    let store = tempfile::tempdir().unwrap();
    let mut records = broker(store.path(), "a", HOUR);
    let token = register(&mut records, "other", false).fencing_token + 1000;
    records.restore(&registration("x"), token, Some((2, "then")), Some("why")).unwrap();
    let swept = records.sweep(0, &mut |_| Seen::Unknown).unwrap();
    let [record] = &swept.ours[..] else { panic!("{swept:?}") };
    assert!(record.fencing_token > token);
    assert_eq!((record.state, record.attempt, record.cancel_reason.as_deref()), (State::Running, 2, Some("why")));
}
