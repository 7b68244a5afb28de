//! The driver: hands every event to the machine of its key and performs the effects. It holds no policy.
//!
//! It lives on one thread with the sessions, so that a warm Hello is answered where it is read. Small tasks wait for
//! something each and report back here; what may block is done by the worker threads, which report through a channel.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::rc::{Rc, Weak};

use broker_proto::{Code, Delivery, Reconnect, Refusal, RequestId, ServerMessage};
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc};

use super::admin::Batch;
use super::admins::SystemAdmins;
use super::answers::Answers;
use super::cgroups::Cgroups;
use super::clock::{Timer, now};
use super::events::Events;
use super::fd_store::FdStore;
use super::filed::Filed;
use super::hosted::Hosted;
use super::ledger::Here;
use super::listener::Door;
use super::lookups::Lookups;
use super::mail::Mail;
use super::mains::Mains;
use super::manager::Manager;
use super::places::Places;
use super::processes::Processes;
use super::session::{Session, SessionId};
use super::trimming::Logs;
use super::watches::Watches;
use super::work::{Report, Spares};
use crate::config::Config;
use crate::core::backend::{Effect, Event, Memory, RETRY_HINT, Ticket};
use crate::core::farewell::Farewell;
use crate::core::heartbeat::Heartbeat;
use crate::core::idle_exit::IdleExit;
use crate::core::patience::Patience;
use crate::core::quota::Quota;
use crate::core::registry::{BackendId, BackendKey, Registry};
use crate::core::{ById, Timestamp, millis_up};
use crate::journal::Journal;
use crate::process::pool::SpawnPool;
use crate::services::Catalog;

/// The driver, as tasks hold it. No task keeps it borrowed over an await.
pub(super) type Shared = Rc<RefCell<Driver>>;

/// For how many effects and events room is kept. A backend that gets ready has one for each who waits, and a session that
/// ends one for each that it held.
const EFFECTS_USUAL: usize = 64;

/// A request that waits or holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) session: SessionId,
    pub(super) request_id: RequestId,
    pub(super) backend: BackendId,
    pub(super) kind: Kind,
    pub(super) deadline: Option<Timestamp>,
    /// It has waited for the end of a generation that served no more.
    pub(super) has_doubted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hello(Delivery),
    /// An operator's start of one backend.
    Start,
    /// One backend of an operator's order over several.
    Part(u64),
}

/// A session and what it asked.
pub(super) struct Connected {
    pub(super) session: Rc<Session>,
    pub(super) tickets: Filed,
}

pub(super) struct Driver {
    pub(super) me: Weak<RefCell<Self>>,
    pub(super) config: Config,
    pub(super) uid: u32,
    pub(super) nofile_soft: Option<u64>,
    pub(super) places: Places,
    pub(super) spares: Spares,
    pub(super) cgroups: Cgroups,
    pub(super) catalog: Catalog,
    /// What Hellos have named of this catalogue.
    pub(super) lookups: Lookups<BackendId>,
    pub(super) answers: Answers<BackendId>,
    pub(super) registry: Registry,
    pub(super) hosted: ById<BackendId, Box<Hosted>>,
    pub(super) asked: ById<Ticket, Asked>,
    pub(super) batches: ById<u64, Batch>,
    pub(super) admins: SystemAdmins,
    pub(super) events: Events,
    pub(super) journal: Journal,
    /// Told when the journal has something to write that it was told quietly.
    pub(super) told: Rc<Notify>,
    pub(super) here: Here,
    pub(super) fd_store: FdStore,
    pub(super) sessions: ById<SessionId, Connected>,
    pub(super) mail: Rc<Mail>,
    pub(super) sessions_of_user: FxHashMap<u32, usize>,
    pub(super) watches: Watches,
    pub(super) processes: Processes,
    pub(super) mains: Mains,
    pub(super) pool: SpawnPool,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) timer: Rc<Timer>,
    pub(super) listeners: Vec<Rc<Door>>,
    pub(super) manager: Manager,
    pub(super) heartbeat: Heartbeat,
    pub(super) patience: Patience,
    pub(super) idle_exit: IdleExit,
    pub(super) began: Timestamp,
    /// Set once the broker is on its way out.
    pub(super) leaving: Option<Leave>,
    /// How far it has come with taking leave of its sessions.
    pub(super) farewell: Farewell,
    pub(super) settling: Settling,
    /// How often the disk is being given what it is owed: once more if who leaves is told to stop what it was to leave.
    pub(super) settles: usize,
    /// Launches whose outcome is not known yet.
    pub(super) launching: usize,
    /// Ends that are under way.
    pub(super) ending: usize,
    /// Quarantined, and defined by no service file: nothing is started over them when one comes back.
    pub(super) held_back: HashMap<BackendKey, String>,
    /// What is remembered of backends whose definition could not be read when the broker began.
    pub(super) dormant: HashMap<BackendKey, Memory>,
    /// Told when it begins to leave.
    pub(super) begins_to_leave: Rc<Notify>,
    /// Told when it is leaving and lets nobody in any more but who waits already.
    pub(super) shuts_door: Rc<Notify>,
    /// Told when it is leaving and nothing and nobody keeps it any more.
    pub(super) over: Rc<Notify>,
    pub(super) logs: Logs,
    /// How many refusals the log was told of lately.
    pub(super) refusals_told: Quota,
    pub(super) next_number: u64,
    /// The newest reading of the service files that was taken over.
    pub(super) newest_load: u64,
    queue: VecDeque<(BackendId, Event)>,
    /// Room for what follows an event.
    effects: Vec<Effect>,
}

/// How the broker goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leave {
    /// What its clients are told.
    pub(super) reconnect: Reconnect,
    /// Whether its backends are left to the next broker.
    pub(super) keeps: bool,
}

/// How far a broker that leaves has come with what it owes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settling {
    /// Its backends are just being told to end, or handed over: nothing is settled before the last of them was.
    Telling,
    NotYet,
    UnderWay,
    Done,
}

/// What a driver is made of.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) nofile_soft: Option<u64>,
    pub(super) places: Places,
    pub(super) cgroups: Cgroups,
    pub(super) catalog: Catalog,
    pub(super) watches: Watches,
    pub(super) timer: Rc<Timer>,
    pub(super) listeners: Vec<Rc<Door>>,
    pub(super) manager: Manager,
    pub(super) processes: Processes,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) journal: Journal,
    pub(super) here: Here,
    pub(super) fd_store: FdStore,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Shared {
        let Parts { config, nofile_soft, places, cgroups, catalog, watches, timer, listeners, manager, .. } = parts;
        let Parts { processes, reports, journal, here, fd_store, .. } = parts;
        let began = now();
        let idle_exit = IdleExit::new(began, config.idle_exit);
        Rc::new_cyclic(|me| {
            RefCell::new(Self {
                me: me.clone(),
                uid: nix::unistd::getuid().as_raw(),
                nofile_soft,
                spares: Spares::new(places.state()),
                places,
                cgroups,
                catalog,
                lookups: Lookups::new(),
                answers: Answers::new(),
                registry: Registry::new(config.limits.backends),
                config,
                hosted: ById::default(),
                asked: ById::default(),
                batches: ById::default(),
                admins: SystemAdmins::default(),
                events: Events::new(),
                journal,
                told: Rc::default(),
                here,
                fd_store,
                sessions: ById::default(),
                mail: Rc::default(),
                sessions_of_user: FxHashMap::default(),
                watches,
                processes,
                mains: Mains::default(),
                pool: SpawnPool::new(),
                reports,
                timer,
                listeners,
                manager,
                heartbeat: Heartbeat::default(),
                patience: Patience::default(),
                idle_exit,
                began,
                leaving: None,
                farewell: Farewell::default(),
                settling: Settling::NotYet,
                settles: 0,
                launching: 0,
                ending: 0,
                held_back: HashMap::new(),
                dormant: HashMap::new(),
                begins_to_leave: Rc::new(Notify::new()),
                shuts_door: Rc::new(Notify::new()),
                over: Rc::new(Notify::new()),
                logs: Logs::default(),
                refusals_told: Quota::default(),
                next_number: 1,
                newest_load: 0,
                queue: VecDeque::new(),
                effects: Vec::new(),
            })
        })
    }

    /// A number that was never given out: for tickets, batches and sessions.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Whether the log is told of one more refusal, and it is told how many were kept from it: clients can have any
    /// number of them.
    pub(super) fn tells_refusal(&mut self) -> bool {
        let withheld = self.refusals_told.take(now());
        if let Some(withheld @ 1..) = withheld {
            tracing::info!(withheld, "so many refusals are not told here");
        }
        withheld.is_some()
    }

    /// Hands an event to a machine, performs what follows, and sets the timer anew.
    pub(super) fn dispatch(&mut self, id: BackendId, event: Event) {
        match self.queue.is_empty() {
            true => self.handle(id, event),
            false => self.follow_up(id, event),
        }
        self.work_off();
    }

    /// Hands the events that wait to their machines, and sees to what else may follow from a change.
    pub(super) fn work_off(&mut self) {
        while let Some((id, event)) = self.queue.pop_front() {
            self.handle(id, event);
        }
        self.queue.shrink_to(EFFECTS_USUAL);
        self.effects.shrink_to(EFFECTS_USUAL);
        self.arm();
        self.leave_if_empty();
    }

    /// Hands an event to its machine, and does what that decides.
    fn handle(&mut self, id: BackendId, event: Event) {
        // Taken for as long as it is used: an effect may be another event's cause.
        let mut effects = mem::take(&mut self.effects);
        // What follows a decision is done after it was put down.
        let is_changed = self.registry.handle(now(), id, event, &mut effects);
        if is_changed {
            self.remember(id);
            self.manager.changed();
        }
        for effect in effects.drain(..) {
            self.perform(id, effect);
        }
        if is_changed {
            self.attend(id);
        }
        self.effects = effects;
    }

    /// Adds an event behind those that wait and the one being handled.
    pub(super) fn follow_up(&mut self, id: BackendId, event: Event) {
        self.queue.push_back((id, event));
    }

    /// Registers a session, unless its user has too many.
    pub(super) fn session_began(&mut self, session: &Rc<Session>) -> Result<(), Box<Refusal>> {
        let limit = self.config.limits.sessions_per_user;
        let count = self.sessions_of_user.entry(session.peer.uid).or_default();
        if *count >= limit {
            let reason = format!("user {} has {limit} sessions already, which is the limit", session.peer.uid);
            return Err(Box::new(Refusal::new(Code::RateLimited, reason).retry_after_ms(millis_up(RETRY_HINT))));
        }
        *count += 1;
        let connected = Connected { session: Rc::clone(session), tickets: Filed::default() };
        self.sessions.insert(session.id, connected);
        self.heartbeat.begin(now());
        self.expect_message(session);
        self.idle_exit.session_began();
        self.manager.changed();
        self.arm();
        // Nor may one who comes very late keep it.
        self.leave_if_empty();
        Ok(())
    }

    /// A peer has begun to say something, and so much time for the rest.
    pub(super) fn expect_message(&mut self, session: &Session) {
        let due = now() + self.config.limits.first_message_timeout;
        session.due.set(Some(due));
        if self.patience.expect(due) {
            self.arm();
        }
    }

    /// A session's peer may be sent messages from now on.
    pub(super) fn greeted(&self, session: &Session) {
        if let Some(Leave { reconnect, .. }) = self.leaving {
            session.send(&ServerMessage::GoAway { reconnect }, None);
        }
    }

    /// Withdraws whatever a session waited for or held.
    pub(super) fn session_ended(&mut self, id: SessionId) {
        let Some(connected) = self.sessions.remove(&id) else { return };
        if let Some(count) = self.sessions_of_user.get_mut(&connected.session.peer.uid) {
            *count -= 1;
            if *count == 0 {
                self.sessions_of_user.remove(&connected.session.peer.uid);
            }
        }
        for ticket in connected.tickets.into_tickets() {
            self.give_up(ticket);
        }
        self.drop_batches_of(id);
        if self.sessions.is_empty() {
            self.idle_exit.last_session_ended(now());
        }
        self.manager.changed();
        self.work_off();
    }

    /// The session that a ticket belongs to.
    pub(super) fn session(&self, id: SessionId) -> Option<Rc<Session>> {
        self.sessions.get(&id).map(|connected| Rc::clone(&connected.session))
    }
}
