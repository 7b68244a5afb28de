//! The accept loop: a connection becomes a session.

use std::rc::Rc;
use std::time::Duration;

use interprocess::local_socket::traits::tokio::Listener as _;
use interprocess::os::unix::uds_local_socket::tokio::Listener;
use tokio::net::UnixStream;
use tokio::task::spawn_local;

use super::driver::Shared;
use super::peer;
use super::session::{Session, SessionId, serve, turn_away};

/// How long to wait when the system has no descriptors left: every end of a session gives one back.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts for as long as the broker runs. If the socket is not its own it accepts nobody any more once the broker
/// leaves: who comes then waits for the next one.
pub(super) async fn accept(driver: Shared, listener: Rc<Listener>, is_own: bool) {
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
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => begin(&driver, UnixStream::from(stream)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

fn begin(driver: &Shared, stream: UnixStream) {
    let (peer, pid) = match peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => return tracing::warn!(%error, "a peer whom the kernel does not know is turned away"),
    };
    let mut borrowed = driver.borrow_mut();
    let id = SessionId(borrowed.number());
    let session = Rc::new(Session::new(id, stream, peer, pid));
    let patience = borrowed.config.limits.first_message_timeout;
    match borrowed.session_began(&session) {
        Ok(()) => {
            drop(borrowed);
            spawn_local(serve(Rc::clone(driver), session, patience));
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
