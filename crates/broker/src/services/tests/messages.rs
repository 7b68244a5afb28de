//! What is said about a wrong service file.

use insta::assert_snapshot;
use proptest::prelude::*;

use super::{NAMED, VERSION, added, problems};

#[test]
fn a_file_without_content() {
    assert_snapshot!(problems(""), @"x.toml: the file is empty: a service file has [service] with a `name`, and [[version]]");
    assert_snapshot!(problems(" \n"), @"x.toml: the file is empty: a service file has [service] with a `name`, and [[version]]");
    assert_snapshot!(problems("# nothing\n"), @r#"
x.toml: missing table [service]: it names the service, name = "redis"
x.toml: no version: add a [[version]] with `version` and `command`, or `directory` and `command` to [versions]
"#);
    assert_snapshot!(problems("[service]"), @r"
x.toml: no version: add a [[version]] with `version` and `command`, or `directory` and `command` to [versions]
x.toml:1:1: missing key `name` in [service]
");
}

#[test]
fn text_that_is_no_toml() {
    assert_snapshot!(problems("[service\nname = \"a\"\nname = \"b\"\nx = 'y"), @"x.toml:1:9: not valid TOML: unclosed table, expected `]`");
    assert_snapshot!(problems("[service]\nname = \"a\"\n[service]\n"), @"x.toml:3:2: not valid TOML: duplicate key");
    assert_snapshot!(problems(&format!("x = {}", "[".repeat(10_000))), @r"
x.toml:1:85: not valid TOML: cannot recurse further; max recursion depth met
x.toml:1:10005: not valid TOML: unclosed array, expected `]`
");
}

#[test]
fn unknown_keys() {
    let text = "[servise]\nname = 1\n[service]\nname = \"redis\"\nstop_timeout = \"1s\"\ncommand = []\nenviroment = {}\n\
                [[version]]\nversion = \"1\"\ncomand = []\n[versions]\nminimun = \"7\"\n[log]\ncolour = 1\n";
    assert_snapshot!(problems(text), @r"
x.toml:1:2: unknown table `[servise]`, did you mean `[service]`?
x.toml:5:1: unknown key `stop_timeout` in [service], it belongs in [lifecycle]
x.toml:6:1: unknown key `command` in [service], it belongs in [[version]], [versions] or [readiness]
x.toml:7:1: unknown key `enviroment` in [service], did you mean `environment`?
x.toml:8:1: missing key `command` in [[version]]
x.toml:10:1: unknown key `comand` in [[version]], did you mean `command`?
x.toml:12:1: unknown key `minimun` in [versions], did you mean `minimum`?
x.toml:14:1: unknown key `colour` in [log], known are `max_bytes` and `keep`
");
    assert_snapshot!(problems(&format!("name = 1\nprobe = 2\n{NAMED}{VERSION}")), @r"
x.toml:1:1: unknown key `name` at the top of the file, it belongs in [service]
x.toml:2:1: unknown key `probe` at the top of the file, it belongs in [readiness]
");
    assert_snapshot!(added("[\"a\\nb\"]"), @r"x.toml:6:2: unknown table `[a\nb]`, known are `[service]`, `[service.environment]`, `[[version]]`, `[versions]`, `[endpoint]`, `[readiness]`, `[recovery]`, `[lifecycle]`, `[session]`, `[log]`, `[access]`, `[process]` and `[limits]`");
}

#[test]
fn tables_of_another_shape() {
    assert_snapshot!(problems("service = \"redis\"\nversion = \"7\"\n"), @r"
x.toml:1:1: `service` is a table: write it as [service]
x.toml:2:1: `version` is a table: write it as [[version]]
");
    assert_snapshot!(problems(&format!("{NAMED}[version]\nversion = \"1\"\n")), @"x.toml:3:2: `version` is a table: write it as [[version]]");
    assert_snapshot!(added("[[log]]\nkeep = 1"), @"x.toml:6:3: `log` is a table: write it as [log]");
    assert_snapshot!(added("[service.environment]\ninherit = \"PATH\"\nset = [1]"), @r#"
x.toml:7:11: `inherit` in [service.environment]: expected an array, found the string `PATH`: write ["PATH"]
x.toml:8:7: `set` in [service.environment]: expected a table, found an array
"#);
    assert_snapshot!(problems("log = 1\nversion = [1, 2]\n[service]\nname = \"a\"\nenvironment = \"PATH\""), @r"
x.toml:1:1: `log` is a table: write it as [log]
x.toml:2:1: `version` is a table: write it as [[version]]
x.toml:5:1: `service.environment` is a table: write it as [service.environment]
");
}

#[test]
fn names() {
    assert_snapshot!(problems(&format!("[service]\nname = \"Redis\"\n{VERSION}")), @"x.toml:2:8: `name` in [service]: service name `Redis` has 'R': names are lower-case letters, digits, `.`, `_` and `-`, and begin with a letter or a digit");
    assert_snapshot!(problems(&format!("[service]\nname = 7\n{VERSION}")), @r#"x.toml:2:8: `name` in [service]: expected a string, found the number `7`: write it in quotes, "7""#);
}

#[test]
fn no_version_or_several_times_the_same() {
    assert_snapshot!(problems(NAMED), @"x.toml: no version: add a [[version]] with `version` and `command`, or `directory` and `command` to [versions]");
    assert_snapshot!(problems(&format!("{NAMED}[[version]]\n")), @r"
x.toml:3:1: missing key `version` in [[version]]
x.toml:3:1: missing key `command` in [[version]]
");
    assert_snapshot!(added("[[version]]\nversion = \"7.0.0\"\ncommand = [\"/x\", \"{endpoint}\"]"), @"x.toml:7:11: `version` in [[version]]: version 7.0.0 is already defined, as `7` on line 4");
    assert_snapshot!(added("[[version]]\nversion = 7.2\ncommand = [\"/x\"]"), @r#"x.toml:7:11: `version` in [[version]]: expected a string, found the number `7.2`: write it in quotes, "7.2""#);
    assert_snapshot!(added("[[version]]\nversion = \"seven\"\ncommand = [\"/x\"]"), @"x.toml:7:11: `version` in [[version]]: `seven` is no version: unexpected character 's' while parsing major version number");
    assert_snapshot!(added("[versions]\ndirectory = \"/opt/redis/*\"\ncommand = [\"/x\"]"), @"x.toml:6:1: both `directory` in [versions] and [[version]] are there: keep one");
    assert_snapshot!(added("[versions]\ncommand = [\"/x\", \"{endpoint}\"]"), @"x.toml:7:11: `command` in [versions]: goes with `directory`; a [[version]] has a `command` of its own");
}

#[test]
fn directories_of_versions() {
    let versions = |lines: &str| problems(&format!("{NAMED}[versions]\n{lines}\n"));
    assert_snapshot!(versions("directory = \"/opt/redis/*\""), @"x.toml:3:1: missing key `command` in [versions]: what is run in each folder of `directory`");
    assert_snapshot!(versions("directory = \"redis/*\"\ncommand = [\"/x\"]"), @"x.toml:4:13: `directory` in [versions]: `redis/*` is not an absolute path");
    assert_snapshot!(versions("directory = \"/opt/redis\"\ncommand = [\"/x\"]"), @"x.toml:4:13: `directory` in [versions]: `/opt/redis` is one folder: end it with /* to mean the folders in it");
    assert_snapshot!(versions("directory = \"/**/redis\"\ncommand = [\"/x\"]"), @r#"x.toml:4:13: `directory` in [versions]: `**` would search the whole tree: write one `*`, "/opt/redis/*""#);
    assert_snapshot!(versions("directory = \"/opt/[redis\"\ncommand = [\"/x\"]"), @"x.toml:4:13: `directory` in [versions]: `/opt/[redis` is no pattern: invalid range pattern");
    assert_snapshot!(versions("directory = \"/no/such/*\"\ncommand = [\"/x\"]"), @"x.toml:4:13: warning: `directory` in [versions]: no folder's name is a version in `/no/such/*`: the service has none yet");
    assert_snapshot!(versions("minimum = 7\ndeny = [\"7.0.3\", \"=>8\", 9]"), @r#"
x.toml: no version: add a [[version]] with `version` and `command`, or `directory` and `command` to [versions]
x.toml:4:11: `minimum` in [versions]: expected a string, found the number `7`: write it in quotes, "7"
x.toml:5:18: `deny` in [versions]: `=>8` is no version requirement: unexpected character '>' while parsing major version number
x.toml:5:25: `deny` in [versions]: expected a string, found the number `9`: write it in quotes, "9"
"#);
    assert_snapshot!(versions("deny = \"7.0.3\""), @r#"
x.toml: no version: add a [[version]] with `version` and `command`, or `directory` and `command` to [versions]
x.toml:4:8: `deny` in [versions]: expected an array, found the string `7.0.3`: write ["7.0.3"]
"#);
}

#[test]
fn commands() {
    let command = |command: &str| problems(&format!("{NAMED}[[version]]\nversion = \"1\"\ncommand = {command}\n"));
    assert_snapshot!(command("[]"), @r#"x.toml:5:11: `command` in [[version]]: is empty: write the program and its arguments, ["/usr/bin/redis-server"]"#);
    assert_snapshot!(command("[\"\"]"), @"x.toml:5:12: `command` in [[version]]: the program's name is empty: write an absolute path, or a bare name to be found in PATH");
    assert_snapshot!(command("\"redis-server --port 0\""), @r#"x.toml:5:11: `command` in [[version]]: no shell reads the command, it is an array: write ["redis-server", "--port", "0"]"#);
    assert_snapshot!(command("[\"bin/redis\"]"), @"x.toml:5:12: `command` in [[version]]: `bin/redis` is a relative path: write an absolute path, or a bare name to be found in PATH");
    assert_snapshot!(command("[\"~/bin/redis\"]"), @"x.toml:5:12: `command` in [[version]]: `~/bin/redis` is a relative path (`~` is not expanded): write an absolute path, or a bare name to be found in PATH");
    assert_snapshot!(command("[\"/redis\", \"--port\", 0]"), @r#"x.toml:5:32: `command` in [[version]]: expected a string, found the number `0`: write it in quotes, "0""#);
    assert_snapshot!(command("[\"/redis\", \"{endpont}\"]"), @"x.toml:5:22: `command` in [[version]]: unknown placeholder `{endpont}`, did you mean `endpoint`? (known are {endpoint}, {port}, {service}, {version}, {instance} and {state_dir}; literal braces are written `{{` and `}}`)");
    assert_snapshot!(command("[\"/redis\", \"{port}\"]"), @r#"x.toml:5:22: `command` in [[version]]: {port} is for kind = "tcp" in [endpoint]; {endpoint} is the path of the socket"#);
    assert_snapshot!(command("[\"/redis\", \"a\\u0000b\"]"), @r"x.toml:5:22: `command` in [[version]]: `a\0b` has a NUL character, which no argument, path or variable can have");
    assert_snapshot!(command("[\"/redis\"]"), @"x.toml:5:11: warning: `command` in [[version]]: nothing tells the daemon where to listen: mention {endpoint}, or set `path` in [endpoint] if its socket is fixed");
}

#[test]
fn environments() {
    assert_snapshot!(added("[service.environment]\ninherit = [\"A=B\", \"NOTIFY_SOCKET\", 1, \"WATCHDOG_USEC\"]"), @r#"
x.toml:7:12: `inherit` in [service.environment]: `A=B` is no name of a variable
x.toml:7:19: `inherit` in [service.environment]: `NOTIFY_SOCKET` is set by the broker where the probe uses it: leave it out
x.toml:7:36: `inherit` in [service.environment]: expected a string, found the number `1`: write it in quotes, "1"
x.toml:7:39: `inherit` in [service.environment]: `WATCHDOG_USEC` tells of the broker itself: leave it out
"#);
    assert_snapshot!(added("[service.environment]\nset = { PORT = 6379, LISTEN_FDS = \"1\", X = \"{y}\", \"\" = \"\" }"), @r#"
x.toml:7:16: `set.PORT` in [service.environment]: expected a string, found the number `6379`: write it in quotes, "6379"
x.toml:7:35: `set.LISTEN_FDS` in [service.environment]: `LISTEN_FDS` is set by the broker where the probe uses it: leave it out
x.toml:7:44: `set.X` in [service.environment]: unknown placeholder `{y}` (known are {endpoint}, {port}, {service}, {version}, {instance} and {state_dir}; literal braces are written `{{` and `}}`)
x.toml:7:56: `set.` in [service.environment]: `` is no name of a variable
"#);
}

#[test]
fn endpoints() {
    assert_snapshot!(added("[endpoint]\nkind = \"tpc\""), @"x.toml:7:8: `kind` in [endpoint]: expected `unix` or `tcp`, found `tpc`, did you mean `tcp`?");
    assert_snapshot!(added("[endpoint]\nkind = \"unix\"\nport = 6379"), @r#"x.toml:8:8: `port` in [endpoint]: only an endpoint of kind "tcp" has a port"#);
    assert_snapshot!(added("[endpoint]\nkind = \"tcp\"\nport = 70000\npath = \"/x\""), @r#"
x.toml:8:8: `port` in [endpoint]: expected a whole number from 1 to 65535, found the number `70000`
x.toml:9:8: `path` in [endpoint]: only an endpoint of kind "unix" has a path
"#);
    assert_snapshot!(added("[endpoint]\npath = \"x.sock\""), @"x.toml:7:8: `path` in [endpoint]: `x.sock` is not an absolute path");
    assert_snapshot!(added("[endpoint]\npath = \"/run/{instance}.sock\""), @"x.toml:7:8: `path` in [endpoint]: a fixed path is taken as it stands, nothing is filled in");
    assert_snapshot!(added(&format!("[endpoint]\npath = \"/{}\"", "x".repeat(107))), @"x.toml:7:8: `path` in [endpoint]: the path is 108 bytes long, a socket's path has at most 107");
    let tcp = "[[version]]\nversion = \"1\"\ncommand = [\"/x\"]\n[endpoint]\nkind = \"tcp\"";
    assert_snapshot!(problems(&format!("{NAMED}{tcp}")), @"x.toml:5:11: warning: `command` in [[version]]: nothing tells the daemon where to listen: mention {port} or {endpoint}, or set `port` in [endpoint] if it is fixed");
}

#[test]
fn readiness() {
    assert_snapshot!(added("[readiness]\nprobe = \"exce\""), @"x.toml:7:9: `probe` in [readiness]: expected `connect`, `notify`, `socket` or `exec`, found `exce`, did you mean `exec`?");
    assert_snapshot!(added("[readiness]\nprobe = \"exec\""), @r#"x.toml:7:9: `probe` in [readiness]: "exec" needs the `command` that exits 0 once the daemon is ready"#);
    assert_snapshot!(added("[readiness]\nprobe = \"exec\"\ncommand = []"), @r#"x.toml:8:11: `command` in [readiness]: is empty: write the program and its arguments, ["/usr/bin/redis-server"]"#);
    assert_snapshot!(added("[readiness]\ncommand = [\"/bin/true\"]\nnotify = true"), @r#"
x.toml:7:11: `command` in [readiness]: only probe = "exec" runs a command
x.toml:8:10: `notify` in [readiness]: only for probe = "socket"; a daemon that says READY=1 has probe = "notify"
"#);
    assert_snapshot!(added("[readiness]\nprobe = \"socket\"\nnotify = \"true\"\nhard_ceiling = \"0s\""), @r"
x.toml:8:10: `notify` in [readiness]: `true` is a string: write it without quotes
x.toml:9:16: `hard_ceiling` in [readiness]: must be longer than zero
");
}

#[test]
fn durations() {
    assert_snapshot!(added("[recovery]\nretry_backoff = 250\nbudget_window = 1.5\nhealthy_after = \"10\""), @r#"
x.toml:7:17: `retry_backoff` in [recovery]: `250` has no unit: write "250s" or "250ms"
x.toml:8:17: `budget_window` in [recovery]: `1.5` has no unit: write "1.5s"
x.toml:9:17: `healthy_after` in [recovery]: `10` has no unit: write "10s" or "10ms"
"#);
    assert_snapshot!(added("[recovery]\nretry_backoff = \"never\"\nbudget_window = \"soon\"\nhealthy_after = \"-1s\""), @r#"
x.toml:7:17: `retry_backoff` in [recovery]: `never` is not possible here: write durations as "250ms", "10s" or "1m 30s"
x.toml:8:17: `budget_window` in [recovery]: `soon` is no duration: write durations as "250ms", "10s" or "1m 30s"
x.toml:9:17: `healthy_after` in [recovery]: `-1s` is negative: write durations as "250ms", "10s" or "1m 30s"
"#);
    assert_snapshot!(added("[lifecycle]\nidle_timeout = \"nevr\"\nstop_timeout = \"100000 days\""), @r#"
x.toml:7:16: `idle_timeout` in [lifecycle]: `nevr` is no duration: write durations as "250ms", "10s" or "1m 30s", or "never"
x.toml:8:16: `stop_timeout` in [lifecycle]: `100000 days` is longer than the limit of 10 years
"#);
    assert_snapshot!(added("[lifecycle]\nidle_timeout = true\nstop_timeout = \"1 month\""), @r#"
x.toml:7:16: `idle_timeout` in [lifecycle]: expected a duration, found the boolean `true`: write durations as "250ms", "10s" or "1m 30s", or "never"
x.toml:8:16: `stop_timeout` in [lifecycle]: `1 month` is no duration: write durations as "250ms", "10s" or "1m 30s"
"#);
}

#[test]
fn lifecycles() {
    assert_snapshot!(added("[lifecycle]\nstop_signal = \"SIGTREM\"\numask = 77\nworking_directory = \"data\""), @r#"
x.toml:7:15: `stop_signal` in [lifecycle]: there is no signal `SIGTREM`, did you mean `SIGTERM`?
x.toml:8:9: `umask` in [lifecycle]: expected a umask, found the number `77`: write it in octal and in quotes, "0077"
x.toml:9:21: `working_directory` in [lifecycle]: `data` is not an absolute path: begin it with / or {state_dir}
"#);
    assert_snapshot!(added("[lifecycle]\nstop_signal = \"term\"\numask = \"0088\"\nworking_directory = \"~\""), @r#"
x.toml:7:15: `stop_signal` in [lifecycle]: there is no signal `term`, did you mean `SIGTERM`?
x.toml:8:9: `umask` in [lifecycle]: `0088` is no umask: write it in octal, from "0000" to "0777"
x.toml:9:21: `working_directory` in [lifecycle]: `~` is not an absolute path: begin it with / or {state_dir} (`~` is not expanded)
"#);
    assert_snapshot!(added("[lifecycle]\nstop_signal = 15\numask = \"7777\"\nworking_directory = \"{instance}\""), @r#"
x.toml:7:15: `stop_signal` in [lifecycle]: expected a signal, found the number `15`: write its name, "SIGTERM"
x.toml:8:9: `umask` in [lifecycle]: `7777` is no umask: write it in octal, from "0000" to "0777"
x.toml:9:21: `working_directory` in [lifecycle]: `{instance}` is not an absolute path: begin it with / or {state_dir}
"#);
}

#[test]
fn logs() {
    assert_snapshot!(added("[log]\nmax_bytes = \"16 megs\"\nkeep = -1"), @r#"
x.toml:7:13: `max_bytes` in [log]: `16 megs` is no size: write sizes as "16MiB", "500kB" or a number of bytes
x.toml:8:8: `keep` in [log]: expected a whole number from 0 to 4294967295, found the number `-1`
"#);
    let journal = |word: &str, more: &str| {
        let text = problems(&format!("[service]\nname = \"redis\"\nlog = \"{word}\"\n{VERSION}{more}"));
        text.lines().filter(|line| !line.contains("there is no journal on this machine")).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(journal("jurnal", ""), @"x.toml:3:7: `log` in [service]: expected `file` or `journal`, found `jurnal`, did you mean `journal`?");
    assert_snapshot!(journal("journal", "[log]\nmax_bytes = \"1MiB\"\nkeep = 5"), @r#"
x.toml:8:13: `max_bytes` in [log]: is for log = "file" in [service]: how much of the journal is kept, journald.conf says
x.toml:9:8: `keep` in [log]: is for log = "file" in [service]: how much of the journal is kept, journald.conf says
"#);
    assert_snapshot!(added("[log]\nmax_bytes = 0\nkeep = \"5\""), @r"
x.toml:7:13: `max_bytes` in [log]: must be more than zero bytes
x.toml:8:8: `keep` in [log]: expected a whole number from 0 to 4294967295, found the string `5`
");
}

#[test]
fn sessions() {
    assert_snapshot!(added("[session]\nresume = \"reconect\""), @"x.toml:7:10: `resume` in [session]: expected `none` or `reconnect`, found `reconect`, did you mean `reconnect`?");
    assert_snapshot!(added("[session]\nresume = true"), @r#"x.toml:7:10: `resume` in [session]: expected a string, found the boolean `true`: write it in quotes, "true""#);
    assert_snapshot!(added("[sesion]\nresume = \"none\""), @"x.toml:6:2: unknown table `[sesion]`, did you mean `[session]`?");
    assert_snapshot!(added("[session]\nresum = \"none\""), @"x.toml:7:1: unknown key `resum` in [session], did you mean `resume`?");
    assert_snapshot!(added("[lifecycle]\nresume = \"none\""), @"x.toml:7:1: unknown key `resume` in [lifecycle], it belongs in [session]");
    assert_snapshot!(problems(&format!("session = \"reconnect\"\n{NAMED}{VERSION}")), @"x.toml:1:1: `session` is a table: write it as [session]");
}

#[test]
fn access() {
    assert_snapshot!(added("[access]\nusers = [\"no-such-user\", 4294967295]\ngroups = [\"no-such-group\"]\nconnected = 1"), @r"
x.toml:7:10: `users` in [access]: there is no user `no-such-user` on this machine
x.toml:7:26: `users` in [access]: expected a user's number up to 4294967294, found the number `4294967295`
x.toml:8:11: `groups` in [access]: there is no group `no-such-group` on this machine
x.toml:9:13: `connected` in [access]: expected true or false, found the number `1`
");
    assert_snapshot!(added("[access]\nusers = \"root\""), @r#"x.toml:7:9: `users` in [access]: expected an array, found the string `root`: write ["root"]"#);
}

#[test]
fn a_file_full_of_problems_is_cut_short() {
    let text = added(&"[[version]]\nversion = 1\ncommand = 2\n".repeat(100));
    assert_eq!(text.lines().count(), 51);
    assert_snapshot!(text.lines().last().expect("there"), @"x.toml: and 150 more problems in this file");
}

/// Pieces of service files, good and bad, in any order.
const PIECES: &str = "\\[service\\]\n|\\[\\[version\\]\\]\n|\\[versions\\]\n|\\[(endpoint|readiness|lifecycle|log|access)\\]\n\
    |(name|version|command|directory|deny|kind|path|port|probe|notify|umask|users|keep|idle_timeout) = \
    (\"[a-z0-9{}/*.]{0,6}\"|-?[0-9]{1,20}|\\[\"[a-z/{}]{0,4}\"\\]|true|1\\.5|\\{\\}|\\[\\])\n|.{0,3}\n";

proptest! {
    #[test]
    fn any_file_is_read_to_an_end(pieces in prop::collection::vec(PIECES, 0..12)) {
        problems(&pieces.concat());
    }

    #[test]
    fn any_text_is_read_to_an_end(text in ".*") {
        problems(&text);
    }
}

#[test]
fn limits_that_cannot_be_meant() {
    assert_snapshot!(added("[limits]\nmemory_max = \"512\"\ntasks_max = 0\ncpu_weight = 20000\nnofile = 8\nmemory = 1\n"), @r#"
x.toml:7:14: `memory_max` in [limits]: 512 bytes are too few for any program: write at least "1MiB"
x.toml:8:13: `tasks_max` in [limits]: expected a whole number from 1 to 4194304, found the number `0`
x.toml:9:14: `cpu_weight` in [limits]: expected a whole number from 1 to 10000, found the number `20000`
x.toml:10:10: `nofile` in [limits]: expected a whole number from 16 to 1073741824, found the number `8`
x.toml:11:1: unknown key `memory` in [limits], did you mean `memory_max`?
"#);
    assert_snapshot!(added("[limits]\nmemory_max = true\ntasks_max = \"many\"\n"), @r#"
x.toml:7:14: `memory_max` in [limits]: expected a size, found the boolean `true`: write sizes as "16MiB", "500kB" or a number of bytes
x.toml:8:13: `tasks_max` in [limits]: expected a whole number from 1 to 4194304, found the string `many`
"#);
}
