//! Finding a program by its bare name.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::SpawnError;

/// Finds the program: a bare name is searched in `path_variable` (relative folders in it are passed over), an absolute
/// path is taken as it is.
///
/// # Errors
/// A relative path, or a name that no folder holds as an executable file; a file that is merely not executable is
/// named.
pub(crate) fn resolve_program(name: &OsStr, path_variable: Option<&OsStr>) -> Result<PathBuf, SpawnError> {
    let path = Path::new(name);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if name.as_bytes().contains(&b'/') {
        return Err(SpawnError::Relative { program: path.to_owned() });
    }
    let searched = path_variable.unwrap_or_default();
    let mut barred = None;
    for folder in std::env::split_paths(searched).filter(|folder| folder.is_absolute() && !name.is_empty()) {
        let candidate = folder.join(name);
        if !fs::metadata(&candidate).is_ok_and(|file| file.is_file()) {
            continue;
        }
        if access(&candidate, AccessFlags::X_OK).is_ok() {
            return Ok(candidate);
        }
        barred.get_or_insert(candidate);
    }
    Err(SpawnError::NotFound {
        name: name.to_string_lossy().into_owned(),
        searched: searched.to_string_lossy().into_owned(),
        hint_text: barred.map(|file| format!("`{}` is there, but not executable", file.display())),
    })
}
