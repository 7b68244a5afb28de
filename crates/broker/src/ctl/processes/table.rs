//! Processes as a table.

use std::time::Duration;

use broker_client::{Process, ProcessState};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::super::documents;
use super::super::output::{Failure, harmless, humane};
use super::super::refusal::signal_name;
use super::super::table::{Cell, Table, Tone};

#[derive(Deserialize)]
struct Processes {
    processes: Vec<Process>,
}

/// How many were left out, since a report has an end.
pub(super) fn omitted(document: &Value) -> u64 {
    document["omitted"].as_u64().unwrap_or(0)
}

pub(super) fn read(document: &Value) -> Result<Vec<Process>, Failure> {
    Ok(documents::read::<Processes>(document)?.processes)
}

/// The processes in the order of the report: what they run with what there is to say below it, or in a column of its own
/// for a pipe.
pub(super) fn of(processes: &[Process], now: Timestamp, for_terminal: bool) -> Table {
    let mut table = match for_terminal {
        true => Table::new(["PROCESS", "STATE", "FOR", "ATTEMPT", "PID", "COMMAND"], 5),
        false => Table::new(["PROCESS", "STATE", "FOR", "ATTEMPT", "PID", "COMMAND", "NOTES"], 6),
    };
    for process in processes {
        let facts: [Cell; 5] = [
            process.id.as_str().into(),
            Cell::toned(process.state.as_str(), tone(process.state)),
            lasted(process, now).map(humane).unwrap_or_default().into(),
            format!("{}/{}", process.attempt, process.max_attempts).into(),
            process.pid.map(|pid| pid.to_string()).unwrap_or_default().into(),
        ];
        let [id, state, lasted, attempt, pid] = facts;
        let (work, notes) = (work(process), notes(process));
        match for_terminal {
            true => {
                let lines: Vec<String> = std::iter::once(work).chain(notes).collect();
                table.row([id, state, lasted, attempt, pid, lines.join("\n").into()]);
            }
            false => table.row([id, state, lasted, attempt, pid, work.into(), notes.join("; ").into()]),
        }
    }
    table
}

/// How long the newest attempt has run, or ran; before the first, how long it has been registered.
fn lasted(process: &Process, now: Timestamp) -> Option<Duration> {
    let time = |text: &Option<String>| text.as_deref()?.parse::<Timestamp>().ok();
    let began = time(&process.started_at).or_else(|| time(&process.registered_at))?;
    let until = time(&process.ended_at).unwrap_or(now);
    Some(Duration::try_from(until.duration_since(began)).unwrap_or_default())
}

fn tone(state: ProcessState) -> Tone {
    match state {
        ProcessState::Succeeded => Tone::Good,
        ProcessState::Failed => Tone::Bad,
        ProcessState::Pending | ProcessState::Cancelled => Tone::Care,
        _ => Tone::Plain,
    }
}

/// `tar -czf '/my home.tgz' /home`, `backup@1.0.0/tenant-a`.
fn work(process: &Process) -> String {
    match (&process.service, &process.command) {
        (Some(service), _) => {
            let instance = process.instance.as_deref().filter(|name| *name != broker_proto::DEFAULT_INSTANCE);
            harmless(&format!("{service}{}", instance.map(|name| format!("/{name}")).unwrap_or_default()))
        }
        (None, Some(words)) => harmless(&words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")),
        (None, None) => String::new(),
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// What a person should know beside the columns.
fn notes(process: &Process) -> Vec<String> {
    let mut notes = Vec::new();
    if process.state.has_ended() {
        if process.ended_by.as_deref() == Some("timeout") {
            notes.push("took longer than its limit".to_owned());
        }
        match (process.exit_code, process.signal) {
            (Some(0), _) | (None, None) => {}
            (Some(code), _) => notes.push(format!("exit code {code}")),
            (None, Some(signal)) => notes.push(signal_name(signal)),
        }
    }
    notes.extend(process.reason.as_deref().map(harmless));
    if process.adopted {
        notes.push("adopted".to_owned());
    }
    if let Some(lease) = process.lease.filter(|lease| !lease.mine && !process.state.has_ended()) {
        notes.push(format!("owned by the broker with pid {}", lease.owner));
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn processes_are_listed_with_how_they_ended() {
        let process = |id: &str, state: &str, facts: Value| {
            let mut process = json!({"id": id, "state": state, "command": ["tar", "-C", "/my home", "it's"],
                "attempt": 1, "max_attempts": 3, "registered_at": "2026-11-22T03:00:00.000Z",
                "started_at": "2026-11-22T03:00:01.000Z"});
            for (name, value) in facts.as_object().expect("an object") {
                process[name] = value.clone();
            }
            process
        };
        let lease = json!({"owner": 77, "mine": false, "fencing_token": 2, "expires_in_ms": 100});
        let ended = "2026-11-22T03:00:13.000Z";
        let document = json!({"processes": [
            process("nightly", "running", json!({"pid": 42, "adopted": true, "attempt": 2})),
            process("next", "pending", json!({"attempt": 0, "started_at": null, "lease": lease})),
            process("done", "succeeded", json!({"exit_code": 0, "ended_at": ended, "lease": lease})),
            process("broken", "failed", json!({"exit_code": 7, "ended_at": ended})),
            process("slow", "failed", json!({"signal": 15, "ended_by": "timeout", "ended_at": ended})),
            process("unwanted", "cancelled", json!({"signal": 15, "reason": "disk\u{7} full", "ended_at": ended,
                "command": null, "service": "backup@1.0.0", "instance": "tenant-a"})),
        ]});
        let now = "2026-11-22T03:01:00Z".parse().expect("a time");
        let processes = read(&document).expect("understood");
        insta::assert_snapshot!(of(&processes, now, false).render(false), @r"
        PROCESS   STATE      FOR    ATTEMPT  PID  COMMAND                      NOTES
        nightly   running    59s    2/3      42   tar -C '/my home' 'it'\''s'  adopted
        next      pending    1m00s  0/3      -    tar -C '/my home' 'it'\''s'  owned by the broker with pid 77
        done      succeeded  12s    1/3      -    tar -C '/my home' 'it'\''s'  -
        broken    failed     12s    1/3      -    tar -C '/my home' 'it'\''s'  exit code 7
        slow      failed     12s    1/3      -    tar -C '/my home' 'it'\''s'  took longer than its limit; SIGTERM (15)
        unwanted  cancelled  12s    1/3      -    backup@1.0.0/tenant-a        SIGTERM (15); disk\x07 full
        ");
        let lines = of(&processes[..1], now, true).render(true);
        assert!(anstream::adapter::strip_str(&lines).to_string().contains("adopted"), "{lines}");
    }
}
