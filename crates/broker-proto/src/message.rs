//! The messages: what a client may say and what a broker answers.
//!
//! Texts that a peer sends (names, requirements) stay texts here: the broker parses them and answers a bad one with a
//! refusal of its own, so that one bad request does not cost the session. Enums grow only at the end; a message that
//! shipped is frozen by the golden bytes in `golden/`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Refusal;
use crate::admin::AdminRequest;

/// Chosen by the client, unique among its requests in flight on the session; answers carry it back. 0 is the broker's
/// own, for what answers no request.
pub type RequestId = u64;

/// What a client says, in texts of its own.
pub type ClientMessage = ClientMessageOf<Hello>;

/// What a client says, in the texts of the frame that it came in.
pub type ClientMessageRef<'a> = ClientMessageOf<HelloRef<'a>>;

/// What a client says; the Hello's texts are somebody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientMessageOf<H> {
    /// Asks for a backend and holds it from the answer on.
    Hello(H),
    /// Gives up what the Hello of that id holds or waits for. Has no answer; an unknown id is ignored.
    Release {
        /// The Hello's id.
        request_id: RequestId,
    },
    /// Asks for a [`ServerMessage::Pong`] with the same number.
    Ping {
        /// Any number.
        nonce: u64,
    },
    /// Asks for an order or a report of the operator.
    Admin {
        /// Comes back with the reply.
        request_id: RequestId,
        /// What is asked.
        request: AdminRequest,
    },
}

/// A request for a backend, in the texts of its frame.
pub type HelloRef<'a> = Hello<&'a str>;

/// A request for a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<T = String> {
    /// Comes back with every answer to this Hello.
    pub request_id: RequestId,
    /// The instance's name.
    pub instance: T,
    /// The service's name.
    pub service: T,
    /// A semver requirement; `*` is any version.
    pub version_requirement: T,
    /// Who asks, for the broker's log and `status`. Never trusted.
    pub client: ClientInfo<T>,
    /// How long the client will wait, in milliseconds from the broker's reading of this message; `None` leaves it to
    /// the service's own limits.
    pub deadline_ms: Option<u64>,
    /// How the backend is handed over.
    pub delivery: Delivery,
    /// The generation that this client just found dead (ECONNREFUSED, ENOENT at its endpoint).
    pub found_dead: Option<u64>,
}

/// A client's name for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo<T = String> {
    /// The program's name.
    pub name: T,
    /// The program's version.
    pub version: T,
}

/// How a backend is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// The reply names the endpoint; the client connects.
    Endpoint,
    /// A socket that the broker connected to the endpoint comes with the reply (`SCM_RIGHTS`).
    Connected,
}

/// What a broker says, in texts of its own.
pub type ServerMessage = ServerMessageOf<Negotiated>;

/// What a broker says, a grant in texts that it has already.
pub type ServerMessageRef<'a> = ServerMessageOf<NegotiatedRef<'a>>;

/// What a broker says; the grant's texts are somebody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerMessageOf<N> {
    /// The backend is ready, and held for this session.
    Negotiated(N),
    /// The request is refused.
    Refused {
        /// The request's id; 0 if it could not be read.
        request_id: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// What goes on while the request waits.
    Progress(Progress),
    /// Something happened to a backend that the session holds.
    Event {
        /// The id of the Hello that holds it.
        request_id: RequestId,
        /// What happened.
        event: Event,
    },
    /// The broker is going; no new request is answered on this session.
    GoAway {
        /// What the client should do.
        reconnect: Reconnect,
    },
    /// The answer to a [`ClientMessage::Ping`].
    Pong {
        /// The ping's number.
        nonce: u64,
    },
    /// The answer to a [`ClientMessage::Admin`].
    AdminReply {
        /// The request's id.
        request_id: RequestId,
        /// A JSON document: reports grow fields from release to release, which bincode's frozen structs could not.
        json: String,
    },
    /// The broker is alive. Sent to every session each [`HEARTBEAT_INTERVAL`], unless the peer has something unread.
    Heartbeat,
}

/// How often the broker gives a sign of life: three fit into the 8 seconds of silence after which a client takes the
/// connection for dead.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(2500);

/// A backend, ready, in others' texts.
pub type NegotiatedRef<'a> = Negotiated<&'a str, &'a Endpoint>;

/// A backend, ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated<T = String, E = Endpoint> {
    /// The Hello's id.
    pub request_id: RequestId,
    /// The instance.
    pub instance: T,
    /// The service.
    pub service: T,
    /// The version that was picked.
    pub version: T,
    /// Where the backend listens.
    pub endpoint: E,
    /// Which start of the backend this is, from 1.
    pub generation: u64,
    /// The main process; `None` when a daemon that forked away is not yet known by its number.
    pub pid: Option<u32>,
    /// Whether a connected socket comes with this frame.
    pub connected: bool,
}

impl NegotiatedRef<'_> {
    /// The same with texts of its own.
    #[must_use]
    pub fn into_owned(self) -> Negotiated {
        let Self { request_id, instance, service, version, endpoint, generation, pid, connected } = self;
        let [instance, service, version] = [instance, service, version].map(str::to_owned);
        Negotiated { request_id, instance, service, version, endpoint: endpoint.clone(), generation, pid, connected }
    }
}

impl Negotiated {
    /// The same without texts of its own.
    #[must_use]
    pub fn as_ref(&self) -> NegotiatedRef<'_> {
        let Self { request_id, instance, service, version, endpoint, generation, pid, connected } = self;
        let (request_id, generation, pid, connected) = (*request_id, *generation, *pid, *connected);
        Negotiated { request_id, instance, service, version, endpoint, generation, pid, connected }
    }
}

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// A Unix stream socket's path.
    Unix {
        /// Absolute.
        path: String,
    },
    /// A TCP port on a host, which today is always `127.0.0.1`.
    Tcp {
        /// A numeric address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Endpoint {
    /// The endpoint as a daemon's command line takes it (`{endpoint}`): the path, or `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Unix { path } => path.clone(),
            Self::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Endpoint {
    /// `unix:/path` or `tcp:127.0.0.1:PORT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path } => write!(f, "unix:{path}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// The state of a backend, as people and machines see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing runs.
    Inactive,
    /// Started and not yet ready.
    Starting,
    /// Serving.
    Ready,
    /// Crashed once; the one retry is about to start.
    Backoff,
    /// Crashed again; refused until the window is over.
    Failed,
    /// Being ended.
    Stopping,
    /// An earlier broker left something of which it cannot be proved whose it is: nothing is started over it until an
    /// operator releases it.
    Quarantined,
}

impl State {
    /// The state as `--json` prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Quarantined => "quarantined",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What goes on while a request waits. Sent at once and at every change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The request's id.
    pub request_id: RequestId,
    /// The version that was picked.
    pub version: String,
    /// What the backend is doing.
    pub state: State,
    /// Which start this is: 0 the first, 1 the retry.
    pub attempt: u32,
    /// Since this state began, in milliseconds.
    pub elapsed_ms: u64,
    /// What the daemon says of itself (`STATUS=`), or what the broker sees.
    pub status: Option<String>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
    /// It ended, and nobody could see how.
    Unknown,
}

/// What happened to a held backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A generation ended, unasked.
    Exited {
        /// The generation.
        generation: u64,
        /// How.
        exit: Exit,
        /// From its start to its end, in milliseconds.
        lived_ms: u64,
    },
    /// The backend will be started again.
    Restarting {
        /// When, in milliseconds from now.
        delay_ms: u64,
    },
    /// A new generation serves.
    Ready {
        /// The generation.
        generation: u64,
        /// Where it listens.
        endpoint: Endpoint,
    },
    /// The backend will not be started again before the refusal's time is over; the hold stays.
    Failed {
        /// What a Hello is told now.
        refusal: Refusal,
    },
    /// An operator drains the backend: it serves until its last hold is gone.
    Draining,
    /// An operator stopped the backend: this hold is over.
    Stopped,
    /// A client whose connection broke with a crash may connect to the next generation and go on, says the service's
    /// file (`[session] resume = "reconnect"`). Told once, right after the Negotiated.
    Resumable,
}

/// What a client does after a [`ServerMessage::GoAway`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reconnect {
    /// Dial again after that many milliseconds.
    After {
        /// Milliseconds from now.
        ms: u64,
    },
    /// Do not come back.
    Never,
}
