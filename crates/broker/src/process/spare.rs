//! Files that are made beforehand: to make one takes several times as long as to give it its name, and that while somebody
//! waits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// An empty file, private and open for appending, that bears no name of its own yet.
#[derive(Debug)]
pub(crate) struct Spare {
    path: PathBuf,
    file: File,
}

impl Spare {
    /// Makes one at a place that nobody else uses. What lies there was left by somebody who is gone.
    pub(crate) fn make(path: PathBuf) -> io::Result<Self> {
        let file = match create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                create_new(&path)
            }
            made => made,
        }?;
        Ok(Self { path, file })
    }

    /// Gives it a name that nobody bears.
    ///
    /// # Errors
    /// It goes back as it is, with the reason.
    pub(crate) fn name(self, path: &Path) -> Result<File, (Self, io::Error)> {
        // An error of a file system that does not know the flag is as good as any other.
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(self.file),
            Err(errno) => Err((self, errno.into())),
        }
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

    #[test]
    fn a_spare_file_becomes_the_one_that_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("spare"), "left by another").unwrap();
        let mut spare = Some(Spare::make(at("spare")).unwrap());
        fs::write(at("taken"), "").unwrap();
        let kind = |result: io::Result<File>| result.unwrap_err().kind();
        assert_eq!(kind(create_new_from(&mut spare, &at("taken"))), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(create_new_from(&mut spare, &at("none/x"))), io::ErrorKind::NotFound);
        let mut file = create_new_from(&mut spare, &at("one")).unwrap();
        assert!(spare.is_none() && !at("spare").exists());
        file.write_all(b"1").unwrap();
        assert_eq!(fs::read(at("one")).unwrap(), b"1");
        assert_eq!(fs::metadata(at("one")).unwrap().mode() & 0o777, 0o600);
        create_new_from(&mut spare, &at("two")).unwrap();
        // One that somebody has taken away is no obstacle.
        let mut spare = Some(Spare::make(at("spare")).unwrap());
        fs::remove_file(at("spare")).unwrap();
        create_new_from(&mut spare, &at("three")).unwrap();
        assert!(at("two").exists() && at("three").exists());
    }
}
