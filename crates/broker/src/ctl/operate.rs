//! `brokerctl start`, `stop`, `restart`, `drain`, `release` and `shutdown`: an operator's orders.

use std::time::Duration;

use broker_proto::{AdminRequest, Refusal, Selection, Target};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::args::{Global, Selected, Shutdown, Started};
use super::documents::{self, Denied, Drained, Ready, Released, Restarted, Status, Stopped};
use super::output::{Console, FAILED, Failure, TRY_LATER, humane};
use super::session::{Session, describe, in_words, one_instance, selections};
use super::status::count;
use super::{progress, refusal};

/// Starts each backend; one that is refused does not keep the others from starting.
pub(super) async fn start(console: &Console, global: &Global, started: &Started) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let mut refused = Vec::new();
    for address in &started.backends {
        let instance = one_instance(address, &started.instance)?;
        let target = Target {
            instance: instance.clone().unwrap_or_default().to_string(),
            service: address.service.to_string(),
            version_requirement: address
                .requirement
                .as_ref()
                .map_or("*", |requirement| requirement.as_str())
                .to_owned(),
        };
        let order = AdminRequest::Start { target, deadline_ms: session.deadline_ms() };
        match session.admin(&describe(address, instance.as_ref()), order).await {
            Ok(document) if console.json => console.document(&document)?,
            Ok(document) => console.line(serving("started", &documents::read(&document)?))?,
            Err(Failure::Refused(refusal)) => refused.push(*refusal),
            Err(failure) => return Err(failure),
        }
    }
    refuse_last(console, refused)
}

pub(super) async fn stop(console: &Console, global: &Global, selected: &Selected) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let (document, asked) = order(&session, selected, "stopped", |selection| AdminRequest::Stop {
        selection,
        deadline_ms: session.deadline_ms(),
    })
    .await?;
    if console.json {
        return console.document(&document);
    }
    let stopped: Stopped = documents::read(&document)?;
    if stopped.stopped.is_empty() {
        return console.line(format!("nothing to stop: nothing runs of {asked}"));
    }
    stopped.stopped.iter().try_for_each(|key| console.line(format!("stopped {}", key.name())))
}

pub(super) async fn restart(console: &Console, global: &Global, selected: &Selected) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let (document, asked) = order(&session, selected, "restarted", |selection| AdminRequest::Restart {
        selection,
        deadline_ms: session.deadline_ms(),
    })
    .await?;
    let restarted: Restarted = documents::read(&document)?;
    if console.json {
        console.document(&document)?;
    }
    if restarted.restarted.is_empty() && restarted.refused.is_empty() {
        return Err(Failure::told(FAILED, format!("nothing to restart: nothing runs of {asked}"))
            .advise("`brokerctl start` starts what does not run"));
    }
    if console.json {
        return match restarted.refused.first() {
            Some(denied) => Err(Failure::Silent(refusal::exit_code(refusal::from_json(&denied.refused).code))),
            None => Ok(()),
        };
    }
    restarted.restarted.iter().try_for_each(|ready| console.line(serving("restarted", ready)))?;
    refuse_last(console, restarted.refused.iter().map(named).collect())
}

pub(super) async fn drain(console: &Console, global: &Global, selected: &Selected) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let (document, asked) =
        order(&session, selected, "draining", |selection| AdminRequest::Drain { selection }).await?;
    if console.json {
        console.document(&document)?;
    }
    let drained: Drained = documents::read(&document)?;
    if drained.draining.is_empty() {
        return Err(Failure::told(FAILED, format!("nothing to drain: no backend is {asked}")));
    }
    if console.json {
        return Ok(());
    }
    drained.draining.iter().try_for_each(|held| {
        let rest = match held.holds {
            0 => "nobody holds it".to_owned(),
            holds => format!("stops when its last client is gone, {} now", count(holds, "hold", "holds")),
        };
        console.line(format!("draining {}: {rest}", held.key.name()))
    })
}

/// Releases backends from quarantine.
pub(super) async fn release(console: &Console, global: &Global, selected: &Selected) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let (document, asked) =
        order(&session, selected, "released", |selection| AdminRequest::Release { selection }).await?;
    if console.json {
        return console.document(&document);
    }
    let released: Released = documents::read(&document)?;
    if released.released.is_empty() {
        return console.line(format!("nothing to release: nothing of {asked} is in quarantine"));
    }
    released.released.iter().try_for_each(|key| {
        console.line(format!("released {}: the next client starts it, what it was held for is left alone", key.name()))
    })
}

pub(super) async fn shutdown(console: &Console, global: &Global, shutdown: &Shutdown) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let status: Status = documents::read(&session.admin("status", AdminRequest::Status).await?)?;
    if shutdown.handover {
        return hand_over(&session, global, status.broker.pid).await;
    }
    let document = session.admin("shutdown", AdminRequest::Shutdown).await?;
    let stopping = document["stopping"].as_u64().unwrap_or(0);
    let backends = count(stopping, "backend", "backends");
    let pid = status.broker.pid;
    let title = format!("stopping {backends} and the broker");
    gone(&session, global, pid, &title, format!("it goes on stopping {backends}; its pid is {pid}")).await?;
    if console.json {
        return console.document(&document);
    }
    console.line(format!("stopped {backends} and the broker (pid {pid})"))
}

/// Ends the broker and keeps its backends.
async fn hand_over(session: &Session<'_>, global: &Global, pid: u32) -> Result<(), Failure> {
    let document = session.admin("shutdown", AdminRequest::HandOver).await?;
    let backends = count(document["keeping"].as_u64().unwrap_or(0), "backend", "backends");
    gone(session, global, pid, "ending the broker", format!("its pid is {pid}")).await?;
    if session.console.json {
        return session.console.document(&document);
    }
    session.console.line(format!("ended the broker (pid {pid}); {backends} kept for the next one"))
}

/// Waits until the broker is gone, as long as `--timeout` allows.
async fn gone(session: &Session<'_>, global: &Global, pid: u32, title: &str, advice: String) -> Result<(), Failure> {
    let gone = async {
        session.client.closed().await;
        process_gone(pid).await;
    };
    let watched = progress::watch(session.console, title, gone);
    match global.timeout {
        Some(timeout) => tokio::time::timeout(timeout, watched).await.map_err(|_| {
            Failure::told(TRY_LATER, format!("the broker still runs after {}", humane(timeout))).advise(advice)
        }),
        None => {
            watched.await;
            Ok(())
        }
    }
}

/// Waits until no process has the number: the session ends a moment before the broker does, and whoever waited for
/// the end may start another broker at once.
async fn process_gone(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    for _ in 0..2_000 {
        match kill(Pid::from_raw(pid), None) {
            Ok(()) | Err(Errno::EPERM) if !is_zombie(pid) => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => return,
        }
    }
}

/// Whether a process has ended and nobody has reaped it.
pub(super) fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Gives one order for each name and joins the documents' lists. Also says what was asked, in words.
async fn order(
    session: &Session<'_>,
    selected: &Selected,
    word: &str,
    request: impl Fn(Selection) -> AdminRequest,
) -> Result<(Value, String), Failure> {
    let selections = selections(&selected.backends, &selected.instance)?;
    let mut joined = json!({ word: [] });
    for selection in &selections {
        let document = session.admin(&in_words(selection), request(selection.clone())).await?;
        join(&mut joined, document);
    }
    let words: Vec<String> = selections.iter().map(in_words).collect();
    Ok((joined, words.join(", ")))
}

/// Appends a document's lists to the lists of the same name.
fn join(joined: &mut Value, document: Value) {
    let Value::Object(fields) = document else { return };
    for (name, value) in fields {
        match (&mut joined[&name], value) {
            (Value::Array(list), Value::Array(more)) => list.extend(more),
            (field, value) => *field = value,
        }
    }
}

/// A refusal among several, with the name of the backend that it is about.
fn named(denied: &Denied) -> Refusal {
    let mut refusal = refusal::from_json(&denied.refused);
    let name = denied.key.name();
    if !refusal.reason.contains(&name) {
        refusal.reason = format!("{name}: {}", refusal.reason);
    }
    refusal
}

fn serving(word: &str, ready: &Ready) -> String {
    let pid = ready.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    format!("{word} {} at {} (generation {}{pid})", ready.key.name(), ready.endpoint, ready.generation)
}

/// Prints every refusal but the last, which becomes the command's own.
fn refuse_last(console: &Console, mut refused: Vec<Refusal>) -> Result<(), Failure> {
    let Some(last) = refused.pop() else { return Ok(()) };
    for refusal in refused {
        console.report(Failure::Refused(Box::new(refusal)));
    }
    Err(Failure::Refused(Box::new(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_to_several_orders_become_one_document() {
        let mut joined = json!({"restarted": []});
        join(&mut joined, json!({"restarted": [1], "refused": []}));
        join(&mut joined, json!({"restarted": [2], "refused": [3]}));
        assert_eq!(joined, json!({"restarted": [1, 2], "refused": [3]}));
    }

    #[test]
    fn what_serves_is_named_with_its_endpoint() {
        let document = json!({"instance": "default", "service": "redis", "version": "7.0.15",
            "endpoint": "unix:/run/x.sock", "pid": 7, "generation": 2, "state": "ready"});
        let ready = documents::read(&document).expect("understood");
        assert_eq!(serving("started", &ready), "started redis@7.0.15 at unix:/run/x.sock (generation 2, pid 7)");
    }
}
