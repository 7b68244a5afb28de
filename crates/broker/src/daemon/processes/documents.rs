//! Reports about durable processes, as JSON documents.

use broker_proto::FRAME_MAX;
use serde_json::{Value, json};

use super::launch::running_command;
use super::record::{Record, State};
use crate::core::durable::EndedBy;
use crate::core::lease::Me;
use crate::core::millis;
use crate::process::boot::since_boot;
use crate::reaper::folder::Folder;

/// The most that the processes of one report may take, in bytes: what a frame has, less the words around them.
const REPORT_MAX: usize = FRAME_MAX - 1024;

/// A process.
pub(super) fn document(record: &Record, folder: &Folder, me: &Me, adopted: bool) -> Value {
    // Made by the reaper, before the command is executed.
    let file = |path: std::path::PathBuf| Some(path).filter(|path| record.attempt > 0 && path.exists());
    let ended = record.ended.as_ref();
    let lease = record.lease.as_ref().map(|(lease, owner)| {
        json!({
            "owner": owner.pid,
            "mine": lease.token == me.token,
            "fencing_token": record.fencing_token,
            "expires_in_ms": lease.expires_at.saturating_sub(millis(since_boot())),
        })
    });
    json!({
        "id": record.id.as_str(),
        "state": record.state.as_str(),
        "command": record.asked.command,
        "service": record.program.service,
        "instance": record.program.instance,
        "working_directory": record.program.working_directory,
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "timeout_ms": record.program.timeout_ms,
        "pid": if record.state == State::Running { running_command(folder) } else { None },
        "adopted": adopted,
        "exit_code": ended.and_then(|ended| ended.exit_code),
        "signal": ended.and_then(|ended| ended.signal),
        "ended_by": ended.map(|ended| ended.ended_by.as_str()),
        "reason": reason(record),
        "registered_at": record.registered_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "stdout": file(folder.stdout(record.attempt)),
        "stderr": file(folder.stderr(record.attempt)),
        "lease": lease,
    })
}

/// Why it was cancelled, or why it failed.
fn reason(record: &Record) -> Option<String> {
    let ended = record.ended.as_ref();
    let of_outcome = ended.and_then(|ended| match ended.ended_by {
        EndedBy::Timeout => {
            let timeout = std::time::Duration::from_millis(record.program.timeout_ms.unwrap_or_default());
            Some(format!("it took longer than {timeout:?}"))
        }
        EndedBy::None | EndedBy::Cancel | EndedBy::Interrupted => ended.reason.clone(),
    });
    let is_success = matches!(record.state, State::Over(crate::core::durable::Verdict::Succeeded));
    of_outcome.or_else(|| record.cancel_reason.clone().filter(|_| !is_success))
}

/// Several processes. If they are more than fits into a message, the oldest that have ended are left out first, and it is
/// said how many those are.
pub(super) fn list(documents: Vec<Value>) -> Value {
    let is_over = |document: &Value| !matches!(document["state"].as_str(), Some("pending" | "running"));
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_key(|at| is_over(&documents[*at]));
    let running = order.iter().take_while(|at| !is_over(&documents[**at])).count();
    order[running..].reverse();
    let mut bytes = 0;
    order.retain(|at| {
        bytes += documents[*at].to_string().len() + 1;
        bytes <= REPORT_MAX
    });
    let omitted = documents.len() - order.len();
    order.sort_unstable();
    let mut documents: Vec<Option<Value>> = documents.into_iter().map(Some).collect();
    let kept: Vec<Value> = order.into_iter().filter_map(|at| documents[at].take()).collect();
    match omitted {
        0 => json!({ "processes": kept }),
        _ => json!({ "processes": kept, "omitted": omitted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_leaves_out_the_oldest_that_ended() {
        let long = "x".repeat(1000);
        let process = |number: usize| {
            let state = if number == 0 { "running" } else { "succeeded" };
            json!({ "id": number, "state": state, "command": [long] })
        };
        let short = list((0..10).map(process).collect());
        assert_eq!((short["processes"].as_array().map(Vec::len), short.get("omitted")), (Some(10), None));
        let all = list((0..2000).map(process).collect());
        assert!(all.to_string().len() < FRAME_MAX);
        let kept = all["processes"].as_array().expect("a list");
        let ids: Vec<u64> = kept.iter().map(|process| process["id"].as_u64().expect("a number")).collect();
        assert!(ids.is_sorted() && ids[0] == 0 && ids[1] > 500 && ids.last() == Some(&1999), "{ids:?}");
        assert_eq!(all["omitted"], 2000 - kept.len());
    }
}
