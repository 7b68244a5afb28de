//! Programs that know nothing of the broker, from service files alone. One that is not installed is skipped in sight.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use broker_tests::{
    Broker, Connection, Running, Service, Setup, find_program, process_exists, processes_mentioning, skipped, trial,
    wait_until,
};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use serde_json::Value;

const TCP: &str = "[endpoint]\nkind = \"tcp\"";
const IN_STATE_DIR: &str = "[lifecycle]\nworking_directory = \"{state_dir}\"";

fn main() -> ExitCode {
    let trials = vec![
        needing(&["redis-server"], "redis_is_shared_by_version_and_instance", redis),
        needing(&["memcached"], "memcached_tells_its_version", memcached),
        needing(&["nginx"], "nginx_whose_master_is_killed_is_replaced_whole", nginx),
        needing(&["postgres"], "postgres_answers_queries_and_stops_by_sigint", postgres),
        needing(&["python3"], "http_server_of_python_serves_a_file", python),
    ];
    broker_tests::run(trials).exit_code()
}

fn needing(programs: &[&str], name: &str, test: fn()) -> Trial {
    match programs.iter().find(|program| find_program(program).is_none()) {
        Some(missing) => skipped(name, &format!("{missing} is not installed")),
        None => trial(name, test),
    }
}

fn program(name: &str) -> String {
    // The system's own first: what a version manager puts into PATH may be a script that needs an environment.
    let system = Path::new("/usr/bin").join(name);
    let path = if system.is_file() { Some(system) } else { find_program(name) };
    path.expect("found before").to_str().expect("a UTF-8 path").to_owned()
}

fn redis() {
    let redis = program("redis-server");
    let arguments = ["--port", "0", "--unixsocket", "{endpoint}", "--save", "", "--appendonly", "no"];
    let command = [&[redis.as_str()], &arguments[..]].concat();
    let broker = Broker::start(&[&Service::named("redis").command("7.0.15", &command).toml(IN_STATE_DIR)]);
    let (one, two) = (broker.resolve("redis@^7"), broker.resolve("redis/tenant-a"));
    assert_ne!(one["pid"], two["pid"]);
    let mut connection = broker.dial(&one);
    assert_eq!(connection.ask("PING\r").expect("served"), "+PONG");
    assert_eq!(connection.ask("SET colour green\r").expect("served"), "+OK");
    let value = |mut connection: Connection| {
        let length = connection.ask("GET colour\r").expect("served");
        if length == "$-1" { None } else { Some(connection.line().expect("a value")) }
    };
    assert_eq!(value(broker.dial(&one)).as_deref(), Some("green"));
    assert_eq!(value(broker.dial(&two)), None, "instances share nothing");
    assert_eq!(broker.resolve("redis"), one);
    let text = broker.ctl(&["logs", "redis/default"]).done().stdout;
    assert!(text.to_lowercase().contains("ready to accept connections"), "{text}");
}

fn memcached() {
    let memcached = program("memcached");
    let mut command = vec![memcached.as_str(), "-s", "{endpoint}", "-a", "0600"];
    if Uid::effective().is_root() {
        command.extend(["-u", "root"]);
    }
    let broker = Broker::start(&[&Service::named("memcached").command("1.6", &command)]);
    let backend = broker.resolve("memcached");
    let mut connection = broker.dial(&backend);
    let version = connection.ask("version\r").expect("served");
    assert!(version.starts_with("VERSION "), "{version}");
    assert_eq!(connection.ask("set k 0 0 2\r\nhi\r").expect("served"), "STORED");
    assert_eq!(connection.ask("get k\r").expect("served"), "VALUE k 0 2");
}

/// A configuration of nginx, which can be told where to listen by its file alone: hence the fixed path.
const NGINX: &str = "daemon off; pid nginx.pid; worker_processes 2; error_log stderr;
    events { }
    http {
        access_log off; client_body_temp_path body; proxy_temp_path proxy;
        fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
        server { listen unix:PATH; location / { return 200 'hello from nginx'; } }
    }";

fn http_get(mut connection: Connection, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    connection.send(request.as_bytes()).expect("served");
    let mut lines = Vec::new();
    while let Ok(line) = connection.line() {
        lines.push(line);
    }
    lines.join("\n")
}

fn nginx() {
    let nginx = program("nginx");
    let setup = Setup::new();
    let (configuration, socket) = (setup.path("nginx.conf"), setup.path("nginx.sock"));
    fs::write(&configuration, NGINX.replace("PATH", &socket)).expect("the folder takes a file");
    let command = [nginx.as_str(), "-p", "{state_dir}", "-c", &configuration, "-e", "stderr"];
    let service = Service::named("nginx").command("1.22", &command).toml(IN_STATE_DIR);
    let broker = setup.service(&service.toml(&format!("[endpoint]\npath = {socket:?}"))).start();
    let first = broker.resolve("nginx");
    let page = http_get(broker.dial(&first), "/");
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("hello from nginx"), "{page}");
    let running = || {
        let all = processes_mentioning(broker.folder());
        all.into_iter().filter(|(_, command)| command.starts_with("nginx")).map(|(pid, _)| pid).collect::<Vec<_>>()
    };
    wait_until("both workers run", || running().len() == 3);
    let old = running();

    let master = Pid::from_raw(first["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a number"));
    assert!(old.contains(&master.as_raw()));
    kill(master, Signal::SIGKILL).expect("the master runs");
    wait_until("the workers are ended", || old.iter().all(|pid| !process_exists(u64::from(pid.unsigned_abs()))));
    broker.wait_state("nginx", "inactive");
    assert!(!endpoint_path(&first).exists(), "the dead endpoint is removed");

    let second = broker.resolve("nginx");
    assert_eq!((&second["generation"], &second["endpoint"]), (&2.into(), &first["endpoint"]));
    assert!(http_get(broker.dial(&second), "/").ends_with("hello from nginx"), "the new generation serves");
    let _ = broker.ctl(&["stop", "nginx"]).done();
    assert_eq!(running(), Vec::<i32>::new());
}

fn endpoint_path(backend: &Value) -> PathBuf {
    PathBuf::from(backend["endpoint"].as_str().and_then(|e| e.strip_prefix("unix:")).expect("a unix endpoint"))
}

/// A data folder for PostgreSQL, and the words in front of its commands that make another user run them: root may not.
fn postgres_data(folder: &Path, bin: &Path) -> (PathBuf, Vec<String>) {
    let data = folder.join("data");
    fs::create_dir(&data).expect("a new folder");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("own folder");
    let mut prefix = Vec::new();
    if Uid::effective().is_root() {
        let names = ["postgres", "nobody"].into_iter().filter_map(|name| User::from_name(name).ok().flatten());
        let user = names.into_iter().next().expect("a user that is not root");
        chown(&data, Some(user.uid), Some(user.gid)).expect("root may");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("own folder");
        let setpriv = program("setpriv");
        prefix =
            vec![setpriv, format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--clear-groups".into()];
    }
    let initdb = bin.join("initdb").to_str().expect("a UTF-8 path").to_owned();
    let words = prefix.iter().chain([&initdb]).collect::<Vec<_>>();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--no-sync", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-D"]);
    let _ = Running::start(command.arg(&data).current_dir("/")).finish().done();
    (data, prefix)
}

fn postgres() {
    let folder = tempfile::Builder::new().prefix("bp.").tempdir_in("/tmp").expect("a folder in /tmp");
    let program = find_program("postgres").and_then(|path| path.canonicalize().ok()).expect("found before");
    let (data, prefix) = postgres_data(folder.path(), program.parent().expect("a folder"));
    let (program, data) = (program.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
    let arguments = [program, "-D", data, "-p", "{port}", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"];
    let quiet = ["-c", "unix_socket_directories="];
    let command: Vec<&str> = prefix.iter().map(String::as_str).chain(arguments).chain(quiet).collect();
    let isready = Path::new(program).with_file_name("pg_isready").display().to_string();
    let probe =
        format!("[readiness]\nprobe = \"exec\"\ncommand = [{isready:?}, \"-h\", \"127.0.0.1\", \"-p\", \"{{port}}\"]");
    // It listens before it serves, and says so to those who ask too early.
    let service = Service::named("postgres").command("15", &command).toml(TCP).toml(&probe);
    let lifecycle =
        format!("[lifecycle]\nstop_signal = \"SIGINT\"\nstop_timeout = \"1m\"\nworking_directory = {data:?}");
    let broker = Setup::new().service(&service.toml(&lifecycle)).start();

    let backend = broker.resolve("postgres@^15");
    let mut connection = broker.dial(&backend);
    connection.send(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).expect("an SSLRequest is taken");
    assert!([b"N", b"S"].contains(&&connection.bytes(1).expect("an answer")[..].try_into().expect("one byte")));

    let mut connection = broker.dial(&backend);
    let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(parameters.len() + 4).expect("short").to_be_bytes();
    connection.send(&[&length, &parameters[..]].concat()).expect("a startup message is taken");
    wait_until_ready_for_query(&mut connection);
    let query = b"SELECT 6 * 7\0";
    let length = u32::try_from(query.len() + 4).expect("short").to_be_bytes();
    connection.send(&[b"Q", &length[..], query].concat()).expect("a query is taken");
    let rows = wait_until_ready_for_query(&mut connection);
    assert!(rows.iter().any(|(kind, body)| *kind == b'D' && body.ends_with(b"42")), "{rows:?}");

    let log = broker.backend("postgres")["log_path"].as_str().expect("a log").to_owned();
    let _ = broker.ctl(&["stop", "postgres"]).done();
    let text = fs::read_to_string(log).expect("a readable log");
    assert!(text.contains("fast shutdown"), "stopped by SIGINT:\n{text}");
    wait_until("no process of it is left", || processes_mentioning(folder.path()).is_empty());
    drop(broker);
}

/// Reads messages up to ReadyForQuery.
fn wait_until_ready_for_query(connection: &mut Connection) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        let head = connection.bytes(5).expect("a message");
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let body = connection.bytes(usize::try_from(length).expect("short") - 4).expect("a body");
        assert_ne!(head[0], b'E', "an error: {}", String::from_utf8_lossy(&body));
        messages.push((head[0], body));
        if head[0] == b'Z' {
            return messages;
        }
    }
}

fn python() {
    let setup = Setup::new();
    fs::create_dir(setup.folder().join("www")).expect("a new folder");
    fs::write(setup.folder().join("www/page.txt"), "hello from python").expect("a new file");
    let (python, www) = (program("python3"), setup.path("www"));
    let command = [&python, "-u", "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", &www];
    let environment = "[service.environment]\ninherit = [\"PATH\", \"HOME\"]";
    let service = Service::named("http").command("3", &command.map(|word| word)).toml(TCP).toml(environment);
    let broker = setup.service(&service).start();
    let backend = broker.resolve("http");
    let page = http_get(broker.dial(&backend), "/page.txt");
    assert!(page.contains("200 OK") && page.ends_with("hello from python"), "{page}");
    let log = broker.ctl(&["logs", "http"]).done().stdout;
    assert!(log.contains("GET /page.txt"), "{log}");
}
