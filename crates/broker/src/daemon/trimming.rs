//! Logs of running daemons, kept below their cap. When they are looked at is decided in `core::trimming`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::now;
use super::driver::Driver;
use super::hosted::Running;
use super::work::Report;
use crate::core::trimming::Trimming;
use crate::process::log_file::trim;

/// The logs, as they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) trimming: Trimming,
    /// The lengths of all, added up.
    length: Arc<AtomicU64>,
}

impl Driver {
    /// Gives the heads of logs back that have grown over their cap, if it is time for that.
    pub(super) fn trim_logs(&mut self) {
        let Self { logs, hosted, pool, reports, .. } = self;
        let mut files = Vec::new();
        let is_due = logs.trimming.take_due(now(), || {
            files.extend(hosted.values().filter_map(|hosted| hosted.running.as_deref()).filter_map(log_file));
            !files.is_empty()
        });
        if !is_due {
            return;
        }
        let (length_before, reports) = (Arc::clone(&logs.length), reports.clone());
        let ran = pool.run(move || {
            let mut length = 0;
            for (path, max_bytes) in files {
                length += fs::symlink_metadata(&path).map_or(0, |file| file.len());
                if let Err(error) = trim(&path, max_bytes) {
                    tracing::warn!(%error, log = %path.display(), "cannot trim a log");
                }
            }
            // Of silence nothing is said: that would wake the broker.
            if length_before.swap(length, Ordering::Relaxed) != length {
                let _ = reports.blocking_send(Report::LogsGrow);
            }
        });
        if let Err(error) = ran {
            tracing::warn!(%error, "no thread to trim logs from");
        }
    }

    /// Daemons write, or one has begun to.
    pub(super) fn logs_grow(&mut self) {
        self.logs.trimming.busy(now());
        self.arm();
    }
}

/// The log file of what runs, with its cap in bytes.
fn log_file(running: &Running) -> Option<(PathBuf, u64)> {
    let path = running.start.log.as_ref()?.file()?.to_owned();
    Some((path, running.definition.log.files().max_bytes))
}
