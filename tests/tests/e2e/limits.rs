//! What `[limits]` of a service file does, and that what it cannot do is said.

use std::fs;
use std::path::Path;

use broker_tests::{Broker, Service, Setup, cgroup_hindrance, is_root_cgroup, own_cgroup, trials};
use serde_json::{Value, json};

trials![
    each_limit_holds_or_is_said_not_to,
    a_limit_of_descriptors_holds_everywhere,
    more_descriptors_than_may_be_given_are_said_to_be,
    without_cgroups_the_reason_is_theirs,
    changed_limits_are_applied_by_a_restart,
    a_durable_process_has_limits_too,
    check_says_what_no_broker_here_can_enforce,
];

/// Each limit of a cgroup: its key, its controller, the file that holds it, and what is to be in it.
const OF_CGROUP: [(&str, &str, &str, &str); 3] = [
    ("memory_max", "memory", "memory.max", "536870912"),
    ("tasks_max", "pids", "pids.max", "100"),
    ("cpu_weight", "cpu", "cpu.weight", "50"),
];

const LIMITS: &str = "[limits]\nmemory_max = \"512MiB\"\ntasks_max = 100\ncpu_weight = 50\nnofile = 321\n";

fn words(file: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// Whether a controller holds below our own cgroup, or can be enabled there: not beside ourselves, but at the root.
fn can_be_had(controller: &str) -> bool {
    let Some(own) = own_cgroup().filter(|_| cgroup_hindrance().is_none()) else { return false };
    let file = if is_root_cgroup(&own) { "cgroup.controllers" } else { "cgroup.subtree_control" };
    words(&own.join(file)).any(|word| word == controller)
}

/// The soft and hard limit of open files of a process.
fn nofile(pid: &Value) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    let mut words = line.split_whitespace().skip(3).map(str::to_owned);
    (words.next().expect("a number"), words.next().expect("a number"))
}

fn both(number: u64) -> (String, String) {
    (number.to_string(), number.to_string())
}

/// Why a limit of a backend does not hold, if so.
fn why(backend: &Value, limit: &str) -> Option<String> {
    let found =
        backend["limits"]["not_enforced"].as_array().expect("a list").iter().find(|one| one["limit"] == limit)?;
    Some(found["why"].as_str().expect("a reason").to_owned())
}

fn each_limit_holds_or_is_said_not_to() {
    let broker = Broker::start(&[&Service::fake("x", &[]).toml(LIMITS), &Service::fake("y", &[])]);
    let _ = (broker.resolve("x"), broker.resolve("y"));
    let (x, y) = (broker.backend("x"), broker.backend("y"));
    assert_eq!(y["limits"], Value::Null);
    let limits = &x["limits"];
    let said = json!([limits["memory_max"], limits["tasks_max"], limits["cpu_weight"], limits["nofile"]]);
    assert_eq!(said, json!([536_870_912, 100, 50, 321]));
    let status = broker.ctl(&["status"]).done().stdout;
    for (limit, controller, file, value) in OF_CGROUP {
        let written = x["cgroup"].as_str().map(|cgroup| fs::read_to_string(Path::new(cgroup).join(file)));
        let holds = written.is_some_and(|written| written.is_ok_and(|text| text.trim() == value));
        match why(&x, limit) {
            None => assert!(holds, "{limit} is said to hold"),
            Some(why) => {
                assert!(!holds && (x["cgroup"].is_null() || why.contains(controller)), "{limit}: {why}");
                assert!(status.contains(&format!("`{limit}` is not enforced: {why}")), "{status}");
                assert!(broker.log().contains(&why), "the log says so");
            }
        }
    }
    assert_eq!(why(&x, "nofile"), None);
}

fn a_limit_of_descriptors_holds_everywhere() {
    let limited = Service::fake("x", &[]).toml("[limits]\nnofile = 321");
    let mut broker = Setup::new().config("cgroups = \"off\"").service(&limited).start();
    let backend = broker.resolve("x");
    assert_eq!(nofile(&backend["pid"]), both(321));
    broker.kill_and_start_again();
    let backend = broker.backend("x");
    assert_eq!((&backend["adopted"], &backend["limits"]), (&true.into(), &json!({"nofile": 321, "not_enforced": []})));
}

fn more_descriptors_than_may_be_given_are_said_to_be() {
    // The kernel's own limit, fs.nr_open, is no higher than that, and usually less.
    let most = fs::read_to_string("/proc/sys/fs/nr_open").expect("the kernel says it");
    let most: u64 = most.trim().parse().expect("a number");
    let wanted = 1 << 30;
    let broker = Broker::start(&[&Service::fake("x", &[]).toml(&format!("[limits]\nnofile = {wanted}"))]);
    let backend = broker.resolve("x");
    let given = nofile(&backend["pid"]);
    match why(&broker.backend("x"), "nofile") {
        None => assert_eq!((given, most), (both(wanted), wanted)),
        Some(why) => assert_eq!(why, format!("{} is the most that the broker may give, and {wanted} is more", given.1)),
    }
}

fn without_cgroups_the_reason_is_theirs() {
    let broker = Setup::new().config("cgroups = \"off\"").service(&Service::fake("x", &[]).toml(LIMITS)).start();
    let _ = broker.resolve("x");
    let backend = broker.backend("x");
    for (limit, ..) in OF_CGROUP {
        assert_eq!(why(&backend, limit).as_deref(), Some("`cgroups = \"off\"` in broker.toml"));
    }
}

fn changed_limits_are_applied_by_a_restart() {
    let service = |limits: &str| Service::fake("x", &[]).toml(limits);
    let broker = Broker::start(&[&service("[limits]\nnofile = 321")]);
    let _ = broker.resolve("x");
    broker.write_service(&service("[limits]\nnofile = 123"));
    let _ = broker.ctl(&["reload"]).done();
    assert_eq!(broker.backend("x")["outdated"], true);
    assert_eq!(broker.backend("x")["limits"]["nofile"], 321);
    let _ = broker.ctl(&["restart", "x"]).done();
    let backend = broker.backend("x");
    assert_eq!((&backend["outdated"], nofile(&backend["pid"])), (&false.into(), both(123)));
}

fn a_durable_process_has_limits_too() {
    let broker = Broker::start(&[]);
    let gate = broker.path("gate").display().to_string();
    let script = format!("ulimit -n; ulimit -Hn; until test -e {gate}; do sleep 0.02; done");
    let text = format!(
        "[service]\nname = \"job\"\nkind = \"process\"\n[limits]\nnofile = 321\nmemory_max = \"1GiB\"\n\
         [[version]]\nversion = \"1\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n"
    );
    fs::write(broker.path("services.d/job.toml"), text).expect("the folder takes a file");
    let _ = broker.ctl(&["reload"]).done();
    let mut run = broker.ctl_in_background(&["run", "--id", "x", "job"]);
    run.wait_stdout("how many files it may open", |text| text == "321\n321\n");
    if can_be_had("memory") {
        let status = broker.status();
        let place = Path::new(status["broker"]["cgroups"]["place"].as_str().expect("a place"));
        let written = fs::read_to_string(place.join("run~x.1/memory.max")).expect("the controller is enabled");
        assert_eq!(written, "1073741824\n");
    } else {
        let is_said = |line: &str| line.contains("a limit is not enforced") && line.contains("memory_max");
        assert!(broker.log().lines().any(is_said), "{}", broker.log());
    }
    broker.open_gate("gate");
    let _ = run.finish().done();
}

fn check_says_what_no_broker_here_can_enforce() {
    let setup = Setup::new().service(&Service::fake("x", &[]).toml(LIMITS));
    let file = setup.path("services.d/x.toml");
    let broker = setup.start();
    let said = broker.ctl_json(&["check", &file]).done().json();
    let problems = said["problems"].as_array().expect("a list");
    for problem in problems {
        let limit = problem["key"].as_str().expect("a key");
        let message = problem["message"].as_str().expect("a text");
        assert!(OF_CGROUP.iter().any(|(known, ..)| *known == limit), "{problem}");
        assert!(message.starts_with(&format!("`{limit}` in [limits] is not enforced on this machine: ")), "{message}");
        assert_eq!(problem["severity"], "warning");
    }
    if let Some(own) = own_cgroup() {
        let is_vain = |limit: &str| problems.iter().any(|problem| problem["key"] == limit);
        for (limit, controller, ..) in OF_CGROUP {
            let is_offered = words(&own.join("cgroup.controllers")).any(|word| word == controller);
            assert!(!(is_offered && is_vain(limit)), "{limit} can be had here");
            assert!(is_offered || is_vain(limit) || !is_root_cgroup(&own), "{limit} cannot be had anywhere");
        }
    } else {
        assert_eq!(problems.len(), OF_CGROUP.len(), "{said}");
    }
    // What no broker can enforce this one cannot either.
    let _ = broker.resolve("x");
    let unenforced = broker.backend("x")["limits"]["not_enforced"].clone();
    assert!(problems.len() <= unenforced.as_array().expect("a list").len(), "{unenforced}");
}
