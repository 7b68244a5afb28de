//! A folder of temporary files, removed at the end however the run ends.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::children;

/// Where folders are made.
static AROUND: OnceLock<PathBuf> = OnceLock::new();

/// Has folders made there.
pub(crate) fn make_folders_in(around: PathBuf) {
    // Said once, before there is any.
    let _ = AROUND.set(around);
}

/// A folder with a short path: that of a socket may have 108 bytes.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let around = AROUND.get().map_or(Path::new("/tmp"), PathBuf::as_path);
        let folder = tempfile::Builder::new().prefix("bb.").tempdir_in(around);
        let folder = folder.unwrap_or_else(|error| panic!("no folder in {}: {error}", around.display()));
        children::remove_at_the_end(folder.path());
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a folder in it that only this user may write to.
    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        DirBuilder::new().mode(0o700).create(&path).expect("a new folder is empty");
        path
    }

    /// Writes a file that others may read.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, text).expect("the folder takes a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own files can be changed");
        path
    }
}
