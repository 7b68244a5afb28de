//! A broker in a folder of its own, and the services that it is measured with.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use broker_proto::{AdminRequest, ClientMessage, Delivery, Endpoint, Negotiated, Selection, ServerMessage};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::cgroups;
use crate::children::{Process, end_with_this_process, pidfd_open, signal, wait_for_end};
use crate::client::{BOUND, Key, Session, frame, opening, try_exchange, wait_until};
use crate::facts::Facts;
use crate::folder::Folder;
use crate::kernel;
use crate::programs::Programs;

/// Wide enough for everything that is measured.
const LIMITS: &str = "[limits]\nbackends = 40000\nwaiters_per_backend = 40000\nsessions_per_user = 40000\nfirst_message_timeout = \"60s\"\n";

/// How a daemon is reached, and how it is known that it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Unix,
    Notify,
    Tcp,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Unix, Self::Notify, Self::Tcp];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Notify => "notify",
            Self::Tcp => "tcp",
        }
    }
}

/// A service whose daemon is the one of the benchmark.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) toml: String,
}

impl Service {
    pub(crate) fn new(name: &str, kind: Kind, program: &Path) -> Self {
        Self { name: name.to_owned(), kind, program: program.to_owned(), arguments: Vec::new(), toml: String::new() }
    }

    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&text| text.to_owned()));
        self
    }

    pub(crate) fn delayed(self, delay: Duration) -> Self {
        self.arguments(&["--delay-ms", &delay.as_millis().to_string()])
    }

    fn text(&self) -> String {
        let listen = if self.kind == Kind::Tcp { "--tcp" } else { "--unix" };
        let mut command = vec![self.program.to_str().expect("a UTF-8 path"), listen, "{endpoint}"];
        command.extend(self.arguments.iter().map(String::as_str));
        let (name, command) = (&self.name, serde_json::Value::from(command));
        let mut text =
            format!("[service]\nname = {name:?}\n\n[[version]]\nversion = \"1.0.0\"\ncommand = {command}\n\n");
        match self.kind {
            Kind::Unix => {}
            Kind::Notify => text.push_str("[readiness]\nprobe = \"notify\"\n"),
            Kind::Tcp => text.push_str("[endpoint]\nkind = \"tcp\"\n"),
        }
        let _ = write!(text, "\n{}", self.toml);
        text
    }
}

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Option<Process>,
    folder: Folder,
    program: PathBuf,
}

impl Broker {
    /// Starts one and waits until it answers.
    pub(crate) fn start(programs: &Programs, services: &[Service]) -> Self {
        Self::unstarted(programs, services).started()
    }

    /// Starts one that stays awake that long after each answer.
    pub(crate) fn awake(programs: &Programs, services: &[Service], busy_poll: &str) -> Self {
        let broker = Self::unstarted(programs, services);
        broker.folder.write("broker.toml", &format!("busy_poll = {busy_poll:?}\n{LIMITS}"));
        broker.started()
    }

    /// Starts one that cannot open its journal, and keeps it in memory.
    pub(crate) fn with_broken_journal(programs: &Programs, services: &[Service]) -> Self {
        let broker = Self::unstarted(programs, services);
        // A folder is no database.
        broker.folder.make("state/journal.db");
        broker.started()
    }

    fn started(mut self) -> Self {
        let mut command = self.command();
        end_with_this_process(&mut command, Signal::SIGINT);
        self.process = Some(Process::start(command, Signal::SIGINT));
        self.wait_until_it_answers();
        self
    }

    /// Kills it with all that it runs: to stop many backends well takes long.
    pub(crate) fn kill(&mut self) {
        let Some(process) = self.process.take() else { return };
        let backends: Vec<Pid> = kernel::children(process.pid()).into_iter().map(|(pid, _)| pid).collect();
        let pidfds: Vec<_> = backends.iter().filter_map(|&pid| pidfd_open(pid).ok()).collect();
        let cgroups = cgroups::made_for(backends.iter().copied());
        process.kill();
        for pidfd in pidfds {
            signal(&pidfd, Signal::SIGKILL);
            wait_for_end(&pidfd, BOUND);
        }
        // They came to this process, which is a subreaper.
        for pid in backends {
            let _ = waitpid(pid, None);
        }
        cgroups::remove(&cgroups);
    }

    pub(crate) fn unstarted(programs: &Programs, services: &[Service]) -> Self {
        let folder = Folder::new();
        folder.make("services.d");
        folder.make("state");
        folder.write("broker.toml", LIMITS);
        for service in services {
            folder.write(&format!("services.d/{}.toml", service.name), &service.text());
        }
        Self { process: None, folder, program: programs.brokerd.clone() }
    }

    /// The command line of a brokerd on this folder.
    pub(crate) fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.folder.join("brokerd.log"));
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.join("broker.toml"));
        command.arg("--socket").arg(self.socket());
        command.arg("--services").arg(self.folder.join("services.d"));
        command.arg("--state-dir").arg(self.folder.join("state"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.folder.path()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("the folder takes a file"));
        command
    }

    fn wait_until_it_answers(&self) {
        wait_until("brokerd answers", || {
            let process = self.process.as_ref().expect("it was started");
            assert!(!process.has_ended(), "brokerd ended at once:\n{}", self.log());
            ping(&self.socket()).is_ok()
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("run/broker.sock")
    }

    pub(crate) fn pid(&self) -> Pid {
        self.process.as_ref().expect("it was started").pid()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("brokerd.log")).unwrap_or_default()
    }

    pub(crate) fn session(&self) -> Session {
        Session::open(&self.socket())
    }

    /// Says Hello and holds what it is given for as long as the session is open.
    pub(crate) fn hold(&self, key: &Key) -> (Session, Negotiated) {
        let mut session = self.session();
        let negotiated = session.hello(key.hello(1, Delivery::Endpoint));
        let negotiated = negotiated.unwrap_or_else(|refusal| panic!("refused: {}", refusal.reason));
        (session, negotiated)
    }

    /// Stops backends and waits until nothing of them is left. `None` is all.
    pub(crate) fn stop(&self, key: Option<&Key>) {
        let selection = match key {
            Some(key) => Selection {
                instance: Some(key.instance.clone()),
                service: Some(key.service.clone()),
                version_requirement: None,
            },
            None => Selection::default(),
        };
        self.session().admin(AdminRequest::Stop { selection, deadline_ms: None });
    }

    /// The sockets in its folder of endpoints.
    pub(crate) fn endpoint_files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.folder.join("run/broker.sock.d")).into_iter().flatten().flatten();
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "sock")).collect()
    }
}

/// What a client says that only wants to know whether a broker serves, and hears: a preamble and a Pong.
pub(crate) fn ping(socket: &Path) -> std::io::Result<()> {
    let (request, answer) = ping_and_pong();
    try_exchange(socket, &request, answer.len()).map(|heard| assert_eq!(heard, answer, "another answer to a ping"))
}

fn ping_and_pong() -> (Vec<u8>, Vec<u8>) {
    (opening(&ClientMessage::Ping { nonce: 7 }), opening(&ServerMessage::Pong { nonce: 7 }))
}

/// A warm Hello and its answer as bytes, on a connection of its own and on one that is kept.
#[derive(Debug, Clone)]
pub(crate) struct Warm {
    pub(crate) opening: Vec<u8>,
    pub(crate) opening_answer: Vec<u8>,
    pub(crate) frame: Vec<u8>,
    pub(crate) answer: Vec<u8>,
    /// Kept connections give up what they hold in the same write.
    pub(crate) release: Vec<u8>,
}

impl Warm {
    /// For a backend that runs, as this answer says.
    pub(crate) fn of(key: &Key, negotiated: &Negotiated, request_id: u64, delivery: Delivery) -> Self {
        let hello = ClientMessage::Hello(key.hello(request_id, delivery));
        let connected = delivery == Delivery::Connected;
        let answer = ServerMessage::Negotiated(Negotiated { request_id, connected, ..negotiated.clone() });
        Self {
            opening: opening(&hello),
            opening_answer: opening(&answer),
            frame: frame(&hello),
            answer: frame(&answer),
            release: frame(&ClientMessage::Release { request_id }),
        }
    }
}

/// Asks a daemon of the benchmark for its facts.
pub(crate) fn facts_of(endpoint: &Endpoint) -> std::io::Result<Facts> {
    fn ask(mut stream: impl std::io::Read + std::io::Write) -> std::io::Result<Facts> {
        stream.write_all(b"?")?;
        let mut bytes = [0; Facts::LENGTH];
        stream.read_exact(&mut bytes)?;
        Ok(Facts::from_bytes(bytes))
    }
    match endpoint {
        Endpoint::Unix { path } => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(BOUND))?;
            ask(stream)
        }
        Endpoint::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_read_timeout(Some(BOUND))?;
            ask(stream)
        }
    }
}
