//! Reads a file that a person wrote, without trusting what lies there.
//!
//! Owns the limits on the file itself: a regular file, of a sane size, in UTF-8, that nobody else can write. Never
//! waits (for the writer of a fifo) and never reads without bound. What the text means is not its business.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};

use super::problem::{Position, Problem};

/// The largest file that is read, in bytes. A service file is a page; a megabyte is a file put here by mistake.
const FILE_MAX: u64 = 1 << 20;

/// A text file, and why it should not be trusted, if that is so.
#[derive(Debug)]
pub(crate) struct TextFile {
    pub(crate) text: String,
    /// Who else could have written it, and what to do about that.
    pub(crate) distrust: Option<String>,
}

/// Reads a text file.
///
/// # Errors
/// The problem says why it cannot be read: what it is instead of a file, its size, where it is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<TextFile, Problem> {
    let problem = |message: String| Problem::error(path, message);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => problem("there is no such file".to_owned()),
        _ => problem(format!("cannot read the file: {error}")),
    };
    // What is not a regular file is recognised before it is opened, for opening may wait or have effects.
    let metadata = path.metadata().map_err(|error| match path.is_symlink() {
        true => problem(format!("the symbolic link leads nowhere: {error}")),
        false => failed(error),
    })?;
    check_kind(&metadata).map_err(problem)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    check_kind(&metadata).map_err(problem)?;

    let bytes = read_bounded(file).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(problem(format!("the file is larger than the limit of {} MiB", FILE_MAX >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        let position = Some(Position::of(&before, valid));
        Problem { position, ..problem("the file is not UTF-8: save it in that encoding".to_owned()) }
    })?;
    Ok(TextFile { text, distrust: writable_by_others(&metadata, Uid::effective().as_raw()) })
}

fn check_kind(metadata: &Metadata) -> Result<(), String> {
    match metadata {
        _ if metadata.is_file() => Ok(()),
        _ if metadata.is_dir() => Err("this is a directory, not a file".to_owned()),
        _ => Err("this is not a regular file".to_owned()),
    }
}

fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Says who besides root and the given user can write a file or a directory, and what to do; `None` if nobody can.
///
/// A group of which the owner is the only member, as many systems make one for each user, is not somebody else.
pub(crate) fn writable_by_others(metadata: &Metadata, uid: u32) -> Option<String> {
    const EVERYBODY: u32 = 0o002;
    const GROUP: u32 = 0o020;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != uid {
        return Some(format!("it belongs to user {owner}: give it to root or to user {uid}, who runs the broker"));
    }
    if mode & EVERYBODY != 0 {
        return Some(format!("everybody can write it (mode {mode:04o}): take that away with chmod o-w"));
    }
    if mode & GROUP != 0 && !is_private_group(metadata.gid(), owner) {
        return Some(format!("group {} can write it (mode {mode:04o}): take that away with chmod g-w", metadata.gid()));
    }
    None
}

/// Whether a group bears its owner's name and has no other member.
fn is_private_group(gid: u32, owner: u32) -> bool {
    let (Ok(Some(group)), Ok(Some(user))) = (Group::from_gid(Gid::from_raw(gid)), User::from_uid(Uid::from_raw(owner)))
    else {
        return false;
    };
    group.name == user.name && group.mem.iter().all(|member| *member == user.name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::path::PathBuf;

    use super::*;

    fn check(directory: &Path, name: &str, expect: &str) {
        let path = directory.join(name);
        let message = read(&path).expect_err("unreadable").to_string();
        assert_eq!(message.replace(&format!("{}/", directory.display()), ""), expect);
    }

    fn file(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, content).expect("written");
        path
    }

    #[test]
    fn what_is_no_readable_text_says_why() {
        let directory = tempfile::tempdir().expect("made");
        let directory = directory.path();
        fs::create_dir(directory.join("x.toml")).expect("made");
        nix::unistd::mkfifo(&directory.join("fifo.toml"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        std::os::unix::fs::symlink("/nowhere/at/all", directory.join("link.toml")).expect("made");
        let _listener = std::os::unix::net::UnixListener::bind(directory.join("socket.toml")).expect("bound");
        file(directory, "latin.toml", b"[service]\nname = \"caf\xe9\"\n");
        file(directory, "big.toml", &vec![b'#'; (FILE_MAX + 1) as usize]);
        check(directory, "missing.toml", "missing.toml: there is no such file");
        check(directory, "x.toml", "x.toml: this is a directory, not a file");
        check(directory, "fifo.toml", "fifo.toml: this is not a regular file");
        check(directory, "socket.toml", "socket.toml: this is not a regular file");
        check(
            directory,
            "link.toml",
            "link.toml: the symbolic link leads nowhere: No such file or directory (os error 2)",
        );
        check(directory, "latin.toml", "latin.toml:2:12: the file is not UTF-8: save it in that encoding");
        check(directory, "big.toml", "big.toml: the file is larger than the limit of 1 MiB");
    }

    #[test]
    fn a_file_of_just_the_limit_is_read() {
        let directory = tempfile::tempdir().expect("made");
        let path = file(directory.path(), "full.toml", &vec![b'#'; FILE_MAX as usize]);
        assert_eq!(read(&path).expect("read").text.len() as u64, FILE_MAX);
    }

    #[test]
    fn a_file_that_others_can_write_is_not_trusted() {
        let directory = tempfile::tempdir().expect("made");
        let path = file(directory.path(), "x.toml", b"x");
        let distrust = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            read(&path).expect("read").distrust
        };
        assert_eq!(distrust(0o644), None);
        insta::assert_snapshot!(distrust(0o646).expect("distrusted"), @"everybody can write it (mode 0646): take that away with chmod o-w");
    }

    #[test]
    fn a_group_with_other_members_is_not_trusted() {
        let directory = tempfile::tempdir().expect("made");
        let path = file(directory.path(), "x.toml", b"x");
        // Giving a file away takes root, as which the tests run in the container that checks them.
        if chown(&path, None, Some(12345)).is_ok() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("changed");
            let distrust = read(&path).expect("read").distrust;
            assert_eq!(
                distrust.as_deref(),
                Some("group 12345 can write it (mode 0660): take that away with chmod g-w")
            );
        }
        if chown(&path, Some(12345), None).is_ok() {
            let distrust = read(&path).expect("read").distrust.expect("distrusted");
            assert!(distrust.starts_with("it belongs to user 12345: give it to root"), "{distrust}");
        }
    }
}
