//! What can go wrong on a session: one variant per thing that a caller can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker_proto::{CodecError, Endpoint, FrameError, Reconnect, Refusal, RequestId};

use crate::autostart::AutostartError;

/// Why a request or a connection failed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use broker_client::{Client, Error};
///
/// match Client::builder().socket("/nowhere/broker.sock").connect().await {
///     Ok(client) => println!("found at {}", client.socket().display()),
///     Err(Error::NoBroker { tried }) => println!("nobody at {}", tried[0].0.display()),
///     Err(Error::Refused(refusal)) if !refusal.code.is_fatal() => println!("again in {:?} ms", refusal.retry_after_ms),
///     Err(error) => println!("{error}"),
/// }
/// # }
/// ```
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
    /// The connection ended before the answer, and the session does not reconnect, or the request is an order that may
    /// have been carried out already.
    #[error("the broker closed the connection")]
    Disconnected {
        /// What the kernel said; `None` when the broker closed cleanly.
        #[source]
        source: Option<Arc<io::Error>>,
    },
    /// Nothing was heard of the broker for as long as it may be silent, and the session does not reconnect.
    #[error("the broker was silent for {after:?}")]
    Silent {
        /// The limit.
        after: Duration,
    },
    /// The broker could not be reached again, so often that the session gave up.
    #[error("the session with the broker is given up after {attempts} attempts in a row that failed")]
    Exhausted {
        /// How often ([`ReconnectConfig::max_attempts`](crate::ReconnectConfig::max_attempts)).
        attempts: u32,
        /// Why the last one failed.
        #[source]
        last: Arc<Error>,
    },
    /// The broker accepted and closed, again and again, without ever serving: it is there, and does not want this
    /// client, or something that is no broker listens in its place.
    #[error("the broker closed the connection cleanly {attempts} times in a row before it served anything")]
    CleanCloses {
        /// How often ([`ReconnectConfig::max_attempts`](crate::ReconnectConfig::max_attempts)).
        attempts: u32,
    },
    /// This program has ended the session ([`Client::shutdown`](crate::Client::shutdown)).
    #[error("this program has ended the session with the broker")]
    ShutDown,
    /// No broker runs, and none could be started.
    #[error("no broker answers, and none could be started")]
    Autostart(#[source] AutostartError),
    /// The broker goes for good, or is going while the session does not reconnect.
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
    /// The JSON document of the answer is none that this library understands.
    #[error("answer is no document of the expected kind")]
    Document(#[source] Arc<serde_json::Error>),
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

/// Why a connection or a session is over, for everyone who asks later.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// The broker closed.
    Closed,
    /// The kernel reported a fault.
    Lost(Arc<io::Error>),
    /// The broker was silent for that long, and heard last then.
    Silent { after: Duration, heard: Instant },
    /// The broker announced that it goes, then closed.
    GoneAway(Reconnect),
    /// The broker refused the session as a whole.
    Refused(Box<Refusal>),
    /// The peer broke the protocol.
    Protocol(ProtocolError),
    /// There was no connection to begin with.
    Dial(Arc<Error>),
    /// The budget of attempts is spent.
    Exhausted { attempts: u32, last: Arc<Error> },
    /// The same, by clean closes alone.
    CleanCloses { attempts: u32 },
    /// This side has ended it.
    Unwanted,
}

impl End {
    /// The end that follows from this one when the attempts are spent.
    pub(crate) fn after_attempts(self, attempts: u32) -> Self {
        let last = match self {
            Self::Dial(error) => error,
            end => Arc::new(end.into()),
        };
        Self::Exhausted { attempts, last }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Lost(Arc::new(error))
    }
}

impl From<End> for Error {
    fn from(end: End) -> Self {
        match end {
            End::Closed => Self::Disconnected { source: None },
            End::Lost(source) => Self::Disconnected { source: Some(source) },
            End::Silent { after, .. } => Self::Silent { after },
            End::GoneAway(reconnect) => Self::GoingAway(reconnect),
            End::Refused(refusal) => Self::Refused(refusal),
            End::Protocol(error) => Self::Protocol(error),
            End::Dial(last) => Self::Exhausted { attempts: 1, last },
            End::Exhausted { attempts, last } => Self::Exhausted { attempts, last },
            End::CleanCloses { attempts } => Self::CleanCloses { attempts },
            End::Unwanted => Self::ShutDown,
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
