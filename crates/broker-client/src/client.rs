//! The client: makes requests on a session with the broker.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use broker_proto::{AdminRequest, ClientInfo, RequestId};

use crate::builder::Builder;
use crate::error::Error;
use crate::events::Events;
use crate::held::Held;
use crate::pending::{Pending, Terms};
use crate::request::Request;
use crate::session::{Answer, Ask, Handle};
use crate::stream::BackendStream;

/// A session with the broker, which heals itself: when the connection breaks it is made again, what is held is taken
/// again, and requests that wait go on waiting.
///
/// Clones share the session; it ends when the last clone, request and hold is gone, at [`shutdown`](Self::shutdown), or
/// when the broker cannot be reached any more. Requests may be made from many tasks at once; answers arrive in whatever
/// order the backends become ready.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use broker_client::{Client, Request};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # let _ = || async {
/// let client = Client::connect().await?;
/// # Ok::<(), broker_client::Error>(()) };
///
/// // In one call: start redis if it does not run, and connect to it.
/// let mut redis = client.connect_backend("redis", "^7").await?;
/// redis.write_all(b"PING\r\n").await?;
/// let mut answer = [0; 7];
/// redis.read_exact(&mut answer).await?;
/// assert_eq!(&answer, b"+PONG\r\n");
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
/// # fn main() { with_broker(example) }
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
    settings: Settings,
}

/// What requests go by unless they say otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) info: ClientInfo,
    pub(crate) connect_timeout: Duration,
    pub(crate) deadline: Option<Duration>,
}

impl Client {
    /// Connects to the broker with the settings of [`Client::builder`].
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect() -> Result<Self, Error> {
        Self::builder().connect().await
    }

    /// Settings for a session: by default the sockets of [`candidate_sockets`](crate::candidate_sockets), the name of
    /// this program, and reconnecting as [`ReconnectConfig::default`](crate::ReconnectConfig) says.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn new(handle: Handle, settings: Settings) -> Self {
        let shared = Shared { handle: Arc::new(handle), last_request_id: AtomicU64::new(0), settings };
        Self { shared: Arc::new(shared) }
    }

    /// Asks for a backend, which is started if it does not run, and holds it from the answer on.
    pub fn resolve(&self, request: Request) -> Pending<Held> {
        let request_id = self.next_request_id();
        let deadline = request.waits_at_most().or(self.shared.settings.deadline);
        let ask = Ask::Hello {
            hello: request.hello(request_id, self.shared.settings.info.clone()),
            due: deadline.and_then(|deadline| Instant::now().checked_add(deadline)),
        };
        let client = self.clone();
        let terms = Terms {
            deadline,
            what: request.describe(),
            finish: Box::new(move |answer, hold| match answer {
                Answer::Backend { standing, descriptor } => {
                    Some(Ok(Held::new(standing, descriptor, request, hold, client)))
                }
                Answer::Document(_) | Answer::Pong => None,
            }),
        };
        Pending::new(Arc::clone(&self.shared.handle), request_id, ask, terms)
    }

    /// Gives an operator's order or asks for a report; the answer is a JSON document. For root and the broker's own
    /// user.
    ///
    /// Reports are asked for again if the connection breaks; an order that was on its way then fails with
    /// [`Error::Disconnected`], since it may have been carried out.
    pub fn admin(&self, request: AdminRequest) -> Pending<String> {
        self.ask(request, "the broker's answer to an operator's order", Ok)
    }

    /// The same with what a timeout names, and what becomes of the document.
    pub(crate) fn ask<T>(
        &self,
        request: AdminRequest,
        what: impl Into<String>,
        read: impl FnOnce(String) -> Result<T, Error> + Send + 'static,
    ) -> Pending<T> {
        let terms = Terms {
            deadline: deadline_of(&request).or(self.shared.settings.deadline),
            what: what.into(),
            finish: Box::new(|answer, _| match answer {
                Answer::Document(json) => Some(read(json)),
                Answer::Backend { .. } | Answer::Pong => None,
            }),
        };
        Pending::new(Arc::clone(&self.shared.handle), self.next_request_id(), Ask::Admin(request), terms)
    }

    /// Asks the broker for a sign of life. What it told before has arrived when this is answered, so
    /// [`events`](Self::events) has it.
    pub fn ping(&self) -> Pending<()> {
        let terms = Terms {
            deadline: self.shared.settings.deadline,
            what: "the broker's sign of life".to_owned(),
            finish: Box::new(|answer, _| match answer {
                Answer::Pong => Some(Ok(())),
                Answer::Backend { .. } | Answer::Document(_) => None,
            }),
        };
        Pending::new(Arc::clone(&self.shared.handle), self.next_request_id(), Ask::Ping, terms)
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

    /// Whether there is a connection just now. Requests may be made in any case, and wait for one.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.handle.is_connected()
    }

    /// Ends the session for every clone, hold and request, at once, and waits until it is over. What waits fails with
    /// [`Error::ShutDown`].
    pub async fn shutdown(&self) {
        self.shared.handle.shut_down();
        self.shared.handle.ended().await;
    }

    /// Waits until the session is over for good, and says why.
    pub async fn closed(&self) -> Error {
        self.shared.handle.ended().await
    }

    /// The socket at which the broker was found.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.shared.handle.socket()
    }

    pub(crate) async fn connected(&self) -> Result<(), Error> {
        self.shared.handle.connected().await
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.shared.settings.connect_timeout
    }

    fn next_request_id(&self) -> RequestId {
        self.shared.last_request_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn deadline_of(request: &AdminRequest) -> Option<Duration> {
    match request {
        AdminRequest::Start { deadline_ms, .. }
        | AdminRequest::Stop { deadline_ms, .. }
        | AdminRequest::Restart { deadline_ms, .. } => deadline_ms.map(Duration::from_millis),
        AdminRequest::Events { wait_ms, .. } | AdminRequest::Wait { wait_ms, .. } => wait_ms.map(Duration::from_millis),
        AdminRequest::Status
        | AdminRequest::Services
        | AdminRequest::Drain { .. }
        | AdminRequest::Logs { .. }
        | AdminRequest::Reload
        | AdminRequest::Release { .. }
        | AdminRequest::Run { .. }
        | AdminRequest::Processes { .. }
        | AdminRequest::Cancel { .. }
        | AdminRequest::Prune { .. }
        | AdminRequest::HandOver
        | AdminRequest::Shutdown => None,
    }
}
