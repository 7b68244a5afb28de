//! What is registered: parsed, bounded, and compared with what is registered already.

use std::collections::BTreeMap;

use broker_proto::{Code, ProcessId, ProcessSpec, Refusal, Target, Work};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::core::limits::Limits;
use crate::core::millis;
use crate::reaper::folder::{Spec, utc_now};
use crate::services::problem::quoted;

/// The longest registration, in bytes of its JSON. It is part of every report about the process, and a report must fit
/// into a message.
const SPEC_BYTES_MAX: usize = 256 * 1024;

/// How often a process is started at most, unless it says otherwise; and the most that it can say.
const MAX_ATTEMPTS: u32 = 3;
const MAX_ATTEMPTS_MAX: u32 = crate::services::ATTEMPTS_MAX;

/// How many differences between two registrations are shown.
const DIFFERENCES_MAX: usize = 10;

/// From SIGTERM to SIGKILL, unless a service file says otherwise.
const STOP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// What of the broker's environment a command gets.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// What was asked for, in the form in which two registrations are compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<Vec<String>>,
    /// `SERVICE@REQUIREMENT/INSTANCE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    environment: BTreeMap<String, String>,
    working_directory: Option<String>,
    timeout_ms: Option<u64>,
    max_attempts: Option<u32>,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct Program {
    /// The service and its version, `x@1.0.0`, and the instance, if it is a service's.
    pub(in crate::daemon) service: Option<String>,
    pub(in crate::daemon) instance: Option<String>,
    pub(in crate::daemon) argv: Vec<String>,
    /// All of it.
    pub(in crate::daemon) environment: Vec<(String, String)>,
    pub(in crate::daemon) working_directory: String,
    pub(in crate::daemon) umask: u32,
    pub(in crate::daemon) timeout_ms: Option<u64>,
    pub(in crate::daemon) max_attempts: u32,
    pub(in crate::daemon) stop_signal: i32,
    pub(in crate::daemon) stop_timeout_ms: u64,
    /// A folder that must be there, which is the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::daemon) state_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub(in crate::daemon) limits: Limits,
}

impl Program {
    /// A command with the broker's defaults.
    fn of_command(argv: Vec<String>) -> Self {
        let inherited = INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        Self {
            service: None,
            instance: None,
            argv,
            environment: inherited.collect(),
            working_directory: "/".to_owned(),
            umask: 0o077,
            timeout_ms: None,
            max_attempts: MAX_ATTEMPTS,
            stop_signal: Signal::SIGTERM as i32,
            stop_timeout_ms: millis(STOP_TIMEOUT),
            state_dir: None,
            limits: Limits::default(),
        }
    }

    /// What its reaper reads.
    pub(super) fn spec(&self, id: &ProcessId, fencing_token: i64, record: String) -> Spec {
        let program = self.clone();
        Spec {
            id: id.to_string(),
            fencing_token,
            record,
            argv: program.argv,
            environment: program.environment,
            working_directory: program.working_directory,
            umask: program.umask,
            timeout_ms: program.timeout_ms,
            stop_signal: program.stop_signal,
            stop_timeout_ms: program.stop_timeout_ms,
            limits: program.limits,
        }
    }
}

/// A process to be registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Registration {
    #[serde(with = "id_as_text")]
    pub(super) id: ProcessId,
    pub(super) registered_at: String,
    pub(super) asked: Asked,
    pub(super) program: Program,
}

impl Registration {
    /// Reads what a peer sent. `resolve` knows the services.
    pub(super) fn parse(
        spec: ProcessSpec,
        resolve: impl FnOnce(&Target) -> Result<Program, Box<Refusal>>,
    ) -> Result<Self, Box<Refusal>> {
        let ProcessSpec { id, work, environment, working_directory, timeout_ms, max_attempts } = spec;
        let id = match id {
            Some(id) => ProcessId::parse(&id).map_err(|error| malformed(error.to_string()))?,
            None => fresh_id()?,
        };
        let (command, service, mut program) = match work {
            Work::Command { argv } => {
                check_argv(&argv)?;
                (Some(argv.clone()), None, Program::of_command(argv))
            }
            Work::Service { target } => {
                let program = resolve(&target)?;
                let named = format!("{}@{}/{}", target.service, target.version_requirement, target.instance);
                (None, Some(named), program)
            }
        };
        for (name, value) in &environment {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(malformed(format!("{} cannot be the name of an environment variable", quoted(name))));
            }
            if value.contains('\0') {
                return Err(malformed(format!(
                    "the value of {} holds a NUL byte, which no variable can",
                    quoted(name)
                )));
            }
        }
        if let Some(folder) = &working_directory {
            if !folder.starts_with('/') || folder.contains('\0') {
                return Err(malformed(format!("the working directory {} is no absolute path", quoted(folder))));
            }
            program.working_directory.clone_from(folder);
        }
        match max_attempts {
            Some(0) => return Err(malformed("a process that may be started 0 times is never run".to_owned())),
            Some(attempts) if attempts > MAX_ATTEMPTS_MAX => {
                return Err(malformed(format!("{attempts} attempts are more than {MAX_ATTEMPTS_MAX}, the limit")));
            }
            Some(attempts) => program.max_attempts = attempts,
            None => {}
        }
        if timeout_ms == Some(0) {
            return Err(malformed("a timeout must be longer than zero".to_owned()));
        }
        program.timeout_ms = timeout_ms.or(program.timeout_ms);
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        program.environment.retain(|(name, _)| !environment.contains_key(name));
        program.environment.extend(environment.clone());
        let asked = Asked { command, service, environment, working_directory, timeout_ms, max_attempts };
        let bytes = [serde_json::to_vec(&asked), serde_json::to_vec(&program)].map(|json| json.map_or(0, |j| j.len()));
        if let Some(bytes) = bytes.into_iter().find(|bytes| *bytes > SPEC_BYTES_MAX) {
            let reason = format!(
                "arguments and environment are {bytes} bytes long, the limit is {SPEC_BYTES_MAX}: pass what is long in a \
                 file"
            );
            return Err(malformed(reason));
        }
        Ok(Self { id, registered_at: utc_now(), asked, program })
    }

    /// Whether this is the same as what is registered already; else how it differs, field by field.
    pub(super) fn compare(&self, there: &Asked) -> Result<(), Box<Refusal>> {
        if self.asked == *there {
            return Ok(());
        }
        let here = &self.asked;
        let words = |argv: &Option<Vec<String>>| argv.as_ref().map(|argv| argv.join(" "));
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let mut differences = Vec::new();
        let mut compare = |what: String, there: Option<String>, here: Option<String>| {
            if there != here {
                let skipped = alike(there.as_deref(), here.as_deref());
                let show = |value: Option<String>| value.map_or("none".to_owned(), |value| tail(&value, skipped));
                differences.push(format!("{what}: {} there, {} here", show(there), show(here)));
            }
        };
        compare("command".to_owned(), words(&there.command), words(&here.command));
        compare("service".to_owned(), there.service.clone(), here.service.clone());
        let names = there.environment.keys().chain(here.environment.keys()).collect::<std::collections::BTreeSet<_>>();
        for name in names {
            let value = |asked: &Asked| asked.environment.get(name).cloned();
            compare(format!("environment {}", quoted(name)), value(there), value(here));
        }
        compare("working directory".to_owned(), there.working_directory.clone(), here.working_directory.clone());
        let milliseconds = |ms: Option<u64>| number(ms).map(|ms| format!("{ms} ms"));
        compare("timeout".to_owned(), milliseconds(there.timeout_ms), milliseconds(here.timeout_ms));
        let attempts = |asked: &Asked| number(asked.max_attempts.map(u64::from));
        compare("attempts".to_owned(), attempts(there), attempts(here));
        if differences.is_empty() {
            // The words are the same and their borders are not: `a "b c"`.
            differences.push("command: the same words, divided otherwise".to_owned());
        }
        let more = differences.len().saturating_sub(DIFFERENCES_MAX);
        differences.truncate(DIFFERENCES_MAX);
        if more > 0 {
            differences.push(format!("and {more} more"));
        }
        Err(malformed(format!(
            "process `{}` is registered already with other content: {}",
            self.id,
            differences.join("; ")
        )))
    }
}

/// How many characters long texts have in common at their beginning and can do without, so that what a message shows of
/// them is where they differ.
fn alike(one: Option<&str>, other: Option<&str>) -> usize {
    const SHORT: usize = 50;
    const CONTEXT: usize = 15;
    let (one, other) = (one.unwrap_or_default(), other.unwrap_or_default());
    let common = one.chars().zip(other.chars()).take_while(|(one, other)| one == other).count();
    let is_long = one.chars().count().max(other.chars().count()) > SHORT;
    if is_long { common.saturating_sub(CONTEXT) } else { 0 }
}

fn tail(text: &str, skipped: usize) -> String {
    if skipped == 0 {
        return quoted(text);
    }
    let rest: String = text.chars().skip(skipped).collect();
    quoted(&format!("…{rest}"))
}

mod id_as_text {
    //! An id as the text that it is.

    use broker_proto::ProcessId;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(id: &ProcessId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ProcessId, D::Error> {
        ProcessId::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

fn check_argv(argv: &[String]) -> Result<(), Box<Refusal>> {
    let program = argv.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| malformed("there is no command to run".to_owned()))?;
    if program.contains('/') && !program.starts_with('/') {
        let name = quoted(program);
        return Err(malformed(format!("{name} is a relative path; write an absolute one, or a bare name in PATH")));
    }
    match argv.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => Err(malformed(format!("{} holds a NUL byte, which no argument can", quoted(argument)))),
        None => Ok(()),
    }
}

pub(super) fn malformed(reason: String) -> Box<Refusal> {
    Box::new(Refusal::new(Code::Malformed, reason))
}

/// An id that nobody has: 60 random bits.
fn fresh_id() -> Result<ProcessId, Box<Refusal>> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let random: String = (0..12).map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())])).collect();
    ProcessId::parse(&format!("p-{random}")).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(argv: &[&str]) -> ProcessSpec {
        ProcessSpec {
            id: Some("x".to_owned()),
            work: Work::Command { argv: argv.iter().map(|&word| word.to_owned()).collect() },
            environment: Vec::new(),
            working_directory: None,
            timeout_ms: None,
            max_attempts: None,
        }
    }

    fn parse(spec: ProcessSpec) -> Result<Registration, String> {
        Registration::parse(spec, |_| unreachable!("no service")).map_err(|refusal| refusal.reason)
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn the_same_is_the_same_and_another_shows_every_difference() {
        let one = parse(spec(&["sleep", "1"])).expect("valid");
        assert!(one.compare(&one.asked).is_ok());
        let mut other = spec(&["sleep", "2"]);
        other.timeout_ms = Some(500);
        other.environment = environment(&[("A", "1"), ("B", "2")]);
        let other = parse(other).expect("valid");
        let reason = other.compare(&one.asked).expect_err("another").reason;
        insta::assert_snapshot!(reason, @"process `x` is registered already with other content: command: `sleep 1` there, `sleep 2` here; environment `A`: none there, `1` here; environment `B`: none there, `2` here; timeout: none there, `500 ms` here");
        let long = |end: &str| parse(spec(&["sleep", &"0".repeat(200), end])).expect("valid");
        let reason = long("2").compare(&long("1").asked).expect_err("another").reason;
        assert!(reason.ends_with("command: `…00000000000000 1` there, `…00000000000000 2` here"), "{reason}");
        let mut many = spec(&["sleep", "1"]);
        many.environment = (0..100).map(|number| (format!("V{number}"), String::new())).collect();
        let reason = parse(many).expect("valid").compare(&one.asked).expect_err("another").reason;
        assert!(reason.ends_with("; and 90 more") && reason.len() < 1000, "{reason}");
        let joined = parse(spec(&["sleep 1"])).expect("valid");
        assert!(joined.compare(&one.asked).expect_err("another").reason.ends_with("divided otherwise"));
    }

    #[test]
    fn the_order_and_repetition_of_variables_make_no_difference() {
        let with = |pairs| parse(ProcessSpec { environment: environment(pairs), ..spec(&["env"]) }).expect("valid");
        let one = with(&[("A", "0"), ("B", "2"), ("A", "1")]);
        assert!(one.compare(&with(&[("A", "1"), ("B", "2")]).asked).is_ok());
        let own = |name: &str| one.program.environment.iter().filter(|(n, _)| n == name).count();
        assert_eq!((own("A"), own("B"), own("PATH")), (1, 1, 1));
    }

    #[test]
    fn what_cannot_be_run_is_malformed_and_says_why() {
        let error = |spec| parse(spec).expect_err("malformed");
        insta::assert_snapshot!(error(spec(&[])), @"there is no command to run");
        insta::assert_snapshot!(error(spec(&["./x"])), @"`./x` is a relative path; write an absolute one, or a bare name in PATH");
        insta::assert_snapshot!(error(spec(&["x", "a\0"])), @r"`a\0` holds a NUL byte, which no argument can");
        insta::assert_snapshot!(error(ProcessSpec { max_attempts: Some(0), ..spec(&["x"]) }), @"a process that may be started 0 times is never run");
        insta::assert_snapshot!(error(ProcessSpec { working_directory: Some("tmp".to_owned()), ..spec(&["x"]) }), @"the working directory `tmp` is no absolute path");
        insta::assert_snapshot!(error(ProcessSpec { environment: environment(&[("A=B", "")]), ..spec(&["x"]) }), @"`A=B` cannot be the name of an environment variable");
        assert!(error(ProcessSpec { id: Some("A".to_owned()), ..spec(&["x"]) }).starts_with("process id `A`"));
        assert!(error(spec(&["x", &"y".repeat(SPEC_BYTES_MAX)])).contains("the limit is 262144"));
    }

    #[test]
    fn an_id_is_made_where_none_is_given() {
        let made = |_| parse(ProcessSpec { id: None, ..spec(&["x"]) }).expect("valid").id;
        let ids: std::collections::HashSet<_> = (0..100).map(made).collect();
        assert_eq!(ids.len(), 100);
    }
}
