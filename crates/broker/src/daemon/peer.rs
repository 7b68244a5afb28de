//! Who is at the other end of a connection, as the kernel knows it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::core::admission::{Peer, is_owner};

/// The groups that are read of a peer. The kernel's own limit is 65,536 (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Reads a peer's user and groups, and its process at the time it connected. Groups are read where they decide anything:
/// root and the broker's own user need none.
pub(super) fn of(socket: &impl AsFd, broker_uid: u32) -> io::Result<(Peer, i32)> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    let mut peer = Peer { uid: credentials.uid(), gids: Vec::new() };
    if !is_owner(&peer, broker_uid) {
        peer.gids = supplementary_groups(socket)?;
        peer.gids.push(credentials.gid());
    }
    Ok((peer, credentials.pid()))
}

/// `SO_PEERGROUPS` (Linux 4.13).
fn supplementary_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut room = 32;
    loop {
        let mut groups: Vec<libc::gid_t> = vec![0; room];
        let mut bytes = libc::socklen_t::try_from(room * size_of::<libc::gid_t>()).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: `groups` has room for `bytes` bytes, and the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        if result == 0 {
            groups.truncate(bytes as usize / size_of::<libc::gid_t>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || room >= GROUPS_MAX {
            return Err(error);
        }
        room = (bytes as usize / size_of::<libc::gid_t>()).clamp(room * 2, GROUPS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_peer_is_known() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let uid = nix::unistd::getuid().as_raw();
        let (peer, pid) = super::of(&ours, uid).expect("known");
        assert_eq!((peer.uid, pid), (uid, std::process::id().cast_signed()));
        assert!(peer.gids.is_empty(), "nothing depends on them");
    }

    #[test]
    fn its_groups_are_those_of_the_process() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let groups = nix::unistd::getgroups().expect("the groups of this process");
        let groups: Vec<u32> = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(super::supplementary_groups(&ours).expect("known"), groups);
    }
}
