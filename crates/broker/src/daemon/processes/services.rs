//! What a service of kind `process` runs: its definition, filled in.

use std::collections::BTreeMap;
use std::ffi::OsString;

use broker_proto::{Code, InstanceName, Refusal, Requirement, ServiceName, Target};
use nix::sys::signal::Signal;

use super::spec::{Program, malformed};
use crate::core::millis;
use crate::core::registry::BackendKey;
use crate::daemon::driver::Driver;
use crate::daemon::requests::choose_among;
use crate::daemon::work::{environment, find_program};
use crate::services::{Kind, Values};

/// Finds the service, picks a version, and fills everything in.
pub(super) fn resolve_work(driver: &Driver, target: &Target) -> Result<Program, Box<Refusal>> {
    let name = ServiceName::parse(&target.service).map_err(|error| malformed(error.to_string()))?;
    let instance = InstanceName::parse(&target.instance).map_err(|error| malformed(error.to_string()))?;
    let requirement = Requirement::parse(&target.version_requirement).map_err(|error| malformed(error.to_string()))?;
    let Some(service) = driver.catalog.services.get(&name) else {
        return Err(driver.service_unknown(&name));
    };
    let Kind::Process(versions) = &service.kind else {
        let reason = format!("`{name}` is a daemon and not a process: `brokerctl resolve {name}` starts it");
        return Err(Box::new(Refusal::new(Code::ServiceUnknown, reason)));
    };
    let definition = choose_among(service, versions, &requirement)?;
    let key = BackendKey { instance, service: name, version: definition.version.clone() };
    let folder = driver.places.data(&key).to_string_lossy().into_owned();
    let values = Values {
        endpoint: "",
        port: None,
        service: key.service.as_str(),
        version: &definition.spelling,
        instance: key.instance.as_str(),
        state_dir: &folder,
    };
    // A registration is text; a variable of the broker's own that is none is not passed on.
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let variables: BTreeMap<_, _> =
        environment(&definition.environment, &values).into_iter().filter_map(text).collect();
    let program = definition.command.program.fill(&values);
    find_program(&program, variables.get("PATH").map(AsRef::as_ref))?;
    let arguments = definition.command.arguments.iter().map(|argument| argument.fill(&values));
    Ok(Program {
        service: Some(format!("{}@{}", key.service, key.version)),
        instance: Some(key.instance.to_string()),
        argv: std::iter::once(program).chain(arguments).collect(),
        environment: variables.into_iter().collect(),
        working_directory: definition.working_directory.fill(&values),
        umask: definition.umask,
        timeout_ms: definition.timeout.map(millis),
        max_attempts: definition.max_attempts,
        stop_signal: Signal::SIGTERM as i32,
        stop_timeout_ms: millis(definition.stop_timeout),
        state_dir: Some(folder),
        limits: definition.limits,
    })
}
