//! The netlink half of `sock_diag`: one question, and the messages of its answer.
//!
//! It knows framing, sequence numbers and errors; what the messages mean is its caller's.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const NETLINK_SOCK_DIAG: libc::c_int = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_DUMP_INTR: u16 = 0x10;

const HEADER_BYTES: usize = 16;
/// The kernel's dumps fill at most 32 KiB at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long an answer may take. It comes from the kernel, within the system call that asks.
const RECEIVE_TIMEOUT_S: libc::time_t = 2;
/// How often a dump is asked for again when sockets came and went while it was made.
const DUMP_TRIES: u32 = 3;

/// Reads integers out of a message.
pub(super) trait Bytes {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
    fn u8(&self, at: usize) -> Option<u8> {
        self.array(at).map(|[byte]| byte)
    }
    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_ne_bytes)
    }
    fn be16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }
    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }
}

impl Bytes for [u8] {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// Splits off the first attribute: its type, its value, and what follows.
pub(super) fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(bytes.u16(0)?);
    let value = bytes.get(4..length)?;
    Some((bytes.u16(2)?, value, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// A connection to the kernel.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What one datagram said.
enum Answer {
    /// More is to come.
    Continues,
    /// That was all. `intact` is false if sockets changed meanwhile.
    Complete { intact: bool },
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: three integers in, a new descriptor or -1 out.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_SOCK_DIAG) };
        // SAFETY: the kernel has just made it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) };
        let timeout = nix::sys::time::TimeVal::new(RECEIVE_TIMEOUT_S, 0);
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Asks for one socket; `None` if there is none.
    pub(super) fn get(&mut self, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.send(request, 0)?;
        let mut found = None;
        loop {
            let received = self.receive();
            match received.and_then(|bytes| self.read(bytes, &mut |message| found = Some(message.to_vec()))) {
                // An exact question is answered by one message, without an end.
                Ok(Answer::Continues) if found.is_none() => {}
                Ok(_) => return Ok(found),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for all sockets, and counts those that pass.
    pub(super) fn dump(&mut self, request: &[u8], mut passes: impl FnMut(&[u8]) -> bool) -> io::Result<usize> {
        let mut tries = 0;
        loop {
            self.send(request, libc::NLM_F_DUMP as u16)?;
            let (mut count, mut intact) = (0, true);
            loop {
                let bytes = self.receive()?;
                if let Answer::Complete { intact: whole } =
                    self.read(bytes, &mut |message| count += usize::from(passes(message)))?
                {
                    intact &= whole;
                    break;
                }
            }
            tries += 1;
            if intact || tries == DUMP_TRIES {
                return Ok(count);
            }
        }
    }

    fn send(&mut self, request: &[u8], flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(HEADER_BYTES + request.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend_from_slice(&(libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(request);
        // An unbound, unconnected netlink socket sends to the kernel.
        nix::sys::socket::send(self.socket.as_raw_fd(), &message, nix::sys::socket::MsgFlags::empty())?;
        Ok(())
    }

    /// Receives one datagram of the kernel into the buffer and returns its length.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            // SAFETY: both are plain data for which all zeros is a value.
            let (mut from, mut from_bytes) =
                unsafe { (std::mem::zeroed::<libc::sockaddr_nl>(), size_of::<libc::sockaddr_nl>() as libc::socklen_t) };
            // SAFETY: the buffer and the address are live and as long as is said; MSG_TRUNC makes the kernel return the
            // datagram's own length.
            let received = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_TRUNC,
                    (&raw mut from).cast(),
                    &raw mut from_bytes,
                )
            };
            let bytes = match Errno::result(received) {
                Ok(bytes) => usize::try_from(bytes).unwrap_or(0),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            };
            // Others than the kernel (number 0) may send to us as well.
            if from.nl_pid != 0 {
                continue;
            }
            if bytes > self.buffer.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink answer is longer than its buffer"));
            }
            return Ok(bytes);
        }
    }

    /// Reads the messages of one datagram that answer the last question.
    fn read(&self, bytes: usize, take: &mut dyn FnMut(&[u8])) -> io::Result<Answer> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a netlink answer is malformed");
        let mut rest = &self.buffer[..bytes];
        let mut intact = true;
        while !rest.is_empty() {
            let length = rest.u32(0).ok_or_else(malformed)? as usize;
            let (kind, flags) = rest.u16(4).zip(rest.u16(6)).ok_or_else(malformed)?;
            let body = rest.get(HEADER_BYTES..length).ok_or_else(malformed)?;
            let is_answer = rest.u32(8) == Some(self.sequence);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if !is_answer {
                continue;
            }
            intact &= flags & NLM_F_DUMP_INTR == 0;
            match libc::c_int::from(kind) {
                // Both carry an errno, zero or negative; an old kernel's end of a dump may carry nothing.
                libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                    let code = body.u32(0).unwrap_or(0).cast_signed();
                    return if code < 0 {
                        Err(io::Error::from_raw_os_error(code.saturating_neg()))
                    } else {
                        Ok(Answer::Complete { intact })
                    };
                }
                libc::NLMSG_NOOP => {}
                libc::NLMSG_OVERRUN => return Err(malformed()),
                _ => take(body),
            }
        }
        Ok(Answer::Continues)
    }
}
