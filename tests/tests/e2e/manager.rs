//! What a service manager is told, by a broker that believes to have one.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use broker_proto::AdminRequest;
use broker_tests::{BOUND, Broker, Service, Setup, process_exists, trials, wait_until};
use nix::sys::signal::Signal;

use crate::heartbeats;

trials![
    who_leaves_asks_for_more_time_as_long_as_a_backend_may_take,
    a_watchdog_is_fed_and_one_of_another_process_is_not,
    a_stuck_broker_feeds_no_watchdog,
    it_is_ready_once_it_serves_and_tells_what_goes_on,
    however_it_leaves_it_says_so,
    a_reload_is_announced_and_so_is_what_came_of_it,
    what_a_manager_told_the_broker_no_process_of_its_own_learns,
    a_manager_alone_does_not_wake_an_idle_broker,
    a_manager_that_does_not_read_holds_nobody_up_and_is_told_in_order_when_it_does,
    a_manager_that_does_not_read_is_waited_for_once_and_given_sockets_again_when_it_does,
    a_manager_may_listen_at_an_abstract_name,
];

/// The socket on which a manager hears, and what it heard.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    /// A setup whose broker is told of a manager.
    fn of(setup: Setup) -> (Self, Setup) {
        let path = setup.path("notify");
        let socket = UnixDatagram::bind(&path).expect("a short path");
        socket.set_read_timeout(Some(BOUND)).expect("a socket");
        (Self { socket, heard: Vec::new() }, setup.variable("NOTIFY_SOCKET", &path))
    }

    /// Lets no message in any more as long as nobody reads.
    fn fill(&self) {
        let address = self.socket.local_addr().expect("it is bound");
        let place = address.as_pathname().expect("a path");
        // What one socket has sent and nobody has read is limited, too.
        let say_once = || {
            let stranger = UnixDatagram::unbound().expect("a socket");
            stranger.set_nonblocking(true).expect("a socket");
            stranger.send_to(b"X_FILLER=1", place)
        };
        while say_once().is_ok() {}
    }

    fn start(services: &[&Service]) -> (Self, Broker) {
        let (manager, setup) = Self::of(Setup::new());
        (manager, services.iter().fold(setup, |setup, service| setup.service(service)).start())
    }

    /// The next message, a statement a line.
    fn next(&mut self) -> io::Result<String> {
        let mut bytes = [0; 4097];
        let count = self.socket.recv(&mut bytes)?;
        let text = String::from_utf8(bytes[..count].to_vec()).expect("text");
        self.heard.push(text.clone());
        Ok(text)
    }

    /// Waits for a message.
    #[track_caller]
    fn wait(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        while began.elapsed() < BOUND {
            match self.next() {
                Ok(text) if condition(&text) => return text,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        panic!("waited in vain for {what}; heard {:?}", self.heard);
    }

    /// Waits for a status that begins so.
    #[track_caller]
    fn wait_status(&mut self, begins: &str) -> String {
        self.wait(begins, |text| status(text).is_some_and(|status| status.starts_with(begins)))
    }

    /// Everything that has been said until now.
    fn rest(&mut self) -> Vec<String> {
        self.socket.set_nonblocking(true).expect("a socket");
        while self.next().is_ok() {}
        self.socket.set_nonblocking(false).expect("a socket");
        std::mem::take(&mut self.heard)
    }
}

/// A statement's value.
fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn status(text: &str) -> Option<&str> {
    value(text, "STATUS")
}

fn it_is_ready_once_it_serves_and_tells_what_goes_on() {
    let (mut manager, setup) = Manager::of(Setup::new());
    let gate = setup.path("gate");
    let slow = Service::fake("slow", &["--ready-when", &gate]);
    let broker = setup.service(&Service::fake("x", &[])).service(&slow).start();
    let first = manager.next().expect("it says something");
    assert_eq!(first, "READY=1\nSTATUS=no backends; no sessions\n");

    let mut session = broker.session();
    let _ = session.hold("x");
    let _ = session.hello("slow");
    manager.wait_status("1 backend ready, 1 starting; 1 session");
    broker.open_gate("gate");
    manager.wait_status("2 backends ready; 1 session");
    drop(session);
    manager.wait_status("2 backends ready; no sessions");
    let began = Instant::now();
    manager.rest();
    for _ in 0..300 {
        drop(broker.session());
        let _ = broker.resolve("x");
        if began.elapsed() > Duration::from_millis(2500) {
            break;
        }
    }
    let (said, lasted) = (manager.rest().len(), began.elapsed());
    assert!(said <= lasted.as_secs() as usize + 2, "{said} times in {lasted:?}");
}

fn a_reload_is_announced_and_so_is_what_came_of_it() {
    let (mut manager, broker) = Manager::start(&[&Service::fake("x", &[])]);
    manager.wait_status("no backends");
    let is_reload = |text: &str| text.lines().any(|line| line == "RELOADING=1");
    for by_signal in [true, false] {
        broker.write_service(&Service::fake(if by_signal { "y" } else { "z" }, &[]));
        if by_signal {
            broker.signal(Signal::SIGHUP);
        } else {
            let _ = broker.ctl(&["reload"]).done();
        }
        let reloading = manager.wait("the announcement", is_reload);
        assert!(value(&reloading, "MONOTONIC_USEC").is_some_and(|time| time.parse::<u64>().is_ok()), "{reloading}");
        let services = if by_signal { 2 } else { 3 };
        let done = manager.wait_status(&format!("reloaded {services} services, 1 added; "));
        assert_eq!(value(&done, "READY"), Some("1"), "{done}");
    }
    fs::write(broker.path("services.d/z.toml"), "[service]\nnme = \"z\"\n").expect("the folder takes a file");
    broker.signal(Signal::SIGHUP);
    let done = manager.wait_status("reloaded 3 services; ");
    assert!(value(&done, "READY") == Some("1") && done.contains("z.toml"), "{done}");
    let session = broker.session();
    let later = manager.wait_status("no backends; 1 session");
    assert!(later.contains("z.toml"), "as long as it is bad every status says so: {later}");
    drop(session);
}

fn however_it_leaves_it_says_so() {
    type Way = (&'static str, &'static str, fn(&Broker));
    let ways: [Way; 4] = [
        ("making way for the next broker: 1 backend", "SIGTERM", |broker| broker.signal(Signal::SIGTERM)),
        ("ending: 1 backend", "SIGINT", |broker| broker.signal(Signal::SIGINT)),
        ("ending: 1 backend", "an order", |broker| drop(broker.session().admin(AdminRequest::Shutdown))),
        ("making way for the next broker: 1 backend", "a hand-over", |broker| {
            drop(broker.session().admin(AdminRequest::HandOver))
        }),
    ];
    for (begins, how, leave) in ways {
        let (mut manager, mut broker) = Manager::start(&[&Service::fake("x", &[])]);
        let _ = broker.resolve("x");
        leave(&broker);
        let said = manager.wait_status(begins);
        assert_eq!(value(&said, "STOPPING"), Some("1"), "{how}: {said}");
        assert!(broker.ended().success());
        broker.may_leave_processes();
    }
    let (mut manager, setup) = Manager::of(Setup::new().arguments(&["--idle-exit", "300ms"]));
    let mut broker = setup.start();
    let said = manager.wait_status("ending: no backends");
    assert_eq!(value(&said, "STOPPING"), Some("1"), "an idle exit: {said}");
    assert!(broker.ended().success());
}

fn who_leaves_asks_for_more_time_as_long_as_a_backend_may_take() {
    let deaf = Service::fake("deaf", &["--ignore-term"]).toml("[lifecycle]\nstop_timeout = \"8s\"");
    let (mut manager, mut broker) = Manager::start(&[&deaf]);
    let _ = broker.resolve("deaf");
    broker.signal(Signal::SIGINT);
    let longer = |text: &str| value(text, "EXTEND_TIMEOUT_USEC").and_then(|time| time.parse::<u64>().ok());
    for _ in 0..2 {
        let said = manager.wait("a plea", |text| longer(text).is_some());
        assert!(longer(&said).is_some_and(|time| (5_000_000..=15_000_000).contains(&time)), "{said}");
        assert!(process_exists(broker.pid().into()), "it has not left yet");
    }
    assert!(broker.ended().success());
    broker.assert_gone("deaf");
}

fn a_watchdog_is_fed_and_one_of_another_process_is_not() {
    let is_food = |text: &str| value(text, "WATCHDOG") == Some("1");
    let (mut manager, setup) = Manager::of(Setup::new().variable("WATCHDOG_USEC", "400000"));
    let mut broker = setup.start();
    for _ in 0..5 {
        manager.wait("a sign of life", is_food);
    }
    broker.signal(Signal::SIGTERM);
    assert!(broker.ended().success());

    let theirs = Setup::new().variable("WATCHDOG_USEC", "400000").variable("WATCHDOG_PID", "1");
    let (mut manager, setup) = Manager::of(theirs);
    let broker = setup.start();
    let mut session = broker.session();
    // They come every two and a half seconds.
    session.wait_heartbeats(1);
    assert!(!manager.rest().iter().any(|text| is_food(text)));
}

fn a_stuck_broker_feeds_no_watchdog() {
    let is_food = |text: &str| value(text, "WATCHDOG") == Some("1");
    let (mut manager, setup) = Manager::of(Setup::new().variable("WATCHDOG_USEC", "200000"));
    let mut broker = setup.service(&Service::fake("x", &[])).unstarted();
    broker.start_armed("stuck:before-ready");
    manager.wait("a sign of life", is_food);
    broker.wait_until_it_answers();
    let mut session = broker.session();
    session.hello("x");
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
    wait_until("nothing is heard of it any more", || manager.next().is_err());
    assert!(process_exists(broker.pid().into()), "it lives");
    broker.kill();
    broker.may_leave_processes();
}

fn what_a_manager_told_the_broker_no_process_of_its_own_learns() {
    let setup = Setup::new().variable("WATCHDOG_USEC", "30000000").variable("LISTEN_PID", "1");
    let setup = setup.variable("LISTEN_FDS", "1").variable("LISTEN_FDNAMES", "of-another:process");
    let (_manager, setup) = Manager::of(setup);
    let broker = setup.service(&Service::fake("x", &[])).start();
    let of_the_manager = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    let facts = broker.dial(&broker.resolve("x")).facts();
    let printed = broker.ctl(&["run", "--", "env"]).done().stdout;
    for name in of_the_manager {
        assert!(facts["environment"][name].is_null(), "{facts}");
        assert!(!printed.contains(name), "{printed}");
    }
    let reaper = broker.ctl_in_background(&["run", "--", "sleep", "1000"]);
    wait_until("its reaper runs", || !reapers(&broker).is_empty());
    for environment in reapers(&broker) {
        assert!(!of_the_manager.iter().any(|name| environment.contains(name)), "{environment}");
    }
    drop(reaper);
    let listed = broker.ctl_json(&["processes"]).done().json();
    let runs = listed["processes"].as_array().expect("a list").iter().find(|process| process["state"] == "running");
    let id = runs.and_then(|process| process["id"].as_str()).expect("it runs").to_owned();
    let _ = broker.ctl(&["cancel", &id, "--reason", "the end of the test"]).done();
    let _ = broker.ctl(&["wait", &id]);
}

/// The environments of the broker's reapers.
fn reapers(broker: &Broker) -> Vec<String> {
    let folder = broker.folder().display().to_string();
    let is_reaper = |text: &str| text.starts_with("broker-reaper") && text.contains(&folder);
    let entries = fs::read_dir("/proc").expect("it is mounted").flatten().map(|entry| entry.path());
    let reapers = entries.filter(|path| fs::read_to_string(path.join("cmdline")).is_ok_and(|text| is_reaper(&text)));
    reapers.filter_map(|path| fs::read_to_string(path.join("environ")).ok()).collect()
}

fn a_manager_alone_does_not_wake_an_idle_broker() {
    let (mut manager, broker) = Manager::start(&[&Service::fake("x", &[])]);
    let _ = broker.resolve("x");
    manager.wait_status("1 backend ready; no sessions");
    wait_until("nothing is due soon", || heartbeats::rests(&broker));
    manager.rest();
    assert!(heartbeats::rests(&broker), "{}", heartbeats::timer(&broker));
}

fn a_manager_that_does_not_read_holds_nobody_up_and_is_told_in_order_when_it_does() {
    let (mut manager, broker) = Manager::start(&[&Service::fake("x", &[]), &Service::fake("y", &[])]);
    manager.wait_status("no backends");
    manager.fill();
    let _ = broker.resolve("x");
    broker.signal(Signal::SIGHUP);
    wait_until("it is reloaded", || broker.log().contains("reloaded"));
    let _ = broker.resolve("y");
    manager.wait("the announcement", |text| value(text, "RELOADING") == Some("1"));
    let done = manager.wait_status("reloaded 2 services");
    assert_eq!(value(&done, "READY"), Some("1"), "{done}");
    manager.wait_status("2 backends ready");
    let told = manager.heard.iter().filter(|text| value(text, "X_FILLER").is_none());
    assert!(told.filter(|text| value(text, "READY").is_some()).count() == 2, "{:?}", manager.heard);

    manager.fill();
    let mut broker = broker;
    broker.signal(Signal::SIGINT);
    assert!(broker.ended().success(), "nor does it keep it");
}

fn a_manager_that_does_not_read_is_waited_for_once_and_given_sockets_again_when_it_does() {
    let says_ready = |name| Service::fake(name, &["--notify"]).toml("[readiness]\nprobe = \"notify\"");
    let (mut manager, broker) = Manager::start(&[&says_ready("x"), &says_ready("y"), &says_ready("z")]);
    manager.wait_status("no backends");
    let _ = broker.resolve("z");
    manager.wait("its notify socket", |text| value(text, "FDSTORE") == Some("1"));
    manager.rest();
    manager.fill();
    let _ = broker.ctl(&["stop", "z"]).done();
    let took = |service: &str| {
        let began = Instant::now();
        let _ = broker.resolve(service);
        began.elapsed()
    };
    // It waits for five seconds.
    let (first, second) = (took("x"), took("y"));
    assert!(second + Duration::from_secs(1) < first, "it was waited for again: {first:?}, {second:?}");
    manager.wait("what is owed", |text| value(text, "FDSTOREREMOVE") == Some("1"));
    let _ = broker.resolve("z");
    let name = manager.wait("a notify socket", |text| value(text, "FDSTORE") == Some("1"));
    assert!(value(&name, "FDNAME").is_some_and(|name| name.contains("z")), "{name}");
    assert!(broker.log().matches("cannot be told what to keep").count() == 1, "{}", broker.log());
}

fn a_manager_may_listen_at_an_abstract_name() {
    let setup = Setup::new();
    let name = setup.path("notify");
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    let socket = UnixDatagram::bind_addr(&address).expect("nobody has it");
    socket.set_read_timeout(Some(BOUND)).expect("a socket");
    let mut manager = Manager { socket, heard: Vec::new() };
    let _broker = setup.variable("NOTIFY_SOCKET", &format!("@{name}")).start();
    assert_eq!(manager.next().expect("it says something"), "READY=1\nSTATUS=no backends; no sessions\n");
}
