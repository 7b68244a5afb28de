//! `brokerctl check`: what is wrong with service files, and whether their programs are there. Needs no broker.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::Uid;
use semver::Version;
use serde_json::{Value, json};

use super::args;
use super::documents;
use super::output::{BAD, CARE, Console, FAILED, Failure, GOOD, paint};
use super::services::sentence;
use super::status::count;
use crate::config::{Config, ConfigError, Options, Surroundings};
use crate::core::limits::Unenforced;
use crate::process::cgroup::impossible;
use crate::process::spawn::resolve_program;
use crate::services::{
    Catalog, Command, Definition, Environment, Kind, Position, Probe, Problem, ProcessDefinition, Service, Severity,
    Template, Values, writable_by_others,
};

/// The name of the broker's own configuration file.
const CONFIGURATION: &str = "broker.toml";

/// Stands in a filled text for what is only known when a backend starts.
const UNKNOWN: &str = "\u{0}";

pub(super) fn run(console: &Console, args: &args::Check) -> Result<ExitCode, Failure> {
    let findings = if args.paths.is_empty() { Findings::of_defaults() } else { Findings::of_paths(&args.paths) };
    match if console.json { console.document(&findings.document()) } else { findings.print(console) } {
        // The verdict stands, even if nobody reads the reasons.
        Ok(()) | Err(Failure::StdoutClosed) => {}
        Err(failure) => return Err(failure),
    }
    let failed = findings.count(Severity::Error) > 0;
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// Where service files are when nobody says otherwise.
pub(super) fn default_directories() -> Vec<PathBuf> {
    match configured(None) {
        Ok(config) => config.services,
        Err(_) => Surroundings::of_process().services_dir().into_iter().collect(),
    }
}

/// The broker's configuration, as far as its files say it.
fn configured(file: Option<PathBuf>) -> Result<Config, ConfigError> {
    // Given a socket and a state directory, nothing of the environment is missed.
    let options = Options {
        config: file,
        socket: Some("/run/broker.sock".into()),
        state_dir: Some("/run".into()),
        ..Options::default()
    };
    Config::load(&options, Surroundings::of_process())
}

#[derive(Default)]
struct Findings {
    catalogs: Vec<Catalog>,
    problems: Vec<Problem>,
    /// Default directories that do not exist.
    missing: Vec<PathBuf>,
    files: usize,
}

impl Findings {
    fn of_defaults() -> Self {
        let mut findings = Self::default();
        let directories = match configured(None) {
            Ok(config) => {
                findings.files += usize::from(config.file.is_some());
                config.services
            }
            Err(error) => {
                findings.configuration_error(CONFIGURATION.as_ref(), error);
                Surroundings::of_process().services_dir().into_iter().collect()
            }
        };
        let catalog = Catalog::load(&directories);
        findings.missing.clone_from(&catalog.missing);
        findings.add(catalog);
        findings
    }

    fn of_paths(paths: &[PathBuf]) -> Self {
        let mut findings = Self::default();
        let (directories, files): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| path.is_dir());
        for file in &files {
            if file.file_name() == Some(OsStr::new(CONFIGURATION)) {
                findings.files += 1;
                if let Err(error) = configured(Some(file.clone())) {
                    findings.configuration_error(file, error);
                }
            } else {
                findings.add(Catalog::load_file(file));
            }
        }
        if !directories.is_empty() {
            findings.add(Catalog::load(&directories));
        }
        findings
    }

    fn configuration_error(&mut self, file: &Path, error: ConfigError) {
        match error {
            ConfigError::File(problems) => self.problems.extend(problems),
            other => self.problems.push(Problem::error(file, super::output::chain(&other))),
        }
    }

    fn add(&mut self, catalog: Catalog) {
        self.files += catalog.files;
        self.problems.extend(catalog.problems.iter().cloned());
        for service in catalog.services.values() {
            self.problems.extend(missing_programs(service));
            self.problems.extend(vain_limits(service));
        }
        self.catalogs.push(catalog);
    }

    fn services(&self) -> impl Iterator<Item = &Service> {
        self.catalogs.iter().flat_map(|catalog| catalog.services.values())
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    fn document(&self) -> Value {
        let service = |service: &Service| {
            let versions: Vec<String> = service.versions().iter().map(ToString::to_string).collect();
            json!({"name": service.name.as_str(), "kind": service.kind.as_str(),
                "file": service.source.display().to_string(), "versions": versions})
        };
        json!({
            "files": self.files,
            "services": self.services().map(service).collect::<Vec<_>>(),
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "problems": self.problems.iter().map(in_json).collect::<Vec<_>>(),
        })
    }

    fn print(&self, console: &Console) -> Result<(), Failure> {
        for problem in &self.problems {
            console.line(sentence(&for_people(problem)))?;
        }
        for directory in &self.missing {
            console.note(format_args!("{} does not exist: no service is defined there", directory.display()));
        }
        let versions = self.services().map(|service| service.versions().len()).sum();
        console.line(format!(
            "checked {}: {}, {}; {}, {}",
            total(self.files, "file", "files"),
            total(self.services().count(), "service", "services"),
            total(versions, "version", "versions"),
            paint(
                if self.count(Severity::Error) > 0 { BAD } else { GOOD },
                total(self.count(Severity::Error), "error", "errors")
            ),
            paint(
                if self.count(Severity::Warning) > 0 { CARE } else { GOOD },
                total(self.count(Severity::Warning), "warning", "warnings")
            ),
        ))
    }
}

fn total(number: usize, one: &str, many: &str) -> String {
    count(number as u64, one, many)
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn for_people(problem: &Problem) -> documents::Problem {
    documents::Problem {
        file: problem.file.display().to_string(),
        line: problem.position.map(|position| position.line as u64),
        column: problem.position.map(|position| position.column as u64),
        severity: severity_word(problem.severity).to_owned(),
        message: problem.message.clone(),
    }
}

fn in_json(problem: &Problem) -> Value {
    json!({
        "file": problem.file.display().to_string(),
        "line": problem.position.map(|position| position.line),
        "column": problem.position.map(|position| position.column),
        "severity": severity_word(problem.severity),
        "key": problem.key,
        "message": problem.message,
    })
}

/// A warning for each program that a version names and that is not there. No error: it may be installed later, and on
/// the machine that checks the file it may never be.
fn missing_programs(service: &Service) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for Runs { version, spelling, environment, commands } in runs(service) {
        for command in commands {
            let Err(why) = find_program(service, spelling, environment, command) else { continue };
            let message = format!("version {version} of `{}`: {why}", service.name);
            let position = written_at(&service.source, &command.program);
            let key = Some("command".to_owned());
            problems.push(Problem { position, key, ..Problem::warning(&service.source, message) });
        }
    }
    problems
}

/// Limits that nothing on this machine can enforce, once for all versions, since those share them.
fn vain_limits(service: &Service) -> Vec<Problem> {
    let limits = match &service.kind {
        Kind::Daemon(versions) => versions.values().next().map(|definition| definition.limits),
        Kind::Process(versions) => versions.values().next().map(|definition| definition.limits),
    };
    let vain = limits.map(|limits| impossible(&limits)).unwrap_or_default().into_iter();
    vain.map(|Unenforced { limit, why }| {
        let message = format!("`{limit}` in [limits] is not enforced on this machine: {why}");
        let position = begins_at(&service.source, &limit);
        Problem { position, key: Some(limit), ..Problem::warning(&service.source, message) }
    })
    .collect()
}

/// What is executed of one version.
struct Runs<'s> {
    version: &'s Version,
    spelling: &'s str,
    environment: &'s Environment,
    commands: Vec<&'s Command>,
}

fn runs(service: &Service) -> Vec<Runs<'_>> {
    match &service.kind {
        Kind::Daemon(versions) => versions
            .values()
            .map(|definition| {
                let Definition { version, spelling, environment, command, readiness, .. } = &**definition;
                let mut commands = vec![command];
                if let Probe::Exec { command } = &readiness.probe {
                    commands.push(command);
                }
                Runs { version, spelling, environment, commands }
            })
            .collect(),
        Kind::Process(versions) => versions
            .values()
            .map(|definition| {
                let ProcessDefinition { version, spelling, environment, command, .. } = &**definition;
                Runs { version, spelling, environment, commands: vec![command] }
            })
            .collect(),
    }
}

/// Looks for a command's program, as a start would. What depends on the start is taken to be there.
fn find_program(service: &Service, spelling: &str, environment: &Environment, command: &Command) -> Result<(), String> {
    let values = Values {
        endpoint: UNKNOWN,
        port: None,
        service: service.name.as_str(),
        version: spelling,
        instance: UNKNOWN,
        state_dir: UNKNOWN,
    };
    let program = command.program.fill(&values);
    let path: Option<OsString> = match environment.set.get("PATH") {
        Some(path) => Some(path.fill(&values).into()),
        None if environment.inherit.iter().any(|name| name == "PATH") => std::env::var_os("PATH"),
        None => None,
    };
    if program.contains(UNKNOWN) {
        return Ok(());
    }
    let found = resolve_program(OsStr::new(&program), path.as_deref()).map_err(|e| e.to_string())?;
    let metadata = fs::metadata(&found).map_err(|e| format!("the program `{}` cannot be run: {e}", found.display()))?;
    if !metadata.is_file() {
        return Err(format!("`{}` is no program: it is not a file", found.display()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("the program `{0}` is not executable: `chmod +x {0}`", found.display()));
    }
    match writable_by_others(&metadata, Uid::effective().as_raw()) {
        Some(why) => Err(format!("the program `{}` would not be run: {why}", found.display())),
        None => Ok(()),
    }
}

/// Where a file names the program, if it does so in the plain way.
fn written_at(file: &Path, program: &Template) -> Option<Position> {
    let text = crate::services::read_file(file).ok()?.text;
    let written = program.to_string();
    let at = text.find(&format!("\"{written}\"")).or_else(|| text.find(&format!("'{written}'")))?;
    Some(Position::of(&text, at))
}

/// Where a line of a file begins with that key.
fn begins_at(file: &Path, key: &str) -> Option<Position> {
    let text = crate::services::read_file(file).ok()?.text;
    let is_key = |at: &usize| text[..*at].rsplit('\n').next().is_some_and(|before| before.trim().is_empty());
    let at = text.match_indices(key).map(|(at, _)| at).find(is_key)?;
    Some(Position::of(&text, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(program: &str) -> Vec<String> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
        let text = format!(
            "[service]\nname = \"x\"\n\n[[version]]\nversion = \"1.2\"\ncommand = [\"{program}\", \"{{endpoint}}\"]\n"
        );
        fs::write(file.path(), text).expect("written");
        let findings = Findings::of_paths(&[file.path().to_owned()]);
        let said = |problem: &Problem| {
            let place = problem.position.map(|position| format!("{}:{}: ", position.line, position.column));
            format!("{}{}: {}", place.unwrap_or_default(), severity_word(problem.severity), problem.message)
        };
        findings.problems.iter().map(said).collect()
    }

    #[test]
    fn a_program_that_is_not_there_is_a_warning_at_its_place() {
        assert_eq!(problems("/bin/true"), [] as [&str; 0]);
        assert_eq!(problems("true"), [] as [&str; 0]);
        assert_eq!(problems("{state_dir}/x"), [] as [&str; 0]);
        let warned = |program: &str, what: &str| {
            let expected = format!("6:12: warning: version 1.2.0 of `x`: {what}");
            assert_eq!(problems(program), [expected]);
        };
        let gone = "the program `/no/such/x-1.2` cannot be run: No such file or directory (os error 2)";
        warned("/no/such/x-{version}", gone);
        warned("/etc/passwd", "the program `/etc/passwd` is not executable: `chmod +x /etc/passwd`");
        warned("/etc", "`/etc` is no program: it is not a file");
    }
}
