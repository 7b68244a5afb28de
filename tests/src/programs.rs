//! Where programs are: our own beside the test binary, others in the usual folders.

use std::env;
use std::path::{Path, PathBuf};

/// A program of this workspace, built into the same target folder as the running test.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn sibling(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test binary has a path");
    let found = test.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` is not built beside {}: run `cargo test --workspace --no-run` first", test.display())
    })
}

/// The fake backend.
///
/// # Panics
/// It is not built.
#[must_use]
pub fn fake_backend() -> PathBuf {
    sibling("fake-backend")
}

/// A program in `PATH`, in the folders of daemons, or in PostgreSQL's own.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
    let versions = Path::new("/usr/lib/postgresql").read_dir().into_iter().flatten().flatten();
    folders.extend(versions.map(|version| version.path().join("bin")));
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Which of these programs is missing, if one is.
#[must_use]
pub fn missing(programs: &[&str]) -> Option<String> {
    programs.iter().find(|program| find_program(program).is_none()).map(|missing| format!("{missing} is not installed"))
}
