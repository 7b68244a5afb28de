//! A descriptor that the runtime watches.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// Waits for a descriptor on behalf of somebody who reads or writes it otherwise.
#[derive(Debug)]
pub(super) struct Watched(AsyncFd<Arc<OwnedFd>>);

impl Watched {
    /// Watches for what the interest says.
    #[expect(unsafe_code, reason = "the runtime cannot see that an `Arc<OwnedFd>` keeps its descriptor")]
    pub(super) fn new(descriptor: Arc<OwnedFd>, interest: Interest) -> io::Result<Self> {
        // SAFETY: the `Arc` keeps the descriptor open as long as this value holds it, an `OwnedFd` never changes its
        // number, and nobody can take the `Arc` out.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
        watched.map(Self).map_err(io::Error::from)
    }

    /// Watches a duplicate of a descriptor that something else owns.
    pub(super) fn duplicate_of(descriptor: &impl AsFd) -> io::Result<Self> {
        Self::new(Arc::new(descriptor.as_fd().try_clone_to_owned()?), Interest::READABLE)
    }

    pub(super) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.0.readable().await
    }

    pub(super) fn poll_readable<'a>(
        &'a self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<AsyncFdReadyGuard<'a, Arc<OwnedFd>>>> {
        self.0.poll_read_ready(context)
    }

    pub(super) async fn writable(&self) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.0.writable().await
    }
}
