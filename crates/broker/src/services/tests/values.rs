//! What the values of a good service file mean.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::{Severity, schema};
use super::{NAMED, VERSION, daemons, definition, service};
use crate::core::limits::Limits;
use crate::services::definition::{Lifecycle, LogFiles, Recovery};
use crate::services::{Endpoint, Log, Probe, Resume, Template};

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn the_least_file_has_all_defaults() {
    let service = service(&format!("{NAMED}{VERSION}"));
    assert_eq!((service.name.as_str(), service.description.as_str()), ("redis", ""));
    assert_eq!((service.version_rules, service.access), Default::default());
    let definition = definition("");
    assert_eq!((definition.version.to_string().as_str(), definition.spelling.as_str()), ("7.0.0", "7"));
    assert_eq!(definition.environment.inherit, ["PATH", "HOME", "LANG"]);
    assert!(definition.environment.set.is_empty());
    assert_eq!(definition.endpoint, Endpoint::Unix { path: None });
    assert_eq!((&definition.readiness.probe, definition.readiness.hard_ceiling), (&Probe::Connect, MS(60_000)));
    let recovery = Recovery { retry_backoff: MS(250), budget_window: MS(30_000), healthy_after: MS(10_000) };
    assert_eq!(definition.recovery, recovery);
    let lifecycle = Lifecycle {
        idle_timeout: None,
        stop_signal: Signal::SIGTERM,
        stop_timeout: MS(10_000),
        working_directory: Template::literal("/"),
        umask: 0o077,
    };
    assert_eq!(definition.lifecycle, lifecycle);
    assert_eq!(definition.session.resume, Resume::None);
    assert_eq!(definition.log, Log::File(LogFiles { max_bytes: 16 * 1024 * 1024, keep: 5 }));
    assert!(definition.limits.is_empty());
    let written = serde_json::to_string(&definition).expect("plain data");
    assert!(!written.contains("limits"), "as releases without limits wrote it: {written}");
}

#[test]
fn limits_are_read_and_make_another_definition() {
    let limited = definition("[limits]\nmemory_max = \"512MiB\"\ntasks_max = 100\ncpu_weight = 50\nnofile = 1024\n");
    let expected =
        Limits { memory_max: Some(512 << 20), tasks_max: Some(100), cpu_weight: Some(50), nofile: Some(1024) };
    assert_eq!(limited.limits, expected);
    assert_ne!(limited, definition(""));
    let again = serde_json::to_string(&limited).and_then(|text| serde_json::from_str(&text)).expect("plain data");
    assert_eq!(limited, again);
}

#[test]
fn every_key_of_the_design_is_read() {
    let service = service(
        r#"
        [service]
        name = "redis"
        description = "An in-memory store"
        [[version]]
        version = "7.0.15"
        command = ["/usr/bin/redis-server", "--port", "0", "--unixsocket", "{endpoint}"]
        [versions]
        minimum = "7.0.0"
        deny = ["7.0.3", "<7"]
        [service.environment]
        inherit = ["PATH"]
        set = { RUST_LOG = "info", WHO = "{service}/{instance}" }
        [endpoint]
        kind = "unix"
        path = "/run/x.sock"
        [readiness]
        probe = "exec"
        command = ["redis-cli", "-s", "{endpoint}", "ping"]
        hard_ceiling = "1m 30s"
        [recovery]
        retry_backoff = "0s"
        budget_window = "30s"
        healthy_after = "1.5s"
        [lifecycle]
        idle_timeout = "1d"
        stop_signal = "INT"
        stop_timeout = "0s"
        working_directory = "{state_dir}/data"
        umask = "0022"
        [session]
        resume = "reconnect"
        [log]
        max_bytes = "1MiB"
        keep = 0
        [access]
        users = ["root", 1000, "1001"]
        groups = ["root"]
        connected = true
        "#,
    );
    assert_eq!(service.description, "An in-memory store");
    assert_eq!(service.version_rules.minimum.as_ref().map(ToString::to_string).as_deref(), Some("7.0.0"));
    assert_eq!(service.version_rules.deny.len(), 2);
    assert_eq!((&service.access.users, &service.access.groups), (&vec![0, 1000, 1001], &vec![0]));
    assert!(service.access.connected);
    let definition = &daemons(&service)[&semver::Version::new(7, 0, 15)];
    assert_eq!(definition.command.program.to_string(), "/usr/bin/redis-server");
    assert_eq!(definition.command.arguments.len(), 4);
    assert_eq!(definition.environment.inherit, ["PATH"]);
    assert_eq!(definition.environment.set["WHO"].to_string(), "{service}/{instance}");
    assert_eq!(definition.endpoint, Endpoint::Unix { path: Some(PathBuf::from("/run/x.sock")) });
    let Probe::Exec { command } = &definition.readiness.probe else { panic!("{:?}", definition.readiness) };
    assert_eq!((command.program.to_string().as_str(), command.arguments.len()), ("redis-cli", 3));
    assert_eq!(definition.readiness.hard_ceiling, MS(90_000));
    let recovery = Recovery { retry_backoff: MS(0), budget_window: MS(30_000), healthy_after: MS(1500) };
    assert_eq!(definition.recovery, recovery);
    let lifecycle = &definition.lifecycle;
    assert_eq!((lifecycle.idle_timeout, lifecycle.stop_timeout), (Some(MS(86_400_000)), MS(0)));
    assert_eq!((lifecycle.stop_signal, lifecycle.umask), (Signal::SIGINT, 0o022));
    assert_eq!(lifecycle.working_directory.to_string(), "{state_dir}/data");
    assert_eq!(definition.session.resume, Resume::Reconnect);
    assert_eq!(definition.log, Log::File(LogFiles { max_bytes: 1 << 20, keep: 0 }));
}

#[test]
fn a_definition_asks_for_its_folder_wherever_it_names_it() {
    let uses = |rest: &str| {
        let text = format!("[service]\nname = \"x\"\n[[version]]\nversion = \"1\"\n{rest}");
        daemons(&service(&text))[&semver::Version::new(1, 0, 0)].uses_state_dir()
    };
    assert!(!uses("command = [\"/bin/x\", \"{endpoint}\"]"));
    for rest in [
        "command = [\"/bin/x\", \"{endpoint}\", \"--dir={state_dir}/x\"]",
        "command = [\"/bin/x\", \"{endpoint}\"]\n[service.environment]\nset = { X = \"{state_dir}\" }",
        "command = [\"/bin/x\", \"{endpoint}\"]\n[lifecycle]\nworking_directory = \"{state_dir}\"",
        "command = [\"/bin/x\", \"{endpoint}\"]\n[readiness]\nprobe = \"exec\"\ncommand = [\"/bin/y\", \"{state_dir}\"]",
    ] {
        assert!(uses(rest), "{rest}");
    }
}

#[test]
fn durations_are_read_as_people_write_them() {
    for (text, milliseconds) in [
        ("250ms", 250),
        ("10s", 10_000),
        ("1m 30s", 90_000),
        ("1m30s", 90_000),
        ("2 hours", 7_200_000),
        ("1.5 min", 90_000),
        ("1 day", 86_400_000),
        ("1w", 604_800_000),
        (" 5s ", 5000),
    ] {
        let definition = definition(&format!("[lifecycle]\nstop_timeout = \"{text}\""));
        assert_eq!(definition.lifecycle.stop_timeout, MS(milliseconds), "{text}");
    }
    assert_eq!(definition("[lifecycle]\nidle_timeout = \"never\"").lifecycle.idle_timeout, None);
}

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [("\"16MiB\"", 16 << 20), ("\"500 kB\"", 500_000), ("\"4096\"", 4096), ("4096", 4096)] {
        assert_eq!(definition(&format!("[log]\nmax_bytes = {text}")).log.files().max_bytes, bytes, "{text}");
    }
}

#[test]
fn kinds_of_probes_and_endpoints() {
    assert_eq!(definition("[readiness]\nprobe = \"notify\"").readiness.probe, Probe::Notify);
    let socket = definition("[endpoint]\nkind = \"tcp\"\nport = 1\n[readiness]\nprobe = \"socket\"\nnotify = true");
    assert_eq!(socket.readiness.probe, Probe::Socket { notify: true });
    assert_eq!(socket.endpoint, Endpoint::Tcp { port: Some(1) });
    assert_eq!(definition("[endpoint]\nkind = \"tcp\"").endpoint, Endpoint::Tcp { port: None });
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_passed_over() {
    let text = format!("\u{feff}{NAMED}{VERSION}").replace('\n', "\r\n");
    assert_eq!(service(&text).name.as_str(), "redis");
}

#[test]
fn a_definition_changes_with_what_a_backend_is_run_with_and_nothing_else() {
    let base = definition("");
    assert_eq!(base, definition(""));
    assert_eq!(base, definition("[lifecycle]\nstop_timeout = \"10s\""), "a default that is written out");
    assert_eq!(base, definition("[access]\nusers = [1000]"));
    assert_eq!(base, definition("[versions]\nminimum = \"6\""));
    assert_eq!(base, definition("[session]\nresume = \"none\""));
    for lines in [
        "[log]\nkeep = 1",
        "[session]\nresume = \"reconnect\"",
        "[lifecycle]\numask = \"0022\"",
        "[service.environment]\nset = { A = \"b\" }",
    ] {
        assert_ne!(base, definition(lines), "{lines}");
    }
}

#[test]
fn a_daemon_logs_to_files_or_to_the_journal() {
    let log = |line: &str| {
        let (service, problems) = schema::parse(Path::new("x.toml"), &format!("{NAMED}{line}\n{VERSION}"));
        // Whether there is a journal depends on the machine.
        assert!(problems.iter().all(|problem| problem.severity == Severity::Warning), "{problems:?}");
        daemons(&service.expect("no error")).values().next().expect("one version").log
    };
    let files = LogFiles { max_bytes: 16 << 20, keep: 5 };
    assert_eq!((log(""), log("log = \"file\"")), (Log::File(files), Log::File(files)));
    assert_eq!((log("log = \"journal\""), Log::Journal.files()), (Log::Journal, files));
    // As the journal of backends has it; the first is what earlier brokers wrote.
    for (log, expect) in [(Log::File(files), r#"{"max_bytes":16777216,"keep":5}"#), (Log::Journal, "null")] {
        let text = serde_json::to_string(&log).expect("plain data");
        assert_eq!(text, expect);
        assert_eq!(serde_json::from_str::<Log>(&text).expect("read back"), log);
    }
}
