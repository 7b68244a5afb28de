//! The accept loop: a connection becomes a session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use interprocess::local_socket::ListenerNonblockingMode;
use interprocess::local_socket::traits::Listener as _;
use interprocess::os::unix::uds_local_socket::Listener;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::task::spawn_local;

use super::connection::Connection;
use super::driver::Shared;
use super::peer;
use super::session::{Session, SessionId, serve, turn_away};
use super::watched::Watched;

/// How long to wait when the system has no descriptors left: every end of a session gives one back.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket, and the wait for who comes there.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
    watched: Watched,
}

impl Door {
    pub(super) fn new(listener: Listener) -> io::Result<Self> {
        listener.set_nonblocking(ListenerNonblockingMode::Accept)?;
        let watched = Watched::duplicate_of(&listener)?;
        Ok(Self { listener, watched })
    }

    /// Waits for a connection. Given back as a descriptor that nobody watches yet.
    async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let mut guard = self.watched.readable().await?;
            match self.listener.accept() {
                Ok(stream) => {
                    // Whether there is another is cheaper to ask than to try: the kernel makes the socket that it would
                    // give out before it looks whether somebody waits.
                    if !is_awaited(self) {
                        guard.clear_ready();
                    }
                    return Ok(stream.into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Accepts for as long as the broker runs. If the socket is not its own it accepts nobody any more once the broker
/// leaves: who comes then waits for the next one.
pub(super) async fn accept(driver: Shared, door: Rc<Door>, is_own: bool) {
    let begins_to_leave = Rc::clone(&driver.borrow().begins_to_leave);
    let leaving = begins_to_leave.notified();
    tokio::pin!(leaving);
    leaving.as_mut().enable();
    if !is_own && driver.borrow().leaving.is_some() {
        return;
    }
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut leaving, if !is_own => return,
            accepted = door.accept() => accepted,
        };
        // Clients that come without end must not keep the thread to themselves.
        tokio::task::coop::consume_budget().await;
        match accepted {
            Ok(socket) => begin(&driver, socket),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

fn begin(driver: &Shared, socket: OwnedFd) {
    let (peer, pid) = match peer::of(&socket, driver.borrow().uid) {
        Ok(peer) => peer,
        Err(error) => return tracing::warn!(%error, "a peer whom the kernel does not know is turned away"),
    };
    let mut borrowed = driver.borrow_mut();
    let id = SessionId(borrowed.number());
    let session = Session::new(id, Connection::new(socket), peer, pid, Rc::clone(&borrowed.mail));
    match borrowed.session_began(&session) {
        Ok(()) => {
            drop(borrowed);
            spawn_local(serve(Rc::clone(driver), session));
        }
        Err(refusal) => {
            if borrowed.tells_refusal() {
                tracing::warn!(pid, "turned away: {}", refusal.reason);
            }
            drop(borrowed);
            turn_away(&session, *refusal);
        }
    }
}

/// Whether somebody has connected who was not accepted yet: after the broker was stopped for a while that may be so.
pub(super) fn is_awaited(listener: &impl AsFd) -> bool {
    let mut listening = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut listening, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
