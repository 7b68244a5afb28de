//! What a person reads from brokerctl where no broker is needed: help, wrong usage, and that none runs.

use std::process::{Command, Output};

/// Runs brokerctl with nothing of this process's environment but what it needs to run.
fn brokerctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_brokerctl")).args(arguments).env_clear().output().expect("brokerctl runs")
}

/// The exit code, stdout and stderr, as one text; long lines are folded to the width of this file.
fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(folded).collect::<String>();
    let code = output.status.code().map_or("none".to_owned(), |code| code.to_string());
    format!("exit code {code}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
}

fn folded(line: &str) -> String {
    let mut folded = String::new();
    let mut width = 0;
    for word in line.split_inclusive(' ') {
        if width + word.len() > 100 {
            folded.truncate(folded.trim_end().len());
            folded += "\n    ";
            width = 4;
        }
        folded += word;
        width += word.len();
    }
    folded + "\n"
}

fn run(line: &str) -> String {
    shown(&brokerctl(&line.split(' ').collect::<Vec<_>>()))
}

#[test]
fn help_names_the_commands_and_the_exit_codes() {
    insta::assert_snapshot!(run("--help"), @r#"
    exit code 0
    --- stdout
    Talks to the process broker: starts daemons on demand, says where they listen, and looks after them

    Usage: brokerctl [OPTIONS] <COMMAND>

    Commands:
      status       Show the backends: state, clients, endpoint, and what is wrong with them
      services     Show the services, their versions, and the problems in their files
      resolve      Start a backend if need be, wait until it is ready, and print its endpoint
      connect      Connect stdin and stdout to a backend, starting it if need be
      exec         Run a command while holding a backend, starting it if need be
      start        Start backends and wait until they are ready
      stop         Stop backends and wait until nothing of them is left
      restart      Stop backends, start them again and wait until they are ready
      drain        Refuse new clients, and stop backends when their last client is gone
      release      Release backends from quarantine, so that the next client starts them
      run          Run a command, or a service of kind "process", to its end, even if the broker dies
                   meanwhile
      wait         Wait until a process has ended, show its output, and end as it did
      processes    Show the processes that `run` began: state, attempt, and how they ended
      cancel       End a process, and wait until it has ended
      prune        Forget processes that have ended, with their output
      logs         Print what backends wrote to their logs: files, or the journal of systemd
      events       Show what happened to backends and processes: starts, crashes, refusals, ends
      check        Check service files; needs no broker
      reload       Have the broker read its service files again
      shutdown     Stop every backend, then the broker, and wait until it is gone
      demo         Show what the broker does, with real processes; leaves nothing behind
      completions  Print a completion script for a shell
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version

    Options of every command:
          --socket <PATH>       The broker's socket [default: $BROKER_SOCKET, else the user's, then the
                                system's]
          --json                Print JSON for programs
          --timeout <DURATION>  Wait at most this long, such as 500ms, 10s or 2m
      -q, --quiet               Show no progress
      -v, --verbose             Show each change of state as a line on stderr
          --color <WHEN>        When to use colours [default: auto] [possible values: auto, always,
                                never]

    Examples:
      brokerctl demo                         see it work, in a temporary folder
      brokerctl resolve redis@^7             start redis if need be, print where it listens
      brokerctl exec redis -- redis-cli ping hold redis while a command runs
      brokerctl run -- make world            run a command to its end, even if the broker dies
      brokerctl status                       what runs, since when, and for how many clients

    A backend is named SERVICE[@VERSION][/INSTANCE]: redis, redis@^7, redis@7.0.15/tenant-a.

    Exit codes:
       0  done
       1  failed
       2  wrong usage
      69  no broker runs, or refused for good (unknown service or version, cannot be executed)
      75  refused for now: try again when the message says
      77  not permitted
    `exec`, `run` and `wait` exit with the status of the command (128 + N if signal N ended it).
    --- stderr
    "#);
}

#[test]
fn a_commands_help_has_examples() {
    insta::assert_snapshot!(run("resolve --help"), @"
    exit code 0
    --- stdout
    Start a backend if need be, wait until it is ready, and print its endpoint

    Usage: brokerctl resolve [OPTIONS] <SERVICE[@REQ][/INSTANCE]>

    Arguments:
      <SERVICE[@REQ][/INSTANCE]>  The service, a version requirement such as ^7, and an instance

    Options:
      -i, --instance <INSTANCE>  The instance, unless the name says it
      -h, --help                 Print help

    Options of the session with the broker:
          --no-reconnect                    Do not come back when the connection to the broker ends
          --max-reconnect-delay <DURATION>  The longest pause between two attempts to reconnect, at
                                            least 100ms [default: 5s]
          --autostart <WHEN>                When to start a broker if none runs; auto: for ordinary
                                            users who named no socket [default: auto] [possible values:
                                            auto, always, never]
          --idle-exit <DURATION>            When a broker that was started so leaves if nobody uses it
                                            [default: 10m]

    Options of every command:
          --socket <PATH>       The broker's socket [default: $BROKER_SOCKET, else the user's, then the
                                system's]
          --json                Print JSON for programs
          --timeout <DURATION>  Wait at most this long, such as 500ms, 10s or 2m
      -q, --quiet               Show no progress
      -v, --verbose             Show each change of state as a line on stderr
          --color <WHEN>        When to use colours [default: auto] [possible values: auto, always,
                                never]

    The endpoint is unix:/path or tcp:127.0.0.1:PORT. The backend is held only until this command ends:
    its idle timeout, if it has one, counts from then on. `exec` and `connect` hold it longer.

    Examples:
      brokerctl resolve redis
      brokerctl resolve 'redis@>=6, <8' -i tenant-a --timeout 5s
      brokerctl resolve redis --json | jq -r .pid
    --- stderr
    ");
}

#[test]
fn without_a_command_the_help_is_an_error() {
    let output = brokerctl(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_usage_says_what_is_right() {
    insta::assert_snapshot!(run("resolv redis"), @"
    exit code 2
    --- stdout
    --- stderr
    error: unrecognized subcommand 'resolv'

      tip: a similar subcommand exists: 'resolve'

    Usage: brokerctl [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run("resolve Redis"), @"
    exit code 2
    --- stdout
    --- stderr
    error: invalid value 'Redis' for '<SERVICE[@REQ][/INSTANCE]>': service name `Redis` has 'R': names
        are lower-case letters, digits, `.`, `_` and `-`, and begin with a letter or a digit

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run("resolve redis@"), @"
    exit code 2
    --- stdout
    --- stderr
    error: invalid value 'redis@' for '<SERVICE[@REQ][/INSTANCE]>': `` is no version requirement: it is
        empty (`*` is any version)

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run("resolve redis --timeout 10"), @"
    exit code 2
    --- stdout
    --- stderr
    error: invalid value '10' for '--timeout <DURATION>': a unit is missing: write 10s or 10ms

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run("stop"), @"
    exit code 2
    --- stdout
    --- stderr
    error: the following required arguments were not provided:
      <SERVICE[@REQ][/INSTANCE]|--all>

    Usage: brokerctl stop <SERVICE[@REQ][/INSTANCE]|--all>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run("stop redis --all"), @"
    exit code 2
    --- stdout
    --- stderr
    error: the argument '[SERVICE[@REQ][/INSTANCE]]...' cannot be used with '--all'

    Usage: brokerctl stop <SERVICE[@REQ][/INSTANCE]|--all>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run("resolve redis/a -i b"), @"
    exit code 2
    --- stdout
    --- stderr
    brokerctl: error: the name says instance `a`, but --instance says `b`
    ");
}

#[test]
fn where_no_broker_runs_the_error_says_how_to_start_one() {
    insta::assert_snapshot!(run("status --socket /no/such/broker.sock"), @"
    exit code 69
    --- stdout
    --- stderr
    brokerctl: error: no broker is running
      tried /no/such/broker.sock: No such file or directory (os error 2)
      start one with `brokerd --detach`, `brokerd` (in the foreground) or, under systemd,
      `systemctl --user start brokerd.socket`; the system's: `sudo systemctl start brokerd.socket`;
      or name its socket with --socket or BROKER_SOCKET
    ");
    insta::assert_snapshot!(run("resolve redis --json --socket /no/such/broker.sock"), @"
    exit code 69
    --- stdout
    --- stderr
    brokerctl: error: no broker is running
      tried /no/such/broker.sock: No such file or directory (os error 2)
      start one with `brokerd --detach`, `brokerd` (in the foreground) or, under systemd,
      `systemctl --user start brokerd.socket`; the system's: `sudo systemctl start brokerd.socket`;
      or name its socket with --socket or BROKER_SOCKET
    ");
}

#[test]
fn a_socket_in_the_environment_is_used() {
    let output = Command::new(env!("CARGO_BIN_EXE_brokerctl"))
        .args(["status"])
        .env_clear()
        .env("BROKER_SOCKET", "/no/such/from-environment.sock")
        .output()
        .expect("brokerctl runs");
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/from-environment.sock"));
}

#[test]
fn check_names_file_line_and_column() {
    let folder = tempfile::Builder::new().permissions(private()).tempdir().expect("a folder");
    let file = folder.path().join("redis.toml");
    std::fs::write(&file, "[service]\nname = \"redis\"\ncolour = 1\n").expect("written");
    let output = brokerctl(&["check", file.to_str().expect("text")]);
    let text = shown(&output).replace(folder.path().to_str().expect("text"), "FOLDER");
    insta::assert_snapshot!(text, @"
    exit code 1
    --- stdout
    FOLDER/redis.toml: error: no version: add a [[version]] with `version` and `command`, or
        `directory` and `command` to [versions]
    FOLDER/redis.toml:3:1: error: unknown key `colour` in [service], known are `name`,
        `description`, `kind`, `log` and `environment`
    checked 1 file: 0 services, 0 versions; 2 errors, 0 warnings
    --- stderr
    ");
}

#[test]
fn check_of_an_empty_folder_is_fine() {
    let folder = tempfile::Builder::new().permissions(private()).tempdir().expect("a folder");
    let output = brokerctl(&["check", folder.path().to_str().expect("text")]);
    insta::assert_snapshot!(shown(&output), @"
    exit code 0
    --- stdout
    checked 0 files: 0 services, 0 versions; 0 errors, 0 warnings
    --- stderr
    ");
}

fn private() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o700)
}

#[test]
fn completions_are_a_script() {
    for shell in ["bash", "zsh", "fish"] {
        let output = brokerctl(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(script.contains("brokerctl") && script.contains("resolve") && !script.contains("__echo"), "{shell}");
    }
}

/// A reader that leaves early, as in `brokerctl completions bash | head -1`.
#[test]
fn a_closed_stdout_is_no_panic() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    for (arguments, code) in [(&["completions", "bash"][..], 0), (&["--help"], 0), (&["check", "/no/such.toml"], 1)] {
        let output = Command::new(env!("CARGO_BIN_EXE_brokerctl"))
            .args(arguments)
            .stdout(writer.try_clone().expect("another descriptor"))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .expect("brokerctl runs");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_cgroup_is_kept_in_a_delegated_unit_only_and_by_nobody_else() {
    let brokerd = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_brokerd")).args(arguments).env_clear().output();
        output.expect("brokerd runs")
    };
    // This test is in the same cgroup, so it cannot be the keeper's alone.
    let refused = brokerd(&["--keep-cgroup"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("Delegate=yes") || message.contains("there is no cgroup to keep"), "{message}");
    assert_eq!(brokerd(&["--keep-cgroup", "--detach"]).status.code(), Some(2));
}
