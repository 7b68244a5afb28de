//! Waits for files to be written to: the output of backends and processes. Reads none of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::Notify;

/// How often files are read when the kernel does not tell of changes.
const POLL: Duration = Duration::from_millis(200);

/// Tells of changes in the directories of files; where the kernel cannot, by the clock.
pub(super) struct Watch {
    inotify: Option<Arc<Inotify>>,
    watched: Vec<PathBuf>,
    changes: Arc<Changes>,
}

/// What the thread that reads the events has seen.
#[derive(Default)]
struct Changes {
    any: Notify,
    /// A file is new, which may be the output of a new start.
    created: AtomicBool,
}

impl Watch {
    pub(super) fn new() -> Self {
        let changes = Arc::new(Changes::default());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok().map(Arc::new);
        if let Some(inotify) = inotify.clone() {
            let changes = Arc::clone(&changes);
            thread::spawn(move || changes.read(&inotify));
        }
        Self { inotify, watched: Vec::new(), changes }
    }

    pub(super) fn add(&mut self, file: Option<&Path>) {
        let Some(directory) = file.and_then(Path::parent) else { return };
        if self.watched.iter().any(|path| path == directory) {
            return;
        }
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        if self.inotify.as_ref().is_some_and(|inotify| inotify.add_watch(directory, flags).is_err()) {
            self.inotify = None;
        }
        self.watched.push(directory.to_owned());
    }

    /// Waits for a change. Whether a file is new.
    pub(super) async fn changed(&self) -> bool {
        if self.inotify.is_some() {
            self.changes.any.notified().await;
        } else {
            tokio::time::sleep(POLL).await;
        }
        self.changes.created.swap(false, Ordering::Relaxed)
    }
}

impl Changes {
    /// Reads events for as long as the process lives.
    fn read(&self, inotify: &Inotify) {
        let new = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_Q_OVERFLOW;
        loop {
            match inotify.read_events() {
                Ok(events) if events.iter().any(|event| event.mask.intersects(new)) => {
                    self.created.store(true, Ordering::Relaxed);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            self.any.notify_one();
        }
    }
}
