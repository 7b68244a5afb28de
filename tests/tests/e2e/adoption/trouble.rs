//! A journal that cannot be written, is damaged, or is a newer broker's; and a second broker on the same folder.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use broker_tests::{Broker, Running, process_exists, sibling, trials, wait_until};

use super::agreement::assert_agreement;
use super::{KINDS, every_kind, journal, kind, pid_of, served, settled};

trials![
    a_damaged_journal_is_set_aside_and_what_lives_is_found_by_its_records,
    a_journal_that_vanishes_is_written_again,
    an_older_broker_refuses_a_newer_schema,
    a_second_broker_on_the_folder_says_who_holds_it,
];

fn a_damaged_journal_is_set_aside_and_what_lives_is_found_by_its_records() {
    let mut broker = every_kind().start();
    let pids = KINDS.map(|service| settled(&broker, service));
    KINDS.iter().for_each(|service| journal::wait_phase(&broker, service, "ready"));
    broker.kill();
    let path = journal::path(&broker);
    let size = fs::metadata(&path).expect("it is there").len();
    let file = File::options().write(true).open(&path).expect("our own");
    file.write_all_at(&vec![0x5a; usize::try_from(size).expect("small")], 0).expect("there is room");
    let _ = fs::remove_file(broker.path("state/journal.db-wal"));
    broker.start_again();
    for (service, pid) in KINDS.iter().zip(pids) {
        let (_, backend) = served(&broker, service);
        assert_eq!((pid_of(&backend), &backend["generation"]), (pid, &1.into()), "{backend}");
        assert_eq!(broker.starts(service).len(), 1);
    }
    assert_agreement(&broker, &KINDS);
    let names = fs::read_dir(broker.path("state")).expect("a folder").flatten().map(|entry| entry.file_name());
    let set_aside: Vec<_> = names.filter(|name| name.to_string_lossy().contains("damaged")).collect();
    assert!(!set_aside.is_empty(), "it is kept under another name");
    let report = &broker.status()["broker"]["journal"];
    assert!(report["trouble"].is_null(), "{report}");
    assert!(report["set_aside"].as_array().is_some_and(|all| !all.is_empty()), "{report}");
}

fn a_journal_that_vanishes_is_written_again() {
    let mut broker = every_kind().start();
    let pids = KINDS.map(|service| settled(&broker, service));
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let _ = fs::remove_file(broker.path("state").join(name));
    }
    let _ = broker.ctl(&["restart", "path"]).done();
    assert_agreement(&broker, &KINDS);
    broker.kill_and_start_again();
    assert_agreement(&broker, &KINDS);
    for (service, pid) in KINDS.iter().zip(pids).skip(1) {
        assert_eq!(pid_of(&broker.backend(service)), pid);
    }
}

fn an_older_broker_refuses_a_newer_schema() {
    let mut broker = Broker::start(&[&kind("path")]);
    let (pid, _) = served(&broker, "path");
    broker.kill();
    let connection = rusqlite::Connection::open(journal::path(&broker)).expect("a journal");
    let known: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a number");
    connection.pragma_update(None, "user_version", 99).expect("it can be written");
    drop(connection);
    let output = Running::start(&mut broker.daemon()).finish().exits(78);
    for part in ["journal", "newer", "99"] {
        assert!(output.stderr.contains(part), "`{part}` is missing: {}", output.stderr);
    }
    assert!(process_exists(pid), "it touches nothing");
    let connection = rusqlite::Connection::open(journal::path(&broker)).expect("a journal");
    connection.pragma_update(None, "user_version", known).expect("it can be written");
    drop(connection);
    broker.start_again();
    assert_eq!(pid_of(&broker.backend("path")), pid);
}

fn a_second_broker_on_the_folder_says_who_holds_it() {
    let broker = Broker::start(&[&kind("path")]);
    let (pid, _) = served(&broker, "path");
    let mut second = Command::new(sibling("brokerd"));
    second.arg("--socket").arg(broker.path("other/broker.sock")).arg("--state-dir").arg(broker.path("state"));
    let output = Running::start(&mut second).finish().exits(75);
    assert!(output.stderr.contains(&broker.pid().to_string()), "{}", output.stderr);
    assert_eq!(pid_of(&broker.backend("path")), pid);
    assert_agreement(&broker, &["path"]);
}

pub(crate) mod full {
    //! On a file system of its own, which is full.

    use broker_tests::Setup;
    use nix::unistd::Uid;

    use super::*;

    trials![a_broker_on_a_full_disk_serves_and_heals];

    /// Why these tests cannot run here, if they cannot.
    pub(crate) fn hindrance() -> Option<&'static str> {
        if !Uid::effective().is_root() {
            return Some("needs root");
        }
        let tried = std::process::Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).status();
        (!tried.is_ok_and(|status| status.success())).then_some("mount namespaces are not permitted")
    }

    fn a_broker_on_a_full_disk_serves_and_heals() {
        let setup = Setup::new();
        let state = setup.path("state");
        let script = format!("mkdir -p {state} && mount -t tmpfs -o size=2m none {state} && exec \"$@\"");
        let setup = setup.wrapper(&["unshare", "-m", "sh", "-c", &script, "sh"]);
        let broker = KINDS.iter().fold(setup, |setup, name| setup.service(&kind(name))).start();
        let trouble = || broker.status()["broker"]["journal"]["trouble"].clone();
        let (first, _) = served(&broker, "path");
        // Its folders are there before the disk is full.
        let (_, _) = served(&broker, "port");
        let _ = broker.ctl(&["stop", "port"]).done();
        assert!(trouble().is_null(), "{}", trouble());

        let inside = format!("/proc/{}/root{state}/fill", broker.pid());
        let mut fill = File::create(&inside).expect("the broker's own file system");
        for chunk in [64 << 10, 512, 1] {
            while fill.write_all(&vec![0; chunk]).is_ok() {}
        }
        // Whatever it writes now finds no room.
        let _ = broker.ctl(&["restart", "path"]).done();
        for _ in 0..3 {
            let (pid, backend) = served(&broker, "port");
            assert_eq!(pid_of(&backend), pid);
            let _ = broker.ctl(&["stop", "port"]).done();
        }
        let (second, _) = served(&broker, "path");
        assert_ne!(second, first);
        wait_until("it says that it is in trouble", || {
            let _ = broker.ctl(&["restart", "port"]).done();
            !trouble().is_null()
        });
        assert!(trouble()["what"].as_str().is_some_and(|what| what.contains("full")), "{}", trouble());
        assert!(broker.log().contains("the journal cannot be written"), "it is logged");

        drop(fill);
        fs::remove_file(&inside).expect("our own");
        wait_until("it heals by itself", || trouble().is_null());
        assert_eq!(served(&broker, "path").0, second);
        assert!(broker.log().contains("the journal is written again"), "it is logged");
    }
}
