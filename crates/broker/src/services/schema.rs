//! The service file: its keys, and what they mean together.
//!
//! Owns the schema of DESIGN.md section 8 and the checks that need more than one value. Every value is read before any
//! conclusion is drawn, so that one mistake does not hide another.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use broker_proto::ServiceName;
use semver::Version;
use toml::de::DeValue;

use super::defaults;
use super::definition::{
    Command, Definition, Endpoint, Environment, Kind, Lifecycle, Log, LogFiles, Probe, Readiness, Recovery, Resume,
    Service, Session,
};
use super::installed::{self, Installed};
use super::limits;
use super::problem::{Problem, example, quoted};
use super::process;
use super::reader::{self, Document, Located, Schema, Table};
use super::template::{Placeholder, Subject, Template};
use super::values;
use crate::core::admission::AccessRules;
use crate::core::versions::VersionRules;
use crate::journald;

/// The tables of a service file.
const TABLES: &[&str] = &[
    "service",
    "version",
    "versions",
    "endpoint",
    "readiness",
    "recovery",
    "lifecycle",
    "session",
    "log",
    "access",
    "process",
    "limits",
];

/// All keys of a service file.
const SCHEMA: Schema = &[
    ("", TABLES),
    ("[service]", &["name", "description", "kind", "log", "environment"]),
    ("[service.environment]", &["inherit", "set"]),
    ("[[version]]", &["version", "command"]),
    ("[versions]", &["directory", "command", "minimum", "deny"]),
    ("[endpoint]", &["kind", "path", "port"]),
    ("[readiness]", &["probe", "command", "notify", "hard_ceiling"]),
    ("[recovery]", &["retry_backoff", "budget_window", "healthy_after"]),
    ("[lifecycle]", &["idle_timeout", "stop_signal", "stop_timeout", "working_directory", "umask"]),
    ("[session]", &["resume"]),
    ("[log]", &["max_bytes", "keep"]),
    ("[access]", &["users", "groups", "connected"]),
    ("[process]", &["timeout", "max_attempts"]),
    (limits::HEADER, limits::KEYS),
];

/// Variables that the broker sets itself where a probe uses them: sd_notify(3), sd_listen_fds(3).
const RESERVED_VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// What a service manager tells the broker alone.
const OF_THE_BROKER: [&str; 5] = ["WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PIDFDID", "FDSTORE", "JOURNAL_STREAM"];

/// Reads the text of a service file. The service is there if no problem is an error.
pub(crate) fn parse(file: &Path, text: &str) -> (Option<Service>, Vec<Problem>) {
    if text.trim().is_empty() {
        let message = "the file is empty: a service file has [service] with a `name`, and [[version]]";
        return (None, vec![Problem::error(file, message)]);
    }
    reader::read(file, text, SCHEMA, |document| build(document, file))
}

fn build(document: &Document<'_>, file: &Path) -> Option<Service> {
    let service = document.table("[service]");
    if !document.table("").has("service") {
        document.error_in_file("missing table [service]: it names the service, name = \"redis\"");
    }
    let name =
        service.require("name", |value| ServiceName::parse(&values::text(value)?).map_err(|error| error.to_string()));
    let description = service.get_or("description", values::text, String::new());
    let is_process = service.get_or("kind", values::one_of(&[("daemon", false), ("process", true)]), false);
    let (kind, access) = match is_process {
        true => (process::read(document, name.as_ref()), AccessRules::default()),
        false => (daemon(document, name.as_ref()), access(document)),
    };
    let version_rules = version_rules(document);
    Some(Service { name: name?.value, description, kind: kind?, version_rules, access, source: file.to_owned() })
}

/// Reads what makes a daemon.
fn daemon(document: &Document<'_>, name: Option<&Located<ServiceName>>) -> Option<Kind> {
    let endpoint = endpoint(document);
    let subject = match endpoint {
        Endpoint::Unix { .. } => Subject::Unix,
        Endpoint::Tcp { .. } => Subject::Tcp,
    };
    let environment = environment(document, subject);
    let readiness = readiness(document, subject);
    let recovery = recovery(document);
    let lifecycle = lifecycle(document, subject);
    let session = session(document);
    let log = log(document);
    let limits = limits::read(document);
    let process = document.table("[process]");
    if process.is_there() {
        process.error(None, "[process] is for kind = \"process\" in [service]: this is a daemon".to_owned());
    }
    let installed = installed::read(document, subject);

    let name = name?;
    let definition = |version: &Version, spelling: String, command: &Command| Definition {
        service: name.value.clone(),
        version: version.clone(),
        spelling,
        command: command.clone(),
        environment: environment.clone(),
        endpoint: endpoint.clone(),
        readiness: readiness.clone(),
        recovery,
        lifecycle: lifecycle.clone(),
        session,
        log,
        limits,
    };
    let mut versions = BTreeMap::new();
    for Installed { version, spelling, command } in installed {
        let definition = definition(&version, spelling, &command.value);
        warn_if_the_endpoint_is_untold(document, &command, &definition);
        versions.insert(version, Arc::new(definition));
    }
    Some(Kind::Daemon(versions))
}

/// Warns if the broker chooses the endpoint and nothing tells the daemon what was chosen.
fn warn_if_the_endpoint_is_untold(document: &Document<'_>, command: &Located<Command>, definition: &Definition) {
    let chosen = matches!(definition.endpoint, Endpoint::Unix { path: None } | Endpoint::Tcp { port: None });
    let inherited = matches!(definition.readiness.probe, Probe::Socket { .. });
    let told = |template: &Template| template.uses(Placeholder::Endpoint) || template.uses(Placeholder::Port);
    let Command { program, arguments } = &command.value;
    if !chosen || inherited || std::iter::once(program).chain(arguments).any(told) {
        return;
    }
    if definition.environment.set.values().any(told) {
        return;
    }
    let help = match definition.endpoint {
        Endpoint::Unix { .. } => "{endpoint}, or set `path` in [endpoint] if its socket is fixed",
        Endpoint::Tcp { .. } => "{port} or {endpoint}, or set `port` in [endpoint] if it is fixed",
    };
    document.warning(&command.place, format!("nothing tells the daemon where to listen: mention {help}"));
}

fn endpoint(document: &Document<'_>) -> Endpoint {
    let table = document.table("[endpoint]");
    let tcp = table.get_or("kind", values::one_of(&[("unix", false), ("tcp", true)]), false);
    let path = table.get("path", |value| {
        let path = values::socket_path(value)?;
        match path.to_string_lossy().contains(['{', '}']) {
            true => Err("a fixed path is taken as it stands, nothing is filled in".to_owned()),
            false => Ok(path),
        }
    });
    let port = table.get("port", values::number(1..=u64::from(u16::MAX)));
    match (tcp, &path, &port) {
        (true, Some(path), _) => document.error(&path.place, "only an endpoint of kind \"unix\" has a path"),
        (false, _, Some(port)) => document.error(&port.place, "only an endpoint of kind \"tcp\" has a port"),
        _ => {}
    }
    match tcp {
        true => Endpoint::Tcp { port: port.map(|port| port.value) },
        false => Endpoint::Unix { path: path.map(|path| path.value) },
    }
}

pub(super) fn environment(document: &Document<'_>, subject: Subject) -> Environment {
    let table = document.table("[service.environment]");
    let inherit = table.list("inherit", |value| {
        let name = values::text(value)?;
        variable_name(&name)?;
        if OF_THE_BROKER.contains(&name.as_str()) {
            return Err(format!("{} tells of the broker itself: leave it out", quoted(&name)));
        }
        Ok(name)
    });
    let set = table.map("set", |name, value| {
        variable_name(name)?;
        template(subject)(value)
    });
    Environment {
        inherit: inherit.map_or_else(
            || defaults::INHERIT.map(str::to_owned).to_vec(),
            |names| names.value.into_iter().map(|name| name.value).collect(),
        ),
        set: set.into_iter().map(|(name, template)| (name, template.value)).collect(),
    }
}

fn variable_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("{} is no name of a variable", quoted(name)));
    }
    if RESERVED_VARIABLES.contains(&name) {
        return Err(format!("{} is set by the broker where the probe uses it: leave it out", quoted(name)));
    }
    Ok(())
}

fn readiness(document: &Document<'_>, subject: Subject) -> Readiness {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Connect,
        Notify,
        Socket,
        Exec,
    }
    const KINDS: [(&str, Kind); 4] =
        [("connect", Kind::Connect), ("notify", Kind::Notify), ("socket", Kind::Socket), ("exec", Kind::Exec)];

    let table = document.table("[readiness]");
    let probe = table.get("probe", values::one_of(&KINDS));
    let command = command(document, &table, subject);
    let notify = table.get("notify", values::boolean);
    let kind = probe.as_ref().map_or(Kind::Connect, |probe| probe.value);
    match (&probe, &command) {
        (Some(probe), None) if kind == Kind::Exec && !table.has("command") => {
            document.error(&probe.place, "\"exec\" needs the `command` that exits 0 once the daemon is ready");
        }
        (_, Some(command)) if kind != Kind::Exec => {
            document.error(&command.place, "only probe = \"exec\" runs a command");
        }
        _ => {}
    }
    if let Some(notify) = &notify
        && kind != Kind::Socket
    {
        let place = &notify.place;
        document.error(place, "only for probe = \"socket\"; a daemon that says READY=1 has probe = \"notify\"");
    }
    let probe = match (kind, command) {
        (Kind::Notify, _) => Probe::Notify,
        (Kind::Socket, _) => Probe::Socket { notify: notify.is_some_and(|notify| notify.value) },
        (Kind::Exec, Some(command)) => Probe::Exec { command: command.value },
        // An exec probe without its command was reported; what stands for it is dropped with the file.
        (Kind::Connect, _) | (Kind::Exec, None) => Probe::Connect,
    };
    let hard_ceiling = table.get_or("hard_ceiling", values::positive_duration, defaults::HARD_CEILING);
    Readiness { probe, hard_ceiling }
}

fn recovery(document: &Document<'_>) -> Recovery {
    let table = document.table("[recovery]");
    Recovery {
        retry_backoff: table.get_or("retry_backoff", values::duration, defaults::RETRY_BACKOFF),
        budget_window: table.get_or("budget_window", values::duration, defaults::BUDGET_WINDOW),
        healthy_after: table.get_or("healthy_after", values::duration, defaults::HEALTHY_AFTER),
    }
}

fn lifecycle(document: &Document<'_>, subject: Subject) -> Lifecycle {
    let table = document.table("[lifecycle]");
    Lifecycle {
        idle_timeout: table.get_or("idle_timeout", values::duration_or_never, defaults::IDLE_TIMEOUT),
        stop_signal: table.get_or("stop_signal", values::signal, defaults::STOP_SIGNAL),
        stop_timeout: table.get_or("stop_timeout", values::duration, defaults::STOP_TIMEOUT),
        working_directory: working_directory(&table, subject),
        umask: table.get_or("umask", values::umask, defaults::UMASK),
    }
}

/// The `working_directory` of [lifecycle].
pub(super) fn working_directory(table: &Table<'_>, subject: Subject) -> Template {
    let directory = table.get("working_directory", |value| {
        let directory = template(subject)(value)?;
        match directory.is_absolute() {
            true => Ok(directory),
            false => {
                let text = directory.to_string();
                let hint = values::home_hint(&text);
                Err(format!("{} is not an absolute path: begin it with / or {{state_dir}}{hint}", quoted(&text)))
            }
        }
    });
    directory.map_or_else(|| Template::literal(defaults::WORKING_DIRECTORY), |directory| directory.value)
}

fn session(document: &Document<'_>) -> Session {
    const MEANINGS: [(&str, Resume); 2] = [("none", Resume::None), ("reconnect", Resume::Reconnect)];
    let table = document.table("[session]");
    Session { resume: table.get_or("resume", values::one_of(&MEANINGS), defaults::RESUME) }
}

fn log(document: &Document<'_>) -> Log {
    let table = document.table("[log]");
    let max_bytes = table.get("max_bytes", values::size);
    let keep = table.get("keep", values::number(0..=u64::from(u32::MAX)));
    let places = [("file", false), ("journal", true)];
    match document.table("[service]").get("log", values::one_of(&places)) {
        Some(Located { value: true, place }) => {
            let given = [max_bytes.map(|found| found.place), keep.map(|found| found.place)];
            for place in given.into_iter().flatten() {
                let message = "is for log = \"file\" in [service]: how much of the journal is kept, journald.conf says";
                document.error(&place, message);
            }
            if !journald::is_there() {
                let message = "there is no journal on this machine, systemd does not run: the daemon logs to a file";
                document.warning(&place, message);
            }
            Log::Journal
        }
        Some(Located { value: false, .. }) | None => {
            let default = LogFiles::default();
            Log::File(LogFiles {
                max_bytes: max_bytes.map_or(default.max_bytes, |found| found.value),
                keep: keep.map_or(default.keep, |found| found.value),
            })
        }
    }
}

fn access(document: &Document<'_>) -> AccessRules {
    let table = document.table("[access]");
    let ids = |key, parse: fn(&DeValue<'_>) -> Result<u32, String>| {
        table.list(key, parse).map_or_else(Vec::new, |ids| ids.value.into_iter().map(|id| id.value).collect())
    };
    AccessRules {
        users: ids("users", values::user),
        groups: ids("groups", values::group),
        connected: table.get_or("connected", values::boolean, defaults::CONNECTED),
    }
}

fn version_rules(document: &Document<'_>) -> VersionRules {
    let table = document.table("[versions]");
    VersionRules {
        minimum: table.get("minimum", values::version).map(|minimum| minimum.value.0),
        deny: table
            .list("deny", values::requirement)
            .map_or_else(Vec::new, |rules| rules.value.into_iter().map(|rule| rule.value).collect()),
    }
}

/// A text with placeholders, all of which there is something to stand for.
fn template(subject: Subject) -> impl Fn(&DeValue<'_>) -> Result<Template, String> {
    move |value| {
        let template = values::template(value)?;
        subject.check(&template).map(|()| template)
    }
}

/// The `command` of a table: a program and its arguments.
pub(super) fn command(document: &Document<'_>, table: &Table<'_>, subject: Subject) -> Option<Located<Command>> {
    table.get("command", |value| match value.as_str() {
        Some(line) => {
            let words: Vec<&str> = line.split_whitespace().collect();
            Err(format!("no shell reads the command, it is an array{}", example(&words)))
        }
        None => Ok(()),
    })?;
    let Located { value: templates, place } = table.list("command", template(subject))?;
    let mut templates = templates.into_iter();
    let Some(program) = templates.next() else {
        document.error(&place, "is empty: write the program and its arguments, [\"/usr/bin/redis-server\"]");
        return None;
    };
    let Located { value: program, place: program_place } = program;
    if !program.is_absolute() && !program.is_bare_name() {
        let text = program.to_string();
        let what = match text.is_empty() {
            true => "the program's name is empty".to_owned(),
            false => format!("{} is a relative path{}", quoted(&text), values::home_hint(&text)),
        };
        let help = "write an absolute path, or a bare name to be found in PATH";
        document.error(&program_place, format!("{what}: {help}"));
        return None;
    }
    let arguments = templates.map(|argument| argument.value).collect();
    Some(Located { value: Command { program, arguments }, place })
}
