//! A backend that is held, and how to connect to it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use broker_proto::{Endpoint, Negotiated, RequestId};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::sync::watch;

use crate::client::Client;
use crate::dial::nobody_listens;
use crate::error::Error;
use crate::request::Request;
use crate::session::{Hold, Standing};
use crate::stream::{BackendStream, Socket};

/// A backend, ready and held: the broker keeps it running while somebody holds it. Dropping it is the release.
///
/// What it tells is what the broker said last: a restart of the backend, or of the broker itself, changes it.
/// [`Client::events`] tells of each change.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use broker_client::Request;
///
/// let held = client.resolve(Request::new("redis").version("^7")).await?;
/// println!("{} {} serves at {}", held.service(), held.version(), held.endpoint());
/// assert!(held.is_held());
/// drop(held); // The backend may be stopped when it is idle.
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
#[derive(Debug)]
pub struct Held {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    standing: watch::Receiver<Standing>,
    /// The connected socket that came with the answer, until it is used.
    descriptor: Mutex<Option<OwnedFd>>,
    request: Request,
    // The release is entered before the client goes, which may be what keeps the session.
    hold: Hold,
    client: Client,
}

impl Held {
    pub(crate) fn new(
        standing: watch::Receiver<Standing>,
        descriptor: Option<OwnedFd>,
        request: Request,
        hold: Hold,
        client: Client,
    ) -> Self {
        let descriptor = Mutex::new(descriptor);
        Self { inner: Arc::new(Inner { standing, descriptor, request, hold, client }) }
    }

    /// All that the broker said of it last.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.inner.standing.borrow().negotiated.clone()
    }

    /// Where the backend listens.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.inner.standing.borrow().negotiated.endpoint.clone()
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> String {
        self.inner.standing.borrow().negotiated.service.clone()
    }

    /// The version that was picked.
    #[must_use]
    pub fn version(&self) -> String {
        self.inner.standing.borrow().negotiated.version.clone()
    }

    /// Which start of the backend this is, from 1; counted on by every broker on the same state folder.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.standing.borrow().negotiated.generation
    }

    /// The backend's main process, when known. It is not known for a generation that followed a crash.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.inner.standing.borrow().negotiated.pid
    }

    /// Whether the hold lasts: an operator's stop ends it, and so does a broker that refuses it for good after a
    /// reconnect, and the end of the session.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.inner.standing.borrow().is_held
    }

    /// Whether the service's file says (`[session] resume = "reconnect"`) that a client whose connection broke with a
    /// crash may connect again and go on. The broker says so after its answer, and before it tells of any crash.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        self.inner.standing.borrow().is_resumable
    }

    /// The id under which [`SessionEvent::Backend`](crate::SessionEvent::Backend) speaks of this hold.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.inner.hold.request_id()
    }

    /// Connects to the backend. The stream holds the backend too, so this may be dropped before it.
    ///
    /// If nobody listens at the endpoint any more (ECONNREFUSED, ENOENT), the broker is told and asked once more, for
    /// the same version; the stream then holds the backend that this brought. With
    /// [`Request::connected`] the first call uses the socket that came with the answer, unless the backend has closed it
    /// since, and each later one asks for another.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if it cannot be connected to; whatever the broker answers when asked once more.
    pub async fn connect(&self) -> Result<BackendStream, Error> {
        if let Some(descriptor) = self.delivered().filter(|descriptor| !has_ended(descriptor)) {
            return self.adopt(descriptor);
        }
        let current = self.negotiated();
        let again = self.inner.request.clone().version(&current.version);
        if again.wants_connected() {
            // The delivered socket is in use; the endpoint may be out of this process's reach.
            return self.inner.client.resolve(again).await?.connect_once().await;
        }
        match self.dial(&current.endpoint).await {
            Ok(connected) => Ok(connected),
            Err(error) if nobody_listens(&error) => {
                let Negotiated { generation, endpoint, .. } = current;
                tracing::debug!(%endpoint, generation, %error, "the endpoint is dead; asking again");
                self.inner.client.resolve(again.found_dead(generation)).await?.connect_once().await
            }
            Err(source) => Err(Error::Endpoint { endpoint: current.endpoint, source }),
        }
    }

    async fn connect_once(&self) -> Result<BackendStream, Error> {
        if let Some(descriptor) = self.delivered() {
            return self.adopt(descriptor);
        }
        let endpoint = self.endpoint();
        self.dial(&endpoint).await.map_err(|source| Error::Endpoint { endpoint, source })
    }

    /// Takes the socket that came with the answer, if it did and is still there.
    fn delivered(&self) -> Option<OwnedFd> {
        self.inner.descriptor.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn adopt(&self, descriptor: OwnedFd) -> Result<BackendStream, Error> {
        let endpoint = self.endpoint();
        match Socket::adopt(descriptor, &endpoint) {
            Ok(socket) => Ok(BackendStream::new(socket, self.share())),
            Err(source) => Err(Error::Endpoint { endpoint, source }),
        }
    }

    async fn dial(&self, endpoint: &Endpoint) -> io::Result<BackendStream> {
        let socket = Socket::dial(endpoint, self.inner.client.connect_timeout()).await?;
        Ok(BackendStream::new(socket, self.share()))
    }

    fn share(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// Whether the other end has closed a socket, or died, and said nothing before.
fn has_ended(socket: &OwnedFd) -> bool {
    match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(count) => count == 0,
        Err(errno) => !matches!(errno, Errno::EAGAIN | Errno::EINTR),
    }
}
