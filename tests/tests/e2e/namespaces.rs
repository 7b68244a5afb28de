//! Clients in another mount namespace, as in a container: they have the broker's socket and cannot see the endpoints.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr::null;

use broker_tests::{Broker, Output, Running, Service, sibling, trials};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Uid;
use serde_json::Value;

trials![
    a_client_that_does_not_see_the_endpoint_cannot_connect_to_it,
    a_client_of_the_library_is_handed_a_connected_socket,
];

/// Why these tests cannot run here, if they cannot.
pub(crate) fn hindrance() -> Option<&'static str> {
    if !Uid::effective().is_root() {
        return Some("needs root");
    }
    let mut nothing = Command::new("/bin/true");
    let tried = blind(&mut nothing, Path::new("/tmp"), PathBuf::from("/tmp/none")).status();
    tried.is_err().then_some("mount namespaces are not permitted")
}

/// Gives the command a mount namespace of its own, in which the folder is empty and nobody can connect to the endpoint.
fn blind<'a>(command: &'a mut Command, folder: &Path, endpoint: PathBuf) -> &'a mut Command {
    let folder = CString::new(folder.as_os_str().as_bytes()).expect("a path");
    let enter = move || {
        // SAFETY: system calls on texts that live on; each of them may be made between fork and exec.
        let results = unsafe {
            [
                libc::unshare(libc::CLONE_NEWNS),
                libc::mount(null(), c"/".as_ptr(), null(), libc::MS_REC | libc::MS_PRIVATE, null()),
                libc::mount(c"tmpfs".as_ptr(), folder.as_ptr(), c"tmpfs".as_ptr(), 0, null()),
            ]
        };
        if results != [0; 3] {
            return Err(io::Error::last_os_error());
        }
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        match connect(socket.as_raw_fd(), &UnixAddr::new(&endpoint)?) {
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
            Ok(()) => Err(Errno::EISCONN.into()),
        }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(enter) }
}

/// A broker, a backend that runs under it, and a way to run commands that do not see its endpoint.
struct World {
    broker: Broker,
    backend: Value,
}

impl World {
    fn new() -> Self {
        let broker = Broker::start(&[&Service::fake("x", &[])]);
        let backend = broker.resolve("x");
        Self { broker, backend }
    }

    fn endpoint(&self) -> PathBuf {
        let endpoint = self.backend["endpoint"].as_str().and_then(|text| text.strip_prefix("unix:"));
        PathBuf::from(endpoint.expect("a path"))
    }

    /// Starts a command in a namespace where the folder of the endpoint is empty.
    #[track_caller]
    fn run_blind(&self, command: &mut Command) -> Running {
        let endpoint = self.endpoint();
        let folder = endpoint.parent().expect("a folder").to_owned();
        Running::start(blind(command, &folder, endpoint))
    }

    #[track_caller]
    fn example(&self, name: &str) -> Output {
        let mut command = Command::new(sibling(&format!("examples/{name}")));
        command.arg("x").env_clear().env("BROKER_SOCKET", self.broker.socket()).stdin(Stdio::null());
        self.run_blind(&mut command).finish()
    }

    /// The line with which the backend answers PING.
    fn answer(&self) -> String {
        format!("{} PING\n", self.backend["pid"])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.broker.starts("x").len(), 1, "a backend that is not seen is not dead");
        }
    }
}

fn a_client_that_does_not_see_the_endpoint_cannot_connect_to_it() {
    let world = World::new();
    let output = world.example("ten_lines").exits(1);
    assert!(output.stdout.is_empty() && output.stderr.contains("No such file"), "{}", output.stderr);
    assert_eq!(world.broker.dial(&world.backend).pid(), world.backend["pid"], "it serves those who see it");
}

fn a_client_of_the_library_is_handed_a_connected_socket() {
    let world = World::new();
    let endpoint = world.backend["endpoint"].as_str().expect("a text");
    assert_eq!(world.example("connected").done().stdout, format!("{endpoint}\n{}", world.answer()));
}

/// The one that needs Python, too.
pub(crate) mod in_python {
    use super::*;
    use crate::python;

    trials![a_client_in_python_is_handed_a_connected_socket];

    pub(crate) fn hindrance() -> Option<&'static str> {
        super::hindrance().or_else(python::hindrance)
    }

    fn a_client_in_python_is_handed_a_connected_socket() {
        let world = World::new();
        let mut command = python::client(&world.broker, &["connect", "x"]);
        let running = world.run_blind(command.stdin(Stdio::piped())).fed_with(b"PING\n".to_vec());
        assert_eq!(python::finished(running).done().stdout, world.answer());
    }
}
