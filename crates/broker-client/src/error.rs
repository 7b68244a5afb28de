//! What can go wrong on a session: one variant per thing that a caller can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use broker_proto::{CodecError, Endpoint, FrameError, Reconnect, Refusal, RequestId};

/// Why a request or a connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No broker listens at any of the places: start one, or name its socket.
    #[error("no broker answers: {}", Tried(tried))]
    NoBroker {
        /// Every socket that was dialled, in order, and what the kernel said.
        tried: Vec<(PathBuf, io::Error)>,
    },
    /// There is a socket, and this user may not connect to it.
    #[error("not permitted to connect to the broker at `{}`", path.display())]
    PermissionDenied {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The broker said No; the refusal says why, and when to ask again.
    #[error("refused: {0}")]
    Refused(Box<Refusal>),
    /// The session ended before the answer: connect again.
    #[error("the broker closed the connection")]
    Disconnected {
        /// What the kernel said; `None` when the broker closed cleanly.
        #[source]
        source: Option<Arc<io::Error>>,
    },
    /// The broker is going and takes no new request on this session.
    #[error("the broker is going away: {}", Advice(*.0))]
    GoingAway(Reconnect),
    /// A limit that the caller set was reached first.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// What was waited for: `connecting to the broker at /run/broker/broker.sock`.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// The peer does not keep to the protocol; it is no broker, or one with a fault. The session is over, or, where the
    /// message alone was wrong, the request is.
    #[error("the broker does not keep to the protocol")]
    Protocol(#[source] ProtocolError),
    /// The backend is ready, and its endpoint could not be connected to.
    #[error("cannot connect to the backend at `{endpoint}`")]
    Endpoint {
        /// Where it listens.
        endpoint: Endpoint,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A fault on this side, such as no descriptors being left.
    #[error("cannot {action}")]
    Io {
        /// What was tried: `dial the broker`.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The refusal, if the broker said No.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// How a peer broke the protocol.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The bytes are no preamble or no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame is no message.
    #[error("frame is no message")]
    Message(#[source] Arc<CodecError>),
    /// The peer chose a protocol version that this library did not offer.
    #[error("peer writes in protocol version {version}, which was not offered")]
    Version {
        /// The version.
        version: u16,
    },
    /// The message cannot answer the request that it names.
    #[error("request {request_id} is answered with a message of another kind")]
    WrongAnswer {
        /// The request.
        request_id: RequestId,
    },
    /// A frame said that a connected socket comes with it, and none came.
    #[error("answer to request {request_id} announces a descriptor, and none came with it")]
    NoDescriptor {
        /// The request.
        request_id: RequestId,
    },
    /// Descriptors were lost on their way (`MSG_CTRUNC`): this process has none left, or the peer sent too many.
    #[error("descriptors were lost on their way")]
    DescriptorsLost,
}

/// Why a session is over, for everyone who asks later.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// The broker closed.
    Closed,
    /// The kernel reported a fault.
    Lost(Arc<io::Error>),
    /// The broker announced that it goes, then closed.
    GoneAway(Reconnect),
    /// The broker refused the session as a whole.
    Refused(Box<Refusal>),
    /// The peer broke the protocol.
    Protocol(ProtocolError),
}

impl From<End> for Error {
    fn from(end: End) -> Self {
        match end {
            End::Closed => Self::Disconnected { source: None },
            End::Lost(source) => Self::Disconnected { source: Some(source) },
            End::GoneAway(reconnect) => Self::GoingAway(reconnect),
            End::Refused(refusal) => Self::Refused(refusal),
            End::Protocol(error) => Self::Protocol(error),
        }
    }
}

/// `tried /a (not found), /b (refused)`.
struct Tried<'a>(&'a [(PathBuf, io::Error)]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there is no place to look");
        }
        for (at, (path, error)) in self.0.iter().enumerate() {
            let before = if at == 0 { "tried " } else { ", " };
            write!(f, "{before}`{}` ({error})", path.display())?;
        }
        Ok(())
    }
}

struct Advice(Reconnect);

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reconnect::After { ms } => write!(f, "connect again in {ms} ms"),
            Reconnect::Never => f.write_str("it does not come back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_broker_is_told_with_every_place_that_was_tried() {
        let tried = vec![
            (PathBuf::from("/a"), io::Error::from_raw_os_error(2)),
            (PathBuf::from("/b"), io::Error::from_raw_os_error(111)),
        ];
        assert_eq!(
            Error::NoBroker { tried }.to_string(),
            "no broker answers: tried `/a` (No such file or directory (os error 2)), \
             `/b` (Connection refused (os error 111))"
        );
    }

    #[test]
    fn a_source_is_in_the_chain_and_not_in_the_text() {
        use std::error::Error as _;
        let error = Error::from(End::Lost(Arc::new(io::Error::from_raw_os_error(104))));
        assert_eq!(error.to_string(), "the broker closed the connection");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("Connection reset by peer (os error 104)"));
    }
}
