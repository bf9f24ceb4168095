//! Why a store cannot be read: one error for all kinds of stores.
//!
//! Invariant: each tells the thing and the cause, and the remedy if there is one. Left out on purpose: errors of opening and of writing,
//! which each kind of store has of its own.

use revfs_protocol::{FileId, Tid};

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The state asked for does not exist yet.
    #[error("@{at} is ahead of head @{head}: ask for a revision that is committed")]
    AheadOfHead {
        /// Asked for.
        at: Tid,
        /// Newest there is.
        head: Tid,
    },
    /// No such file in that state.
    #[error("file {file} does not exist at @{at}")]
    NoSuchFile {
        /// Asked for.
        file: FileId,
        /// The state.
        at: Tid,
    },
    /// Stored bytes are not what was written.
    #[error(
        "{object} is damaged at byte {offset}: {what}; restore it from a backup, `revfs verify` lists all damage"
    )]
    Damaged {
        /// Name of the object in the store.
        object: String,
        /// Where in it, bytes.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An object that the log refers to is gone.
    #[error("{object} is missing: restore it from a backup, `revfs verify` lists all damage")]
    Missing {
        /// Name of the object in the store.
        object: String,
    },
    /// The operating system failed a read.
    #[error("cannot read {object}: {source}")]
    Io {
        /// What was read.
        object: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The object storage failed a read.
    #[error("cannot read {object}: {source}")]
    Object {
        /// What was read.
        object: String,
        /// Why it failed.
        source: object_store::Error,
    },
    /// The index failed; it is rebuilt from the log when the store is opened next.
    #[error(
        "the index of the store failed: {source}; delete the folder index/ of the store, it is rebuilt from commits/"
    )]
    Index {
        /// Why.
        source: super::native::IndexError,
    },
    /// The database failed a read.
    #[error(transparent)]
    Database(#[from] super::zodb::ZodbError),
}
