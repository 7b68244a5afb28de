//! Service files: what is wrong with them, and what a reload changes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use broker_tests::{Broker, Service, Setup, fake_backend, trials};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

trials![
    a_bad_file_takes_neither_others_nor_running_backends_down,
    check_names_file_line_key_and_likely_spelling,
    check_passes_good_files_and_needs_no_broker,
    a_running_backend_keeps_its_definition_and_is_outdated,
    a_reload_says_what_was_added_changed_and_removed,
    sighup_reloads,
    a_directory_of_versions_is_read,
    files_that_others_can_write_are_not_loaded,
    a_process_is_listed_as_one_and_nobody_is_connected_to_it,
];

fn a_bad_file_takes_neither_others_nor_running_backends_down() {
    let broker = Broker::start(&[&Service::fake("good", &[]), &Service::fake("turns-bad", &[])]);
    let (good, bad) = (broker.resolve("good"), broker.resolve("turns-bad"));
    fs::write(broker.path("services.d/turns-bad.toml"), "[service\nname =").expect("the folder takes a file");
    fs::write(broker.path("services.d/new.toml"), "[service]\nnom = 'new'\n").expect("the folder takes a file");

    let report = broker.ctl_json(&["reload"]).done().json();
    let problems = report["problems"].as_array().expect("problems");
    for file in ["turns-bad.toml", "new.toml"] {
        assert!(problems.iter().any(|p| p["file"].as_str().is_some_and(|f| f.ends_with(file))), "{file}: {report}");
    }
    assert_eq!(broker.resolve("good"), good);
    assert_eq!(broker.backend("turns-bad")["pid"], bad["pid"], "what runs is left alone");
    let _ = broker.dial(&bad).ask("hello").expect("served");
    assert_eq!(broker.status()["broker"]["problems"], problems.len());
    let services = broker.ctl_json(&["services"]).done().json();
    assert_eq!(services["problems"].as_array().map(Vec::len), Some(problems.len()));
    let refused = broker.ctl_json(&["resolve", "new"]).refused(69, "service_unknown");
    let reason = refused["reason"].as_str().expect("a text");
    for part in ["its file has errors: ", "new.toml", "unknown key `nom`", "no version"] {
        assert!(reason.contains(part), "`{part}` is missing: {reason}");
    }
}

fn check_names_file_line_key_and_likely_spelling() {
    let broker = Broker::start(&[]);
    let program = fake_backend().display().to_string();
    let head = format!(
        "[service]\nname = \"x\"\n[[version]]\nversion = \"1.0.0\"\ncommand = [{program:?}, \"{{endpoint}}\"]\n"
    );
    let cases = [
        ("misspelt", "[recovery]\nretry_backof = \"1s\"\n", 7, &["retry_backof", "retry_backoff"][..]),
        ("table", "[lifecicle]\n", 6, &["lifecicle", "lifecycle"]),
        ("duration", "[readiness]\nhard_ceiling = \"soon\"\n", 7, &["hard_ceiling", "soon"]),
        ("number", "[readiness]\nhard_ceiling = 60\n", 7, &["hard_ceiling"]),
        ("probe", "[readiness]\nprobe = \"conect\"\n", 7, &["conect", "connect"]),
        ("signal", "[lifecycle]\nstop_signal = \"SIGTREM\"\n", 7, &["SIGTREM", "SIGTERM"]),
        ("umask", "[lifecycle]\numask = \"999\"\n", 7, &["umask", "999"]),
        ("brace", "[service.environment]\nset = { A = \"{endpiont}\" }\n", 7, &["endpiont", "endpoint"]),
    ];
    for (name, tail, line, words) in cases {
        let path = broker.path(&format!("{name}.toml"));
        fs::write(&path, format!("{head}{tail}")).expect("the folder takes a file");
        let path = path.to_str().expect("ASCII").to_owned();
        let output = broker.ctl(&["check", &path]).exits(1);
        let text = format!("{}{}", output.stdout, output.stderr);
        assert!(text.contains(&format!("{path}:{line}:")), "{name}: {text}");
        for word in words {
            assert!(text.contains(word), "{name}: `{word}` is missing: {text}");
        }
        let report = broker.ctl_json(&["check", &path]).exits(1).json();
        let problem = &report["problems"][0];
        let found = (&problem["file"], &problem["line"], &problem["severity"]);
        assert_eq!(found, (&Value::from(path), &Value::from(line), &Value::from("error")), "{name}: {report}");
    }
    let path = broker.path("incomplete.toml").to_str().expect("ASCII").to_owned();
    fs::write(&path, "[service]\nname = \"x\"\n[[version]]\nversion = \"1\"\n").expect("the folder takes a file");
    let output = broker.ctl(&["check", &path]).exits(1);
    assert!(format!("{}{}", output.stdout, output.stderr).contains("command"), "a missing field is named");
}

fn check_passes_good_files_and_needs_no_broker() {
    let mut broker = Broker::start(&[&Service::fake("one", &[]), &Service::fake("two", &[])]);
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    let folder = broker.path("services.d").to_str().expect("ASCII").to_owned();
    let _ = broker.ctl(&["check", &folder]).done();
    let one = broker.path("services.d/one.toml").to_str().expect("ASCII").to_owned();
    assert_eq!(broker.ctl_json(&["check", &one]).done().json()["problems"], json!([]));
    let missing = broker.path("services.d/none.toml").to_str().expect("ASCII").to_owned();
    let output = broker.ctl(&["check", &missing]).exits(1);
    assert!(format!("{}{}", output.stdout, output.stderr).contains("none.toml"), "{output:?}");
}

fn a_running_backend_keeps_its_definition_and_is_outdated() {
    let broker = Broker::start(&[&Service::fake("x", &["--stderr", "old words"])]);
    let before = broker.resolve("x");
    assert_eq!(broker.backend("x")["outdated"], false);
    broker.write_service(&Service::fake("x", &["--stderr", "new words"]));
    let _ = broker.ctl(&["reload"]).done();
    assert_eq!(broker.resolve("x"), before, "it goes on as it is");
    assert_eq!(broker.backend("x")["outdated"], true);
    let _ = broker.ctl(&["restart", "x"]).done();
    let backend = broker.backend("x");
    assert_eq!((&backend["outdated"], &backend["generation"]), (&false.into(), &2.into()));
    assert!(broker.ctl(&["logs", "x"]).done().stdout.contains("new words"));

    fs::remove_file(broker.path("services.d/x.toml")).expect("the file is there");
    let _ = broker.ctl(&["reload"]).done();
    assert_eq!(broker.backend("x")["pid"], backend["pid"], "a removed definition stops nothing");
    let _ = broker.ctl(&["stop", "x"]).done();
    let _ = broker.ctl_json(&["resolve", "x"]).refused(69, "service_unknown");
}

fn a_reload_says_what_was_added_changed_and_removed() {
    let services = ["stays", "changes", "goes"].map(|name| Service::fake(name, &[]));
    let broker = Broker::start(&services.each_ref());
    broker.write_service(&Service::fake("comes", &[]));
    broker.write_service(&Service::fake("changes", &[]).toml("[log]\nkeep = 1"));
    fs::remove_file(broker.path("services.d/goes.toml")).expect("the file is there");
    let report = broker.ctl_json(&["reload"]).done().json();
    let expected = json!({
        "services": 3, "versions": 3, "added": ["comes"], "changed": ["changes"], "removed": ["goes"], "problems": [],
    });
    assert_eq!(report, expected);
    let nothing = broker.ctl_json(&["reload"]).done().json();
    assert_eq!((&nothing["added"], &nothing["changed"], &nothing["removed"]), (&json!([]), &json!([]), &json!([])));
}

fn sighup_reloads() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let before = broker.resolve("x");
    broker.write_service(&Service::fake("late", &[]));
    broker.signal(Signal::SIGHUP);
    broker_tests::wait_until("the new service is known", || broker.ctl(&["resolve", "late"]).code == 0);
    assert_eq!(broker.resolve("x"), before);
}

fn a_directory_of_versions_is_read() {
    let setup = Setup::new();
    let opt = setup.folder().join("opt");
    let install = |version: &str| {
        let folder = opt.join(version).join("bin");
        fs::create_dir_all(&folder).expect("the folder takes folders");
        std::os::unix::fs::symlink(fake_backend(), folder.join("daemon")).expect("a link");
    };
    ["1.2.0", "1.10.0", "not-a-version"].into_iter().for_each(install);
    let (pattern, program) = (setup.path("opt/*"), setup.path("opt/{version}/bin/daemon"));
    let command = format!("command = [{program:?}, \"--listen\", \"{{endpoint}}\"]");
    let service = Service::named("x").toml(&format!("[versions]\ndirectory = {pattern:?}\n{command}"));
    let broker = setup.service(&service).start();
    let backend = broker.resolve("x");
    assert_eq!(backend["version"], "1.10.0");
    let program = broker.path("opt/1.10.0/bin/daemon").display().to_string();
    assert_eq!(broker.dial(&backend).facts()["arguments"][0], program);
    assert_eq!(broker.resolve("x@~1.2")["version"], "1.2.0");
    // The same words mean another version once there is one, and the old one when it is gone.
    install("1.11.0");
    let _ = broker.ctl(&["reload"]).done();
    assert_eq!(broker.resolve("x")["version"], "1.11.0");
    fs::remove_dir_all(opt.join("1.11.0")).expect("the folder is there");
    let _ = broker.ctl(&["reload"]).done();
    assert_eq!(broker.resolve("x")["version"], "1.10.0");
}

fn files_that_others_can_write_are_not_loaded() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    fs::set_permissions(broker.path("services.d/x.toml"), fs::Permissions::from_mode(0o666)).expect("own file");
    let report = broker.ctl_json(&["reload"]).done().json();
    let message = report["problems"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("writ"), "the reason is given: {report}");
    assert_eq!(broker.resolve("x")["state"], "ready", "the last good definition goes on");
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());
    broker.start_again();
    let refused = broker.ctl_json(&["resolve", "x"]).refused(69, "service_unknown");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("writ")), "{refused}");
}

fn a_process_is_listed_as_one_and_nobody_is_connected_to_it() {
    let broker = Broker::start(&[&Service::fake("served", &[])]);
    let text = "[service]\nname = \"backup\"\nkind = \"process\"\n[[version]]\nversion = \"1\"\ncommand = [\"true\"]\n";
    fs::write(broker.path("services.d/backup.toml"), text).expect("the folder takes a file");
    let report = broker.ctl_json(&["reload"]).done().json();
    assert_eq!((&report["added"], &report["versions"]), (&json!(["backup"]), &json!(2)), "{report}");
    let services = broker.ctl_json(&["services"]).done().json();
    let kinds: Vec<&Value> = services["services"].as_array().expect("a list").iter().map(|s| &s["kind"]).collect();
    assert_eq!(kinds, ["process", "daemon"]);
    for order in ["resolve", "start", "connect"] {
        let refused = broker.ctl_json(&[order, "backup"]).refused(69, "service_unknown");
        let reason = "`backup` is a process and not a daemon: `brokerctl run backup` runs it";
        assert_eq!(refused["reason"], reason, "{order}");
    }
}
