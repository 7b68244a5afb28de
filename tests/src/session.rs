//! A session with the broker, spoken by hand: what a client in another language would do.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use broker_proto::{
    AdminRequest, ClientInfo, ClientMessage, Delivery, FRAME_MAX, HIGHEST_VERSION, Hello, Negotiated, Preamble,
    Reassembler, Refusal, RequestId, ServerMessage, decode, encode_frame,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;

use crate::wait::BOUND;

/// The answer to a Hello.
pub type Answer = Result<Negotiated, Box<Refusal>>;

/// What came of a Hello on a session that may end at any time.
#[derive(Debug)]
pub struct Asked {
    /// None if it was negotiated.
    pub refusal: Option<Refusal>,
    /// Whether the broker has not said that it leaves.
    pub stays: bool,
}

/// One connection to the broker.
pub struct Session {
    stream: UnixStream,
    inbox: Reassembler,
    has_preamble: bool,
    passed: VecDeque<OwnedFd>,
    last_id: RequestId,
    /// What arrived and was not asked for: events, progress, drains.
    pub aside: Vec<ServerMessage>,
    /// The signs of life that arrived. They come at any time, and no other method shows them.
    pub heartbeats: u32,
}

impl Session {
    /// Connects and sends the preamble.
    ///
    /// # Panics
    /// The broker does not accept.
    #[track_caller]
    #[must_use]
    pub fn open(socket: &Path) -> Self {
        Self::try_open(socket).expect("the broker accepts")
    }

    /// Connects and sends the preamble.
    ///
    /// # Errors
    /// The broker does not accept.
    pub fn try_open(socket: &Path) -> io::Result<Self> {
        let mut session = Self::over(UnixStream::connect(socket)?)?;
        session.write(&Preamble::writing(HIGHEST_VERSION).to_bytes())?;
        Ok(session)
    }

    /// Connects and says nothing.
    ///
    /// # Panics
    /// The broker does not accept.
    #[track_caller]
    #[must_use]
    pub fn silent(socket: &Path) -> Self {
        UnixStream::connect(socket).and_then(Self::over).expect("the broker accepts")
    }

    fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(BOUND))?;
        let (inbox, passed, aside) = Default::default();
        Ok(Self { stream, inbox, has_preamble: false, passed, last_id: 0, aside, heartbeats: 0 })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The broker closed the connection.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a message.
    ///
    /// # Panics
    /// The broker closed the connection.
    #[track_caller]
    pub fn send(&mut self, message: &ClientMessage) {
        self.try_send(message).expect("the broker takes a message");
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The broker closed the connection.
    ///
    /// # Panics
    /// The message is too long.
    pub fn try_send(&mut self, message: &ClientMessage) -> io::Result<()> {
        let mut frame = Vec::new();
        encode_frame(message, &mut frame).expect("short messages can be encoded");
        self.write(&frame)
    }

    /// A Hello for any version of a service in the default instance, to be changed and sent.
    pub fn hello_for(&mut self, service: &str) -> Hello {
        self.last_id += 1;
        Hello {
            request_id: self.last_id,
            instance: broker_proto::DEFAULT_INSTANCE.to_owned(),
            service: service.to_owned(),
            version_requirement: "*".to_owned(),
            client: ClientInfo { name: "e2e".to_owned(), version: "1.0.0".to_owned() },
            deadline_ms: None,
            delivery: Delivery::Endpoint,
            found_dead: None,
        }
    }

    /// Says Hello and does not wait; the number is for [`Self::answer`].
    #[track_caller]
    pub fn hello(&mut self, service: &str) -> RequestId {
        let hello = self.hello_for(service);
        self.send(&ClientMessage::Hello(hello));
        self.last_id
    }

    /// Waits for the answer to a Hello.
    ///
    /// # Panics
    /// The broker closes the connection first.
    #[track_caller]
    pub fn answer(&mut self, id: RequestId) -> Answer {
        loop {
            match self.receive().expect("the broker answers a Hello") {
                ServerMessage::Negotiated(negotiated) if negotiated.request_id == id => return Ok(negotiated),
                ServerMessage::Refused { request_id, refusal } if request_id == id => return Err(Box::new(refusal)),
                other => self.aside.push(other),
            }
        }
    }

    /// Says Hello and waits for the answer.
    #[track_caller]
    pub fn resolve(&mut self, service: &str) -> Answer {
        let id = self.hello(service);
        self.answer(id)
    }

    /// Says Hello, is given a backend, and holds it as long as this session lives.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    pub fn hold(&mut self, service: &str) -> Negotiated {
        self.resolve(service).unwrap_or_else(|refusal| panic!("{service} is refused: {refusal:?}"))
    }

    /// Asks for a sign of life and waits for it.
    ///
    /// # Panics
    /// The broker closes the connection first.
    #[track_caller]
    pub fn ping(&mut self) {
        self.try_ping().expect("the broker answers a ping");
    }

    /// Asks for a sign of life and waits for it.
    ///
    /// # Errors
    /// The broker closes the connection first.
    ///
    /// # Panics
    /// What arrives is not of the protocol.
    pub fn try_ping(&mut self) -> io::Result<()> {
        self.last_id += 1;
        let nonce = self.last_id;
        let mut frame = Vec::new();
        encode_frame(&ClientMessage::Ping { nonce }, &mut frame).expect("short messages can be encoded");
        self.write(&frame)?;
        loop {
            match self.receive()? {
                ServerMessage::Pong { nonce: answered } if answered == nonce => return Ok(()),
                other => self.aside.push(other),
            }
        }
    }

    /// Says Hello and hears the answer; what is negotiated is given up at once, unless the broker leaves.
    ///
    /// # Errors
    /// The connection ends first.
    ///
    /// # Panics
    /// What arrives is not of the protocol.
    pub fn try_ask(&mut self, service: &str) -> io::Result<Asked> {
        let hello = self.hello_for(service);
        let id = hello.request_id;
        self.try_send(&ClientMessage::Hello(hello))?;
        let mut stays = true;
        loop {
            match self.receive()? {
                ServerMessage::GoAway { .. } => stays = false,
                ServerMessage::Negotiated(negotiated) if negotiated.request_id == id => {
                    if stays {
                        self.try_send(&ClientMessage::Release { request_id: id })?;
                    }
                    return Ok(Asked { refusal: None, stays });
                }
                ServerMessage::Refused { request_id, refusal } if request_id == id => {
                    return Ok(Asked { refusal: Some(refusal), stays });
                }
                _ => {}
            }
        }
    }

    /// Gives a hold up.
    #[track_caller]
    pub fn release(&mut self, id: RequestId) {
        self.send(&ClientMessage::Release { request_id: id });
    }

    /// An operator's request and its report.
    ///
    /// # Errors
    /// It is refused.
    ///
    /// # Panics
    /// The broker closes the connection first, or the report is no JSON.
    #[track_caller]
    pub fn admin(&mut self, request: AdminRequest) -> Result<Value, Box<Refusal>> {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&ClientMessage::Admin { request_id: id, request });
        loop {
            match self.receive().expect("the broker answers an operator") {
                ServerMessage::AdminReply { request_id, json } if request_id == id => {
                    return Ok(serde_json::from_str(&json).expect("a report is JSON"));
                }
                ServerMessage::Refused { request_id, refusal } if request_id == id => return Err(Box::new(refusal)),
                other => self.aside.push(other),
            }
        }
    }

    /// Waits for a message that is none of the ones set aside before: the next one for which `pick` has a use.
    ///
    /// # Panics
    /// The broker closes the connection first.
    #[track_caller]
    pub fn wait_message<T>(&mut self, what: &str, mut pick: impl FnMut(&ServerMessage) -> Option<T>) -> T {
        let mut looked_at = 0;
        loop {
            if let Some(found) = self.aside[looked_at..].iter().find_map(&mut pick) {
                return found;
            }
            looked_at = self.aside.len();
            let message = self.receive().unwrap_or_else(|error| panic!("while waiting for {what}: {error}"));
            self.aside.push(message);
        }
    }

    /// Waits for so many more signs of life; what else arrives is set aside.
    ///
    /// # Panics
    /// They do not come, or the broker closes the connection first.
    #[track_caller]
    pub fn wait_heartbeats(&mut self, count: u32) {
        let enough = self.heartbeats + count;
        while self.heartbeats < enough {
            let message = self.next_message().expect("the broker gives signs of life");
            match message {
                ServerMessage::Heartbeat => self.heartbeats += 1,
                other => self.aside.push(other),
            }
        }
    }

    /// The next message that is no sign of life.
    ///
    /// # Errors
    /// The broker closed the connection, or said nothing else for [`BOUND`].
    ///
    /// # Panics
    /// What arrives is not of the protocol.
    pub fn receive(&mut self) -> io::Result<ServerMessage> {
        let began = Instant::now();
        loop {
            match self.next_message()? {
                ServerMessage::Heartbeat if began.elapsed() > BOUND => return Err(io::ErrorKind::WouldBlock.into()),
                ServerMessage::Heartbeat => self.heartbeats += 1,
                message => return Ok(message),
            }
        }
    }

    fn next_message(&mut self) -> io::Result<ServerMessage> {
        loop {
            if !self.has_preamble {
                self.has_preamble = self.inbox.preamble().expect("the broker's preamble").is_some();
            }
            if self.has_preamble
                && let Some(body) = self.inbox.frame(FRAME_MAX).expect("the broker's frame")
            {
                return Ok(decode(body).expect("the broker's message"));
            }
            self.fill()?;
        }
    }

    /// The broker's preamble, if it has sent nothing but that.
    ///
    /// # Errors
    /// The broker closed the connection, or said nothing for [`BOUND`].
    ///
    /// # Panics
    /// What arrives is no preamble.
    pub fn preamble(&mut self) -> io::Result<Preamble> {
        loop {
            if let Some(preamble) = self.inbox.preamble().expect("the broker's preamble") {
                self.has_preamble = preamble.written != 0;
                return Ok(preamble);
            }
            self.fill()?;
        }
    }

    /// Waits until the broker has closed the connection; what it said before is returned.
    ///
    /// # Panics
    /// It stays open for [`BOUND`].
    #[track_caller]
    pub fn closed(&mut self) -> Vec<ServerMessage> {
        let mut said = Vec::new();
        loop {
            match self.receive() {
                Ok(message) => said.push(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the broker keeps the connection open")
                }
                Err(_) => return said,
            }
        }
    }

    /// Reads to the end of the stream; what the broker said before it is returned.
    ///
    /// # Errors
    /// The connection ends otherwise, as by a reset, or stays open for [`BOUND`].
    pub fn end_of_stream(&mut self) -> io::Result<Vec<ServerMessage>> {
        let mut said = Vec::new();
        loop {
            match self.receive() {
                Ok(message) => said.push(message),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(said),
                Err(error) => return Err(error),
            }
        }
    }

    /// The descriptor that came with the last answer.
    pub fn passed_descriptor(&mut self) -> Option<OwnedFd> {
        self.passed.pop_front()
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let mut control = nix::cmsg_space!([i32; 4]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        assert!(!message.flags.contains(MsgFlags::MSG_CTRUNC), "descriptors were lost");
        let count = message.bytes;
        for owned in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = owned {
                // SAFETY: the kernel has just made these descriptors for us; nothing else owns them.
                self.passed.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inbox.space().extend_from_slice(&bytes[..count]);
        Ok(())
    }
}
