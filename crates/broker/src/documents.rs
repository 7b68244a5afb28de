//! JSON documents that the broker sends and `brokerctl` prints, in one shape.

use broker_proto::Negotiated;
use serde_json::{Value, json};

/// A ready backend: `{"instance", "service", "version", "endpoint", "pid", "generation", "state"}`.
pub(crate) fn ready_backend(negotiated: &Negotiated) -> Value {
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
