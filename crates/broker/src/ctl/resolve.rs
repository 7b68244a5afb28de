//! `brokerctl resolve`: a backend's endpoint.

use super::args::{Global, Wanted};
use super::output::{Console, Failure};
use super::session::Session;
use crate::documents::ready_backend;

pub(super) async fn run(console: &Console, global: &Global, wanted: &Wanted) -> Result<(), Failure> {
    let session = Session::keep(console, global, wanted).await?;
    let held = session.resolve(wanted).await?;
    let negotiated = held.negotiated();
    if console.json { console.document(&ready_backend(&negotiated)) } else { console.line(&negotiated.endpoint) }
}
