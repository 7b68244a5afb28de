//! How a process has ended, in a sentence and as an exit code.

use broker_client::{Process, ProcessExit};

use super::super::output::{FAILED, harmless, humane_ms};
use super::super::refusal::signal_name;

/// The exit code of one who waited for the process.
pub(super) fn status(process: &Process) -> u8 {
    process.exit().map_or(FAILED, ProcessExit::status)
}

/// What is said about the end on stderr; nothing where the exit code says all, as in a shell.
pub(super) fn sentence(process: &Process) -> Option<String> {
    let id = &process.id;
    let reason = process.reason.as_deref().filter(|reason| !reason.is_empty()).map(harmless);
    let because = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match process.exit()? {
        ProcessExit::Code(_) => reason.map(|reason| format!("brokerctl: process {id}: {reason}")),
        ProcessExit::Signal(signal) => {
            Some(format!("brokerctl: process {id} was ended by {}{because}", signal_name(signal)))
        }
        ProcessExit::TimedOut => {
            let limit = process.timeout_ms.map(|ms| format!(" {},", humane_ms(ms))).unwrap_or_default();
            Some(format!("brokerctl: process {id} took longer than{limit} its limit, and was ended"))
        }
        ProcessExit::Cancelled => Some(format!("brokerctl: process {id} was cancelled{because}")),
        _ => Some(format!("brokerctl: process {id} failed{because}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::documents;
    use super::*;

    fn ended(facts: Value) -> String {
        let mut document = json!({"id": "nightly", "timeout_ms": 1_500});
        for (name, value) in facts.as_object().expect("an object") {
            document[name] = value.clone();
        }
        let process: Process = documents::read(&document).expect("understood");
        format!("{}: {}", status(&process), sentence(&process).as_deref().unwrap_or("nothing is said"))
    }

    #[test]
    fn an_end_is_a_sentence_unless_the_exit_code_says_all() {
        let all = [
            json!({"state": "succeeded", "exit_code": 0}),
            json!({"state": "failed", "exit_code": 7}),
            json!({"state": "failed", "exit_code": 127, "reason": "cannot execute `x\u{7}`"}),
            json!({"state": "failed", "signal": 9}),
            json!({"state": "failed", "signal": 15, "ended_by": "timeout"}),
            json!({"state": "cancelled", "signal": 15, "ended_by": "cancel", "reason": "the disk is full"}),
            json!({"state": "failed", "reason": "lost 3 times"}),
        ];
        insta::assert_snapshot!(all.map(ended).join("\n"), @r"
        0: nothing is said
        7: nothing is said
        127: brokerctl: process nightly: cannot execute `x\x07`
        137: brokerctl: process nightly was ended by SIGKILL (9)
        124: brokerctl: process nightly took longer than 1.5s, its limit, and was ended
        1: brokerctl: process nightly was cancelled: the disk is full
        1: brokerctl: process nightly failed: lost 3 times
        ");
    }
}
