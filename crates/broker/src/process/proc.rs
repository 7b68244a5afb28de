//! Texts of the kernel's own file systems, which do not tell how long they are.
//!
//! The standard library then asks for 32 bytes, and for as many as it has already again and again: six calls for a line of
//! `/proc/PID/stat`, nine for a mountinfo.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Most are shorter: the kernel puts them together in pages.
const USUAL: usize = 4096;

/// The whole text, as bytes.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_at_most(path, u64::MAX)
}

/// So much of it, as bytes.
pub(crate) fn read_at_most(path: impl AsRef<Path>, bytes: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL);
    File::open(path)?.take(bytes).read_to_end(&mut text)?;
    // Some are kept for as long as a backend lives.
    text.shrink_to_fit();
    Ok(text)
}

/// The whole text.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub(crate) fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_whole_however_long_it_is() {
        let mountinfo = read("/proc/self/mountinfo").unwrap();
        assert_eq!(mountinfo, std::fs::read("/proc/self/mountinfo").unwrap());
        assert_eq!(mountinfo.capacity(), mountinfo.len());
        let long = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(long.path(), "ä".repeat(3 * USUAL)).unwrap();
        assert_eq!(read_text(long.path()).unwrap(), "ä".repeat(3 * USUAL));
        assert_eq!(read_at_most(long.path(), 5).unwrap().len(), 5);
        assert_eq!(read("/proc/self/none").unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(long.path(), b"\xff").unwrap();
        assert_eq!(read_text(long.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
