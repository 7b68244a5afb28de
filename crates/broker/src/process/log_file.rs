//! The log files of starts: one per start, which the daemon holds itself and appends to.
//!
//! The broker opens, prunes, reads and shortens them; it never writes into one.

mod aside;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use self::aside::may_lie_there;
pub(crate) use self::aside::settle_for_another;
use super::printable::printable;
use super::spare::{Spare, create_new_from};

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

/// A start's log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    /// Where it lies until it is settled, if its folder is not there yet.
    aside: Option<PathBuf>,
}

/// What the log file of a start is called that begins now.
pub(crate) fn new_path(folder: &Path) -> PathBuf {
    path_at(folder, jiff::Timestamp::now())
}

/// Makes the log file of a new start, at that path or at the next one that is free. It is open for appending, and becomes the
/// daemon's stdout and stderr.
///
/// The folder of a backend that was never started is a few folders deep, each of which takes longer than the file. Then
/// the file is made aside, and is put in its place by [`LogFile::settle`], while the daemon begins.
///
/// # Errors
/// The folder or the file cannot be made.
pub(crate) fn create(path: PathBuf, aside: PathBuf, mut spare: Option<Spare>) -> Result<(File, LogFile), LogError> {
    let Some(folder) = path.parent() else {
        return Err(LogError::Open { path, source: io::ErrorKind::InvalidInput.into() });
    };
    // Looked for first: to fail to make a file costs more.
    if !folder.exists() {
        if may_lie_there(folder, &aside)
            && let Ok(file) = create_new_from(&mut spare, &aside)
        {
            return Ok((file, LogFile { path, aside: Some(aside) }));
        }
        make_private(folder).map_err(|source| LogError::Folder { path: folder.to_owned(), source })?;
    }
    create_in(folder, &path, &mut spare)
}

impl LogFile {
    /// Where it belongs.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it where it belongs, in a folder that is private.
    ///
    /// # Errors
    /// The folder cannot be made, or the file not moved. It stays where it is.
    pub(crate) fn settle(&mut self) -> Result<(), LogError> {
        if let Some(folder) = self.path.parent() {
            make_private(folder).map_err(|source| LogError::Folder { path: folder.to_owned(), source })?;
        }
        if let Some(aside) = &self.aside {
            fs::rename(aside, &self.path).map_err(|source| LogError::Open { path: self.path.clone(), source })?;
            self.aside = None;
        }
        Ok(())
    }

    /// Removes the file of a start that came to nothing.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(self.aside.as_ref().unwrap_or(&self.path));
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if fs::metadata(folder)?.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn path_at(folder: &Path, time: jiff::Timestamp) -> PathBuf {
    folder.join(time.strftime(NAME).to_string())
}

fn create_in(folder: &Path, first: &Path, spare: &mut Option<Spare>) -> Result<(File, LogFile), LogError> {
    let mut path = first.to_owned();
    let mut later = 0;
    loop {
        match create_new_from(spare, &path) {
            Ok(file) => return Ok((file, LogFile { path, aside: None })),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && later < NAME_TRIES => {
                later += 1;
                path = path_at(folder, jiff::Timestamp::now() + Duration::from_micros(later.into()));
            }
            Err(source) => return Err(LogError::Open { path, source }),
        }
    }
}

/// Removes the oldest files of a folder, so that `keep` are left besides that of the newest start. It may not be the newest
/// any more: a file of a later one stays, and does not count. What cannot be removed is reported.
pub(crate) fn prune(folder: &Path, keep: usize, newest: &Path) {
    let prune = || -> io::Result<()> {
        for path in list(folder)?.iter().filter(|path| path.as_path() < newest).rev().skip(keep) {
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

    /// As a start makes it, from first to last.
    fn open(folder: &Path) -> (File, PathBuf) {
        let (file, mut log) = create(new_path(folder), folder.with_extension("aside"), None).unwrap();
        log.settle().unwrap();
        (file, log.path)
    }

    #[test]
    fn a_log_whose_folder_is_yet_to_be_made_lies_aside_until_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (logs, aside) = (folder.path().join("a/b/logs"), folder.path().join("x.1.log"));
        let (mut file, mut log) = create(new_path(&logs), aside.clone(), None).unwrap();
        assert!(aside.exists() && !folder.path().join("a").exists());
        writeln!(file, "one").unwrap();
        log.settle().unwrap();
        writeln!(file, "two").unwrap();
        assert!(!aside.exists());
        assert_eq!(fs::read_to_string(&log.path).unwrap(), "one\ntwo\n");
        assert_eq!(fs::metadata(&logs).unwrap().mode() & 0o777, 0o700);
        // One whose folder is there never lies there, and one that cannot lie there has its folder made first.
        let (_, log) = create(new_path(&logs), aside.clone(), None).unwrap();
        assert!(log.path.exists() && !aside.exists());
        let nowhere = log.path.join("x.1.log");
        let (_, log) = create(new_path(&folder.path().join("c/logs")), nowhere, None).unwrap();
        assert!(log.path.exists());
        // What is left aside is put in its place by whoever comes next; what came to nothing is removed.
        let (_, log) = create(new_path(&folder.path().join("d/logs")), aside.clone(), None).unwrap();
        settle_for_another(&aside, &log.path).unwrap();
        assert!(log.path.exists() && !aside.exists());
        let (_, log) = create(new_path(&folder.path().join("e/logs")), aside.clone(), None).unwrap();
        log.remove();
        assert!(!aside.exists());
    }

    #[test]
    fn a_log_that_cannot_be_settled_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let aside = folder.path().join("x.1.log");
        let (_, mut log) = create(new_path(&folder.path().join("a/logs")), aside.clone(), None).unwrap();
        fs::write(folder.path().join("a"), "").unwrap();
        assert!(matches!(log.settle(), Err(LogError::Folder { .. })) && aside.exists());
        assert!(matches!(create(new_path(&folder.path().join("a/logs")), aside, None), Err(LogError::Folder { .. })));
    }

    #[test]
    fn a_log_file_is_private_appends_and_bears_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("a/b");
        let (mut file, path) = open(&logs);
        assert_eq!(fs::metadata(&logs).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(is_ours(path.file_name().unwrap().to_str().unwrap()), "{}", path.display());
        writeln!(file, "one").unwrap();
        file.set_len(0).unwrap();
        writeln!(file, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn the_oldest_files_are_removed_and_strangers_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.log"), "").unwrap();
        let opened = |keep| {
            let (_, path) = open(folder.path());
            prune(folder.path(), keep, &path);
            path
        };
        let paths: Vec<PathBuf> = (0..6).map(|_| opened(3)).collect();
        let left: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(left, [false, false, true, true, true, true], "three earlier ones and the newest");
        assert!(folder.path().join("notes.log").exists());
        assert!(opened(0).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        // A later start has begun since.
        let (earlier, later) = (opened(1), open(folder.path()).1);
        prune(folder.path(), 0, &earlier);
        assert!(earlier.exists() && later.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
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
        let (mut file, path) = open(folder.path());
        for line in 0..20_000 {
            writeln!(file, "this is line {line:08}").unwrap();
        }
        file.sync_all().unwrap();
        let length = file.metadata().unwrap().len();
        match trim(&path, 64 * 1024).unwrap() {
            Trimmed::Unsupported => return,
            trimmed => assert!(matches!(trimmed, Trimmed::Freed { bytes } if bytes > 300_000), "{trimmed:?}"),
        }
        let after = file.metadata().unwrap();
        assert_eq!(after.len(), length);
        assert!(after.blocks() * STAT_BLOCK_BYTES <= 64 * 1024 + 2 * BLOCK_BYTES, "{}", after.blocks());
        writeln!(file, "the last").unwrap();
        assert_eq!(tail(&path, 2, 1 << 20).unwrap(), "this is line 00019999\nthe last");
        let all = tail(&path, usize::MAX, 1 << 20).unwrap();
        assert!(all.starts_with("this is line 0001"), "the hole and the cut line are skipped: {}", &all[..40]);
        assert!(all.len() >= 60 * 1024);
        assert_eq!(trim(&path, 1 << 20).unwrap(), Trimmed::Fits);
    }
}
