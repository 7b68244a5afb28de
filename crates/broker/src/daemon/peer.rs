//! Who is at the other end of a connection, as the kernel knows it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::core::admission::Peer;

/// The groups that are read of a peer. The kernel's own limit is 65,536 (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Reads a peer's user and groups, and its process at the time it connected.
pub(super) fn of(socket: &impl AsFd) -> io::Result<(Peer, i32)> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    let mut gids = supplementary_groups(socket)?;
    gids.push(credentials.gid());
    Ok((Peer { uid: credentials.uid(), gids }, credentials.pid()))
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
    fn a_peer_is_known_with_its_groups() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let (peer, pid) = super::of(&ours).expect("known");
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert!(peer.gids.contains(&nix::unistd::getgid().as_raw()));
        assert_eq!(pid, std::process::id().cast_signed());
    }
}
