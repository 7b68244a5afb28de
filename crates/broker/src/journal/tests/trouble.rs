//! The journal's bad days: damage, files that vanish or are replaced, a full disk.

use std::fs;
use std::path::PathBuf;

use nix::unistd::geteuid;

use super::super::disk::Begun;
use super::*;
use crate::process::testing::wait_for;

const GARBAGE: &str = "this is no database, whatever its name says\n";

/// A journal with twenty rows in its file.
fn twenty(path: &Path) -> Journal {
    let journal = open(path).journal;
    for number in 10..30 {
        journal.tell(told(&format!("i{number}"), 1, Phase::Starting));
        journal.tell(launch(&format!("i{number}"), 1, Some(number)));
    }
    assert!(journal.flush());
    journal
}

#[track_caller]
fn assert_has_twenty_and(path: &Path, more: &str) {
    let expected: Vec<_> =
        std::iter::once(more.to_owned()).chain((10..30).map(|number| format!("i{number}"))).collect();
    assert_eq!(instances(path), expected);
    let opened = open(path);
    let with_process = opened.rows.iter().filter(|row| row.process.is_some()).count();
    assert_eq!((opened.rows.len(), with_process, opened.unreadable.len()), (21, 20, 0));
}

/// Files in the folder whose name says that they are damaged, the logs beside them apart.
fn damaged(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_damaged = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.contains(".damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    entries.filter(is_damaged).collect()
}

#[test]
fn what_is_written_to_a_file_that_was_just_taken_away_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    drop(twenty(&path));
    let Begun { mut disk, content, .. } = Disk::begin(&path).unwrap();
    let row = content.rows.into_iter().next().unwrap();
    assert!(disk.is_as_we_left_it().unwrap());
    fs::remove_file(&path).unwrap();
    assert!(!disk.write([(&row.key, Some(&row))]).unwrap());
    assert!(!disk.is_as_we_left_it().unwrap(), "it is noticed for good");
}

#[test]
fn garbage_over_the_running_journal_is_set_aside_and_every_row_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = twenty(&path);
    fs::write(&path, GARBAGE.repeat(500)).unwrap();
    assert!(journal.settle(told("a", 1, Phase::Ready)));
    let health = journal.health();
    assert_eq!((health.trouble, health.rows), (None, 21));
    assert_eq!(health.set_aside, damaged(folder.path()));
    assert_eq!(health.set_aside.len(), 1);
    assert!(fs::read_to_string(&health.set_aside[0]).unwrap().starts_with(GARBAGE));
    drop(journal);
    assert_has_twenty_and(&path, "a");
}

#[test]
fn garbage_in_the_log_beside_the_file_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = twenty(&path);
    fs::write(folder.path().join("journal.db-wal"), GARBAGE).unwrap();
    assert!(journal.settle(told("a", 1, Phase::Ready)));
    drop(journal);
    assert_has_twenty_and(&path, "a");
}

#[test]
fn a_journal_that_is_damaged_when_it_is_opened_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    fs::write(&path, GARBAGE.repeat(500)).unwrap();
    let opened = open(&path);
    assert_eq!((opened.rows.len(), opened.unreadable.len()), (0, 0));
    assert!(opened.journal.settle(told("a", 1, Phase::Ready)));
    let health = opened.journal.health();
    assert_eq!((health.trouble, health.set_aside), (None, damaged(folder.path())));
    assert_eq!(instances(&path), ["a"]);
}

#[test]
fn pages_that_are_broken_inside_are_found_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    drop(twenty(&path));
    let mut bytes = fs::read(&path).unwrap();
    assert!(bytes.len() > 8192, "the table and its index have pages of their own");
    bytes[4096..].fill(0x55);
    fs::write(&path, bytes).unwrap();
    let opened = open(&path);
    assert_eq!(opened.rows, []);
    assert!(opened.journal.settle(told("a", 1, Phase::Ready)));
    assert_eq!(opened.journal.health().set_aside.len(), 1);
}

#[test]
fn somebody_elses_database_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE backends (thing TEXT); PRAGMA user_version = 1").unwrap();
    drop(other);
    let journal = open(&path).journal;
    assert!(journal.settle(told("a", 1, Phase::Ready)));
    assert_eq!(journal.health().set_aside.len(), 1);
}

#[test]
fn a_file_deleted_under_the_running_journal_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = twenty(&path);
    for (number, ends) in [["", "-wal", "-shm"].as_slice(), &[""], &["-wal"], &["-shm"]].into_iter().enumerate() {
        for end in ends {
            fs::remove_file(folder.path().join(format!("journal.db{end}"))).unwrap();
        }
        assert!(journal.settle(told("a", u64::try_from(number).unwrap(), Phase::Ready)));
        assert_eq!(instances(&path).len(), 21, "without {ends:?}");
    }
    fs::remove_file(&path).unwrap();
    assert!(journal.flush(), "a flush looks at the file even if nothing was told");
    assert_eq!(journal.health().trouble, None);
    drop(journal);
    assert_has_twenty_and(&path, "a");
    assert_eq!(damaged(folder.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_file_that_takes_the_place_of_the_journal_is_put_out_of_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("journal.db"), folder.path().join("other.db"));
    let journal = twenty(&path);
    let stranger = open(&other).journal;
    assert!(stranger.settle(told("stranger", 1, Phase::Ready)));
    drop(stranger);
    fs::rename(&other, &path).unwrap();
    assert!(journal.settle(told("a", 1, Phase::Ready)));
    let set_aside = journal.health().set_aside;
    assert_eq!(set_aside, damaged(folder.path()));
    drop(journal);
    assert_has_twenty_and(&path, "a");
}

#[test]
fn what_somebody_else_writes_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = twenty(&path);
    Connection::open(&path).unwrap().execute("DELETE FROM backends", []).unwrap();
    assert!(journal.settle(told("a", 1, Phase::Ready)));
    drop(journal);
    assert_has_twenty_and(&path, "a");
}

#[test]
fn a_folder_that_is_missing_is_trouble_until_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later/journal.db");
    let journal = open(&path).journal;
    let trouble = journal.health().trouble.unwrap();
    assert!(trouble.what.contains("cannot open the journal"), "{}", trouble.what);
    assert!(!journal.settle(told("a", 1, Phase::Ready)));
    assert!(!journal.flush());
    assert_eq!(journal.health().trouble.unwrap().since, trouble.since);
    fs::create_dir(folder.path().join("later")).unwrap();
    assert!(journal.flush(), "a flush does not wait for the pause");
    assert_eq!(journal.health().trouble, None);
    assert_eq!(instances(&path), ["a"]);
}

#[test]
fn rows_that_could_not_be_read_at_first_are_not_lost_by_healing() {
    let folder = tempfile::tempdir().unwrap();
    let (state, hidden) = (folder.path().join("state"), folder.path().join("hidden"));
    fs::create_dir(&state).unwrap();
    let path = state.join("journal.db");
    let journal = twenty(&path);
    journal.tell(told("a", 1, Phase::Ready));
    drop(journal);
    fs::rename(&state, &hidden).unwrap();
    let opened = open(&path);
    assert_eq!(opened.rows, []);
    let journal = opened.journal;
    journal.tell(told("i10", 5, Phase::Ready));
    journal.tell(forgotten("a"));
    assert!(!journal.flush());
    fs::rename(&hidden, &state).unwrap();
    wait_for("the journal heals by itself", || journal.health().trouble.is_none());
    assert_eq!(journal.health().rows, 20);
    let rows = on_disk(&path);
    assert_eq!(rows.len(), 20);
    assert_eq!(rows[0], ("i10".to_owned(), 5, "ready".to_owned(), None));
    assert_eq!(rows[1], ("i11".to_owned(), 1, "starting".to_owned(), Some(11)));
}

#[test]
fn a_lock_that_another_process_keeps_is_trouble_and_goes_by() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = twenty(&path);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(!journal.settle(told("a", 1, Phase::Ready)), "bounded, whatever the other does");
    assert!(journal.health().trouble.is_some());
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    wait_for("the journal heals by itself", || journal.health().trouble.is_none());
    drop(journal);
    assert_has_twenty_and(&path, "a");
}

#[tokio::test]
async fn who_can_go_on_without_the_disk_does_not_wait_until_it_counts_as_hung() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = twenty(&path);
    journal.tell(told("a", 1, Phase::Starting));
    journal.written().await;
    assert_has_twenty_and(&path, "a");

    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    journal.tell(told("a", 1, Phase::Ready));
    journal.written().await;
    assert!(journal.health().trouble.is_none(), "nothing is known of the disk yet");
    assert!(!journal.settle(told("a", 2, Phase::Starting)));
    journal.tell(told("a", 2, Phase::Ready));
    assert!(journal.0.shared.written().is_none(), "in trouble nobody waits");
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    wait_for("the journal heals by itself", || journal.health().trouble.is_none());
    journal.tell(told("a", 3, Phase::Ready));
    journal.written().await;
    assert_eq!(on_disk(&path)[0], ("a".to_owned(), 3, "ready".to_owned(), None));
}

#[test]
fn a_full_disk_is_trouble_until_there_is_room() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can mount a disk that is small enough to be filled");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount_point = folder.path().to_owned();
    // A thread of its own may have a view of its own of what is mounted; what it starts shares it.
    let body = move || {
        if let Err(error) = mount_small_disk(&mount_point) {
            println!("SKIPPED: nothing can be mounted here: {error}");
            return;
        }
        full_disk(&mount_point);
    };
    std::thread::spawn(body).join().unwrap();
}

fn full_disk(folder: &Path) {
    let path = folder.join("journal.db");
    let journal = twenty(&path);
    let fill = || {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(folder.join("ballast")).unwrap();
        std::iter::repeat(()).take_while(|()| std::io::Write::write_all(&mut file, &[0; 512]).is_ok()).count()
    };
    assert!(fill() > 0);
    // Room that the log has already goes on being used, for a while.
    let settled = (1..10_000).take_while(|&generation| journal.settle(told("a", generation, Phase::Ready))).count();
    assert!(settled < 9_999, "the disk is never full");
    let trouble = journal.health().trouble.unwrap();
    assert!(trouble.what.contains("full") || trouble.what.contains("I/O"), "{}", trouble.what);
    journal.tell(told("a", 20_000, Phase::Ready));
    assert!(!journal.settle(launch("a", 20_000, Some(7))), "at once, while the trouble lasts");
    assert!(!journal.flush());

    // The next broker, on the same full disk, knows what is in the file all the same.
    drop(journal);
    fill();
    let opened = open(&path);
    wait_for("what is wrong is noticed", || opened.journal.health().trouble.is_some());
    assert!(opened.rows.iter().filter(|row| row.process.is_some()).count() >= 20, "{}", opened.rows.len());
    let journal = opened.journal;
    journal.tell(forgotten("a"));
    assert!(!journal.settle(told("a", 30_000, Phase::Ready)));
    fs::remove_file(folder.join("ballast")).unwrap();
    wait_for("the journal heals by itself", || journal.health().trouble.is_none());
    assert_eq!(on_disk(&path)[0], ("a".to_owned(), 30_000, "ready".to_owned(), None));
    drop(journal);
    assert_has_twenty_and(&path, "a");
}

/// Gives this thread a view of its own of what is mounted, and in it a file system of 256 KiB in memory.
fn mount_small_disk(at: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    let at = std::ffi::CString::new(at.as_os_str().as_bytes())?;
    let none = std::ptr::null();
    // SAFETY: every pointer is null or a string that lives throughout the call.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
        check(libc::mount(c"small".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=256k".as_ptr().cast()))
    }
}
