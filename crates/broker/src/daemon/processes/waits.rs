//! Who waits for the end of which process.

use std::collections::HashMap;

use broker_proto::ProcessId;

use crate::core::backend::Ticket;

/// Those who wait. Any number may wait for one process; each is bounded by the requests of its session.
#[derive(Debug, Default)]
pub(super) struct Waits {
    by_id: HashMap<ProcessId, Vec<Ticket>>,
}

impl Waits {
    pub(super) fn add(&mut self, id: ProcessId, ticket: Ticket) {
        self.by_id.entry(id).or_default().push(ticket);
    }

    /// The processes that somebody waits for.
    pub(super) fn ids(&self) -> impl Iterator<Item = &ProcessId> {
        self.by_id.keys()
    }

    /// Takes out all who wait for a process.
    pub(super) fn take(&mut self, id: &ProcessId) -> Vec<Ticket> {
        self.by_id.remove(id).unwrap_or_default()
    }

    /// Takes one out; what it waited for.
    pub(super) fn withdraw(&mut self, ticket: Ticket) -> Option<ProcessId> {
        let id = self.by_id.iter().find(|(_, tickets)| tickets.contains(&ticket)).map(|(id, _)| id.clone())?;
        let tickets = self.by_id.get_mut(&id)?;
        tickets.retain(|other| *other != ticket);
        if tickets.is_empty() {
            self.by_id.remove(&id);
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_for_a_process_are_found_and_none_who_withdrew() {
        let id = |text: &str| ProcessId::parse(text).expect("an id");
        let mut waits = Waits::default();
        for (name, ticket) in [("a", 1), ("b", 2), ("a", 3), ("a", 4)] {
            waits.add(id(name), Ticket(ticket));
        }
        assert_eq!(waits.withdraw(Ticket(3)), Some(id("a")));
        assert_eq!(waits.withdraw(Ticket(3)), None);
        assert_eq!(waits.take(&id("a")), [Ticket(1), Ticket(4)]);
        assert_eq!(waits.withdraw(Ticket(2)), Some(id("b")));
        assert_eq!(waits.ids().count(), 0);
    }
}
