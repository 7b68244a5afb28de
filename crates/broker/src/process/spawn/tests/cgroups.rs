//! Programs that begin in a cgroup. Where none can be made there is nothing to see; the trials of the whole broker say so.

use super::*;

#[test]
fn a_program_that_cannot_be_born_in_its_cgroup_moves_there_or_stays_and_says_why() {
    as_broker(|| {
        let folder = tempfile::tempdir().unwrap();
        let opened = || Some(Arc::new(File::open(folder.path()).unwrap().into()));
        let start = || {
            let mut command = command("/bin/sleep", &["1000"], &folder.path().join("log"));
            command.cgroup = opened();
            on_worker(command).unwrap()
        };
        // This is no cgroup at all.
        let stays = start();
        assert_eq!(stays.strayed.map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        assert!(!wait_ended(stays.pidfd.as_fd(), Duration::ZERO));
        // Nor is this, but a number written there leads into one.
        let Some(place) = crate::process::cgroup::testing::place() else { return };
        let leaf = place.leaf("x@1.0.0~default.1").unwrap();
        let procs = folder.path().join("cgroup.procs");
        std::os::unix::fs::symlink(leaf.folder().join("cgroup.procs"), procs).unwrap();
        let moved = start();
        assert!(moved.strayed.is_none(), "{:?}", moved.strayed);
        assert_eq!(leaf.members(), [moved.pid]);
        assert_eq!(leaf.end(GENEROUS), []);
        reap(&moved.pidfd).unwrap();
        leaf.remove();
        place.leave();
    });
}

#[test]
fn a_program_that_cannot_be_executed_leaves_its_cgroup_empty() {
    as_broker(|| {
        let Some(place) = crate::process::cgroup::testing::place() else { return };
        let leaf = place.leaf("x@1.0.0~default.1").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut command = command("/no/such/program", &[], &folder.path().join("log"));
        command.cgroup = Some(Arc::new(leaf.open().unwrap()));
        assert!(matches!(on_worker(command), Err(SpawnError::Execute { .. })));
        assert_eq!(leaf.members(), []);
        leaf.remove();
        assert!(!leaf.is_there());
        place.leave();
    });
}
