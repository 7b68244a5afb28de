//! What a session has yet to send.
//!
//! A message is written to the socket at once; what the socket does not take is kept, in order, until it does. A peer
//! that does not read loses its session when too much is kept, and nothing else does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use broker_proto::{ServerMessage, encode_frame};

use super::connection::Connection;

/// The most that is kept for a peer that does not read, in bytes: 4 MiB, four of the longest frames.
const KEPT_MAX: usize = 4 << 20;

/// What is kept, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    chunks: VecDeque<Chunk>,
    kept: usize,
}

#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    sent: usize,
    /// Travels with the first byte, in a message that carries this frame alone.
    descriptor: Option<OwnedFd>,
}

/// Why a message is not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsent {
    /// The peer reads too slowly for what it asks.
    #[error("{kept} bytes wait for a peer that does not read them")]
    Overfull { kept: usize },
    /// Only a report can be that long.
    #[error("the message is longer than a frame may be")]
    TooLong,
}

/// Whether the kernel keeps bytes of ours that the peer has not read.
pub(super) fn has_unread(connection: &Connection) -> bool {
    let mut kept: libc::c_int = 0;
    // SAFETY: an open socket; the kernel writes one integer. The request is SIOCOUTQ's other name.
    let result = unsafe { libc::ioctl(connection.as_raw_fd(), libc::TIOCOUTQ, &raw mut kept) };
    result == 0 && kept > 0
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How much there is, in bytes.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Appends raw bytes: the preamble.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.kept += bytes.len();
        self.tail().bytes.extend_from_slice(bytes);
    }

    /// Appends a message, and the descriptor that goes with it.
    ///
    /// # Errors
    /// Too much is kept already.
    pub(super) fn push(&mut self, message: &ServerMessage, descriptor: Option<OwnedFd>) -> Result<(), Unsent> {
        let alone = descriptor.is_some();
        if alone {
            self.chunks.push_back(Chunk { descriptor, ..Chunk::default() });
        }
        let bytes = &mut self.tail_or(alone).bytes;
        let before = bytes.len();
        if let Err(error) = encode_frame(message, bytes) {
            tracing::error!(%error, "a message cannot be sent");
            return Err(Unsent::TooLong);
        }
        self.kept += bytes.len() - before;
        if self.kept > KEPT_MAX { Err(Unsent::Overfull { kept: self.kept }) } else { Ok(()) }
    }

    /// The last chunk, if bytes may be added to it; a chunk with a descriptor carries its own frame alone.
    fn tail(&mut self) -> &mut Chunk {
        self.tail_or(false)
    }

    fn tail_or(&mut self, alone: bool) -> &mut Chunk {
        let fresh = self.chunks.back().is_none_or(|last| last.descriptor.is_some() && !alone);
        if fresh {
            self.chunks.push_back(Chunk::default());
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }

    /// Writes as much as the socket takes now.
    ///
    /// # Errors
    /// The connection is lost. A socket that takes no more for now is no error.
    pub(super) fn flush(&mut self, connection: &Connection) -> io::Result<()> {
        while let Some(chunk) = self.chunks.front_mut() {
            let rest = &chunk.bytes[chunk.sent..];
            let sent = connection.write(rest, chunk.descriptor.as_ref());
            match sent {
                Ok(count) => {
                    self.kept -= count;
                    chunk.sent += count;
                    chunk.descriptor = None;
                    if chunk.sent == chunk.bytes.len() {
                        self.chunks.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.chunks.capacity() > 0 && self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
        Ok(())
    }
}
