//! A connection to a backend. Its bytes never pass through the broker.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use broker_proto::Endpoint;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::blocking::stream as blocking;
use crate::dial::dial;
use crate::held::Held;

#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    /// Connects to an endpoint.
    pub(crate) async fn dial(endpoint: &Endpoint, timeout: Duration) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix { path } => dial(Path::new(path), timeout).await.map(Self::Unix),
            Endpoint::Tcp { host, port } => {
                let address: IpAddr = host.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
                let connecting = TcpStream::connect(SocketAddr::new(address, *port));
                let stream = tokio::time::timeout(timeout, connecting).await??;
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Takes a socket that the broker has connected.
    pub(crate) fn adopt(descriptor: OwnedFd, endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix { .. } => {
                let stream = std::os::unix::net::UnixStream::from(descriptor);
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Self::Unix)
            }
            Endpoint::Tcp { .. } => {
                let stream = std::net::TcpStream::from(descriptor);
                stream.set_nonblocking(true)?;
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
        }
    }
}

/// A connected stream to a backend, which it holds: the backend is not idle-stopped before it is dropped.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let (mut answers, mut questions) = client.connect_backend("redis", "^7").await?.into_split();
/// questions.write_all(b"PING\r\n").await?;
/// questions.shutdown().await?; // A half-close: redis reads the end, and still answers.
/// let mut answer = String::new();
/// answers.read_to_string(&mut answer).await?;
/// assert_eq!(answer, "+PONG\r\n");
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
#[derive(Debug)]
pub struct BackendStream {
    socket: Socket,
    held: Held,
}

impl BackendStream {
    pub(crate) fn new(socket: Socket, held: Held) -> Self {
        Self { socket, held }
    }

    /// The backend at the other end.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// The socket in blocking mode, and what holds the backend.
    pub(crate) fn into_std(self) -> io::Result<(blocking::Socket, Held)> {
        let Self { socket, held } = self;
        let socket = match socket {
            Socket::Unix(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                blocking::Socket::Unix(stream)
            }
            Socket::Tcp(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                blocking::Socket::Tcp(stream)
            }
        };
        Ok((socket, held))
    }

    /// Splits into halves that can live in different tasks. Shutting the write half down, or dropping it, is a
    /// half-close: the backend reads the end and can still answer. Both halves hold the backend.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        let held = Arc::new(self.held);
        let (read, write) = match self.socket {
            Socket::Unix(stream) => {
                let (read, write) = stream.into_split();
                (ReadSocket::Unix(read), WriteSocket::Unix(write))
            }
            Socket::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadSocket::Tcp(read), WriteSocket::Tcp(write))
            }
        };
        (ReadHalf { socket: read, _held: Arc::clone(&held) }, WriteHalf { socket: write, _held: held })
    }
}

#[derive(Debug)]
enum ReadSocket {
    Unix(unix::OwnedReadHalf),
    Tcp(tcp::OwnedReadHalf),
}

#[derive(Debug)]
enum WriteSocket {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
}

/// The reading half of a [`BackendStream`].
#[derive(Debug)]
pub struct ReadHalf {
    socket: ReadSocket,
    _held: Arc<Held>,
}

/// The writing half of a [`BackendStream`].
#[derive(Debug)]
pub struct WriteHalf {
    socket: WriteSocket,
    _held: Arc<Held>,
}

macro_rules! forward_read {
    ($stream:ty, $socket:ident) => {
        impl AsyncRead for $stream {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match &mut self.get_mut().socket {
                    $socket::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
                    $socket::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
                }
            }
        }
    };
}

macro_rules! forward_write {
    ($stream:ty, $socket:ident) => {
        impl AsyncWrite for $stream {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                match &mut self.get_mut().socket {
                    $socket::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
                    $socket::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match &mut self.get_mut().socket {
                    $socket::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
                    $socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match &mut self.get_mut().socket {
                    $socket::Unix(socket) => Pin::new(socket).poll_flush(cx),
                    $socket::Tcp(socket) => Pin::new(socket).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match &mut self.get_mut().socket {
                    $socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
                    $socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
                }
            }
        }
    };
}

forward_read!(BackendStream, Socket);
forward_read!(ReadHalf, ReadSocket);
forward_write!(BackendStream, Socket);
forward_write!(WriteHalf, WriteSocket);
