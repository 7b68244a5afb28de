//! Who the child is, written by itself: its number and its start time, as `/proc` shows them to everybody else.
//!
//! Async-signal-safe like all that the child does: three system calls on a buffer of its own stack.

use libc::c_int;

/// `/proc/PID/stat` is a line of some fifty numbers; the start time is the 22nd field.
const STAT_BYTES: usize = 1024;
/// Which of the fields behind the program's name the start time is: the first of them is the third of all.
const START_TIME: usize = 22 - 3;

/// Writes `PID START` and a newline in one piece. `false` if it cannot be read, or written as a whole.
pub(super) fn write(record: c_int) -> bool {
    let mut stat = [0_u8; STAT_BYTES];
    // SAFETY: a NUL-terminated path; the buffer is live and as long as it is said to be.
    let length = unsafe {
        let fd = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        let length = libc::read(fd, stat.as_mut_ptr().cast(), STAT_BYTES);
        libc::close(fd);
        length
    };
    let Some(stat) = usize::try_from(length).ok().and_then(|length| stat.get(..length)) else { return false };
    let mut line = [0_u8; 64];
    let Some(length) = put(stat, &mut line) else { return false };
    // SAFETY: the first `length` bytes of the line are live.
    let written = unsafe { libc::write(record, line.as_ptr().cast(), length) };
    usize::try_from(written) == Ok(length)
}

/// Puts the line together; how long it is.
fn put(stat: &[u8], line: &mut [u8; 64]) -> Option<usize> {
    let pid = stat.split(|&byte| byte == b' ').next()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let start_time = stat.get(name_end + 2..)?.split(|&byte| byte == b' ').nth(START_TIME)?;
    let mut length = 0;
    for part in [pid, b" ", start_time, b"\n"] {
        line.get_mut(length..length + part.len())?.copy_from_slice(part);
        length += part.len();
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_what_proc_says() {
        let mut line = [0; 64];
        let stat = b"42 (tmux: s) (x) R 1\n) S 7 40 39 0 -1 4194564 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let length = put(stat, &mut line).unwrap();
        assert_eq!(&line[..length], b"42 987654\n");
        assert_eq!(put(b"", &mut line), None);
        assert_eq!(put(b"1 (x) S 2", &mut line), None);
    }
}
