//! One connected stream to the broker: preamble, frames and descriptors. Owns the descriptors that arrived and nobody
//! has claimed; knows nothing of requests.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use broker_proto::{
    ClientMessage, Code, CodecError, FIRST_FRAME_MAX, FRAME_MAX, HIGHEST_VERSION, LENGTH_BYTES, LOWEST_VERSION,
    Preamble, Reassembler, Refusal, ServerMessage, decode, encode_frame,
};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::{Interest, Ready};
use tokio::net::UnixStream;

use crate::error::{End, ProtocolError};

/// Above this many unsent bytes no new message is written.
const OUTPUT_SOFT_MAX: usize = 64 << 10;
/// Above this many unsent bytes nothing more is read either: a peer that does not read is not served with answers.
const OUTPUT_HARD_MAX: usize = 1 << 20;
/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;
/// The most descriptors that the kernel puts into one message (`SCM_MAX_FD`): with room for all of them a truncation
/// can only mean that this process has none left.
const DESCRIPTORS_PER_MESSAGE: usize = 253;
/// The most descriptors that may wait for their frame to become whole; the protocol needs one.
const DESCRIPTORS_UNCLAIMED_MAX: usize = 16;

/// How far the two sides have agreed on a version.
#[derive(Debug)]
enum Greeting {
    /// Nothing has been said.
    Silent,
    /// Preamble and first message are on their way; the server's preamble has not been read. Nothing else is sent until
    /// then, so that a server that cannot read this version has one message to skip.
    Sent { first: Vec<u8>, again: bool },
    /// The server has spoken first, as one does that refuses at the door; the client's preamble is still to be sent.
    Heard,
    /// Frames flow.
    Done,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// There may be new messages.
    Some,
    /// Nothing has arrived.
    Nothing,
    /// The peer has closed, and everything before that has been read.
    End,
}

#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
    greeting: Greeting,
    input: Reassembler,
    output: Vec<u8>,
    written: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Wire {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            greeting: Greeting::Silent,
            input: Reassembler::default(),
            output: Vec::new(),
            written: 0,
            descriptors: VecDeque::new(),
        }
    }

    /// Whether another message may be written now.
    pub(crate) fn may_send(&self) -> bool {
        !matches!(self.greeting, Greeting::Sent { .. }) && self.unsent() < OUTPUT_SOFT_MAX
    }

    /// Whether a message has begun and is not whole.
    pub(crate) fn is_midway(&self) -> bool {
        self.input.is_midway()
    }

    /// Whether the two sides have agreed on a version.
    pub(crate) fn is_greeted(&self) -> bool {
        matches!(self.greeting, Greeting::Heard | Greeting::Done)
    }

    /// Queues a message; [`flush`](Self::flush) sends it. The first one takes the preamble with it.
    pub(crate) fn send(&mut self, message: &ClientMessage) -> Result<(), CodecError> {
        if !matches!(self.greeting, Greeting::Silent | Greeting::Heard) {
            return encode_frame(message, &mut self.output);
        }
        let mut first = Vec::new();
        encode_frame(message, &mut first)?;
        let length = first.len() - LENGTH_BYTES;
        if length > FIRST_FRAME_MAX {
            return Err(CodecError::TooLong { length });
        }
        self.greet(HIGHEST_VERSION, &first);
        self.greeting = match self.greeting {
            Greeting::Heard => Greeting::Done,
            _ => Greeting::Sent { first, again: false },
        };
        Ok(())
    }

    /// Writes what the kernel takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.unsent() > 0 {
            match self.stream.try_write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // An idle session keeps no memory.
        self.output = Vec::new();
        self.written = 0;
        Ok(())
    }

    /// Waits until there is something to read, or to write where something is left.
    pub(crate) async fn ready(&self) -> io::Result<Ready> {
        let interest = match self.unsent() {
            0 => Interest::READABLE,
            OUTPUT_HARD_MAX.. => Interest::WRITABLE,
            _ => Interest::READABLE | Interest::WRITABLE,
        };
        self.stream.ready(interest).await
    }

    /// Reads once, bytes and descriptors, if [`ready`](Self::ready) has said that there are some.
    pub(crate) fn receive(&mut self) -> Result<Received, End> {
        let mut bytes = [0; READ_BYTES];
        let read = self.stream.try_io(Interest::READABLE, || receive_message(self.stream.as_raw_fd(), &mut bytes));
        self.take(read, &bytes)
    }

    /// Reads once without having waited: what the peer said before it closed may be there before any sign of it.
    pub(crate) fn receive_rest(&mut self) -> Result<Received, End> {
        let mut bytes = [0; READ_BYTES];
        let read = receive_message(self.stream.as_raw_fd(), &mut bytes);
        self.take(read, &bytes)
    }

    fn take(&mut self, read: io::Result<Option<(usize, Vec<OwnedFd>)>>, bytes: &[u8]) -> Result<Received, End> {
        let (count, descriptors) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return Err(End::Protocol(ProtocolError::DescriptorsLost)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
            // A peer that closes while something of ours is unread closes all the same.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !self.input.is_midway() => (0, Vec::new()),
            Err(error) => return Err(End::Lost(Arc::new(error))),
        };
        if count == 0 && self.input.is_midway() {
            return Err(End::Lost(Arc::new(io::ErrorKind::UnexpectedEof.into())));
        }
        if count == 0 {
            return Ok(Received::End);
        }
        self.descriptors.extend(descriptors);
        if self.descriptors.len() > DESCRIPTORS_UNCLAIMED_MAX {
            return Err(End::Protocol(ProtocolError::DescriptorsLost));
        }
        self.input.space().extend_from_slice(&bytes[..count]);
        Ok(Received::Some)
    }

    /// Takes the next whole message.
    pub(crate) fn next_message(&mut self) -> Result<Option<ServerMessage>, End> {
        while !matches!(self.greeting, Greeting::Heard | Greeting::Done) {
            match self.input.preamble().map_err(protocol)? {
                Some(preamble) => self.greeted(preamble)?,
                None => return Ok(None),
            }
        }
        match self.input.frame(FRAME_MAX).map_err(protocol)? {
            Some(body) => match decode(body) {
                Ok(message) => Ok(Some(message)),
                Err(error) => Err(End::Protocol(ProtocolError::Message(Arc::new(error)))),
            },
            None => Ok(None),
        }
    }

    /// Takes the descriptor that came with the message just read.
    pub(crate) fn claim(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Closes descriptors that no message announced, once every message that has arrived is read, and gives memory
    /// back.
    pub(crate) fn settle(&mut self) {
        if self.input.is_midway() {
            return;
        }
        self.input.release_memory();
        if !self.descriptors.is_empty() {
            tracing::warn!(count = self.descriptors.len(), "closed descriptors that no message announced");
            self.descriptors = VecDeque::new();
        }
    }

    fn unsent(&self) -> usize {
        self.output.len() - self.written
    }

    fn greet(&mut self, version: u16, first: &[u8]) {
        self.output.extend_from_slice(&Preamble::writing(version).to_bytes());
        self.output.extend_from_slice(first);
    }

    /// Goes on by the server's preamble: frames follow, or the first message is to be sent again.
    fn greeted(&mut self, server: Preamble) -> Result<(), End> {
        if server.written != 0 && server.is_readable() {
            self.greeting = match self.greeting {
                Greeting::Silent => Greeting::Heard,
                _ => Greeting::Done,
            };
            return Ok(());
        }
        let Some(version) = server.common() else {
            let reason = format!(
                "the broker speaks protocol versions {} to {}, this client {LOWEST_VERSION} to {HIGHEST_VERSION}",
                server.lowest, server.highest
            );
            return Err(End::Refused(Box::new(Refusal::new(Code::ProtocolUnsupported, reason))));
        };
        match std::mem::replace(&mut self.greeting, Greeting::Silent) {
            Greeting::Sent { first, again: false } if server.written == 0 => {
                self.greet(version, &first);
                self.greeting = Greeting::Sent { first, again: true };
                Ok(())
            }
            // It chose a version that was not offered, or cannot read the one that it asked for.
            _ => Err(End::Protocol(ProtocolError::Version { version: server.written })),
        }
    }
}

fn protocol(error: broker_proto::FrameError) -> End {
    End::Protocol(ProtocolError::Frame(error))
}

/// One recvmsg. `None` when descriptors were lost: an unknown number has been dropped, so no later one can be trusted
/// to belong to its frame.
fn receive_message(socket: RawFd, bytes: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_PER_MESSAGE]);
    let mut into = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(socket, &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let Ok(control) = message.cmsgs() else { return Ok(None) };
    let mut descriptors = Vec::new();
    for control in control {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers.into_iter().map(owned));
        }
    }
    Ok(Some((message.bytes, descriptors)))
}

/// Takes a descriptor that the kernel has just put into this process's table.
#[expect(unsafe_code, reason = "recvmsg yields bare numbers, and nix has no owning form of them")]
fn owned(number: RawFd) -> OwnedFd {
    // SAFETY: the number comes from the SCM_RIGHTS message of a recvmsg that succeeded, so it is open, and nothing else
    // in this process knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn a_received_descriptor_is_not_inherited_by_children() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let numbers = [far.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&numbers)];
        let sent = sendmsg::<()>(far.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(1));
        let mut bytes = [0; 8];
        let (count, descriptors) = receive_message(near.as_raw_fd(), &mut bytes).expect("read").expect("nothing lost");
        assert_eq!((count, descriptors.len()), (1, 1));
        let flags = fcntl(&descriptors[0], FcntlArg::F_GETFD).expect("open");
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
}
