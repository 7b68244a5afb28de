//! The log files of starts: one per start, which the daemon holds itself and appends to.
//!
//! The broker opens, prunes, reads and shortens them; it never writes into one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::printable::printable;

/// The name of a log file: when the start began, in UTC. It sorts by time.
const NAME: &str = "%Y-%m-%dT%H-%M-%S.%6fZ.log";

/// The length of every such name.
const NAME_BYTES: usize = "2026-11-21T23-42-05.123456Z.log".len();

/// Starts within one microsecond take the next free one.
const NAME_TRIES: u32 = 1000;

/// What a hole begins and ends at; smaller file system blocks divide it.
const BLOCK_BYTES: u64 = 4096;

/// `st_blocks` counts in these, whatever the file system's block is.
const STAT_BLOCK_BYTES: u64 = 512;

/// What can go wrong with a start's log file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("cannot make the log folder `{path}`")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the log file `{path}`")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A start's open log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    /// Open for appending; becomes the daemon's stdout and stderr.
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

/// Makes the log file of a new start.
///
/// # Errors
/// The folder or the file cannot be made.
pub(crate) fn open(folder: &Path) -> Result<LogFile, LogError> {
    make_private(folder).map_err(|source| LogError::Folder { path: folder.to_owned(), source })?;
    let (file, path) = create(folder)?;
    Ok(LogFile { file, path })
}

fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if fs::metadata(folder)?.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<(File, PathBuf), LogError> {
    let now = jiff::Timestamp::now();
    let mut later = 0;
    loop {
        let path = folder.join((now + Duration::from_micros(later.into())).strftime(NAME).to_string());
        // Rust opens with O_CLOEXEC.
        match OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && later < NAME_TRIES => later += 1,
            Err(source) => return Err(LogError::Open { path, source }),
        }
    }
}

/// Removes the oldest files of a folder, so that `keep` are left besides the newest. What cannot be removed is reported.
pub(crate) fn prune(folder: &Path, keep: usize, newest: &Path) {
    let prune = || -> io::Result<()> {
        for path in list(folder)?.iter().filter(|path| *path != newest).rev().skip(keep) {
            fs::remove_file(path)?;
        }
        Ok(())
    };
    if let Err(error) = prune() {
        tracing::warn!(folder = %folder.display(), %error, "cannot remove old log files");
    }
}

/// The log files of a folder, the oldest first.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_ours))
        .collect();
    files.sort_unstable();
    Ok(files)
}

/// Somebody else's file in the folder is not ours to remove.
fn is_ours(name: &str) -> bool {
    name.len() == NAME_BYTES && name.ends_with("Z.log") && name.starts_with(|c: char| c.is_ascii_digit())
}

/// Reads the last lines of a log, at most so many bytes of it, as printable text without a final newline.
///
/// The hole that [`trim`] left is skipped, and so is the rest of a line that the limit cut.
pub(crate) fn tail(path: &Path, max_lines: usize, max_bytes: u64) -> io::Result<String> {
    // Neither a link nor a FIFO in place of the file leads anywhere or blocks.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    tail_of(file, max_lines, max_bytes)
}

/// The same of an open file.
pub(crate) fn tail_of(mut file: File, max_lines: usize, max_bytes: u64) -> io::Result<String> {
    let size = file.metadata()?.len();
    // One byte more shows whether the first line is whole.
    let wanted = size.saturating_sub(max_bytes.saturating_add(1));
    let start = data_from(&file, wanted)?.unwrap_or(size);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    // A daemon that writes meanwhile does not lengthen the read.
    file.take(size - start.min(size)).read_to_end(&mut bytes)?;
    // The hole is made of whole blocks; the rest of its last one reads as zeros.
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    let mut text = bytes.get(zeros..).unwrap_or_default();
    if start > 0 {
        text = match text.iter().position(|&byte| byte == b'\n') {
            Some(line_end) if line_end + 1 < text.len() => &text[line_end + 1..],
            _ => text.get(1..).unwrap_or_default(),
        };
    }
    let text = printable(text.trim_ascii_end());
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(max_lines)..].join("\n"))
}

/// Where data begins at or after the offset; `None` if there is none.
fn data_from(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: moves the read offset of our own open file.
    match Errno::result(unsafe { libc::lseek(file.as_raw_fd(), offset, libc::SEEK_DATA) }) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        // The file system knows no holes.
        Err(_) => Ok(u64::try_from(offset).ok()),
    }
}

/// What [`trim`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trimmed {
    /// The file takes no more than it may.
    Fits,
    /// The head was given back; the file takes this much less.
    Freed { bytes: u64 },
    /// The file system cannot make holes; the file grows.
    Unsupported,
}

/// Gives the head of a log back to the file system if it takes more than `max_bytes`; the newest `max_bytes` stay.
///
/// The daemon goes on appending: its offsets and the file's length do not change.
pub(crate) fn trim(path: &Path, max_bytes: u64) -> io::Result<Trimmed> {
    static REPORTED: Once = Once::new();
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let before = file.metadata()?;
    let allocated = before.blocks() * STAT_BLOCK_BYTES;
    let cut = before.len().saturating_sub(max_bytes) / BLOCK_BYTES * BLOCK_BYTES;
    if allocated <= max_bytes || cut == 0 {
        return Ok(Trimmed::Fits);
    }
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(&file, hole, 0, libc::off_t::try_from(cut).map_err(io::Error::other)?) {
        Ok(()) => {
            let after = file.metadata()?.blocks() * STAT_BLOCK_BYTES;
            Ok(Trimmed::Freed { bytes: allocated.saturating_sub(after) })
        }
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => {
            REPORTED.call_once(|| {
                tracing::warn!(path = %path.display(), "this file system cannot shorten logs; they grow without limit");
            });
            Ok(Trimmed::Unsupported)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_file_is_private_appends_and_bears_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("a/b");
        let mut log = open(&logs).unwrap();
        assert_eq!(fs::metadata(&logs).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&log.path).unwrap().mode() & 0o777, 0o600);
        assert!(is_ours(log.path.file_name().unwrap().to_str().unwrap()), "{}", log.path.display());
        writeln!(log.file, "one").unwrap();
        log.file.set_len(0).unwrap();
        writeln!(log.file, "two").unwrap();
        assert_eq!(fs::read_to_string(&log.path).unwrap(), "two\n");
    }

    #[test]
    fn the_oldest_files_are_removed_and_strangers_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.log"), "").unwrap();
        let opened = |keep| {
            let path = open(folder.path()).unwrap().path;
            prune(folder.path(), keep, &path);
            path
        };
        let paths: Vec<PathBuf> = (0..6).map(|_| opened(3)).collect();
        let left: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(left, [false, false, true, true, true, true], "three earlier ones and the newest");
        assert!(folder.path().join("notes.log").exists());
        assert!(opened(0).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_tail_is_the_last_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let check = |content: &[u8], lines, bytes, expected: &str| {
            fs::write(&path, content).unwrap();
            assert_eq!(tail(&path, lines, bytes).unwrap(), expected);
        };
        check(b"", 10, 100, "");
        check(b"one\ntwo\nthree\n", 2, 100, "two\nthree");
        check(b"one\ntwo\nthree", 10, 100, "one\ntwo\nthree");
        check(b"one\ntwo\nthree\n", 10, 8, "three");
        check(b"one\ntwo\nthree\n", 10, 10, "two\nthree");
        check(b"one endless line", 10, 4, "line");
        check(b"\x1b]0;evil\x07\xff\r\nfatal\n\n", 10, 100, "\u{fffd}]0;evil\u{fffd}\u{fffd}\nfatal");
        assert!(tail(&folder.path().join("none"), 1, 1).is_err());
    }

    #[test]
    fn the_head_is_given_back_and_the_tail_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path()).unwrap();
        for line in 0..20_000 {
            writeln!(log.file, "this is line {line:08}").unwrap();
        }
        log.file.sync_all().unwrap();
        let length = log.file.metadata().unwrap().len();
        match trim(&log.path, 64 * 1024).unwrap() {
            Trimmed::Unsupported => return,
            trimmed => assert!(matches!(trimmed, Trimmed::Freed { bytes } if bytes > 300_000), "{trimmed:?}"),
        }
        let after = log.file.metadata().unwrap();
        assert_eq!(after.len(), length);
        assert!(after.blocks() * STAT_BLOCK_BYTES <= 64 * 1024 + 2 * BLOCK_BYTES, "{}", after.blocks());
        writeln!(log.file, "the last").unwrap();
        assert_eq!(tail(&log.path, 2, 1 << 20).unwrap(), "this is line 00019999\nthe last");
        let all = tail(&log.path, usize::MAX, 1 << 20).unwrap();
        assert!(all.starts_with("this is line 0001"), "the hole and the cut line are skipped: {}", &all[..40]);
        assert!(all.len() >= 60 * 1024);
        assert_eq!(trim(&log.path, 1 << 20).unwrap(), Trimmed::Fits);
    }
}
