//! One connection of a session, from its first byte to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use broker_proto::{ClientMessage, Code, Negotiated, Refusal, RequestId, ServerMessage};
use tokio::net::UnixStream;

use super::handle::Answer;
use super::in_flight::Action;
use super::liveness::{Liveness, Sign};
use super::{Session, unwanted};
use crate::error::{End, Error, ProtocolError};
use crate::events::SessionEvent;
use crate::reconnect;
use crate::wire::{Received, Wire};

/// How long a new connection waits for a first request to greet the broker with, which costs no round trip of its own.
/// After that a Ping does: a broker waits a few seconds for a first message.
const GREET_AFTER: Duration = Duration::from_millis(100);

/// The connection and what is known of it.
struct Connection {
    wire: Wire,
    liveness: Liveness,
    /// When to greet, unless a request does.
    greet_at: Option<Instant>,
    is_registered: bool,
    /// The caller has been told that the session is back, or need not be.
    is_restored: bool,
}

impl Connection {
    fn send(&mut self, message: &ClientMessage) -> Result<(), broker_proto::CodecError> {
        self.wire.send(message)?;
        self.greet_at = None;
        Ok(())
    }
}

impl Session {
    /// Serves a connection until it ends.
    pub(super) async fn serve(&mut self, stream: UnixStream) -> End {
        let now = Instant::now();
        let mut connection = Connection {
            wire: Wire::new(stream),
            liveness: Liveness::new(now, self.heartbeat_timeout),
            greet_at: Some(now + GREET_AFTER),
            is_registered: false,
            is_restored: !self.was_up,
        };
        loop {
            // A broker that never pauses must not keep the thread to itself.
            tokio::task::coop::consume_budget().await;
            self.pump(&mut connection);
            if let Err(error) = connection.wire.flush() {
                // What the broker said before it closed tells more than that it closed.
                return self.last_words(&mut connection).unwrap_or_else(|| unwritten(&connection, error));
            }
            let deadlines = [connection.liveness.deadline(), connection.greet_at, self.table.deadline()];
            let due = deadlines.into_iter().flatten().min();
            let room = connection.wire.may_send();
            tokio::select! {
                // Reading comes before judging the silence: after a sleep of this process both may be due.
                biased;
                () = unwanted(&mut self.far.shutdown) => return End::Unwanted,
                ready = connection.wire.ready() => match ready {
                    Ok(ready) if ready.is_readable() || ready.is_read_closed() => {
                        let received = connection.wire.receive();
                        if let Err(end) = self.take(&mut connection, received) {
                            return end;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => return End::from(error),
                },
                () = self.far.releases.wait(), if room => self.release(&mut connection),
                Some(command) = self.far.commands.recv(), if self.table.has_room() => self.file(command),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    if let Err(end) = self.tick(&mut connection) {
                        return end;
                    }
                }
            }
        }
    }

    /// Sends what waits to be sent, as much as may be sent now, and says so once all holds have been answered for.
    fn pump(&mut self, connection: &mut Connection) {
        while connection.wire.may_send()
            && let Some(message) = self.table.next_to_send(Instant::now())
        {
            if let Err(error) = connection.send(&message) {
                let request_id = match &message {
                    ClientMessage::Hello(hello) => hello.request_id,
                    ClientMessage::Admin { request_id, .. } | ClientMessage::Release { request_id } => *request_id,
                    ClientMessage::Ping { .. } => 0,
                };
                let refusal = Refusal::new(Code::Malformed, error.to_string());
                // That is this side's word, and says nothing of the broker's health.
                if let Action::Refuse { reply, refusal } =
                    self.table.handle(Instant::now(), ServerMessage::Refused { request_id, refusal })
                {
                    let _ = reply.answer.send(Err(Error::Refused(Box::new(refusal))));
                }
            }
        }
        if connection.is_registered && !connection.is_restored && self.table.is_restored() {
            connection.is_restored = true;
            let _ = self.far.events.send(SessionEvent::Reconnected);
        }
    }

    fn release(&mut self, connection: &mut Connection) {
        for request_id in self.far.releases.take() {
            if self.table.release(request_id) {
                tell_release(connection, request_id);
            }
        }
    }

    fn tick(&mut self, connection: &mut Connection) -> Result<(), End> {
        let now = Instant::now();
        self.table.tick(now);
        match connection.liveness.tick(now) {
            Sign::Alive => {}
            Sign::Ask => ping(connection),
            Sign::Dead => {
                let (after, heard) = (self.heartbeat_timeout, connection.liveness.last_heard());
                return Err(End::Silent { after, heard });
            }
        }
        if connection.greet_at.is_some_and(|at| at <= now) {
            ping(connection);
        }
        Ok(())
    }

    /// Handles every message that a read has made whole.
    fn take(&mut self, connection: &mut Connection, received: Result<Received, End>) -> Result<Received, End> {
        let received = received?;
        if received == Received::Some {
            connection.liveness.heard(Instant::now());
        }
        while let Some(message) = connection.wire.next_message()? {
            let mut descriptor = None;
            if let ServerMessage::Negotiated(Negotiated { request_id, connected: true, .. }) = message {
                descriptor = connection.wire.claim();
                if descriptor.is_none() {
                    return Err(End::Protocol(ProtocolError::NoDescriptor { request_id }));
                }
            }
            self.handle(connection, message, descriptor);
        }
        connection.wire.settle();
        if connection.wire.is_greeted() && !connection.is_registered {
            connection.is_registered = true;
            self.note(reconnect::Event::Registered);
        }
        match received {
            Received::End => Err(End::Closed),
            // A broker that goes waits for its clients to close.
            _ if self.table.is_done_with() => Err(End::Closed),
            received => Ok(received),
        }
    }

    /// Reads what is left in the socket.
    fn last_words(&mut self, connection: &mut Connection) -> Option<End> {
        loop {
            let received = connection.wire.receive_rest();
            match self.take(connection, received) {
                Ok(Received::Some) => {}
                Ok(Received::Nothing | Received::End) => return None,
                Err(end) => return Some(end),
            }
        }
    }

    fn handle(&mut self, connection: &mut Connection, message: ServerMessage, descriptor: Option<OwnedFd>) {
        let mut has_served = false;
        match self.table.handle(Instant::now(), message) {
            // If the caller has gone meanwhile, its hold is among the releases.
            Action::Grant { reply, standing } => {
                has_served = true;
                let _ = reply.answer.send(Ok(Answer::Backend { standing, descriptor }));
            }
            Action::Document { reply, json } => {
                has_served = true;
                let _ = reply.answer.send(Ok(Answer::Document(json)));
            }
            Action::Pong { reply } => {
                let _ = reply.answer.send(Ok(Answer::Pong));
            }
            Action::Refuse { reply, refusal } => {
                has_served = true;
                let _ = reply.answer.send(Err(Error::Refused(Box::new(refusal))));
            }
            Action::RefuseAll { replies, refusal } => {
                for reply in replies {
                    let _ = reply.answer.send(Err(Error::Refused(Box::new(refusal.clone()))));
                }
            }
            Action::WrongAnswer { reply, error, release } => {
                let _ = reply.answer.send(Err(Error::Protocol(error)));
                if let Some(request_id) = release {
                    tell_release(connection, request_id);
                }
            }
            Action::Progress { reply, progress } => {
                let _ = reply.progress.try_send(progress);
            }
            Action::Event { request_id, event } => {
                let _ = self.far.events.send(SessionEvent::Backend { request_id, event });
            }
            Action::GoAway(reconnect) => {
                self.note(reconnect::Event::GoAway(reconnect));
                let _ = self.far.events.send(SessionEvent::GoAway(reconnect));
            }
            Action::Release(request_id) => tell_release(connection, request_id),
            Action::Ignore(why) => tracing::trace!(why, "nothing to do about a message of the broker"),
        }
        if has_served {
            self.has_served = true;
            self.note(reconnect::Event::Served);
        }
    }

    /// Tells the machine something that changes nothing about serving.
    fn note(&mut self, event: reconnect::Event) {
        let _ = self.tell(event);
    }
}

/// Why a connection ended that cannot be written to any more.
fn unwritten(connection: &Connection, error: io::Error) -> End {
    let is_closed = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
    if is_closed && !connection.wire.is_midway() { End::Closed } else { End::from(error) }
}

fn tell_release(connection: &mut Connection, request_id: RequestId) {
    if let Err(error) = connection.send(&ClientMessage::Release { request_id }) {
        tracing::error!(%error, "a release could not be encoded");
    }
}

/// Asks for a sign of life, unless so much is unsent that the peer could not read it.
fn ping(connection: &mut Connection) {
    if connection.wire.may_send()
        && let Err(error) = connection.send(&ClientMessage::Ping { nonce: 0 })
    {
        tracing::error!(%error, "a ping could not be encoded");
    }
    connection.greet_at = None;
}
