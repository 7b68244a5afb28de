//! Messages to bytes and back: bincode 2 behind this one file.
//!
//! A frame is a `u32` little-endian length and a body of that many bytes; the body is bincode's `config::standard()`
//! (little endian, variable-length integers), through serde. Trailing bytes are an error.

use serde::{Deserialize, Serialize};

use crate::frame::{FRAME_MAX, LENGTH_BYTES};

/// A body that claims a longer text or list than a frame can hold is refused before memory is set aside for it.
type Configuration = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_MAX>,
>;

const CONFIGURATION: Configuration = bincode::config::standard().with_limit::<FRAME_MAX>();

/// Why a message cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The message is longer than a frame may be.
    #[error("message of {length} bytes, the limit is {FRAME_MAX}")]
    TooLong {
        /// Length of the body in bytes.
        length: usize,
    },
    /// The body is no message.
    #[error("body is no message")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes are left after the message.
    #[error("{count} bytes are left after the message")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// The message cannot be encoded.
    #[error("message cannot be encoded")]
    Encode(#[source] bincode::error::EncodeError),
}

/// Appends the message as one frame.
///
/// # Errors
/// The message is too long for a frame; `out` is then as it was.
pub fn encode_frame<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    encode_frame_of(message, &[], out)
}

/// Appends one frame of what is to be encoded and what is already.
pub(crate) fn encode_frame_of(head: &impl Serialize, tail: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let result = append(head, out);
    out.extend_from_slice(tail);
    let length = out.len() - start - LENGTH_BYTES;
    let error = match (result, u32::try_from(length)) {
        (Ok(()), Ok(prefix)) if length <= FRAME_MAX => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&prefix.to_le_bytes());
            return Ok(());
        }
        (Err(error), _) => error,
        (Ok(()), _) => CodecError::TooLong { length },
    };
    out.truncate(start);
    Err(error)
}

/// Appends the bytes of a message, or of a part of one.
pub(crate) fn append(part: &impl Serialize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_writer(part, Appending(out), CONFIGURATION).map_err(CodecError::Encode)
}

/// Writes to the end of what is there; that cannot fail.
struct Appending<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for Appending<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Reads one message from a frame's body, whose texts may be the body's.
///
/// # Errors
/// The body is no such message, or bytes are left after it.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CodecError> {
    let (message, used) = bincode::serde::borrow_decode_from_slice(body, CONFIGURATION).map_err(CodecError::Decode)?;
    match body.len() - used {
        0 => Ok(message),
        count => Err(CodecError::Trailing { count }),
    }
}

/// Reads what a body, or the rest of one, begins with, and gives what comes after it.
pub(crate) fn decode_part<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<(T, &'a [u8])> {
    let (part, used) = bincode::serde::borrow_decode_from_slice(bytes, CONFIGURATION).ok()?;
    Some((part, &bytes[used..]))
}
