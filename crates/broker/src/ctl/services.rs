//! `brokerctl services` and `brokerctl reload`: what can be asked for, and what is wrong with the files that say so.

use broker_proto::AdminRequest;

use super::args::Global;
use super::documents::{self, Problem, Reloaded, Services, Status, Version};
use super::output::{BAD, CARE, Console, Failure, STRONG, harmless, paint};
use super::session::Session;
use super::status::count;
use super::table::{Cell, Table, Tone};

const MINIMAL_FILE: &str = r#"[service]
name = "redis"

[[version]]
version = "7.0.15"
command = ["/usr/bin/redis-server", "--port", "0", "--unixsocket", "{endpoint}"]"#;

pub(super) async fn run(console: &Console, global: &Global) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let document = session.admin("services", AdminRequest::Services).await?;
    if console.json {
        return console.document(&document);
    }
    let services: Services = documents::read(&document)?;
    if services.services.is_empty() {
        let status: Status = documents::read(&session.admin("status", AdminRequest::Status).await?)?;
        let place = where_defined(&status.broker.service_directories);
        console.line(format!("no services yet: {place}, then `brokerctl reload`. A whole one:\n"))?;
        for line in MINIMAL_FILE.lines() {
            console.line(format!("    {line}").trim_end())?;
        }
    } else {
        console.print(table(&services).render(console.stdout_is_terminal))?;
    }
    list_problems(console, &services.problems)
}

pub(super) async fn reload(console: &Console, global: &Global) -> Result<(), Failure> {
    let session = Session::open(console, global).await?;
    let document = session.admin("reload", AdminRequest::Reload).await?;
    if console.json {
        return console.document(&document);
    }
    let reloaded: Reloaded = documents::read(&document)?;
    console.line(changes(&reloaded))?;
    list_problems(console, &reloaded.problems)
}

/// `put a file into /etc/broker/services.d`: where the broker reads, as far as it says so.
pub(super) fn where_defined(directories: &[String]) -> String {
    let directories: Vec<String> = match directories {
        [] => super::check::default_directories().iter().map(|path| path.display().to_string()).collect(),
        told => told.to_vec(),
    };
    format!("put a file into {}", harmless(&directories.join(" or ")))
}

fn table(services: &Services) -> Table {
    let mut table = Table::new(["SERVICE", "KIND", "VERSIONS", "DESCRIPTION", "FILE"], 2);
    for service in &services.services {
        let versions: Vec<String> = service.versions.iter().map(describe).collect();
        let tone = if service.versions.iter().any(|version| version.allowed) { Tone::Plain } else { Tone::Bad };
        let versions = if versions.is_empty() { "none installed".to_owned() } else { versions.join(", ") };
        table.row([
            service.name.as_str().into(),
            harmless(&service.kind).into(),
            Cell::toned(versions, tone),
            service.description.as_deref().map(harmless).unwrap_or_default().into(),
            Cell::toned(harmless(&service.file), Tone::Faint),
        ]);
    }
    table
}

fn describe(version: &Version) -> String {
    match (&version.why_not, version.allowed) {
        (_, true) => version.version.clone(),
        (Some(why), false) => format!("{} (blocked: {})", version.version, harmless(why)),
        (None, false) => format!("{} (blocked)", version.version),
    }
}

fn changes(reloaded: &Reloaded) -> String {
    let Reloaded { services, versions, added, changed, removed, .. } = reloaded;
    let total = format!("{}, {}", count(*services, "service", "services"), count(*versions, "version", "versions"));
    let parts: Vec<String> = [("added", added), ("changed", changed), ("removed", removed)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("{word} {}", names.join(", ")))
        .collect();
    if parts.is_empty() { format!("nothing changed: {total}") } else { format!("{}: {total}", parts.join("; ")) }
}

/// Prints problems, and nothing when there are none.
fn list_problems(console: &Console, problems: &[Problem]) -> Result<(), Failure> {
    for problem in problems {
        console.line(sentence(problem))?;
    }
    Ok(())
}

/// `file:line:column: error: message`.
pub(super) fn sentence(problem: &Problem) -> String {
    let Problem { file, line, column, severity, message } = problem;
    let mut place = harmless(file);
    for number in [line, column].into_iter().map_while(|number| *number) {
        place += &format!(":{number}");
    }
    let style = if severity == "error" { BAD } else { CARE };
    let mut lines = message.lines();
    let first = harmless(lines.next().unwrap_or_default());
    let rest: String = lines.map(|line| format!("\n  {}", harmless(line))).collect();
    format!("{} {} {first}{rest}", paint(STRONG, place + ":"), paint(style, format!("{severity}:")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_say_which_versions_are_blocked() {
        let services: Services = documents::read(&json!({"services": [
            {"name": "redis", "description": "An in-memory store", "file": "/etc/broker/services.d/redis.toml",
             "versions": [{"version": "6.2.0", "allowed": false, "why_not": "below the minimum 7.0.0"},
                          {"version": "7.0.15", "allowed": true, "why_not": null}]},
            {"name": "empty", "kind": "process", "description": null, "file": "/x.toml", "versions": []},
        ], "problems": []}))
        .expect("understood");
        insta::assert_snapshot!(table(&services).render(false), @"
        SERVICE  KIND     VERSIONS                                          DESCRIPTION         FILE
        redis    daemon   6.2.0 (blocked: below the minimum 7.0.0), 7.0.15  An in-memory store  /etc/broker/services.d/redis.toml
        empty    process  none installed                                    -                   /x.toml
        ");
    }

    #[test]
    fn a_reload_says_what_changed() {
        let reloaded = |added: &[&str], removed: &[&str]| {
            let document = json!({"services": 2, "versions": 3, "added": added, "changed": [], "removed": removed});
            changes(&documents::read(&document).expect("understood"))
        };
        assert_eq!(reloaded(&[], &[]), "nothing changed: 2 services, 3 versions");
        assert_eq!(reloaded(&["a", "b"], &["c"]), "added a, b; removed c: 2 services, 3 versions");
    }
}
