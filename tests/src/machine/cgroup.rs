//! The cgroup that a machine takes for the root of all: one below our own, so that machines do not share theirs.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroups::{is_root, own_cgroup, remove};
use crate::wait::BOUND;

/// A cgroup of its own; when it is dropped its processes are killed, and it is removed.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below our own, with as many controllers as may be handed on. Those stay enabled at the hierarchy's root:
    /// what is taken back there another run may be using.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let own = own_cgroup().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted"))?;
        // Anywhere else we live in it ourselves. Then the kernel refuses most of them, and takes the others, which can be
        // threaded, for the wish that all below be threads of ours: nobody could be moved there any more.
        if is_root(&own) {
            for controller in fs::read_to_string(own.join("cgroup.controllers"))?.split_whitespace() {
                let _ = fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"));
            }
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

    /// Waits until nobody lives there, as the kernel tells it: a change of the file is an exceptional condition of it.
    fn wait_until_empty(&self) -> io::Result<()> {
        let mut events = File::open(self.path.join("cgroup.events"))?;
        let mut text = String::new();
        loop {
            text.clear();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if !text.contains("populated 1") {
                return Ok(());
            }
            let mut waits = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            let longest = PollTimeout::try_from(BOUND).map_err(io::Error::other)?;
            match poll(&mut waits, longest) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait_until_empty();
        let _ = remove(&self.path);
    }
}
