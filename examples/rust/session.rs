//! A session with events: holds a backend, and tells what happens to it, to the broker and to the session, a line each.
//!
//! `cargo run --example session -- redis@^7`; then kill the daemon, say `brokerctl restart redis`, or end the broker and
//! start another, and look. It ends at the end of its stdin, or at Ctrl-C: the hold ends with it.
#![expect(clippy::print_stdout, reason = "an example that prints what it hears")]

use broker_client::{Client, Request, SessionEvent};
use broker_proto::Event;
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "redis".to_owned());
    let (service, version) = wanted.split_once('@').unwrap_or((&wanted, "*"));

    let client = Client::connect().await?;
    let mut events = client.events();
    let held = client.resolve(Request::new(service).version(version)).await?;
    println!("Held: {} {}, generation {} at {}", held.service(), held.version(), held.generation(), held.endpoint());

    let mut end_of_stdin = end_of_stdin();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => println!("{}", in_words(&event)),
                None => return Err(client.closed().await.into()),
            },
            _ = &mut end_of_stdin => return Ok(()),
        }
    }
}

fn in_words(event: &SessionEvent) -> String {
    match event {
        SessionEvent::Backend { event, .. } => match event {
            Event::Exited { generation, exit, lived_ms } => {
                format!("Exited: generation {generation} after {lived_ms} ms, {exit:?}")
            }
            Event::Restarting { delay_ms } => format!("Restarting: in {delay_ms} ms"),
            Event::Ready { generation, endpoint } => format!("Ready: generation {generation} at {endpoint}"),
            Event::Failed { refusal } => format!("Failed: {}", refusal.reason),
            Event::Draining => "Draining: it ends when nobody holds it any more".to_owned(),
            Event::Stopped => "Stopped: by an operator, and is not held any more".to_owned(),
            // The library keeps that to itself: `Held::is_resumable` tells.
            Event::Resumable => "Resumable".to_owned(),
        },
        SessionEvent::GoAway(_) => "GoAway: the broker is about to leave".to_owned(),
        SessionEvent::Disconnected { reason } => format!("Disconnected: {reason}"),
        SessionEvent::Reconnected => "Reconnected: and holding again".to_owned(),
        SessionEvent::Closed => "Closed".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Is answered when nothing more can be read from stdin. A thread waits for that: stdin may be a file or a terminal, whose
/// reads cannot be awaited.
fn end_of_stdin() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    end
}
