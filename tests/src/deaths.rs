//! Brokers that die before their time, where a test wants it or by a signal, and what they leave to the next one.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::broker::Broker;
use crate::programs::sibling;
use crate::wait::wait_until;

impl Broker {
    /// Starts brokerd again so that it dies at a failpoint, and does not wait for it: it may die before it answers.
    #[track_caller]
    pub fn start_armed(&mut self, failpoint: &str) {
        let mut command = self.daemon();
        command.env("BROKER_FAILPOINT", failpoint);
        self.spawn(command);
    }

    /// Waits until brokerd has died as by SIGKILL.
    ///
    /// # Panics
    /// It ends otherwise.
    #[track_caller]
    pub fn dies(&mut self) {
        let status = self.ended();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "brokerd ended with {status} instead of dying");
    }

    /// Kills brokerd, and waits until it is gone.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.dies();
    }

    /// Kills brokerd and starts it again.
    #[track_caller]
    pub fn kill_and_start_again(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Starts brokerd again; how long it took from its start to its first answer.
    #[track_caller]
    pub fn start_again_at_once(&mut self) -> Duration {
        self.wait_until_free();
        let began = Instant::now();
        let command = self.daemon();
        self.execute(command);
        self.wait_until_it_answers();
        began.elapsed()
    }

    /// Ends brokerd as its supervisor would, so that it leaves its backends to the next one, and starts that.
    ///
    /// # Panics
    /// It does not end well.
    #[track_caller]
    pub fn hand_over(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert!(status.success(), "brokerd ended with {status} at SIGTERM");
        self.start_again();
    }

    /// Waits until no brokerd of this folder is left, and no child of it either that has the locks: it is on its way to
    /// its program, and lets go of them a moment after it has become that.
    pub(crate) fn wait_until_free(&self) {
        let (program, lock) = (sibling("brokerd"), self.path("state/lock"));
        let folder = self.folder().display().to_string();
        let has_lock = |path: &Path| {
            let links = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
            links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == lock)
        };
        let is_in_the_way = |entry: fs::DirEntry| {
            let path = entry.path();
            // A reaper is the same program, and outlives the broker.
            let is_broker = |text: Vec<u8>| {
                let text = String::from_utf8_lossy(&text);
                text.contains(&folder) && !text.starts_with("broker-reaper")
            };
            let is_ours = fs::read_link(path.join("exe")).is_ok_and(|link| link == program)
                && fs::read(path.join("cmdline")).is_ok_and(is_broker);
            is_ours || has_lock(&path)
        };
        wait_until("no brokerd of this folder is left", || {
            !fs::read_dir("/proc").expect("it is mounted").flatten().any(is_in_the_way)
        });
    }
}
