//! Signals that come to a child while it shares the broker's memory.

use super::*;
use crate::process::identity;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn a_handler_of_the_broker_does_not_run_in_its_child() {
    static HANDLED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    as_broker(|| {
        // SAFETY: the handler makes no call at all. By default nothing comes of this signal.
        unsafe { libc::signal(libc::SIGWINCH, handle as *const () as libc::sighandler_t) };
        // The child cannot say who it is, and waits, while what it says goes into a pipe that is full.
        let (said, record) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let size = fcntl(&record, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let mut filler = vec![0; usize::try_from(size).unwrap()];
        assert_eq!(nix::unistd::write(&record, &filler).unwrap(), filler.len());
        let folder = tempfile::tempdir().unwrap();
        let mut command = command("/bin/true", &[], &folder.path().join("log"));
        command.record = Some(Arc::new(record));
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            done.send(spawn(&command).map(|spawned| spawned.pid)).unwrap();
            std::thread::park();
        });
        let child = || identity::all().unwrap().into_iter().find(|stat| stat.parent == Pid::this());
        wait_for("there is a child", || child().is_some());
        nix::sys::signal::kill(child().unwrap().pid, Signal::SIGWINCH).unwrap();
        assert_eq!(nix::unistd::read(&said, &mut filler).unwrap(), filler.len());
        result.recv_timeout(GENEROUS).unwrap().unwrap();
        assert_eq!(HANDLED.load(Ordering::Relaxed), 0);
        // Here it is handled.
        nix::sys::signal::raise(Signal::SIGWINCH).unwrap();
        assert_eq!(HANDLED.load(Ordering::Relaxed), 1);
    });
}
