//! Where a log lies whose folder is yet to be made.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::make_private;

/// Puts a log in its place that a broker made aside and did not live to settle.
///
/// # Errors
/// `NotFound` if there is none aside, which is the rule.
pub(crate) fn settle_for_another(aside: &Path, path: &Path) -> io::Result<()> {
    fs::symlink_metadata(aside)?;
    path.parent().map_or(Ok(()), make_private)?;
    fs::rename(aside, path)
}

/// Whether a file can be made there, and be moved into a folder that is yet to be made. The first of all makes a folder for
/// itself.
pub(super) fn may_lie_there(folder: &Path, aside: &Path) -> bool {
    let Some(beside) = aside.parent() else { return false };
    let there = mount_of(beside).or_else(|_| make_private(beside).and_then(|()| mount_of(beside)));
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let mut above = folder.ancestors().skip(1).map(mount_of);
    let nearest = above.find(|mount| !mount.as_ref().is_err_and(is_missing)).and_then(Result::ok).flatten();
    nearest.is_some() && nearest == there.ok().flatten()
}

/// Which mount a folder is in: nothing moves from one into another, though both show the same file system. `None` if the
/// kernel does not say, as before Linux 5.8, or if it is no folder.
fn mount_of(folder: &Path) -> io::Result<Option<u64>> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: plain data for which all zeros is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_TYPE | libc::STATX_MNT_ID;
    // SAFETY: a NUL-terminated path, and a live place for what is found.
    Errno::result(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, &raw mut found) })?;
    let is_folder = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
    Ok((is_folder && found.stx_mask & mask == mask).then_some(found.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::log_file::{create, new_path};
    use crate::process::testing::as_broker;
    use std::ffi::CStr;

    /// Gives this process a view of its own of what is mounted, and mounts the folder over itself in it.
    fn mount_over_itself(folder: &CStr) -> io::Result<()> {
        let none = std::ptr::null();
        // SAFETY: every pointer is null or a string that lives throughout the call.
        unsafe {
            Errno::result(libc::unshare(libc::CLONE_NEWNS))?;
            Errno::result(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
            Errno::result(libc::mount(folder.as_ptr(), folder.as_ptr(), none, libc::MS_BIND, none.cast()))?;
        }
        Ok(())
    }

    #[test]
    fn a_log_lies_aside_in_the_mount_that_it_belongs_in() {
        as_broker(|| {
            let folder = tempfile::tempdir().unwrap();
            let (logs, aside) = (folder.path().join("backends/a/logs"), folder.path().join("x.1.log"));
            fs::create_dir(folder.path().join("backends")).unwrap();
            assert!(may_lie_there(&logs, &aside));
            // Not everybody may mount.
            let mounted = CString::new(folder.path().join("backends").as_os_str().as_bytes()).unwrap();
            if mount_over_itself(&mounted).is_ok() {
                assert!(!may_lie_there(&logs, &aside));
                let (_, mut log) = create(new_path(&logs), aside.clone(), None).unwrap();
                assert!(log.path.exists() && !aside.exists());
                log.settle().unwrap();
                // SAFETY: a string that lives throughout the call.
                Errno::result(unsafe { libc::umount(mounted.as_ptr()) }).unwrap();
            }
        });
    }

    #[test]
    fn what_is_no_folder_is_in_no_mount() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(mount_of(folder.path()).unwrap().is_some());
        assert_eq!(mount_of(&folder.path().join("file")).unwrap(), None);
        assert_eq!(mount_of(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
