//! The bare servers that the broker is compared with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::children::Process;
use crate::client::{try_exchange, wait_until};
use crate::folder::Folder;

/// What an echo server is sent, and sends back.
pub(crate) const WORDS: [u8; 64] = [b'.'; 64];

/// An echo server in a folder of its own.
#[derive(Debug)]
pub(crate) struct Echo {
    process: Process,
    socket: PathBuf,
    _folder: Folder,
}

impl Echo {
    /// Starts it and waits until it answers.
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let socket = folder.join("echo.sock");
        let mut command = Command::new(program);
        command.arg(&socket).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::start(command, Signal::SIGKILL);
        wait_until("the echo server answers", || {
            assert!(!process.has_ended(), "{} ended at once", program.display());
            try_exchange(&socket, &WORDS, WORDS.len()).is_ok()
        });
        Self { process, socket, _folder: folder }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }
}
