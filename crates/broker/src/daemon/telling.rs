//! Core's words in the wire's.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::backend::{News, Progress, RETRY_HINT};
use crate::core::{millis, millis_up};
use crate::process::exit::Exit;
use broker_proto::{Code, Endpoint, Event, Refusal};

/// A fault of the broker: logged with a number, by which the one who is refused can ask.
pub(super) fn fault(what: &str) -> Refusal {
    static FAULTS: AtomicU64 = AtomicU64::new(1);
    let number = FAULTS.fetch_add(1, Ordering::Relaxed);
    tracing::error!(fault = number, "{what}");
    let reason = format!("{what}: a fault of the broker, number {number} in its log");
    Refusal::new(Code::Internal, reason).retry_after_ms(millis_up(RETRY_HINT))
}

pub(super) fn progress(request_id: u64, version: String, progress: Progress) -> broker_proto::Progress {
    broker_proto::Progress {
        request_id,
        version,
        state: progress.state,
        attempt: progress.attempt,
        elapsed_ms: millis(progress.elapsed),
        status: progress.status,
    }
}

/// The event for one who holds; `None` if the generation that it is about has no endpoint any more.
pub(super) fn event(news: News, endpoint: Option<Endpoint>) -> Option<Event> {
    Some(match news {
        News::Exited { generation, exit, lived } => Event::Exited { generation, exit, lived_ms: millis(lived) },
        News::Restarting { delay } => Event::Restarting { delay_ms: millis_up(delay) },
        News::Ready { generation } => Event::Ready { generation, endpoint: endpoint? },
        News::Failed { refusal } => Event::Failed { refusal: *refusal },
        News::Draining => Event::Draining,
        News::Stopped => Event::Stopped,
    })
}

pub(super) fn exit(exit: Exit) -> broker_proto::Exit {
    match exit {
        Exit::Code(code) => broker_proto::Exit::Code(code),
        Exit::Signal { number, .. } => broker_proto::Exit::Signal(number),
        Exit::Unknown => broker_proto::Exit::Unknown,
    }
}
