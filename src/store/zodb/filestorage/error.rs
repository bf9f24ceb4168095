//! Why a FileStorage cannot be read.

use std::path::PathBuf;

use revfs_protocol::Tid;

use crate::store::zodb::Oid;

/// A place of the file that says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged at byte {pos}{}: {what}", shown_oid(.oid))]
pub struct Damage {
    /// Where, bytes from the start of the file.
    pub pos: u64,
    /// The object whose record it is, if it is a record.
    pub oid: Option<Oid>,
    /// What is wrong.
    pub what: &'static str,
}

fn shown_oid(oid: &Option<Oid>) -> String {
    oid.map_or_else(String::new, |oid| format!(", in a record of object {oid}"))
}

/// Why a FileStorage cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileStorageError {
    /// It is not there, or is closed to us.
    #[error("cannot open {path}: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{path} is no ZODB FileStorage: {what}; name the Data.fs of a database", path = path.display())]
    NotFileStorage {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// It has fewer bytes than any FileStorage.
    #[error("{path} is no ZODB FileStorage yet: it has {bytes} bytes; let ZODB make it, or finish the copy",
        path = path.display())]
    Unbegun {
        /// The file.
        path: PathBuf,
        /// How many it has.
        bytes: u64,
    },
    /// The operating system failed a read.
    #[error("cannot read {path} at byte {pos}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Where, bytes.
        pos: u64,
        /// Why.
        source: std::io::Error,
    },
    /// What is read is not what was written.
    #[error("{path} is {damage}; restore it from a backup", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong.
        damage: Damage,
    },
    /// The state is older than what a pack left.
    #[error("@{at} was packed away from {path}: ask for @{oldest} or later", path = path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// Asked for.
        at: Tid,
        /// The oldest state that is whole.
        oldest: Tid,
    },
}

impl FileStorageError {
    /// The damage, if it is one.
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            FileStorageError::Damaged { damage, .. } => Some(damage),
            _ => None,
        }
    }
}
