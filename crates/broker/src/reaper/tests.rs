//! What a reaper begins and what it declines, and what it leaves in the folder.

use std::fs;

use super::*;
use crate::core::durable::{Ended, EndedBy};
use crate::process::testing::{as_broker, wait_for};

fn spec(script: &str) -> Spec {
    Spec {
        id: "x".to_owned(),
        fencing_token: 5,
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        environment: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        working_directory: "/".to_owned(),
        umask: 0o077,
        timeout_ms: None,
        stop_signal: libc::SIGTERM,
        stop_timeout_ms: 10_000,
        limits: Default::default(),
        record: String::new(),
    }
}

/// A folder with its spec, and the guard that removes it.
fn folder(spec: &Spec) -> (tempfile::TempDir, Folder) {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::new(&place.path().join("x"));
    fs::create_dir(folder.path()).unwrap();
    folder.write_spec(spec).unwrap();
    (place, folder)
}

fn begun(attempt: u32, token: i64) -> Attempt {
    let me = Identity::of(Pid::this()).unwrap().unwrap();
    let reaper = Who::from(me);
    let boot_id = boot_id().unwrap();
    Attempt {
        attempt,
        fencing_token: token,
        boot_id,
        reaper,
        command: None,
        started_at: utc_now(),
        mark: String::new(),
        cgroup: None,
    }
}

fn outcome(attempt: u32, ended_by: EndedBy) -> Outcome {
    let ended = Ended { ended_by, ..Ended::default() };
    Outcome { attempt, fencing_token: 5, ended_at: utc_now(), ended }
}

/// Whether the second attempt with token 7 may begin after these.
fn may(before: Option<Attempt>, outcome: Option<Outcome>) -> Result<(), String> {
    may_begin(&spec(""), before.as_ref(), outcome.as_ref(), 2, 7).map_err(|declined| declined.to_string())
}

#[test]
fn an_attempt_begins_after_one_that_was_lost_or_interrupted() {
    assert_eq!(may(None, None), Ok(()));
    assert_eq!(may(Some(begun(1, 6)), None), Ok(()));
    assert_eq!(may(Some(begun(1, 7)), Some(outcome(1, EndedBy::Interrupted))), Ok(()));
}

#[test]
fn an_attempt_is_declined_after_an_end_a_newer_owner_or_a_newer_attempt() {
    for ended_by in [EndedBy::None, EndedBy::Cancel, EndedBy::Timeout] {
        assert_eq!(may(Some(begun(1, 6)), Some(outcome(1, ended_by))), Err(Declined::Ended.to_string()));
    }
    assert_eq!(may(None, Some(outcome(2, EndedBy::Interrupted))), Err(Declined::Ended.to_string()));
    assert_eq!(may(Some(begun(1, 8)), None), Err(Declined::Stale.to_string()));
    assert_eq!(may(Some(begun(2, 6)), None), Err(Declined::Stale.to_string()), "an attempt is begun once");
    let of_an_earlier_process = may_begin(&spec(""), None, None, 1, 4);
    assert!(matches!(of_an_earlier_process, Err(Declined::Stale)));
}

#[test]
fn the_outcome_is_written_and_the_attempt_is_not_begun_again() {
    as_broker(|| {
        let (_place, folder) = folder(&spec("echo $BROKER_PROCESS_ID $BROKER_PROCESS_ATTEMPT; exit 3"));
        reap(&folder, 1, 6).unwrap();
        let outcome = folder.outcome().unwrap().unwrap();
        let expected = Ended { exit_code: Some(3), ..Ended::default() };
        assert_eq!((outcome.attempt, outcome.fencing_token, outcome.ended), (1, 6, expected));
        assert_eq!(fs::read_to_string(folder.stdout(1)).unwrap(), "x 1\n");
        let begun = folder.attempt().unwrap().unwrap();
        assert_eq!(begun.reaper.pid(), Pid::this());
        assert!(begun.command.is_some());
        assert!(matches!(reap(&folder, 1, 6), Err(Declined::Ended)));
        assert!(matches!(reap(&folder, 2, 9), Err(Declined::Ended)));
    });
}

#[test]
fn only_one_has_the_lock_and_the_command_does_not() {
    as_broker(|| {
        let (_place, folder) = folder(&spec("for fd in /proc/self/fd/*; do readlink $fd; done"));
        let lock = folder.try_lock().unwrap().unwrap();
        assert!(folder.try_lock().unwrap().is_none());
        assert!(matches!(reap(&folder, 1, 6), Err(Declined::Held)));
        drop(lock);
        reap(&folder, 1, 6).unwrap();
        let open = fs::read_to_string(folder.stdout(1)).unwrap();
        assert!(!open.contains("/lock"), "{open}");
    });
}

#[test]
fn what_was_cancelled_before_is_not_executed() {
    as_broker(|| {
        let (_place, folder) = folder(&spec("echo it runs"));
        folder.write_cancel("too late").unwrap();
        reap(&folder, 1, 6).unwrap();
        let outcome = folder.outcome().unwrap().unwrap();
        assert_eq!(outcome.ended, Ended { ended_by: EndedBy::Cancel, ..Ended::default() });
        assert!(!folder.stdout(1).exists());
    });
}

#[test]
fn a_folder_that_is_gone_is_not_made_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::new(&place.path().join("x"));
    assert!(matches!(reap(&folder, 1, 6), Err(Declined::Folder(_))));
    fs::create_dir(folder.path()).unwrap();
    assert!(matches!(reap(&folder, 1, 6), Err(Declined::Folder(_))), "without a spec there is nothing to run");
}

#[test]
fn a_command_in_uninterruptible_waits_is_killed_after_its_time() {
    as_broker(|| {
        let deaf = Spec { timeout_ms: Some(50), stop_timeout_ms: 50, ..spec("trap '' TERM; sleep 1000 & sleep 1000") };
        let (_place, folder) = folder(&deaf);
        reap(&folder, 1, 6).unwrap();
        let ended = folder.outcome().unwrap().unwrap().ended;
        assert_eq!((ended.signal, ended.ended_by), (Some(9), EndedBy::Timeout));
    });
}

#[test]
fn a_stop_signal_of_its_own_is_sent_instead() {
    as_broker(|| {
        let polite = "trap 'exit 4' USR1; while :; do sleep 0.01; done";
        let polite = Spec { timeout_ms: Some(300), stop_signal: libc::SIGUSR1, ..spec(polite) };
        let (_place, folder) = folder(&polite);
        reap(&folder, 1, 6).unwrap();
        let ended = folder.outcome().unwrap().unwrap().ended;
        assert_eq!((ended.exit_code, ended.ended_by), (Some(4), EndedBy::Timeout));
    });
}

#[test]
fn what_a_lost_attempt_left_is_ended_and_strangers_are_not() {
    as_broker(|| {
        let (_place, folder) = folder(&spec(""));
        let output = folder.stdout(1);
        let ours = crate::process::testing::on_worker(crate::process::testing::command(
            "/bin/sh",
            &["-c", "setsid sleep 1000 & exec sleep 1000"],
            &output,
        ))
        .unwrap();
        let stranger = crate::process::testing::Start::sh("exec sleep 1000");
        wait_for("both run", || {
            let all = crate::process::identity::all().unwrap();
            all.iter()
                .filter(|stat| fs::read_link(format!("/proc/{}/fd/1", stat.pid)).is_ok_and(|p| p == output))
                .count()
                == 2
        });
        let command = Identity::of(ours.pid).unwrap().map(Who::from);
        let ended = leftovers::end_leftovers(&folder, &Attempt { command, ..begun(1, 6) });
        assert!(ended.killed.len() == 2 && ended.are_gone, "{ended:?}");
        assert!(crate::process::kernel::has_ended(std::os::fd::AsFd::as_fd(&ours.pidfd)));
        assert!(!crate::process::kernel::has_ended(std::os::fd::AsFd::as_fd(&stranger.spawned.pidfd)));
        assert_eq!(leftovers::end_leftovers(&folder, &Attempt { command, ..begun(1, 6) }).killed, []);
    });
}
