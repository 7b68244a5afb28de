//! Reads log files: the last lines first, then what is appended. Knows files, and nothing of the broker.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Bytes of one read.
const CHUNK: usize = 64 << 10;

/// A log file and how far it has been read.
#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    position: u64,
    /// Whether what is read next may be the rest of a block whose beginning was given back.
    at_head: bool,
}

impl Tail {
    /// Opens the file at its last lines.
    pub(super) fn at_last_lines(path: &Path, lines: usize) -> io::Result<Self> {
        let file = File::open(path)?;
        let end = file.metadata()?.len();
        let (position, at_head) = start_of_last_lines(&file, end, lines)?;
        Ok(Self { file, position, at_head })
    }

    /// Opens the file at its beginning.
    pub(super) fn at_start(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, position: 0, at_head: true })
    }

    /// Opens a file that is no log at its beginning: what has a hole is read as it is.
    pub(super) fn whole(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, position: 0, at_head: false })
    }

    /// Reads the next bytes into `chunk`; none when there are no more yet.
    pub(super) fn read(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        chunk.clear();
        if self.at_head {
            self.position = data_from(&self.file, self.position)?;
        }
        if self.file.metadata()?.len() < self.position {
            // The file was cut: what is written now begins at the front again.
            self.position = 0;
        }
        chunk.resize(CHUNK, 0);
        let count = self.file.read_at(chunk, self.position)?;
        chunk.truncate(count);
        self.position += count as u64;
        if self.at_head && count > 0 {
            let hole = chunk.iter().take_while(|byte| **byte == 0).count();
            chunk.drain(..hole);
            self.at_head = chunk.is_empty();
            if self.at_head {
                return self.read(chunk);
            }
        }
        Ok(())
    }
}

/// Where the file's data goes on at or after the place: a log over its cap has a hole at its head.
fn data_from(file: &File, position: u64) -> io::Result<u64> {
    let offset = i64::try_from(position).map_err(io::Error::other)?;
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => u64::try_from(data).map_err(io::Error::other),
        // Nothing but a hole up to the end, or a file system that cannot tell.
        Err(Errno::ENXIO) => Ok(file.metadata()?.len().max(position)),
        Err(_) => Ok(position),
    }
}

/// Where the last `lines` lines begin, and whether that is the head of the data.
fn start_of_last_lines(file: &File, end: u64, lines: usize) -> io::Result<(u64, bool)> {
    if lines == 0 {
        return Ok((end, end == 0));
    }
    let head = data_from(file, 0)?.min(end);
    let mut chunk = vec![0; CHUNK];
    let mut wanted = lines;
    let mut position = end;
    while position > head {
        let begin = position.saturating_sub(CHUNK as u64).max(head);
        let length = usize::try_from(position - begin).map_err(io::Error::other)?;
        file.read_exact_at(&mut chunk[..length], begin)?;
        for (at, _) in chunk[..length].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = begin + at as u64 + 1;
            if after == end {
                continue;
            }
            wanted -= 1;
            if wanted == 0 {
                return Ok((after, false));
            }
        }
        position = begin;
    }
    Ok((head, true))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use nix::fcntl::{FallocateFlags, fallocate};

    use super::*;

    fn all(tail: &mut Tail) -> String {
        let (mut text, mut chunk) = (Vec::new(), Vec::new());
        loop {
            tail.read(&mut chunk).expect("readable");
            if chunk.is_empty() {
                return String::from_utf8(text).expect("text");
            }
            text.extend_from_slice(&chunk);
        }
    }

    #[test]
    fn the_last_lines_are_found_whether_or_not_the_last_one_is_whole() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let last = |file: &tempfile::NamedTempFile, n| all(&mut Tail::at_last_lines(file.path(), n).expect("opens"));
        assert_eq!(last(&file, 3), "");
        file.write_all(b"1\n2\n3\n").expect("written");
        assert_eq!(last(&file, 2), "2\n3\n");
        assert_eq!(last(&file, 3), "1\n2\n3\n");
        assert_eq!(last(&file, 9), "1\n2\n3\n");
        assert_eq!(last(&file, 0), "");
        file.write_all(b"4").expect("written");
        assert_eq!(last(&file, 2), "3\n4");
    }

    #[test]
    fn last_lines_longer_than_a_chunk_are_found() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let long = "x".repeat(3 * CHUNK);
        file.write_all(format!("first\n{long}\n{long}\n").as_bytes()).expect("written");
        assert_eq!(all(&mut Tail::at_last_lines(file.path(), 1).expect("opens")), format!("{long}\n"));
    }

    #[test]
    fn what_is_appended_and_what_follows_a_cut_is_read() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"old\n").expect("written");
        let mut tail = Tail::at_last_lines(file.path(), 0).expect("opens");
        assert_eq!(all(&mut tail), "");
        file.write_all(b"new\n").expect("written");
        assert_eq!(all(&mut tail), "new\n");
        file.as_file().set_len(0).expect("cut");
        file.as_file().write_all_at(b"cut\n", 0).expect("written");
        assert_eq!(all(&mut tail), "cut\n");
    }

    #[test]
    fn a_hole_at_the_head_is_skipped() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let line = "a line of some length\n";
        file.write_all(line.repeat(5_000).as_bytes()).expect("written");
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if fallocate(file.as_file(), punch, 0, 50_003).is_err() {
            return;
        }
        let text = all(&mut Tail::at_last_lines(file.path(), 10_000).expect("opens"));
        assert!(text.len() >= 5_000 * line.len() - 50_003 && !text.contains('\0'), "{} bytes", text.len());
        assert_eq!(all(&mut Tail::at_start(file.path()).expect("opens")), text);
    }
}
