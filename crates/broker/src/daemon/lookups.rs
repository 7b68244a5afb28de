//! What Hellos have named of late, and which backend that was: a client that asks for the same again is not read, parsed and
//! looked up anew.
//!
//! It remembers and decides nothing: whether the client may have the service is asked each time.

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

/// How many are remembered; where two meet, the later one is. A power of two.
const REMEMBERED: usize = 64;

/// Who says more is read each time, or clients could have the broker keep whatever they say.
const TEXTS_MAX: usize = 512;

/// What was found under the texts of Hellos, in the bytes that they came in. In another catalogue they may name another
/// backend.
#[derive(Debug)]
pub(super) struct Lookups<T>(Vec<Option<Lookup<T>>>);

#[derive(Debug)]
struct Lookup<T> {
    texts: Box<[u8]>,
    backend: T,
}

impl<T: Copy> Lookups<T> {
    /// Knows nothing, and takes no memory for that.
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// The backend that a Hello of these texts has come to, which may have been forgotten since.
    pub(super) fn find(&self, texts: &[u8]) -> Option<T> {
        let lookup = self.0.get(place(texts))?.as_ref()?;
        (*lookup.texts == *texts).then_some(lookup.backend)
    }

    /// Takes note of what a Hello has come to.
    pub(super) fn note(&mut self, texts: &[u8], backend: T) {
        if texts.len() > TEXTS_MAX {
            return;
        }
        if self.0.is_empty() {
            self.0.resize_with(REMEMBERED, || None);
        }
        self.0[place(texts)] = Some(Lookup { texts: texts.into(), backend });
    }

    /// Forgets all: the catalogue is another one.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where these texts are remembered.
fn place(texts: &[u8]) -> usize {
    let mut hasher = FxHasher::default();
    hasher.write(texts);
    usize::try_from(hasher.finish() % REMEMBERED as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_texts_are_the_same() {
        let mut lookups = Lookups::new();
        assert_eq!(lookups.find(b"\x01a\x01b"), None);
        lookups.note(b"\x01a\x01b", 7);
        assert_eq!(lookups.find(b"\x01a\x01b"), Some(7));
        for other in [&b"\x01b\x01b"[..], b"\x01a\x01c", b"\x02ab\x00", b"\x01a", b""] {
            assert_eq!(lookups.find(other), None, "{other:?}");
        }
        lookups.clear();
        assert_eq!(lookups.find(b"\x01a\x01b"), None);
    }

    #[test]
    fn whoever_says_much_has_nothing_kept() {
        let mut lookups = Lookups::new();
        let long = [b'a'; TEXTS_MAX + 1];
        lookups.note(&long, 7);
        assert_eq!(lookups.find(&long), None);
        lookups.note(&long[1..], 7);
        assert_eq!(lookups.find(&long[1..]), Some(7));
    }

    #[test]
    fn of_any_number_the_latest_are_remembered_each_as_what_it_was() {
        let mut lookups = Lookups::new();
        let texts: Vec<String> = (0..10 * REMEMBERED).map(|number| format!("i{number}")).collect();
        for (number, text) in texts.iter().enumerate() {
            lookups.note(text.as_bytes(), number);
            assert_eq!(lookups.find(text.as_bytes()), Some(number));
        }
        let found = texts.iter().enumerate().filter_map(|(number, text)| {
            let found = lookups.find(text.as_bytes())?;
            assert_eq!(found, number);
            Some(found)
        });
        let found = found.count();
        // Strewn evenly, about two thirds of the places would be taken by as many texts as there are places.
        assert!((REMEMBERED / 2..=REMEMBERED).contains(&found), "{found}");
    }
}
