//! Why a database cannot be read as a store of files.

use revfs_protocol::Tid;

use super::Oid;
use super::objects::{Class, ObjectError};
use super::storage::StorageError;

/// Why a database cannot be read as a store of files.
#[derive(Debug, thiserror::Error)]
pub enum ZodbError {
    /// Another error, and where the record is that it tells of.
    #[error("{error} (its record is at byte {pos} of {url})")]
    Located {
        /// What is wrong.
        error: Box<ZodbError>,
        /// Where the record begins, bytes.
        pos: u64,
        /// The database.
        url: String,
    },
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
        match self {
            ZodbError::Storage(error) => error.is_packed(),
            ZodbError::Located { error, .. } => error.is_packed(),
            _ => false,
        }
    }

    /// Whether what is stored is not what was written, as opposed to a storage that does not answer.
    pub fn is_damage(&self) -> bool {
        match self {
            ZodbError::Storage(error) => error.is_damage(),
            ZodbError::Located { error, .. } => error.is_damage(),
            _ => true,
        }
    }

    /// The object whose record is not as it should be, and a state in which it is so; none if the error says where it is itself,
    /// or there is no record.
    pub fn record(&self) -> Option<(Oid, Tid)> {
        match self {
            ZodbError::Object { oid, serial, .. }
            | ZodbError::WrongClass { oid, serial, .. }
            | ZodbError::BlockSize { oid, serial, .. } => Some((*oid, *serial)),
            ZodbError::Structure { oid, at, .. } => Some((*oid, *at)),
            // The one that refers to it.
            ZodbError::Missing { at, by, .. } => Some((*by, *at)),
            ZodbError::Storage(_) | ZodbError::Located { .. } => None,
        }
    }
}
