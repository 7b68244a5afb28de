//! What Hellos were answered of late, in bytes: whoever comes to the same generation of a backend is told the same.

use std::hash::{BuildHasher as _, Hash};

use broker_proto::{CodecError, NegotiatedRef, PreparedNegotiated};
use rustc_hash::FxBuildHasher;

/// How many backends' answers are kept; where two meet, the later one is. A power of two.
const KEPT: usize = 64;

/// One answer for each of some backends.
#[derive(Debug)]
pub(super) struct Answers<B>(Vec<Option<Answer<B>>>);

#[derive(Debug)]
struct Answer<B> {
    facts: Facts<B>,
    bytes: PreparedNegotiated,
}

/// What may differ from one answer of a backend to its next. All else is the generation's for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts<B> {
    backend: B,
    generation: u64,
    pid: Option<u32>,
    connected: bool,
}

impl<B: Copy + Eq + Hash> Answers<B> {
    /// Keeps nothing, and takes no memory for that.
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// The answer that a backend gives now, prepared if it is another one than it gave last.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(super) fn prepared(
        &mut self,
        backend: B,
        negotiated: &NegotiatedRef<'_>,
    ) -> Result<&PreparedNegotiated, CodecError> {
        if self.0.is_empty() {
            self.0.resize_with(KEPT, || None);
        }
        let NegotiatedRef { generation, pid, connected, .. } = *negotiated;
        let facts = Facts { backend, generation, pid, connected };
        let place = usize::try_from(FxBuildHasher.hash_one(backend) % KEPT as u64).unwrap_or_default();
        let kept = match self.0[place].take() {
            Some(kept) if kept.facts == facts => kept,
            _ => Answer { facts, bytes: PreparedNegotiated::new(negotiated)? },
        };
        Ok(&self.0[place].insert(kept).bytes)
    }
}

#[cfg(test)]
mod tests {
    use broker_proto::{Endpoint, Negotiated, ServerMessageRef, encode_frame};

    use super::*;

    #[test]
    fn whatever_was_answered_before_it_is_the_answer_of_now() {
        let mut answers = Answers::new();
        let endpoints = [1, 2].map(|backend| Endpoint::Unix { path: format!("/run/{backend}.sock") });
        // More backends than there is room for, each with what may change of it, and back again.
        for round in 0..3 * 200 {
            let backend = round % 200;
            let negotiated = Negotiated {
                request_id: round,
                instance: "default",
                service: if backend % 2 == 0 { "redis" } else { "postgres" },
                version: "1.2.3",
                endpoint: &endpoints[usize::try_from(backend % 2).expect("small")],
                generation: 1 + round / 300,
                pid: (backend % 3 > 0).then_some(u32::try_from(round / 150).expect("small")),
                connected: round % 7 == 0,
            };
            // Once to have it made, once to have it found.
            for request_id in [round, round + 1000] {
                let negotiated = Negotiated { request_id, ..negotiated };
                let (mut ours, mut encoded) = (Vec::new(), Vec::new());
                let prepared = answers.prepared(backend, &negotiated).expect("it is short");
                prepared.append_frame(request_id, &mut ours).expect("it is short");
                encode_frame(&ServerMessageRef::Negotiated(negotiated), &mut encoded).expect("it is short");
                assert_eq!(ours, encoded, "{negotiated:?}");
            }
        }
    }
}
