//! The unit that a service manager keeps for leaves: whether it goes.
//!
//! It reads what the unit's keeper, its main process, shows, and changes nothing.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::KEEPER;
use crate::process::identity::is_condemned;

/// The signals by which a keeper ends.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL];

/// Whether the unit with this cgroup is being taken down around what lives there, or is down: its keeper is gone, or was told
/// to go. Nothing if nobody keeps it.
///
/// The keeper is told first. systemd signals a unit's main process before all others, for a stop and for `systemctl
/// kill`; `cgroup.kill` goes by age, and nobody came before the keeper. So who saw another end can see it.
pub(super) fn is_closing(folder: &Path) -> Option<bool> {
    let keepers = fs::read_to_string(folder.join(KEEPER).join("cgroup.procs")).ok()?;
    // One of another pid namespace has the number 0, and is not looked at.
    let mut numbers = keepers.lines().filter_map(|line| line.parse().ok());
    Some(numbers.all(|number| number > 0 && is_condemned(Pid::from_raw(number), &ENDING)))
}

#[cfg(test)]
pub(super) mod tests {
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
}
