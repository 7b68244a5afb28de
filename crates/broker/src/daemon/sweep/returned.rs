//! Sockets that the service manager kept while no broker ran, given back to those whose they are.
//!
//! What was kept is looked at like anything else that an earlier broker left: it must listen where the journal says, and be
//! what clients find there. Else it is let go, and things are as if nobody had kept anything.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use broker_proto::Endpoint;

use crate::core::registry::{BackendId, BackendKey};
use crate::daemon::driver::Driver;
use crate::daemon::hosted::{Ear, Held};
use crate::daemon::inherited::Inherited;
use crate::daemon::ledger::Start;
use crate::daemon::places::name_of;
use crate::daemon::work::listen_to;
use crate::net::endpoint::{KeptError, check_tcp, check_unix, tcp_port};
use crate::net::notify_socket::NotifySocket;
use crate::services::{self, Definition, Probe};

impl Driver {
    /// The listening socket of a backend, if it was kept and is the one that a start by this definition would have.
    pub(super) fn listener_again(
        &self,
        key: &BackendKey,
        definition: &Definition,
        start: Option<&Start>,
        inherited: &mut Inherited,
    ) -> Option<Held> {
        if !matches!(definition.readiness.probe, Probe::Socket { .. }) {
            return None;
        }
        let known = start.filter(|start| start.definition.endpoint == definition.endpoint);
        let known = known.and_then(|start| start.endpoint.clone());
        let endpoint_of = |socket: &OwnedFd| match (&known, &definition.endpoint) {
            (Some(endpoint), _) => Ok(endpoint.clone()),
            (None, services::Endpoint::Unix { path }) => {
                let path = path.clone().unwrap_or_else(|| self.places.socket(key));
                Ok(Endpoint::Unix { path: path.to_string_lossy().into_owned() })
            }
            (None, services::Endpoint::Tcp { port }) => {
                let port = port.map_or_else(|| tcp_port(socket), Ok)?;
                Ok(Endpoint::Tcp { host: "127.0.0.1".to_owned(), port })
            }
        };
        let take = |socket: OwnedFd| -> Result<OwnedFd, KeptError> {
            match endpoint_of(&socket)? {
                Endpoint::Unix { path } => check_unix(&socket, path.as_ref())?,
                Endpoint::Tcp { port, .. } => check_tcp(&socket, port)?,
            }
            Ok(socket)
        };
        let name = name_of(&self.places.socket(key));
        let (socket, stored) = inherited.claim(&name, &self.fd_store, take)?;
        let endpoint = endpoint_of(&socket).ok()?;
        tracing::debug!(backend = %key, %endpoint, "its listening socket was kept");
        let (declared, stored) = (definition.endpoint.clone(), stored.map(Arc::new));
        Some(Held { socket: Arc::new(socket), endpoint, declared, stored })
    }

    /// Where an adopted daemon is listened to: on the socket that was kept, with what it has said meanwhile, or on a new one
    /// at the same place.
    pub(super) fn ear_again(&self, path: &Path, key: &BackendKey, inherited: &mut Inherited) -> Option<Ear> {
        let kept = inherited.claim(&name_of(path), &self.fd_store, |socket| NotifySocket::bound(socket, path));
        if let Some((socket, stored)) = kept {
            return Some(Ear { socket, stored, is_whole: true });
        }
        match listen_to(path, &self.fd_store) {
            Ok(mut ear) => {
                ear.is_whole = false;
                Some(ear)
            }
            Err(refusal) => {
                tracing::warn!(backend = %key, "its notify socket cannot be made again: {}", refusal.reason);
                None
            }
        }
    }

    /// Whether the broker holds the listening socket of a backend.
    pub(super) fn is_held(&self, id: BackendId) -> bool {
        self.hosted.get(&id).is_some_and(|hosted| hosted.listener.is_some())
    }
}
