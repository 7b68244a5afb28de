//! The broker that has one process, and how brokerctl is run with it.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use broker_proto::{
    AdminRequest, ClientMessage, Code, FRAME_MAX, Preamble, Reassembler, Reconnect, Refusal, ServerMessage, Work,
    decode, encode_frame,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than anything here takes; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker with one process.
pub(crate) struct Fake {
    pub(crate) folder: TempDir,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Null if there is none.
    process: Value,
    heard: Vec<AdminRequest>,
    sessions: Vec<UnixStream>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("ctl-").tempdir_in("/tmp").expect("a folder");
        let state = Arc::new(State::default());
        let listener = UnixListener::bind(folder.path().join("b.sock")).expect("bound");
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&serving);
                state.inner().sessions.push(stream.try_clone().expect("another descriptor"));
                thread::spawn(move || speak(stream, &state));
            }
        });
        Self { folder, state }
    }

    /// A broker whose process runs, with what it has written so far.
    pub(crate) fn running(written: &str) -> Self {
        let fake = Self::new();
        fake.attempt(1, written, "");
        fake
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An attempt runs that has written this.
    pub(crate) fn attempt(&self, attempt: u32, stdout: &str, stderr: &str) {
        let [out, err] = ["out", "err"].map(|name| self.path(&format!("{attempt}.{name}")));
        std::fs::write(&out, stdout).expect("written");
        std::fs::write(&err, stderr).expect("written");
        self.set(json!({"state": "running", "attempt": attempt, "stdout": out, "stderr": err, "pid": 42}));
    }

    /// Changes what is said of the process.
    pub(crate) fn set(&self, facts: Value) {
        let mut inner = self.state.inner();
        if inner.process.is_null() {
            inner.process = json!({"id": "nightly", "state": "pending", "command": ["make"], "service": null,
                "instance": null, "working_directory": "/", "attempt": 0, "max_attempts": 3, "timeout_ms": 1500,
                "pid": null, "adopted": false, "exit_code": null, "signal": null, "ended_by": null, "reason": null,
                "registered_at": "2026-11-22T03:00:00.000Z", "started_at": "2026-11-22T03:00:00.000Z",
                "ended_at": null, "stdout": null, "stderr": null, "lease": null});
        }
        for (name, value) in facts.as_object().expect("an object") {
            inner.process[name] = value.clone();
        }
        self.state.changed.notify_all();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brokerctl"));
        command.args(arguments).env("BROKER_SOCKET", self.path("b.sock")).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        said(&self.command(arguments).output().expect("brokerctl runs"))
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("brokerctl runs")
    }

    /// Waits until the broker has heard such a request.
    pub(crate) fn wait_heard(&self, what: &str, wanted: impl Fn(&AdminRequest) -> bool) -> AdminRequest {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(heard) = self.state.inner().heard.iter().find(|request| wanted(request)) {
                return heard.clone();
            }
            assert!(Instant::now() < deadline, "nothing is heard of {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends every connection, as a broker does that is killed.
    pub(crate) fn hang_up(&self) {
        for session in self.state.inner().sessions.drain(..) {
            let _ = session.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test has failed")
    }

    fn wait(&self, wait_ms: Option<u64>) -> Value {
        let deadline = Instant::now() + wait_ms.map_or(PATIENCE, Duration::from_millis);
        let mut inner = self.inner();
        loop {
            let has_ended = ["succeeded", "failed", "cancelled"].iter().any(|state| inner.process["state"] == **state);
            let left = deadline.saturating_duration_since(Instant::now());
            if has_ended || left.is_zero() {
                return json!({ "process": inner.process });
            }
            inner = self.changed.wait_timeout(inner, left).expect("no test has failed").0;
        }
    }

    fn answer(&self, request: AdminRequest) -> Result<Value, Box<Refusal>> {
        let mut inner = self.inner();
        inner.heard.push(request.clone());
        let id = match &request {
            AdminRequest::Wait { id, .. }
            | AdminRequest::Cancel { id, .. }
            | AdminRequest::Processes { id: Some(id) }
            | AdminRequest::Prune { id: Some(id), .. } => Some(id),
            _ => None,
        };
        if let Some(id) = id.filter(|id| inner.process["id"] != **id) {
            return Err(Box::new(Refusal::new(Code::ServiceUnknown, format!("there is no process `{id}`"))));
        }
        let process = inner.process.clone();
        Ok(match request {
            AdminRequest::Run { spec } => {
                if matches!(&spec.work, Work::Command { argv } if argv[0] == "other") {
                    let reason = "process `nightly` is there already, with other content:\n  command: make, now other";
                    return Err(Box::new(Refusal::new(Code::Malformed, reason)));
                }
                let created = process["attempt"] == json!(0);
                json!({ "process": process, "created": created })
            }
            AdminRequest::Wait { wait_ms, .. } => {
                drop(inner);
                self.wait(wait_ms)
            }
            AdminRequest::Processes { .. } if process.is_null() => json!({"processes": []}),
            AdminRequest::Processes { .. } => json!({ "processes": [process] }),
            AdminRequest::Cancel { .. } => json!({ "process": process }),
            AdminRequest::Prune { .. } if process.is_null() => json!({"pruned": []}),
            AdminRequest::Prune { .. } => json!({"pruned": ["nightly"]}),
            AdminRequest::Release { selection } if selection.service.as_deref() == Some("redis") => {
                json!({"released": [{"instance": "a", "service": "redis", "version": "7.0.15"}]})
            }
            AdminRequest::Release { .. } => json!({"released": []}),
            AdminRequest::Status => json!({"broker": {"pid": 999_999_999, "version": "0.1.0", "uptime_ms": 5,
                "socket": "/x"}, "backends": []}),
            AdminRequest::HandOver => json!({"keeping": 2}),
            other => panic!("not asked in these tests: {other:?}"),
        })
    }
}

fn speak(mut stream: UnixStream, state: &State) -> io::Result<()> {
    let mut incoming = Reassembler::default();
    let mut out = Preamble::writing(1).to_bytes().to_vec();
    let mut greeted = false;
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        incoming.space().extend_from_slice(&chunk[..count]);
        if !greeted {
            greeted = incoming.preamble().expect("a preamble").is_some();
        }
        while let Some(body) = greeted.then(|| incoming.frame(FRAME_MAX).expect("a frame")).flatten() {
            let mut is_last = false;
            match decode(body).expect("a message") {
                ClientMessage::Admin { request_id, request } => {
                    is_last = request == AdminRequest::HandOver;
                    let answer = match state.answer(request) {
                        Ok(json) => ServerMessage::AdminReply { request_id, json: json.to_string() },
                        Err(refusal) => ServerMessage::Refused { request_id, refusal: *refusal },
                    };
                    encode_frame(&answer, &mut out).expect("short");
                }
                ClientMessage::Ping { nonce } => encode_frame(&ServerMessage::Pong { nonce }, &mut out).expect("short"),
                ClientMessage::Release { .. } => {}
                ClientMessage::Hello(hello) => panic!("a Hello: {hello:?}"),
            }
            if is_last {
                let going = ServerMessage::GoAway { reconnect: Reconnect::After { ms: 1 } };
                encode_frame(&going, &mut out).expect("short");
            }
            stream.write_all(&std::mem::take(&mut out))?;
            if is_last {
                return stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// The exit code, stdout and stderr.
pub(crate) fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Waits for the end, and kills what does not come to it.
pub(crate) fn ended(mut child: Child) -> (Option<i32>, String, String) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("waited").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("brokerctl does not end: {:?}", said(&child.wait_with_output().expect("its output")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    said(&child.wait_with_output().expect("its output"))
}

/// Reads from the command's stdout what is expected there.
#[track_caller]
pub(crate) fn read(child: &mut Child, expected: &str) {
    let mut seen = vec![0; expected.len()];
    child.stdout.as_mut().expect("piped").read_exact(&mut seen).expect("the output goes on");
    assert_eq!(String::from_utf8_lossy(&seen), expected);
}

pub(crate) fn append(path: PathBuf, text: &str) {
    let file = std::fs::File::options().append(true).open(path);
    file.expect("there").write_all(text.as_bytes()).expect("written");
}

pub(crate) fn waits(request: &AdminRequest) -> bool {
    matches!(request, AdminRequest::Wait { .. })
}
