//! The unit that a service manager keeps for leaves: whether it goes, and whether anybody is left there.
//!
//! It reads what the unit's keeper, its main process, and the kernel show of it, and changes nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::super::proc;
use super::end::is_empty_by;
use super::{KEEPER, leaf};
use crate::process::identity::is_condemned;

/// The signals by which a keeper ends.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL];

/// Whether the unit with this cgroup is being taken down around what lives there, or is down: its keeper is gone, or was told
/// to go. Nothing if nobody keeps it.
///
/// The keeper is told first. systemd signals a unit's main process before all others, for a stop and for `systemctl
/// kill`; `cgroup.kill` goes by age, and nobody came before the keeper. So who saw another end can see it.
pub(super) fn is_closing(folder: &Path) -> Option<bool> {
    let keepers = proc::read_text(folder.join(KEEPER).join("cgroup.procs")).ok()?;
    // One of another pid namespace has the number 0, and is not looked at.
    let mut numbers = keepers.lines().filter_map(|line| line.parse().ok());
    Some(numbers.all(|number| number > 0 && is_condemned(Pid::from_raw(number), &ENDING)))
}

/// Waits until nobody lives in the unit's other cgroups; `false` if somebody still does when the patience is over.
pub(crate) fn outlast_the_others(folder: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let others = leaf::below(folder).into_iter().filter(|other| !other.ends_with(KEEPER));
        // One at a time: there may be more than descriptors.
        let populated: Vec<_> = others.filter(|other| !is_empty_by(other, Instant::now())).collect();
        if populated.is_empty() {
            return true;
        }
        if !populated.iter().all(|other| is_empty_by(other, deadline)) {
            return false;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;

    /// Has the unit in this folder be kept by that process.
    pub(in super::super) fn kept_by(folder: &Path, keeper: u32) {
        fs::create_dir_all(folder.join(KEEPER)).unwrap();
        fs::write(folder.join(KEEPER).join("cgroup.procs"), format!("{keeper}\n")).unwrap();
    }

    #[test]
    fn a_unit_goes_with_its_keeper() {
        let unit = tempfile::tempdir().unwrap();
        assert_eq!(is_closing(unit.path()), None, "nobody keeps it");
        kept_by(unit.path(), std::process::id());
        assert_eq!(is_closing(unit.path()), Some(false));
        kept_by(unit.path(), i32::MAX.unsigned_abs());
        assert_eq!(is_closing(unit.path()), Some(true), "its keeper is gone");
        kept_by(unit.path(), 0);
        assert_eq!(is_closing(unit.path()), Some(false), "its keeper is out of sight");
    }

    #[test]
    fn the_others_are_those_in_whose_cgroup_somebody_lives() {
        let unit = tempfile::tempdir().unwrap();
        let is_outlasted = || outlast_the_others(unit.path(), Duration::from_millis(1));
        let populate = |name: &str, number: u32| {
            fs::create_dir_all(unit.path().join(name)).unwrap();
            let text = format!("populated {number}\nfrozen 0\n");
            fs::write(unit.path().join(name).join("cgroup.events"), text).unwrap();
        };
        populate(KEEPER, 1);
        populate("x@1.0.0~default.1", 0);
        assert!(is_outlasted(), "there is the keeper alone");
        populate("run~job.1", 1);
        assert!(!is_outlasted());
        fs::remove_dir_all(unit.path().join("run~job.1")).unwrap();
        assert!(is_outlasted(), "what is removed is empty");
    }
}
