//! The client: finds the broker, opens one session, and makes requests on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use broker_proto::{AdminRequest, ClientInfo, ClientMessage, RequestId};

use crate::dial::{candidate_sockets, dial, is_local_fault};
use crate::error::Error;
use crate::events::Events;
use crate::held::Held;
use crate::in_flight::Kind;
use crate::pending::{Pending, Terms};
use crate::request::Request;
use crate::session::{self, Answer, Handle};
use crate::stream::BackendStream;

/// How long dialling may take unless [`Builder::connect_timeout`] says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A session with the broker. Clones share it; it ends when the last clone, request and hold is gone, or when the
/// broker ends it.
///
/// Requests may be made from many tasks at once; answers arrive in whatever order the backends become ready.
///
/// ```no_run
/// use std::time::Duration;
/// use broker_client::{Client, Request};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect().await?;
///
/// // In one call: start redis if it does not run, and connect to it.
/// let mut redis = client.connect_backend("redis", "^7").await?;
/// redis.write_all(b"PING\r\n").await?;
/// let mut answer = [0; 7];
/// redis.read_exact(&mut answer).await?;
///
/// // Step by step: look at the progress, hold the backend, connect as often as needed.
/// let mut pending = client.resolve(Request::new("redis").version("^7").deadline(Duration::from_secs(20)));
/// while let Some(progress) = pending.progress().await {
///     println!("{}: {} for {} ms", progress.version, progress.state, progress.elapsed_ms);
/// }
/// let held = pending.await?;
/// println!("{} serves, generation {}", held.endpoint(), held.generation());
/// let stream = held.connect().await?;
/// # drop(stream);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handle: Arc<Handle>,
    /// 0 is the broker's own.
    last_request_id: AtomicU64,
    info: ClientInfo,
    socket: PathBuf,
    connect_timeout: Duration,
}

impl Client {
    /// Connects to the broker with the settings of [`Client::builder`].
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect() -> Result<Self, Error> {
        Self::builder().connect().await
    }

    /// Settings for a connection: by default the sockets of [`candidate_sockets`], the name of this program, 5 seconds.
    pub fn builder() -> Builder {
        Builder { socket: None, info: default_info(), connect_timeout: CONNECT_TIMEOUT }
    }

    /// Asks for a backend, which is started if it does not run, and holds it from the answer on.
    pub fn resolve(&self, request: Request) -> Pending<Held> {
        let request_id = self.next_request_id();
        let message = ClientMessage::Hello(request.hello(request_id, self.shared.info.clone()));
        let client = self.clone();
        let terms = Terms {
            kind: Kind::Hello,
            deadline: request.waits_at_most(),
            what: request.describe(),
            finish: Box::new(move |answer, hold| match answer {
                Answer::Backend { negotiated, descriptor } => {
                    Some(Held::new(negotiated, descriptor, request, hold, client))
                }
                Answer::Document(_) => None,
            }),
        };
        Pending::new(Arc::clone(&self.shared.handle), request_id, message, terms)
    }

    /// Gives an operator's order or asks for a report; the answer is a JSON document. For root and the broker's own
    /// user.
    pub fn admin(&self, request: AdminRequest) -> Pending<String> {
        let request_id = self.next_request_id();
        let terms = Terms {
            kind: Kind::Admin,
            deadline: deadline_of(&request),
            what: "the broker's answer to an operator's order".to_owned(),
            finish: Box::new(|answer, _| match answer {
                Answer::Document(json) => Some(json),
                Answer::Backend { .. } => None,
            }),
        };
        let message = ClientMessage::Admin { request_id, request };
        Pending::new(Arc::clone(&self.shared.handle), request_id, message, terms)
    }

    /// Connects to a backend of the default instance, which is started if it does not run.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`Held::connect`].
    pub async fn connect_backend(&self, service: &str, requirement: &str) -> Result<BackendStream, Error> {
        self.resolve(Request::new(service).version(requirement)).await?.connect().await
    }

    /// The events of the session from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.shared.handle.subscribe())
    }

    /// Waits until the broker's side of the session has ended.
    pub async fn closed(&self) {
        self.shared.handle.ended().await;
    }

    /// The socket at which the broker was found.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.shared.connect_timeout
    }

    fn next_request_id(&self) -> RequestId {
        self.shared.last_request_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Settings of a connection, made by [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use = "settings alone connect to nothing"]
pub struct Builder {
    socket: Option<PathBuf>,
    info: ClientInfo,
    connect_timeout: Duration,
}

impl Builder {
    /// Dials this socket and no other.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Who this client is, in the broker's log and `status`.
    pub fn client_name(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.info = ClientInfo { name: name.into(), version: version.into() };
        self
    }

    /// How long to wait at a socket whose listener is busy, and at a backend's endpoint.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connects. Only dials: protocol versions are agreed on with the first request, at no cost of a round trip.
    ///
    /// # Errors
    /// [`Error::NoBroker`] if nobody listens at any of the sockets, [`Error::PermissionDenied`] if this user may not
    /// connect to one and nobody listens at the others, [`Error::Timeout`] if a listener stays busy.
    pub async fn connect(self) -> Result<Client, Error> {
        let candidates = self.socket.map_or_else(candidate_sockets, |socket| vec![socket]);
        let mut tried = Vec::new();
        let mut denied = None;
        for socket in candidates {
            match dial(&socket, self.connect_timeout).await {
                Ok(stream) => {
                    let shared = Shared {
                        handle: Arc::new(session::start(stream)),
                        last_request_id: AtomicU64::new(0),
                        info: self.info,
                        socket,
                        connect_timeout: self.connect_timeout,
                    };
                    return Ok(Client { shared: Arc::new(shared) });
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let what = format!("connecting to the broker at `{}`", socket.display());
                    return Err(Error::Timeout { what, after: self.connect_timeout });
                }
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    denied = denied.or(Some(Error::PermissionDenied { path: socket, source }));
                }
                Err(source) if is_local_fault(&source) => return Err(Error::Io { action: "dial the broker", source }),
                Err(error) => tried.push((socket, error)),
            }
        }
        Err(denied.unwrap_or(Error::NoBroker { tried }))
    }
}

/// The program's file name; its version is not known here.
fn default_info() -> ClientInfo {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program
        .as_deref()
        .and_then(Path::file_name)
        .map_or_else(|| env!("CARGO_PKG_NAME").to_owned(), |name| name.to_string_lossy().into_owned());
    ClientInfo { name, version: String::new() }
}

fn deadline_of(request: &AdminRequest) -> Option<Duration> {
    match request {
        AdminRequest::Start { deadline_ms, .. }
        | AdminRequest::Stop { deadline_ms, .. }
        | AdminRequest::Restart { deadline_ms, .. } => deadline_ms.map(Duration::from_millis),
        AdminRequest::Events { wait_ms, .. } => wait_ms.map(Duration::from_millis),
        AdminRequest::Status
        | AdminRequest::Services
        | AdminRequest::Drain { .. }
        | AdminRequest::Logs { .. }
        | AdminRequest::Reload
        | AdminRequest::Shutdown => None,
    }
}
