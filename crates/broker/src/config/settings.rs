//! The configuration file `broker.toml`: its keys, their defaults, and what they mean.
//!
//! Owns what the file can say. Which file is read, and what the command line says instead, is decided above.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::{AdminGroup, Cgroups, IdleExit, Limits, Log, LogFormat};
use crate::services::Problem;
use crate::services::problem::quoted;
use crate::services::reader::{self, Document, Schema};
use crate::services::values;

/// All keys of `broker.toml`.
const SCHEMA: Schema = &[
    (
        "",
        &[
            "socket",
            "socket_group",
            "admin_group",
            "state_dir",
            "services",
            "idle_exit",
            "busy_poll",
            "cgroups",
            "log",
            "limits",
            "processes",
        ],
    ),
    ("[log]", &["format", "level", "directory", "keep"]),
    ("[limits]", &["backends", "waiters_per_backend", "sessions_per_user", "first_message_timeout"]),
    ("[processes]", &["store", "lease", "concurrent"]),
];

/// What of the broker's own log is written, unless the file says otherwise.
const LOG_LEVEL: &str = "info";

/// How many files of the broker's own log are kept: a week of one a day.
const LOG_KEEP: usize = 7;

/// The most live backends. Each is a process with a log, a pidfd and an endpoint.
const BACKENDS: usize = 1024;

/// The most clients that wait for one start. Each is a reply of a few hundred bytes that is owed.
const WAITERS_PER_BACKEND: usize = 16_384;

/// The most sessions of one user. Each is a descriptor and a few kilobytes.
const SESSIONS_PER_USER: usize = 8192;

/// How long a connected peer may take to send its whole first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// More than a client takes from an answer to its next request.
const BUSY_POLL_MAX: Duration = Duration::from_millis(1);

/// How long a durable process is a broker's without a renewal. A broker that dies is passed over at once; this is for one
/// that is stopped.
const LEASE: Duration = Duration::from_secs(30);
const LEASE_MIN: Duration = Duration::from_millis(100);

/// The most durable processes that a broker runs at once; what is more waits.
const CONCURRENT: usize = 64;

/// No limit can be set higher, so that a mistyped number is noticed. Linux has at most 2^22 processes.
const LIMIT_MAX: u64 = 1 << 22;

/// What the file says. Where a default depends on more than the file, `None` is that it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) socket_group: Option<u32>,
    pub(crate) admin_group: Option<AdminGroup>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) services: Option<Vec<PathBuf>>,
    pub(crate) idle_exit: IdleExit,
    pub(crate) busy_poll: Duration,
    pub(crate) cgroups: Cgroups,
    pub(crate) log: Log,
    pub(crate) limits: Limits,
    pub(crate) processes: ProcessSettings,
}

/// What the file says of durable processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessSettings {
    pub(crate) store: Option<PathBuf>,
    pub(crate) lease: Duration,
    pub(crate) concurrent: usize,
}

/// Reads the text of the file. The empty text is valid and says nothing. The settings are there if no problem is an
/// error.
pub(crate) fn parse(file: &Path, text: &str) -> (Option<Settings>, Vec<Problem>) {
    reader::read(file, text, SCHEMA, |document| Some(build(document)))
}

fn build(document: &Document<'_>) -> Settings {
    let top = document.table("");
    let log = document.table("[log]");
    let limits = document.table("[limits]");
    let limit = |key, default| limits.get_or(key, values::number(1..=LIMIT_MAX), default);
    let processes = document.table("[processes]");
    let services = top.list("services", values::absolute_path);
    let format = log.get("format", values::one_of(&LogFormat::WORDS));
    let directory = log.get("directory", values::absolute_path);
    if let (Some(format), Some(directory)) = (&format, &directory)
        && format.value == LogFormat::Journal
    {
        document.error(&directory.place, "the journal is in no folder of ours: leave it out, or `format`");
    }
    Settings {
        socket: top.get("socket", values::socket_path).map(|socket| socket.value),
        socket_group: top.get("socket_group", values::group).map(|group| group.value),
        admin_group: top.get("admin_group", values::group).map(|group| AdminGroup::of(group.value)),
        state_dir: top.get("state_dir", values::absolute_path).map(|directory| directory.value),
        services: services.map(|list| list.value.into_iter().map(|directory| directory.value).collect()),
        idle_exit: top.get_or("idle_exit", idle_exit, IdleExit(None)),
        busy_poll: top.get_or("busy_poll", busy_poll, Duration::ZERO),
        cgroups: top.get_or("cgroups", values::one_of(&Cgroups::WORDS), Cgroups::Auto),
        log: Log {
            format: format.map(|format| format.value),
            level: log.get_or("level", level, LOG_LEVEL.to_owned()),
            directory: directory.map(|directory| directory.value),
            keep: log.get_or("keep", values::number(1..=LIMIT_MAX), LOG_KEEP),
        },
        limits: Limits {
            backends: limit("backends", BACKENDS),
            waiters_per_backend: limit("waiters_per_backend", WAITERS_PER_BACKEND),
            sessions_per_user: limit("sessions_per_user", SESSIONS_PER_USER),
            first_message_timeout: limits.get_or(
                "first_message_timeout",
                values::positive_duration,
                FIRST_MESSAGE_TIMEOUT,
            ),
        },
        processes: ProcessSettings {
            store: processes.get("store", values::absolute_path).map(|store| store.value),
            lease: processes.get_or("lease", lease, LEASE),
            concurrent: processes.get_or("concurrent", values::number(1..=LIMIT_MAX), CONCURRENT),
        },
    }
}

/// How long a durable process is a broker's without a renewal.
fn lease(value: &DeValue<'_>) -> Result<Duration, String> {
    let lease = values::positive_duration(value)?;
    if lease < LEASE_MIN {
        return Err(format!("must be at least {LEASE_MIN:?}: it is renewed three times in its life"));
    }
    Ok(lease)
}

/// After which time to leave: a duration longer than zero, or `never`.
pub(super) fn idle_exit(value: &DeValue<'_>) -> Result<IdleExit, String> {
    match value.as_str().map(str::trim) {
        Some("never") => Ok(IdleExit(None)),
        _ => {
            let after = values::positive_duration(value).map_err(|error| format!("{error}, or \"never\""))?;
            Ok(IdleExit(Some(after)))
        }
    }
}

/// How long to stay awake after an answer: at most [`BUSY_POLL_MAX`], or `off`, which is zero.
fn busy_poll(value: &DeValue<'_>) -> Result<Duration, String> {
    if value.as_str().map(str::trim) == Some("off") {
        return Ok(Duration::ZERO);
    }
    let busy_poll = values::positive_duration(value).map_err(|error| format!("{error}, or \"off\""))?;
    match busy_poll <= BUSY_POLL_MAX {
        true => Ok(busy_poll),
        false => Err(format!(
            "must be at most {BUSY_POLL_MAX:?}: the broker takes a processor for that long after each answer"
        )),
    }
}

/// A filter of the broker's own log: `info`, or `warn,broker=debug`.
fn level(value: &DeValue<'_>) -> Result<String, String> {
    const LEVELS: [(&str, ()); 6] =
        [("off", ()), ("error", ()), ("warn", ()), ("info", ()), ("debug", ()), ("trace", ())];
    let filter = values::text(value)?;
    // The filter's own parser takes a mistyped level for the name of a module.
    for word in filter.split(',').filter(|directive| !directive.contains(['=', '['])) {
        let word = DeValue::String(word.trim().to_lowercase().into());
        values::one_of(&LEVELS)(&word).map_err(|error| format!("{error} (a module is written module=level)"))?;
    }
    match Log::filter(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => Err(format!("{} is no filter: {error}", quoted(&filter))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        let (settings, problems) = parse(Path::new("broker.toml"), text);
        assert_eq!(settings.is_some(), problems.is_empty());
        problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_empty_file_says_nothing() {
        let (settings, problems) = parse(Path::new("broker.toml"), "");
        assert_eq!(problems, []);
        let settings = settings.expect("valid");
        assert_eq!((settings.socket, settings.socket_group, settings.state_dir, settings.services), Default::default());
        assert_eq!((settings.idle_exit, settings.log.level.as_str()), (IdleExit(None), "info"));
        assert_eq!(settings.cgroups, Cgroups::Auto);
        assert_eq!(settings.limits.sessions_per_user, 8192);
        assert_eq!((settings.processes.store, settings.processes.lease), (None, LEASE));
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            socket = "/run/b/b.sock"
            socket_group = "root"
            admin_group = 0
            state_dir = "/var/lib/b"
            services = ["/etc/b", "/usr/share/b"]
            idle_exit = "10m"
            busy_poll = "50us"
            cgroups = "off"
            [log]
            format = "json"
            level = "warn,broker=debug"
            directory = "/var/log/b"
            keep = 3
            [limits]
            backends = 1
            waiters_per_backend = 2
            sessions_per_user = 3
            first_message_timeout = "1m 30s"
            [processes]
            store = "/var/lib/shared"
            lease = "5s"
            concurrent = 4
        "#;
        let (settings, problems) = parse(Path::new("broker.toml"), text);
        assert_eq!(problems, []);
        let expect = Settings {
            socket: Some("/run/b/b.sock".into()),
            socket_group: Some(0),
            admin_group: Some(AdminGroup { gid: 0, name: "root".to_owned() }),
            state_dir: Some("/var/lib/b".into()),
            services: Some(vec!["/etc/b".into(), "/usr/share/b".into()]),
            idle_exit: IdleExit(Some(Duration::from_secs(600))),
            busy_poll: Duration::from_micros(50),
            cgroups: Cgroups::Off,
            log: Log {
                format: Some(LogFormat::Json),
                level: "warn,broker=debug".to_owned(),
                directory: Some("/var/log/b".into()),
                keep: 3,
            },
            limits: Limits {
                backends: 1,
                waiters_per_backend: 2,
                sessions_per_user: 3,
                first_message_timeout: Duration::from_secs(90),
            },
            processes: ProcessSettings {
                store: Some("/var/lib/shared".into()),
                lease: Duration::from_secs(5),
                concurrent: 4,
            },
        };
        assert_eq!(settings, Some(expect));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let text = r#"
socket = "broker.sock"
socket_group = "no-such-group"
sevices = ["/etc/b"]
backends = 7
[log]
format = "jsno"
level = "inof"
keep = 0
[limits]
backends = -1
first_message_timeout = 5
[limit]
"#;
        insta::assert_snapshot!(problems(text), @r#"
broker.toml:2:10: `socket`: `broker.sock` is not an absolute path
broker.toml:3:16: `socket_group`: there is no group `no-such-group` on this machine
broker.toml:4:1: unknown key `sevices` at the top of the file, did you mean `services`?
broker.toml:5:1: unknown key `backends` at the top of the file, it belongs in [limits]
broker.toml:7:10: `format` in [log]: expected `text`, `json` or `journal`, found `jsno`, did you mean `json`?
broker.toml:8:9: `level` in [log]: expected `off`, `error`, `warn`, `info`, `debug` or `trace`, found `inof`, did you mean `info`? (a module is written module=level)
broker.toml:9:8: `keep` in [log]: expected a whole number from 1 to 4194304, found the number `0`
broker.toml:11:12: `backends` in [limits]: expected a whole number from 1 to 4194304, found the number `-1`
broker.toml:12:25: `first_message_timeout` in [limits]: `5` has no unit: write "5s" or "5ms"
broker.toml:13:2: unknown table `[limit]`, did you mean `[limits]`?
"#);
    }

    #[test]
    fn the_journal_is_in_no_folder() {
        assert_eq!(problems("[log]\nformat = \"journal\""), "");
        insta::assert_snapshot!(problems("[log]\nformat = \"journal\"\ndirectory = \"/l\""), @"broker.toml:3:13: `directory` in [log]: the journal is in no folder of ours: leave it out, or `format`");
    }

    #[test]
    fn a_broker_leaves_after_a_time_with_a_unit_or_never() {
        assert_eq!(problems("idle_exit = \"never\""), "");
        assert_eq!(problems("busy_poll = \"off\""), "");
        insta::assert_snapshot!(problems("busy_poll = \"2ms\""), @r#"broker.toml:1:13: `busy_poll`: must be at most 1ms: the broker takes a processor for that long after each answer"#);
        insta::assert_snapshot!(problems("busy_poll = \"0s\""), @r#"broker.toml:1:13: `busy_poll`: must be longer than zero, or "off""#);
        insta::assert_snapshot!(problems("idle_exit = 10"), @r#"broker.toml:1:13: `idle_exit`: `10` has no unit: write "10s" or "10ms", or "never""#);
        insta::assert_snapshot!(problems("idle_exit = \"0s\""), @r#"broker.toml:1:13: `idle_exit`: must be longer than zero, or "never""#);
        insta::assert_snapshot!(problems("idle_exit = \"nevr\""), @r#"broker.toml:1:13: `idle_exit`: `nevr` is no duration: write durations as "250ms", "10s" or "1m 30s", or "never""#);
        insta::assert_snapshot!(problems("idle_exti = \"10m\""), @r#"broker.toml:1:1: unknown key `idle_exti` at the top of the file, did you mean `idle_exit`?"#);
    }

    #[test]
    fn a_lease_is_long_enough_to_be_renewed() {
        assert_eq!(problems("[processes]\nlease = \"100ms\""), "");
        insta::assert_snapshot!(problems("[processes]\nlease = \"99ms\"\nstore = \"x\"\nconcurrent = 0"), @r"
broker.toml:2:9: `lease` in [processes]: must be at least 100ms: it is renewed three times in its life
broker.toml:3:9: `store` in [processes]: `x` is not an absolute path
broker.toml:4:14: `concurrent` in [processes]: expected a whole number from 1 to 4194304, found the number `0`
");
    }

    #[test]
    fn a_list_says_how_it_is_written() {
        insta::assert_snapshot!(problems("services = \"/etc/b\""), @r#"broker.toml:1:12: `services`: expected an array, found the string `/etc/b`: write ["/etc/b"]"#);
        insta::assert_snapshot!(problems("[log]\nlevel = \"broker=loud\""), @r#"broker.toml:2:9: `level` in [log]: `broker=loud` is no filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5"#);
    }
}
