//! One client connection: bytes to frames, frames to the driver, answers to bytes.
//!
//! Owns the stream and its limits, and decides nothing about backends.

mod serving;

use std::cell::{Cell, RefCell, RefMut};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use broker_proto::{Code, CodecError, HIGHEST_VERSION, Preamble, Refusal, ServerMessage, encode_frame};

pub(super) use self::serving::serve;
use super::connection::Connection;
use super::mail::Mail;
use super::outbox::{Outbox, Unsent, has_unread};
use crate::core::Timestamp;
use crate::core::admission::Peer;

/// What is written without waiting for the end of the turn, in bytes.
const AT_ONCE: usize = 64 << 10;

/// Names a session in the driver; never given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId(pub(super) u64);

/// A connection and what is known of its peer.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) peer: Peer,
    /// The process that connected.
    pub(super) pid: i32,
    connection: Connection,
    outbox: RefCell<Outbox>,
    /// Where it says that it has something to send, and whether it has said so.
    mail: Rc<Mail>,
    is_posted: Cell<bool>,
    /// The peer does not read, so there is no room.
    is_blocked: Cell<bool>,
    closing: Cell<bool>,
    /// Nothing more is to be said once what has arrived is answered.
    is_to_hush: Cell<bool>,
    /// Nothing more is said.
    is_hushed: Cell<bool>,
    /// The peer has ended it.
    has_ended: Cell<bool>,
    /// Our preamble is sent, so messages may follow.
    greeted: Cell<bool>,
    /// It was told once that its version cannot be read.
    is_corrected: Cell<bool>,
    /// Whole messages so far.
    messages: Cell<u64>,
    /// By when the peer must have said what it has begun to say.
    pub(super) due: Cell<Option<Timestamp>>,
    /// Its task has something to look at.
    is_called: Cell<bool>,
    task: RefCell<Option<Waker>>,
    me: Weak<Self>,
}

impl Session {
    pub(super) fn new(id: SessionId, connection: Connection, peer: Peer, pid: i32, mail: Rc<Mail>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            id,
            peer,
            pid,
            connection,
            outbox: RefCell::default(),
            mail,
            is_posted: Cell::new(false),
            is_blocked: Cell::new(false),
            closing: Cell::new(false),
            is_to_hush: Cell::new(false),
            is_hushed: Cell::new(false),
            has_ended: Cell::new(false),
            greeted: Cell::new(false),
            is_corrected: Cell::new(false),
            messages: Cell::new(0),
            due: Cell::new(None),
            is_called: Cell::new(false),
            task: RefCell::default(),
            me: me.clone(),
        })
    }

    /// Sends a message, at the end of this turn if the socket takes it.
    pub(super) fn send(&self, message: &ServerMessage, descriptor: Option<OwnedFd>) {
        match (self.push(|room| encode_frame(message, room), descriptor), message) {
            (Ok(()), _) => {}
            (Err(Unsent::TooLong), ServerMessage::AdminReply { request_id, .. }) => {
                let reason = "the report is longer than a message may be: ask for fewer backends";
                self.refuse(*request_id, Refusal::new(Code::Internal, reason));
            }
            (Err(error), _) => self.give_up(&error),
        }
    }

    /// The same for what a Hello is answered, which is appended as a frame.
    pub(super) fn send_negotiated(
        &self,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
        descriptor: Option<OwnedFd>,
    ) {
        if let Err(error) = self.push(append, descriptor) {
            self.give_up(&error);
        }
    }

    fn push(
        &self,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), Unsent> {
        if self.is_hushed.get() {
            return Ok(());
        }
        let kept = {
            let mut outbox = self.outbox();
            outbox.push(append, descriptor)?;
            outbox.kept()
        };
        if kept > AT_ONCE {
            self.flush();
        } else {
            self.post();
        }
        Ok(())
    }

    /// Where a message is appended.
    fn outbox(&self) -> RefMut<'_, Outbox> {
        let mut outbox = self.outbox.borrow_mut();
        if outbox.has_no_room() {
            outbox.give_room(self.mail.room());
        }
        outbox
    }

    fn give_up(&self, error: &Unsent) {
        tracing::warn!(session = self.id.0, pid = self.pid, %error, "closing a session");
        self.close();
    }

    /// Has it written at the end of this turn.
    fn post(&self) {
        if !self.is_posted.get()
            && let Some(me) = self.me.upgrade()
        {
            self.is_posted.set(true);
            self.mail.post(me);
        }
    }

    /// Writes what was to be sent in this turn.
    pub(super) fn deliver(&self) {
        self.is_posted.set(false);
        self.flush();
    }

    /// Whether the peer has said which protocol it speaks, and was answered.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// Gives a sign of life to a peer that reads: what one that does not read has yet to read is sign enough, and would
    /// only grow.
    pub(super) fn beat(&self) {
        let is_unread = || !self.outbox.borrow().is_empty() || has_unread(&self.connection);
        if self.greeted.get() && !self.closing.get() && !is_unread() {
            self.send(&ServerMessage::Heartbeat, None);
        }
    }

    /// Sends our preamble, unless it was sent: what follows is in that version.
    fn greet(&self, version: u16) {
        if !self.greeted.replace(true) {
            self.send_preamble(version);
        }
    }

    fn send_preamble(&self, version: u16) {
        self.outbox().push_preamble(Preamble::writing(version));
        self.post();
    }

    /// Refuses a request; 0 is one that could not be read.
    pub(super) fn refuse(&self, request_id: u64, refusal: Refusal) {
        self.send(&ServerMessage::Refused { request_id, refusal }, None);
    }

    /// Ends the session once its task gets to it.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.call();
    }

    /// Says no more once what has arrived is answered: when the peer has read all of it, it sees the end of the stream.
    /// What it still says is read, so that it can close in peace.
    pub(super) fn hush(&self) {
        self.is_to_hush.set(!self.is_hushed.get());
        self.call();
    }

    /// Has its task look whether the peer's time is over.
    pub(super) fn look_at_due(&self) {
        self.call();
    }

    /// Has its task look what there is to do.
    fn call(&self) {
        self.is_called.set(true);
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// Whether its task was called; if not, it will be woken when it is.
    fn poll_call(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_called.take() {
            return Poll::Ready(());
        }
        let mut task = self.task.borrow_mut();
        if task.as_ref().is_none_or(|task| !task.will_wake(context.waker())) {
            *task = Some(context.waker().clone());
        }
        Poll::Pending
    }

    fn flush(&self) {
        let mut outbox = self.outbox.borrow_mut();
        let flushed = outbox.flush(&self.connection);
        if outbox.is_empty() {
            self.mail.keep_room(outbox.take_room());
        }
        match flushed {
            Ok(()) if outbox.is_empty() && self.is_hushed.get() => {
                self.connection.end_writing();
            }
            Ok(()) if outbox.is_empty() => {}
            Ok(()) => self.call(),
            Err(_) => self.close(),
        }
        self.is_blocked.set(!outbox.is_empty());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.has_ended.get() {
            self.connection.discard();
        }
    }
}

/// Refuses a connection before it becomes a session.
pub(super) fn turn_away(session: &Session, refusal: Refusal) {
    // Written here and now: nobody is to keep it until the end of the turn.
    session.is_posted.set(true);
    session.greet(HIGHEST_VERSION);
    session.refuse(0, refusal);
    session.flush();
}
