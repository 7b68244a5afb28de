//! Preamble and frames: where one message ends and the next begins. Bytes in, bodies out; no socket.

use std::mem;
use std::ops::Range;

/// Bytes of a frame's length prefix.
pub const LENGTH_BYTES: usize = 4;

/// The longest body of a frame, in bytes: 1 MiB.
pub const FRAME_MAX: usize = 1 << 20;

/// The longest body before the peer is accepted, that is of a client's first message, in bytes: 64 KiB.
pub const FIRST_FRAME_MAX: usize = 64 << 10;

/// The first bytes of each side, for ever.
pub const MAGIC: [u8; 4] = *b"PBRK";

/// The lowest protocol version that this crate can read.
pub const LOWEST_VERSION: u16 = 1;

/// The highest protocol version that this crate can read, and the one that it writes.
pub const HIGHEST_VERSION: u16 = 1;

/// What each side sends before its first message: frozen for ever.
///
/// Ten bytes: `PBRK`, then three `u16`, little endian: lowest version, highest version, and the version of what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// The lowest protocol version that the sender can read.
    pub lowest: u16,
    /// The highest protocol version that the sender can read.
    pub highest: u16,
    /// The version in which the frames that follow are written; 0 when none follow yet, which is how a server says that
    /// it could not read the client's and waits for another preamble.
    pub written: u16,
}

/// Why bytes are no preamble or frame. The stream is lost: there is no telling where the next frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not begin with [`MAGIC`].
    #[error("the peer does not speak this protocol: it began with {0:02x?}")]
    Magic([u8; 4]),
    /// A frame claims to be longer than it may be.
    #[error("frame of {length} bytes, the limit is {limit}")]
    TooLong {
        /// What the prefix says.
        length: u32,
        /// What is allowed at this point.
        limit: usize,
    },
}

impl Preamble {
    /// Bytes of a preamble.
    pub const LENGTH: usize = 10;

    /// The preamble of this crate, for frames written in `version`.
    #[must_use]
    pub const fn writing(version: u16) -> Self {
        Self { lowest: LOWEST_VERSION, highest: HIGHEST_VERSION, written: version }
    }

    /// The preamble's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.lowest.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.highest.to_le_bytes());
        bytes[8..].copy_from_slice(&self.written.to_le_bytes());
        bytes
    }

    /// Reads a preamble.
    ///
    /// # Errors
    /// The bytes do not begin with [`MAGIC`].
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, l0, l1, h0, h1, w0, w1] = bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::Magic([m0, m1, m2, m3]));
        }
        Ok(Self {
            lowest: u16::from_le_bytes([l0, l1]),
            highest: u16::from_le_bytes([h0, h1]),
            written: u16::from_le_bytes([w0, w1]),
        })
    }

    /// Whether this crate can read what the sender writes after this preamble.
    #[must_use]
    pub fn is_readable(self) -> bool {
        (LOWEST_VERSION..=HIGHEST_VERSION).contains(&self.written)
    }

    /// The highest version that both sides can read, if there is one.
    #[must_use]
    pub fn common(self) -> Option<u16> {
        let highest = self.highest.min(HIGHEST_VERSION);
        (highest >= self.lowest.max(LOWEST_VERSION)).then_some(highest)
    }
}

/// Collects the bytes of a stream and gives out preamble and bodies as they become whole.
///
/// Memory grows with what has arrived, never with what a prefix claims.
#[derive(Debug, Default)]
pub struct Reassembler {
    bytes: Vec<u8>,
    taken: usize,
}

impl Reassembler {
    /// Where arriving bytes are appended.
    pub fn space(&mut self) -> &mut Vec<u8> {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        &mut self.bytes
    }

    /// Gives the memory out when nothing is kept, so that an idle stream costs none: to be dropped, or for another stream.
    pub fn release_memory(&mut self) -> Vec<u8> {
        if self.is_midway() {
            return Vec::new();
        }
        self.taken = 0;
        let mut memory = mem::take(&mut self.bytes);
        memory.clear();
        memory
    }

    /// Whether part of a preamble or frame has arrived and the rest has not.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        self.taken < self.bytes.len()
    }

    /// Takes the preamble, once it is whole. Bytes that cannot become one are an error at once.
    ///
    /// # Errors
    /// The stream does not begin with [`MAGIC`].
    pub fn preamble(&mut self) -> Result<Option<Preamble>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let seen = rest.len().min(MAGIC.len());
        if rest[..seen] != MAGIC[..seen] {
            let mut began = [0; MAGIC.len()];
            began[..seen].copy_from_slice(&rest[..seen]);
            return Err(FrameError::Magic(began));
        }
        let Some(bytes) = rest.first_chunk::<{ Preamble::LENGTH }>() else {
            return Ok(None);
        };
        let preamble = Preamble::from_bytes(*bytes)?;
        self.taken += Preamble::LENGTH;
        Ok(Some(preamble))
    }

    /// Takes the body of the next frame, once it is whole.
    ///
    /// # Errors
    /// The frame's prefix is above the limit; nothing was set aside for it.
    pub fn frame(&mut self, limit: usize) -> Result<Option<&[u8]>, FrameError> {
        Ok(self.next(limit)?.map(|range| &self.bytes[range]))
    }

    fn next(&mut self, limit: usize) -> Result<Option<Range<usize>>, FrameError> {
        let Some(prefix) = self.bytes[self.taken..].first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let claimed = u32::from_le_bytes(*prefix);
        let length = match usize::try_from(claimed) {
            Ok(length) if length <= limit => length,
            _ => return Err(FrameError::TooLong { length: claimed, limit }),
        };
        let start = self.taken + LENGTH_BYTES;
        let end = start + length;
        if self.bytes.len() < end {
            return Ok(None);
        }
        self.taken = end;
        Ok(Some(start..end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_4_gib_prefix_is_refused_before_memory_is_set_aside() {
        let mut stream = Reassembler::default();
        stream.space().extend_from_slice(&[0xff; 4]);
        assert_eq!(stream.frame(FRAME_MAX), Err(FrameError::TooLong { length: u32::MAX, limit: FRAME_MAX }));
        assert!(stream.space().capacity() < 1024);
    }

    #[test]
    fn garbage_is_known_by_its_first_byte() {
        let mut stream = Reassembler::default();
        stream.space().extend_from_slice(b"GET / HTTP/1.1");
        assert_eq!(stream.preamble(), Err(FrameError::Magic(*b"GET ")));
        let mut stream = Reassembler::default();
        stream.space().extend_from_slice(b"G");
        assert_eq!(stream.preamble(), Err(FrameError::Magic(*b"G\0\0\0")));
    }

    #[test]
    fn versions_meet_at_the_highest_in_common() {
        let peer = |lowest, highest| Preamble { lowest, highest, written: highest }.common();
        assert_eq!(peer(1, 1), Some(1));
        assert_eq!(peer(1, 9), Some(HIGHEST_VERSION));
        assert_eq!(peer(7, 9), None);
        assert_eq!(peer(9, 1), None);
    }

    #[test]
    fn an_idle_stream_keeps_no_memory() {
        let mut stream = Reassembler::default();
        stream.space().extend_from_slice(&[1, 0, 0, 0, 42]);
        assert_eq!(stream.frame(FRAME_MAX), Ok(Some(&[42][..])));
        stream.space().extend_from_slice(&[1, 0]);
        assert_eq!(stream.release_memory().capacity(), 0, "part of a frame is kept");
        stream.space().extend_from_slice(&[0, 0, 42]);
        assert_eq!(stream.frame(FRAME_MAX), Ok(Some(&[42][..])));
        let memory = stream.release_memory();
        assert!(memory.is_empty() && memory.capacity() > 0);
        assert_eq!(stream.space().capacity(), 0);
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_the_stream_is_cut(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            cuts in proptest::collection::vec(1usize..17, 1..40),
        ) {
            let mut wire = Preamble::writing(1).to_bytes().to_vec();
            for body in &bodies {
                wire.extend_from_slice(&u32::try_from(body.len()).expect("short").to_le_bytes());
                wire.extend_from_slice(body);
            }
            let mut stream = Reassembler::default();
            let mut preamble = None;
            let mut seen: Vec<Vec<u8>> = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                stream.space().extend_from_slice(now);
                if preamble.is_none() { preamble = stream.preamble().expect("a preamble"); }
                if preamble.is_some() {
                    while let Some(body) = stream.frame(FRAME_MAX).expect("valid frames") { seen.push(body.to_vec()); }
                }
            }
            prop_assert_eq!(preamble, Some(Preamble::writing(1)));
            prop_assert_eq!(seen, bodies);
            prop_assert!(!stream.is_midway());
        }
    }
}
