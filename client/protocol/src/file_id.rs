//! The identity of a file, independent of its name.
//!
//! Invariant: the text form is exactly 16 lower-case hex digits, the same in paths, frames and messages.

use crate::id_text::{IdKind, ParseIdError, parse_id};
use std::fmt;
use std::str::FromStr;

/// Identity of a file, 64 bits: a store's own number on native stores, the oid on ZODB.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(u64);

impl FileId {
    /// The id with this number; each of 64 bits is valid.
    pub const fn from_raw(raw: u64) -> FileId {
        FileId(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The stored form: 8 bytes, big-endian, so that byte order is id order.
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`FileId::to_be_bytes`].
    pub const fn from_be_bytes(bytes: [u8; 8]) -> FileId {
        FileId(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({self})")
    }
}

impl FromStr for FileId {
    type Err = ParseIdError;

    /// Reads exactly 16 lower-case hex digits; anything else is a [`ParseIdError`].
    fn from_str(text: &str) -> Result<FileId, ParseIdError> {
        parse_id(IdKind::File, text).map(FileId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        let file = FileId::from_raw(0x2a);
        assert_eq!(file.to_string(), "000000000000002a");
        assert_eq!(format!("{file:?}"), "FileId(000000000000002a)");
        assert_eq!("000000000000002a".parse(), Ok(file));
        assert_eq!(file.to_be_bytes(), [0, 0, 0, 0, 0, 0, 0, 0x2a]);
        assert_eq!(FileId::from_be_bytes(file.to_be_bytes()), file);
        assert_eq!("2a".parse::<FileId>().unwrap_err().kind, IdKind::File);
    }
}
