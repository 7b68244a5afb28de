//! Each backend has a cgroup of its own, from which nothing gets away, and which the next broker knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use broker_tests::{Broker, Service, Setup, cgroup_members, cgroup_of, process_exists, trials, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

trials![
    each_backend_has_a_cgroup_of_its_own_which_goes_with_it,
    what_hides_from_everything_is_gone_after_a_stop,
    what_hides_from_everything_is_gone_before_the_next_start,
    a_daemon_that_forked_away_and_hides_is_followed,
    the_next_broker_ends_what_hides_too,
    the_next_broker_ends_what_hides_of_a_daemon_that_died_meanwhile,
    cgroups_that_nobody_knows_any_more_are_removed,
    what_is_not_wanted_is_said,
    a_durable_process_has_a_cgroup_of_its_own_which_goes_with_it,
    what_hides_of_a_lost_attempt_is_gone_before_the_next,
];

/// Starts a process that has nothing to show for where it came from: no session, no environment, no output, no parent;
/// its number is noted.
const HIDE: &str =
    "setsid -f sh -c 'echo $$ >>\"$0\"; exec env -i sleep 1000' \"$0.hidden\" </dev/null >/dev/null 2>&1";

/// A daemon with a process that hides.
fn hiding(name: &str) -> Service {
    let script = format!("{HIDE}; exec \"$@\"");
    let command = ["/bin/sh", "-c", &script, "{starts}", "{fake-backend}", "--log-start", "{starts}"];
    Service::named(name).command("1.0.0", &[&command[..], &["--listen", "{endpoint}"]].concat())
}

/// The process that hides, of the start of that number.
fn hidden(broker: &Broker, name: &str, start: usize) -> u64 {
    let note = broker.path("starts").join(format!("{name}.hidden"));
    let noted = || fs::read_to_string(&note).ok()?.lines().nth(start - 1)?.parse().ok();
    wait_for("a process hides", noted)
}

fn folder_of(backend: &Value) -> PathBuf {
    PathBuf::from(backend["cgroup"].as_str().unwrap_or_else(|| panic!("it has no cgroup: {backend}")))
}

fn pid_of(backend: &Value) -> u64 {
    backend["pid"].as_u64().unwrap_or_else(|| panic!("it does not run: {backend}"))
}

fn stop(broker: &Broker, service: &str) {
    let _ = broker.ctl(&["stop", service]).done();
}

fn each_backend_has_a_cgroup_of_its_own_which_goes_with_it() {
    let broker = Broker::start(&[&Service::fake("x", &["--workers", "2"]), &Service::fake("y", &[])]);
    let [x, y] = ["x", "y"].map(|service| pid_of(&broker.resolve(service)));
    let (of_x, of_y) = (folder_of(&broker.backend("x")), folder_of(&broker.backend("y")));
    assert!(of_x.ends_with("x@1.0.0~default.1") && of_y.ends_with("y@1.0.0~default.1"), "{of_x:?} {of_y:?}");
    assert_eq!(broker.status()["broker"]["cgroups"]["place"], of_x.parent().expect("a place").to_str().expect("UTF-8"));
    let members = cgroup_members(&of_x);
    assert!(members.len() == 3 && members.contains(&i32::try_from(x).expect("a number")), "{members:?}");
    assert_eq!(cgroup_members(&of_y), [i32::try_from(y).expect("a number")]);
    let own = cgroup_of(broker.pid().into()).expect("it runs");
    assert!(cgroup_of(x) != Some(own.clone()) && cgroup_of(x) != cgroup_of(y), "the broker is in {own}");
    stop(&broker, "x");
    assert!(!of_x.exists() && of_y.exists());
    let _ = broker.resolve("x");
    assert!(folder_of(&broker.backend("x")).ends_with("x@1.0.0~default.2"));
}

fn what_hides_from_everything_is_gone_after_a_stop() {
    let broker = Broker::start(&[&hiding("x")]);
    let _ = broker.resolve("x");
    let hidden = hidden(&broker, "x", 1);
    assert!(process_exists(hidden));
    stop(&broker, "x");
    assert!(!process_exists(hidden));
}

fn what_hides_from_everything_is_gone_before_the_next_start() {
    let broker = Broker::start(&[&hiding("x")]);
    let mut session = broker.session();
    let _ = session.hold("x");
    let (first, backend) = (hidden(&broker, "x", 1), broker.backend("x"));
    kill(Pid::from_raw(i32::try_from(pid_of(&backend)).expect("a number")), Signal::SIGKILL).expect("it runs");
    broker.wait_backend("x", "starting again", |backend| backend["generation"] == 2);
    assert!(!process_exists(first) && !folder_of(&backend).exists());
    broker.wait_state("x", "ready");
    assert!(process_exists(hidden(&broker, "x", 2)));
}

fn a_daemon_that_forked_away_and_hides_is_followed() {
    // Not even its command line is what was started.
    let script = "setsid -f env -i \"$0\" \"$@\" </dev/null >/dev/null 2>&1; exit 0";
    let command = ["/bin/sh", "-c", script, "{fake-backend}", "--log-start", "{starts}", "--listen", "{endpoint}"];
    let broker = Broker::start(&[&Service::named("x").command("1.0.0", &command)]);
    let backend = broker.resolve("x");
    let serving = broker.dial(&backend).pid();
    let backend = broker.wait_backend("x", "the one that serves", |backend| backend["pid"] == serving);
    assert_eq!((&backend["generation"], &backend["crashes_in_window"]), (&1.into(), &0.into()));
    stop(&broker, "x");
    assert!(!process_exists(pid_of(&backend)));
}

fn the_next_broker_ends_what_hides_too() {
    let mut broker = Broker::start(&[&hiding("x")]);
    let before = pid_of(&broker.resolve("x"));
    let hidden = hidden(&broker, "x", 1);
    broker.kill_and_start_again();
    let backend = broker.backend("x");
    assert_eq!((pid_of(&backend), &backend["adopted"]), (before, &true.into()));
    assert!(folder_of(&backend).is_dir() && process_exists(hidden));
    stop(&broker, "x");
    assert!(!process_exists(hidden) && !folder_of(&backend).exists());
}

fn the_next_broker_ends_what_hides_of_a_daemon_that_died_meanwhile() {
    let mut broker = Broker::start(&[&hiding("x")]);
    let backend = broker.resolve("x");
    let (hidden, cgroup) = (hidden(&broker, "x", 1), folder_of(&broker.backend("x")));
    broker.kill();
    let pid = pid_of(&backend);
    kill(Pid::from_raw(i32::try_from(pid).expect("a number")), Signal::SIGKILL).expect("it runs");
    wait_until("the daemon is gone", || !process_exists(pid));
    broker.start_again();
    broker.wait_backend("x", "over", |backend| backend["state"] == "inactive" && backend["crashes_in_window"] == 1);
    assert!(!process_exists(hidden) && !cgroup.exists());
    assert!(!broker.log().contains("outlived an earlier broker"), "it is known whose it was");
    assert_eq!(broker.resolve("x")["generation"], 2);
}

/// A process in a cgroup.
fn inhabitant(cgroup: &Path) -> Child {
    let script = format!("echo $$ >'{}'; exec sleep 1000", cgroup.join("cgroup.procs").display());
    let child = Command::new("/bin/sh").args(["-c", &script]).spawn().expect("a shell can be executed");
    wait_until("it is in the cgroup", || !cgroup_members(cgroup).is_empty());
    child
}

fn cgroups_that_nobody_knows_any_more_are_removed() {
    let mut broker = Broker::start(&[&Service::fake("x", &[]), &Service::fake("y", &[])]);
    let _ = (broker.resolve("x"), broker.resolve("y"));
    let known = folder_of(&broker.backend("x"));
    broker.kill();
    let place = known.parent().expect("a place");
    let [empty, full, process] = ["x@1.0.0~other.7", "gone@1.0.0~default.3", "run~1.1"].map(|name| place.join(name));
    [&empty, &full, &process].iter().for_each(|cgroup| fs::create_dir(cgroup).expect("a cgroup can be made"));
    let mut stray = inhabitant(&full);
    broker.start_again();
    assert!(known.is_dir() && ![&empty, &full, &process].iter().any(|cgroup| cgroup.exists()));
    assert!(!stray.wait().expect("a child can be waited for").success(), "it was killed");
    assert_eq!(broker.backend("x")["adopted"], true);
    // Nobody is left, and the broker's own goes with it.
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success() && !place.exists());
}

fn what_is_not_wanted_is_said() {
    let broker = Setup::new().config("cgroups = \"off\"").service(&hiding("x")).start();
    let backend = broker.resolve("x");
    assert_eq!(broker.backend("x")["cgroup"], Value::Null);
    let cgroups = &broker.status()["broker"]["cgroups"];
    assert_eq!(
        (&cgroups["place"], cgroups["why_not"].as_str()),
        (&Value::Null, Some("`cgroups = \"off\"` in broker.toml"))
    );
    let said = broker.ctl(&["status"]).done().stderr;
    assert!(said.contains("without a cgroup of their own: `cgroups = \"off\"` in broker.toml"), "{said}");
    assert_eq!(cgroup_of(pid_of(&backend)), cgroup_of(broker.pid().into()));
    // Here nobody knows whose it is.
    let hidden = hidden(&broker, "x", 1);
    stop(&broker, "x");
    kill(Pid::from_raw(i32::try_from(hidden).expect("a number")), Signal::SIGKILL).expect("it was not found");
}

/// The process, once it runs so.
fn process(broker: &Broker, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let look = || {
        let mut all = broker.ctl_json(&["processes"]).done().json();
        let all = all["processes"].as_array_mut().expect("a list").iter_mut();
        all.map(Value::take).find(|process| process["id"] == id).filter(&is_so)
    };
    wait_for("the process is so", look)
}

fn a_durable_process_has_a_cgroup_of_its_own_which_goes_with_it() {
    let broker = Broker::start(&[]);
    let _ = broker.ctl(&["run", "--detach", "--id", "x", "--", "sleep", "1000"]).done();
    let pid = pid_of(&process(&broker, "x", |process| process["pid"].is_u64()));
    let cgroup = cgroup_of(pid).expect("it runs");
    assert!(cgroup.ends_with("/run~x.1/command"), "{cgroup}");
    let place = PathBuf::from(broker.status()["broker"]["cgroups"]["place"].as_str().expect("a place"));
    let leaf = place.join("run~x.1");
    // The command and its reaper.
    assert_eq!(cgroup_members(&leaf).len(), 2);
    let _ = broker.ctl(&["cancel", "x"]);
    process(&broker, "x", |process| process["state"] == "cancelled");
    wait_until("its cgroup is removed", || !leaf.exists());
}

fn what_hides_of_a_lost_attempt_is_gone_before_the_next() {
    let broker = Broker::start(&[]);
    let script = format!("{HIDE}; exec sleep 1000");
    let note = broker.path("starts/x");
    let note = note.to_str().expect("UTF-8");
    let _ = broker.ctl(&["run", "--detach", "--id", "x", "--", "/bin/sh", "-c", &script, note]).done();
    let command = pid_of(&process(&broker, "x", |process| process["pid"].is_u64()));
    let first = hidden(&broker, "x", 1);
    let stat = fs::read_to_string(format!("/proc/{command}/stat")).expect("it runs");
    let reaper = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("a parent");
    kill(Pid::from_raw(reaper.parse().expect("a number")), Signal::SIGKILL).expect("it runs");
    let second = hidden(&broker, "x", 2);
    assert!(!process_exists(first) && process_exists(second));
    let _ = broker.ctl(&["cancel", "x"]);
    process(&broker, "x", |process| process["state"] == "cancelled");
    assert!(!process_exists(second));
}
