//! Service files for real daemons, which the parser accepts without a word.

use super::{daemons, service};

fn check(text: &str, expect: &str) {
    let service = service(text);
    let commands: Vec<String> = daemons(&service)
        .values()
        .map(|definition| format!("{} {}: {}", service.name, definition.version, definition.command.program))
        .collect();
    assert_eq!(commands.join("\n"), expect);
}

#[test]
fn redis() {
    check(
        r#"
[service]
name = "redis"
description = "An in-memory store"

[[version]]
version = "7.0.15"
command = [
    "/usr/bin/redis-server", "--port", "0", "--unixsocket", "{endpoint}", "--unixsocketperm", "700",
    "--dir", "{state_dir}", "--daemonize", "no",
]

[lifecycle]
idle_timeout = "1h"
"#,
        "redis 7.0.15: /usr/bin/redis-server",
    );
}

#[test]
fn memcached() {
    check(
        r#"
[service]
name = "memcached"
description = "A cache; -u counts only for a broker that runs as root"

[[version]]
version = "1.6.18"
command = ["/usr/bin/memcached", "-s", "{endpoint}", "-a", "0700", "-m", "64", "-u", "root"]

[lifecycle]
idle_timeout = "10m"
"#,
        "memcached 1.6.18: /usr/bin/memcached",
    );
}

#[test]
fn nginx() {
    check(
        r#"
[service]
name = "nginx"
description = "A web server; its -g takes no blocks, so that a shell writes the file"

[[version]]
version = "1.22.1"
command = [
    "/bin/sh", "-ec", "printf %s \"$1\" >nginx.conf; exec /usr/sbin/nginx -p . -e stderr -c nginx.conf", "nginx",
    """
    daemon off; pid nginx.pid; error_log stderr; events {{}}
    http {{ access_log off; server {{ listen unix:{endpoint}; location / {{ return 200 hello; }} }} }}
    """,
]

[lifecycle]
stop_signal = "SIGQUIT"
working_directory = "{state_dir}"
"#,
        "nginx 1.22.1: /bin/sh",
    );
}

#[test]
fn postgres() {
    check(
        r#"
[service]
name = "postgres"
description = "A database; run initdb on the data directory first"

[versions]
minimum = "13"

[[version]]
version = "15"
command = [
    "/usr/lib/postgresql/{version}/bin/postgres", "-D", "/var/lib/postgresql/{version}/{instance}",
    "-c", "listen_addresses=127.0.0.1", "-c", "port={port}", "-c", "unix_socket_directories=",
]

[endpoint]
kind = "tcp"

[readiness]
hard_ceiling = "5m"

[lifecycle]
idle_timeout = "never"
stop_signal = "SIGINT"
stop_timeout = "1m 30s"
"#,
        "postgres 15.0.0: /usr/lib/postgresql/{version}/bin/postgres",
    );
}

#[test]
fn python() {
    check(
        r#"
[service]
name = "files"
description = "Serves the files of its state directory"

[[version]]
version = "3.11"
command = ["python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "{port}"]

[service.environment]
set = { PYTHONDONTWRITEBYTECODE = "1" }

[endpoint]
kind = "tcp"

[lifecycle]
working_directory = "{state_dir}"
"#,
        "files 3.11.0: python3",
    );
}

#[test]
fn a_backup_that_runs_to_its_end() {
    let service = service(
        r#"
[service]
name = "backup"
description = "Writes an archive of the home directories"
kind = "process"

[[version]]
version = "1"
command = ["/bin/tar", "-czf", "{state_dir}/home.tgz", "/home"]

[process]
timeout = "2h"
max_attempts = 3

[lifecycle]
stop_timeout = "1m"
"#,
    );
    assert_eq!((service.kind.as_str(), service.versions().len()), ("process", 1));
}
