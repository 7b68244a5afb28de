//! journald, the journal of systemd, as the broker meets it: whether it is there, entries with fields, and streams for
//! daemons. (The broker's own journal of backends is another thing: `crate::journal`.)
//!
//! The native protocol is `KEY=value` lines in a datagram, and a stream opens with seven lines: both are stable
//! interfaces of systemd (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). No library is used for them: those that there
//! are block the thread that logs while the journal's socket is full, and fix what the message and the fields are.

pub(crate) mod last_words;
pub(crate) mod native;
pub(crate) mod reading;
pub(crate) mod stream;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::stat::fstat;

/// Whether there is a journal on this machine, as it seems.
pub(crate) fn is_there() -> bool {
    Path::new(stream::PLACE).exists()
}

/// Whether a descriptor is a stream of the journal: whoever made it says so in `JOURNAL_STREAM`, as `DEVICE:INODE`
/// (systemd.exec(5)). A variable that was merely inherited names another file.
pub(crate) fn is_stream(descriptor: impl AsFd, told: Option<&OsStr>) -> bool {
    let Some((device, inode)) = told.and_then(OsStr::to_str).and_then(|told| told.split_once(':')) else {
        return false;
    };
    let told = device.parse().ok().zip(inode.parse().ok());
    fstat(descriptor).is_ok_and(|stat| told == Some((stat.st_dev, stat.st_ino)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_the_journals_if_the_variable_names_it() {
        let (ours, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let stat = fstat(&ours).expect("open");
        let told = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&ours, Some(OsStr::new(&told))));
        assert!(!is_stream(&other, Some(OsStr::new(&told))), "inherited, and redirected since");
        assert!(!is_stream(&ours, None));
        for nonsense in ["", ":", "8", "8:x", "-1:2"] {
            assert!(!is_stream(&ours, Some(OsStr::new(nonsense))), "{nonsense}");
        }
    }
}
