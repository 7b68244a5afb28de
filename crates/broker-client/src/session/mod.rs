//! The session task: the one owner of the connection, of the table of requests and of the reconnect machine.
//!
//! It performs what they decide and holds no policy. It ends when the machine gives up, or when nobody is left who could
//! ask or hold anything.

mod connection;
mod handle;
mod holds;
mod in_flight;
mod liveness;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

pub(crate) use handle::{Answer, Command, Handle, Hold, Waiter, reply};
pub(crate) use holds::Standing;
pub(crate) use in_flight::Ask;

use crate::dialler::Dialler;
use crate::error::{End, Error, ProtocolError};
use crate::events::SessionEvent;
use crate::reconnect::{Cause, Event, Machine, Step, Verdict};
use handle::{Far, Link, Reply};
use in_flight::InFlight;

/// How a session is kept.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) machine: Machine,
    /// Whether it comes back after its connection broke.
    pub(crate) heals: bool,
    /// Whether the first connection is worth as much effort as later ones.
    pub(crate) is_patient: bool,
    /// How long a broker may be silent.
    pub(crate) heartbeat_timeout: Duration,
}

/// Starts a session with the result of its first dial. Nothing is sent until the first request, or until it is time to
/// greet.
pub(crate) fn start(dialler: Dialler, first: Dialled, terms: Terms) -> Handle {
    let (handle, far) = handle::pair(dialler.socket());
    let Terms { machine, heals, is_patient, heartbeat_timeout } = terms;
    let table = InFlight::new(heals);
    let (last, was_up, has_served) = (End::Closed, false, false);
    let session = Session { dialler, machine, table, far, heartbeat_timeout, last, was_up, has_served, is_patient };
    tokio::spawn(session.run(first));
    handle
}

/// What a dial brought.
pub(crate) type Dialled = Result<(UnixStream, Arc<PathBuf>), Error>;

struct Session {
    dialler: Dialler,
    machine: Machine,
    table: InFlight<Reply>,
    far: Far,
    heartbeat_timeout: Duration,
    /// Why there is no connection.
    last: End,
    /// There has been a connection that ended.
    was_up: bool,
    /// A caller was answered.
    has_served: bool,
    /// The first connection is worth as much effort as later ones.
    is_patient: bool,
}

/// Nobody wants the session any more.
struct Unwanted;

impl Session {
    async fn run(mut self, first: Dialled) {
        let mut stream = None;
        let mut step = self.dialled(first, &mut stream);
        let verdict = loop {
            step = match step {
                Step::Dial => {
                    let dialler = self.dialler.clone();
                    match self.meanwhile(dialler.dial()).await {
                        Ok(result) => self.dialled(result, &mut stream),
                        Err(Unwanted) => self.tell(Event::Shutdown),
                    }
                }
                Step::Wait { until } => match self.meanwhile(tokio::time::sleep_until(until.into())).await {
                    Ok(()) => self.tell(Event::Tick),
                    Err(Unwanted) => self.tell(Event::Shutdown),
                },
                Step::Serve => match stream.take() {
                    Some(stream) => {
                        let end = self.serve(stream).await;
                        self.disconnected(end)
                    }
                    None => self.tell(Event::Ended(Cause::Lost)),
                },
                Step::Over(verdict) => break verdict,
            }
        };
        self.over(verdict);
    }

    fn tell(&mut self, event: Event) -> Step {
        self.machine.handle(Instant::now(), event)
    }

    fn dialled(&mut self, result: Dialled, stream: &mut Option<UnixStream>) -> Step {
        match result {
            Ok((connected, socket)) => {
                *stream = Some(connected);
                self.dialler.keep_to(Arc::clone(&socket));
                self.far.status.send_modify(|status| (status.socket, status.link) = (socket, Link::Up));
                self.tell(Event::Dialled)
            }
            Err(error) => {
                tracing::debug!(%error, drops = self.machine.drops(), "the broker cannot be reached");
                self.last = End::Dial(Arc::new(error));
                self.tell(Event::DialFailed)
            }
        }
    }

    /// Works while there is no connection: what callers ask is filed, and nothing is lost.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Unwanted> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = unwanted(&mut self.far.shutdown) => return Err(Unwanted),
                output = &mut work => return Ok(output),
                () = self.far.releases.wait() => {
                    for request_id in self.far.releases.take() {
                        self.table.release(request_id);
                    }
                }
                Some(command) = self.far.commands.recv(), if self.table.has_room() => self.file(command),
            }
        }
    }

    /// Enters a request into the table.
    fn file(&mut self, Command { request_id, ask, reply }: Command) {
        // Given up before it was sent: the broker need not know. Its release is behind us or finds no such id.
        if reply.answer.is_closed() {
            return;
        }
        if let Err((reply, reconnect)) = self.table.register(request_id, ask, reply) {
            let _ = reply.answer.send(Err(Error::GoingAway(reconnect)));
        }
    }

    /// A connection is over. What was on its way is kept for the next, and who cannot wait for that is told.
    fn disconnected(&mut self, end: End) -> Step {
        let end = self.table.disconnected(end);
        tracing::debug!(reason = ?end, "the connection to the broker ended");
        let cause = match &end {
            End::Unwanted => return self.tell(Event::Shutdown),
            End::Closed => Cause::Closed,
            // What it does to the budget is decided by the announcement.
            End::GoneAway(_) | End::Lost(_) | End::Dial(_) => Cause::Lost,
            End::Silent { heard, .. } => Cause::Silent { since: *heard },
            End::Protocol(ProtocolError::DescriptorsLost) => Cause::Lost,
            End::Refused(refusal) if refusal.code.is_fatal() => Cause::Fatal,
            // One who has just come is told at once, as he is when nobody is there.
            End::Refused(_) if !self.was_up && !self.has_served && !self.is_patient => Cause::Fatal,
            End::Refused(refusal) => Cause::Refused { retry_after: refusal.retry_after_ms.map(Duration::from_millis) },
            End::Protocol(_) => Cause::Fatal,
            End::Exhausted { .. } | End::CleanCloses { .. } => Cause::Fatal,
        };
        self.last = end;
        let step = self.tell(Event::Ended(cause));
        if let Step::Over(_) = step {
            return step;
        }
        for reply in self.table.requeue(&self.last) {
            let _ = reply.answer.send(Err(self.last.clone().into()));
        }
        self.was_up = true;
        self.far.status.send_modify(|status| status.link = Link::Down);
        let reason = Error::from(self.last.clone()).to_string();
        let _ = self.far.events.send(SessionEvent::Disconnected { reason });
        step
    }

    /// Tells everybody that the session is over.
    fn over(mut self, verdict: Verdict) {
        let last = std::mem::replace(&mut self.last, End::Closed);
        let end = match verdict {
            Verdict::Exhausted { attempts } => last.after_attempts(attempts),
            Verdict::CleanCloses { attempts } => End::CleanCloses { attempts },
            Verdict::Fatal | Verdict::GoneForGood | Verdict::NotWanted => last,
            Verdict::Shutdown => End::Unwanted,
        };
        let replies = self.table.end();
        tracing::debug!(reason = ?end, unanswered = replies.len(), "the session with the broker is over");
        // Before the requests learn of it: one that is still on its way here finds the reason there.
        self.far.status.send_modify(|status| status.link = Link::Over(end.clone()));
        for reply in replies {
            let _ = reply.answer.send(Err(end.clone().into()));
        }
    }
}

/// Waits until the caller ends the session, or until nobody is left who could.
async fn unwanted(shutdown: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|ordered| *ordered).await;
}
