//! What the command line of `run` asks for, checked before a broker is asked.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use broker_client::{ProcessRequest, Request};
use broker_proto::Address;

use super::super::args::{Instance, Run};
use super::super::output::{FAILED, Failure, USAGE, harmless};
use super::super::session::one_instance;

const HOW: &str = "a command stands behind `--`: brokerctl run -- COMMAND...\n\
                   a service of kind \"process\" stands alone: brokerctl run SERVICE";

/// The process that is wanted.
pub(in crate::ctl) fn request(run: &Run) -> Result<ProcessRequest, Failure> {
    let mut request = match (&run.services[..], &run.command[..]) {
        ([], []) => return Err(wrong("nothing is named that could be run").advise(HOW)),
        ([], [program, arguments @ ..]) => command(run, program, arguments)?,
        ([service], []) => service_request(service, &run.instance)?,
        (services, []) => {
            let text = format!("`{}` are several services, and one is run", harmless(&services.join(" ")));
            return Err(wrong(text).advise(behind_dashes(services)));
        }
        (services, _) => {
            let text = format!("both a service, `{}`, and a command are named", harmless(&services.join(" ")));
            return Err(wrong(text).advise(HOW));
        }
    };
    if let Some(id) = &run.id {
        request = request.id(id.as_str());
    }
    for setting in &run.environment {
        let (name, value) = variable(setting)?;
        request = request.env(name, value);
    }
    if let Some(timeout) = run.timeout {
        if timeout.is_zero() {
            return Err(wrong("--timeout 0 leaves no time to run: leave it out to run for ever"));
        }
        request = request.timeout(timeout);
    }
    if let Some(attempts) = run.max_attempts {
        request = request.max_attempts(attempts);
    }
    if let Some(directory) = working_directory(run)? {
        request = request.working_directory(directory);
    }
    Ok(request)
}

fn wrong(text: impl Into<String>) -> Failure {
    Failure::told(USAGE, text)
}

fn behind_dashes(words: &[String]) -> String {
    format!("a command stands behind `--`: brokerctl run -- {}", harmless(&words.join(" ")))
}

fn command(run: &Run, program: &OsString, arguments: &[OsString]) -> Result<ProcessRequest, Failure> {
    if run.instance.instance.is_some() {
        return Err(wrong("--instance is for a service; a command has none"));
    }
    // A path means what it means here, wherever the command then runs.
    let program = match program.to_string_lossy().contains('/') {
        true => absolute(program.into())?.into_os_string(),
        false => program.clone(),
    };
    let words = std::iter::once(&program).chain(arguments).map(|word| text(word, "the command"));
    Ok(ProcessRequest::command(words.collect::<Result<Vec<_>, _>>()?))
}

fn service_request(name: &str, instance: &Instance) -> Result<ProcessRequest, Failure> {
    let address: Address = name.parse().map_err(|error| {
        let text = format!("`{}` is no service", harmless(name));
        Failure::because(USAGE, text, error).advise(behind_dashes(&[name.to_owned()]))
    })?;
    let mut request = Request::new(address.service.as_str());
    if let Some(requirement) = &address.requirement {
        request = request.version(requirement.as_str());
    }
    if let Some(instance) = one_instance(&address, instance)? {
        request = request.instance(instance.as_str());
    }
    Ok(ProcessRequest::service(request))
}

/// `NAME=VALUE`, or a variable of this process.
fn variable(setting: &str) -> Result<(String, String), Failure> {
    let (name, value) = match setting.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => match std::env::var_os(setting) {
            Some(value) => (setting, text(&value, &format!("the value of `{}`", harmless(setting)))?),
            None => {
                let name = harmless(setting);
                return Err(wrong(format!("`{name}` is not set here: write --env {name}=VALUE")));
            }
        },
    };
    match name.is_empty() {
        true => Err(wrong(format!("--env `{}` names no variable: write NAME=VALUE", harmless(setting)))),
        false => Ok((name.to_owned(), value)),
    }
}

/// Where it runs: a command here, unless something else is said; a service as its file says.
fn working_directory(run: &Run) -> Result<Option<String>, Failure> {
    let directory = match &run.cwd {
        Some(directory) => directory.clone(),
        None if run.command.is_empty() => return Ok(None),
        None => PathBuf::from("."),
    };
    let directory = match directory == Path::new(".") {
        true => std::env::current_dir()
            .map_err(|e| Failure::because(FAILED, "the current directory is gone; say another with --cwd", e))?,
        false => absolute(directory)?,
    };
    text(directory.as_os_str(), "the directory").map(Some)
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    let shown = path.display().to_string();
    std::path::absolute(path).map_err(|e| Failure::because(FAILED, format!("cannot tell where `{shown}` is"), e))
}

fn text(word: &std::ffi::OsStr, what: &str) -> Result<String, Failure> {
    let shown = harmless(&word.to_string_lossy());
    word.to_str()
        .map(str::to_owned)
        .ok_or_else(|| wrong(format!("{what} has bytes that are no UTF-8 text: `{shown}`; a process is told by texts")))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use broker_proto::{ProcessSpec, Target, Work};
    use clap::Parser as _;

    use super::super::super::args::{Cli, Command};
    use super::*;

    fn asked(words: &[&str]) -> Result<ProcessSpec, Failure> {
        let line = ["brokerctl", "run"].iter().chain(words).copied();
        let Command::Run(run) = Cli::try_parse_from(line).expect("well formed").command else { panic!("not run") };
        request(&run).map(ProcessRequest::into_spec)
    }

    fn refused(words: &[&str]) -> String {
        match asked(words) {
            Err(Failure::Told { code: USAGE, error, advice }) => {
                let text = super::super::super::output::chain(error.as_ref());
                advice.map_or(text.clone(), |advice| format!("{text}\n{advice}"))
            }
            other => panic!("{words:?} is not refused: {other:?}"),
        }
    }

    #[test]
    fn a_command_runs_here_and_a_service_where_its_file_says() {
        let here = std::env::current_dir().expect("a directory").display().to_string();
        let spec = asked(&["--id", "x", "-e", "A=b=c", "--", "./x.sh", "./y"]).expect("right");
        assert_eq!(spec.work, Work::Command { argv: vec![format!("{here}/x.sh"), "./y".to_owned()] });
        assert_eq!((spec.working_directory, spec.id.as_deref()), (Some(here), Some("x")));
        assert_eq!(spec.environment, [("A".to_owned(), "b=c".to_owned())]);

        let spec = asked(&["backup@^1/a"]).expect("right");
        let [instance, service, version_requirement] = ["a", "backup", "^1"].map(str::to_owned);
        assert_eq!(spec.work, Work::Service { target: Target { instance, service, version_requirement } });
        assert_eq!((spec.working_directory, spec.timeout_ms), (None, None));
        let spec = asked(&["backup", "-i", "a", "--cwd", "/srv", "--timeout", "1s", "--max-attempts", "1"]);
        let spec = spec.expect("right");
        assert_eq!((spec.working_directory.as_deref(), spec.timeout_ms), (Some("/srv"), Some(1000)));
        assert_eq!(spec.max_attempts, Some(1));
        let spec = asked(&["-e", "PATH", "--", "true"]).expect("right");
        assert_eq!(spec.environment, [("PATH".to_owned(), std::env::var("PATH").expect("set"))]);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        insta::assert_snapshot!(refused(&[]), @r#"
        nothing is named that could be run
        a command stands behind `--`: brokerctl run -- COMMAND...
        a service of kind "process" stands alone: brokerctl run SERVICE
        "#);
        insta::assert_snapshot!(refused(&["cargo", "test"]), @"
        `cargo test` are several services, and one is run
        a command stands behind `--`: brokerctl run -- cargo test
        ");
        insta::assert_snapshot!(refused(&["./x"]), @"
        `./x` is no service: service name `.` has '.': names are lower-case letters, digits, `.`, `_` and `-`, and begin with a letter or a digit
        a command stands behind `--`: brokerctl run -- ./x
        ");
        insta::assert_snapshot!(refused(&["backup", "--", "true"]), @r#"
        both a service, `backup`, and a command are named
        a command stands behind `--`: brokerctl run -- COMMAND...
        a service of kind "process" stands alone: brokerctl run SERVICE
        "#);
        insta::assert_snapshot!(refused(&["-i", "a", "--", "true"]), @"--instance is for a service; a command has none");
        insta::assert_snapshot!(refused(&["-e", "NO_SUCH_VARIABLE", "--", "true"]), @"`NO_SUCH_VARIABLE` is not set here: write --env NO_SUCH_VARIABLE=VALUE");
        insta::assert_snapshot!(refused(&["-e", "=x", "--", "true"]), @"--env `=x` names no variable: write NAME=VALUE");
        insta::assert_snapshot!(refused(&["--timeout", "0s", "--", "true"]), @"--timeout 0 leaves no time to run: leave it out to run for ever");
        insta::assert_snapshot!(refused(&["backup/a", "-i", "b"]), @"the name says instance `a`, but --instance says `b`");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert!(matches!(text(OsStr::from_bytes(b"a\xff"), "the command"), Err(Failure::Told { code: USAGE, .. })));
    }
}
