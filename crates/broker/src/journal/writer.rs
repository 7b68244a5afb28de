//! The writer: the state that all handles share, and the thread that brings the disk after the image.
//!
//! What is told coalesces per key, so the memory is bounded by the number of keys however long a disk hangs, and what
//! several threads settle at a time is one commit. After a failure the file is written whole; changes follow again then.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::core::registry::BackendKey;
use crate::store::chain;

use super::disk::{Begun, Disk, DiskError, Whole};
use super::image::Image;
use super::sql::Content;
use super::{Change, Health, Row, Trouble};

/// How long somebody waits for the disk before it counts as hung.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long an attempt takes before nobody waits for it any more who can go on without.
pub(super) const HUNG: Duration = Duration::from_millis(500);

/// The pause after the first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How many files that were set aside are remembered.
const SET_ASIDE_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// For the thread: there may be something to do.
    work: Condvar,
    /// For those who wait: an attempt is over.
    done: Condvar,
}

#[derive(Debug)]
struct State {
    image: Image,
    /// Keys whose row on the disk may be behind, with the number of their latest change.
    dirty: HashMap<BackendKey, u64>,
    /// The number of the latest change.
    told: u64,
    /// All changes up to this number are on the disk.
    committed: u64,
    /// The number of the latest attempt to write, and that of the latest one that failed.
    attempt: u64,
    failed: u64,
    /// When the attempt began that is being made.
    busy_since: Option<Instant>,
    trouble: Option<Trouble>,
    /// When the trouble began.
    since: Instant,
    /// The pause after the latest failure, and when it is over.
    pause: Duration,
    retry_at: Option<Instant>,
    /// Somebody waits for an attempt now, pause or not.
    is_urgent: bool,
    /// Whose wait is over with this: once everything up to the number is committed, or in trouble.
    awaited: Vec<(u64, oneshot::Sender<()>)>,
    /// The last handle is gone.
    is_closing: bool,
    /// The file while no thread has it.
    parked: Option<Disk>,
    has_thread: bool,
    set_aside: Vec<PathBuf>,
}

impl Shared {
    pub(super) fn begin(path: &Path, begun: Begun) -> Arc<Self> {
        let Begun { mut disk, content, trouble } = begun;
        let state = State {
            image: Image::new(content),
            dirty: HashMap::new(),
            // The thread begins with the head of the log.
            told: 1,
            committed: 0,
            attempt: 0,
            failed: 0,
            busy_since: None,
            trouble: None,
            since: Instant::now(),
            pause: Duration::ZERO,
            retry_at: None,
            is_urgent: false,
            awaited: Vec::new(),
            is_closing: false,
            set_aside: disk.take_set_aside(),
            parked: Some(disk),
            has_thread: false,
        };
        let shared =
            Self { path: path.to_owned(), state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() };
        let shared = Arc::new(shared);
        let mut state = shared.lock();
        if let Some(error) = trouble {
            shared.failed(&mut state, chain(&error));
        }
        shared.ensure_thread(&mut state);
        drop(state);
        shared
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can stop half-way, so a poisoned one still guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number up to which must be committed so that the change is.
    pub(super) fn tell(self: &Arc<Self>, change: Change) -> u64 {
        let told = self.tell_quietly(change);
        self.wake();
        told
    }

    pub(super) fn tell_quietly(self: &Arc<Self>, change: Change) -> u64 {
        self.note(&mut self.lock(), change)
    }

    /// Not under the lock, which the thread takes first.
    pub(super) fn wake(&self) {
        self.work.notify_one();
    }

    /// The number of the latest change.
    pub(super) fn told(&self) -> u64 {
        self.lock().told
    }

    pub(super) fn settled(&self, told: u64) -> bool {
        self.wait(self.lock(), Instant::now() + PATIENCE, |state| match state.committed >= told {
            true => Some(true),
            false => state.trouble.is_some().then_some(false),
        })
    }

    pub(super) fn flush(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        // A number of its own makes the thread look at the file even if every change is there.
        state.told += 1;
        state.is_urgent = true;
        let (told, next) = (state.told, state.attempt + 1);
        self.ensure_thread(&mut state);
        self.work.notify_one();
        self.wait(state, Instant::now() + PATIENCE, |state| match state.committed >= told {
            true => Some(true),
            false => (state.failed >= next || !state.has_thread).then_some(false),
        })
    }

    /// What is over once all that was told until now is committed, or in trouble, and how long to wait for that; none where
    /// there is nothing to wait for.
    pub(super) fn written(&self) -> Option<(oneshot::Receiver<()>, Duration)> {
        let mut state = self.lock();
        let busy = state.busy_since.map_or(Duration::ZERO, |since| since.elapsed());
        if busy >= PATIENCE {
            self.hangs(&mut state);
        }
        let patience = HUNG.saturating_sub(busy);
        if state.committed >= state.told || state.trouble.is_some() || patience.is_zero() {
            return None;
        }
        let (done, written) = oneshot::channel();
        let told = state.told;
        state.awaited.retain(|(_, done)| !done.is_closed());
        state.awaited.push((told, done));
        drop(state);
        self.wake();
        Some((written, patience))
    }

    pub(super) fn health(&self) -> Health {
        let state = self.lock();
        Health {
            path: self.path.clone(),
            trouble: state.trouble.clone(),
            set_aside: state.set_aside.clone(),
            rows: state.image.len(),
        }
    }

    /// Lets the thread write what is left and end; returns when it has, or when the disk hangs.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closing = true;
        state.is_urgent = true;
        self.work.notify_one();
        // Whoever flushed before has waited for a hung disk already.
        let deadline = state.busy_since.unwrap_or_else(Instant::now) + PATIENCE;
        self.wait(state, deadline, |state| (!state.has_thread).then_some(true));
    }

    /// Applies a change; the number up to which must be committed so that it is.
    fn note(self: &Arc<Self>, state: &mut State, change: Change) -> u64 {
        let key = change.key().clone();
        if state.image.apply(change) {
            state.told += 1;
            state.dirty.insert(key, state.told);
        }
        self.ensure_thread(state);
        state.told
    }

    /// Waits for an answer. A disk that gives none in time is in trouble, so that nobody else begins to wait for it.
    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        deadline: Instant,
        answer: impl Fn(&State) -> Option<bool>,
    ) -> bool {
        loop {
            if let Some(answer) = answer(&state) {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.hangs(&mut state);
                return false;
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn hangs(&self, state: &mut State) {
        self.distress(state, format!("the disk has not answered for {} s", PATIENCE.as_secs()));
        self.done.notify_all();
    }

    /// Starts the thread. If the system has none to give, the next change tries again.
    fn ensure_thread(self: &Arc<Self>, state: &mut State) {
        if state.has_thread || state.parked.is_none() {
            return;
        }
        let shared = Arc::clone(self);
        match std::thread::Builder::new().name("journal".to_owned()).spawn(move || shared.run()) {
            Ok(_) => state.has_thread = true,
            Err(error) => self.distress(state, format!("cannot start its thread: {error}")),
        }
    }

    fn run(&self) {
        let Some(mut disk) = self.lock().parked.take() else { return };
        while self.await_work() {
            let result = self.attempt(&mut disk);
            let mut state = self.lock();
            state.busy_since = None;
            state.set_aside.append(&mut disk.take_set_aside());
            let excess = state.set_aside.len().saturating_sub(SET_ASIDE_MAX);
            state.set_aside.drain(..excess);
            match result {
                Ok(told) => self.committed(&mut state, told),
                Err(error) => {
                    disk.close();
                    self.failed(&mut state, chain(&error));
                }
            }
            drop(state);
            self.done.notify_all();
        }
        drop(disk);
        self.lock().has_thread = false;
        self.done.notify_all();
    }

    /// Blocks until something has to be written; false when nothing will be any more.
    fn await_work(&self) -> bool {
        let mut state = self.lock();
        loop {
            let is_behind = state.told > state.committed || state.trouble.is_some();
            let pause = state.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            if is_behind && (pause.is_zero() || state.is_urgent) {
                state.attempt += 1;
                state.busy_since = Some(Instant::now());
                state.is_urgent = false;
                return true;
            }
            // The last attempt was made for the end, and no other follows.
            if state.is_closing {
                return false;
            }
            state = match is_behind {
                true => self.work.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0,
                false => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Brings the file after the image; the number up to which it did.
    fn attempt(&self, disk: &mut Disk) -> Result<u64, DiskError> {
        if disk.is_as_we_left_it()? {
            let (told, changes) = self.changes();
            let written = match changes.is_empty() {
                true => disk.begin_log(),
                false => disk.write(changes.iter().map(|(key, row)| (key, row.as_ref()))),
            };
            match written {
                Ok(true) => return Ok(told),
                // It says what has become of the file.
                Ok(false) => drop(disk.is_as_we_left_it()?),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        let (told, whole) = self.whole();
        let found = disk.rewrite(&whole)?;
        self.keep(found);
        Ok(told)
    }

    fn changes(&self) -> (u64, Vec<(BackendKey, Option<Row>)>) {
        let state = self.lock();
        let changes = state.dirty.keys().map(|key| (key.clone(), state.image.row(key).cloned()));
        (state.told, changes.collect())
    }

    fn whole(&self) -> (u64, Whole) {
        let state = self.lock();
        let rows = state.image.rows.values().map(Box::as_ref).cloned().collect();
        let changed: HashSet<_> = state.dirty.keys().cloned().collect();
        (state.told, Whole { rows, unreadable: state.image.unreadable.clone(), changed })
    }

    /// Takes over what an earlier broker had left and nobody could read when this one began: the next one asks for it.
    fn keep(&self, found: Content) {
        if found.rows.is_empty() && found.unreadable.is_empty() {
            return;
        }
        let mut state = self.lock();
        let State { image, dirty, .. } = &mut *state;
        tracing::warn!(
            path = %self.path.display(),
            rows = found.rows.len() + found.unreadable.len(),
            "the journal holds rows that could not be read when this broker began; they are kept for the next one"
        );
        for row in found.rows {
            if !dirty.contains_key(&row.key) {
                image.rows.entry(row.key.clone()).or_insert_with(|| Box::new(row));
            }
        }
        let is_known = |key: &BackendKey| dirty.contains_key(key);
        image
            .unreadable
            .extend(found.unreadable.into_iter().filter(|raw| !raw.unreadable.key.as_ref().is_some_and(is_known)));
    }

    fn committed(&self, state: &mut State, told: u64) {
        state.committed = told;
        state.awaited.retain(|(number, _)| *number > told);
        state.dirty.retain(|_, number| *number > told);
        (state.pause, state.retry_at) = (Duration::ZERO, None);
        if state.trouble.take().is_some() {
            let after = state.since.elapsed();
            tracing::info!(path = %self.path.display(), ?after, "the journal is written again, and complete");
        }
    }

    fn failed(&self, state: &mut State, what: String) {
        state.failed = state.attempt;
        state.pause = (state.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        state.retry_at = Some(Instant::now() + state.pause);
        self.distress(state, what);
    }

    /// Remembers what is wrong. It is said when it begins, not at each attempt.
    fn distress(&self, state: &mut State, what: String) {
        if let Some(trouble) = &mut state.trouble {
            trouble.what = what;
            return;
        }
        let path = self.path.display();
        tracing::warn!(%path, "the journal cannot be written, and is kept in memory until it can: {what}");
        state.awaited.clear();
        state.trouble = Some(Trouble { since: jiff::Timestamp::now(), what });
        state.since = Instant::now();
    }
}

#[cfg(test)]
impl Shared {
    /// How many rows the file lacks.
    pub(super) fn behind(&self) -> usize {
        self.lock().dirty.len()
    }

    /// How often the file was written, or tried to be.
    pub(super) fn attempts(&self) -> u64 {
        self.lock().attempt
    }
}
