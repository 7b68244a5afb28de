//! Clients of the broker as lean as those of an echo server: bytes made beforehand, one write, one read.
//!
//! [`Session`] beside them reads messages, for what is not on the clock.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use broker_proto::{
    AdminRequest, ClientInfo, ClientMessage, Delivery, FRAME_MAX, HIGHEST_VERSION, Hello, Negotiated, Preamble,
    Reassembler, Refusal, RequestId, ServerMessage, decode, encode_frame,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;

use crate::facts::monotonic_ns;

/// How long anything is waited for. What takes longer has failed.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// The answer to a Hello.
pub(crate) type Granted = Result<Negotiated, Box<Refusal>>;

/// The backend that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) instance: String,
    pub(crate) service: String,
}

impl Key {
    pub(crate) fn new(service: &str, instance: impl Into<String>) -> Self {
        Self { instance: instance.into(), service: service.to_owned() }
    }

    pub(crate) fn hello(&self, request_id: RequestId, delivery: Delivery) -> Hello {
        Hello {
            request_id,
            instance: self.instance.clone(),
            service: self.service.clone(),
            version_requirement: "^1".to_owned(),
            client: ClientInfo { name: "broker-bench".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
            deadline_ms: None,
            delivery,
            found_dead: None,
        }
    }
}

/// A message as a frame.
pub(crate) fn frame(message: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(message, &mut bytes).expect("a short message");
    bytes
}

/// What opens a connection in either direction: the preamble, and the first message right behind it.
pub(crate) fn opening(message: &impl serde::Serialize) -> Vec<u8> {
    [&Preamble::writing(HIGHEST_VERSION).to_bytes()[..], &frame(message)].concat()
}

/// Connects, sends, reads the answer that is expected, and closes: how long that took, in nanoseconds.
pub(crate) fn exchange(socket: &Path, request: &[u8], expected: &[u8]) -> u64 {
    let mut answer = [0; 4096];
    let began = monotonic_ns();
    let mut stream = UnixStream::connect(socket).expect("the server accepts");
    stream.write_all(request).expect("the server reads");
    let mut length = 0;
    while length < expected.len() {
        length += match stream.read(&mut answer[length..]).expect("the server answers") {
            0 => panic!("the server closed the connection"),
            count => count,
        };
    }
    drop(stream);
    let took = monotonic_ns() - began;
    assert!(answer[..length].starts_with(expected), "another answer: {}", said(&answer[..length]));
    took
}

/// What an unexpected answer says, as far as it can be read.
fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

/// The same where a descriptor comes with the answer, which is closed as well.
pub(crate) fn exchange_for_descriptor(socket: &Path, request: &[u8], expected: &[u8]) -> u64 {
    let mut answer = [0; 4096];
    let mut passed = None;
    let began = monotonic_ns();
    let mut stream = UnixStream::connect(socket).expect("the server accepts");
    stream.write_all(request).expect("the server reads");
    let mut length = 0;
    while length < expected.len() {
        let (count, descriptor) = receive_with_descriptor(&stream, &mut answer[length..]).expect("the server answers");
        assert!(count > 0, "the server closed the connection");
        length += count;
        passed = passed.or(descriptor);
    }
    let has_descriptor = passed.is_some();
    drop((stream, passed));
    let took = monotonic_ns() - began;
    assert!(answer[..length].starts_with(expected), "another answer: {}", said(&answer[..length]));
    assert!(has_descriptor, "no descriptor came with the answer");
    took
}

/// Reads bytes, and the descriptor that comes with them.
fn receive_with_descriptor(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut slices = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut passed = None;
    for owned in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = owned {
            // SAFETY: the kernel has just made these descriptors for us; nothing else owns them.
            passed = numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).next();
        }
    }
    Ok((message.bytes, passed))
}

/// Connects, sends, and reads so many bytes.
pub(crate) fn try_exchange(socket: &Path, request: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request)?;
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// A connection that is kept, for one exchange after the other.
pub(crate) struct Kept {
    stream: UnixStream,
    answer: [u8; 4096],
    /// Bytes that came with the last answer.
    left: usize,
    /// A sign of life may come at any time, and is no answer.
    heartbeat: Vec<u8>,
}

impl Kept {
    pub(crate) fn with_echo(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the server accepts");
        Self { stream, answer: [0; 4096], left: 0, heartbeat: Vec::new() }
    }

    /// Connects to a broker and says the opening, which is answered by this.
    pub(crate) fn with_broker(socket: &Path, opening: &[u8], expected: &[u8]) -> Self {
        let mut kept = Self::with_echo(socket);
        kept.heartbeat = frame(&ServerMessage::Heartbeat);
        kept.exchange(opening, expected);
        kept
    }

    /// Sends, and reads the answer that is expected: how long that took, in nanoseconds.
    pub(crate) fn exchange(&mut self, request: &[u8], expected: &[u8]) -> u64 {
        let began = monotonic_ns();
        self.stream.write_all(request).expect("the server reads");
        let mut length = self.left;
        loop {
            length += match self.stream.read(&mut self.answer[length..]).expect("the server answers") {
                0 => panic!("the server closed the connection"),
                count => count,
            };
            while !self.heartbeat.is_empty() && self.answer[..length].starts_with(&self.heartbeat) {
                self.answer.copy_within(self.heartbeat.len()..length, 0);
                length -= self.heartbeat.len();
            }
            if length >= expected.len() {
                break;
            }
        }
        let took = monotonic_ns() - began;
        assert!(self.answer[..length].starts_with(expected), "another answer: {}", said(&self.answer[..length]));
        self.answer.copy_within(expected.len()..length, 0);
        self.left = length - expected.len();
        took
    }
}

/// A session with the broker, for what is not on the clock.
pub(crate) struct Session {
    stream: UnixStream,
    inbox: Reassembler,
    /// The preamble goes with the first message, as the library has it.
    has_said_preamble: bool,
    has_preamble: bool,
}

impl Session {
    pub(crate) fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the broker accepts");
        stream.set_read_timeout(Some(BOUND)).expect("a socket has a timeout");
        Self { stream, inbox: Reassembler::default(), has_said_preamble: false, has_preamble: false }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    pub(crate) fn send(&mut self, message: &ClientMessage) {
        let message = if self.has_said_preamble { frame(message) } else { opening(message) };
        self.has_said_preamble = true;
        self.write(&message);
    }

    /// The next message that is no sign of life.
    pub(crate) fn receive(&mut self) -> ServerMessage {
        loop {
            if !self.has_preamble {
                self.has_preamble = self.inbox.preamble().expect("the broker's preamble").is_some();
            }
            if self.has_preamble
                && let Some(body) = self.inbox.frame(FRAME_MAX).expect("the broker's frame")
            {
                match decode(body).expect("the broker's message") {
                    ServerMessage::Heartbeat => continue,
                    message => return message,
                }
            }
            let mut bytes = [0; 4096];
            // A descriptor that nobody asked for is closed.
            let (count, _) = receive_with_descriptor(&self.stream, &mut bytes).expect("the broker answers");
            assert!(count > 0, "the broker closed the session");
            self.inbox.space().extend_from_slice(&bytes[..count]);
        }
    }

    /// Says Hello and waits for its answer.
    pub(crate) fn hello(&mut self, hello: Hello) -> Granted {
        let asked = hello.request_id;
        self.send(&ClientMessage::Hello(hello));
        self.answers(asked..asked + 1).remove(0)
    }

    /// The answers to Hellos that were said before, in the order of their numbers.
    pub(crate) fn answers(&mut self, asked: Range<RequestId>) -> Vec<Granted> {
        let (mut answers, began) = (BTreeMap::new(), Instant::now());
        let count = usize::try_from(asked.end - asked.start).expect("a small number");
        while answers.len() < count {
            let (number, answer) = match self.receive() {
                ServerMessage::Negotiated(negotiated) => (negotiated.request_id, Ok(negotiated)),
                ServerMessage::Refused { request_id, refusal } => (request_id, Err(Box::new(refusal))),
                ServerMessage::Progress(_) | ServerMessage::Event { .. } => {
                    assert!(began.elapsed() < BOUND, "nothing but progress for {BOUND:?}");
                    continue;
                }
                other => panic!("no answer to a Hello: {other:?}"),
            };
            assert!(asked.contains(&number), "nobody asked {number}");
            answers.insert(number, answer);
        }
        answers.into_values().collect()
    }

    /// Gives an order and waits for its report.
    pub(crate) fn admin(&mut self, request: AdminRequest) -> Value {
        self.send(&ClientMessage::Admin { request_id: RequestId::MAX, request });
        match self.receive() {
            ServerMessage::AdminReply { json, .. } => serde_json::from_str(&json).expect("a report is JSON"),
            other => panic!("no report: {other:?}"),
        }
    }

    /// Waits until the broker has read everything that was sent before.
    pub(crate) fn settle(&mut self) {
        self.send(&ClientMessage::Ping { nonce: 0 });
        while !matches!(self.receive(), ServerMessage::Pong { .. }) {}
    }
}

/// Waits until the condition holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < BOUND, "waited {BOUND:?} in vain: {what}");
        sleep(Duration::from_micros(500));
    }
}
