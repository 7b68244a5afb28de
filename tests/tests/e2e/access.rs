//! Other users: who may ask for what. Needs root, to be another user at all.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::thread;

use broker_proto::{AdminRequest, ClientMessage, Code, Delivery};
use broker_tests::{Broker, Connection, Output, Running, Service, Session, Setup, sibling, wait_until};
use nix::unistd::{Gid, Group, Uid, User};

/// nobody, everywhere.
pub(crate) const OTHER: u32 = 65534;

broker_tests::trials![
    another_user_is_rejected_unless_the_service_admits_it,
    an_operators_orders_are_for_the_brokers_own_user,
    members_of_the_admin_group_may_control_and_use_nothing,
    what_cannot_be_looked_up_is_refused_for_now,
    orders_wait_for_the_lookup_as_long_as_their_session_wants_it_and_no_longer,
    a_connected_socket_needs_the_services_consent,
    a_socket_that_may_not_be_opened_is_not_permitted,
];

/// Why these tests cannot run here, if they cannot.
pub(crate) fn hindrance() -> Option<&'static str> {
    if !Uid::effective().is_root() {
        Some("needs root")
    } else if own_names().is_none() {
        Some("no user and group 65534")
    } else {
        None
    }
}

/// The other user's name and its group's.
pub(crate) fn own_names() -> Option<(String, String)> {
    let user = User::from_uid(Uid::from_raw(OTHER)).ok()??;
    let group = Group::from_gid(Gid::from_raw(OTHER)).ok()??;
    Some((user.name, group.name))
}

/// A broker whose socket the other user's group may open, and a brokerctl that it can execute.
pub(crate) fn shared_broker(services: &[&Service]) -> Broker {
    let (_, group) = own_names().expect("known");
    let setup = Setup::new().config(&format!("socket_group = {group:?}\n"));
    fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o755)).expect("own folder");
    copy_brokerctl(setup.folder());
    services.iter().fold(setup, |setup, service| setup.service(service)).start()
}

fn ctl_as_other(broker: &Broker, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(broker.path("brokerctl"));
    command.arg("--json").args(arguments).env("BROKER_SOCKET", broker.socket());
    Running::start(command.stdin(std::process::Stdio::null()).uid(OTHER).gid(OTHER)).finish()
}

fn another_user_is_rejected_unless_the_service_admits_it() {
    let (user, group) = own_names().expect("known");
    let by_user = Service::fake("by-user", &[]).toml(&format!("[access]\nusers = [{user:?}]"));
    let by_group = Service::fake("by-group", &[]).toml(&format!("[access]\ngroups = [{group:?}]"));
    let broker = shared_broker(&[&Service::fake("private", &[]), &by_user, &by_group]);
    let refused = ctl_as_other(&broker, &["resolve", "private"]).refused(77, "peer_rejected");
    assert!(refused["retry_after_ms"].is_null(), "{refused}");
    assert_eq!(broker.starts("private"), [], "refused before anything is started");
    let _ = broker.resolve("private");
    let _ = ctl_as_other(&broker, &["resolve", "private"]).refused(77, "peer_rejected");
    for service in ["by-user", "by-group"] {
        assert_eq!(ctl_as_other(&broker, &["resolve", service]).done().json()["state"], "ready", "{service}");
    }
}

fn an_operators_orders_are_for_the_brokers_own_user() {
    let (user, _) = own_names().expect("known");
    let broker = shared_broker(&[&Service::fake("x", &[]).toml(&format!("[access]\nusers = [{user:?}]"))]);
    let before = broker.resolve("x");
    for order in [
        &["status"][..],
        &["stop", "x"],
        &["start", "x"],
        &["restart", "x"],
        &["drain", "x"],
        &["events"],
        &["events", "-f", "x"],
        &["reload"],
        &["shutdown"],
    ] {
        let _ = ctl_as_other(&broker, order).refused(77, "peer_rejected");
    }
    assert_eq!(broker.resolve("x"), before);
}

/// A broker that lets the other user connect, and the group control it.
fn controlled_by(group: &str) -> Broker {
    let (_, own) = own_names().expect("known");
    let setup = Setup::new().config(&format!("socket_group = {own:?}\nadmin_group = {group:?}\n"));
    fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o755)).expect("own folder");
    copy_brokerctl(setup.folder());
    setup.service(&Service::fake("x", &[])).start()
}

fn members_of_the_admin_group_may_control_and_use_nothing() {
    let (_, group) = own_names().expect("known");
    let broker = controlled_by(&group);
    let started = ctl_as_other(&broker, &["start", "x"]).done().json();
    assert_eq!(started["state"], "ready", "{started}");
    let status = ctl_as_other(&broker, &["status"]).done().json();
    assert_eq!(status["backends"][0]["pid"], started["pid"]);
    let _ = ctl_as_other(&broker, &["resolve", "x"]).refused(77, "peer_rejected");
    let refused = ctl_as_other(&broker, &["run", "--", "id"]).refused(77, "peer_rejected");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("only root may")), "{refused}");
    assert_eq!(ctl_as_other(&broker, &["processes"]).done().json()["processes"], serde_json::json!([]));
    let _ = ctl_as_other(&broker, &["reload"]).done();
    let _ = ctl_as_other(&broker, &["stop", "x"]).done();
    broker.assert_gone("x");

    let broker = controlled_by("root");
    let _ = broker.resolve("x");
    let refused = ctl_as_other(&broker, &["stop", "x"]).refused(77, "peer_rejected");
    let reason = refused["reason"].as_str().expect("a reason");
    assert!(reason.contains("only root and members of the group `root` may"), "{reason}");
    let _ = broker.dial(&broker.backend("x"));
}

/// Runs the function in a thread that is the other user: in Linux, users belong to threads.
fn as_other<T: Send>(function: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let keep = -1;
            // SAFETY: the bare system calls change this thread alone, which does nothing else and ends soon.
            let results = unsafe {
                [
                    libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                    libc::syscall(libc::SYS_setresgid, keep, OTHER, keep),
                    libc::syscall(libc::SYS_setresuid, keep, OTHER, keep),
                ]
            };
            assert_eq!(results, [0; 3], "root can be anybody");
            function()
        });
        thread.join().expect("the other user's thread ends well")
    })
}

/// The same broker with a failpoint where it looks for the group that may control it.
fn broker_armed(failpoint: &str) -> Broker {
    let mut broker = shared_broker(&[]);
    broker.kill();
    broker.start_armed(failpoint);
    broker.wait_until_it_answers();
    broker
}

fn what_cannot_be_looked_up_is_refused_for_now() {
    let broker = broker_armed("admins-out-of-reach");
    as_other(|| {
        let mut session = Session::open(&broker.socket());
        let refusal = session.admin(AdminRequest::Status).expect_err("nobody knows");
        assert_eq!(refusal.code, Code::Overloaded, "{refusal:?}");
        assert!(refusal.retry_after_ms.is_some(), "{refusal:?}");
        let refusal = session.admin(AdminRequest::Status).expect_err("known by now");
        assert_eq!(refusal.code, Code::PeerRejected, "{refusal:?}");
    });
}

fn orders_wait_for_the_lookup_as_long_as_their_session_wants_it_and_no_longer() {
    let broker = broker_armed("stuck:looking-for-admins");
    let order = |session: &mut Session| session.admin(AdminRequest::Status).expect_err("nobody knows").code;
    let full = || {
        let mut session = Session::open(&broker.socket());
        for request_id in 1001..=1016 {
            session.send(&ClientMessage::Admin { request_id, request: AdminRequest::Status });
        }
        assert_eq!(order(&mut session), Code::RateLimited, "one session has so many");
        session
    };
    let _ = ctl_as_other(&broker, &["run", "--", "id"]).refused(77, "peer_rejected");
    as_other(|| {
        let mut session = full();
        session.release(1001);
        assert_eq!(order(&mut session), Code::Overloaded, "there is room, and the patience ends");
        // As many sessions as fill the room for all.
        for _ in 0..16 {
            drop(full());
        }
        let mut session = Session::open(&broker.socket());
        wait_until("those who left make room", || order(&mut session) == Code::Overloaded);
    });
}

fn connected(broker: &Broker, service: &str) -> Result<OwnedFd, Code> {
    as_other(|| {
        let mut session = Session::open(&broker.socket());
        let mut hello = session.hello_for(service);
        hello.delivery = Delivery::Connected;
        let id = hello.request_id;
        session.send(&ClientMessage::Hello(hello));
        session.answer(id).map_err(|refusal| refusal.code)?;
        Ok(session.passed_descriptor().expect("a descriptor came with the frame"))
    })
}

fn a_connected_socket_needs_the_services_consent() {
    let (user, _) = own_names().expect("known");
    let access = format!("[access]\nusers = [{user:?}]");
    let closed = Service::fake("closed", &[]).toml(&access);
    let open = Service::fake("open", &[]).toml(&format!("{access}\nconnected = true"));
    let broker = shared_broker(&[&closed, &open]);
    assert_eq!(connected(&broker, "closed").expect_err("no consent"), Code::PeerRejected);
    let socket = connected(&broker, "open").expect("the service consents");
    let mut connection = Connection::over_unix(UnixStream::from(socket)).expect("a connected socket");
    assert_eq!(broker.backend("open")["pid"], connection.pid());
}

fn a_socket_that_may_not_be_opened_is_not_permitted() {
    let setup = Setup::new();
    fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o755)).expect("own folder");
    copy_brokerctl(setup.folder());
    let broker = setup.service(&Service::fake("x", &[])).start();
    for command in [&["resolve", "x"][..], &["status"]] {
        let output = ctl_as_other(&broker, command).exits(77);
        let is_explained = ["broker.sock", "for its owner and root"].iter().all(|words| output.stderr.contains(words));
        assert!(is_explained, "{}", output.stderr);
    }
}

/// Puts a brokerctl where others can execute it. Another process writes it: a program that is open for writing in this
/// one, or in a fork of another trial, cannot be executed (ETXTBSY).
pub(crate) fn copy_brokerctl(folder: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg(sibling("brokerctl")).arg(folder.join("brokerctl")).status();
    assert!(copied.expect("cp is there").success(), "brokerctl can be copied");
}
