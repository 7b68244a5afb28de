//! Tests of whole service files: what is read, what is reported, and files for real daemons.

mod catalog;
mod examples;
mod messages;
mod processes;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use semver::Version;

use super::problem::Problem;
use super::{Definition, Kind, Service, schema};

/// The least that a service file may say, without its versions.
const NAMED: &str = "[service]\nname = \"redis\"\n";

/// A version that nothing is wrong with.
const VERSION: &str = "[[version]]\nversion = \"7\"\ncommand = [\"/bin/redis\", \"{endpoint}\"]\n";

/// What a person is told about a file.
fn problems(text: &str) -> String {
    let (service, problems) = schema::parse(Path::new("x.toml"), text);
    let errors = problems.iter().any(|problem| problem.severity == super::Severity::Error);
    assert_eq!(service.is_none(), errors, "a service is there exactly if nothing is wrong");
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// What a person is told about a good file to which some lines are added.
fn added(lines: &str) -> String {
    problems(&format!("{NAMED}{VERSION}{lines}"))
}

/// The service of a file that nothing is wrong with.
fn service(text: &str) -> Service {
    let (service, problems) = schema::parse(Path::new("x.toml"), text);
    assert_eq!(problems, [], "{text}");
    service.expect("no problem")
}

/// The definition of a good file to which some lines are added.
fn definition(lines: &str) -> Arc<Definition> {
    let service = service(&format!("{NAMED}{VERSION}{lines}"));
    Arc::clone(daemons(&service).values().next().expect("one version"))
}

/// The versions of a daemon.
fn daemons(service: &Service) -> &BTreeMap<Version, Arc<Definition>> {
    match &service.kind {
        Kind::Daemon(versions) => versions,
        Kind::Process(_) => panic!("{} is a process", service.name),
    }
}
