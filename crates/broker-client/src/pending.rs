//! A request that has been made and not been answered.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use broker_proto::{Progress, RequestId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ProtocolError};
use crate::session::{self, Answer, Ask, Command, Handle, Hold, Waiter};

/// How much longer than the deadline that it was told the broker may take: its refusal says more than a local timeout.
const GRACE: Duration = Duration::from_secs(1);

/// An answer that is awaited: `.await` it, after or without having looked at its [`progress`](Self::progress).
///
/// The request is under way already, unless 64 others wait to be sent; then it goes out as soon as this is awaited.
/// Dropping it gives the request up, and the broker is told.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use broker_client::Request;
///
/// let mut pending = client.resolve(Request::new("redis").deadline(Duration::from_secs(20)));
/// while let Some(progress) = pending.progress().await {
///     eprintln!("{} is {}", progress.version, progress.state);
/// }
/// let held = pending.await?;
/// # drop(held);
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
#[must_use = "a request that nobody waits for is given up"]
pub struct Pending<T> {
    unsent: Option<Command>,
    // Dropped before the hold: a command whose waiter is gone is not sent, so a release need not come after it.
    waiter: Waiter,
    hold: Hold,
    limit: Option<Limit>,
    finish: Finish<T>,
    handle: Arc<Handle>,
}

type Finish<T> = Box<dyn FnOnce(Answer, Hold) -> Option<Result<T, Error>> + Send>;

#[derive(Debug)]
struct Limit {
    at: Instant,
    after: Duration,
    what: String,
}

/// What becomes of a request.
pub(crate) struct Terms<T> {
    pub(crate) deadline: Option<Duration>,
    /// What a timeout names.
    pub(crate) what: String,
    /// Makes the answer into what the caller wants; `None` if it is of another kind.
    pub(crate) finish: Finish<T>,
}

impl<T> Pending<T> {
    pub(crate) fn new(handle: Arc<Handle>, request_id: RequestId, ask: Ask, terms: Terms<T>) -> Self {
        let (reply, waiter) = session::reply();
        let command = Command { request_id, ask, reply };
        let unsent = match handle.commands().try_send(command) {
            Ok(()) => None,
            Err(TrySendError::Full(command) | TrySendError::Closed(command)) => Some(command),
        };
        let limit = terms.deadline.and_then(|after| {
            let at = Instant::now().checked_add(after)?.checked_add(GRACE)?;
            Some(Limit { at, after, what: terms.what })
        });
        Self { unsent, waiter, hold: handle.hold(request_id), limit, finish: terms.finish, handle }
    }

    /// Waits for news of the request; `None` once the answer is in, or will not come. Nothing is lost when the wait is
    /// given up.
    pub async fn progress(&mut self) -> Option<Progress> {
        let at = self.limit.as_ref().map(|limit| limit.at);
        let news = async {
            self.send().await.ok()?;
            self.waiter.progress.recv().await
        };
        match at {
            Some(at) => timeout_at(at, news).await.ok().flatten(),
            None => news.await,
        }
    }

    async fn send(&mut self) -> Result<(), Error> {
        if self.unsent.is_some() {
            let permit = self.handle.commands().reserve().await.map_err(|_| self.handle.end())?;
            if let Some(command) = self.unsent.take() {
                permit.send(command);
            }
        }
        Ok(())
    }

    async fn answer(&mut self) -> Result<Answer, Error> {
        self.send().await?;
        (&mut self.waiter.answer).await.unwrap_or_else(|_| Err(self.handle.end()))
    }

    async fn outcome(mut self) -> Result<T, Error> {
        let answer = match self.limit.take() {
            Some(Limit { at, after, what }) => match timeout_at(at, self.answer()).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Error::Timeout { what, after }),
            },
            None => self.answer().await?,
        };
        let request_id = self.hold.request_id();
        let Self { hold, finish, .. } = self;
        finish(answer, hold).unwrap_or(Err(Error::Protocol(ProtocolError::WrongAnswer { request_id })))
    }
}

impl<T: Send + 'static> IntoFuture for Pending<T> {
    type Output = Result<T, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.outcome())
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("request_id", &self.hold.request_id()).finish_non_exhaustive()
    }
}
