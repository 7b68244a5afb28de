//! Logs of running daemons, kept below their cap.

use std::path::PathBuf;
use std::time::Duration;

use super::driver::{Driver, Shared};
use super::hosted::Running;
use super::work::Report;
use crate::process::log_file::trim;

/// How often the files are looked at while backends run: a soft cap may be passed by what is written meanwhile.
const EVERY: Duration = Duration::from_secs(10);

/// Gives the heads of logs back that have grown over their cap. Sleeps for good while nothing runs.
pub(super) async fn trim_logs(driver: Shared) {
    let launched = std::rc::Rc::clone(&driver.borrow().launched_one);
    loop {
        launched.notified().await;
        loop {
            tokio::time::sleep(EVERY).await;
            let running = driver.borrow().running_log_files();
            if running.is_empty() {
                break;
            }
            let job = move || {
                for (path, max_bytes) in running {
                    if let Err(error) = trim(&path, max_bytes) {
                        tracing::warn!(%error, log = %path.display(), "cannot trim a log");
                    }
                }
                Report::Done
            };
            if let Err(error) = driver.borrow().work(job, || Report::Done) {
                tracing::warn!(%error, "no thread to trim logs from");
            }
        }
    }
}

impl Driver {
    /// The log files of what runs, with their caps in bytes.
    fn running_log_files(&self) -> Vec<(PathBuf, u64)> {
        let running = self.hosted.values().filter_map(|hosted| hosted.running.as_ref());
        let file = |running: &Running| {
            let path = running.start.log.as_ref()?.file()?.to_owned();
            Some((path, running.definition.log.files().max_bytes))
        };
        running.filter_map(file).collect()
    }
}
