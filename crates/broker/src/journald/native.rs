//! Entries for the journal, with fields, and where they are sent: one datagram each.
//!
//! Sending waits while the journal's socket is full, so it is done on a thread of its own. What cannot be sent is counted
//! and told later; nothing here fails the one who logs.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where journald takes entries.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value of a field, in bytes. An entry of a few of them fits into a datagram anywhere.
const VALUE_MAX: usize = 16 << 10;

/// The longest name of a field that journald takes.
const NAME_MAX: usize = 64;

/// How urgent an entry is, as syslog counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

/// An entry that is being put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    bytes: Vec<u8>,
}

impl Entry {
    pub(crate) fn new(priority: Priority, identifier: &str) -> Self {
        let mut entry = Self { bytes: Vec::with_capacity(512) };
        entry.field("PRIORITY", &(priority as u8).to_string());
        entry.field("SYSLOG_IDENTIFIER", identifier);
        entry
    }

    /// Adds a field. Its name is made of capitals, digits and underscores, as journald wants them.
    pub(crate) fn field(&mut self, name: &str, value: &str) {
        self.prefixed_field("", name, value);
    }

    /// Adds a field whose name begins so.
    pub(crate) fn prefixed_field(&mut self, prefix: &str, name: &str, value: &str) {
        let name = prefix.bytes().chain(name.bytes()).take(NAME_MAX);
        self.bytes.extend(name.map(|byte| match byte {
            b'a'..=b'z' => byte.to_ascii_uppercase(),
            b'A'..=b'Z' | b'0'..=b'9' => byte,
            _ => b'_',
        }));
        let end = (0..=VALUE_MAX.min(value.len())).rev().find(|&at| value.is_char_boundary(at)).unwrap_or_default();
        let value = &value[..end];
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Sends each write as an entry, and tells of those that were lost once it can.
pub(crate) struct Sender {
    socket: UnixDatagram,
    place: PathBuf,
    identifier: &'static str,
    /// How many were lost on their way here.
    dropped: Box<dyn Fn() -> usize + Send>,
    /// How many were lost here.
    refused: usize,
    /// Of how many it was told.
    told: usize,
}

impl Sender {
    /// # Errors
    /// Nobody takes entries there.
    pub(crate) fn connect(
        place: &Path,
        identifier: &'static str,
        dropped: impl Fn() -> usize + Send + 'static,
    ) -> io::Result<Self> {
        UnixDatagram::unbound()?.connect(place)?;
        // Not connected for good: whoever binds the place anew is found again.
        let socket = UnixDatagram::unbound()?;
        let (place, dropped) = (place.to_owned(), Box::new(dropped));
        Ok(Self { socket, place, identifier, dropped, refused: 0, told: 0 })
    }

    fn send(&self, entry: &Entry) -> io::Result<()> {
        self.socket.send_to(entry.as_bytes(), &self.place).map(drop)
    }
}

impl Write for Sender {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        if self.socket.send_to(entry, &self.place).is_err() {
            self.refused += 1;
            return Ok(entry.len());
        }
        let lost = self.refused + (self.dropped)();
        if lost > self.told {
            let mut notice = Entry::new(Priority::Warning, self.identifier);
            notice.field(
                "MESSAGE",
                &format!("{} entries of this log are lost: the journal did not take them", lost - self.told),
            );
            if self.send(&notice).is_ok() {
                self.told = lost;
            }
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn an_entry_is_written_as_journald_reads_it() {
        let mut entry = Entry::new(Priority::Warning, "brokerd");
        entry.field("MESSAGE", "one\ntwo");
        entry.prefixed_field("BROKER_", "retry.after-ms", "5=5");
        let expect = b"PRIORITY=4\nSYSLOG_IDENTIFIER=brokerd\n\
                       MESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\nBROKER_RETRY_AFTER_MS=5=5\n";
        assert_eq!(entry.as_bytes(), expect);
    }

    #[test]
    fn names_and_values_are_bounded() {
        let mut entry = Entry::new(Priority::Debug, "x");
        let before = entry.as_bytes().len();
        entry.prefixed_field("BROKER_", &"n".repeat(100), &"ä".repeat(VALUE_MAX));
        assert_eq!(entry.as_bytes().len() - before, NAME_MAX + 1 + VALUE_MAX + 1);
    }

    #[test]
    fn what_was_lost_is_told_once_somebody_listens_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("socket");
        assert!(Sender::connect(&place, "x", || 0).is_err(), "nobody is there");
        let journal = UnixDatagram::bind(&place).unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        let theirs = Arc::clone(&dropped);
        let mut sender = Sender::connect(&place, "x", move || theirs.load(Ordering::Relaxed)).unwrap();
        drop(journal);
        sender.write_all(b"A=1\n").unwrap();
        std::fs::remove_file(&place).unwrap();
        sender.write_all(b"A=2\n").unwrap();
        dropped.store(3, Ordering::Relaxed);

        let journal = UnixDatagram::bind(&place).unwrap();
        sender.write_all(b"A=3\n").unwrap();
        sender.write_all(b"A=4\n").unwrap();
        let receive = || {
            let mut bytes = [0; 256];
            let length = journal.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        assert_eq!(receive(), "A=3\n");
        let notice =
            "PRIORITY=4\nSYSLOG_IDENTIFIER=x\nMESSAGE=5 entries of this log are lost: the journal did not take them\n";
        assert_eq!(receive(), notice);
        assert_eq!(receive(), "A=4\n");
    }
}
