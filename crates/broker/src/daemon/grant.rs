//! What a client is told that is given a backend.

use std::os::fd::OwnedFd;

use broker_proto::{Event, Negotiated, NegotiatedRef, ServerMessage, ServerMessageRef, encode_frame};

use super::answers::Answers;
use super::session::Session;
use crate::core::registry::BackendId;

/// The answer, of texts that the driver has already.
pub(super) struct Grant<'a> {
    pub(super) negotiated: NegotiatedRef<'a>,
    /// Its connections may be resumed after a crash.
    pub(super) is_resumable: bool,
}

impl Grant<'_> {
    /// Sends it, with a socket that is connected to the backend if the client asked for one.
    pub(super) fn send(&self, session: &Session, socket: Option<OwnedFd>) {
        let message = ServerMessageRef::Negotiated(self.negotiated);
        session.send_negotiated(|room| encode_frame(&message, room), socket);
        self.tell_if_resumable(session);
    }

    /// Sends it without a socket, as it was sent to those before.
    pub(super) fn send_prepared(&self, session: &Session, id: BackendId, answers: &mut Answers<BackendId>) {
        let request_id = self.negotiated.request_id;
        let prepared = answers.prepared(id, &self.negotiated);
        session.send_negotiated(|room| prepared?.append_frame(request_id, room), None);
        self.tell_if_resumable(session);
    }

    fn tell_if_resumable(&self, session: &Session) {
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
