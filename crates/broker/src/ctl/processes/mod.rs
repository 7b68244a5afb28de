//! `brokerctl run`, `wait`, `processes`, `cancel` and `prune`: commands that run to their end.

mod end;
mod follow;
mod interrupt;
mod output;
mod request;
mod table;

use std::process::ExitCode;

use broker_client::{Process, ProcessState};
use broker_proto::{AdminRequest, Code, ProcessId};
use jiff::Timestamp;
use nix::unistd::{Uid, User};
use serde::Deserialize;
use serde_json::Value;

use super::args::{Cancel, Global, Listed, Prune, Run, Waited};
use super::documents;
use super::output::{Console, FAILED, Failure, TRY_LATER, UNAVAILABLE, harmless, humane};
use super::progress;
use super::session::{Session, milliseconds};
use follow::Follower;
use interrupt::Interrupt;
pub(super) use request::request;

/// The exit code of one whose reader is gone, as of a command that SIGPIPE ended: how the process ends is not known yet.
const NOBODY_READS: u8 = 141;

/// What is answered to an order about one process.
#[derive(Debug, Deserialize)]
struct One {
    process: Process,
    /// Whether it was registered just now.
    #[serde(default)]
    created: bool,
}

pub(super) async fn run(console: &Console, global: &Global, run: &Run) -> Result<ExitCode, Failure> {
    let request = request(run)?;
    let id = request.process_id().to_owned();
    // `--timeout` is the process's here.
    let global = Global { timeout: None, ..global.clone() };
    let session = Session::last(console, &global, &run.lasting.keeping, &run.lasting.starting).await?;
    let order = AdminRequest::Run { spec: request.into_spec() };
    let document =
        session.admin(&id, order).await.map_err(|failure| of_registration(console, failure, run.id.as_ref()))?;
    let One { process, created } = documents::read(&document)?;
    if run.detach {
        if console.json {
            console.document(&document)?;
        } else {
            console.line(&process.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !created && !console.quiet {
        let state = process.state;
        console.note(format_args!("process {} is there already, {state}: this is its output", process.id));
    } else if console.verbose {
        console.note(format_args!("process {}", process.id));
    }
    attend(&session, process, document, !console.json).await
}

pub(super) async fn wait(console: &Console, global: &Global, waited: &Waited) -> Result<ExitCode, Failure> {
    let session = Session::last(console, global, &waited.lasting.keeping, &waited.lasting.starting).await?;
    let id = waited.id.to_string();
    let (process, document) = one(&session, &id).await?;
    let shows_output = !console.json && !console.quiet;
    let attended = attend(&session, process, document, shows_output);
    let Some(timeout) = global.timeout else { return attended.await };
    tokio::time::timeout(timeout, attended).await.unwrap_or_else(|_| {
        let text = format!("process {id} has not ended within {}", humane(timeout));
        Err(Failure::told(TRY_LATER, text).advise(goes_on(&id)))
    })
}

pub(super) async fn list(console: &Console, global: &Global, listed: &Listed) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let id = listed.id.as_ref().map(ToString::to_string);
    let document = session.admin("processes", AdminRequest::Processes { id }).await;
    let document = document.map_err(|failure| of_processes(console, failure))?;
    if console.json {
        return console.document(&document);
    }
    let processes = table::read(&document)?;
    if processes.is_empty() {
        return console.line("no processes: `brokerctl run -- COMMAND` runs one");
    }
    let table = table::of(&processes, Timestamp::now(), console.stdout_is_terminal);
    console.print(table.render(console.stdout_is_terminal))?;
    let omitted = table::omitted(&document);
    if omitted > 0 {
        console.note(format_args!("{omitted} that ended earlier are not shown: name one, or prune them"));
    }
    Ok(())
}

pub(super) async fn cancel(console: &Console, global: &Global, cancel: &Cancel) -> Result<(), Failure> {
    let session = Session::last(console, global, &cancel.lasting.keeping, &cancel.lasting.starting).await?;
    let id = cancel.id.to_string();
    let reason = cancel.reason.clone().unwrap_or_else(default_reason);
    let order = AdminRequest::Cancel { id: id.clone(), reason: reason.clone() };
    let document = session.admin(&id, order).await.map_err(|failure| of_processes(console, failure))?;
    let One { process, .. } = documents::read(&document)?;
    if cancel.no_wait && !process.state.has_ended() {
        return match console.json {
            true => console.document(&document),
            false => console.line(format!("process {id} is asked to end: {}", harmless(&reason))),
        };
    }
    let mut follower = Follower::new(&session, process, document, false);
    let title = format!("process {id}");
    let ended = progress::watch(console, &title, follower.until_end());
    match global.timeout {
        Some(timeout) => tokio::time::timeout(timeout, ended).await.unwrap_or_else(|_| {
            let text = format!("process {id} has not ended within {}", humane(timeout));
            Err(Failure::told(TRY_LATER, text).advise("it was asked to, and is killed if it goes on"))
        })?,
        None => ended.await?,
    }
    let Follower { process, document, .. } = follower;
    if console.json {
        return console.document(&document);
    }
    let told = process.reason.as_deref().unwrap_or(&reason);
    console.line(match process.state {
        ProcessState::Cancelled => format!("cancelled process {id}: {}", harmless(told)),
        state => format!("nothing to cancel: process {id} has {state} by itself"),
    })
}

pub(super) async fn prune(console: &Console, global: &Global, prune: &Prune) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let id = prune.id.as_ref().map(ToString::to_string);
    let order = AdminRequest::Prune { id, older_than_ms: prune.older_than.map(milliseconds) };
    let document = session.admin("prune", order).await.map_err(|failure| of_processes(console, failure))?;
    if console.json {
        return console.document(&document);
    }
    let pruned: Vec<&str> = document["pruned"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if pruned.is_empty() {
        return console.line("nothing to prune: `brokerctl processes` shows what has ended, and when");
    }
    pruned.iter().try_for_each(|id| console.line(format!("pruned {}", harmless(id))))
}

/// One process, as it is.
async fn one(session: &Session<'_>, id: &str) -> Result<(Process, Value), Failure> {
    let request = AdminRequest::Processes { id: Some(id.to_owned()) };
    let mut listed = session.admin(id, request).await.map_err(|failure| of_processes(session.console, failure))?;
    let document = serde_json::json!({ "process": listed["processes"][0].take() });
    let One { process, .. } = documents::read(&document)?;
    Ok((process, document))
}

/// Follows a process to its end, and ends as it did. A signal ends this command alone.
async fn attend(
    session: &Session<'_>,
    process: Process,
    document: Value,
    shows_output: bool,
) -> Result<ExitCode, Failure> {
    let console = session.console;
    let id = process.id.clone();
    let interrupt = Interrupt::begin().map_err(|e| Failure::because(FAILED, "cannot receive signals", e))?;
    let mut follower = Follower::new(session, process, document, shows_output);
    let title = format!("process {id}");
    let followed = async {
        match shows_output {
            true => follower.until_end().await,
            false => progress::watch(console, &title, follower.until_end()).await,
        }
    };
    let followed = tokio::select! {
        followed = followed => followed,
        signal = interrupt.comes() => {
            console.note(goes_on(&id));
            return Ok(ExitCode::from(interrupt::exit_code(signal)));
        }
    };
    match followed {
        Ok(()) => {}
        Err(Failure::StdoutClosed) => {
            console.note(goes_on(&id));
            return Ok(ExitCode::from(NOBODY_READS));
        }
        Err(Failure::Told { code, error, advice: None }) => {
            return Err(Failure::Told { code, error, advice: Some(goes_on(&id)) });
        }
        Err(failure) => return Err(failure),
    }
    let Follower { process, document, .. } = follower;
    if console.json {
        console.document(&document)?;
    } else if let Some(sentence) = end::sentence(&process) {
        console.note(sentence);
    }
    Ok(ExitCode::from(end::status(&process)))
}

/// What a person should know who does not wait any more.
fn goes_on(id: &str) -> String {
    format!(
        "process {id} goes on: `brokerctl wait {id}` waits for its end,\n\
         `brokerctl cancel {id} --reason TEXT` ends it"
    )
}

/// A refusal of what was asked about processes, with what to do about it.
fn of_processes(console: &Console, failure: Failure) -> Failure {
    match failure {
        Failure::Refused(refusal) if refusal.code == Code::ServiceUnknown && !console.json => {
            let text = format!("{} ({})", harmless(&refusal.reason), refusal.code);
            Failure::told(UNAVAILABLE, text).advise("`brokerctl processes` lists those that there are")
        }
        failure => failure,
    }
}

/// A refusal to register: it may show a difference, line by line, to the process that has the id.
fn of_registration(console: &Console, failure: Failure, named: Option<&ProcessId>) -> Failure {
    match failure {
        Failure::Refused(refusal) if refusal.code == Code::Malformed && !console.json => {
            let mut lines = refusal.reason.lines().map(|line| harmless(line.trim()));
            let text = format!("{} ({})", lines.next().unwrap_or_default(), refusal.code);
            let is_taken = refusal.reason.contains("with other content");
            let advice = named.filter(|_| is_taken).map(|id| {
                format!(
                    "`brokerctl processes {id}` shows the one that is there, if there is one: wait for it,\n\
                     prune it once it has ended, or take another --id"
                )
            });
            let advice: Vec<String> = lines.chain(advice).collect();
            match advice.is_empty() {
                true => Failure::told(UNAVAILABLE, text),
                false => Failure::told(UNAVAILABLE, text).advise(advice.join("\n")),
            }
        }
        failure => failure,
    }
}

fn default_reason() -> String {
    let uid = Uid::current();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| format!("user {uid}"), |user| user.name);
    format!("cancelled by {name} with brokerctl")
}
