//! The registry: one machine per key, and the one deadline of them all.

use std::collections::BTreeSet;

use broker_proto::{InstanceName, ServiceName};
use rustc_hash::FxHashMap;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, Effect, Event, Policies};
use super::{ById, Timestamp};

/// What a backend is known by: at most one is live per key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct BackendKey {
    pub(crate) instance: InstanceName,
    pub(crate) service: ServiceName,
    pub(crate) version: Version,
}

impl std::fmt::Display for BackendKey {
    /// As a person names it: `SERVICE@VERSION/INSTANCE`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}/{}", self.service, self.version, self.instance)
    }
}

/// Names a registered backend; never given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BackendId(u64);

/// The registry is full of backends that run or remember something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) limit: usize,
}

#[derive(Debug)]
struct Slot {
    key: BackendKey,
    backend: Backend,
    /// The deadline under which the slot is filed.
    deadline: Option<Timestamp>,
}

/// All backends.
#[derive(Debug)]
pub(crate) struct Registry {
    limit: usize,
    next_id: u64,
    /// A client that chose names whose hashes collide would have to have each of them started, and gained little.
    ids: FxHashMap<BackendKey, BackendId>,
    slots: ById<BackendId, Box<Slot>>,
    deadlines: BTreeSet<(Timestamp, BackendId)>,
    /// Forgotten, and nobody was told yet.
    forgotten: Vec<(BackendId, BackendKey)>,
    /// The highest generation of a forgotten backend. New ones begin above it: what was written down of one that was
    /// forgotten, and is back, must not be taken for newer.
    floor: u64,
}

impl Registry {
    /// An empty registry for at most `limit` backends.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            next_id: 0,
            ids: FxHashMap::default(),
            slots: ById::default(),
            deadlines: BTreeSet::new(),
            forgotten: Vec::new(),
            floor: 0,
        }
    }

    /// The backend of that key, registered if it is new.
    ///
    /// # Errors
    /// The registry is full, and no entry can be forgotten.
    pub(crate) fn open(&mut self, now: Timestamp, key: &BackendKey, policies: Policies) -> Result<BackendId, Full> {
        if let Some(&id) = self.ids.get(key) {
            return Ok(id);
        }
        if self.slots.len() >= self.limit {
            self.forget_idle(now);
        }
        if self.slots.len() >= self.limit {
            return Err(Full { limit: self.limit });
        }
        let id = BackendId(self.next_id);
        self.next_id += 1;
        self.ids.insert(key.clone(), id);
        let backend = Backend::above(now, policies, self.floor);
        self.slots.insert(id, Box::new(Slot { key: key.clone(), backend, deadline: None }));
        Ok(id)
    }

    /// The backends that were forgotten since this was asked last.
    pub(crate) fn take_forgotten(&mut self) -> Vec<(BackendId, BackendKey)> {
        std::mem::take(&mut self.forgotten)
    }

    /// Registers a backend that an earlier broker left, even beyond the limit: it is there already.
    pub(crate) fn restore(&mut self, key: &BackendKey, backend: Backend) -> BackendId {
        let id = BackendId(self.next_id);
        self.next_id += 1;
        let deadline = backend.next_deadline();
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, id));
        }
        self.ids.insert(key.clone(), id);
        self.slots.insert(id, Box::new(Slot { key: key.clone(), backend, deadline }));
        id
    }

    /// Forgets the entries that know nothing which a new one would not.
    fn forget_idle(&mut self, now: Timestamp) {
        let Self { ids, slots, deadlines, forgotten, floor, .. } = self;
        slots.retain(|id, slot| {
            let keep = !slot.backend.is_forgettable(now);
            if !keep {
                ids.remove(&slot.key);
                forgotten.push((*id, slot.key.clone()));
                *floor = (*floor).max(slot.backend.memory().generation);
                slot.deadline.inspect(|&deadline| {
                    deadlines.remove(&(deadline, *id));
                });
            }
            keep
        });
    }

    /// Hands an event to the machine of a backend; an id that is not registered has none. Whether there is something
    /// new to be remembered.
    pub(crate) fn handle(&mut self, now: Timestamp, id: BackendId, event: Event, effects: &mut Vec<Effect>) -> bool {
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        let revision = slot.backend.revision();
        slot.backend.handle(now, event, effects);
        let is_news = slot.backend.revision() != revision;
        let deadline = slot.backend.next_deadline();
        if deadline != slot.deadline {
            if let Some(old) = slot.deadline {
                self.deadlines.remove(&(old, id));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, id));
            }
            slot.deadline = deadline;
        }
        is_news
    }

    /// When the first machine wants a tick.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The backends whose deadline is here, the earliest first.
    pub(crate) fn due(&self, now: Timestamp) -> Vec<BackendId> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, id)| *id).collect()
    }

    pub(crate) fn get(&self, id: BackendId) -> Option<(&BackendKey, &Backend)> {
        self.slots.get(&id).map(|slot| (&slot.key, &slot.backend))
    }

    pub(crate) fn find(&self, key: &BackendKey) -> Option<BackendId> {
        self.ids.get(key).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (BackendId, &BackendKey, &Backend)> {
        self.slots.iter().map(|(id, slot)| (*id, &slot.key, &slot.backend))
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::{Ticket, Waiter};
    use super::super::simulation::policies;
    use super::*;

    fn key(instance: &str) -> BackendKey {
        BackendKey {
            instance: InstanceName::parse(instance).expect("valid"),
            service: ServiceName::parse("redis").expect("valid"),
            version: Version::new(7, 0, 15),
        }
    }

    #[test]
    fn a_key_has_one_backend() {
        let mut registry = Registry::new(10);
        let now = Timestamp::from_nanos(0);
        let first = registry.open(now, &key("a"), policies()).expect("room");
        assert_eq!(registry.open(now, &key("a"), policies()), Ok(first));
        assert_ne!(registry.open(now, &key("b"), policies()), Ok(first));
        assert_eq!(key("a").to_string(), "redis@7.0.15/a");
    }

    #[test]
    fn a_full_registry_forgets_what_rests_and_keeps_what_runs() {
        let mut registry = Registry::new(2);
        let now = Timestamp::from_nanos(0);
        let running = registry.open(now, &key("a"), policies()).expect("room");
        let waiter = Waiter { ticket: Ticket(1), deadline: None, holds: true };
        registry.handle(now, running, Event::Hello(waiter), &mut Vec::new());
        let rests = registry.open(now, &key("b"), policies()).expect("room");
        registry.open(now, &key("c"), policies()).expect("b rests and is forgotten");
        assert_eq!((registry.find(&key("a")), registry.find(&key("b"))), (Some(running), None));
        assert_eq!((registry.take_forgotten(), registry.take_forgotten()), (vec![(rests, key("b"))], vec![]));
        let c = registry.find(&key("c")).expect("registered");
        registry.handle(now, c, Event::Hello(Waiter { ticket: Ticket(2), ..waiter }), &mut Vec::new());
        assert_eq!(registry.open(now, &key("d"), policies()), Err(Full { limit: 2 }));
    }

    #[test]
    fn the_first_deadline_of_all_is_the_next() {
        let mut registry = Registry::new(10);
        for (name, deadline) in [("a", 500), ("b", 300), ("c", 400)] {
            let now = Timestamp::from_nanos(0);
            let id = registry.open(now, &key(name), policies()).expect("room");
            let deadline = Some(Timestamp::from_nanos(deadline));
            let waiter = Waiter { ticket: Ticket(1), deadline, holds: true };
            registry.handle(now, id, Event::Hello(waiter), &mut Vec::new());
        }
        assert_eq!(registry.next_deadline(), Some(Timestamp::from_nanos(300)));
        assert_eq!(registry.due(Timestamp::from_nanos(299)), []);
        assert_eq!(registry.due(Timestamp::from_nanos(300)), registry.find(&key("b")).into_iter().collect::<Vec<_>>());
    }
}
