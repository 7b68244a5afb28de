//! A connection to a backend whose reads and writes wait.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::runtime::Runtime;
use crate::held::Held;

/// A socket in blocking mode.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connected stream to a backend, which it holds. Both ends of it can be used at once through `&BackendStream`.
#[derive(Debug)]
pub struct BackendStream {
    socket: Socket,
    held: Held,
    _runtime: Arc<Runtime>,
}

impl BackendStream {
    pub(super) fn new(socket: Socket, held: Held, runtime: Arc<Runtime>) -> Self {
        Self { socket, held, _runtime: runtime }
    }

    /// The backend at the other end.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Shuts one or both directions down: after `Shutdown::Write` the backend reads the end and can still answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => socket.shutdown(how),
            Socket::Tcp(socket) => socket.shutdown(how),
        }
    }

    /// How long a read may wait; `None` is without end.
    ///
    /// # Errors
    /// The timeout is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => socket.set_read_timeout(timeout),
            Socket::Tcp(socket) => socket.set_read_timeout(timeout),
        }
    }

    /// How long a write may wait; `None` is without end.
    ///
    /// # Errors
    /// The timeout is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => socket.set_write_timeout(timeout),
            Socket::Tcp(socket) => socket.set_write_timeout(timeout),
        }
    }
}

impl AsFd for BackendStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Read for &BackendStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.socket {
            Socket::Unix(socket) => (&*socket).read(bytes),
            Socket::Tcp(socket) => (&*socket).read(bytes),
        }
    }
}

impl Write for &BackendStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.socket {
            Socket::Unix(socket) => (&*socket).write(bytes),
            Socket::Tcp(socket) => (&*socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for BackendStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}

impl Write for BackendStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
