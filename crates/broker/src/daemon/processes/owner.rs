//! Which broker owns a process, and whether it lives.
//!
//! Another broker's death is concluded from proof alone: same boot, same pid namespace, and nobody with its pid and
//! start time.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::unistd::Pid;

use super::record::Owner;
use crate::core::lease::{Me, Seen};
use crate::process::boot::boot_id;
use crate::process::identity::{Identity, open_if};

/// This broker, and the name of this life of it.
pub(super) fn me() -> io::Result<(Me, Owner)> {
    let identity = Identity::of(Pid::this())?.ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let boot_id = boot_id()?;
    let owner = Owner {
        pid: identity.pid.as_raw(),
        start_time: identity.start_time,
        boot_id: boot_id.clone(),
        pid_namespace: fs::metadata("/proc/self/ns/pid").ok().map(|namespace| namespace.ino()),
    };
    let token = format!("{:032x}", fastrand::u128(..));
    Ok((Me { token, boot_id }, owner))
}

/// What can be seen of another broker.
pub(super) fn seen(me: &Owner, other: &Owner) -> Seen {
    if other.boot_id != me.boot_id || other.pid_namespace != me.pid_namespace || me.pid_namespace.is_none() {
        return Seen::Unknown;
    }
    match open_if(Pid::from_raw(other.pid), |now| now.start_time == other.start_time) {
        Ok(Some(_)) => Seen::Alive,
        Ok(None) => Seen::Dead,
        Err(_) => Seen::Unknown,
    }
}

/// Opens another broker, to be told of its end.
pub(super) fn open(me: &Owner, other: &Owner) -> Option<OwnedFd> {
    if seen(me, other) != Seen::Alive {
        return None;
    }
    let opened = open_if(Pid::from_raw(other.pid), |now| now.start_time == other.start_time);
    opened.ok().flatten().map(|(_, pidfd)| pidfd)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_can_be_proved_dead_is_dead() {
        let (_, own) = me().unwrap();
        assert_eq!(seen(&own, &own), Seen::Alive);
        let recycled = Owner { start_time: own.start_time + 1, ..own.clone() };
        assert_eq!(seen(&own, &recycled), Seen::Dead, "a stranger has its number");
        let elsewhere = Owner { pid_namespace: Some(1), ..recycled.clone() };
        assert_eq!(seen(&own, &elsewhere), Seen::Unknown);
        let rebooted = Owner { boot_id: "another".to_owned(), ..recycled };
        assert_eq!(seen(&own, &rebooted), Seen::Unknown);
    }

    #[test]
    fn a_zombie_is_dead() {
        let (_, own) = me().unwrap();
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let identity = Identity::of(pid).unwrap().unwrap();
        let other = Owner { pid: pid.as_raw(), start_time: identity.start_time, ..own.clone() };
        crate::process::testing::wait_for("its end", || seen(&own, &other) == Seen::Dead);
        child.wait().unwrap();
    }
}
