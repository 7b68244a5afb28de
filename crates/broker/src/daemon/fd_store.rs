//! The service manager's FD store: sockets that it keeps for the next broker.
//!
//! Owns what is said about it. One thread sends every message in the order in which they were given: so a manager that is
//! slow stalls nobody who does not wait for it, and a name that is used again is not forgotten. Who waits does so for a time
//! that has an end. Nothing here needs the manager to do as it is told: what it does not keep the next broker makes anew, as
//! it does where there is none.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::places::LISTENER;
use crate::net::service_manager;

/// All names come back in one environment variable, which the kernel passes on up to 128 KiB (`MAX_ARG_STRLEN`): with
/// more the next broker could not be executed. The manager has some names of its own.
const NAMES_BYTES_MAX: usize = 120 * 1024;

/// To pass one descriptor on systemd needs two numbers below the limit of open files that the broker is started with: with
/// more, again, there would be no next broker. Those are left for sockets that the manager listens on itself.
const NUMBERS_EACH: usize = 2;
const NUMBERS_LEFT: usize = 64;

/// How long the manager may take to take a message, and to work off what it was told, where somebody waits for that.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often, and how many times, one that takes no message is told again what it is to forget, if there is nothing else to
/// say to it.
const TELL_AGAIN: Duration = Duration::from_secs(5);
const TRIES: u32 = 18;

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
    /// How many listening sockets the manager was told to forget.
    forgotten: AtomicU64,
    /// How many of those it has closed for certain, or been given the time to; held by who waits for that.
    settled: Mutex<u64>,
}

impl Shared {
    fn with_room_for(descriptors: usize) -> Self {
        Self {
            exists: false,
            orders: OnceLock::new(),
            room: Mutex::new(Room { descriptors, bytes: NAMES_BYTES_MAX }),
            is_left: AtomicBool::new(false),
            forgotten: AtomicU64::new(0),
            settled: Mutex::new(0),
        }
    }
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
    /// The manager may have it.
    is_given: bool,
}

impl FdStore {
    /// The store of the manager that asked to be told of this broker, if one did, and started it with that limit of open
    /// files.
    pub(super) fn of_manager(nofile_soft: u64) -> Self {
        let numbers = usize::try_from(nofile_soft).unwrap_or(usize::MAX);
        let descriptors = numbers.saturating_sub(NUMBERS_LEFT) / NUMBERS_EACH;
        Self(Arc::new(Shared { exists: service_manager::is_there(), ..Shared::with_room_for(descriptors) }))
    }

    /// Has a descriptor kept under a name. Returns once the message is sent, so that it comes to the next broker even if
    /// this one dies now; or when the manager has taken no message for so long.
    pub(super) fn keep(&self, name: &str, descriptor: impl AsFd) -> Option<Stored> {
        if !self.0.exists {
            return None;
        }
        let mut stored = self.enter(name)?;
        let descriptor = match descriptor.as_fd().try_clone_to_owned() {
            Ok(descriptor) => descriptor,
            Err(error) => {
                tracing::warn!(%error, name, "cannot be given to the service manager to keep");
                return None;
            }
        };
        let (done, is_done) = sync_channel(1);
        self.order(Order::Keep { name: name.to_owned(), descriptor, done });
        let is_kept = is_done.recv_timeout(PATIENCE);
        // If it comes too late it is forgotten again.
        stored.is_given = matches!(is_kept, Ok(true) | Err(RecvTimeoutError::Timeout));
        is_kept.unwrap_or(false).then_some(stored)
    }

    /// Takes note of what the manager kept already.
    pub(super) fn kept(&self, name: &str) -> Option<Stored> {
        let mut stored = self.0.exists.then(|| self.enter(name)).flatten();
        match &mut stored {
            Some(stored) => stored.is_given = true,
            None => self.forget(name),
        }
        stored
    }

    /// Has everything forgotten that is kept under a name.
    pub(super) fn forget(&self, name: &str) {
        if self.0.exists {
            self.order(Order::Forget { name: name.to_owned() });
            if name.ends_with(LISTENER) {
                self.0.forgotten.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// From now on nothing is forgotten any more.
    pub(super) fn leave_behind(&self) {
        self.0.is_left.store(true, Ordering::Relaxed);
    }

    /// Waits until the manager has closed what it was told to forget.
    pub(super) fn settle(&self) {
        self.settle_up_to(self.0.forgotten.load(Ordering::Acquire), true);
    }

    /// Waits until no address is taken any more by a listening socket that was forgotten.
    pub(super) fn settle_listeners(&self) {
        self.settle_up_to(self.0.forgotten.load(Ordering::Acquire), false);
    }

    /// Nobody passes who comes while another waits for what was forgotten by then.
    fn settle_up_to(&self, forgotten: u64, in_any_case: bool) {
        let mut settled = self.0.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if in_any_case || *settled < forgotten {
            self.wait(true);
            *settled = forgotten.max(*settled);
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
        // A thread that is gone says nothing any more, which is all the same now; and so is one that still waits.
        let _ = is_done.recv_timeout(PATIENCE);
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
        Some(Stored { store: self.clone(), name: name.to_owned(), is_given: false })
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
        if self.is_given && !self.is_left() {
            self.store.forget(&self.name);
        }
    }
}

/// The thread that says everything.
fn say(orders: &Receiver<Order>) {
    let mut mouth = Mouth::default();
    loop {
        let order = match mouth.owed.is_empty() || mouth.tries >= TRIES {
            true => orders.recv().map_err(RecvTimeoutError::from),
            false => orders.recv_timeout(TELL_AGAIN),
        };
        let paid = mouth.pay();
        match order {
            Ok(Order::Keep { name, descriptor, done }) => {
                let keep = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
                let kept = paid.and_then(|()| mouth.tell(&keep, descriptor.as_fd()));
                let _ = done.send(kept.is_ok());
            }
            Ok(Order::Forget { name }) => {
                mouth.owed.push_back(name);
                if paid.is_ok() {
                    let _ = mouth.pay();
                }
            }
            Ok(Order::Settle { with_manager, done }) => {
                if with_manager && let Err(error) = paid.and_then(|()| mouth.barrier()) {
                    tracing::debug!(%error, "it is not known what the service manager still keeps");
                }
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What talks to the manager.
#[derive(Debug, Default)]
struct Mouth {
    /// What it is still to be told to forget, the oldest first. Nothing is said before that: a name may be used again.
    owed: VecDeque<String>,
    /// It took no message in time. Nobody waits for it again before it takes one.
    is_full: bool,
    /// How often it has taken none since.
    tries: u32,
}

impl Mouth {
    fn tell<'f>(&mut self, text: &str, descriptor: impl Into<Option<BorrowedFd<'f>>>) -> io::Result<()> {
        let patience = if self.is_full { Duration::ZERO } else { PATIENCE };
        let told = service_manager::tell(text, descriptor.into().as_slice(), patience);
        let was_full = std::mem::replace(&mut self.is_full, is_full(&told));
        self.tries = if self.is_full { self.tries.saturating_add(1) } else { 0 };
        if let Err(error) = &told
            && !was_full
        {
            tracing::warn!(%error, "the service manager cannot be told what to keep");
        }
        told
    }

    /// Says what is owed.
    fn pay(&mut self) -> io::Result<()> {
        while let Some(name) = self.owed.front() {
            let told = self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None);
            if is_full(&told) {
                return told;
            }
            self.owed.pop_front();
        }
        Ok(())
    }

    /// Waits as `sd_notify_barrier(3)` does: the manager closes the descriptor once it comes to this message.
    fn barrier(&mut self) -> io::Result<()> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        self.tell("BARRIER=1\n", theirs.as_fd())?;
        drop(theirs);
        let mut end = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        match poll(&mut end, PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

fn is_full(told: &io::Result<()>) -> bool {
    told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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

    /// A store whose orders nobody carries out but the test.
    fn store() -> (FdStore, Receiver<Order>) {
        let store = FdStore(Arc::new(Shared { exists: true, ..Shared::with_room_for(9) }));
        let (orders, ordered) = channel();
        store.0.orders.set(Some(orders)).expect("nothing was said yet");
        (store, ordered)
    }

    #[test]
    fn nobody_passes_while_another_waits_for_a_socket_that_was_forgotten() {
        let (store, ordered) = store();
        store.forget(&format!("x{LISTENER}"));
        assert!(matches!(ordered.recv(), Ok(Order::Forget { .. })));
        let is_closed = Arc::new(AtomicBool::new(false));
        let launch = || {
            let (store, is_closed) = (store.clone(), Arc::clone(&is_closed));
            thread::spawn(move || {
                store.settle_listeners();
                assert!(is_closed.load(Ordering::SeqCst), "the manager still has it");
            })
        };
        let first = launch();
        let Ok(Order::Settle { with_manager: true, done }) = ordered.recv() else { panic!("it is not waited for") };
        let second = launch();
        // One that passed would have ended by then; nobody waits for longer than PATIENCE.
        let enough = Instant::now() + PATIENCE / 100;
        while !second.is_finished() && Instant::now() < enough {
            thread::yield_now();
        }
        is_closed.store(true, Ordering::SeqCst);
        done.send(()).expect("it waits");
        first.join().expect("no panic");
        second.join().expect("no panic");
        store.settle_listeners();
        assert!(ordered.try_recv().is_err(), "and what is settled is not waited for again");
    }

    #[test]
    fn what_came_to_nobody_is_not_to_be_forgotten() {
        let (store, ordered) = store();
        let keeper = thread::spawn(move || {
            let Ok(Order::Keep { done, .. }) = ordered.recv() else { panic!("nothing is to be kept") };
            done.send(false).expect("it waits");
            ordered
        });
        assert!(store.keep("x.notify", io::stdin()).is_none());
        assert!(keeper.join().expect("no panic").try_recv().is_err());
    }
}
