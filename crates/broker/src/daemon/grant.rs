//! What a client is told that is given a backend.

use std::os::fd::OwnedFd;

use broker_proto::{Event, Negotiated, NegotiatedRef, ServerMessage, ServerMessageRef};

use super::session::Session;

/// The answer, of texts that the driver has already.
pub(super) struct Grant<'a> {
    pub(super) negotiated: NegotiatedRef<'a>,
    /// Its connections may be resumed after a crash.
    pub(super) is_resumable: bool,
}

impl Grant<'_> {
    /// Sends it, with a socket that is connected to the backend if the client asked for one.
    pub(super) fn send(&self, session: &Session, socket: Option<OwnedFd>) {
        session.send_negotiated(&ServerMessageRef::Negotiated(self.negotiated), socket);
        if self.is_resumable {
            let request_id = self.negotiated.request_id;
            session.send(&ServerMessage::Event { request_id, event: Event::Resumable }, None);
        }
    }
}

/// The same for later.
pub(super) struct LaterGrant {
    pub(super) negotiated: Negotiated,
    is_resumable: bool,
}

impl LaterGrant {
    pub(super) fn as_ref(&self) -> Grant<'_> {
        Grant { negotiated: self.negotiated.as_ref(), is_resumable: self.is_resumable }
    }
}

impl From<Grant<'_>> for LaterGrant {
    fn from(grant: Grant<'_>) -> Self {
        Self { negotiated: grant.negotiated.into_owned(), is_resumable: grant.is_resumable }
    }
}
