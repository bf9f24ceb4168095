//! Why a database cannot be read as a store of files.

use revfs_protocol::Tid;

use super::Oid;
use super::objects::{Class, ObjectError};
use super::storage::StorageError;

/// Why a database cannot be read as a store of files.
#[derive(Debug, thiserror::Error)]
pub enum ZodbError {
    /// The storage of its records.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A record says what it cannot say.
    #[error("object {oid} @{serial}: {source}; the other objects are served")]
    Object {
        /// The object.
        oid: Oid,
        /// The state of it.
        serial: Tid,
        /// What is wrong.
        source: ObjectError,
    },
    /// Something refers to an object that is not there.
    #[error(
        "object {oid} does not exist at @{at}, and {by} refers to it; check the database with ZODB's fsrefs"
    )]
    Missing {
        /// The object.
        oid: Oid,
        /// The state.
        at: Tid,
        /// What refers to it.
        by: Oid,
    },
    /// An object is of a class that has no business there.
    #[error("object {oid} @{serial} is a {found}, and {by} refers to it as to {expected}")]
    WrongClass {
        /// The object.
        oid: Oid,
        /// The state of it.
        serial: Tid,
        /// Its class.
        found: Class,
        /// What it should be.
        expected: &'static str,
        /// What refers to it.
        by: Oid,
    },
    /// Objects are well formed, but not together.
    #[error("object {oid} @{at}: {what}")]
    Structure {
        /// The object.
        oid: Oid,
        /// The state.
        at: Tid,
        /// What is wrong.
        what: &'static str,
    },
    /// A file has blocks of a size that is not served.
    #[error(
        "file {oid} @{serial} has blocks of {bytes} bytes: only powers of two from 4 KiB to 16 MiB are served"
    )]
    BlockSize {
        /// The file.
        oid: Oid,
        /// The state of it.
        serial: Tid,
        /// Its block size, bytes.
        bytes: u64,
    },
}

impl ZodbError {
    /// Whether the state is older than what a pack left.
    pub fn is_packed(&self) -> bool {
        matches!(self, ZodbError::Storage(error) if error.is_packed())
    }

    /// Whether what is stored is not what was written, as opposed to a storage that does not answer.
    pub fn is_damage(&self) -> bool {
        match self {
            ZodbError::Storage(error) => error.is_damage(),
            _ => true,
        }
    }
}
