//! Reports for operators, as JSON documents.

use serde_json::{Value, json};

use super::clock::now;
use super::driver::Driver;
use crate::core::registry::{BackendId, BackendKey};
use crate::core::{millis, millis_up};
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
    let backends: Vec<Value> = ids.into_iter().filter_map(|(_, id)| backend(driver, id)).collect();
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
        },
        "backends": backends,
    })
}

fn backend(driver: &Driver, id: BackendId) -> Option<Value> {
    let (key, machine) = driver.registry.get(id)?;
    let hosted = driver.hosted.get(&id)?;
    let view = machine.view(now());
    let running = hosted.running.as_ref();
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
        "adopted": false,
        "outdated": hosted.is_outdated(),
        "draining": view.draining,
        "status": view.status,
        "log_path": hosted.log,
    });
    if let (Value::Object(value), Value::Object(details)) = (&mut value, details) {
        value.extend(details);
    }
    Some(value)
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
                .versions
                .keys()
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
