//! A backend that is held, and how to connect to it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use broker_proto::{Endpoint, Negotiated, RequestId};

use crate::client::Client;
use crate::error::Error;
use crate::request::Request;
use crate::session::Hold;
use crate::stream::{BackendStream, Socket};

/// A backend, ready and held: the broker keeps it running while somebody holds it. Dropping it is the release.
///
/// What it tells is how the backend was when it was negotiated; [`Client::events`] says what happens to it since.
#[derive(Debug)]
pub struct Held {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    negotiated: Negotiated,
    /// The connected socket that came with the answer, until it is used.
    descriptor: Mutex<Option<OwnedFd>>,
    request: Request,
    // The release is entered before the client goes, which may be what keeps the session.
    _hold: Hold,
    client: Client,
}

impl Held {
    pub(crate) fn new(
        negotiated: Negotiated,
        descriptor: Option<OwnedFd>,
        request: Request,
        hold: Hold,
        client: Client,
    ) -> Self {
        let descriptor = Mutex::new(descriptor);
        Self { inner: Arc::new(Inner { negotiated, descriptor, request, _hold: hold, client }) }
    }

    /// What the broker answered.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.inner.negotiated
    }

    /// Where the backend listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.negotiated.endpoint
    }

    /// Which start of the backend this is, from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.negotiated.generation
    }

    /// The backend's main process, when known.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.inner.negotiated.pid
    }

    /// The id under which [`SessionEvent::Backend`](crate::SessionEvent::Backend) speaks of this hold.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.inner.negotiated.request_id
    }

    /// Connects to the backend. The stream holds the backend too, so this may be dropped before it.
    ///
    /// If nobody listens at the endpoint any more (ECONNREFUSED, ENOENT), the broker is told and asked once more, for
    /// the same version; the stream then holds the backend that this brought.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if it cannot be connected to; whatever the broker answers when asked once more.
    pub async fn connect(&self) -> Result<BackendStream, Error> {
        if let Some(connected) = self.delivered()? {
            return Ok(connected);
        }
        if self.inner.negotiated.connected {
            // The delivered socket is in use; the endpoint may be out of this process's reach.
            let another = self.inner.client.resolve(self.inner.request.clone()).await?;
            return match another.delivered()? {
                Some(connected) => Ok(connected),
                None => another.dial().await.map_err(|source| another.unreachable(source)),
            };
        }
        match self.dial().await {
            Ok(connected) => Ok(connected),
            Err(error) if is_dead(&error) => {
                let Negotiated { version, generation, .. } = &self.inner.negotiated;
                tracing::debug!(endpoint = %self.endpoint(), generation, %error, "the endpoint is dead; asking again");
                let request = self.inner.request.clone().version(version).found_dead(*generation);
                let another = self.inner.client.resolve(request).await?;
                match another.delivered()? {
                    Some(connected) => Ok(connected),
                    None => another.dial().await.map_err(|source| another.unreachable(source)),
                }
            }
            Err(source) => Err(self.unreachable(source)),
        }
    }

    /// Uses the socket that came with the answer, if it did and is still there.
    fn delivered(&self) -> Result<Option<BackendStream>, Error> {
        let descriptor = self.inner.descriptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(descriptor) = descriptor else { return Ok(None) };
        let socket = Socket::adopt(descriptor, self.endpoint()).map_err(|source| self.unreachable(source))?;
        Ok(Some(BackendStream::new(socket, self.share())))
    }

    async fn dial(&self) -> io::Result<BackendStream> {
        let socket = Socket::dial(self.endpoint(), self.inner.client.connect_timeout()).await?;
        Ok(BackendStream::new(socket, self.share()))
    }

    fn unreachable(&self, source: io::Error) -> Error {
        Error::Endpoint { endpoint: self.endpoint().clone(), source }
    }

    fn share(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl std::ops::Deref for Held {
    type Target = Negotiated;

    fn deref(&self) -> &Negotiated {
        self.negotiated()
    }
}

/// Whether the kernel says that nobody listens there.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}
