//! How a session begins and is kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use broker_proto::ClientInfo;

use crate::autostart::Autostart;
use crate::client::{Client, Settings};
use crate::dial::candidate_sockets;
use crate::dialler::Dialler;
use crate::error::Error;
use crate::reconnect::{Machine, ReconnectConfig};
use crate::session::{self, Terms};

/// How long dialling may take unless [`Builder::connect_timeout`] says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a broker may be silent unless [`Builder::heartbeat_timeout`] says otherwise: three of its heartbeats, and
/// then some.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(8);

/// No silence shorter than this is judged: a busy machine is as slow.
const HEARTBEAT_TIMEOUT_MIN: Duration = Duration::from_millis(20);

/// Settings of a session, made by [`Client::builder`].
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use broker_client::{Client, ReconnectConfig};
///
/// # let socket = client.socket();
/// let client = Client::builder()
///     .socket(socket)
///     .client_name("my-editor", "1.4.0")
///     .deadline(Duration::from_secs(30))
///     .reconnect(ReconnectConfig::new(Duration::from_millis(50), Duration::from_secs(2), 30)?)
///     .connect()
///     .await?;
/// # drop(client.resolve(broker_client::Request::new("redis")).await?);
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "settings alone connect to nothing"]
pub struct Builder {
    socket: Option<PathBuf>,
    settings: Settings,
    reconnect: Option<ReconnectConfig>,
    jitter_seed: Option<u64>,
    heartbeat_timeout: Duration,
    waits_for_broker: bool,
    autostart: Option<Autostart>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            socket: None,
            settings: Settings { info: default_info(), connect_timeout: CONNECT_TIMEOUT, deadline: None },
            reconnect: Some(ReconnectConfig::default()),
            jitter_seed: None,
            heartbeat_timeout: HEARTBEAT_TIMEOUT,
            waits_for_broker: false,
            autostart: None,
        }
    }

    /// Dials this socket and no other.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Who this client is, in the broker's log and `status`.
    pub fn client_name(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.settings.info = ClientInfo { name: name.into(), version: version.into() };
        self
    }

    /// How long to wait at a socket whose listener is busy, and at a backend's endpoint.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// How long requests may take that have no deadline of their own. By default they may take as long as the service's
    /// limits and the attempts to reconnect last.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = Some(deadline);
        self
    }

    /// How the session comes back when its connection breaks.
    pub fn reconnect(mut self, config: ReconnectConfig) -> Self {
        self.reconnect = Some(config);
        self
    }

    /// The first connection is the only one: the session ends with it.
    pub fn no_reconnect(mut self) -> Self {
        self.reconnect = None;
        self
    }

    /// Makes the pauses before reconnecting the same in each run, for tests.
    pub fn jitter_seed(mut self, seed: u64) -> Self {
        self.jitter_seed = Some(seed);
        self
    }

    /// How long the broker may be silent before the connection counts as dead: 8 seconds, unless said otherwise, and at
    /// least 20 milliseconds. Half of that after its last word the broker is asked for one, so that any value will do.
    /// The time in which the machine sleeps, or this process is stopped, does not count.
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Self {
        self.heartbeat_timeout = timeout.max(HEARTBEAT_TIMEOUT_MIN);
        self
    }

    /// Waits for a broker that does not run yet, or has no room for one more session, as for one that comes back: with
    /// the same pauses and as many attempts. Without this the first connection succeeds or fails at once.
    pub fn wait_for_broker(mut self) -> Self {
        self.waits_for_broker = true;
        self
    }

    /// Starts a broker where none runs, now and when it is gone later: at the socket that was given, else at the first
    /// of [`candidate_sockets`].
    pub fn autostart(mut self, autostart: Autostart) -> Self {
        self.autostart = Some(autostart);
        self
    }

    /// Connects. Only dials: protocol versions are agreed on with the first request, at no cost of a round trip.
    ///
    /// # Errors
    /// [`Error::NoBroker`] if nobody listens at any of the sockets, [`Error::PermissionDenied`] if this user may not
    /// connect to one and nobody listens at the others, [`Error::Timeout`] if a listener stays busy,
    /// [`Error::Autostart`] if none runs and none could be started, [`Error::Exhausted`] if one was
    /// [waited for](Self::wait_for_broker) in vain.
    pub async fn connect(self) -> Result<Client, Error> {
        let Self { socket, settings, reconnect, jitter_seed, heartbeat_timeout, waits_for_broker, autostart } = self;
        let sockets = socket.map_or_else(candidate_sockets, |socket| vec![socket]);
        let dialler = Dialler::new(sockets, settings.connect_timeout, autostart);
        let random = jitter_seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let first = match dialler.dial().await {
            Err(error) if !waits_for_broker || reconnect.is_none() => return Err(error),
            first => first,
        };
        let machine = Machine::new(reconnect, random);
        let heals = reconnect.is_some();
        let terms = Terms { machine, heals, is_patient: waits_for_broker, heartbeat_timeout };
        let client = Client::new(session::start(dialler, first, terms), settings);
        client.connected().await?;
        Ok(client)
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
