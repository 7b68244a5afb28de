//! The same client for programs without an asynchronous runtime: each call waits for its answer.
//!
//! A [`Client`] keeps one thread, on which the session lives; everything else is a wait for what that does. It is not
//! for asynchronous code: within a runtime, whose thread it would block, each call panics.
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let socket = serve_a_broker(folder.path());
//! use std::io::{Read, Write};
//! use broker_client::{ProcessRequest, ProcessState, Request, blocking};
//!
//! # let _ = || -> Result<(), broker_client::Error> {
//! let client = blocking::Client::connect()?;
//! # Ok(()) };
//! # let client = broker_client::Client::builder().socket(socket).connect_blocking()?;
//! let mut redis = client.connect_backend("redis", "^7")?;
//! redis.write_all(b"PING\r\n")?;
//! let mut answer = [0; 7];
//! redis.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"+PONG\r\n");
//!
//! let held = client.resolve_with(Request::new("redis"), |progress| eprintln!("{}", progress.state))?;
//! println!("{} serves", held.endpoint());
//!
//! let process = client.run(ProcessRequest::command(["tar", "-czf", "/tmp/home.tgz", "/home"]))?;
//! assert_eq!(client.wait_process(process.id)?.state, ProcessState::Succeeded);
//! # Ok(())
//! # }
//! ```

mod processes;
mod runtime;
pub(crate) mod stream;

use std::future::IntoFuture;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use broker_proto::{AdminRequest, Progress};

use crate::builder::Builder;
use crate::error::Error;
use crate::events::SessionEvent;
use crate::request::Request;
pub use processes::ProcessEvents;
use runtime::Runtime;
pub use stream::BackendStream;

/// A session with the broker whose calls wait. It heals itself as [`crate::Client`] does, which it is underneath.
#[derive(Debug, Clone)]
pub struct Client {
    // Dropped before the runtime that it lives on.
    inner: crate::Client,
    runtime: Arc<Runtime>,
}

impl Builder {
    /// Connects, as [`connect`](Self::connect) does, for a program without a runtime.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and [`Error::Io`] if there can be no further thread.
    pub fn connect_blocking(self) -> Result<Client, Error> {
        let begun = Runtime::begin().map_err(|source| Error::Io { action: "begin a thread for the session", source });
        let runtime = Arc::new(begun?);
        let inner = runtime.wait(self.connect())?;
        Ok(Client { inner, runtime })
    }
}

impl Client {
    /// Connects to the broker with the settings of [`crate::Client::builder`], which has
    /// [`connect_blocking`](Builder::connect_blocking) for other ones.
    ///
    /// # Errors
    /// As [`Builder::connect_blocking`].
    pub fn connect() -> Result<Self, Error> {
        crate::Client::builder().connect_blocking()
    }

    /// Asks for a backend, which is started if it does not run, waits for it and holds it.
    ///
    /// # Errors
    /// The broker's refusal, or why it could not be asked.
    pub fn resolve(&self, request: Request) -> Result<Held, Error> {
        self.resolve_with(request, |_| {})
    }

    /// The same, and tells what goes on meanwhile.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_with(&self, request: Request, mut progress: impl FnMut(Progress)) -> Result<Held, Error> {
        let mut pending = self.inner.resolve(request);
        while let Some(news) = self.runtime.wait(pending.progress()) {
            progress(news);
        }
        let inner = self.runtime.wait(pending.into_future())?;
        Ok(Held { inner, runtime: Arc::clone(&self.runtime) })
    }

    /// Gives an operator's order or asks for a report, and waits for the JSON document that answers it.
    ///
    /// # Errors
    /// The broker's refusal, or why it could not be asked.
    pub fn admin(&self, request: AdminRequest) -> Result<String, Error> {
        self.runtime.wait(self.inner.admin(request).into_future())
    }

    /// Connects to a backend of the default instance, which is started if it does not run.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`Held::connect`].
    pub fn connect_backend(&self, service: &str, requirement: &str) -> Result<BackendStream, Error> {
        self.resolve(Request::new(service).version(requirement))?.connect()
    }

    /// The events of the session from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events { inner: self.inner.events(), runtime: Arc::clone(&self.runtime) }
    }

    /// Whether there is a connection just now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    /// Ends the session for every clone, hold and request, at once.
    pub fn shutdown(&self) {
        self.runtime.wait(self.inner.shutdown());
    }

    /// The socket at which the broker was found.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.inner.socket()
    }
}

/// A backend, ready and held. It tells what [`crate::Held`] tells.
#[derive(Debug)]
pub struct Held {
    inner: crate::Held,
    runtime: Arc<Runtime>,
}

impl Held {
    /// Connects to the backend, as [`crate::Held::connect`] does.
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self) -> Result<BackendStream, Error> {
        let connected = self.runtime.wait(self.inner.connect())?;
        let endpoint = connected.held().endpoint();
        // The socket leaves the runtime's watch there, where it entered it.
        let stream = self.runtime.wait(async { connected.into_std() });
        let adopt = |(socket, held)| BackendStream::new(socket, held, Arc::clone(&self.runtime));
        stream.map(adopt).map_err(|source: io::Error| Error::Endpoint { endpoint, source })
    }
}

impl Deref for Held {
    type Target = crate::Held;

    fn deref(&self) -> &crate::Held {
        &self.inner
    }
}

/// The events of a session, one after the other; the iterator waits for each, and ends with the session.
#[derive(Debug)]
pub struct Events {
    inner: crate::Events,
    runtime: Arc<Runtime>,
}

impl Iterator for Events {
    type Item = SessionEvent;

    fn next(&mut self) -> Option<SessionEvent> {
        self.runtime.wait(self.inner.next())
    }
}
