//! The requests of one session, by the ids that its client gave them.

use std::collections::VecDeque;

use broker_proto::RequestId;

use crate::core::backend::Ticket;

/// Room that is kept however few there are.
const ROOM_MIN: usize = 16;

/// In the order of their ids. A client counts up, so what is new comes last, and is found there without a search. Who takes
/// another order pays for it himself: half of his requests, at most, are moved for each.
#[derive(Debug, Default)]
pub(super) struct Filed(VecDeque<(RequestId, Ticket)>);

impl Filed {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Enters a request; false if the id is in use.
    pub(super) fn insert(&mut self, id: RequestId, ticket: Ticket) -> bool {
        if self.0.back().is_none_or(|(last, _)| *last < id) {
            self.0.push_back((id, ticket));
            return true;
        }
        match self.place(id) {
            Ok(_) => false,
            Err(place) => {
                self.0.insert(place, (id, ticket));
                true
            }
        }
    }

    pub(super) fn get(&self, id: RequestId) -> Option<Ticket> {
        self.place(id).ok().map(|place| self.0[place].1)
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Ticket> {
        let removed = self.place(id).ok().and_then(|place| self.0.remove(place));
        let room = self.0.len() * 2;
        if self.0.capacity() > (room * 2).max(ROOM_MIN) {
            self.0.shrink_to(room.max(ROOM_MIN));
        }
        removed.map(|(_, ticket)| ticket)
    }

    pub(super) fn into_tickets(self) -> impl Iterator<Item = Ticket> {
        self.0.into_iter().map(|(_, ticket)| ticket)
    }

    /// Where it is, or would be.
    fn place(&self, id: RequestId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn room_is_given_back() {
        let mut filed = Filed::default();
        assert!((0..10_000).all(|id| filed.insert(id, Ticket(id))));
        assert!((0..9_990).all(|id| filed.remove(id) == Some(Ticket(id))));
        assert!(filed.0.capacity() <= 64, "{}", filed.0.capacity());
        assert!((9_990..10_000).all(|id| filed.get(id) == Some(Ticket(id))));
    }

    proptest! {
        /// Whatever the order of ids, it is a map.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..40_u64, any::<bool>()), 0..400)) {
            let (mut filed, mut map) = (Filed::default(), BTreeMap::new());
            for (number, (id, enters)) in (0..).zip(steps) {
                if enters {
                    let is_new = !map.contains_key(&id);
                    prop_assert_eq!(filed.insert(id, Ticket(number)), is_new);
                    map.entry(id).or_insert(Ticket(number));
                } else {
                    prop_assert_eq!(filed.remove(id), map.remove(&id));
                }
                prop_assert_eq!(filed.get(id), map.get(&id).copied());
                prop_assert_eq!(filed.len(), map.len());
            }
            prop_assert!(filed.into_tickets().eq(map.into_values()));
        }
    }
}
