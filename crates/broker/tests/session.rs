//! brokerctl against a broker that says what the test wants: exit codes, `connect`, `exec`, `logs` and `shutdown`.
//!
//! The broker here is a few lines and starts nothing, so what is tested is brokerctl alone; the real one is tested with
//! it end to end elsewhere.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use broker_proto::{
    AdminRequest, ClientMessage, Code, Endpoint, Evidence, FRAME_MAX, Negotiated, Preamble, Reassembler, Reconnect,
    Refusal, ServerMessage, decode, encode_frame,
};
use tempfile::TempDir;

/// A broker, its backends and its folder.
struct Fake {
    folder: TempDir,
}

impl Fake {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("ctl-").tempdir_in("/tmp").expect("a folder");
        let path = folder.path().to_owned();
        serve(&path.join("b.sock"), move |stream| drop(speak(stream, &path)));
        // Sends back what it gets, until its peer has sent the end.
        serve(&folder.path().join("echo.sock"), |mut stream| {
            let mut writer = stream.try_clone().expect("another descriptor");
            let _ = io::copy(&mut stream, &mut writer);
        });
        // Has its say at once, and listens to nobody.
        serve(&folder.path().join("bye.sock"), |mut stream| drop(stream.write_all(b"bye\n")));
        // Counts what it gets, and tells after the end.
        serve(&folder.path().join("count.sock"), |mut stream| {
            let count = io::copy(&mut stream, &mut io::sink()).expect("readable");
            let _ = writeln!(stream, "{count}");
        });
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brokerctl"));
        command.args(arguments).env("BROKER_SOCKET", self.path("b.sock")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("brokerctl runs")
    }
}

fn serve(path: &Path, answer: impl Fn(UnixStream) + Clone + Send + 'static) {
    let listener = UnixListener::bind(path).expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || answer(stream));
        }
    });
}

/// One session: the service's name says what becomes of a Hello.
fn speak(mut stream: UnixStream, folder: &Path) -> io::Result<()> {
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
            let message: ClientMessage = decode(body).expect("a message");
            let last = matches!(message, ClientMessage::Admin { request: AdminRequest::Shutdown, .. });
            for answer in answers(message, folder) {
                encode_frame(&answer, &mut out).expect("short");
            }
            stream.write_all(&std::mem::take(&mut out))?;
            if last {
                return Ok(());
            }
        }
    }
}

fn answers(message: ClientMessage, folder: &Path) -> Vec<ServerMessage> {
    match message {
        ClientMessage::Hello(hello) => {
            let request_id = hello.request_id;
            if let Some(code) = Code::ALL.into_iter().find(|code| code.as_str().replace('_', "-") == hello.service) {
                let mut refusal = Refusal::new(code, "because the test says so").retry_after_ms(1_500);
                refusal.evidence = Evidence { exit_code: Some(7), ..Evidence::default() };
                return vec![ServerMessage::Refused { request_id, refusal }];
            }
            vec![ServerMessage::Negotiated(Negotiated {
                request_id,
                instance: hello.instance,
                endpoint: Endpoint::Unix { path: folder.join(format!("{}.sock", hello.service)).display().to_string() },
                service: hello.service,
                version: "1.2.3".to_owned(),
                generation: 4,
                pid: Some(99),
                connected: false,
            })]
        }
        ClientMessage::Admin { request_id, request } => {
            let backend = serde_json::json!({"instance": "default", "service": "echo", "version": "1.2.3"});
            let log = std::fs::read_link(folder.join("log")).ok();
            let json = match request {
                AdminRequest::Status => serde_json::json!({"broker": {"pid": 999_999_999, "version": "0.1.0",
                    "uptime_ms": 5, "socket": "/x", "state_dir": "/y", "sessions": 1, "services": 0, "problems": 0},
                    "backends": []}),
                AdminRequest::Stop { selection, .. } if selection.service.as_deref() == Some("echo") => {
                    serde_json::json!({"stopped": [backend]})
                }
                AdminRequest::Stop { .. } => serde_json::json!({"stopped": []}),
                AdminRequest::Restart { .. } => serde_json::json!({"restarted": [], "refused": []}),
                AdminRequest::Logs { .. } => serde_json::json!({"logs": [{"instance": "default", "service": "echo",
                    "version": "1.2.3", "path": log, "previous": []}]}),
                AdminRequest::Shutdown => serde_json::json!({"stopping": 2}),
                other => panic!("not asked in these tests: {other:?}"),
            };
            let mut answers = vec![ServerMessage::AdminReply { request_id, json: json.to_string() }];
            if json.get("stopping").is_some() {
                answers.push(ServerMessage::GoAway { reconnect: Reconnect::Never });
            }
            answers
        }
        ClientMessage::Ping { nonce } => vec![ServerMessage::Pong { nonce }],
        ClientMessage::Release { .. } => Vec::new(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Waits for the end, and kills what does not come to it.
fn ended(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("waited").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("brokerctl does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
}

#[test]
fn each_refusal_has_its_exit_code() {
    let fake = Fake::new();
    for refused in Code::ALL {
        let expected = match refused {
            Code::PeerRejected => 77,
            refused if refused.is_fatal() => 69,
            _ => 75,
        };
        let output = fake.run(&["resolve", &refused.as_str().replace('_', "-"), "--json"]);
        assert_eq!(code(&output), Some(expected), "{refused}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
        let refusal = serde_json::json!({"code": refused.as_str(), "reason": "because the test says so",
            "retry_after_ms": 1500, "evidence": {"exit_code": 7}});
        assert_eq!(document, serde_json::json!({ "refused": refusal }));
        assert_eq!(text(&output.stderr), "");
    }
    let output = fake.run(&["exec", "backend-unavailable", "--", "true"]);
    assert_eq!((code(&output), text(&output.stdout)), (Some(75), String::new()));
    insta::assert_snapshot!(text(&output.stderr), @"
    brokerctl: error: because the test says so (backend_unavailable)
      exit code 7
      `brokerctl start` tries at once, once the cause is removed
      try again in 1.5s
    ");
}

#[test]
fn resolve_prints_the_endpoint_alone() {
    let fake = Fake::new();
    let endpoint = format!("unix:{}", fake.path("echo.sock").display());
    let output = fake.run(&["resolve", "echo"]);
    assert_eq!((code(&output), text(&output.stdout)), (Some(0), format!("{endpoint}\n")));
    let output = fake.run(&["resolve", "echo@^1/a", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(
        document,
        serde_json::json!({"instance": "a", "service": "echo", "version": "1.2.3", "endpoint": endpoint, "pid": 99,
            "generation": 4, "state": "ready"})
    );
}

#[test]
fn exec_ends_as_its_command_does() {
    let fake = Fake::new();
    assert_eq!(code(&fake.run(&["exec", "echo", "--", "sh", "-c", "exit 42"])), Some(42));
    assert_eq!(code(&fake.run(&["exec", "echo", "--", "sh", "-c", "kill -9 $$"])), Some(137));
    let output = fake.run(&["exec", "echo", "--", "no-such-command"]);
    assert_eq!(code(&output), Some(127));
    assert!(text(&output.stderr).contains("cannot run `no-such-command`"));
    assert_eq!(code(&fake.run(&["exec", "echo", "--", "/etc/passwd"])), Some(126));
    let output = fake.run(&["exec", "echo", "--", "sh", "-c", "env | grep ^BROKER_ | sort"]);
    let shown = text(&output.stdout).replace(fake.folder.path().to_str().expect("text"), "FOLDER");
    insta::assert_snapshot!(shown, @"
    BROKER_ADDRESS=FOLDER/echo.sock
    BROKER_ENDPOINT=unix:FOLDER/echo.sock
    BROKER_GENERATION=4
    BROKER_INSTANCE=default
    BROKER_SERVICE=echo
    BROKER_SOCKET=FOLDER/b.sock
    BROKER_VERSION=1.2.3
    ");
}

#[test]
fn exec_passes_signals_on_and_waits() {
    let fake = Fake::new();
    let script = "trap 'echo terminated; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = fake.command(&["exec", "echo", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("brokerctl runs");
    let mut ready = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("the command runs");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("sent");
    let output = ended(child);
    assert_eq!((code(&output), text(&output.stdout)), (Some(5), "terminated\n".to_owned()));
}

#[test]
fn connect_passes_the_end_of_stdin_on_and_waits_for_the_answer() {
    let fake = Fake::new();
    let bytes: Vec<u8> = (0..32_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(fake.path("input"), &bytes).expect("written");
    let stdin = File::open(fake.path("input")).expect("there");
    let output = fake.command(&["connect", "echo"]).stdin(stdin).output().expect("brokerctl runs");
    assert_eq!(code(&output), Some(0));
    assert!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());

    let stdin = File::open(fake.path("input")).expect("there");
    let output = fake.command(&["connect", "count"]).stdin(stdin).output().expect("brokerctl runs");
    assert_eq!(text(&output.stdout), format!("{}\n", bytes.len()));
    assert_eq!(text(&fake.run(&["connect", "count"]).stdout), "0\n");
}

#[test]
fn connect_ends_with_the_backend_though_stdin_is_open() {
    let fake = Fake::new();
    let mut command = fake.command(&["connect", "bye"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("brokerctl runs");
    let stdin = child.stdin.take();
    let output = ended(child);
    drop(stdin);
    assert_eq!((code(&output), text(&output.stdout)), (Some(0), "bye\n".to_owned()));
}

#[test]
fn connect_ends_quietly_when_nobody_reads() {
    let fake = Fake::new();
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let mut command = fake.command(&["connect", "bye"]);
    let child = command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped()).spawn().expect("brokerctl runs");
    let output = ended(child);
    assert_eq!((code(&output), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn connect_to_a_backend_that_is_gone_is_a_failure() {
    let fake = Fake::new();
    let output = fake.run(&["connect", "nobody"]);
    assert_eq!(code(&output), Some(1));
    assert!(text(&output.stderr).contains("cannot connect to the backend"), "{}", text(&output.stderr));
}

#[test]
fn stop_says_what_it_did_or_that_there_was_nothing() {
    let fake = Fake::new();
    let said = |arguments: &[&str]| {
        let output = fake.run(arguments);
        (code(&output), text(&output.stdout) + &text(&output.stderr))
    };
    assert_eq!(said(&["stop", "echo", "other"]), (Some(0), "stopped echo@1.2.3\n".to_owned()));
    assert_eq!(said(&["stop", "other@^2"]), (Some(0), "nothing to stop: nothing runs of other@^2\n".to_owned()));
    assert_eq!(said(&["stop", "other", "--json"]), (Some(0), "{\"stopped\":[]}\n".to_owned()));
    assert_eq!(said(&["restart", "--all"]).0, Some(1));
    assert_eq!(said(&["status"]).0, Some(0));
}

#[test]
fn shutdown_waits_until_the_session_has_ended() {
    let fake = Fake::new();
    let output = fake.run(&["shutdown", "--timeout", "10s"]);
    assert_eq!((code(&output), text(&output.stderr)), (Some(0), String::new()));
    assert_eq!(text(&output.stdout), "stopped 2 backends and the broker (pid 999999999)\n");
}

#[test]
fn logs_follow_the_backend_to_its_next_file() {
    let fake = Fake::new();
    let log = |name: &str, content: &str| {
        std::fs::write(fake.path(name), content).expect("written");
        let _ = std::fs::remove_file(fake.path("log"));
        std::os::unix::fs::symlink(fake.path(name), fake.path("log")).expect("linked");
    };
    log("1.log", "one\ntwo\nthree\n");
    assert_eq!(text(&fake.run(&["logs", "echo", "-n", "2"]).stdout), "two\nthree\n");

    let mut command = fake.command(&["logs", "-f", "-n", "1", "echo"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("brokerctl runs");
    let mut stdout = child.stdout.take().expect("piped");
    let mut next = |expected: &str| {
        let mut seen = vec![0; expected.len()];
        stdout.read_exact(&mut seen).expect("the log goes on");
        assert_eq!(text(&seen), expected);
    };
    next("three\n");
    let mut file = File::options().append(true).open(fake.path("1.log")).expect("there");
    file.write_all(b"four\n").expect("written");
    next("four\n");
    file.write_all(b"last\n").expect("written");
    log("2.log", "new\n");
    next("last\nnew\n");
    child.kill().expect("killed");
    let _ = child.wait();
}
