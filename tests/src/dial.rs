//! A connection to a backend, as its client makes one.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::wait::BOUND;

/// A connection to an endpoint, for one line at a time.
pub struct Connection {
    input: BufReader<Box<dyn Read + Send>>,
    output: Box<dyn Write + Send>,
}

impl Connection {
    /// Connects to `unix:/path` or `tcp:host:port`.
    ///
    /// # Errors
    /// Nobody listens there.
    ///
    /// # Panics
    /// The endpoint is neither.
    pub fn to(endpoint: &str) -> io::Result<Self> {
        if let Some(path) = endpoint.strip_prefix("unix:") {
            Self::over_unix(UnixStream::connect(path)?)
        } else if let Some(address) = endpoint.strip_prefix("tcp:") {
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(BOUND))?;
            Ok(Self { input: BufReader::new(Box::new(stream.try_clone()?)), output: Box::new(stream) })
        } else {
            panic!("`{endpoint}` is no endpoint")
        }
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn over_unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(BOUND))?;
        Ok(Self { input: BufReader::new(Box::new(stream.try_clone()?)), output: Box::new(stream) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The backend is gone.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.output.flush()
    }

    /// Sends a line and returns the next line, without its end.
    ///
    /// # Errors
    /// The backend is gone.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.send(format!("{line}\n").as_bytes())?;
        self.line()
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// The backend is gone, or says nothing for [`BOUND`].
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Reads exactly so many bytes.
    ///
    /// # Errors
    /// The backend is gone, or says nothing for [`BOUND`].
    pub fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The number of the process that answers.
    ///
    /// # Panics
    /// What answers is no fake backend.
    pub fn pid(&mut self) -> u64 {
        let line = self.ask("who").expect("the backend answers");
        line.split(' ')
            .next()
            .and_then(|pid| pid.parse().ok())
            .unwrap_or_else(|| panic!("no fake backend said `{line}`"))
    }

    /// What the fake backend finds itself to be.
    ///
    /// # Panics
    /// What answers is no fake backend.
    pub fn facts(&mut self) -> Value {
        let line = self.ask("?").expect("the backend answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("no facts ({error}): {line}"))
    }
}
