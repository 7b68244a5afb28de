//! The limits of a cgroup: written where a controller enforces them, and otherwise why they do not hold.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::super::proc;
use super::hierarchy::{Hierarchy, NoCgroup};
use super::leaf::Leaf;
use crate::core::limits::{Limits, OfCgroup, Unenforced};

/// Writes the limits of a leaf, before anything lives there; those that do not hold.
pub(super) fn apply(place: &Path, leaf: &Leaf, limits: &Limits) -> Vec<Unenforced> {
    let failed = |of: &OfCgroup| {
        let why = write(place, leaf.folder(), of).err()?;
        Some(Unenforced { limit: of.limit.to_owned(), why })
    };
    limits.of_cgroup().iter().filter_map(failed).collect()
}

fn write(place: &Path, leaf: &Path, of: &OfCgroup) -> Result<(), String> {
    let OfCgroup { controller, file, value, .. } = of;
    let path = leaf.join(file);
    if !path.exists() {
        let offered = listed(&place.join("cgroup.controllers"));
        if !offered.iter().any(|offer| offer == controller) {
            return Err(not_offered(controller, place, &offered));
        }
        // It may have come to be possible since.
        fs::write(place.join("cgroup.subtree_control"), format!("+{controller}")).map_err(|error| {
            format!("the controller `{controller}` cannot be enabled in {}: {error}", place.display())
        })?;
    }
    fs::write(&path, value.to_string()).map_err(|error| format!("{} does not take {value}: {error}", path.display()))
}

/// Hands controllers down, as far as they are offered and are not handed down already. Even where it does nothing, the kernel
/// answers only after it has waited for cgroups that are just being removed, a millisecond for each that is asked for.
pub(super) fn hand_down(folder: &Path, controllers: &[&str]) {
    let subtree = folder.join("cgroup.subtree_control");
    let (offered, handed_down) = (listed(&folder.join("cgroup.controllers")), listed(&subtree));
    let has = |list: &[String], name: &&str| list.iter().any(|one| one == name);
    for controller in controllers.iter().filter(|name| has(&offered, name) && !has(&handed_down, name)) {
        let _ = fs::write(&subtree, format!("+{controller}"));
    }
}

fn not_offered(controller: &str, folder: &Path, offered: &[String]) -> String {
    let found = match offered {
        [] => "none is".to_owned(),
        [one] => format!("only `{one}` is"),
        many => format!("`{}` are", many.join("`, `")),
    };
    format!("the controller `{controller}` is not offered by {}: {found}", folder.display())
}

/// The words of a file; none if it cannot be read.
pub(super) fn listed(path: &Path) -> Vec<String> {
    proc::read_text(path).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

/// What of the limits cannot hold on this machine, whichever broker of the calling user starts something with them.
pub(crate) fn impossible(limits: &Limits) -> Vec<Unenforced> {
    let of_cgroup = limits.of_cgroup();
    if of_cgroup.is_empty() {
        return Vec::new();
    }
    match most_offering() {
        Err(error) => limits.without_a_cgroup(&error.to_string()),
        Ok(folder) => {
            let offered = listed(&folder.join("cgroup.controllers"));
            let missing = of_cgroup.iter().filter(|of| !offered.iter().any(|offer| offer == of.controller));
            let why = |of: &OfCgroup| not_offered(of.controller, &folder, &offered);
            missing.map(|of| Unenforced { limit: of.limit.to_owned(), why: why(of) }).collect()
        }
    }
}

/// Where there are as many controllers as a broker of the calling user can come to have: the root of cgroup2, or what
/// systemd gives to that user.
fn most_offering() -> Result<PathBuf, NoCgroup> {
    let root = Hierarchy::read()?.root()?;
    let uid = Uid::effective();
    let own = root.join(format!("user.slice/user-{uid}.slice/user@{uid}.service"));
    Ok(if !uid.is_root() && own.is_dir() { own } else { root })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::cgroup::testing::place;

    const ALL: Limits =
        Limits { memory_max: Some(1 << 29), tasks_max: Some(100), cpu_weight: Some(50), nofile: Some(1024) };

    #[test]
    fn a_missing_controller_is_named_with_those_that_there_are() {
        let why = |offered: &[&str]| {
            let offered: Vec<String> = offered.iter().map(|&name| name.to_owned()).collect();
            not_offered("memory", Path::new("/c"), &offered)
        };
        insta::assert_snapshot!(why(&[]), @"the controller `memory` is not offered by /c: none is");
        insta::assert_snapshot!(why(&["hugetlb"]), @"the controller `memory` is not offered by /c: only `hugetlb` is");
        insta::assert_snapshot!(why(&["cpu", "pids"]), @"the controller `memory` is not offered by /c: `cpu`, `pids` are");
        let without = ALL.without_a_cgroup("so");
        assert_eq!(
            without.iter().map(|u| u.limit.as_str()).collect::<Vec<_>>(),
            ["memory_max", "tasks_max", "cpu_weight"]
        );
    }

    #[test]
    fn what_is_not_offered_or_handed_down_already_is_not_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let subtree = folder.path().join("cgroup.subtree_control");
        hand_down(folder.path(), &["cpu"]);
        assert!(!subtree.exists());
        fs::write(folder.path().join("cgroup.controllers"), "cpuset cpu pids\n").unwrap();
        fs::write(&subtree, "cpu\n").unwrap();
        hand_down(folder.path(), &["cpu", "memory"]);
        assert_eq!(fs::read_to_string(&subtree).unwrap(), "cpu\n");
        hand_down(folder.path(), &["cpu", "memory", "pids"]);
        assert_eq!(fs::read_to_string(&subtree).unwrap(), "+pids");
    }

    /// Where no cgroup can be made there is nothing to see; the trials of the whole broker say so.
    #[test]
    fn each_limit_holds_or_says_why_not() {
        let Some(place) = place() else { return };
        let leaf = place.leaf("limits@1.0.0~default.1").unwrap();
        let unenforced = apply(place.folder(), &leaf, &ALL);
        for of in ALL.of_cgroup() {
            let held =
                fs::read_to_string(leaf.folder().join(of.file)).is_ok_and(|text| text.trim() == of.value.to_string());
            assert_ne!(held, unenforced.iter().any(|u| u.limit == of.limit), "{of:?}, {unenforced:?}");
        }
        // A controller that is offered, though nothing here is limited by it, is enabled when it is wanted.
        let hugetlb = OfCgroup { limit: "x", controller: "hugetlb", file: "hugetlb.2MB.max", value: 4 << 20 };
        let is_offered = listed(&place.folder().join("cgroup.controllers")).iter().any(|offer| offer == "hugetlb");
        let written = write(place.folder(), leaf.folder(), &hugetlb);
        assert_eq!(written.is_ok(), is_offered, "{written:?}");
        if is_offered {
            assert_eq!(fs::read_to_string(leaf.folder().join(hugetlb.file)).unwrap(), "4194304\n");
            let refused = write(place.folder(), leaf.folder(), &OfCgroup { file: "cgroup.kill", ..hugetlb });
            assert!(refused.is_err_and(|why| why.contains("does not take 4194304")));
        }
        leaf.remove();
        place.leave();
    }
}
