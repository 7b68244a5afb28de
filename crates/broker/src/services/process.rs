//! The service file of a process: what of it a daemon has too, and what makes no sense for one that serves nobody.
//!
//! Owns `[process]`, and the messages for tables and keys that only a daemon has.

use std::collections::BTreeMap;
use std::sync::Arc;

use broker_proto::ServiceName;

use super::defaults;
use super::definition::{Kind, ProcessDefinition};
use super::installed::{self, Installed};
use super::limits;
use super::reader::{Document, Located};
use super::schema::{environment, working_directory};
use super::template::Subject;
use super::values;

/// The most attempts that a process may be given.
pub(crate) const ATTEMPTS_MAX: u32 = 1000;

/// Tables of daemons, and why a process has none.
const ABSENT: [(&str, &str); 6] = [
    ("[endpoint]", "a process has no endpoint"),
    ("[readiness]", "nobody waits until a process is ready"),
    (
        "[recovery]",
        "a process that ends is not started again; `max_attempts` in [process] is for attempts that are lost",
    ),
    ("[session]", "a process has no connections"),
    ("[log]", "a process's output is kept whole until the process is pruned"),
    ("[access]", "processes are run by root and the user that the broker runs as, and nobody else"),
];

/// Keys of `[lifecycle]` that only a daemon has.
const ABSENT_KEYS: [(&str, &str); 2] = [
    ("idle_timeout", "a process is never idle: `timeout` in [process] is how long an attempt may take"),
    ("stop_signal", "a process that is cancelled gets SIGTERM, then SIGKILL after `stop_timeout`"),
];

/// Reads what makes a process.
pub(super) fn read(document: &Document<'_>, name: Option<&Located<ServiceName>>) -> Option<Kind> {
    for (header, why) in ABSENT {
        let table = document.table(header);
        if table.is_there() {
            table.error(None, format!("{why}: leave {header} out"));
        }
    }
    if let Some(log) = document.table("[service]").get("log", |_| Ok(())) {
        document.error(&log.place, "a process's output is kept in files, from which it is shown again: leave it out");
    }
    let lifecycle = document.table("[lifecycle]");
    for (key, why) in ABSENT_KEYS {
        if let Some(found) = lifecycle.get(key, |_| Ok(())) {
            document.error(&found.place, why);
        }
    }
    let environment = environment(document, Subject::Process);
    let working_directory = working_directory(&lifecycle, Subject::Process);
    let umask = lifecycle.get_or("umask", values::umask, defaults::UMASK);
    let stop_timeout = lifecycle.get_or("stop_timeout", values::duration, defaults::STOP_TIMEOUT);
    let process = document.table("[process]");
    let timeout = process.get_or("timeout", values::positive_duration_or_never, defaults::PROCESS_TIMEOUT);
    let attempts = values::number(1..=u64::from(ATTEMPTS_MAX));
    let max_attempts = process.get_or("max_attempts", attempts, defaults::PROCESS_MAX_ATTEMPTS);
    let limits = limits::read(document);
    let installed = installed::read(document, Subject::Process);

    let name = &name?.value;
    let define = |Installed { version, spelling, command }: Installed| {
        let definition = ProcessDefinition {
            service: name.clone(),
            version: version.clone(),
            spelling,
            command: command.value,
            environment: environment.clone(),
            working_directory: working_directory.clone(),
            umask,
            stop_timeout,
            timeout,
            max_attempts,
            limits,
        };
        (version, Arc::new(definition))
    };
    Some(Kind::Process(installed.into_iter().map(define).collect::<BTreeMap<_, _>>()))
}
