//! Service files of processes: what is read, and what is said about what only a daemon has.

use std::time::Duration;

use insta::assert_snapshot;

use super::super::definition::ProcessDefinition;
use super::{Kind, added, problems, service};

/// A process that nothing is wrong with.
const BACKUP: &str = "[service]\nname = \"backup\"\nkind = \"process\"\n\
                      [[version]]\nversion = \"1\"\ncommand = [\"/bin/tar\", \"{state_dir}/{instance}.tgz\"]\n";

/// What a person is told about a good file of a process to which some lines are added.
fn said(lines: &str) -> String {
    problems(&format!("{BACKUP}{lines}"))
}

fn definition(lines: &str) -> ProcessDefinition {
    let service = service(&format!("{BACKUP}{lines}"));
    assert!(service.daemon(&semver::Version::new(1, 0, 0)).is_none());
    match service.kind {
        Kind::Process(versions) => (**versions.values().next().expect("one version")).clone(),
        Kind::Daemon(_) => panic!("a daemon"),
    }
}

#[test]
fn a_process_has_defaults() {
    let process = definition("");
    assert_eq!((process.service.as_str(), process.version.to_string().as_str()), ("backup", "1.0.0"));
    assert_eq!((process.timeout, process.max_attempts), (None, 3));
    assert_eq!((process.stop_timeout, process.umask), (Duration::from_secs(10), 0o077));
    assert_eq!(process.working_directory.to_string(), "/");
    assert_eq!(process.environment.inherit, ["PATH", "HOME", "LANG"]);
    assert_eq!((process.spelling.as_str(), process.command.arguments.len()), ("1", 1));
}

#[test]
fn a_process_says_its_limits() {
    let process = definition(
        "[process]\ntimeout = \"2h\"\nmax_attempts = 1\n[lifecycle]\nworking_directory = \"{state_dir}\"\n\
         stop_timeout = \"1m\"\numask = \"0022\"\n[service.environment]\ninherit = []\nset = { A = \"{service}\" }\n",
    );
    assert_eq!((process.timeout, process.max_attempts), (Some(Duration::from_secs(7200)), 1));
    assert_eq!((process.stop_timeout, process.umask), (Duration::from_secs(60), 0o022));
    assert_eq!(process.working_directory.to_string(), "{state_dir}");
    assert_eq!(process.environment.set.len(), 1);
    assert_eq!(definition("[process]\ntimeout = \"never\"").timeout, None);
    assert_eq!(definition("[limits]\ntasks_max = 7").limits.tasks_max, Some(7));
}

#[test]
fn what_only_a_daemon_has_is_an_error() {
    assert_snapshot!(said("[endpoint]\n[readiness]\nprobe = \"notify\"\n[recovery]\n[session]\n[log]\nkeep = 1\n[access]\n"), @"
x.toml:7:1: a process has no endpoint: leave [endpoint] out
x.toml:8:1: nobody waits until a process is ready: leave [readiness] out
x.toml:10:1: a process that ends is not started again; `max_attempts` in [process] is for attempts that are lost: leave [recovery] out
x.toml:11:1: a process has no connections: leave [session] out
x.toml:12:1: a process's output is kept whole until the process is pruned: leave [log] out
x.toml:14:1: processes are run by root and the user that the broker runs as, and nobody else: leave [access] out
");
    let logs = "[service]\nname = \"x\"\nkind = \"process\"\nlog = \"journal\"\n[[version]]\nversion = \"1\"\ncommand = [\"/bin/x\"]\n";
    assert_snapshot!(problems(logs), @"x.toml:4:7: `log` in [service]: a process's output is kept in files, from which it is shown again: leave it out");
    assert_snapshot!(said("[lifecycle]\nidle_timeout = \"1h\"\nstop_signal = \"SIGINT\""), @"
x.toml:8:16: `idle_timeout` in [lifecycle]: a process is never idle: `timeout` in [process] is how long an attempt may take
x.toml:9:15: `stop_signal` in [lifecycle]: a process that is cancelled gets SIGTERM, then SIGKILL after `stop_timeout`
");
    assert_snapshot!(added("[process]\ntimeout = \"1h\""), @r#"x.toml:6:1: [process] is for kind = "process" in [service]: this is a daemon"#);
}

#[test]
fn what_has_nothing_to_stand_for_is_an_error() {
    assert_snapshot!(said("[lifecycle]\nworking_directory = \"/x/{endpoint}\"\n[service.environment]\nset = { P = \"{port}\" }"), @"
x.toml:8:21: `working_directory` in [lifecycle]: a process has no endpoint and so no {endpoint}: there are {service}, {version}, {instance} and {state_dir}
x.toml:10:13: `set.P` in [service.environment]: a process has no endpoint and so no {port}: there are {service}, {version}, {instance} and {state_dir}
");
    let text = BACKUP.replace("{state_dir}/", "{endpoint}");
    assert_snapshot!(problems(&text), @"x.toml:6:24: `command` in [[version]]: a process has no endpoint and so no {endpoint}: there are {service}, {version}, {instance} and {state_dir}");
    let text = "[service]\nname = \"backup\"\nkind = \"process\"\n[versions]\ndirectory = \"/nonexistent/*\"\n\
                command = [\"/opt/{version}/x\", \"{port}\"]\n";
    assert_snapshot!(problems(text), @"x.toml:6:32: `command` in [versions]: a process has no endpoint and so no {port}: there are {service}, {version}, {instance} and {state_dir}");
}

#[test]
fn values_of_processes() {
    assert_snapshot!(said("[process]\ntimeout = \"0s\"\nmax_attempts = 0"), @"
x.toml:8:11: `timeout` in [process]: must be longer than zero
x.toml:9:16: `max_attempts` in [process]: expected a whole number from 1 to 1000, found the number `0`
");
    assert_snapshot!(said("[process]\ntimeout = \"soon\"\nattempts = 2"), @r#"
x.toml:8:11: `timeout` in [process]: `soon` is no duration: write durations as "250ms", "10s" or "1m 30s", or "never"
x.toml:9:1: unknown key `attempts` in [process], did you mean `max_attempts`?
"#);
    assert_snapshot!(problems(&BACKUP.replace("\"process\"", "\"proces\"")), @"
x.toml:3:8: `kind` in [service]: expected `daemon` or `process`, found `proces`, did you mean `process`?
x.toml:6:11: warning: `command` in [[version]]: nothing tells the daemon where to listen: mention {endpoint}, or set `path` in [endpoint] if its socket is fixed
");
    assert_snapshot!(problems(&BACKUP.replace("1\"\ncommand", "1\"\ncomand")), @"
x.toml:4:1: missing key `command` in [[version]]
x.toml:6:1: unknown key `comand` in [[version]], did you mean `command`?
");
}
