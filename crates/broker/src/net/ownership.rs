//! Whose a listening socket is.
//!
//! A path or a chosen port can be taken by a stranger; ready means that the listener is the backend's own.

use std::fs;
use std::io;

use nix::unistd::Pid;

use crate::process::cgroup::Leaf;
use crate::process::forked::belongs;
use crate::process::identity;

/// Who holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// A process of the backend.
    Ours { pid: Pid },
    /// None of the backend's processes holds it. Who does is known if we may look.
    Stranger { pid: Option<Pid>, command: Option<String> },
    /// Some process of the backend does not let us look.
    Unknown,
}

/// A backend's processes, as far as they are known by number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backend<'a> {
    pub(crate) main: Pid,
    /// Others of the same start: the launcher of a daemon that forked away, even when it is gone; its other survivors.
    pub(crate) known: &'a [Pid],
    /// The cgroup that nobody else is in.
    pub(crate) cgroup: Option<&'a Leaf>,
}

impl Backend<'_> {
    /// Whether the process is part of the backend.
    pub(crate) fn includes(&self, pid: Pid) -> bool {
        belongs(pid, self.main, self.known) || self.cgroup.is_some_and(|cgroup| cgroup.holds(pid))
    }
}

/// Finds out who holds the socket with this inode. Usually one look at the main process; at worst all of `/proc`.
pub(crate) fn owner(inode: u64, backend: Backend<'_>) -> Ownership {
    let target = format!("socket:[{inode}]");
    let mut is_barred = false;
    let mut holds = |pid: Pid| match holds(pid, &target) {
        Ok(holds) => holds,
        Err(error) => {
            is_barred |= !identity::is_gone(&error);
            false
        }
    };
    if holds(backend.main) {
        return Ownership::Ours { pid: backend.main };
    }
    let all = identity::all().unwrap_or_default();
    let (ours, others): (Vec<Pid>, Vec<Pid>) =
        all.iter().map(|stat| stat.pid).filter(|pid| *pid != backend.main).partition(|pid| backend.includes(*pid));
    if let Some(pid) = ours.into_iter().find(|pid| holds(*pid)) {
        return Ownership::Ours { pid };
    }
    let stranger = others.into_iter().find(|pid| self::holds(*pid, &target).unwrap_or(false));
    match stranger {
        None if is_barred => Ownership::Unknown,
        pid => Ownership::Stranger { pid, command: pid.and_then(identity::command_name) },
    }
}

/// Finds any process that holds the socket with this inode, as far as we may look.
pub(crate) fn any_holder(inode: u64) -> Option<Pid> {
    let target = format!("socket:[{inode}]");
    identity::all().ok()?.into_iter().map(|stat| stat.pid).find(|pid| holds(*pid, &target).unwrap_or(false))
}

fn holds(pid: Pid, target: &str) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor that is closed meanwhile is not held.
        if let Ok(entry) = entry
            && fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == target)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::spawn::Listen;
    use crate::process::testing::{Start, as_broker, command, on_worker, wait_for};
    use std::sync::Arc;

    #[test]
    fn a_backend_owns_what_its_main_or_a_child_of_it_holds() {
        as_broker(|| {
            let folder = tempfile::tempdir().unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
            let socket = Arc::new(listener.into());
            // The shell keeps descriptor 3, or closes its own and leaves it to a child in another session.
            for script in ["exec sleep 1000", "setsid sleep 1000 & exec 3<&-; echo closed; wait"] {
                let log = folder.path().join("log");
                let mut command = command("/bin/sh", &["-c", script], &log);
                command.listen = vec![Listen { socket: Arc::clone(&socket), name: "x".into() }];
                let spawned = on_worker(command).unwrap();
                let closed = || fs::read_to_string(&log).unwrap() == "closed\n";
                wait_for("the script is there", || !script.contains("echo") || closed());
                let owner = owner(inode, Backend { main: spawned.pid, known: &[], cgroup: None });
                assert!(matches!(owner, Ownership::Ours { pid } if (pid == spawned.pid) != closed()), "{owner:?}");
            }
        });
    }

    #[test]
    fn a_stranger_is_named() {
        as_broker(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
            let start = Start::sh("exec sleep 1000");
            let stranger = owner(inode, Backend { main: start.spawned.pid, known: &[], cgroup: None });
            let command = identity::command_name(Pid::this());
            assert_eq!(stranger, Ownership::Stranger { pid: Some(Pid::this()), command });
            drop(listener);
            assert_eq!(any_holder(inode), None);
            let nobody = owner(inode, Backend { main: start.spawned.pid, known: &[], cgroup: None });
            assert_eq!(nobody, Ownership::Stranger { pid: None, command: None });
        });
    }
}
