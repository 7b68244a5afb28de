//! `brokerctl resolve`: a backend's endpoint.

use broker_proto::Negotiated;
use serde_json::{Value, json};

use super::args::{Global, Wanted};
use super::output::{Console, Failure};
use super::session::Session;

pub(super) async fn run(console: &Console, global: &Global, wanted: &Wanted) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let held = session.resolve(wanted).await?;
    let negotiated = held.negotiated();
    if console.json { console.document(&document(negotiated)) } else { console.line(&negotiated.endpoint) }
}

/// `{"instance", "service", "version", "endpoint", "pid", "generation", "state"}`.
fn document(negotiated: &Negotiated) -> Value {
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
