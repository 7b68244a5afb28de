//! Cgroups that a killed broker leaves: nobody else knows of them, and no process is in them any more.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// What the folder is called that a broker makes for its backends where it is no unit of systemd.
const OWN: &str = "broker-";

/// The folders that brokers made for these backends.
pub(crate) fn made_for(backends: impl IntoIterator<Item = Pid>) -> BTreeSet<PathBuf> {
    let Some(mounted) = mounted() else { return BTreeSet::new() };
    let folders = backends.into_iter().filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let place = Path::new(path).parent()?;
        place.file_name()?.to_str()?.starts_with(OWN).then(|| mounted.join(place))
    });
    folders.collect()
}

/// Removes them with those below. The kernel keeps what somebody lives in.
pub(crate) fn remove(folders: &BTreeSet<PathBuf>) {
    for folder in folders {
        for leaf in fs::read_dir(folder).into_iter().flatten().flatten() {
            // Files in it are the kernel's, and go with it.
            let _ = fs::remove_dir(leaf.path());
        }
        let _ = fs::remove_dir(folder);
    }
}

/// Where the unified hierarchy is mounted.
fn mounted() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}
