//! One client connection: bytes to messages, messages to the driver, answers to bytes.
//!
//! Owns the stream and its limits, and decides nothing about backends.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use broker_proto::{
    ClientMessage, Code, FIRST_FRAME_MAX, FRAME_MAX, FrameError, HIGHEST_VERSION, LOWEST_VERSION, Preamble,
    Reassembler, Refusal, ServerMessage, decode,
};
use tokio::sync::Notify;

use super::clock::now;
use super::connection::{Connection, RESTS_MAX};
use super::driver::Shared;
use super::outbox::{Outbox, Unsent, has_unread};
use crate::core::Timestamp;
use crate::core::admission::Peer;

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
    /// Answers are collected while input is worked off, and written together.
    corked: Cell<bool>,
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
    wake: Notify,
}

/// How far the peer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preamble,
    /// The message that came with a preamble in a version that nobody here can read.
    UnreadableMessage,
    FirstMessage,
    Accepted,
}

/// The session is over.
struct End;

impl Session {
    pub(super) fn new(id: SessionId, connection: Connection, peer: Peer, pid: i32) -> Self {
        Self {
            id,
            peer,
            pid,
            connection,
            outbox: RefCell::default(),
            corked: Cell::new(false),
            closing: Cell::new(false),
            is_to_hush: Cell::new(false),
            is_hushed: Cell::new(false),
            has_ended: Cell::new(false),
            greeted: Cell::new(false),
            is_corrected: Cell::new(false),
            messages: Cell::new(0),
            due: Cell::new(None),
            wake: Notify::new(),
        }
    }

    /// Sends a message, at once if the socket takes it.
    pub(super) fn send(&self, message: &ServerMessage, descriptor: Option<OwnedFd>) {
        if self.is_hushed.get() {
            return;
        }
        let pushed = self.outbox.borrow_mut().push(message, descriptor);
        match (pushed, message) {
            (Ok(()), _) => {}
            (Err(Unsent::TooLong), ServerMessage::AdminReply { request_id, .. }) => {
                let reason = "the report is longer than a message may be: ask for fewer backends";
                self.refuse(*request_id, Refusal::new(Code::Internal, reason));
            }
            (Err(error), _) => {
                tracing::warn!(session = self.id.0, pid = self.pid, %error, "closing a session");
                self.close();
                return;
            }
        }
        if !self.corked.get() {
            self.flush();
        }
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
            self.outbox.borrow_mut().push_bytes(&Preamble::writing(version).to_bytes());
        }
    }

    /// Refuses a request; 0 is one that could not be read.
    pub(super) fn refuse(&self, request_id: u64, refusal: Refusal) {
        self.send(&ServerMessage::Refused { request_id, refusal }, None);
    }

    /// Ends the session once its task gets to it.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.wake.notify_one();
    }

    /// Says no more once what has arrived is answered: when the peer has read all of it, it sees the end of the stream.
    /// What it still says is read, so that it can close in peace.
    pub(super) fn hush(&self) {
        self.is_to_hush.set(!self.is_hushed.get());
        self.wake.notify_one();
    }

    /// Has its task look whether the peer's time is over.
    pub(super) fn look_at_due(&self) {
        self.wake.notify_one();
    }

    fn flush(&self) {
        let mut outbox = self.outbox.borrow_mut();
        match outbox.flush(&self.connection) {
            Ok(()) if outbox.is_empty() && self.is_hushed.get() => {
                self.connection.end_writing();
            }
            Ok(()) if outbox.is_empty() => {}
            Ok(()) => self.wake.notify_one(),
            Err(_) => self.close(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.has_ended.get() {
            self.connection.discard();
        }
    }
}

/// Serves one connection until it ends.
pub(super) async fn serve(driver: Shared, session: Rc<Session>) {
    let mut input = Reassembler::default();
    let mut stage = Stage::Preamble;
    while !session.closing.get() {
        // A peer that never pauses must not keep the thread to itself.
        tokio::task::coop::consume_budget().await;
        if session.is_to_hush.take() {
            hear_out(&driver, &session, &mut input, &mut stage);
            session.is_hushed.set(true);
            session.flush();
        }
        let writing = !session.outbox.borrow().is_empty();
        tokio::select! {
            // What is there already needs no wait, and was said in time.
            biased;
            read = session.connection.read(input.space()) => {
                match read {
                    Ok(Some(count)) if count > 0 => {}
                    Ok(None) => continue,
                    Ok(Some(_)) | Err(_) => {
                        session.has_ended.set(true);
                        break;
                    }
                }
                if session.is_hushed.get() {
                    input = Reassembler::default();
                    session.due.set(None);
                    continue;
                }
                if answer_in_time(&driver, &session, &mut input, &mut stage).is_err() {
                    break;
                }
                input.release_memory();
            }
            () = session.wake.notified() => {}
            () = session.connection.has_room(), if writing => session.flush(),
        }
        if session.due.get().is_some_and(|due| due <= now()) {
            let patience = driver.borrow().config.limits.first_message_timeout;
            session.greet(HIGHEST_VERSION);
            let reason = format!("no whole message within {} ms", patience.as_millis());
            session.refuse(0, Refusal::new(Code::Malformed, reason));
            break;
        }
    }
    // One that has just been let in, and is cut off.
    if session.is_to_hush.take() {
        session.closing.set(false);
        hear_out(&driver, &session, &mut input, &mut stage);
    }
    driver.borrow_mut().session_ended(session.id);
}

/// Answers what has arrived by now, whether or not the runtime has seen it.
fn hear_out(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) {
    for _ in 0..RESTS_MAX {
        match session.connection.read_now(input.space()) {
            Ok(Some(count)) if count > 0 => {}
            Ok(_) | Err(_) => return,
        }
        if answer(driver, session, input, stage).is_err() {
            return session.close();
        }
    }
}

/// Works off every whole message, and sees to the time that the peer has for the rest of one: a message, once begun, must
/// be whole by then, and so must the first one, once connected.
fn answer_in_time(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<(), End> {
    let before = session.messages.get();
    answer(driver, session, input, stage)?;
    if *stage == Stage::Accepted && !input.is_midway() {
        session.due.set(None);
    } else if session.messages.get() != before || session.due.get().is_none() {
        driver.borrow_mut().expect_message(session);
    }
    Ok(())
}

/// Works off every whole message, and sends the answers together.
fn answer(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<(), End> {
    session.corked.set(true);
    let result = take_input(driver, session, input, stage);
    session.corked.set(false);
    session.flush();
    result
}

/// Works off every whole message.
fn take_input(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<(), End> {
    loop {
        let progress = match *stage {
            Stage::Preamble => take_preamble(driver, session, input, stage)?,
            Stage::UnreadableMessage => skip_message(session, input, stage)?,
            Stage::FirstMessage => take_message(driver, session, input, stage, FIRST_FRAME_MAX)?,
            Stage::Accepted => take_message(driver, session, input, stage, FRAME_MAX)?,
        };
        if !progress || session.closing.get() {
            return Ok(());
        }
    }
}

fn take_preamble(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<bool, End> {
    let preamble = match input.preamble() {
        Ok(Some(preamble)) => preamble,
        Ok(None) => return Ok(false),
        Err(error) => return Err(end(session, &error)),
    };
    if preamble.is_readable() {
        session.greet(preamble.written);
        driver.borrow().greeted(session);
        *stage = Stage::FirstMessage;
        return Ok(true);
    }
    // Our own preamble, and nothing after it: the client writes again in a version that both know, or goes away.
    if session.is_corrected.replace(true) {
        return Err(End);
    }
    session.outbox.borrow_mut().push_bytes(&Preamble::writing(0).to_bytes());
    if preamble.common().is_some() {
        *stage = Stage::UnreadableMessage;
        return Ok(true);
    }
    if driver.borrow_mut().tells_refusal() {
        tracing::info!(
            session = session.id.0,
            "a client speaks versions {} to {} of the protocol, this broker {LOWEST_VERSION} to {HIGHEST_VERSION}",
            preamble.lowest,
            preamble.highest
        );
    }
    session.flush();
    Err(End)
}

/// Frames are the same in every version, so a message that cannot be read can be passed over.
fn skip_message(session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<bool, End> {
    match input.frame(FIRST_FRAME_MAX) {
        Ok(Some(_)) => {
            *stage = Stage::Preamble;
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(error) => Err(end(session, &error)),
    }
}

fn take_message(
    driver: &Shared,
    session: &Session,
    input: &mut Reassembler,
    stage: &mut Stage,
    limit: usize,
) -> Result<bool, End> {
    let body = match input.frame(limit) {
        Ok(Some(body)) => body,
        Ok(None) => return Ok(false),
        Err(error) => return Err(end(session, &error)),
    };
    match decode::<ClientMessage>(body) {
        Ok(message) => {
            *stage = Stage::Accepted;
            session.messages.set(session.messages.get() + 1);
            driver.borrow_mut().client_message(session, message);
            Ok(true)
        }
        Err(error) => {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            session.refuse(0, Refusal::new(Code::Malformed, reason));
            // The frame is whole, so an accepted session goes on after it; a first message must be one.
            if *stage == Stage::Accepted { Ok(true) } else { Err(end_after_flush(session)) }
        }
    }
}

/// Says why the stream is lost, and ends it.
fn end(session: &Session, error: &FrameError) -> End {
    session.greet(HIGHEST_VERSION);
    session.refuse(0, Refusal::new(Code::Malformed, error.to_string()));
    end_after_flush(session)
}

fn end_after_flush(session: &Session) -> End {
    session.flush();
    End
}

/// Refuses a connection before it becomes a session.
pub(super) fn turn_away(session: &Session, refusal: Refusal) {
    session.greet(HIGHEST_VERSION);
    session.refuse(0, refusal);
}
