//! Reports for operators, as JSON documents.

use broker_proto::Exit;
use serde_json::{Value, json};

use super::clock::now;
use super::driver::Driver;
use super::events::{Event, What};
use super::hosted::Running;
use super::processes;
use crate::core::backend::Happening;
use crate::core::registry::{BackendId, BackendKey};
use crate::core::{millis, millis_up};
use crate::process::cgroup::Leaf;
use crate::process::log_place::LogPlace;
use crate::services::{Catalog, Problem, Severity};

/// A backend's name in parts.
pub(super) fn name(key: &BackendKey) -> Value {
    json!({
        "instance": key.instance.as_str(),
        "service": key.service.as_str(),
        "version": key.version.to_string(),
    })
}

/// The broker and every backend.
pub(super) fn status(driver: &Driver) -> Value {
    let now = now();
    let mut ids: Vec<(&BackendKey, BackendId)> = driver.registry.iter().map(|(id, key, _)| (key, id)).collect();
    ids.sort();
    let held_back = driver.held_back.iter().map(|(key, reason)| held_back(key, reason));
    let backends: Vec<Value> = ids.into_iter().filter_map(|(_, id)| backend(driver, id)).chain(held_back).collect();
    json!({
        "broker": {
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_ms": millis(now.since(driver.began)),
            "socket": driver.config.socket,
            "state_dir": driver.config.state_dir,
            "service_directories": driver.config.services,
            "sessions": driver.sessions.len(),
            "services": driver.catalog.services.len(),
            "problems": driver.catalog.problems.len(),
            "draining": driver.leaving.is_some(),
            "journal": driver.journal_report(),
            "cgroups": driver.cgroups.report(),
        },
        "backends": backends,
    })
}

/// A backend that no service file defines, and of which it is not known what became of it.
fn held_back(key: &BackendKey, reason: &str) -> Value {
    let mut value = name(key);
    let details = json!({
        "state": broker_proto::State::Quarantined.as_str(), "state_for_ms": 0, "generation": 0, "holds": 0,
        "quarantine": reason,
    });
    extend(&mut value, details);
    value
}

fn backend(driver: &Driver, id: BackendId) -> Option<Value> {
    let (key, machine) = driver.registry.get(id)?;
    let hosted = driver.hosted.get(&id)?;
    let view = machine.view(now());
    let running = hosted.running.as_deref();
    let mut value = name(key);
    let details = json!({
        "state": view.state.as_str(),
        "state_for_ms": millis(now().since(view.since)),
        "pid": running.map(|r| r.main.pid.as_raw()),
        "generation": view.generation,
        "endpoint": running.map(|r| r.endpoint.to_string()),
        "holds": view.holds,
        "waiters": view.waiters,
        "attempt": view.attempt,
        "crashes_in_window": view.crashes_in_window,
        "retry_after_ms": view.retry_after.map(millis_up),
        "adopted": running.is_some_and(|r| r.is_adopted),
        "outdated": hosted.is_outdated(),
        "draining": view.draining,
        "status": view.status,
        "quarantine": view.quarantine,
        "log_path": hosted.log.as_ref().map(LogPlace::to_string),
        "cgroup": running.and_then(|r| r.facts.cgroup.as_ref()).map(Leaf::folder),
        "limits": running.filter(|r| !r.definition.limits.is_empty()).map(limits),
    });
    extend(&mut value, details);
    Some(value)
}

/// What limits a backend, and what of that does not hold.
fn limits(running: &Running) -> Value {
    let mut value = json!(running.definition.limits);
    value["not_enforced"] = json!(running.start.unenforced);
    value
}

fn extend(value: &mut Value, details: Value) {
    if let (Value::Object(value), Value::Object(details)) = (value, details) {
        value.extend(details);
    }
}

/// Something that happened.
pub(super) fn event(event: &Event) -> Value {
    let (mut value, word, details) = match &event.what {
        What::Backend { key, generation, happening, pid, endpoint } => {
            let (word, details) = backend_event(happening, *pid, endpoint.as_deref());
            let mut value = name(key);
            value["generation"] = json!(generation);
            (value, word, details)
        }
        What::Process { id, happening } => {
            let (word, details) = process_event(happening);
            (json!({ "process": id.as_str() }), word, details)
        }
    };
    extend(&mut value, json!({ "number": event.number, "time": format!("{:.3}", event.time), "event": word }));
    extend(&mut value, details);
    value
}

fn process_event(happening: &processes::Happening) -> (&'static str, Value) {
    use processes::Happening;
    match happening {
        Happening::Registered => ("process_registered", Value::Null),
        Happening::Started { attempt, pid } => ("process_started", json!({ "attempt": attempt, "pid": pid })),
        Happening::Adopted { attempt, pid } => ("process_adopted", json!({ "attempt": attempt, "pid": pid })),
        Happening::Lost { attempt } => ("process_lost", json!({ "attempt": attempt })),
        Happening::Ended { state, attempt, ended, reason } => {
            let (exit_code, signal) = (ended.exit_code, ended.signal);
            let details = json!({
                "state": state, "attempt": attempt, "exit_code": exit_code, "signal": signal, "reason": reason,
            });
            ("process_ended", details)
        }
    }
}

fn backend_event(happening: &Happening, pid: Option<i32>, endpoint: Option<&str>) -> (&'static str, Value) {
    match happening {
        Happening::Starting { attempt } => ("starting", json!({ "attempt": attempt })),
        Happening::Started => ("started", json!({ "pid": pid, "endpoint": endpoint })),
        Happening::Forked => ("forked", json!({ "pid": pid })),
        Happening::Ready { after } => {
            ("ready", json!({ "after_ms": millis(*after), "pid": pid, "endpoint": endpoint }))
        }
        Happening::Exited { exit, lived, crash } => {
            let (exit_code, signal) = match exit {
                Exit::Code(code) => (Some(code), None),
                Exit::Signal(signal) => (None, Some(signal)),
                Exit::Unknown => (None, None),
            };
            let lived_ms = millis(*lived);
            ("exited", json!({ "exit_code": exit_code, "signal": signal, "lived_ms": lived_ms, "crash": crash }))
        }
        Happening::Killed { after } => ("killed", json!({ "after_ms": millis(*after) })),
        Happening::Restarting { delay } => ("restarting", json!({ "delay_ms": millis_up(*delay) })),
        Happening::Failed { refusal } => ("failed", json!({ "refused": refusal })),
        Happening::Stopping { why } => ("stopping", json!({ "why": why.as_str() })),
        Happening::Stopped => ("stopped", Value::Null),
        Happening::Finished => ("finished", Value::Null),
        Happening::TakenDown => ("taken_down", Value::Null),
        Happening::Draining => ("draining", Value::Null),
        Happening::DrainEnded => ("drain_ended", Value::Null),
        Happening::Adopted => ("adopted", json!({ "pid": pid, "endpoint": endpoint })),
        Happening::Quarantined { reason } => ("quarantined", json!({ "reason": reason })),
        Happening::Released => ("released", Value::Null),
    }
}

/// A backend that is drained, and what still keeps it.
pub(super) fn drained(driver: &Driver, id: BackendId) -> Option<Value> {
    let (key, machine) = driver.registry.get(id)?;
    let mut value = name(key);
    value["holds"] = json!(machine.view(now()).holds);
    Some(value)
}

/// The services, and what is wrong with their files.
pub(super) fn services(catalog: &Catalog) -> Value {
    let services: Vec<Value> = catalog
        .services
        .values()
        .map(|service| {
            let versions: Vec<Value> = service
                .versions()
                .into_iter()
                .map(|version| {
                    let rule = service.version_rules.blocks(version);
                    json!({
                        "version": version.to_string(),
                        "allowed": rule.is_none(),
                        "why_not": rule.map(|rule| rule.to_string()),
                    })
                })
                .collect();
            json!({
                "name": service.name.as_str(),
                "kind": service.kind.as_str(),
                "description": Some(&service.description).filter(|text| !text.is_empty()),
                "file": service.source,
                "versions": versions,
            })
        })
        .collect();
    json!({ "services": services, "problems": problems(&catalog.problems) })
}

/// Problems of service files.
pub(super) fn problems(problems: &[Problem]) -> Vec<Value> {
    let value = |problem: &Problem| {
        json!({
            "file": problem.file,
            "line": problem.position.map(|position| position.line),
            "column": problem.position.map(|position| position.column),
            "key": problem.key,
            "severity": match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            "message": problem.message,
        })
    };
    problems.iter().map(value).collect()
}
