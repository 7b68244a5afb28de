//! Where cgroups of the broker's own are made: below a unit that systemd keeps for it, or below its own cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::hierarchy::{Hierarchy, NoCgroup};
use super::leaf::{self, Above, Leaf, inode};
use super::{KEEPER, LIMITING, limits, unit};
use crate::core::limits::{Limits, Unenforced};

/// What stands before the folder of a broker that makes its place itself.
const OWN: &str = "broker-";

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    folder: PathBuf,
    /// What `/proc/PID/cgroup` calls it.
    path: PathBuf,
    inode: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The cgroup of a unit beside the broker's own. One that had a keeper goes once that has no leaf any more: systemd removes
    /// it before the others, and the unit's own cgroup last.
    Unit { had_keeper: bool },
    /// A folder below the broker's own cgroup, which is no unit's.
    Own,
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("`cgroups = \"off\"` in broker.toml")]
    Off,
    #[error(transparent)]
    Absent(#[from] NoCgroup),
    #[error(
        "the broker is the unit {own}, in whose own cgroup nothing may live that outlasts it, and there is no {backends} \
         beside it"
    )]
    NoUnit { own: String, backends: String },
    #[error("{what} `{path}`")]
    Cannot {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Place {
    /// Looks for a place, and makes it where it is the broker's to make. `key` tells brokers of the same cgroup apart.
    pub(crate) fn find(key: u64) -> Result<Self, NoPlace> {
        let hierarchy = Hierarchy::read()?;
        Self::beside_or_below(&hierarchy, &hierarchy.own()?, key)
    }

    fn beside_or_below(hierarchy: &Hierarchy, own: &Path, key: u64) -> Result<Self, NoPlace> {
        let cannot = |what, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| NoPlace::Cannot { what, path, source }
        };
        let name = own.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (folder, kind, above) = match backends_unit(&name) {
            Some(backends) => {
                let above = own.parent().unwrap_or(own);
                let folder = above.join(&backends);
                if !folder.is_dir() {
                    return Err(NoPlace::NoUnit { own: name, backends });
                }
                let had_keeper = folder.join(KEEPER).is_dir();
                (folder, Kind::Unit { had_keeper }, above)
            }
            None => {
                let folder = own.join(format!("{OWN}{key:016x}"));
                match fs::create_dir(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(cannot("cannot make the cgroup", &folder)(error));
                    }
                    _ => {}
                }
                (folder, Kind::Own, own)
            }
        };
        // Whoever moves a process must be allowed to write there, and where the way parts.
        for folder in [&folder, above] {
            let procs = folder.join("cgroup.procs");
            access(&procs, AccessFlags::W_OK)
                .map_err(|errno| cannot("no process may be moved, for want of", &procs)(errno.into()))?;
        }
        if kind == Kind::Own {
            // The broker lives in its own cgroup, and only the root of all may have processes and hand controllers down.
            // Elsewhere the kernel forbids it for `memory`, and lets `cpu` and `pids` pass; but that makes a threaded
            // cgroup, below which nothing can be started any more. So what is not handed down there yet is not enforced.
            let is_root = !own.join("cgroup.type").exists();
            let hands_down: &[&Path] = if is_root { &[own, &folder] } else { &[&folder] };
            hands_down.iter().for_each(|folder| limits::hand_down(folder, &LIMITING));
        }
        let inode = inode(&folder).map_err(cannot("cannot look at", &folder))?;
        let path = hierarchy.name_of(&folder).ok_or_else(|| NoCgroup::OutOfSight(folder.display().to_string()))?;
        Ok(Self { folder, path, inode, kind })
    }

    fn above(&self) -> Above<'_> {
        Above { folder: &self.folder, path: &self.path, inode: self.inode }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is still there, and not another one in its place.
    pub(crate) fn is_there(&self) -> bool {
        inode(&self.folder).is_ok_and(|inode| inode == self.inode)
    }

    /// Whether it is a unit's.
    pub(crate) fn is_a_units(&self) -> bool {
        matches!(self.kind, Kind::Unit { .. })
    }

    /// Whether it is a unit's that is being taken down around what lives there, or is down.
    pub(crate) fn is_closing(&self) -> bool {
        let Kind::Unit { had_keeper } = self.kind else { return false };
        // One that never had a keeper is kept by somebody else.
        unit::is_closing(&self.folder).unwrap_or_else(|| had_keeper || !self.is_there())
    }

    /// Makes the cgroup of one start.
    pub(crate) fn leaf(&self, name: &str) -> io::Result<Leaf> {
        Leaf::make(self.above(), name)
    }

    /// Writes the limits of a cgroup that was made here; those that do not hold.
    pub(crate) fn limit(&self, leaf: &Leaf, limits: &Limits) -> Vec<Unenforced> {
        limits::apply(&self.folder, leaf, limits)
    }

    /// One that there is.
    pub(crate) fn existing(&self, name: &str) -> Option<Leaf> {
        Leaf::existing(self.above(), name).ok()
    }

    /// The controllers that what is made here has.
    pub(crate) fn controllers(&self) -> Vec<String> {
        limits::listed(&self.folder.join("cgroup.subtree_control"))
    }

    /// The names of what is there, the keeper's apart.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = leaf::below(&self.folder).into_iter();
        let names = names.filter_map(|folder| folder.file_name()?.to_str().map(str::to_owned));
        names.filter(|name| name != KEEPER).collect()
    }

    /// Removes it, if it is the broker's own and nothing is left there.
    pub(crate) fn leave(&self) {
        if self.kind == Kind::Own && self.is_there() {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The unit beside a unit of that name that keeps the backends of its broker; none if it is no service.
fn backends_unit(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".service")?;
    Some(match stem.split_once('@') {
        Some((template, instance)) => format!("{template}-backends@{instance}.service"),
        None => format!("{stem}-backends.service"),
    })
}

#[cfg(test)]
pub(crate) mod testing {
    use super::Place;

    /// A place of the calling process's own, where there may be one.
    pub(crate) fn place() -> Option<Place> {
        Place::find(u64::from(std::process::id())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::unit::tests::kept_by;
    use super::*;

    #[test]
    fn the_brokers_own_cgroup_hands_nothing_down_but_at_the_root() {
        for is_root in [true, false] {
            let own = tempfile::tempdir().unwrap();
            let folder = own.path().join("broker-0000000000000007");
            fs::create_dir(&folder).unwrap();
            for cgroup in [own.path(), &folder] {
                fs::write(cgroup.join("cgroup.procs"), "").unwrap();
                fs::write(cgroup.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
            }
            if !is_root {
                fs::write(own.path().join("cgroup.type"), "domain\n").unwrap();
            }
            // It is no cgroup, and so no place; by then all is written.
            assert!(matches!(
                Place::beside_or_below(&Hierarchy::read().unwrap(), own.path(), 7),
                Err(NoPlace::Absent(_))
            ));
            assert_eq!(own.path().join("cgroup.subtree_control").exists(), is_root);
            assert!(folder.join("cgroup.subtree_control").exists());
        }
    }

    #[test]
    fn a_unit_goes_when_its_keeper_has_no_leaf_any_more() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("brokerd-backends.service");
        kept_by(&folder, std::process::id());
        let (path, inode) = (PathBuf::from("/brokerd-backends.service"), inode(&folder).unwrap());
        let place =
            |had_keeper| Place { folder: folder.clone(), path: path.clone(), inode, kind: Kind::Unit { had_keeper } };
        assert!(!place(true).is_closing());
        fs::remove_dir_all(folder.join(KEEPER)).unwrap();
        assert!(place(true).is_closing(), "what is left of it goes as well");
        assert!(!place(false).is_closing(), "somebody else keeps it");
        fs::remove_dir(&folder).unwrap();
        assert!(place(false).is_closing(), "it is there no more");
    }

    #[test]
    fn a_service_has_its_backends_beside_it() {
        assert_eq!(backends_unit("brokerd.service").as_deref(), Some("brokerd-backends.service"));
        assert_eq!(backends_unit("brokerd@ci.service").as_deref(), Some("brokerd-backends@ci.service"));
        assert_eq!(backends_unit("session-3.scope"), None);
        assert_eq!(backends_unit(""), None);
    }
}
