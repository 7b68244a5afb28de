//! What Hellos have named of late, and which backend that was: a client that asks for the same again is not parsed and looked
//! up anew.
//!
//! It remembers and decides nothing: whether the client may have the service is asked each time.

use std::hash::Hasher as _;

use broker_proto::HelloRef;
use rustc_hash::FxHasher;

/// How many are remembered; where two meet, the later one is. A power of two.
const REMEMBERED: usize = 64;

/// What was found under the names of a catalogue; with another catalogue they may mean another backend.
#[derive(Debug)]
pub(super) struct Lookups<T>(Vec<Option<Lookup<T>>>);

#[derive(Debug)]
struct Lookup<T> {
    instance: Box<str>,
    service: Box<str>,
    requirement: Box<str>,
    backend: T,
}

impl<T: Copy> Lookups<T> {
    /// Knows nothing, and takes no memory for that.
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// The backend that a Hello in these words has come to, which may have been forgotten since.
    pub(super) fn find(&self, hello: &HelloRef<'_>) -> Option<T> {
        let lookup = self.0.get(place(hello))?.as_ref()?;
        let is_same = *lookup.instance == *hello.instance
            && *lookup.service == *hello.service
            && *lookup.requirement == *hello.version_requirement;
        is_same.then_some(lookup.backend)
    }

    /// Takes note of what a Hello has come to.
    pub(super) fn note(&mut self, hello: &HelloRef<'_>, backend: T) {
        if self.0.is_empty() {
            self.0.resize_with(REMEMBERED, || None);
        }
        self.0[place(hello)] = Some(Lookup {
            instance: hello.instance.into(),
            service: hello.service.into(),
            requirement: hello.version_requirement.into(),
            backend,
        });
    }

    /// Forgets all: the catalogue is another one.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where a Hello in these words is remembered.
fn place(hello: &HelloRef<'_>) -> usize {
    let mut hasher = FxHasher::default();
    for text in [hello.instance, hello.service, hello.version_requirement] {
        hasher.write(text.as_bytes());
    }
    usize::try_from(hasher.finish() % REMEMBERED as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use broker_proto::{ClientInfo, Delivery};

    use super::*;

    fn hello<'a>(instance: &'a str, service: &'a str, version_requirement: &'a str) -> HelloRef<'a> {
        HelloRef {
            request_id: 1,
            instance,
            service,
            version_requirement,
            client: ClientInfo { name: "c", version: "1" },
            deadline_ms: None,
            delivery: Delivery::Endpoint,
            found_dead: None,
        }
    }

    #[test]
    fn only_the_same_words_are_the_same() {
        let mut lookups = Lookups::new();
        assert_eq!(lookups.find(&hello("a", "b", "*")), None);
        lookups.note(&hello("a", "b", "*"), 7);
        assert_eq!(lookups.find(&hello("a", "b", "*")), Some(7));
        for other in [hello("b", "b", "*"), hello("a", "c", "*"), hello("a", "b", "^1"), hello("ab", "", "*")] {
            assert_eq!(lookups.find(&other), None, "{other:?}");
        }
        lookups.clear();
        assert_eq!(lookups.find(&hello("a", "b", "*")), None);
    }

    #[test]
    fn of_any_number_the_latest_are_remembered_each_as_what_it_was() {
        let mut lookups = Lookups::new();
        let names: Vec<String> = (0..10 * REMEMBERED).map(|number| format!("i{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            lookups.note(&hello(name, "b", "*"), number);
            assert_eq!(lookups.find(&hello(name, "b", "*")), Some(number));
        }
        let found = names.iter().enumerate().filter_map(|(number, name)| {
            let found = lookups.find(&hello(name, "b", "*"))?;
            assert_eq!(found, number);
            Some(found)
        });
        let found = found.count();
        // Strewn evenly, about two thirds of the places would be taken by as many names as there are places.
        assert!((REMEMBERED / 2..=REMEMBERED).contains(&found), "{found}");
    }
}
