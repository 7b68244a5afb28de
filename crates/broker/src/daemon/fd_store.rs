//! The service manager's FD store: sockets that it keeps for the next broker.
//!
//! Owns what is said about it. One thread sends every message in the order in which they were given: so a manager that is
//! slow stalls nobody who does not wait for it, and a name that is used again is not forgotten. Nothing here needs the
//! manager to do as it is told: what it does not keep the next broker makes anew, as it does where there is none.

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use sd_notify::NotifyState;

use super::places::LISTENER;

/// All names come back in one environment variable, which the kernel passes on up to 128 KiB (`MAX_ARG_STRLEN`): with
/// more the next broker could not be executed. The manager has some names of its own.
const NAMES_BYTES_MAX: usize = 120 * 1024;

/// To pass one descriptor on systemd needs two numbers below the limit of open files that the broker is started with: with
/// more, again, there would be no next broker. Those are left for sockets that the manager listens on itself.
const NUMBERS_EACH: usize = 2;
const NUMBERS_LEFT: usize = 64;

/// How long the manager may take to work off what it was told, in milliseconds, where somebody waits for that.
const SETTLE_MS: u16 = 5000;

/// The store, as everybody holds it.
#[derive(Debug, Clone)]
pub(super) struct FdStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Whether there is a manager.
    exists: bool,
    /// To the thread, once there was something to say; `None` if there is no thread to be had.
    orders: OnceLock<Option<Sender<Order>>>,
    /// What can still be kept.
    room: Mutex<Room>,
    /// The broker goes, and leaves everything to the next one.
    is_left: AtomicBool,
    /// A listening socket was forgotten, which the manager may still have.
    is_unsettled: AtomicBool,
}

#[derive(Debug)]
struct Room {
    descriptors: usize,
    bytes: usize,
}

#[derive(Debug)]
enum Order {
    Keep {
        name: String,
        descriptor: OwnedFd,
        done: SyncSender<bool>,
    },
    Forget {
        name: String,
    },
    /// Wait until the manager has worked off everything so far, if that is wanted, and answer.
    Settle {
        with_manager: bool,
        done: SyncSender<()>,
    },
}

/// Something that the manager keeps. It is told to forget it when this goes, unless the broker leaves it behind.
#[derive(Debug)]
pub(super) struct Stored {
    store: FdStore,
    name: String,
}

impl FdStore {
    /// The store of the manager that asked to be told of this broker, if one did, and started it with that limit of open
    /// files.
    pub(super) fn of_manager(nofile_soft: u64) -> Self {
        let numbers = usize::try_from(nofile_soft).unwrap_or(usize::MAX);
        let descriptors = numbers.saturating_sub(NUMBERS_LEFT) / NUMBERS_EACH;
        Self(Arc::new(Shared {
            exists: env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty()),
            orders: OnceLock::new(),
            room: Mutex::new(Room { descriptors, bytes: NAMES_BYTES_MAX }),
            is_left: AtomicBool::new(false),
            is_unsettled: AtomicBool::new(false),
        }))
    }

    /// Has a descriptor kept under a name. Returns once the message is sent, so that it comes to the next broker even if
    /// this one dies now.
    pub(super) fn keep(&self, name: &str, descriptor: impl AsFd) -> Option<Stored> {
        if !self.0.exists {
            return None;
        }
        let stored = self.enter(name)?;
        let keep = || -> io::Result<bool> {
            let descriptor = descriptor.as_fd().try_clone_to_owned()?;
            let (done, is_done) = sync_channel(1);
            self.order(Order::Keep { name: name.to_owned(), descriptor, done });
            Ok(is_done.recv().unwrap_or(false))
        };
        match keep() {
            Ok(true) => Some(stored),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(%error, name, "cannot be given to the service manager to keep");
                None
            }
        }
    }

    /// Takes note of what the manager kept already.
    pub(super) fn kept(&self, name: &str) -> Option<Stored> {
        let stored = self.0.exists.then(|| self.enter(name)).flatten();
        if stored.is_none() {
            self.forget(name);
        }
        stored
    }

    /// Has everything forgotten that is kept under a name.
    pub(super) fn forget(&self, name: &str) {
        if self.0.exists {
            if name.ends_with(LISTENER) {
                self.0.is_unsettled.store(true, Ordering::Relaxed);
            }
            self.order(Order::Forget { name: name.to_owned() });
        }
    }

    /// From now on nothing is forgotten any more.
    pub(super) fn leave_behind(&self) {
        self.0.is_left.store(true, Ordering::Relaxed);
    }

    /// Waits until the manager has closed what it was told to forget.
    pub(super) fn settle(&self) {
        self.0.is_unsettled.store(false, Ordering::Relaxed);
        self.wait(true);
    }

    /// Waits until no address is taken any more by a listening socket that was forgotten.
    pub(super) fn settle_listeners(&self) {
        if self.0.is_unsettled.load(Ordering::Relaxed) {
            self.settle();
        }
    }

    /// Waits until all that was to be said is said.
    pub(super) fn flush(&self) {
        if self.0.orders.get().is_some() {
            self.wait(false);
        }
    }

    fn wait(&self, with_manager: bool) {
        let (done, is_done) = sync_channel(1);
        self.order(Order::Settle { with_manager, done });
        // A thread that is gone says nothing any more, which is all the same now.
        let _ = is_done.recv();
    }

    fn enter(&self, name: &str) -> Option<Stored> {
        let bytes = name.len() + 1;
        let mut room = self.0.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.descriptors == 0 || room.bytes < bytes {
            tracing::debug!(name, "the service manager keeps as many sockets as can come back");
            return None;
        }
        room.descriptors -= 1;
        room.bytes -= bytes;
        drop(room);
        Some(Stored { store: self.clone(), name: name.to_owned() })
    }

    fn order(&self, order: Order) {
        let orders = self.0.orders.get_or_init(|| {
            let (orders, ordered) = channel();
            match thread::Builder::new().name("fd-store".to_owned()).spawn(move || say(&ordered)) {
                Ok(_) => Some(orders),
                Err(error) => {
                    tracing::warn!(%error, "no thread to talk to the service manager; it keeps nothing");
                    None
                }
            }
        });
        if let Some(orders) = orders {
            let _ = orders.send(order);
        }
    }
}

impl Stored {
    /// Whether it is still kept when this is dropped: the broker leaves it to the next one.
    pub(super) fn is_left(&self) -> bool {
        self.store.0.is_left.load(Ordering::Relaxed) || thread::panicking()
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let mut room = self.store.0.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.descriptors += 1;
        room.bytes += self.name.len() + 1;
        drop(room);
        if !self.is_left() {
            self.store.forget(&self.name);
        }
    }
}

/// The thread that says everything.
fn say(orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Keep { name, descriptor, done } => {
                let state = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
                let said = tell(&name, &state, &[descriptor.as_fd()]);
                let _ = done.send(said);
            }
            Order::Forget { name } => {
                tell(&name, &[NotifyState::FdStoreRemove, NotifyState::FdName(&name)], &[]);
            }
            Order::Settle { with_manager, done } => {
                if with_manager && let Err(error) = barrier() {
                    tracing::debug!(%error, "it is not known what the service manager still keeps");
                }
                let _ = done.send(());
            }
        }
    }
}

fn tell(name: &str, state: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) -> bool {
    match sd_notify::notify_with_fds(state, descriptors) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, name, "the service manager cannot be told what to keep");
            false
        }
    }
}

/// Waits as `sd_notify_barrier(3)` does: the manager closes the descriptor once it comes to this message.
fn barrier() -> io::Result<()> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    let mut end = [PollFd::new(ours.as_fd(), PollFlags::empty())];
    match poll(&mut end, PollTimeout::from(SETTLE_MS))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_can_come_back() {
        let store = FdStore::of_manager(1024);
        let all: Vec<_> = (0..2000).map_while(|number| store.enter(&format!("x.{number}.notify"))).collect();
        assert_eq!(all.len(), 480, "systemd 252 passes some more with that limit, and no 700");
        drop(all);
        let roomy = FdStore::of_manager(u64::MAX);
        let name = "n".repeat(99);
        let all: Vec<_> = std::iter::from_fn(|| roomy.enter(&name)).collect();
        assert_eq!(all.len(), NAMES_BYTES_MAX / 100);
        drop(all);
        assert!(roomy.enter(&name).is_some(), "what is forgotten makes room");
    }
}
