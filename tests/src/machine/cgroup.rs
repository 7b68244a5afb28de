//! The cgroup that a machine takes for the root of all: one below our own, so that machines do not share theirs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroups::{own_cgroup, remove};
use crate::wait::BOUND;

const PAUSE: Duration = Duration::from_millis(2);

/// A cgroup of its own; when it is dropped its processes are killed, and it is removed.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below our own, with as many controllers as may be handed on.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let own = own_cgroup().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted"))?;
        // Where we are not at the root, our own presence forbids it: then the machine has no controllers.
        for controller in fs::read_to_string(own.join("cgroup.controllers"))?.split_whitespace() {
            let _ = fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        let path = own.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process in it, on kernels that can (5.14 and newer).
    pub(super) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        let began = Instant::now();
        while self.is_populated() && began.elapsed() < BOUND {
            thread::sleep(PAUSE);
        }
        let _ = remove(&self.path);
    }
}
