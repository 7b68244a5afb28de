//! Many clients on one thread, so that the load is not what is measured.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use broker_proto::{ClientMessage, Delivery, FRAME_MAX, Reassembler, ServerMessage, decode};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::client::{BOUND, Granted, Key, opening};
use crate::facts::monotonic_ns;

const EVENTS: usize = 256;

/// Connections by their place, and who of them has something to be read.
struct Watched {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Watched {
    fn new() -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
        Self { epoll, events: vec![EpollEvent::empty(); EVENTS] }
    }

    fn add(&self, stream: &UnixStream, place: usize) {
        let place = u64::try_from(place).expect("a small number");
        self.epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, place)).expect("a socket can be watched");
    }

    /// The places of those that can be read; none in time is a failure.
    fn readable(&mut self) -> Vec<usize> {
        let readable = self.readable_within(BOUND);
        assert!(!readable.is_empty(), "no answer for {BOUND:?}");
        readable
    }

    fn readable_within(&mut self, patience: Duration) -> Vec<usize> {
        let patience = EpollTimeout::try_from(patience.max(Duration::from_millis(1))).expect("a minute at most");
        let count = match self.epoll.wait(&mut self.events, patience) {
            Ok(count) => count,
            Err(error) => panic!("cannot wait for answers: {error}"),
        };
        self.events[..count].iter().map(|event| usize::try_from(event.data()).expect("a place")).collect()
    }
}

/// Has so many clients connect, ask, read and close for that long; how long each request took, in nanoseconds.
pub(crate) fn reconnecting(
    socket: &Path,
    clients: usize,
    lasting: Duration,
    (request, answer): (&[u8], &[u8]),
    out: &mut Vec<u64>,
) {
    let mut watched = Watched::new();
    let begin = |watched: &Watched, place: usize| {
        let began = monotonic_ns();
        let mut stream = UnixStream::connect(socket).expect("the server accepts");
        stream.write_all(request).expect("the server reads");
        watched.add(&stream, place);
        (stream, 0, began)
    };
    let mut open: Vec<(UnixStream, usize, u64)> = (0..clients).map(|place| begin(&watched, place)).collect();
    let over = monotonic_ns() + nanoseconds(lasting);
    let mut bytes = [0; 4096];
    while monotonic_ns() < over {
        for place in watched.readable() {
            let (stream, length, began) = &mut open[place];
            let count = stream.read(&mut bytes).expect("the server answers");
            let whole = answer.get(*length..*length + count);
            assert!(count > 0 && whole == Some(&bytes[..count]), "another answer: {:?}", &bytes[..count]);
            *length += count;
            if *length == answer.len() {
                out.push(monotonic_ns() - *began);
                open[place] = begin(&watched, place);
            }
        }
    }
    // What is under way is answered before the next slice begins.
    for (mut stream, length, _) in open {
        stream.read_exact(&mut bytes[..answer.len() - length]).expect("the server answers");
    }
}

/// Has open connections ask and read for that long. The number of a request in its connection picks its bytes.
pub(crate) fn kept(
    mut open: Vec<UnixStream>,
    lasting: Duration,
    requests: &[(Vec<u8>, Vec<u8>)],
    heartbeat: &[u8],
    out: &mut Vec<u64>,
) {
    let mut watched = Watched::new();
    // Number of the request, bytes of its answer so far, and when it was sent; none once the time is over.
    let mut state: Vec<Option<(usize, usize, u64)>> = Vec::new();
    for (place, stream) in open.iter_mut().enumerate() {
        watched.add(stream, place);
        state.push(Some((0, 0, monotonic_ns())));
        stream.write_all(&requests[0].0).expect("the server reads");
    }
    let over = monotonic_ns() + nanoseconds(lasting);
    let mut bytes = [0; 4096];
    let mut busy = open.len();
    while busy > 0 {
        for place in watched.readable() {
            let mut count = open[place].read(&mut bytes).expect("the server answers");
            assert!(count > 0, "the server closed the connection");
            let Some((number, length, began)) = &mut state[place] else { continue };
            // A sign of life is no answer. It comes whole, before an answer or after it.
            if !heartbeat.is_empty() && *length == 0 && bytes[..count].starts_with(heartbeat) {
                bytes.copy_within(heartbeat.len()..count, 0);
                count -= heartbeat.len();
            }
            let answer = &requests[*number].1;
            let part = count.min(answer.len() - *length);
            assert!(answer[*length..*length + part] == bytes[..part], "another answer: {:?}", &bytes[..count]);
            assert!(part == count || bytes[part..count] == *heartbeat, "more than an answer: {:?}", &bytes[..count]);
            *length += part;
            if *length < answer.len() {
                continue;
            }
            let now = monotonic_ns();
            out.push(now - *began);
            if now >= over || *number + 1 == requests.len() {
                state[place] = None;
                busy -= 1;
                continue;
            }
            (*number, *length, *began) = (*number + 1, 0, now);
            open[place].write_all(&requests[*number].0).expect("the server reads");
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a short time")
}

/// Clients that wait for one backend.
pub(crate) struct Waiters {
    watched: Watched,
    open: Vec<Waiter>,
}

struct Waiter {
    stream: UnixStream,
    inbox: Reassembler,
    has_preamble: bool,
    /// It was told that the broker knows of it.
    has_progress: bool,
    answer: Option<Answer>,
    heartbeats: u64,
}

/// What a waiter was told, and when it had read it.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) result: Granted,
    pub(crate) at_ns: u64,
}

impl Waiters {
    /// So many clients, connected, that have said nothing yet.
    pub(crate) fn connect(socket: &Path, count: usize) -> Self {
        let watched = Watched::new();
        let open = (0..count)
            .map(|place| {
                let stream = UnixStream::connect(socket).expect("the broker accepts");
                watched.add(&stream, place);
                stream.set_nonblocking(true).expect("a socket");
                let inbox = Reassembler::default();
                Waiter { stream, inbox, has_preamble: false, has_progress: false, answer: None, heartbeats: 0 }
            })
            .collect();
        Self { watched, open }
    }

    /// Has all of them say Hello, one right after the other.
    pub(crate) fn ask(&mut self, key: &Key) {
        let request = opening(&ClientMessage::Hello(key.hello(1, Delivery::Endpoint)));
        for waiter in &mut self.open {
            waiter.stream.write_all(&request).expect("a new connection takes a Hello");
        }
    }

    /// Waits until the broker has told every one that it waits, or answered it.
    pub(crate) fn await_progress(&mut self) {
        self.run(|waiter| waiter.has_progress || waiter.answer.is_some());
    }

    /// Waits until every one is answered.
    pub(crate) fn await_answers(&mut self) -> Vec<Answer> {
        self.run(|waiter| waiter.answer.is_some());
        self.open.iter_mut().filter_map(|waiter| waiter.answer.take()).collect()
    }

    /// Reads signs of life for that long: how many came.
    pub(crate) fn listen(&mut self, lasting: Duration) -> u64 {
        let over = monotonic_ns() + nanoseconds(lasting);
        let mut heard = 0;
        loop {
            let left = Duration::from_nanos(over.saturating_sub(monotonic_ns()));
            if left.is_zero() {
                return heard;
            }
            for place in self.watched.readable_within(left) {
                let waiter = &mut self.open[place];
                let before = waiter.heartbeats;
                waiter.read();
                heard += waiter.heartbeats - before;
            }
        }
    }

    fn run(&mut self, is_done: impl Fn(&Waiter) -> bool) {
        let mut left = self.open.iter().filter(|waiter| !is_done(waiter)).count();
        while left > 0 {
            for place in self.watched.readable() {
                let waiter = &mut self.open[place];
                let was_done = is_done(waiter);
                waiter.read();
                left -= usize::from(!was_done && is_done(waiter));
            }
        }
    }
}

impl Waiter {
    fn read(&mut self) {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => panic!("the broker closed connection {}", self.stream.as_raw_fd()),
            Ok(count) => self.inbox.space().extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("the broker does not answer: {error}"),
        }
        let at_ns = monotonic_ns();
        if !self.has_preamble {
            self.has_preamble = self.inbox.preamble().expect("the broker's preamble").is_some();
        }
        while self.has_preamble
            && let Some(body) = self.inbox.frame(FRAME_MAX).expect("the broker's frame")
        {
            match decode(body).expect("the broker's message") {
                ServerMessage::Negotiated(negotiated) => self.answer = Some(Answer { result: Ok(negotiated), at_ns }),
                ServerMessage::Refused { refusal, .. } => {
                    self.answer = Some(Answer { result: Err(Box::new(refusal)), at_ns })
                }
                ServerMessage::Progress(_) => self.has_progress = true,
                ServerMessage::Heartbeat => self.heartbeats += 1,
                _ => {}
            }
        }
    }
}
