//! What a backend is born with, and nothing else.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use broker_proto::Code;
use broker_tests::{Broker, Service, Setup, trials, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::recovery::kill_backend;

/// `O_APPEND`, as /proc prints it.
const APPEND: u32 = 0o2000;

trials![
    a_backend_leads_a_session_and_has_only_its_own_descriptors,
    a_backend_with_a_passed_socket_has_that_one_more,
    the_environment_is_exactly_as_declared,
    directory_and_umask_are_as_declared,
    names_in_braces_are_filled_in,
    signals_and_limits_are_reset,
    every_start_has_a_log_of_its_own_and_old_ones_are_kept_up_to_a_number,
    what_logs_to_the_journal_is_looked_for_there_by_the_next_broker_too,
    a_start_whose_log_cannot_be_put_in_its_place_leaves_nothing,
];

fn facts_of(service: &Service, name: &str, facts: &str) -> (Broker, Value, Value) {
    let broker = Broker::start(&[service]);
    let backend = broker.resolve(name);
    (broker, backend, read_facts(facts))
}

/// The facts, once the backend has written them: one that is ready at exec may not have done so yet.
fn read_facts(path: &str) -> Value {
    let text = wait_for("the backend's facts", || fs::read_to_string(path).ok());
    serde_json::from_str(&text).expect("facts")
}

/// A path for the facts that outlives the broker's folder no longer than the test.
fn facts_file() -> (tempfile::TempDir, String) {
    let folder = tempfile::Builder::new().prefix("bf.").tempdir_in("/tmp").expect("a folder in /tmp");
    let path = folder.path().join("facts").to_str().expect("an ASCII path").to_owned();
    (folder, path)
}

fn flags(facts: &Value, descriptor: &str) -> u32 {
    let text = facts["descriptors"][descriptor]["flags"].as_str().expect("open flags");
    u32::from_str_radix(text, 8).expect("an octal number")
}

fn a_backend_leads_a_session_and_has_only_its_own_descriptors() {
    let (_folder, path) = facts_file();
    let (broker, backend, facts) = facts_of(&Service::fake("x", &["--print-facts", &path]), "x", &path);
    let pid = &backend["pid"];
    assert_eq!((&facts["pid"], &facts["sid"], &facts["pgid"]), (pid, pid, pid));
    assert_eq!(facts["ppid"], broker.pid(), "nothing stands between broker and daemon");

    let descriptors = facts["descriptors"].as_object().expect("descriptors");
    assert_eq!(descriptors.keys().collect::<Vec<_>>(), ["0", "1", "2"], "{descriptors:?}");
    let log = broker.backend("x")["log_path"].clone();
    // From outside: the log of a first start gets its name while the daemon begins.
    let target = |number| fs::read_link(format!("/proc/{pid}/fd/{number}")).expect("it runs");
    let targets = ["0", "1", "2"].map(|number| json!(target(number)));
    assert_eq!(targets, [json!("/dev/null"), log.clone(), log], "no pipe to the broker");
    for number in ["1", "2"] {
        assert_eq!(flags(&facts, number) & APPEND, APPEND, "the log is opened for appending");
    }
}

fn a_backend_with_a_passed_socket_has_that_one_more() {
    let (_folder, path) = facts_file();
    let service = Service::fake_on_passed_socket("x", &["--print-facts", &path]);
    let tables = "[readiness]\nprobe = \"socket\"\n[service.environment]\ninherit = []";
    let (_broker, _, facts) = facts_of(&service.toml(tables), "x", &path);
    let descriptors = facts["descriptors"].as_object().expect("descriptors");
    assert_eq!(descriptors.keys().collect::<Vec<_>>(), ["0", "1", "2", "3"], "{descriptors:?}");
    assert!(descriptors["3"]["target"].as_str().is_some_and(|target| target.starts_with("socket:")));
    let names: Vec<_> = facts["environment"].as_object().expect("an environment").keys().collect();
    assert_eq!(names, ["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"], "no variable but the protocol's own");
}

fn the_environment_is_exactly_as_declared() {
    let (_folder, path) = facts_file();
    let setup = Setup::new().variable("SECRET_OF_THE_BROKER", "x").variable("WANTED", "from the broker");
    let environment = "[service.environment]\ninherit = [\"WANTED\", \"NOT_THERE\"]\n\
                       set = { RUST_LOG = \"info\", WHERE = \"{service}-{version}-{instance}\" }";
    let service = Service::fake("x", &["--print-facts", &path]).toml(environment);
    let broker = setup.service(&service).start();
    let _ = broker.resolve("x");
    let facts = read_facts(&path);
    let expected = json!({ "WANTED": "from the broker", "RUST_LOG": "info", "WHERE": "x-1.0.0-default" });
    assert_eq!(facts["environment"], expected);
}

fn directory_and_umask_are_as_declared() {
    let (folder, path) = facts_file();
    let (broker, _, facts) = facts_of(&Service::fake("x", &["--print-facts", &path]), "x", &path);
    assert_eq!((&facts["cwd"], &facts["umask"]), (&"/".into(), &"0077".into()), "the defaults");

    let elsewhere = folder.path().to_str().expect("an ASCII path");
    let tables = format!("[lifecycle]\nworking_directory = {elsewhere:?}\numask = \"0027\"");
    broker.write_service(&Service::fake("y", &[]).toml(&tables));
    let state = "[lifecycle]\nworking_directory = \"{state_dir}\"";
    broker.write_service(&Service::fake("z", &[]).toml(state));
    let _ = broker.ctl(&["reload"]).done();
    let facts = broker.dial(&broker.resolve("y")).facts();
    assert_eq!((&facts["cwd"], &facts["umask"]), (&elsewhere.into(), &"0027".into()));
    let facts = broker.dial(&broker.resolve("z")).facts();
    let own = facts["cwd"].as_str().expect("a directory");
    let metadata = fs::metadata(own).expect("the state folder is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o700, "a private folder: {own}");
    fs::write(Path::new(own).join("kept"), "x").expect("a writable folder");
    let _ = broker.ctl(&["stop", "z"]).done();
    assert!(Path::new(own).join("kept").exists(), "it outlives the backend");
    assert_eq!(broker.dial(&broker.resolve("z")).facts()["cwd"], own, "one per key");
    let other = broker.resolve("z/other");
    assert_ne!(broker.dial(&other).facts()["cwd"], own);
}

fn names_in_braces_are_filled_in() {
    let parts = "{service}|{version}|{instance}|{state_dir}|{endpoint}|{{literal}}";
    let unix = Service::fake("u", &["--stderr", parts]);
    let tcp =
        Service::named("t").version("15.0.0", &["--listen", "127.0.0.1:{port}", "--stderr", "{endpoint} {version}"]);
    let broker = Broker::start(&[&unix, &tcp.toml("[endpoint]\nkind = \"tcp\"")]);
    let argument = |backend: &Value| {
        let facts = broker.dial(backend).facts();
        let arguments = facts["arguments"].as_array().expect("arguments");
        arguments.last().and_then(Value::as_str).expect("a text").to_owned()
    };
    let backend = broker.resolve("u/tenant-a");
    let said = argument(&backend);
    let endpoint = backend["endpoint"].as_str().and_then(|e| e.strip_prefix("unix:")).expect("a path");
    let words: Vec<_> = said.split('|').collect();
    assert_eq!((&words[..3], &words[4..]), (&["u", "1.0.0", "tenant-a"][..], &[endpoint, "{literal}"][..]));
    assert!(Path::new(words[3]).is_dir() && words[3].starts_with(broker.path("state").to_str().expect("ASCII")));
    assert!(endpoint.starts_with(broker.path("run").to_str().expect("ASCII")), "beside the socket: {endpoint}");

    let backend = broker.resolve("t");
    let address = backend["endpoint"].as_str().and_then(|e| e.strip_prefix("tcp:")).expect("a port");
    assert_eq!(argument(&backend), format!("{address} 15.0.0"));
}

fn signals_and_limits_are_reset() {
    let (_folder, path) = facts_file();
    let setup = Setup::new().service(&Service::fake("x", &["--print-facts", &path]));
    let broker = setup.start();
    let _ = broker.resolve("x");
    let facts = read_facts(&path);
    for set in ["blocked", "ignored"] {
        let signals = facts[set].as_str().and_then(|text| u64::from_str_radix(text, 16).ok());
        assert_eq!(signals, Some(0), "{set} signals: {facts}");
    }
    let own = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    assert_eq!(facts["nofile"], json!([own.0, own.1]), "the limit that the broker was started with");
}

fn every_start_has_a_log_of_its_own_and_old_ones_are_kept_up_to_a_number() {
    let service = Service::fake("x", &["--stderr", "born"]).toml("[log]\nkeep = 2");
    let broker = Broker::start(&[&service.toml("[recovery]\nhealthy_after = \"1ms\"")]);
    let mut seen: Vec<String> = Vec::new();
    for start in 1..=4 {
        let backend = broker.resolve("x");
        broker.dial(&backend).ask(&format!("!say start {start}")).expect("served");
        let log = broker.backend("x")["log_path"].as_str().expect("a log").to_owned();
        assert!(!seen.contains(&log), "a file per start");
        let text = fs::read_to_string(&log).expect("a readable log");
        assert_eq!(text, format!("born\nstart {start}\n"));
        let mode = fs::metadata(&log).expect("a log").permissions().mode();
        assert_eq!(mode & 0o077, 0, "logs are private");
        seen.push(log);
        if start < 4 {
            kill_backend(&backend);
            broker.wait_backend("x", "down", |b| b["pid"].is_null());
        }
    }
    wait_until("old logs beyond the limit are gone", || !Path::new(&seen[0]).exists());
    let logs = broker.ctl_json(&["logs", "x"]).done().json();
    assert_eq!(logs["logs"][0]["path"], seen[3].as_str());
    assert_eq!(logs["logs"][0]["previous"], json!([seen[1], seen[2]]), "oldest first");
    assert!(seen[1..].iter().all(|path| Path::new(path).exists()));
}

fn what_logs_to_the_journal_is_looked_for_there_by_the_next_broker_too() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = broker.resolve("x");
    let old = broker.backend("x")["log_path"].clone();
    let _ = broker.ctl(&["stop", "x"]).done();
    broker.write_service(&Service::fake("x", &[]).in_journal());
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    broker.start_again();
    let logs = broker.ctl_json(&["logs", "x"]).done().json();
    let log = &logs["logs"][0];
    assert_eq!((&log["path"], &log["journal"]["identifier"]), (&Value::Null, &"x".into()), "{log}");
    assert_eq!(log["previous"], json!([old]));
}

fn a_start_whose_log_cannot_be_put_in_its_place_leaves_nothing() {
    let broker = Broker::start(&[&Service::fake("x", &["--workers", "2"])]);
    // That is seen only when the folder is made, which is while the daemon begins.
    let folder = broker.path("state/backends");
    symlink(broker.path("nowhere"), &folder).expect("no backend has a folder yet");
    let refusal = broker.session().resolve("x").expect_err("there is no place for its log");
    assert_eq!(refusal.code, Code::SpawnFailed);
    assert!(refusal.reason.contains("cannot make the log folder"), "{}", refusal.reason);
    broker.assert_gone("x");
    assert_eq!(fs::read_dir(broker.path("state/starts")).expect("a folder of records").count(), 0);
    fs::remove_file(&folder).expect("a link");
    let _ = broker.ctl(&["start", "x"]).done();
    assert!(Path::new(broker.backend("x")["log_path"].as_str().expect("a log")).exists());
}
