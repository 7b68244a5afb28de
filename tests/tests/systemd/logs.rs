//! Logs: the broker's own in the journal, and services that write there.

use broker_proto::AdminRequest;
use broker_tests::{Machine, Service, trials, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

trials![
    what_the_broker_says_of_a_backend_is_found_by_its_fields,
    a_format_that_is_given_is_taken_at_its_word,
    a_journal_that_hangs_holds_nobody_up,
    a_service_may_log_to_the_journal,
    what_a_backend_logs_by_itself_is_its_log_too,
    the_noise_of_one_backend_silences_no_other,
    two_instances_of_a_service_are_told_apart,
    following_goes_on_over_a_restart_of_the_backend,
    what_a_daemon_wrote_last_is_evidence,
    a_daemon_keeps_its_stream_when_its_broker_is_replaced,
    a_restart_of_journald_ends_neither_daemon_nor_broker,
    without_a_journal_a_daemon_logs_to_a_file,
    who_cannot_read_the_journal_is_told_why,
    a_user_finds_the_logs_of_a_broker_of_ones_own,
];

/// A machine on which the system's broker runs with these services.
#[track_caller]
fn machine(services: &[Service]) -> Machine {
    let machine = Machine::boot();
    for service in services {
        machine.service(service);
    }
    machine.systemctl(&["start", "brokerd.service"]);
    machine
}

fn text(entry: &Value) -> &str {
    entry["MESSAGE"].as_str().unwrap_or_default()
}

/// Entries of the journal that match, as JSON.
#[track_caller]
fn entries(machine: &Machine, matches: &[&str]) -> Vec<Value> {
    let json = ["journalctl", "--quiet", "--boot", "--output=json", "--all"];
    let lines = machine.run(&[&json, matches].concat()).stdout;
    lines.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

/// Waits for an entry whose message begins so.
#[track_caller]
fn entry(machine: &Machine, matches: &[&str], message: &str) -> Value {
    let begins = |entry: &Value| entry["MESSAGE"].as_str().is_some_and(|text| text.starts_with(message));
    wait_for(format!("`{message}` in the journal"), || entries(machine, matches).into_iter().find(begins))
}

/// Has a fake backend write a line to its stderr.
#[track_caller]
fn say(machine: &Machine, backend: &Value, text: &str) {
    let answer = machine.dial(backend).ask(&format!("!say {text}"));
    let _ = answer.expect("the backend answers");
}

/// Waits until `brokerctl logs` shows exactly these lines of a backend.
#[track_caller]
fn wait_logs(machine: &Machine, arguments: &[&str], expect: &[&str]) {
    let shown = || machine.ctl(&[&["logs"], arguments].concat()).done().stdout;
    wait_until(format!("logs {arguments:?} are {expect:?}"), || shown().lines().eq(expect.iter().copied()));
}

#[track_caller]
fn resolve(machine: &Machine, name: &str) -> Value {
    machine.ctl_json(&["resolve", name]).done().json()
}

fn what_the_broker_says_of_a_backend_is_found_by_its_fields() {
    let machine = machine(&[Service::fake("x", &[])]);
    let backend = resolve(&machine, "x/tenant-a");
    let found = entry(&machine, &["BROKER_SERVICE=x", "BROKER_INSTANCE=tenant-a"], "started ");
    let pid = backend["pid"].to_string();
    for (field, value) in [
        ("SYSLOG_IDENTIFIER", "brokerd"),
        ("_SYSTEMD_UNIT", "brokerd.service"),
        ("PRIORITY", "6"),
        ("BROKER_BACKEND", "x@1.0.0/tenant-a"),
        ("BROKER_VERSION", "1.0.0"),
        ("BROKER_GENERATION", "1"),
        ("BROKER_PID", &pid),
    ] {
        assert_eq!(found[field], value, "{field} in {found:#}");
    }
    let message = found["MESSAGE"].as_str().expect("a text");
    assert!(message.starts_with(&format!("started backend=x@1.0.0/tenant-a generation=1 pid={pid} ")), "{message}");

    machine.write("/etc/broker/services.d/bad.toml", "[service]\nname = \"bad\"\n");
    let _ = machine.ctl(&["reload"]);
    let problem = entry(&machine, &["-t", "brokerd", "-p", "err"], "/etc/broker/services.d/bad.toml");
    assert_eq!(problem["PRIORITY"], "3");
}

fn a_format_that_is_given_is_taken_at_its_word() {
    let machine = Machine::boot();
    let ready = |format: &str| {
        let unit = format!("[Service]\nExecStart=\nExecStart=/usr/bin/brokerd --log-format {format}\n");
        machine.drop_in("brokerd.service", &unit);
        machine.systemctl(&["restart", "brokerd.service"]);
        let pid = format!("_PID={}", machine.main_pid("brokerd.service"));
        let ready = |entry: &Value| entry["MESSAGE"].as_str().is_some_and(|text| text.contains("ready"));
        wait_for("the broker says that it is ready", || entries(&machine, &[&pid]).into_iter().find(ready))
    };
    let text = ready("text");
    assert_eq!((&text["_TRANSPORT"], &text["BROKER_SOCKET"]), (&"stdout".into(), &Value::Null));
    let json: Value = serde_json::from_str(ready("json")["MESSAGE"].as_str().expect("text")).expect("a document");
    assert_eq!(json["message"], "ready");
    let journal = ready("journal");
    assert_eq!(
        (&journal["_TRANSPORT"], &journal["BROKER_SOCKET"]),
        (&"journal".into(), &"/run/broker/broker.sock".into())
    );

    // A folder that is named goes over the journal where nothing else is said.
    machine.write("/etc/broker/broker.toml", "[log]\ndirectory = \"/var/log/broker\"\n");
    machine.drop_in("brokerd.service", "[Service]\nLogsDirectory=broker\n");
    machine.systemctl(&["restart", "brokerd.service"]);
    wait_until("the log is in the folder", || machine.shell("cat /var/log/broker/*").stdout.contains("ready"));
    // An error before there is a log has its priority, too.
    machine.write("/etc/broker/broker.toml", "[log]\nformat = \"jurnal\"\n");
    let _ = machine.run(&["systemctl", "restart", "brokerd.service"]);
    let error = entry(&machine, &["-t", "brokerd", "-p", "err"], "brokerd: error: /etc/broker/broker.toml:2:10");
    assert_eq!(error["PRIORITY"], "3");

    // Asked for where there is none, it is an error.
    let _ = machine.run(&["rm", "/etc/broker/broker.toml"]).done();
    let _ = machine.run(&["mv", "/run/systemd/journal/socket", "/run/away"]).done();
    let refused = machine.run(&["brokerd", "--log-format", "journal"]).exits(1).stderr;
    assert!(refused.contains("there is no journal") && refused.contains("log as text or json"), "{refused}");
}

fn a_journal_that_hangs_holds_nobody_up() {
    let machine = machine(&[Service::fake("x", &[])]);
    let backend = resolve(&machine, "x");
    for number in 0..60 {
        machine.write(&format!("/etc/broker/services.d/bad-{number}.toml"), "[service]\n");
    }
    let journald = machine.main_pid("systemd-journald.service");
    let mut session = machine.session();
    machine.signal(journald, Signal::SIGSTOP);
    // Each bad file is a line of the log or more, and there is room for fewer.
    for _ in 0..100 {
        let _ = session.admin(AdminRequest::Reload).expect("root may");
    }
    assert_eq!(session.hold("x").generation, 1);
    assert_eq!(machine.dial(&backend).pid(), backend["pid"]);
    machine.signal(journald, Signal::SIGCONT);
    let notice = wait_for("what was lost is told", || {
        let lost =
            |entry: &Value| entry["MESSAGE"].as_str().is_some_and(|text| text.contains("entries of this log are lost"));
        entries(&machine, &["-t", "brokerd", "-p", "warning..warning"]).into_iter().find(lost)
    });
    assert_eq!(notice["PRIORITY"], "4");
    session.ping();
    // The notice may be in the middle of what was kept; this is behind all of it.
    let _ = machine.ctl(&["restart", "x"]).done();
    let _ = entry(&machine, &["-t", "brokerd", "BROKER_SERVICE=x", "BROKER_GENERATION=2"], "started ");
    let told =
        entries(&machine, &["-t", "brokerd", "-p", "err"]).iter().filter(|e| text(e).contains("/bad-0.toml")).count();
    assert!((10..100).contains(&told), "{told}");
}

fn a_service_may_log_to_the_journal() {
    let machine = machine(&[Service::fake("x", &["--stderr", "<3>cannot read the <past>"]).in_journal()]);
    let backend = resolve(&machine, "x");
    say(&machine, &backend, "one");
    say(&machine, &backend, "two");
    let start = "starting x@1.0.0/default, generation 1";
    wait_logs(&machine, &["x"], &[start, "cannot read the <past>", "one", "two"]);
    wait_logs(&machine, &["-n", "1", "x"], &["two"]);
    let by_identifier = machine.run(&["journalctl", "--quiet", "--output=cat", "-t", "x"]).done().stdout;
    assert_eq!(by_identifier.lines().collect::<Vec<_>>(), [start, "cannot read the <past>", "one", "two"]);
    let urgent = entry(&machine, &["-t", "x"], "cannot read");
    assert_eq!(urgent["_SYSTEMD_UNIT"], "brokerd-backends.service", "it is not the broker's");
    assert_eq!((&urgent["PRIORITY"], &urgent["_PID"]), (&"3".into(), &backend["pid"].to_string().into()));
    assert_eq!(entry(&machine, &["-t", "x"], "one")["PRIORITY"], "6");

    let status = machine.status();
    assert_eq!(status["backends"][0]["log_path"], "journal");
    assert!(!machine.exists("/var/lib/broker/backends/default/x/1.0.0/logs"), "no file is made");
    let where_it_is = machine.ctl_json(&["logs", "x"]).done().json()["logs"][0].take();
    assert_eq!((&where_it_is["path"], &where_it_is["journal"]["first_line"]), (&Value::Null, &start.into()));
    assert_eq!(where_it_is["journal"]["pids"], serde_json::json!([backend["pid"]]));

    // What rests is read as well, and its earlier starts.
    let _ = machine.ctl(&["restart", "x"]).done();
    let second = "starting x@1.0.0/default, generation 2";
    wait_logs(&machine, &["x"], &[second, "cannot read the <past>"]);
    let _ = machine.ctl(&["stop", "x"]).done();
    wait_logs(&machine, &["x"], &[second, "cannot read the <past>"]);
    let all = machine.ctl(&["logs", "--previous", "-n", "2", "x"]).done().stdout;
    let (old, new) = ("==> x@1.0.0/default, generation 1 <==", "==> x@1.0.0, generation 2 <==");
    assert_eq!(all.lines().collect::<Vec<_>>(), [old, "one", "two", new, second, "cannot read the <past>"]);
}

fn what_a_backend_logs_by_itself_is_its_log_too() {
    // It lives on, for journald looks at whose line it is only when it reads it.
    let script = "systemd-cat -t elsewhere sh -c 'echo by itself; exec sleep 1000' & \
                  exec /usr/bin/fake-backend --listen \"$0\"";
    let service = Service::named("x").command("1.0.0", &["/bin/sh", "-c", script, "{endpoint}"]).in_journal();
    let machine = machine(&[service]);
    let backend = resolve(&machine, "x");
    let _ = entry(&machine, &["-t", "elsewhere"], "by itself");
    say(&machine, &backend, "as it should");
    wait_logs(&machine, &["x"], &["starting x@1.0.0/default, generation 1", "by itself", "as it should"]);
}

fn the_noise_of_one_backend_silences_no_other() {
    let machine = Machine::boot();
    machine.write("/etc/systemd/journald.conf.d/zz.conf", "[Journal]\nRateLimitIntervalSec=1h\nRateLimitBurst=100\n");
    machine.systemctl(&["restart", "systemd-journald.service"]);
    // journald allows a few times the limit where there is much room.
    let script = "seq 1 5000; exec /usr/bin/fake-backend --listen \"$0\"";
    let noisy = Service::named("noisy").command("1.0.0", &["/bin/sh", "-c", script, "{endpoint}"]).in_journal();
    machine.service(&noisy);
    machine.service(&Service::fake("calm", &["--stderr", "heard"]).in_journal());
    machine.systemctl(&["start", "brokerd.service"]);
    let _ = (resolve(&machine, "noisy"), resolve(&machine, "calm"));
    wait_logs(&machine, &["calm"], &["starting calm@1.0.0/default, generation 1", "heard"]);
    wait_logs(&machine, &["-n", "1", "noisy"], &["5000"]);
}

fn two_instances_of_a_service_are_told_apart() {
    // The workers write as well as the main process, and nothing but their stream says whose they are.
    let machine = machine(&[Service::fake("x", &["--workers", "2"]).in_journal()]);
    let [a, b] = ["x/a", "x/b"].map(|name| resolve(&machine, name));
    for round in ["1", "2", "3", "4"] {
        say(&machine, &a, &format!("a{round}"));
        say(&machine, &b, &format!("b{round}"));
    }
    wait_logs(&machine, &["x/a"], &["starting x@1.0.0/a, generation 1", "a1", "a2", "a3", "a4"]);
    wait_logs(&machine, &["x/b"], &["starting x@1.0.0/b, generation 1", "b1", "b2", "b3", "b4"]);
    let both = machine.ctl(&["logs", "-n", "2", "x"]).done().stdout;
    let expect = ["x@1.0.0/a | a3", "x@1.0.0/a | a4", "x@1.0.0/b | b3", "x@1.0.0/b | b4"];
    assert_eq!(both.lines().collect::<Vec<_>>(), expect);
}

fn following_goes_on_over_a_restart_of_the_backend() {
    let machine = machine(&[Service::fake("x", &[]).in_journal()]);
    let backend = resolve(&machine, "x");
    say(&machine, &backend, "old");
    let mut following = machine.spawn(&["brokerctl", "logs", "-f", "--max-reconnect-delay", "100ms", "x"]);
    following.wait_stdout("what was written before", |text| text.ends_with("old\n"));
    say(&machine, &backend, "as it is written");
    following.wait_stdout("what is written", |text| text.ends_with("as it is written\n"));
    machine.signal(backend["pid"].as_u64().expect("a number"), Signal::SIGKILL);
    let again =
        wait_for("the next start", || Some(resolve(&machine, "x")).filter(|next| next["pid"] != backend["pid"]));
    say(&machine, &again, "new");
    following.wait_stdout("what the next start writes", |text| text.ends_with("new\n"));
    // The broker's own death is the end of nothing, unless it does not come back.
    machine.systemctl(&["restart", "brokerd.service"]);
    say(&machine, &again, "to the next broker");
    following.wait_stdout("what is written then", |text| text.ends_with("to the next broker\n"));
    let _ = machine.ctl(&["stop", "x"]).done();
    machine.systemctl(&["restart", "brokerd.service"]);
    let third = resolve(&machine, "x");
    say(&machine, &third, "anew");
    following.wait_stdout("what the start after that writes", |text| text.ends_with("anew\n"));
    machine.systemctl(&["stop", "brokerd.socket", "brokerd.service"]);
    let output = following.finish().exits(69);
    let start = |generation: u32| format!("starting x@1.0.0/default, generation {generation}");
    let (first, second, third) = (start(1), start(2), start(3));
    let expect = [&first, "old", "as it is written", &second, "new", "to the next broker", &third, "anew"];
    assert_eq!(output.stdout.lines().collect::<Vec<_>>(), expect, "nothing twice: {}", output.stderr);
    let readers = || machine.shell("grep -lx journalctl /proc/[0-9]*/comm || true").done().stdout;
    wait_until("nobody reads the journal any more", || readers().is_empty());
}

fn what_a_daemon_wrote_last_is_evidence() {
    let last = "read the configuration\nthe disk is on fire";
    let machine = machine(&[
        Service::fake("bad", &["--stderr", last, "--exit", "7"]).in_journal(),
        Service::fake("silent", &["--exit", "8"]).in_journal(),
        Service::named("cut").command("1.0.0", &["/bin/sh", "-c", "printf 'never ended'; exit 9"]).in_journal(),
    ]);
    let refused = machine.ctl_json(&["resolve", "bad"]).refused(75, "backend_unavailable");
    let evidence = &refused["evidence"];
    assert_eq!((&evidence["exit_code"], &evidence["log_path"]), (&7.into(), &"journal".into()));
    assert_eq!(evidence["stderr"], last, "the broker's own line is none of the daemon's");
    let human = machine.ctl(&["resolve", "bad"]).exits(75).stderr;
    assert!(
        human.contains("the disk is on fire") && human.contains("the journal; `brokerctl logs bad` shows it"),
        "{human}"
    );
    let refused = machine.ctl_json(&["resolve", "silent"]).refused(75, "backend_unavailable");
    assert_eq!((&refused["evidence"]["exit_code"], &refused["evidence"]["stderr"]), (&8.into(), &Value::Null));
    let refused = machine.ctl_json(&["resolve", "cut"]).refused(75, "backend_unavailable");
    assert_eq!(refused["evidence"]["stderr"], "never ended");
    assert_eq!(machine.ctl(&["logs", "bad"]).done().stdout.lines().last(), Some("the disk is on fire"));
}

fn a_daemon_keeps_its_stream_when_its_broker_is_replaced() {
    let machine = machine(&[Service::fake("x", &[]).in_journal()]);
    let backend = resolve(&machine, "x");
    say(&machine, &backend, "before");
    machine.systemctl(&["restart", "brokerd.service"]);
    assert_eq!(resolve(&machine, "x")["pid"], backend["pid"]);
    say(&machine, &backend, "after a restart");
    let broker = machine.main_pid("brokerd.service");
    machine.signal(broker, Signal::SIGKILL);
    say(&machine, &backend, "while there is none");
    let _ = machine.wait_property("brokerd.service", "MainPID", |pid| pid != "0" && pid != broker.to_string());
    wait_until("the next broker answers", || machine.ctl(&["status"]).code == 0);
    assert_eq!(resolve(&machine, "x")["pid"], backend["pid"]);
    say(&machine, &backend, "after a death");
    let start = "starting x@1.0.0/default, generation 1";
    wait_logs(&machine, &["x"], &[start, "before", "after a restart", "while there is none", "after a death"]);
    assert_eq!(machine.status()["backends"][0]["log_path"], "journal");
}

fn a_restart_of_journald_ends_neither_daemon_nor_broker() {
    let machine = machine(&[Service::fake("x", &[]).in_journal()]);
    let backend = resolve(&machine, "x");
    let broker = machine.main_pid("brokerd.service");
    for round in ["1", "2"] {
        machine.systemctl(&["restart", "systemd-journald.service"]);
        say(&machine, &backend, &format!("after restart {round}"));
        let _ = entry(&machine, &["-t", "x"], &format!("after restart {round}"));
        // The broker's own log goes on as well.
        let _ = machine.ctl(&["resolve", &format!("nosuch{round}")]).exits(69);
        let _ = entry(&machine, &["-t", "brokerd", &format!("BROKER_SERVICE=nosuch{round}")], "refused");
    }
    assert_eq!(
        (resolve(&machine, "x")["pid"].clone(), machine.main_pid("brokerd.service")),
        (backend["pid"].clone(), broker)
    );
    wait_logs(&machine, &["-n", "2", "x"], &["after restart 1", "after restart 2"]);
}

fn without_a_journal_a_daemon_logs_to_a_file() {
    let machine = machine(&[Service::fake("x", &[]).in_journal()]);
    let place = "/run/systemd/journal/stdout";
    let _ = machine.run(&["mv", place, "/run/away"]).done();
    let checked = machine.ctl(&["check"]).done();
    let said = format!("{}{}", checked.stdout, checked.stderr);
    assert!(said.contains("x.toml:3:7: warning: `log` in [service]: there is no journal on this machine"), "{said}");
    let backend = resolve(&machine, "x");
    say(&machine, &backend, "to a file");
    let path = machine.status()["backends"][0]["log_path"].as_str().expect("a path").to_owned();
    assert_eq!(machine.read(&path), "to a file\n");
    wait_logs(&machine, &["x"], &["to a file"]);
    let warning = entry(&machine, &["BROKER_SERVICE=x", "-p", "warning"], "the journal takes no stream");
    assert_eq!(warning["BROKER_GENERATION"], "1");

    let _ = machine.run(&["mv", "/run/away", place]).done();
    assert!(!machine.ctl(&["check"]).done().stdout.contains("there is no journal"));
    let _ = machine.ctl(&["restart", "x"]).done();
    wait_logs(&machine, &["x"], &["starting x@1.0.0/default, generation 2"]);
    let all = machine.ctl(&["logs", "--previous", "x"]).done().stdout;
    assert!(all.starts_with(&format!("==> {path} <==\nto a file\n==> ")), "{all}");
}

fn who_cannot_read_the_journal_is_told_why() {
    let machine = machine(&[Service::fake("x", &[]).in_journal()]);
    let _ = resolve(&machine, "x");
    let missing = machine.run(&["env", "PATH=/nowhere", "/usr/bin/brokerctl", "logs", "x"]).exits(1).stderr;
    assert!(missing.contains("there is no `journalctl` in PATH"), "{missing}");

    // A user with a broker of one's own, and a journal that is root's.
    let _ = machine.run(&["useradd", "--create-home", "someone"]).done();
    let services = "/home/someone/.config/broker/services.d";
    let _ = machine.run_as("someone", &["mkdir", "-p", services]).done();
    let _ = machine.run(&["cp", "/etc/broker/services.d/x.toml", services]).done();
    let _ = machine.run(&["install", "-d", "-o", "someone", "/run/user/someone"]).done();
    let as_user = |command: &[&str]| {
        let environment = ["env", "XDG_RUNTIME_DIR=/run/user/someone"];
        machine.run_as("someone", &[&environment, command].concat())
    };
    let _ = as_user(&["brokerctl", "resolve", "x"]).done();
    let refused = as_user(&["brokerctl", "logs", "x"]).exits(77).stderr;
    assert!(refused.contains("the journal may not be read") && refused.contains("`systemd-journal`"), "{refused}");
    let _ = machine.run(&["gpasswd", "--add", "someone", "systemd-journal"]).done();
    let shown = || as_user(&["brokerctl", "logs", "x"]).done().stdout;
    wait_until("a member of the group may", || shown().starts_with("starting x@1.0.0/default, generation 1\n"));
}

fn a_user_finds_the_logs_of_a_broker_of_ones_own() {
    let machine = Machine::boot();
    // Users may read their own entries, where journald keeps them apart.
    machine.write("/etc/systemd/journald.conf.d/zz.conf", "[Journal]\nStorage=persistent\nSplitMode=uid\n");
    machine.systemctl(&["restart", "systemd-journald.service"]);
    let _ = machine.run(&["journalctl", "--flush"]).done();
    let alice = machine.user("alice");
    alice.service(&Service::fake("x", &[]).in_journal());
    alice.systemctl(&["start", "brokerd.socket"]);
    say(&machine, &alice.resolve("x"), "at home");
    let shown = |command: &str| alice.shell(command).stdout;
    let expect = "starting x@1.0.0/default, generation 1\nat home\n";
    wait_until("the daemon's lines", || shown("brokerctl logs x") == expect);
    wait_until("the broker's", || {
        shown("journalctl -q -o cat BROKER_SERVICE=x").contains("started backend=x@1.0.0/default")
    });
}
