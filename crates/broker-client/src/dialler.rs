//! Finding the broker: which sockets are tried, what a failure to reach any of them means, and starting a broker where
//! none runs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::autostart::{Autostart, AutostartError};
use crate::dial::{dial, is_local_fault, nobody_listens};
use crate::error::Error;

/// Where to look, and what to do if nobody is there.
#[derive(Debug, Clone)]
pub(crate) struct Dialler {
    /// In the order in which they are tried; never empty. Once a broker was found, its socket alone.
    sockets: Vec<Arc<PathBuf>>,
    timeout: Duration,
    autostart: Option<Autostart>,
    /// Where a broker is started.
    own: Arc<PathBuf>,
}

impl Dialler {
    pub(crate) fn new(sockets: Vec<PathBuf>, timeout: Duration, autostart: Option<Autostart>) -> Self {
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        let own = sockets.first().map(Arc::clone).unwrap_or_default();
        Self { sockets, timeout, autostart, own }
    }

    /// The socket that is tried first.
    pub(crate) fn socket(&self) -> Arc<PathBuf> {
        self.sockets.first().map(Arc::clone).unwrap_or_default()
    }

    /// Keeps to the socket at which a broker was found: what is held there is asked for again there.
    pub(crate) fn keep_to(&mut self, socket: Arc<PathBuf>) {
        self.sockets = vec![socket];
    }

    /// Connects to the first broker that answers, and says at which socket.
    ///
    /// # Errors
    /// [`Error::NoBroker`] if nobody listens at any of the sockets, [`Error::PermissionDenied`] if this user may not
    /// connect to one and nobody listens at the others, [`Error::Timeout`] if a listener stays busy,
    /// [`Error::Autostart`] if none runs and none could be started.
    pub(crate) async fn dial(&self) -> Result<(UnixStream, Arc<PathBuf>), Error> {
        let absent = match self.dial_running().await {
            Err(absent @ (Error::NoBroker { .. } | Error::PermissionDenied { .. })) => absent,
            other => return other,
        };
        let is_denied = matches!(&absent, Error::PermissionDenied { path, .. } if *path == *self.own);
        let socket = self.socket();
        // One that was found elsewhere, as the system's, is its owner's to start.
        let may_start = socket == self.own && !is_denied;
        let Some(autostart) = self.autostart.as_ref().filter(|_| may_start) else { return Err(absent) };
        let limit = self.timeout.max(START_TIMEOUT);
        let began = Instant::now();
        let mut pause = PAUSE_FIRST;
        loop {
            match autostart.start(&socket, limit).await {
                Ok(()) => {}
                // A place where this user may not have a broker.
                Err(AutostartError::Lock { source, .. }) if is_forbidden(&source) => return Err(absent),
                Err(error) => return Err(Error::Autostart(error)),
            }
            match dial(&socket, self.timeout).await {
                Ok(stream) => return Ok((stream, socket)),
                // It has left already: with a short idle time it does not wait for us either.
                Err(error) if nobody_listens(&error) && began.elapsed() < limit => {}
                Err(source) => return Err(Error::NoBroker { tried: vec![(socket.to_path_buf(), source)] }),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    async fn dial_running(&self) -> Result<(UnixStream, Arc<PathBuf>), Error> {
        let mut tried = Vec::new();
        let mut denied = None;
        for socket in &self.sockets {
            match dial(socket, self.timeout).await {
                Ok(stream) => return Ok((stream, Arc::clone(socket))),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let what = format!("connecting to the broker at `{}`", socket.display());
                    return Err(Error::Timeout { what, after: self.timeout });
                }
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    denied = denied.or(Some(Error::PermissionDenied { path: socket.to_path_buf(), source }));
                }
                Err(source) if is_local_fault(&source) => return Err(Error::Io { action: "dial the broker", source }),
                Err(error) => tried.push((socket.to_path_buf(), error)),
            }
        }
        Err(denied.unwrap_or(Error::NoBroker { tried }))
    }
}

/// Pauses between two starts of brokers that are gone at once: they double from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LAST: Duration = Duration::from_secs(1);

/// How long a broker may take to come up, at least: it reads its service files and ends what a former one left behind.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether this user may not write there.
fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}
