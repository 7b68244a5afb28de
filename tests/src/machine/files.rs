//! What a machine has besides the host's files, laid out in a folder before it is booted.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

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

/// The folder's `files` and `programs` for a machine without the broker.
pub(super) fn without_broker(folder: &Path) {
    fs::create_dir(folder.join("programs")).expect("a new folder is empty");
    for (path, text) in BASE {
        write(&folder.join("files").join(path), text);
    }
}

/// The same with the built programs and the shipped files.
pub(super) fn with_broker(folder: &Path) {
    without_broker(folder);
    for program in ["brokerd", "brokerctl", "fake-backend"] {
        symlink(sibling(program), folder.join("programs").join(program)).expect("a new folder is empty");
    }
    for (from, to) in UNITS {
        for entry in fs::read_dir(shipped(from)).expect("a folder of shipped files").flatten() {
            let text = fs::read_to_string(entry.path()).expect("a shipped file is text");
            write(&folder.join("files").join(to).join(entry.file_name()), &text);
        }
    }
}

/// A file or folder of this workspace that is shipped.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace is around this crate")
        .join("systemd")
        .join(name)
}

/// Writes a file that everybody may read, and the folders that it takes.
pub(super) fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder can be made");
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("own files can be changed");
}
