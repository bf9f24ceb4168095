//! A ZODB database as a store: what its records say.
//!
//! Invariant: all of it is read only, and nothing that a record holds is ever run. What is read is taken for hostile:
//! lengths, counts and depths are checked before they cost anything. Left out on purpose: writing; a database is
//! written through ZODB.

mod blocks;
mod changes;
mod error;
pub mod filestorage;
mod nodes;
pub mod objects;
pub mod pickle;
mod roots;
pub mod storage;
mod verify;
pub mod zeo;
mod database;

use std::fmt;
use std::str::FromStr;

use revfs_protocol::{FileId, ParseIdError};

pub use database::{Database, DatabaseOptions};
pub use error::ZodbError;
pub use verify::DatabaseReport;

/// Identity of an object of a database, 64 bits. A file is the object that holds its block size and its tree.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(u64);

impl Oid {
    /// The object from which all others are reached.
    pub const ROOT: Oid = Oid(0);

    /// The id with this number; each of 64 bits is valid.
    pub const fn from_raw(raw: u64) -> Oid {
        Oid(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The stored form: 8 bytes, big-endian.
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`Oid::to_be_bytes`].
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Oid {
        Oid(u64::from_be_bytes(bytes))
    }
}

impl From<FileId> for Oid {
    fn from(file: FileId) -> Oid {
        Oid(file.raw())
    }
}

impl From<Oid> for FileId {
    fn from(oid: Oid) -> FileId {
        FileId::from_raw(oid.0)
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oid({self})")
    }
}

impl FromStr for Oid {
    type Err = ParseIdError;

    /// Reads exactly 16 lower-case hex digits, as for a file; anything else is a [`ParseIdError`].
    fn from_str(text: &str) -> Result<Oid, ParseIdError> {
        text.parse::<FileId>().map(Oid::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oid_has_one_text_and_is_the_id_of_its_file() {
        let oid = Oid::from_be_bytes([0, 0, 0, 0, 0, 0, 1, 0x2a]);
        assert_eq!(oid.to_string(), "000000000000012a");
        assert_eq!(format!("{oid:?}"), "Oid(000000000000012a)");
        assert_eq!("000000000000012a".parse(), Ok(oid));
        assert!("12A".parse::<Oid>().is_err());
        assert_eq!(FileId::from(oid), FileId::from_raw(0x12a));
        assert_eq!(Oid::from(FileId::from_raw(0x12a)), oid);
    }
}
