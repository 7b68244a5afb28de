//! What a broker reads and writes at every Hello, with the texts left where they are: the same bytes as those of the
//! messages that own theirs.

use serde::{Deserialize, Serialize};

use crate::admin::AdminRequest;
use crate::message::{ClientMessage, Delivery, Endpoint, Hello, Negotiated, RequestId};

/// A [`ClientMessage`] whose texts are those of the frame.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum ClientMessageRef<'a> {
    /// [`ClientMessage::Hello`].
    #[serde(borrow)]
    Hello(HelloRef<'a>),
    /// [`ClientMessage::Release`].
    Release {
        /// The Hello's id.
        request_id: RequestId,
    },
    /// [`ClientMessage::Ping`].
    Ping {
        /// Any number.
        nonce: u64,
    },
    /// [`ClientMessage::Admin`].
    Admin {
        /// Comes back with the reply.
        request_id: RequestId,
        /// What is asked.
        request: AdminRequest,
    },
}

/// A [`Hello`] whose texts are those of the frame; the fields are that one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "as those of `Hello`")]
pub struct HelloRef<'a> {
    pub request_id: RequestId,
    pub instance: &'a str,
    pub service: &'a str,
    pub version_requirement: &'a str,
    #[serde(borrow)]
    pub client: ClientInfoRef<'a>,
    pub deadline_ms: Option<u64>,
    pub delivery: Delivery,
    pub found_dead: Option<u64>,
}

/// A [`ClientInfo`](crate::ClientInfo) whose texts are those of the frame; the fields are that one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "as those of `ClientInfo`")]
pub struct ClientInfoRef<'a> {
    pub name: &'a str,
    pub version: &'a str,
}

/// The [`ServerMessage`](crate::ServerMessage) of whose texts the broker has others' already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ServerMessageRef<'a> {
    /// [`ServerMessage::Negotiated`](crate::ServerMessage::Negotiated).
    Negotiated(NegotiatedRef<'a>),
}

/// A [`Negotiated`] of others' texts; the fields are that one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "as those of `Negotiated`")]
pub struct NegotiatedRef<'a> {
    pub request_id: RequestId,
    pub instance: &'a str,
    pub service: &'a str,
    pub version: &'a str,
    pub endpoint: &'a Endpoint,
    pub generation: u64,
    pub pid: Option<u32>,
    pub connected: bool,
}

impl NegotiatedRef<'_> {
    /// The same with texts of its own.
    #[must_use]
    pub fn to_owned(&self) -> Negotiated {
        Negotiated {
            request_id: self.request_id,
            instance: self.instance.to_owned(),
            service: self.service.to_owned(),
            version: self.version.to_owned(),
            endpoint: self.endpoint.clone(),
            generation: self.generation,
            pid: self.pid,
            connected: self.connected,
        }
    }
}

impl<'a> From<&'a Negotiated> for NegotiatedRef<'a> {
    fn from(negotiated: &'a Negotiated) -> Self {
        Self {
            request_id: negotiated.request_id,
            instance: &negotiated.instance,
            service: &negotiated.service,
            version: &negotiated.version,
            endpoint: &negotiated.endpoint,
            generation: negotiated.generation,
            pid: negotiated.pid,
            connected: negotiated.connected,
        }
    }
}

impl<'a> From<&'a Hello> for HelloRef<'a> {
    fn from(hello: &'a Hello) -> Self {
        Self {
            request_id: hello.request_id,
            instance: &hello.instance,
            service: &hello.service,
            version_requirement: &hello.version_requirement,
            client: ClientInfoRef { name: &hello.client.name, version: &hello.client.version },
            deadline_ms: hello.deadline_ms,
            delivery: hello.delivery,
            found_dead: hello.found_dead,
        }
    }
}

impl<'a> From<&'a ClientMessage> for ClientMessageRef<'a> {
    fn from(message: &'a ClientMessage) -> Self {
        match message {
            ClientMessage::Hello(hello) => Self::Hello(hello.into()),
            ClientMessage::Release { request_id } => Self::Release { request_id: *request_id },
            ClientMessage::Ping { nonce } => Self::Ping { nonce: *nonce },
            ClientMessage::Admin { request_id, request } => {
                Self::Admin { request_id: *request_id, request: request.clone() }
            }
        }
    }
}
