//! Where cgroup2 is mounted and which cgroup is ours, as `/proc` tells it.
//!
//! It reads texts and looks at nothing else.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::super::proc;

/// Why there is no cgroup to work with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoCgroup {
    #[error("cgroup2 is not mounted")]
    NotMounted,
    #[error("this process is in no cgroup of cgroup2")]
    NotAMember,
    #[error("the cgroup `{0}` of this process is not below the mount of cgroup2")]
    OutOfSight(String),
    #[error("cannot read `{path}`")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Where a part of cgroup2 is to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Which part.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

/// What is mounted, as this process sees it.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    mountinfo: Vec<u8>,
}

impl Hierarchy {
    pub(crate) fn read() -> Result<Self, NoCgroup> {
        read("/proc/self/mountinfo").map(|mountinfo| Self { mountinfo })
    }

    /// The folder of the calling process's own cgroup.
    pub(crate) fn own(&self) -> Result<PathBuf, NoCgroup> {
        folder(&read("/proc/self/cgroup")?, &self.mountinfo)
    }

    /// The folder of all cgroups that are to be seen.
    pub(crate) fn root(&self) -> Result<PathBuf, NoCgroup> {
        mounts(&self.mountinfo).next().map(|mount| mount.point).ok_or(NoCgroup::NotMounted)
    }

    /// What `/proc` calls the cgroup of that folder.
    pub(crate) fn name_of(&self, folder: &Path) -> Option<PathBuf> {
        mounts(&self.mountinfo).find_map(|mount| Some(joined(&mount.root, folder.strip_prefix(&mount.point).ok()?)))
    }
}

fn read(path: &'static str) -> Result<Vec<u8>, NoCgroup> {
    proc::read(path).map_err(|source| NoCgroup::Read { path, source })
}

/// The cgroup of a process, as `/proc` names it; none if the process is gone, or its cgroup is.
pub(crate) fn path_of(pid: Pid) -> Option<PathBuf> {
    path(&proc::read(format!("/proc/{pid}/cgroup")).ok()?).ok()
}

/// The folder, from the two texts. In the hybrid layout v1 hierarchies are listed beside cgroup2, and are passed over.
fn folder(cgroup: &[u8], mountinfo: &[u8]) -> Result<PathBuf, NoCgroup> {
    let path = path(cgroup)?;
    let mut mounts = mounts(mountinfo).peekable();
    if mounts.peek().is_none() {
        return Err(NoCgroup::NotMounted);
    }
    let found = mounts.find_map(|mount| Some(joined(&mount.point, path.strip_prefix(&mount.root).ok()?)));
    found.ok_or_else(|| NoCgroup::OutOfSight(path.display().to_string()))
}

/// The path that a text of `/proc/PID/cgroup` tells.
fn path(cgroup: &[u8]) -> Result<PathBuf, NoCgroup> {
    let path = lines(cgroup).find_map(|line| line.strip_prefix(b"0::")).ok_or(NoCgroup::NotAMember)?;
    // Removed behind the process's back, or above the root of its cgroup namespace.
    if path.ends_with(b" (deleted)") || path.starts_with(b"/..") {
        return Err(NoCgroup::OutOfSight(String::from_utf8_lossy(path).into_owned()));
    }
    Ok(PathBuf::from(OsString::from_vec(path.to_vec())))
}

/// A path with what lies below it, which may be nothing.
fn joined(above: &Path, below: &Path) -> PathBuf {
    if below == Path::new("") { above.to_owned() } else { above.join(below) }
}

fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = Mount> {
    lines(mountinfo).filter_map(cgroup2_mount)
}

/// The part of the hierarchy that a line of mountinfo shows, and where, if it is of cgroup2 (proc(5)).
fn cgroup2_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| Mount { root: unescaped(root), point: unescaped(point) })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// A path of mountinfo, in which spaces and the like are written as `\040`.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "\
24 29 0:22 / /proc rw,nosuid - proc proc rw
25 24 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
34 25 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
";

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn found(cgroup: &str, mountinfo: &str) -> String {
        match folder(cgroup.as_bytes(), mountinfo.as_bytes()) {
            Ok(folder) => folder.display().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_unit_of_the_unified_layout_is_found() {
        let unit = "0::/system.slice/brokerd.service\n";
        assert_eq!(found(unit, UNIFIED), "/sys/fs/cgroup/system.slice/brokerd.service");
        assert_eq!(found("0::/\n", UNIFIED), "/sys/fs/cgroup");
    }

    #[test]
    fn in_the_hybrid_layout_the_hierarchies_of_v1_are_passed_over() {
        let text = "9:name=systemd:/init.scope\n4:memory:/box/1\n0::/init.scope\n";
        assert_eq!(found(text, HYBRID), "/sys/fs/cgroup/unified/init.scope");
    }

    #[test]
    fn a_mount_may_show_a_part_and_have_a_name_with_spaces() {
        let part = "41 31 0:38 /ci/job\\0407 /mnt/c\\040g rw - cgroup2 none rw\n";
        assert_eq!(found("0::/ci/job 7/x\n", part), "/mnt/c g/x");
        assert_eq!(found("0::/ci/job 7\n", part), "/mnt/c g");
        assert_eq!(
            found("0::/ci/job 8\n", part),
            "the cgroup `/ci/job 8` of this process is not below the mount of cgroup2"
        );
        assert_eq!(found("0::/ci/job 8\n", &format!("{part}{UNIFIED}")), "/sys/fs/cgroup/ci/job 8");
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(found("0::/\n", "32 31 0:29 / /c/memory rw - cgroup cgroup rw,memory\n"), "cgroup2 is not mounted");
        assert_eq!(found("4:memory:/\n", HYBRID), "this process is in no cgroup of cgroup2");
        let lost = |path: &str| format!("the cgroup `{path}` of this process is not below the mount of cgroup2");
        assert_eq!(found("0::/../outside\n", UNIFIED), lost("/../outside"));
        assert_eq!(found("0::/a.service (deleted)\n", UNIFIED), lost("/a.service (deleted)"));
    }

    #[test]
    fn a_damaged_line_is_nobody() {
        assert_eq!(found("0::/\n", "41 31\n\n41 31 0:38 / /x rw - \n"), "cgroup2 is not mounted");
        assert_eq!(unescaped(b"a\\04"), PathBuf::from("a\\04"));
        assert_eq!(unescaped(b"\\134\\011"), PathBuf::from("\\\t"));
    }
}
