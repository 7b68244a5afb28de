//! brokerctl and durable processes, against a broker that has one process and says of it what the test wants.

mod fake;

use std::io;
use std::process::Stdio;

use broker_proto::{AdminRequest, ProcessSpec, Work};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use fake::{Fake, append, ended, read, waits};

#[test]
fn help_says_what_run_does() {
    let fake = Fake::new();
    insta::assert_snapshot!(fake.run(&["run", "--help"]).1, @r#"
    Run a command, or a service of kind "process", to its end, even if the broker dies meanwhile

    Usage: brokerctl run [OPTIONS] -- <COMMAND>...
           brokerctl run [OPTIONS] <SERVICE[@REQ][/INSTANCE]>

    Arguments:
      [SERVICE[@REQ][/INSTANCE]]...  A service of kind "process", a version requirement such as ^1, and
                                     an instance
      [COMMAND]...                   The command and its arguments

    Options:
      -i, --instance <INSTANCE>  The instance, unless the name says it
          --id <ID>              Register it under this id [default: a new one]
      -d, --detach               Do not wait: print the id
      -e, --env <NAME[=VALUE]>   Set a variable, or pass on your own
          --cwd <DIR>            Run it there [default: here; a service: as its file says]
          --timeout <DURATION>   End an attempt that takes longer, such as 500ms, 10m or 2h [default:
                                 never; a service: as its file says]
          --max-attempts <N>     How often it is started at most, if it is lost with its machine
                                 [default: 3; a service: as its file says]
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
          --socket <PATH>  The broker's socket [default: $BROKER_SOCKET, else the user's, then the
                           system's]
          --json           Print JSON for programs
      -q, --quiet          Show no progress
      -v, --verbose        Show each change of state as a line on stderr
          --color <WHEN>   When to use colours [default: auto] [possible values: auto, always, never]

    The broker runs the command, and goes on if it is restarted or killed meanwhile; if the machine dies
    with the command, it is run again, at most --max-attempts times. BROKER_PROCESS_ATTEMPT in its
    environment says which time this is.

    The same id with the same content is the same process: whoever runs it again follows it, or sees
    how it ended. Without --detach its output is shown, and this command ends as it does: with its exit
    code, 128 + N if signal N ended it, 124 if it took longer than --timeout, 1 if it was cancelled.
    Ctrl-C ends this command alone. With --json its document is printed at the end, and no output.

    COMMAND gets PATH, HOME and LANG of the broker, and what --env says: `-e PATH` passes on your own.

    Examples:
      brokerctl run -- cargo test --workspace
      brokerctl run --id nightly-2026-11-22 --timeout 2h -e AWS_PROFILE -- ./backup.sh --full
      id=$(brokerctl run --detach -- make world); brokerctl wait "$id"
      brokerctl run backup@^1/tenant-a       a service of kind "process"
    "#);
    insta::assert_snapshot!(fake.run(&["wait", "--help"]).1, @"
    Wait until a process has ended, show its output, and end as it did

    Usage: brokerctl wait [OPTIONS] <ID>

    Arguments:
      <ID>  The process

    Options:
      -h, --help  Print help

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

    Shows the output from its beginning, unless --quiet, then ends as the process does: with its exit
    code, 128 + N if signal N ended it, 124 if it took longer than it may, 1 if it was cancelled. Any
    number of callers may wait, before and after the end. --timeout bounds the wait, with exit code 75,
    and not the process. With --json its document is printed at the end, and no output.

    Examples:
      brokerctl wait nightly-2026-11-22
      brokerctl wait --quiet --timeout 10m nightly-2026-11-22
      brokerctl wait nightly-2026-11-22 --json | jq -r .process.state
    ");
}

#[test]
fn a_command_without_dashes_is_told_where_it_stands() {
    let fake = Fake::new();
    let (code, _, stderr) = fake.run(&["run", "ls", "-l"]);
    assert_eq!(code, Some(2));
    insta::assert_snapshot!(stderr, @"
    error: unexpected argument '-l' found

      tip: to pass '-l' as a value, use '-- -l'

    Usage: brokerctl run [OPTIONS] -- <COMMAND>...
           brokerctl run [OPTIONS] <SERVICE[@REQ][/INSTANCE]>

    For more information, try '--help'.
    ");
    let (code, _, stderr) = fake.run(&["run", "cargo", "test"]);
    assert_eq!(code, Some(2));
    insta::assert_snapshot!(stderr, @"
    brokerctl: error: `cargo test` are several services, and one is run
      a command stands behind `--`: brokerctl run -- cargo test
    ");
}

#[test]
fn run_shows_the_output_and_ends_as_the_command_does() {
    let fake = Fake::new();
    fake.set(json!({}));
    let mut child = fake.spawn(&["run", "--id", "nightly", "-e", "A=1", "--timeout", "1500ms", "--", "make", "-j2"]);
    let AdminRequest::Run { spec } = fake.wait_heard("the process", |r| matches!(r, AdminRequest::Run { .. })) else {
        panic!("not run")
    };
    let here = std::env::current_dir().expect("a directory").display().to_string();
    let expected = ProcessSpec {
        id: Some("nightly".to_owned()),
        work: Work::Command { argv: vec!["make".to_owned(), "-j2".to_owned()] },
        environment: vec![("A".to_owned(), "1".to_owned())],
        working_directory: Some(here),
        timeout_ms: Some(1_500),
        max_attempts: None,
    };
    assert_eq!(spec, expected);
    fake.attempt(1, "\0one\n", "warning\n");
    read(&mut child, "\0one\n");
    append(fake.path("1.out"), "two");
    read(&mut child, "two");
    append(fake.path("1.out"), " and the rest");
    fake.set(json!({"state": "failed", "exit_code": 7, "ended_at": "2026-11-22T03:00:10.000Z"}));
    assert_eq!(ended(child), (Some(7), " and the rest".to_owned(), "warning\n".to_owned()));
}

#[test]
fn run_detached_prints_the_id_or_the_document() {
    let fake = Fake::new();
    fake.set(json!({}));
    assert_eq!(fake.run(&["run", "-d", "--", "make"]), (Some(0), "nightly\n".to_owned(), String::new()));
    let AdminRequest::Run { spec } = fake.wait_heard("the process", |r| matches!(r, AdminRequest::Run { .. })) else {
        panic!("not run")
    };
    assert!(spec.id.expect("always one, so that it can be said again").starts_with("make-"));
    let (code, stdout, _) = fake.run(&["run", "--detach", "--json", "--", "make"]);
    let document: Value = serde_json::from_str(&stdout).expect("a document");
    assert_eq!((code, &document["process"]["id"], &document["created"]), (Some(0), &json!("nightly"), &json!(true)));
}

#[test]
fn the_wait_goes_on_over_the_end_of_the_broker_and_the_loss_of_an_attempt() {
    let fake = Fake::running("first attempt\n");
    let mut child = fake.spawn(&["run", "--", "make"]);
    read(&mut child, "first attempt\n");
    fake.wait_heard("a wait", waits);
    fake.hang_up();
    append(fake.path("1.out"), "written while nobody serves\n");
    read(&mut child, "written while nobody serves\n");
    fake.attempt(2, "second attempt\n", "");
    read(&mut child, "second attempt\n");
    fake.hang_up();
    fake.set(json!({"state": "succeeded", "exit_code": 0}));
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, stdout), (Some(0), String::new()));
    insta::assert_snapshot!(stderr, @"
    process nightly is there already, running: this is its output
    process nightly: attempt 2 of 3 begins, the one before it was lost
    ");
}

#[test]
fn each_end_has_its_exit_code_and_its_sentence() {
    let ends = [
        json!({"state": "succeeded", "exit_code": 0}),
        json!({"state": "failed", "exit_code": 3}),
        json!({"state": "failed", "exit_code": 127, "reason": "cannot execute `make`: No such file or directory"}),
        json!({"state": "failed", "signal": 9}),
        json!({"state": "failed", "signal": 15, "ended_by": "timeout"}),
        json!({"state": "cancelled", "signal": 15, "ended_by": "cancel", "reason": "the disk is full"}),
    ];
    let mut all = String::new();
    for end in ends {
        let fake = Fake::running("out\n");
        fake.set(end);
        let (code, stdout, stderr) = fake.run(&["wait", "nightly"]);
        assert_eq!(stdout, "out\n");
        assert_eq!(fake.run(&["wait", "-q", "nightly"]), (code, String::new(), stderr.clone()));
        all += &format!("{} {}\n", code.expect("no signal"), if stderr.is_empty() { "nothing" } else { stderr.trim() });
    }
    insta::assert_snapshot!(all, @"
    0 nothing
    3 nothing
    127 brokerctl: process nightly: cannot execute `make`: No such file or directory
    137 brokerctl: process nightly was ended by SIGKILL (9)
    124 brokerctl: process nightly took longer than 1.5s, its limit, and was ended
    1 brokerctl: process nightly was cancelled: the disk is full
    ");
    let fake = Fake::running("out\n");
    fake.set(json!({"state": "failed", "exit_code": 3}));
    let (code, stdout, stderr) = fake.run(&["wait", "nightly", "--json"]);
    let document: Value = serde_json::from_str(&stdout).expect("a document");
    assert_eq!((code, &document["process"]["exit_code"], stderr.as_str()), (Some(3), &json!(3), ""));
}

#[test]
fn a_wait_that_ends_early_says_that_the_process_goes_on() {
    let fake = Fake::running("");
    let (code, _, stderr) = fake.run(&["wait", "nightly", "--timeout", "50ms"]);
    assert_eq!(code, Some(75));
    insta::assert_snapshot!(stderr, @"
    brokerctl: error: process nightly has not ended within 50ms
      process nightly goes on: `brokerctl wait nightly` waits for its end,
      `brokerctl cancel nightly --reason TEXT` ends it
    ");

    append(fake.path("1.out"), "ready\n");
    let mut signals = vec![(Signal::SIGTERM, 143)];
    if !is_ignored(Signal::SIGINT) {
        signals.push((Signal::SIGINT, 130));
    }
    for (signal, expected) in signals {
        let mut child = fake.spawn(&["wait", "nightly"]);
        read(&mut child, "ready\n");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("sent");
        let (code, _, stderr) = ended(child);
        assert_eq!(code, Some(expected));
        insta::allow_duplicates! {
            insta::assert_snapshot!(stderr, @"
            process nightly goes on: `brokerctl wait nightly` waits for its end,
            `brokerctl cancel nightly --reason TEXT` ends it
            ");
        }
    }

    let (code, _, stderr) = fake.run(&["wait", "nihgtly"]);
    assert_eq!(code, Some(69));
    insta::assert_snapshot!(stderr, @"
    brokerctl: error: there is no process `nihgtly` (service_unknown)
      `brokerctl processes` lists those that there are
    ");
}

/// Whether the signal was ignored when these tests began, as in the background of a script; brokerctl leaves it so.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    u64::from_str_radix(mask.trim(), 16).expect("a number") & (1 << (signal as i32 - 1)) != 0
}

#[test]
fn without_a_reader_the_command_ends_and_the_process_goes_on() {
    let fake = Fake::running("out\n");
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let mut command = fake.command(&["wait", "nightly"]);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("brokerctl runs");
    let (code, _, stderr) = ended(child);
    assert_eq!(code, Some(141));
    assert!(stderr.starts_with("process nightly goes on"), "{stderr}");
}

#[test]
fn output_that_cannot_be_read_is_said_once_and_waited_on() {
    let fake = Fake::running("");
    fake.set(json!({"stdout": fake.path("gone/1.out"), "stderr": fake.path("gone/1.err")}));
    fake.set(json!({"state": "succeeded", "exit_code": 0}));
    let (code, stdout, stderr) = fake.run(&["wait", "nightly"]);
    assert_eq!((code, stdout), (Some(0), String::new()));
    insta::assert_snapshot!(stderr.replace(fake.folder.path().to_str().expect("text"), "FOLDER"), @"its output cannot be read here: FOLDER/gone/1.out: No such file or directory (os error 2); its end is waited for");
}

#[test]
fn another_process_under_the_same_id_is_refused_with_the_difference() {
    let fake = Fake::running("");
    let (code, _, stderr) = fake.run(&["run", "--id", "nightly", "--", "other"]);
    assert_eq!(code, Some(69));
    insta::assert_snapshot!(stderr, @"
    brokerctl: error: process `nightly` is there already, with other content: (malformed)
      command: make, now other
      `brokerctl processes nightly` shows the one that is there, if there is one: wait for it,
      prune it once it has ended, or take another --id
    ");
    fake.set(json!({"state": "succeeded", "exit_code": 0}));
    let (code, _, stderr) = fake.run(&["run", "--id", "nightly", "--", "make"]);
    assert_eq!((code, stderr.as_str()), (Some(0), "process nightly is there already, succeeded: this is its output\n"));
}

#[test]
fn cancel_waits_for_the_end_and_keeps_the_reason() {
    let fake = Fake::running("");
    let child = fake.spawn(&["cancel", "nightly", "--reason", "the disk is full"]);
    let heard = fake.wait_heard("the order", |request| matches!(request, AdminRequest::Cancel { .. }));
    assert!(matches!(heard, AdminRequest::Cancel { reason, .. } if reason == "the disk is full"));
    fake.wait_heard("a wait", waits);
    let no_wait = fake.run(&["cancel", "nightly", "--no-wait", "--reason", "in a hurry"]);
    assert_eq!(no_wait, (Some(0), "process nightly is asked to end: in a hurry\n".to_owned(), String::new()));
    let (code, _, stderr) = fake.run(&["cancel", "nightly", "--timeout", "20ms"]);
    assert_eq!(code, Some(75));
    insta::assert_snapshot!(stderr, @"
    brokerctl: error: process nightly has not ended within 20ms
      it was asked to, and is killed if it goes on
    ");
    let default = |request: &AdminRequest| matches!(request, AdminRequest::Cancel { reason, .. } if reason.ends_with(" with brokerctl"));
    fake.wait_heard("a reason that was not given", default);
    fake.set(json!({"state": "cancelled", "signal": 15, "ended_by": "cancel", "reason": "the disk is full"}));
    assert_eq!(ended(child).1, "cancelled process nightly: the disk is full\n");

    fake.set(json!({"state": "succeeded", "signal": null, "exit_code": 0, "reason": null, "ended_by": null}));
    let (code, stdout, _) = fake.run(&["cancel", "nightly"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "nothing to cancel: process nightly has succeeded by itself\n"));
}

#[test]
fn processes_are_listed_and_pruned() {
    let fake = Fake::new();
    let (code, stdout, _) = fake.run(&["processes"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "no processes: `brokerctl run -- COMMAND` runs one\n"));
    let (code, stdout, _) = fake.run(&["prune"]);
    let nothing = "nothing to prune: `brokerctl processes` shows what has ended, and when\n";
    assert_eq!((code, stdout.as_str()), (Some(0), nothing));
    fake.set(json!({"state": "failed", "exit_code": 7, "attempt": 1, "ended_at": "2026-11-22T03:00:12.000Z"}));
    insta::assert_snapshot!(fake.run(&["processes", "nightly"]).1, @"
    PROCESS  STATE   FOR  ATTEMPT  PID  COMMAND  NOTES
    nightly  failed  12s  1/3      -    make     exit code 7
    ");
    let (code, _, stderr) = fake.run(&["processes", "x"]);
    assert_eq!(code, Some(69));
    insta::assert_snapshot!(stderr, @"
    brokerctl: error: there is no process `x` (service_unknown)
      `brokerctl processes` lists those that there are
    ");
    let (code, stdout, _) = fake.run(&["processes", "x", "--json"]);
    let document: Value = serde_json::from_str(&stdout).expect("a document");
    assert_eq!((code, &document["refused"]["code"]), (Some(69), &json!("service_unknown")));
    assert_eq!(fake.run(&["prune", "nightly", "--older-than", "1h"]).1, "pruned nightly\n");
    let hour = |request: &AdminRequest| matches!(request, AdminRequest::Prune { older_than_ms: Some(3_600_000), .. });
    fake.wait_heard("the age", hour);
}

#[test]
fn backends_are_released_and_handed_over() {
    let fake = Fake::new();
    let (code, stdout, _) = fake.run(&["release", "redis"]);
    assert_eq!(code, Some(0));
    insta::assert_snapshot!(stdout, @"released redis@7.0.15/a: the next client starts it, what it was held for is left alone");
    let (code, stdout, _) = fake.run(&["release", "other@^1"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "nothing to release: nothing of other@^1 is in quarantine\n"));
    let handed = fake.run(&["shutdown", "--handover", "--timeout", "10s"]);
    let expected = "ended the broker (pid 999999999); 2 backends kept for the next one\n";
    assert_eq!(handed, (Some(0), expected.to_owned(), String::new()));
}
