//! What a definition says is run: the daemon's command and its probe's, with everything filled in.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use broker_proto::{Code, Endpoint, InstanceName, Refusal};

use super::failed::refusal_of_spawn;
use crate::process::spawn::{Command, resolve_program};
use crate::services::{self, Definition, Probe, Values};

/// What is filled in, and what is passed on.
pub(in crate::daemon) struct Surroundings<'s> {
    pub(in crate::daemon) definition: &'s Definition,
    pub(in crate::daemon) instance: &'s InstanceName,
    pub(in crate::daemon) endpoint: &'s Endpoint,
    pub(in crate::daemon) data: &'s Path,
    pub(in crate::daemon) notify: Option<&'s Path>,
    pub(in crate::daemon) nofile_soft: Option<u64>,
}

/// The programs, found, and what they are run with.
pub(in crate::daemon) struct Commands {
    environment: Vec<(OsString, OsString)>,
    /// As the service file names it, and where it is.
    daemon: (String, PathBuf),
    probe: Option<(String, PathBuf)>,
}

impl Commands {
    /// Looks for the programs.
    pub(in crate::daemon) fn find(surroundings: &Surroundings<'_>) -> Result<Self, Box<Refusal>> {
        let definition = surroundings.definition;
        let (address, data) = surroundings.texts();
        let values = surroundings.values(&address, &data);
        let mut environment = environment(&definition.environment, &values);
        if let Some(notify) = surroundings.notify {
            environment.push(("NOTIFY_SOCKET".into(), notify.into()));
        }
        let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_ref());
        let find = |command: &services::Command| -> Result<(String, PathBuf), Box<Refusal>> {
            let program = command.program.fill(&values);
            let found = find_program(&program, path)?;
            Ok((program, found))
        };
        let daemon = find(&definition.command)?;
        let probe = probe_of(definition).map(find).transpose()?;
        Ok(Self { environment, daemon, probe })
    }

    /// The daemon's command and its probe's, which write to the start's log.
    pub(in crate::daemon) fn with_output(
        self,
        surroundings: &Surroundings<'_>,
        output: &Arc<OwnedFd>,
    ) -> (Command, Option<Command>) {
        let definition = surroundings.definition;
        let (address, data) = surroundings.texts();
        let values = surroundings.values(&address, &data);
        let command = |command: &services::Command, (name, program): (String, PathBuf)| {
            let arguments = command.arguments.iter().map(|argument| argument.fill(&values).into());
            Command {
                program,
                argv: std::iter::once(OsString::from(name)).chain(arguments).collect(),
                environment: self.environment.clone(),
                working_directory: definition.lifecycle.working_directory.fill(&values).into(),
                umask: definition.lifecycle.umask,
                stdout: Arc::clone(output),
                stderr: Arc::clone(output),
                listen: Vec::new(),
                die_with_parent: true,
                record: None,
                cgroup: None,
                nofile_soft: surroundings.nofile_soft,
                nofile: definition.limits.nofile,
            }
        };
        let probe = probe_of(definition).zip(self.probe).map(|(declared, found)| command(declared, found));
        (command(&definition.command, self.daemon), probe)
    }
}

impl Surroundings<'_> {
    /// Whether a command looks whether the daemon is ready.
    pub(in crate::daemon) fn has_probe(&self) -> bool {
        probe_of(self.definition).is_some()
    }

    fn texts(&self) -> (String, String) {
        (self.endpoint.address(), self.data.to_string_lossy().into_owned())
    }

    fn values<'v>(&'v self, address: &'v str, data: &'v str) -> Values<'v> {
        Values {
            endpoint: address,
            port: match self.endpoint {
                Endpoint::Tcp { port, .. } => Some(*port),
                Endpoint::Unix { .. } => None,
            },
            service: self.definition.service.as_str(),
            version: &self.definition.spelling,
            instance: self.instance.as_str(),
            state_dir: data,
        }
    }
}

fn probe_of(definition: &Definition) -> Option<&services::Command> {
    match &definition.readiness.probe {
        Probe::Exec { command } => Some(command),
        Probe::Connect | Probe::Notify | Probe::Socket { .. } => None,
    }
}

/// Finds a program in the `PATH` of its environment, or the broker's own, and checks that it may be run.
pub(in crate::daemon) fn find_program(program: &str, path: Option<&OsStr>) -> Result<PathBuf, Box<Refusal>> {
    let own = std::env::var_os("PATH");
    let found = resolve_program(program.as_ref(), path.or(own.as_deref())).map_err(|e| refusal_of_spawn(&e))?;
    check_program(&found)?;
    Ok(found)
}

/// A program that others can write is theirs to choose, and is not run.
fn check_program(program: &Path) -> Result<(), Box<Refusal>> {
    let uid = nix::unistd::getuid().as_raw();
    match program.metadata().ok().and_then(|metadata| services::writable_by_others(&metadata, uid)) {
        Some(why) => {
            Err(Box::new(Refusal::new(Code::SpawnFailed, format!("`{}` is not run: {why}", program.display()))))
        }
        None => Ok(()),
    }
}

/// Exactly what is declared.
pub(in crate::daemon) fn environment(
    declared: &services::Environment,
    values: &Values<'_>,
) -> Vec<(OsString, OsString)> {
    let inherited = declared.inherit.iter().filter(|name| !declared.set.contains_key(*name));
    let inherited = inherited.filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let set = declared.set.iter().map(|(name, value)| (name.into(), value.fill(values).into()));
    inherited.chain(set).collect()
}
