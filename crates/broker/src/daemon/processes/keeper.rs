//! The keeper of durable processes: one thread that owns the store, the folders and the reapers of this broker.
//!
//! Performs what `core::durable` and `core::lease` decide. It never runs on the driver's thread, and the driver never
//! waits for it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use broker_proto::{Code, ProcessId, Refusal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::Sender;

use super::claims::Swept;
use super::orders::{Happening, News, Order};
use super::record::{Owner, Record};
use super::records::Records;
use super::store::Place;
use super::waits::Waits;
use crate::core::Timestamp;
use crate::core::durable::{Durable, Event};
use crate::core::lease::renewal;
use crate::daemon::cgroups::Cgroups;
use crate::daemon::telling;
use crate::daemon::work::Report;
use crate::process::boot::since_boot;
use crate::process::kernel::{has_ended, reap};
use crate::reaper::folder::Folder;
use crate::store::chain;

/// How soon the store is tried again that could not be written.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// How soon a store is tried again that could not be opened, while nobody asks for it.
const OPEN_AGAIN: Duration = Duration::from_secs(30);

/// How often the store is looked at for others' writes, while somebody waits for a process that this broker does not run.
const LOOK_AT_OTHERS: Duration = Duration::from_millis(200);

/// How often one who shares a store looks whether somebody else has written to it.
const LOOK_AT_STORE: Duration = Duration::from_secs(1);

/// What a keeper is made of.
pub(super) struct Parts {
    /// The parent of the processes' folders.
    pub(super) folders: PathBuf,
    pub(super) records: Option<Records>,
    pub(super) place: Place,
    /// Others may use the store, too.
    pub(super) is_shared: bool,
    /// The most processes that this broker runs at once.
    pub(super) concurrent: usize,
    pub(super) nofile_soft: Option<u64>,
    pub(super) cgroups: Cgroups,
    pub(super) reports: Sender<Report>,
    pub(super) live_count: Arc<AtomicUsize>,
    pub(super) starts_no_more: Arc<AtomicBool>,
}

pub(super) struct Keeper {
    pub(super) parts: Parts,
    pub(super) live: HashMap<ProcessId, Live>,
    pub(super) waits: Waits,
    /// Reapers that this broker launched and has to reap.
    pub(super) children: Vec<Arc<OwnedFd>>,
    /// Owners of other processes.
    others: Vec<(Owner, OwnedFd)>,
    renew_at: Option<Timestamp>,
    sweep_at: Option<Timestamp>,
    look_at: Option<Timestamp>,
    seen_version: i64,
    /// More processes wait to be run than this broker may run at once.
    pub(super) more: bool,
}

/// A process that is ours.
pub(super) struct Live {
    pub(super) process: Durable,
    pub(super) fencing_token: i64,
    pub(super) reaper: Option<Arc<OwnedFd>>,
    /// The reaper that the newest look opened.
    pub(super) found: Option<OwnedFd>,
    pub(super) pid: Option<i32>,
    pub(super) ended_at: Option<String>,
    pub(super) announcement: Option<OwnedFd>,
    pub(super) launched: Option<u32>,
    /// The newest attempt that was said to be started.
    pub(super) said: u32,
    pub(super) is_adopted: bool,
}

/// The keeper's time: CLOCK_BOOTTIME, because leases are.
pub(super) fn now() -> Timestamp {
    Timestamp::from_nanos(u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX))
}

fn at_millis(ms: u64) -> Timestamp {
    Timestamp::from_nanos(ms.saturating_mul(1_000_000))
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            live: HashMap::new(),
            waits: Waits::default(),
            children: Vec::new(),
            others: Vec::new(),
            renew_at: None,
            sweep_at: Some(now()),
            look_at: None,
            seen_version: 0,
            more: false,
        }
    }

    /// Works until it is told to stop, or nobody can tell it any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>, wake: &EventFd) {
        loop {
            loop {
                match orders.try_recv() {
                    Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return self.release(),
                    Ok(order) => self.take(order),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.do_what_is_due();
            self.parts.live_count.store(self.live.len(), Ordering::Relaxed);
            self.sleep(wake);
        }
    }

    /// Sleeps until something happens or is due, and takes what happened.
    fn sleep(&mut self, wake: &EventFd) {
        let machines = self.live.values().filter_map(|live| live.process.next_deadline());
        let due = machines.chain([self.renew_at, self.sweep_at, self.look_at].into_iter().flatten()).min();
        let timeout = match due {
            Some(due) => PollTimeout::try_from(due.since(now()).as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let watched: Vec<(ProcessId, Arc<OwnedFd>)> =
            self.live.iter().filter_map(|(id, live)| Some((id.clone(), Arc::clone(live.reaper.as_ref()?)))).collect();
        let announced: Vec<ProcessId> =
            self.live.iter().filter(|(_, live)| live.announcement.is_some()).map(|(id, _)| id.clone()).collect();
        let is_ready: Vec<bool> = {
            let announcements = announced.iter().filter_map(|id| self.live[id].announcement.as_ref());
            let all = [wake.as_fd()].into_iter().chain(watched.iter().map(|(_, reaper)| reaper.as_fd()));
            let all = all.chain(announcements.map(AsFd::as_fd)).chain(self.children.iter().map(|child| child.as_fd()));
            let all = all.chain(self.others.iter().map(|(_, other)| other.as_fd()));
            let mut all: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            if poll(&mut all, timeout).is_err() {
                return;
            }
            all.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect()
        };
        let mut is_ready = is_ready.into_iter();
        if is_ready.next() == Some(true) {
            let _ = wake.read();
        }
        let ended: Vec<_> = watched.into_iter().filter(|_| is_ready.next() == Some(true)).collect();
        let announced: Vec<ProcessId> = announced.into_iter().filter(|_| is_ready.next() == Some(true)).collect();
        self.children.retain(|child| {
            let has_ended = is_ready.next() == Some(true);
            if has_ended && let Err(error) = reap(child) {
                tracing::warn!(%error, "cannot reap a reaper");
            }
            !has_ended
        });
        // An owner that is dead is taken over before its lease ends.
        let before = self.others.len();
        // Each is told of once: a sweep that fails is tried again in its own time.
        self.others.retain(|_| is_ready.next() != Some(true));
        if self.others.len() < before {
            self.sweep_at = Some(now());
        }
        for id in announced {
            if let Some(live) = self.live.get_mut(&id) {
                live.announcement = None;
            }
            self.feed(&id, Event::Announced);
        }
        for (id, reaper) in ended {
            // Another may be watched by now.
            if let Some(live) = self.live.get_mut(&id)
                && live.reaper.take_if(|watched| Arc::ptr_eq(watched, &reaper)).is_some()
            {
                self.feed(&id, Event::ReaperEnded);
            }
        }
    }

    fn do_what_is_due(&mut self) {
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now());
        if is_due(self.renew_at) {
            self.renew();
        }
        if is_due(self.sweep_at) || (self.more && self.room() > 0) {
            self.sweep();
        }
        let due = self.live.iter().filter(|(_, live)| is_due(live.process.next_deadline()));
        let due: Vec<ProcessId> = due.map(|(id, _)| id.clone()).collect();
        due.iter().for_each(|id| self.feed(id, Event::Tick));
        if is_due(self.look_at) {
            self.look_at_others();
        }
        let waits_for_others = self.waits.ids().any(|id| !self.live.contains_key(id));
        // Who shares a store hears of what others register, and whom they are, by looking.
        let every = match waits_for_others {
            true => Some(LOOK_AT_OTHERS),
            false => self.parts.is_shared.then_some(LOOK_AT_STORE),
        };
        let latest = every.map(|every| now() + every);
        self.look_at = latest.map(|latest| self.look_at.map_or(latest, |at| at.min(latest)));
    }

    /// How many more processes this broker may run.
    pub(super) fn room(&self) -> usize {
        if self.is_leaving() { 0 } else { self.parts.concurrent.saturating_sub(self.live.len()) }
    }

    pub(super) fn folder(&self, id: &ProcessId) -> Folder {
        Folder::new(&self.parts.folders.join(id.as_str()))
    }

    /// The store, opened anew if it could not be before.
    pub(super) fn records(&mut self) -> Result<&mut Records, Box<Refusal>> {
        if self.parts.records.is_none() {
            let records = self.parts.place.open().map_err(|error| Box::new(telling::fault(&chain(&error))))?;
            self.parts.records = Some(records);
            self.sweep_at = Some(now());
        }
        self.parts.records.as_mut().ok_or_else(|| Box::new(Refusal::new(Code::Internal, "no store")))
    }

    pub(super) fn sweep_soon(&mut self) {
        self.sweep_at = Some(now());
    }

    /// Claims what is to be claimed, and remembers when to look again.
    fn sweep(&mut self) {
        let room = self.room();
        let Place { me, owner, lease, .. } = self.parts.place.clone();
        let Ok(records) = self.records() else {
            self.sweep_at = Some(now() + OPEN_AGAIN);
            return;
        };
        let swept = match records.sweep(room, &mut |other| super::owner::seen(&owner, other)) {
            Ok(swept) => swept,
            Err(error) => {
                tracing::error!(%error, "the store of durable processes cannot be read");
                self.sweep_at = Some(now() + STORE_AGAIN);
                self.more = false;
                return;
            }
        };
        let Swept { ours, renew_at, owners, look_again_at, more } = swept;
        self.more = more;
        self.sweep_at = look_again_at.map(at_millis);
        if self.parts.is_shared {
            // Others register, too.
            let at = now() + lease;
            self.sweep_at = Some(self.sweep_at.map_or(at, |other| other.min(at)));
        }
        if let Some(at) = renew_at.map(at_millis) {
            self.renew_by(at);
        }
        self.others.retain(|(other, _)| owners.contains(other));
        for other in owners {
            if !self.others.iter().any(|(known, _)| *known == other)
                && let Some(pidfd) = super::owner::open(&owner, &other)
            {
                self.others.push((other, pidfd));
            }
        }
        for record in ours {
            debug_assert!(record.lease.as_ref().is_none_or(|(lease, _)| lease.token == me.token));
            self.keep(&record);
        }
    }

    /// Takes care of a record that is ours.
    pub(super) fn keep(&mut self, record: &Record) {
        if let Some((lease, _)) = &record.lease {
            self.renew_by(at_millis(renewal(lease.claimed_at, lease.expires_at)));
        }
        if self.live.get(&record.id).is_some_and(|live| live.fencing_token == record.fencing_token) {
            return;
        }
        let live = Live {
            process: Durable::new(record.max_attempts, record.cancel_reason.is_some()),
            fencing_token: record.fencing_token,
            reaper: None,
            found: None,
            pid: None,
            ended_at: None,
            announcement: None,
            launched: None,
            said: 0,
            is_adopted: false,
        };
        self.live.insert(record.id.clone(), live);
        let found = self.look(&record.id);
        self.feed(&record.id, Event::Looked(found));
    }

    fn renew_by(&mut self, at: Timestamp) {
        self.renew_at = Some(self.renew_at.map_or(at, |other| other.min(at)));
    }

    fn renew(&mut self) {
        self.renew_at = None;
        if self.live.is_empty() {
            return;
        }
        let again = now() + self.parts.place.lease / 3;
        let expected = self.live.len();
        match self.records().map(Records::renew) {
            Ok(Ok(renewed)) => {
                self.renew_at = Some(again);
                if renewed != expected {
                    self.drop_what_was_lost();
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the leases of durable processes cannot be renewed");
                self.renew_at = Some(now() + STORE_AGAIN);
            }
            Err(_) => self.renew_at = Some(now() + STORE_AGAIN),
        }
    }

    /// Lets go of what somebody else has claimed meanwhile.
    fn drop_what_was_lost(&mut self) {
        let ids: Vec<(ProcessId, i64)> = self.live.iter().map(|(id, live)| (id.clone(), live.fencing_token)).collect();
        for (id, token) in ids {
            let Ok(records) = self.records() else { return };
            match records.get(&id) {
                Ok(Some(record)) if record.fencing_token == token && !record.state.is_over() => {}
                Ok(_) => self.let_go(&id),
                Err(error) => tracing::error!(%error, process = %id, "a record cannot be read"),
            }
        }
    }

    /// Whether somebody else wrote something for which somebody here waits.
    fn look_at_others(&mut self) {
        self.look_at = None;
        let before = self.seen_version;
        let Ok(records) = self.records() else { return };
        let version = records.version().unwrap_or(before + 1);
        self.seen_version = version;
        if version == before {
            return;
        }
        if self.parts.is_shared {
            self.sweep_soon();
        }
        let ids: Vec<ProcessId> = self.waits.ids().filter(|&id| !self.live.contains_key(id)).cloned().collect();
        for id in ids {
            self.answer_if_over(&id);
        }
    }

    pub(super) fn tell(&self, id: &ProcessId, happening: Happening) {
        self.report(Report::Process(News::Happened { id: id.clone(), happening }));
    }

    pub(super) fn report(&self, report: Report) {
        // The receiver goes last, with the broker itself.
        let _ = self.parts.reports.blocking_send(report);
    }

    /// Whether nothing is to be started any more.
    pub(super) fn is_leaving(&self) -> bool {
        self.parts.starts_no_more.load(Ordering::Relaxed)
    }

    /// Gives the leases up, so that another broker takes over at once. What runs goes on.
    fn release(mut self) {
        // What has ended by now is still ours to write down.
        let ended = |live: &Live| live.reaper.as_ref().is_some_and(|reaper| has_ended(reaper.as_fd()));
        let ended: Vec<ProcessId> =
            self.live.iter().filter(|(_, live)| ended(live)).map(|(id, _)| id.clone()).collect();
        self.parts.starts_no_more.store(true, Ordering::Relaxed);
        ended.iter().for_each(|id| self.feed(id, Event::ReaperEnded));
        let running = self.live.len();
        if let Some(records) = &mut self.parts.records {
            match records.release() {
                Ok(_) => tracing::info!(running, "durable processes are left to the next broker"),
                Err(error) => tracing::warn!(%error, "the leases of durable processes end by themselves"),
            }
        }
    }
}
