//! What each command does, without printing: commit from files, imports, renames, tags, history, differences, bytes.
//!
//! Invariant: nothing here writes to stdout or stderr, parses arguments or knows of exit codes. Each operation
//! answers plain data in the words of the product, ready for `--json`, or an error with fields. Revisions come
//! resolved, as tids. Left out on purpose: mounts, and the check of a whole store, which is the store's own.

mod atomic_file;
pub mod cat;
pub mod commit;
pub mod data;
pub mod diff;
pub mod edit;
pub mod import;
pub mod log;
pub mod ls;
mod runs;
mod source;
mod spans;

use revfs_protocol::Tid;

use crate::store::{FileMeta, ReadError, ReadTxn};

/// Why something in a store cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No such name in that state.
    #[error("{name}: does not exist at @{at}: `revfs ls STORE @{at}` lists the names there are", name = data::shown(name))]
    NotFound {
        /// Asked for.
        name: Vec<u8>,
        /// The state.
        at: Tid,
    },
    /// It is a directory.
    #[error("{name}: is a directory at @{at}: name a file below it", name = data::shown(name))]
    IsDirectory {
        /// Asked for.
        name: Vec<u8>,
        /// The state.
        at: Tid,
    },
    /// No such name in any state.
    #[error("{name}: no commit ever touched it: `revfs log STORE` shows the names there were", name = data::shown(name))]
    NeverExisted {
        /// Asked for.
        name: Vec<u8>,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store's directory cannot be measured.
    #[error("{path}: cannot be measured: {source}: check its permissions", path = path.display())]
    Measure {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The file `id` as of `txn`, if it exists there.
fn live_file(txn: &ReadTxn, id: revfs_protocol::FileId) -> Result<Option<FileMeta>, ReadError> {
    Ok(txn.file(id)?.filter(|meta| meta.deleted.is_none()))
}
