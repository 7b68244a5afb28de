//! Groups, trees and strays of real processes, ended.

use super::*;
use crate::process::orphans::reap_orphans;
use crate::process::testing::{GENEROUS, Start, as_broker, wait_for};
use std::fs;

const KILLED: Exit = Exit::Signal { number: libc::SIGKILL, core_dumped: false };

fn end_start(start: &Start) -> Ended {
    let is_other = |_| false;
    let doomed = Doomed {
        main: start.spawned.pid,
        group: start.spawned.pid,
        pidfd: start.spawned.pidfd.as_fd(),
        start: Some(&start.facts),
        tree: Tree::default(),
        is_other: &is_other,
    };
    end(doomed, GENEROUS)
}

fn runs(pid: Pid) -> bool {
    identity::open_if(pid, |_| true).unwrap().is_some()
}

#[track_caller]
fn all_orphans_have_ended() {
    reap_orphans(|_| false);
    assert_eq!(orphans().unwrap(), []);
}

/// The numbers that the script printed, once there are so many.
fn printed(start: &Start, count: usize) -> Vec<Pid> {
    wait_for("the script has printed its numbers", || start.log().matches('\n').count() >= count);
    start.log().split_ascii_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

#[test]
fn a_running_backend_is_ended_with_its_group() {
    as_broker(|| {
        let start = Start::sh("sleep 1000 & echo $!; sleep 1000 & echo $!; wait");
        let children = printed(&start, 2);
        assert_eq!(end_start(&start), Ended { exit: KILLED, remaining: vec![] });
        assert!(!children.into_iter().any(runs));
        assert_eq!(stat(start.spawned.pid).unwrap(), None);
    });
}

#[test]
fn the_group_of_a_dead_main_is_ended_and_its_exit_is_told() {
    as_broker(|| {
        let start = Start::sh("(trap '' TERM HUP; sleep 1000) & echo $!; exit 7");
        let children = printed(&start, 1);
        assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
        assert!(children.iter().copied().all(runs));
        assert_eq!(end_start(&start), Ended { exit: Exit::Code(7), remaining: vec![] });
        assert!(!children.into_iter().any(runs));
        all_orphans_have_ended();
    });
}

#[test]
fn strays_in_sessions_of_their_own_are_ended() {
    as_broker(|| {
        // One is known by its log, one by its notify socket, one descends from the latter and shows nothing.
        let start = Start::sh(
            "setsid -f sh -c 'echo $$; exec sleep 1000'; \
             setsid -f sh -c 'echo $$; exec >/dev/null 2>&1; env -i setsid sleep 1000 & wait'; exit 1",
        );
        let strays = printed(&start, 2);
        assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
        assert!(strays.iter().copied().all(runs));
        assert_eq!(end_start(&start), Ended { exit: Exit::Code(1), remaining: vec![] });
        assert!(!strays.into_iter().any(runs));
        all_orphans_have_ended();
    });
}

#[test]
fn a_descendant_without_any_evidence_is_ended_by_the_tree() {
    as_broker(|| {
        let start = Start::sh("env -i setsid sh -c 'echo $$; exec >/dev/null 2>&1; exec sleep 1000' & wait");
        let strays = printed(&start, 1);
        wait_for("it shows no evidence", || start.facts.evidence(&stat(strays[0]).unwrap().unwrap()).is_none());
        let tree = Tree::snapshot(start.spawned.pid).unwrap();
        assert!(tree.alive().any(|pid| pid == strays[0]));
        assert_eq!(end_start(&start), Ended { exit: KILLED, remaining: vec![] });
        assert_eq!(tree.alive().count(), 0);
    });
}

#[test]
fn another_start_is_left_alone() {
    as_broker(|| {
        let other = Start::sh("setsid -f sh -c 'echo $$; exec sleep 1000'; exec sleep 1000");
        let others = printed(&other, 1);
        let start = Start::sh("exec sleep 1000");
        assert_eq!(end_start(&start).remaining, []);
        assert!(runs(other.spawned.pid) && runs(others[0]));
    });
}

#[test]
fn a_forked_away_main_is_ended_with_the_group_it_is_in() {
    as_broker(|| {
        // The session's leader exits; its child is the daemon, and no leader of anything.
        let start = Start::sh("setsid -f sh -c '(sleep 1000 & echo $!; exec sleep 1000) & echo $!; exit 0'");
        let pids = printed(&start, 2);
        assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
        reap(&start.spawned.pidfd).unwrap();
        wait_for("the session's leader is gone", || {
            reap_orphans(|pid| pids.contains(&pid));
            matches!(orphans().unwrap()[..], [orphan] if pids.contains(&orphan))
        });
        let main = orphans().unwrap()[0];
        let pidfd = crate::process::kernel::pidfd_open(main).unwrap();
        let is_other = |_| false;
        let group = stat(main).unwrap().unwrap().group;
        let doomed = Doomed {
            main,
            group,
            pidfd: pidfd.as_fd(),
            start: Some(&start.facts),
            tree: Tree::default(),
            is_other: &is_other,
        };
        assert_eq!(end(doomed, GENEROUS), Ended { exit: KILLED, remaining: vec![] });
        assert!(!pids.into_iter().any(runs));
    });
}

#[test]
fn a_backend_of_an_earlier_broker_is_ended_though_it_is_no_child_of_ours() {
    as_broker(|| {
        for dies_first in [false, true] {
            // The daemon and its orphans go to init, as they do when their broker dies.
            nix::sys::prctl::set_child_subreaper(false).unwrap();
            let script = "echo $$; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait";
            let start = Start::sh(&format!("setsid -f sh -c '{script}'; exec sleep 1000"));
            let pids = printed(&start, 3);
            let pidfd = crate::process::kernel::pidfd_open(pids[0]).unwrap();
            assert_eq!(peek(pidfd.as_fd()).map_err(|e| e.raw_os_error()), Err(Some(libc::ECHILD)));
            if dies_first {
                pidfd_signal(pidfd.as_fd(), Signal::SIGKILL).unwrap();
                assert!(wait_ended(pidfd.as_fd(), GENEROUS));
                assert!(runs(pids[1]) && runs(pids[2]));
            }
            let is_other = |pid| pid == start.spawned.pid;
            let doomed = Doomed {
                main: pids[0],
                group: pids[0],
                pidfd: pidfd.as_fd(),
                start: dies_first.then_some(&start.facts),
                tree: Tree::default(),
                is_other: &is_other,
            };
            assert_eq!(end(doomed, GENEROUS), Ended { exit: Exit::Unknown, remaining: vec![] });
            assert!(!pids.into_iter().any(runs));
            assert!(runs(start.spawned.pid));
        }
    });
}

#[test]
fn the_socket_of_a_killed_nginx_is_closed_when_end_returns() {
    if !std::path::Path::new("/usr/sbin/nginx").exists() {
        return;
    }
    as_broker(|| {
        let folder = tempfile::tempdir().unwrap();
        // The workers run as nobody.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let here = folder.path().display();
        let configuration = format!(
            "daemon off; pid {here}/pid; error_log stderr; worker_processes 4; events {{}} \
             http {{ access_log off; server {{ listen unix:{here}/socket; }} }}"
        );
        fs::write(folder.path().join("conf"), configuration).unwrap();
        let conf = folder.path().join("conf");
        let start = Start::program("/usr/sbin/nginx", &["-e", "stderr", "-c", conf.to_str().unwrap()]);
        let connect = || std::os::unix::net::UnixStream::connect(folder.path().join("socket"));
        wait_for("nginx serves", || connect().is_ok());
        let workers = || identity::all().unwrap().into_iter().filter(|stat| stat.parent == start.spawned.pid).count();
        wait_for("four workers", || workers() == 4);
        pidfd_signal(start.spawned.pidfd.as_fd(), Signal::SIGKILL).unwrap();
        assert!(wait_ended(start.spawned.pidfd.as_fd(), GENEROUS));
        connect().expect("the workers keep the socket of the killed master");
        assert_eq!(end_start(&start), Ended { exit: KILLED, remaining: vec![] });
        assert_eq!(connect().map_err(|e| e.kind()).err(), Some(io::ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_process_that_forks_without_end_is_ended() {
    as_broker(|| {
        let start = Start::sh("while :; do (sleep 1 & sleep 0.5) & sleep 0.002; done");
        wait_for("it has forked", || {
            reap_orphans(|_| false);
            Tree::snapshot(start.spawned.pid).unwrap().alive().count() > 3
        });
        assert_eq!(end_start(&start), Ended { exit: KILLED, remaining: vec![] });
        all_orphans_have_ended();
    });
}

#[test]
fn our_own_group_is_never_signalled() {
    for group in [getpgrp(), Pid::from_raw(0), Pid::from_raw(1)] {
        assert_eq!(signal(group, Signal::SIGKILL).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
    }
}
