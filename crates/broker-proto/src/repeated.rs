//! What is said again and again, with another request's id each time: taken apart and put together around the bytes that
//! stay the same.
//!
//! The bytes are those of [`decode`](crate::decode) and [`encode_frame`](crate::encode_frame), which say what they mean.

use crate::codec::{CodecError, append, decode_part, encode_frame_of};
use crate::message::{Delivery, Hello, Negotiated, NegotiatedRef, RequestId};

/// The variants' places in [`ClientMessageOf`](crate::ClientMessageOf) and [`ServerMessageOf`](crate::ServerMessageOf).
const HELLO: u32 = 0;
const NEGOTIATED: u32 = 0;

/// How many texts a Hello has, one behind the other.
const TEXTS: usize = 5;

/// The longest text whose length is one byte.
const SHORT_MAX: u8 = 250;

/// What a Hello says besides its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// As in [`Hello`].
    pub request_id: RequestId,
    /// As in [`Hello`].
    pub deadline_ms: Option<u64>,
    /// As in [`Hello`].
    pub delivery: Delivery,
    /// As in [`Hello`].
    pub found_dead: Option<u64>,
}

impl<T> Hello<T> {
    /// What it says besides its texts.
    #[must_use]
    pub fn terms(&self) -> Terms {
        let Self { request_id, deadline_ms, delivery, found_dead, .. } = *self;
        Terms { request_id, deadline_ms, delivery, found_dead }
    }
}

/// A Hello whose texts nobody has read yet: who has read the same bytes before knows what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadHello<'a> {
    /// All its texts as they came, which may turn out to be none.
    pub texts: &'a [u8],
    /// The rest of it.
    pub terms: Terms,
}

impl<'a> UnreadHello<'a> {
    /// Takes a body apart. None is for what is no Hello, and for one with a text of more than 250 bytes.
    #[must_use]
    pub fn of(body: &'a [u8]) -> Option<Self> {
        let ((HELLO, request_id), said) = decode_part::<(u32, RequestId)>(body)? else { return None };
        let mut rest = said;
        for _ in 0..TEXTS {
            let (&length, text) = rest.split_first().filter(|(length, _)| **length <= SHORT_MAX)?;
            rest = text.get(usize::from(length)..)?;
        }
        let texts = &said[..said.len() - rest.len()];
        let ((deadline_ms, delivery, found_dead), []) = decode_part(rest)? else { return None };
        Some(Self { texts, terms: Terms { request_id, deadline_ms, delivery, found_dead } })
    }
}

/// A Negotiated, but for the Hello that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedNegotiated(Box<[u8]>);

impl PreparedNegotiated {
    /// Prepares the answer for Hellos of whatever id.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn new(negotiated: &NegotiatedRef<'_>) -> Result<Self, CodecError> {
        let Negotiated { request_id: _, instance, service, version, endpoint, generation, pid, connected } = negotiated;
        let mut bytes = Vec::new();
        append(&(instance, service, version, endpoint, generation, pid, connected), &mut bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Appends the answer to the Hello of that id as one frame.
    ///
    /// # Errors
    /// The message is too long for a frame; `out` is then as it was.
    pub fn append_frame(&self, request_id: RequestId, out: &mut Vec<u8>) -> Result<(), CodecError> {
        encode_frame_of(&(NEGOTIATED, request_id), &self.0, out)
    }
}
