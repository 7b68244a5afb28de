//! What happens to processes, read from the broker's record by one long poll after the other.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};

use broker_proto::{AdminRequest, Selection};
use futures_core::Stream;
use serde::Deserialize;

use super::{ProcessState, read};
use crate::client::Client;
use crate::error::Error;
use crate::pending::Pending;

/// How long the broker is asked to wait for something to happen before it is asked again.
const PATIENCE_MS: u64 = 30_000;

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ProcessEvent {
    /// The process.
    #[serde(rename = "process")]
    pub id: String,
    /// Its place in the broker's record, which counts up in the life of one broker.
    pub number: u64,
    /// When, as RFC 3339 in UTC.
    pub time: String,
    /// What happened.
    #[serde(rename = "event")]
    pub happening: ProcessHappening,
    /// Which attempt it is about.
    pub attempt: Option<u32>,
    /// The command's process.
    pub pid: Option<u32>,
    /// How the process stands since.
    pub state: Option<ProcessState>,
    /// How the command ended.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[non_exhaustive]
pub enum ProcessHappening {
    /// It was registered.
    #[serde(rename = "process_registered")]
    Registered,
    /// An attempt began.
    #[serde(rename = "process_started")]
    Started,
    /// This broker took over an attempt that another one had started.
    #[serde(rename = "process_adopted")]
    Adopted,
    /// An attempt was lost, with its machine or its reaper.
    #[serde(rename = "process_lost")]
    Lost,
    /// It ended, for good.
    #[serde(rename = "process_ended")]
    Ended,
    /// Something that this library does not know.
    #[serde(other)]
    Other,
}

/// The events of all processes, oldest first: those that the broker still has on record, then each as it happens. A
/// [`Stream`].
///
/// A broker keeps them in memory: after its restart those of the new one follow. It keeps the session open.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use broker_client::{ProcessHappening, ProcessRequest};
///
/// let process = client.run(ProcessRequest::command(["true"]).id("trial")).await?;
/// let mut events = client.process_events();
/// loop {
///     let event = events.next().await?;
///     if event.id == process.id && event.happening == ProcessHappening::Ended {
///         println!("{} is over: {:?}", event.id, event.state);
///         break;
///     }
/// }
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
pub struct ProcessEvents {
    client: Client,
    cursor: Option<String>,
    read: VecDeque<ProcessEvent>,
    asked: Option<<Pending<String> as IntoFuture>::IntoFuture>,
}

#[derive(Deserialize)]
struct Report {
    events: Vec<Entry>,
    next: String,
}

/// What happens to backends is in the same record.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Process(ProcessEvent),
    Other(serde::de::IgnoredAny),
}

impl ProcessEvents {
    pub(super) fn new(client: Client) -> Self {
        Self { client, cursor: None, read: VecDeque::new(), asked: None }
    }

    /// Waits for the next event. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// The broker's refusal, or why it cannot be asked any more. The next call asks again.
    pub async fn next(&mut self) -> Result<ProcessEvent, Error> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<ProcessEvent, Error>> {
        loop {
            if let Some(event) = self.read.pop_front() {
                return Poll::Ready(Ok(event));
            }
            let asked = self.asked.get_or_insert_with(|| {
                let (selection, after) = (Selection::default(), self.cursor.clone());
                let request = AdminRequest::Events { selection, after, wait_ms: Some(PATIENCE_MS) };
                self.client.admin(request).into_future()
            });
            let Poll::Ready(answer) = asked.as_mut().poll(context) else { return Poll::Pending };
            self.asked = None;
            let report: Report = match answer.and_then(|json| read(&json)) {
                Ok(report) => report,
                // The broker is away; what happens meanwhile is told to the next one who asks.
                Err(Error::Timeout { .. }) => continue,
                Err(error) => return Poll::Ready(Err(error)),
            };
            self.cursor = Some(report.next);
            self.read.extend(report.events.into_iter().filter_map(|entry| match entry {
                Entry::Process(event) => Some(event),
                Entry::Other(_) => None,
            }));
        }
    }
}

impl Stream for ProcessEvents {
    type Item = Result<ProcessEvent, Error>;

    /// Has no end of its own: an error that the session is over is repeated.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context).map(Some)
    }
}

impl fmt::Debug for ProcessEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessEvents").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
