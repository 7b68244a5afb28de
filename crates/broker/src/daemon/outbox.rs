//! What a session has yet to send.
//!
//! A message is written to the socket at once; what the socket does not take is kept, in order, until it does. A peer
//! that does not read loses its session when too much is kept, and nothing else does.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use broker_proto::{CodecError, Preamble};

use super::connection::Connection;

/// The most that is kept for a peer that does not read, in bytes: 4 MiB, four of the longest frames.
const KEPT_MAX: usize = 4 << 20;

/// What is kept, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Where a descriptor goes along, in a message of its own.
    parcels: VecDeque<Parcel>,
    /// Whether all that is kept is our preamble, which may go along with the frame after it.
    is_preamble: bool,
}

#[derive(Debug)]
struct Parcel {
    /// Where its message is among the bytes.
    message: Range<usize>,
    /// None once it is sent: with the first byte.
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
        self.kept() == 0
    }

    /// How much there is, in bytes.
    pub(super) fn kept(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether room was never given to it, or taken away.
    pub(super) fn has_no_room(&self) -> bool {
        self.bytes.capacity() == 0
    }

    /// Gives it room, when it has none.
    pub(super) fn give_room(&mut self, room: Vec<u8>) {
        self.bytes = room;
    }

    /// Takes its room away, when it is empty.
    pub(super) fn take_room(&mut self) -> Vec<u8> {
        let mut room = mem::take(self).bytes;
        room.clear();
        room
    }

    pub(super) fn push_preamble(&mut self, preamble: Preamble) {
        self.is_preamble = self.is_empty();
        self.room().extend_from_slice(&preamble.to_bytes());
    }

    /// Has a message appended as a frame, and takes the descriptor that goes with it.
    ///
    /// # Errors
    /// Too much is kept already.
    pub(super) fn push(
        &mut self,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), Unsent> {
        let room = self.room();
        let start = room.len();
        if let Err(error) = append(room) {
            tracing::error!(%error, "a message cannot be sent");
            return Err(Unsent::TooLong);
        }
        if descriptor.is_some() {
            let start = if self.is_preamble { self.sent } else { start };
            self.parcels.push_back(Parcel { message: start..self.bytes.len(), descriptor });
        }
        self.is_preamble = false;
        let kept = self.kept();
        if kept > KEPT_MAX { Err(Unsent::Overfull { kept }) } else { Ok(()) }
    }

    /// Where bytes are appended. What was sent goes once it is more than the rest, so that each byte is moved once at most.
    fn room(&mut self) -> &mut Vec<u8> {
        if self.sent > self.kept() {
            self.bytes.drain(..self.sent);
            for Parcel { message, .. } in &mut self.parcels {
                *message = message.start.saturating_sub(self.sent)..message.end - self.sent;
            }
            self.sent = 0;
        }
        &mut self.bytes
    }

    /// Writes as much as the socket takes now.
    ///
    /// # Errors
    /// The connection is lost. A socket that takes no more for now is no error.
    pub(super) fn flush(&mut self, connection: &Connection) -> io::Result<()> {
        while !self.is_empty() {
            let (end, descriptor) = match self.parcels.front() {
                Some(Parcel { message, .. }) if message.start > self.sent => (message.start, None),
                Some(Parcel { message, descriptor }) => (message.end, descriptor.as_ref()),
                None => (self.bytes.len(), None),
            };
            match connection.write(&self.bytes[self.sent..end], descriptor) {
                Ok(count) => {
                    self.sent += count;
                    if let Some(parcel) = self.parcels.front_mut()
                        && self.sent > parcel.message.start
                    {
                        parcel.descriptor = None;
                        if self.sent == parcel.message.end {
                            self.parcels.pop_front();
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::unix::net::UnixStream;

    use broker_proto::{Reassembler, ServerMessage, decode, encode_frame};
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

    use super::*;

    fn pong(nonce: u64) -> ServerMessage {
        ServerMessage::Pong { nonce }
    }

    /// Appends it as a session does.
    fn framed(message: ServerMessage) -> impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError> {
        move |room| encode_frame(&message, room)
    }

    /// A connection whose kernel keeps as little as it can, and its peer.
    fn narrow() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        setsockopt(&ours, sockopt::SndBuf, &1).expect("the kernel takes its own minimum");
        (Connection::new(ours.into()), theirs)
    }

    /// Reads once: the bytes, and how many descriptors came with them.
    fn receive(peer: &UnixStream, bytes: &mut Vec<u8>) -> usize {
        let mut room = [0; 700];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut parts = [IoSliceMut::new(&mut room)];
        let (count, descriptors) = {
            let message = recvmsg::<()>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty());
            let message = message.expect("there is something");
            let rights = message.cmsgs().expect("room for all").map(|control| match control {
                ControlMessageOwned::ScmRights(descriptors) => descriptors.len(),
                other => panic!("only descriptors are sent: {other:?}"),
            });
            (message.bytes, rights.sum())
        };
        bytes.extend_from_slice(&room[..count]);
        descriptors
    }

    /// What a peer has read: whole messages, and the descriptors that came with them or before.
    #[derive(Default)]
    struct Inbox {
        stream: Reassembler,
        messages: Vec<(ServerMessage, usize)>,
        descriptors: usize,
    }

    impl Inbox {
        fn read(&mut self, peer: &UnixStream) {
            self.descriptors += receive(peer, self.stream.space());
            while let Some(body) = self.stream.frame(broker_proto::FRAME_MAX).expect("frames") {
                self.messages.push((decode(body).expect("a message"), self.descriptors));
            }
        }
    }

    #[test]
    fn a_preamble_goes_along_with_the_first_frame_and_its_descriptor() {
        let (ours, peer) = UnixStream::pair().expect("a pair");
        let connection = Connection::new(ours.into());
        let mut outbox = Outbox::default();
        outbox.push_preamble(Preamble::writing(1));
        outbox.push(framed(pong(1)), Some(std::fs::File::open("/").expect("a folder").into())).expect("room");
        outbox.flush(&connection).expect("the peer is there");
        // Less than a preamble is read, and the descriptor is there: it is one message.
        let mut first = [0; 1];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut parts = [IoSliceMut::new(&mut first)];
        let message = recvmsg::<()>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).expect("read");
        assert_eq!(message.cmsgs().expect("room").count(), 1);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_descriptor_comes_with_its_own_frame_however_little_the_peer_takes() {
        let (connection, peer) = narrow();
        let descriptor = || Some(std::fs::File::open("/").expect("a folder").into());
        let long = |text: &str| ServerMessage::AdminReply { request_id: 1, json: text.repeat(2000) };
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        for round in 0..20 {
            outbox.push(framed(pong(round)), None).expect("room");
            outbox.push(framed(long("before")), descriptor()).expect("room");
            outbox.push(framed(pong(round)), descriptor()).expect("room");
            outbox.push(framed(long("after")), None).expect("room");
            // Half of it stays, and more comes behind it.
            let kept = outbox.kept();
            while outbox.kept() > kept / 2 {
                outbox.flush(&connection).expect("the peer is there");
                inbox.read(&peer);
            }
        }
        while inbox.messages.len() < 80 {
            outbox.flush(&connection).expect("the peer is there");
            inbox.read(&peer);
        }
        assert!(outbox.is_empty());
        for (round, four) in (0..20).zip(inbox.messages.chunks(4)) {
            let messages: Vec<&ServerMessage> = four.iter().map(|(message, _)| message).collect();
            assert_eq!(messages, [&pong(round), &long("before"), &pong(round), &long("after")]);
            let due = 2 * usize::try_from(round).expect("a small number");
            let descriptors: Vec<usize> = four.iter().map(|(_, descriptors)| *descriptors).collect();
            // The one of the next frame may come in the same read as the end of a frame, and none sooner.
            for (at, (descriptors, needed)) in descriptors.into_iter().zip([0, 1, 2, 2]).enumerate() {
                assert!((due + needed..=due + needed + 1).contains(&descriptors), "{round}, {at}: {descriptors}");
            }
        }
    }
}
