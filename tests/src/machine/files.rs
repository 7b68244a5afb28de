//! What a machine has besides the host's files, laid out in a folder before it is booted.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::programs::sibling;

/// Files of a machine without the broker: a name of its own, a journal that is kept in memory and drops nothing.
const BASE: &[(&str, &str)] = &[
    ("etc/machine-id", "b2b7e1d5c0de4a5fa0c1d2e3f4a5b6c7\n"),
    ("etc/hostname", "machine\n"),
    ("etc/systemd/journald.conf.d/trial.conf", "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n"),
];

/// The folders of `systemd/`, and where they go.
const UNITS: &[(&str, &str)] = &[
    ("system", "usr/lib/systemd/system"),
    ("user", "usr/lib/systemd/user"),
    ("sysusers.d", "usr/lib/sysusers.d"),
    ("tmpfiles.d", "usr/lib/tmpfiles.d"),
];

/// Where a machine with sources has them.
pub(super) const SOURCES: &str = "/usr/src/broker";

/// What of the workspace is installed besides the programs.
const INSTALLED: &[&str] = &[
    "systemd",
    "packaging/completions",
    "examples/services",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "crates/broker-proto/PROTOCOL.md",
];

/// The folder's `files` and `programs` for a machine without the broker.
pub(super) fn without_broker(folder: &Path) {
    fs::create_dir(folder.join("programs")).expect("a new folder is empty");
    for (path, text) in BASE {
        write(&folder.join("files").join(path), text);
    }
    link_program(folder, "usr/bin", "fake-backend");
}

/// The same with the built programs and the shipped units, as a distribution installs them.
pub(super) fn with_broker(folder: &Path) {
    without_broker(folder);
    link_program(folder, "usr/bin", "brokerd");
    link_program(folder, "usr/bin", "brokerctl");
    for (from, to) in UNITS {
        copy(&workspace().join("systemd").join(from), &folder.join("files").join(to));
    }
}

/// The same with what `cargo build --release` leaves, to be installed from there.
pub(super) fn with_sources(folder: &Path) {
    without_broker(folder);
    let sources = SOURCES.trim_start_matches('/');
    let built = format!("{sources}/target/release");
    link_program(folder, &built, "brokerd");
    link_program(folder, &built, "brokerctl");
    for path in INSTALLED {
        copy(&workspace().join(path), &folder.join("files").join(sources).join(path));
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around this crate")
}

fn link_program(folder: &Path, to: &str, name: &str) {
    let to = folder.join("programs").join(to);
    fs::create_dir_all(&to).expect("a folder can be made");
    symlink(sibling(name), to.join(name)).expect("a new folder is empty");
}

/// Copies a file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in from.read_dir().expect("a readable folder").flatten() {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
        return;
    }
    fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("a folder can be made");
    fs::copy(from, to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}

/// Writes a file that everybody may read, and the folders that it takes.
pub(super) fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder can be made");
    fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("own files can be changed");
}
