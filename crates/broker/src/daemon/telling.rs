//! Core's words in the wire's.

use broker_proto::{Endpoint, Event, Negotiated};
use serde_json::{Value, json};

use crate::core::backend::{News, Progress};
use crate::core::{millis, millis_up};
use crate::process::exit::Exit;

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

/// A ready backend, as `resolve --json` prints it.
pub(super) fn backend(negotiated: &Negotiated) -> Value {
    json!({
        "instance": negotiated.instance,
        "service": negotiated.service,
        "version": negotiated.version,
        "endpoint": negotiated.endpoint.to_string(),
        "pid": negotiated.pid,
        "generation": negotiated.generation,
        "state": "ready",
    })
}
