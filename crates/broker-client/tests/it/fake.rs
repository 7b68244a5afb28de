//! The scripted broker: each test says what it hears and what it answers.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use broker_client::{Builder, Client, Error};
use broker_proto::{
    ClientMessage, Endpoint, FRAME_MAX, Hello, Negotiated, Preamble, Progress, Reassembler, Reconnect, Refusal,
    RequestId, ServerMessage, State, decode, encode_frame,
};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Far more than anything here takes; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(work: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work.into_future()).await.expect("it happens soon")
}

pub(crate) struct Broker {
    listener: UnixListener,
    directory: TempDir,
}

impl Broker {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("broker.sock")).expect("a listener");
        Self { listener, directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Takes the socket away, as a broker that is gone.
    pub(crate) fn leave(self) -> TempDir {
        std::fs::remove_file(self.path("broker.sock")).expect("the socket is there");
        self.directory
    }

    /// Settings for a session with this broker, which ends with its first connection.
    pub(crate) fn builder(&self) -> Builder {
        Client::builder().socket(self.path("broker.sock")).client_name("test", "1.0.0").no_reconnect()
    }

    pub(crate) async fn client(&self) -> Client {
        soon(self.builder().connect()).await.expect("the fake broker listens")
    }

    /// Whether nobody is about to connect.
    pub(crate) fn is_idle(&self) -> bool {
        nix::sys::socket::accept(self.listener.as_raw_fd()) == Err(nix::errno::Errno::EAGAIN)
    }

    pub(crate) async fn accept(&self) -> Peer {
        let (stream, _) = soon(self.listener.accept()).await.expect("accepted");
        Peer { stream, input: Reassembler::default() }
    }

    /// The next connection, once the two sides have agreed on the version.
    pub(crate) async fn greeted(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.greet().await;
        peer
    }

    /// A connected client, and the broker's side of it. The broker greets when the client has.
    pub(crate) async fn session(&self) -> (Client, Peer) {
        let client = self.client().await;
        (client, self.accept().await)
    }
}

pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    input: Reassembler,
}

impl Peer {
    /// Hears the client's preamble and answers with this broker's.
    pub(crate) async fn greet(&mut self) {
        assert_eq!(self.preamble().await, Preamble::writing(1));
        self.raw(&Preamble::writing(1).to_bytes()).await;
    }

    pub(crate) async fn preamble(&mut self) -> Preamble {
        loop {
            if let Some(preamble) = self.input.preamble().expect("a preamble") {
                return preamble;
            }
            assert!(self.more().await, "the client closed before its preamble");
        }
    }

    /// The next message that is no Ping; those are answered. `None` when the client has closed.
    pub(crate) async fn hear(&mut self) -> Option<ClientMessage> {
        loop {
            match self.hear_any().await {
                Some(ClientMessage::Ping { nonce }) => self.say(ServerMessage::Pong { nonce }).await,
                other => return other,
            }
        }
    }

    /// The next message; `None` when the client has closed.
    pub(crate) async fn hear_any(&mut self) -> Option<ClientMessage> {
        loop {
            if let Some(body) = self.input.frame(FRAME_MAX).expect("a frame") {
                return Some(decode(body).expect("a message"));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.hear().await {
            Some(ClientMessage::Hello(hello)) => hello,
            other => panic!("no hello but {other:?}"),
        }
    }

    /// Speaks before the client has.
    pub(crate) async fn greet_unasked(&mut self) {
        self.raw(&Preamble::writing(1).to_bytes()).await;
    }

    /// Grants a Hello, as that process.
    pub(crate) async fn grant(&mut self, hello: &Hello, pid: u32) {
        let Hello { request_id, instance, service, .. } = hello.clone();
        let granted = Negotiated { instance, service, pid: Some(pid), ..backend(request_id) };
        self.say(ServerMessage::Negotiated(granted)).await;
    }

    pub(crate) async fn refuse(&mut self, request_id: RequestId, refusal: Refusal) {
        self.say(ServerMessage::Refused { request_id, refusal }).await;
    }

    pub(crate) async fn go_away(&mut self, reconnect: Reconnect) {
        self.say(ServerMessage::GoAway { reconnect }).await;
    }

    pub(crate) async fn say(&mut self, message: ServerMessage) {
        let mut bytes = Vec::new();
        encode_frame(&message, &mut bytes).expect("a message");
        self.raw(&bytes).await;
    }

    /// Sends two messages at once.
    pub(crate) async fn say_both(&mut self, first: ServerMessage, second: ServerMessage) {
        let mut bytes = Vec::new();
        for message in [first, second] {
            encode_frame(&message, &mut bytes).expect("a message");
        }
        self.raw(&bytes).await;
    }

    /// Sends a message with a descriptor, in a sendmsg of its own.
    pub(crate) fn say_with(&mut self, message: ServerMessage, descriptor: impl AsFd) {
        let mut bytes = Vec::new();
        encode_frame(&message, &mut bytes).expect("a message");
        let numbers = [descriptor.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&numbers)];
        let socket = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(socket, &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        soon(self.stream.write_all(bytes)).await.expect("written");
    }

    /// Reads once; `false` at the end.
    async fn more(&mut self) -> bool {
        match soon(self.stream.read_buf(self.input.space())).await {
            Ok(count) => count > 0,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("cannot read: {error}"),
        }
    }
}

pub(crate) fn backend(request_id: RequestId) -> Negotiated {
    Negotiated {
        request_id,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version: "7.0.15".to_owned(),
        endpoint: Endpoint::Unix { path: "/nowhere/redis.sock".to_owned() },
        generation: 1,
        pid: Some(4242),
        connected: false,
    }
}

pub(crate) fn negotiated(request_id: RequestId) -> ServerMessage {
    ServerMessage::Negotiated(backend(request_id))
}

pub(crate) fn progress(request_id: RequestId, state: State) -> ServerMessage {
    let version = "7.0.15".to_owned();
    ServerMessage::Progress(Progress { request_id, version, state, attempt: 0, elapsed_ms: 0, status: None })
}

/// The text of an error and of all its sources.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
