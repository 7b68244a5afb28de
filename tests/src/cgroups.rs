//! The cgroups that a broker of a test makes: where they are, who is in them, and that nothing of them is left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Our own cgroup in the unified hierarchy, wherever that is mounted; below it a broker that we start makes its own.
#[must_use]
pub fn own_cgroup() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let cgroup = cgroup_of(std::process::id().into())?;
    Some(Path::new(point).join(Path::new(&cgroup).strip_prefix(root).ok()?))
}

/// What `/proc` calls the cgroup of a process, if it runs.
#[must_use]
pub fn cgroup_of(pid: u64) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Whether that is the root of the hierarchy itself, and of no namespace: there alone controllers can be handed down beside
/// processes.
#[must_use]
pub fn is_root(cgroup: &Path) -> bool {
    !cgroup.join("cgroup.type").exists()
}

/// Why a broker that we start can make no cgroups, if so.
#[must_use]
pub fn cgroup_hindrance() -> Option<&'static str> {
    let Some(own) = own_cgroup() else { return Some("no cgroup2 is mounted") };
    if own.extension().is_some_and(|extension| extension == "service") {
        return Some("a broker makes no cgroups in a unit of its own");
    }
    let tried = own.join(format!("tried-{}", std::process::id()));
    if fs::create_dir(&tried).is_err() {
        return Some("no cgroup can be made below our own");
    }
    let procs = tried.join("cgroup.procs");
    let moved = Command::new("/bin/sh").args(["-c", "echo 0 >\"$0\""]).arg(procs).stderr(Stdio::null()).status();
    let _ = fs::remove_dir(&tried);
    let is_moved = moved.is_ok_and(|status| status.success());
    (!is_moved).then_some("nobody can be moved to a cgroup below our own")
}

/// Where a broker with that state folder makes its cgroups.
pub(crate) fn place(state: &Path) -> Option<PathBuf> {
    // The 64-bit FNV-1a hash, as the broker names it.
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = state.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, hash);
    Some(own_cgroup()?.join(format!("broker-{hash:016x}")))
}

/// Removes the cgroups of a broker with that state folder which was not there to do so. Whoever lives in one keeps it.
pub fn remove_cgroups(state: &Path) {
    if let Some(place) = place(state) {
        let _ = remove(&place);
    }
}

/// Who lives in a cgroup and below it.
#[must_use]
pub fn members(cgroup: &Path) -> Vec<i32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(members(&entry.path()));
        }
    }
    found
}

/// Removes a cgroup and those below it; files in them are the kernel's. One that is not there is removed.
pub(crate) fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
