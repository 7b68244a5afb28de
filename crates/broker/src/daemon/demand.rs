//! Connections that wait at a socket which the broker holds, while the backend that would accept them does not run: each is
//! somebody who waits, as one who says Hello is.
//!
//! Owns the watching, and what becomes of such a wait. Who waits there cannot be told anything, so it is for the broker to
//! come back when a refusal's time is over; and a wait that was refused for good is over until something changes.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

use broker_proto::{Exit, Refusal, State};
use tokio::task::spawn_local;

use super::clock::now;
use super::driver::Driver;
use super::hosted::{Hosted, Task};
use super::listener::is_awaited;
use super::watched::Watched;
use crate::core::Timestamp;
use crate::core::backend::{Event, News, Ticket, Waiter};
use crate::core::registry::BackendId;

/// How often a socket is looked at that cannot be watched.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is known of those who wait at a held socket.
#[derive(Default)]
pub(super) enum Demand {
    /// It is not looked at: there is no need to.
    #[default]
    Unwatched,
    /// Whether anybody comes is watched.
    Watched { _task: Task },
    /// Somebody waits, under this ticket.
    Waits(Ticket),
    /// Somebody waited as the daemon ended by itself, and counts as one who holds the backend until the next start is ready.
    Holds(Ticket),
    /// That generation, or the wait for it, was refused until then; for good, if there is no time.
    Refused { generation: u64, until: Option<Timestamp> },
}

impl Driver {
    /// Watches the held socket of a backend for as long as it takes a connection to start it, and no longer.
    pub(super) fn attend(&mut self, id: BackendId) {
        let is_wanted = self.is_demand_wanted(id);
        let Some(hosted) = self.hosted.get_mut(&id) else { return };
        let Some(held) = hosted.listener.as_ref().filter(|_| is_wanted) else { return hosted.unwatch() };
        let Some((_, backend)) = self.registry.get(id) else { return };
        let view = backend.view(now());
        let pause = match &hosted.demand {
            Demand::Watched { .. } => return,
            Demand::Refused { generation, until: None } if *generation == view.generation => return,
            Demand::Refused { until: Some(until), .. } => until.since(now()),
            Demand::Refused { .. } | Demand::Unwatched | Demand::Waits(_) | Demand::Holds(_) => Duration::ZERO,
        };
        let task = watch(self.me.clone(), id, Arc::clone(&held.socket), pause);
        hosted.demand = Demand::Watched { _task: task };
    }

    /// Whether a connection may start a backend now.
    fn is_demand_wanted(&self, id: BackendId) -> bool {
        let is_served = |hosted: &Hosted| hosted.listener.is_some() && !hosted.removed;
        if self.leaving.is_some() || !self.hosted.get(&id).is_some_and(|hosted| is_served(hosted)) {
            return false;
        }
        let view = self.registry.get(id).map(|(_, backend)| backend.view(now()));
        view.is_some_and(|view| view.state == State::Inactive && !view.draining)
    }

    /// The same for all backends.
    pub(super) fn attend_all(&mut self) {
        let all: Vec<BackendId> = self.hosted.keys().copied().collect();
        all.into_iter().for_each(|id| self.attend(id));
    }

    /// Somebody has connected to the socket of a backend that did not run.
    fn demanded(&mut self, id: BackendId) {
        let is_wanted = self.is_demand_wanted(id);
        let ticket = Ticket(self.number());
        let Some(hosted) = self.hosted.get_mut(&id) else { return };
        if !is_wanted {
            return hosted.unwatch();
        }
        if !matches!(hosted.demand, Demand::Watched { .. }) {
            return;
        }
        hosted.demand = Demand::Waits(ticket);
        if let Some((key, _)) = self.registry.get(id) {
            tracing::info!(backend = %key, "somebody waits at its socket");
        }
        self.dispatch(id, Event::Hello(Waiter { ticket, deadline: None, holds: false }));
    }

    /// Takes note of who waits at the socket of a backend that ends by itself: it ends while it is wanted, and so it crashed.
    pub(super) fn hold_for_waiting(&mut self, id: BackendId, event: &Event) {
        // Who waits while the broker leaves is the next one's.
        if self.leaving.is_some() || !matches!(event, Event::Exited { exit: Exit::Code(0), survivors: false, .. }) {
            return;
        }
        let ticket = Ticket(self.number());
        let Some(hosted) = self.hosted.get_mut(&id) else { return };
        if !hosted.listener.as_ref().is_some_and(|held| is_awaited(&held.socket)) {
            return;
        }
        let is_ready = self.registry.get(id).is_some_and(|(_, backend)| backend.state() == State::Ready);
        if is_ready {
            hosted.demand = Demand::Holds(ticket);
            self.dispatch(id, Event::Hello(Waiter { ticket, deadline: None, holds: true }));
        }
    }

    /// Whether a ticket is of somebody who waits at a socket.
    pub(super) fn is_demand(&self, id: BackendId, ticket: Ticket) -> bool {
        let demand = self.hosted.get(&id).map(|hosted| &hosted.demand);
        matches!(demand, Some(Demand::Waits(own) | Demand::Holds(own)) if *own == ticket)
    }

    /// Who waits is refused.
    pub(super) fn demand_refused(&mut self, id: BackendId, refusal: &Refusal) {
        let Some((key, backend)) = self.registry.get(id) else { return };
        let generation = backend.view(now()).generation;
        tracing::info!(backend = %key, code = %refusal.code, "who waits at its socket is refused: {}", refusal.reason);
        let until = refusal.retry_after_ms.map(|ms| now() + Duration::from_millis(ms));
        if let Some(hosted) = self.hosted.get_mut(&id) {
            hosted.demand = Demand::Refused { generation, until };
        }
        self.attend(id);
    }

    /// Who counted as a holder is told of the backend: it holds it no longer than until the next start is ready.
    pub(super) fn demand_told(&mut self, id: BackendId, ticket: Ticket, news: &News) {
        match news {
            News::Ready { .. } | News::Failed { .. } | News::Stopped => {
                if let Some(hosted) = self.hosted.get_mut(&id) {
                    hosted.demand = Demand::Unwatched;
                }
                self.follow_up(id, Event::Withdraw(ticket));
            }
            News::Exited { .. } | News::Restarting { .. } | News::Draining => {}
        }
    }
}

/// Waits until somebody connects, after a pause.
fn watch(driver: Weak<RefCell<Driver>>, id: BackendId, socket: Arc<OwnedFd>, pause: Duration) -> Task {
    Task(spawn_local(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        somebody_comes(&socket, Watched::duplicate_of).await;
        if let Some(driver) = driver.upgrade() {
            driver.borrow_mut().demanded(id);
        }
    }))
}

/// Waits until somebody waits at a socket. It is watched by a duplicate, since another watch of the same number may be just
/// ending; where there is none to be had it is looked at now and then, which takes no descriptor.
async fn somebody_comes(socket: &Arc<OwnedFd>, mut watch: impl FnMut(&Arc<OwnedFd>) -> io::Result<Watched>) {
    let mut is_told = false;
    loop {
        let error = match watch(socket) {
            Ok(watched) => match watched.readable().await {
                Ok(_) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(%error, "cannot watch a socket for connections; looking now and then");
        }
        if is_awaited(socket) {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[tokio::test(flavor = "local")]
    async fn a_socket_that_cannot_be_watched_is_looked_at() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let socket = Arc::new(OwnedFd::from(listener));
        let mut client = None;
        // No descriptor is left, and somebody comes meanwhile.
        let watch = |_: &Arc<OwnedFd>| {
            client = Some(TcpStream::connect(address).expect("it listens"));
            Err(io::ErrorKind::QuotaExceeded.into())
        };
        somebody_comes(&socket, watch).await;
        assert!(client.is_some());
    }

    #[tokio::test(flavor = "local")]
    async fn a_socket_is_watched_again_once_it_can_be() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let socket = Arc::new(OwnedFd::from(listener));
        let (mut client, mut tries) = (None, 0);
        let watch = |socket: &Arc<OwnedFd>| {
            tries += 1;
            match tries {
                1 => Err(io::ErrorKind::QuotaExceeded.into()),
                _ => {
                    client = Some(TcpStream::connect(address).expect("it listens"));
                    Watched::duplicate_of(socket)
                }
            }
        };
        somebody_comes(&socket, watch).await;
        assert_eq!((client.is_some(), tries), (true, 2));
    }
}
