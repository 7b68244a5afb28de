//! Whether a broker's registry, its journal and the processes that there are say the same.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;

use broker_tests::{Broker, processes_mentioning, wait_until};
use serde_json::Value;

use super::journal;

/// Waits until all that the broker knows of the services is so, and nothing else of this folder is alive.
///
/// # Panics
/// It does not come to that, or two daemons of one key ever lived at the same time.
#[track_caller]
pub(super) fn assert_agreement(broker: &Broker, services: &[&str]) {
    let last = RefCell::new(String::new());
    let shown = Shown(&last);
    wait_until(shown, || {
        let found = disagreement(broker, services);
        last.replace(found.clone().unwrap_or_default());
        found.is_none()
    });
    assert_no_screams(broker);
}

struct Shown<'a>(&'a RefCell<String>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "registry, journal and processes do not agree: {}", self.0.borrow())
    }
}

/// Checks that no daemon ever found another of its key alive.
#[track_caller]
pub(super) fn assert_no_screams(broker: &Broker) {
    for entry in fs::read_dir(broker.path("starts")).expect("a folder").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "screams") {
            let text = fs::read_to_string(entry.path()).expect("readable");
            panic!("two daemons of one key were alive: {} says {text}", entry.path().display());
        }
    }
}

/// What does not agree, if anything.
fn disagreement(broker: &Broker, services: &[&str]) -> Option<String> {
    let mut known = BTreeSet::from([broker.pid().cast_signed()]);
    let mut records = BTreeSet::new();
    let status = broker.status();
    let backends = status["backends"].as_array().expect("status lists backends");
    for service in services {
        let backend = backends.iter().find(|backend| backend["service"] == *service).unwrap_or(&Value::Null);
        if let Some(found) = about(broker, service, backend, &mut known) {
            return Some(format!("{service}: {found}, in status {backend}"));
        }
        if backend["state"] == "ready" {
            records.insert(format!("{service}@1.0.0~default.{}", backend["generation"]));
        }
    }
    let strangers: Vec<_> =
        processes_mentioning(broker.folder()).into_iter().filter(|(pid, _)| !known.contains(pid)).collect();
    if !strangers.is_empty() {
        return Some(format!("nobody knows {strangers:?}"));
    }
    let kept: BTreeSet<String> = fs::read_dir(broker.path("state/starts"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    (kept != records).then(|| format!("there are start records {kept:?} for {records:?}"))
}

fn about(broker: &Broker, service: &str, backend: &Value, known: &mut BTreeSet<i32>) -> Option<String> {
    let row = match journal::row(broker, service) {
        Ok(row) => row,
        Err(error) => return Some(format!("the journal cannot be read: {error}")),
    };
    let processes = broker.processes(service);
    let roots = roots(&processes);
    known.extend(&processes);
    let row_is = |phase: &str, pid: Option<i64>| {
        row.as_ref().is_some_and(|row| {
            (row.phase.as_str(), row.pid, &Value::from(row.generation)) == (phase, pid, &backend["generation"])
        })
    };
    let agrees = match backend["state"].as_str() {
        Some("ready") => {
            let pid = backend["pid"].as_i64();
            row_is("ready", pid) && roots.iter().map(|&root| Some(i64::from(root))).eq([pid])
        }
        Some("inactive" | "failed") => processes.is_empty() && (row.is_none() || row_is("inactive", None)),
        None => processes.is_empty() && row.is_none_or(|row| row.phase == "inactive" && row.pid.is_none()),
        Some(other) => return Some(format!("it is still {other}")),
    };
    (!agrees).then(|| format!("processes {processes:?} with roots {roots:?}, row {:?}", journal::row(broker, service)))
}

/// Those whose parent is not among them: one for each tree.
pub(super) fn roots(processes: &[i32]) -> Vec<i32> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok()
    };
    let is_root = |pid: &i32| parent(*pid).is_none_or(|parent| !processes.contains(&parent));
    processes.iter().copied().filter(is_root).collect()
}
