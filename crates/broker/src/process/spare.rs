//! Files that are made beforehand: to make one takes several times as long as to give it its name, and that while somebody
//! waits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// How the names of all of them begin.
const PREFIX: &str = "next-";

/// An empty file, private and open for appending, that bears no name of its own yet. One that is not needed is removed.
#[derive(Debug)]
pub(crate) struct Spare {
    place: Place,
    file: File,
}

/// Where it lies meanwhile.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    is_left: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_left {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Spare {
    /// Makes one in a folder of the broker's. Its name tells what it is for, and no other one of this process has it:
    /// one that was taken lies there until it is named, while the next one is made.
    pub(crate) fn make(folder: &Path, purpose: &str) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{PREFIX}{purpose}.{}.{number}", std::process::id()));
        let file = create_new(&path)?;
        Ok(Self { place: Place { path, is_left: false }, file })
    }

    /// Gives it a name that nobody bears.
    ///
    /// # Errors
    /// It goes back as it is, with the reason.
    pub(crate) fn name(mut self, path: &Path) -> Result<File, (Self, io::Error)> {
        // An error of a file system that does not know the flag is as good as any other.
        match renameat2(AT_FDCWD, &self.place.path, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {
                self.place.is_left = true;
                Ok(self.file)
            }
            Err(errno) => Err((self, errno.into())),
        }
    }
}

/// Removes what brokers that were killed left of them. Only for whoever has the folder to himself, before he makes any: a
/// process may have the number of one that is gone, so the names do not tell theirs from his.
pub(crate) fn sweep(folder: &Path) {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    for file in files.filter(|file| file.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
        let _ = fs::remove_file(file.path());
    }
}

/// Makes an empty file that nobody but its owner can read, open for appending.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    // Rust opens with O_CLOEXEC.
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

/// Makes such a file, out of a spare one if there is one.
pub(crate) fn create_new_from(spare: &mut Option<Spare>, path: &Path) -> io::Result<File> {
    let Some(one) = spare.take() else { return create_new(path) };
    match one.name(path) {
        Ok(file) => Ok(file),
        Err((one, error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            // Its own file is not the one that is missing, or the next one cannot be made either.
            *spare = Some(one);
            create_new(path)
        }
        Err(_) => create_new(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    fn left_in(folder: &Path) -> usize {
        let files = fs::read_dir(folder).unwrap();
        files.filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().starts_with(PREFIX)).count()
    }

    #[test]
    fn a_spare_file_becomes_the_one_that_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut spare = Some(Spare::make(folder.path(), "log").unwrap());
        fs::write(at("taken"), "").unwrap();
        let kind = |result: io::Result<File>| result.unwrap_err().kind();
        assert_eq!(kind(create_new_from(&mut spare, &at("taken"))), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(create_new_from(&mut spare, &at("none/x"))), io::ErrorKind::NotFound);
        let mut file = create_new_from(&mut spare, &at("one")).unwrap();
        assert!(spare.is_none() && left_in(folder.path()) == 0);
        file.write_all(b"1").unwrap();
        assert_eq!(fs::read(at("one")).unwrap(), b"1");
        assert_eq!(fs::metadata(at("one")).unwrap().mode() & 0o777, 0o600);
        create_new_from(&mut spare, &at("two")).unwrap();
        // One that somebody has taken away is no obstacle.
        let mut spare = Some(Spare::make(folder.path(), "log").unwrap());
        sweep(folder.path());
        create_new_from(&mut spare, &at("three")).unwrap();
        assert!(at("two").exists() && at("three").exists());
    }

    #[test]
    fn one_that_is_not_needed_is_removed_and_so_is_what_another_left() {
        let folder = tempfile::tempdir().unwrap();
        let spare = Spare::make(folder.path(), "log").unwrap();
        assert_eq!(left_in(folder.path()), 1);
        drop(spare);
        assert_eq!(left_in(folder.path()), 0);
        for name in ["next-log", "next-record.1.1", "journal.db"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        sweep(folder.path());
        assert!(left_in(folder.path()) == 0 && folder.path().join("journal.db").exists());
        sweep(&folder.path().join("none"));
    }
}
