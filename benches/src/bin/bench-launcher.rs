//! The least that starting a daemon on demand takes: a server on one thread that spawns it when somebody asks, waits until
//! it says `READY=1`, and answers. It keeps nothing, guards against nothing, and serves one client at a time.
//!
//! `bench-launcher SOCKET PROGRAM [ARGUMENT …]` gives the program `--unix SOCKET.daemon` besides. It ends with the connection
//! of whoever asked for it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};

fn main() {
    broker_bench::die_with_parent();
    let mut arguments = env::args_os().skip(1);
    let usage = "usage: bench-launcher SOCKET PROGRAM [ARGUMENT …]";
    let (path, program) = (arguments.next().expect(usage), arguments.next().expect(usage));
    let beside = |what: &str| {
        let mut beside = path.clone();
        beside.push(what);
        beside
    };
    let (endpoint, manager) = (beside(".daemon"), beside(".notify"));
    let told = UnixDatagram::bind(&manager).expect("the folder takes a socket");
    let arguments: Vec<OsString> = arguments.chain(["--unix".into(), endpoint.clone()]).collect();
    let listener = UnixListener::bind(&path).expect("the socket can be bound");
    loop {
        let Ok((mut client, _)) = listener.accept() else { continue };
        let mut request = [0; 64];
        let Ok(count @ 1..) = client.read(&mut request) else { continue };
        let mut command = Command::new(&program);
        command
            .args(&arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("NOTIFY_SOCKET", &manager)
            .current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = command.spawn().expect("the program can be executed");
        let said = told.recv(&mut [0; 64]).expect("the daemon says when it is ready");
        assert_eq!(said, "READY=1".len());
        let _ = client.write_all(&request[..count]);
        // Until it is closed.
        let _ = client.read(&mut [0; 64]);
        daemon.kill().and_then(|()| daemon.wait()).expect("a child can be killed");
        fs::remove_file(&endpoint).expect("a dead socket can be removed");
    }
}
