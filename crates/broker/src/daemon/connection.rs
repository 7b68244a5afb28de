//! A session's socket: read when there is something, written at once, watched for room only while its peer does not read.
//!
//! A stream of the runtime's own is watched for room as well, always: then each answer wakes the broker a second time,
//! when its peer takes it. And it is watched from the beginning, though who connects has mostly said something already.

use std::cell::{OnceCell, RefCell};
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, send, sendmsg, shutdown};
use tokio::io::Interest;

use super::watched::Watched;

/// How long to wait where room cannot be watched for, since there are no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(10);

/// What is read in one go, and how often of a peer that is cut off: more than the kernel keeps for it.
const READ_BYTES: usize = 8 << 10;
pub(super) const RESTS_MAX: usize = 512;

thread_local! {
    static ARRIVING: RefCell<Arriving> = const { RefCell::new(Arriving { bytes: [0; READ_BYTES], room: Vec::new() }) };
}

/// No session keeps room for what it may be told.
struct Arriving {
    /// What is read comes here first.
    bytes: [u8; READ_BYTES],
    /// What is kept of it until it is worked off goes here, where nothing is kept already.
    room: Vec<u8>,
}

/// Takes room back that is not used any more, for whoever reads next.
pub(super) fn keep_room(room: Vec<u8>) {
    if room.capacity() <= READ_BYTES {
        ARRIVING.with_borrow_mut(|arriving| arriving.room = room);
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    /// Ends before the socket does.
    watched: OnceCell<Watched>,
    socket: Arc<OwnedFd>,
}

impl Connection {
    /// A connection that nobody watches yet: it is read first.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { watched: OnceCell::new(), socket: Arc::new(socket) }
    }

    /// Appends what can be read, or has the task woken once something can. None is that there was nothing after all, 0
    /// bytes are the end.
    pub(super) fn poll_read(
        &self,
        watched: &Watched,
        context: &mut Context<'_>,
        input: &mut Vec<u8>,
    ) -> Poll<io::Result<Option<usize>>> {
        let mut guard = ready!(watched.poll_readable(context))?;
        let read = self.read_now(input);
        // A short read took all there was. What comes later is announced anew.
        if read.as_ref().is_ok_and(|read| read.is_none_or(|count| count < READ_BYTES)) {
            guard.clear_ready();
        }
        Poll::Ready(read)
    }

    /// Has it watched from now on, if it is not yet.
    pub(super) fn watched(&self) -> io::Result<&Watched> {
        if let Some(watched) = self.watched.get() {
            return Ok(watched);
        }
        let watched = Watched::new(Arc::clone(&self.socket), Interest::READABLE)?;
        Ok(self.watched.get_or_init(|| watched))
    }

    /// Appends what is there now.
    pub(super) fn read_now(&self, input: &mut Vec<u8>) -> io::Result<Option<usize>> {
        ARRIVING.with_borrow_mut(|Arriving { bytes, room }| {
            loop {
                match recv(self.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
                    Ok(count) => {
                        if input.capacity() == 0 {
                            mem::swap(input, room);
                        }
                        input.extend_from_slice(&bytes[..count]);
                        return Ok(Some(count));
                    }
                    Err(Errno::EAGAIN) => return Ok(None),
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        })
    }

    /// Writes what the socket takes now, and hands the descriptor over with the first byte of it.
    ///
    /// # Errors
    /// `WouldBlock` where there is no room; whatever else is the end of the connection.
    pub(super) fn write(&self, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = match descriptor {
            None => send(self.as_raw_fd(), bytes, flags),
            Some(descriptor) => {
                let descriptors = [descriptor.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&descriptors)];
                sendmsg::<()>(self.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)
            }
        };
        sent.map_err(io::Error::from)
    }

    /// Waits until the socket may take more.
    pub(super) async fn has_room(&self) {
        // One registration is for one interest, and each wants a descriptor of its own.
        let socket = self.socket.try_clone().map(Arc::new);
        match socket.and_then(|socket| Watched::new(socket, Interest::WRITABLE)) {
            // If it cannot be waited for, the next write says why.
            Ok(watched) => drop(watched.writable().await),
            Err(_) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
        }
    }

    /// Lets the peer see the end of the stream. One that has gone already needs none.
    pub(super) fn end_writing(&self) {
        let _ = shutdown(self.as_raw_fd(), Shutdown::Write);
    }

    /// Closing over what the peer has said and nobody read would be a reset, to a peer which may not have read yet what
    /// it was told. So it is kept from saying more, and the rest is read.
    pub(super) fn discard(&self) {
        if shutdown(self.as_raw_fd(), Shutdown::Both).is_err() {
            return;
        }
        let mut rest = Vec::new();
        for _ in 0..RESTS_MAX {
            if !matches!(self.read_now(&mut rest), Ok(Some(1..))) {
                return;
            }
            rest.clear();
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
