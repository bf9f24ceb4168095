//! What a commit answers.

use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};

use super::super::record::TEXT_BYTES_MAX;
use super::ConflictKind;
use crate::store::native::{Broken, IndexError};
use crate::store::{DirId, FileMeta, NameError, ReadError};

/// A commit that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its tid.
    pub tid: Tid,
    /// Its number in the log.
    pub seq: u64,
    /// Nothing had changed: there is no new record, `tid` is the base's.
    pub empty: bool,
    /// What the writer should know all the same.
    pub warnings: Vec<CommitWarning>,
}

/// Something that is not as it should be, though the commit stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitWarning {
    /// Head is ahead of the clock.
    #[error(
        "the newest commit is {ahead_s} s ahead of this machine's clock: check the clocks of all writers"
    )]
    ClockBehind {
        /// By how much, seconds.
        ahead_s: u64,
    },
    /// The index could not be brought up to date.
    #[error(
        "the commit stands, but the index could not follow: {what}; it is rebuilt when the store is opened next"
    )]
    Index {
        /// Why.
        what: String,
    },
}

/// Why there is no commit.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit came first and does not go with this one.
    #[error("{path}: conflicts with commit {tid}: {why}; nothing was committed: look at `revfs diff` and commit again on the new head", path = String::from_utf8_lossy(path), why = conflict_text(*kind, blocks))]
    Conflict {
        /// Name of the file or tag.
        path: Vec<u8>,
        /// The file; 0 if it is about a name or a tag.
        file: FileId,
        /// Blocks that both wrote; empty if it is not about blocks.
        blocks: Vec<(BlockIndex, BlockCount)>,
        /// The commit that came first.
        tid: Tid,
        /// What kind of conflict.
        kind: ConflictKind,
    },
    /// A copy of a commit has no place in the log any more.
    #[error(
        "the copy of commit {tid} was made on @{base}, and the newest commit is {head}: somebody else commits to this store; nothing was committed: copy into a store of its own"
    )]
    CopyTooLate {
        /// The tid that it was to have.
        tid: Tid,
        /// The state that it was made on.
        base: Tid,
        /// The newest commit.
        head: Tid,
    },
    /// The name cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name is taken.
    #[error("{path}: exists already: choose another name or remove it first", path = String::from_utf8_lossy(path))]
    Exists {
        /// The name.
        path: Vec<u8>,
    },
    /// A directory has that name.
    #[error("{path}: is a directory in the store: name a file", path = String::from_utf8_lossy(path))]
    IsDirectory {
        /// The name.
        path: Vec<u8>,
    },
    /// A file stands on the way.
    #[error("{path}: is a file in the store and cannot have files below it: choose another name", path = String::from_utf8_lossy(path))]
    NotADirectory {
        /// The name of the file.
        path: Vec<u8>,
    },
    /// More than the kernel can address.
    #[error("{size} bytes are too many for a file: at most 2^63 - 1")]
    FileTooLarge {
        /// Asked for, bytes.
        size: u64,
    },
    /// The range and the bytes do not fit each other.
    #[error("{len} bytes do not fit the range {start}..{end}")]
    BadRange {
        /// First byte.
        start: u64,
        /// End, excluded.
        end: u64,
        /// Bytes given.
        len: u64,
    },
    /// Base or log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The index failed.
    #[error(
        "the index of the store failed: {0}; delete the folder index/ of the store, it is rebuilt from commits/"
    )]
    Index(#[from] IndexError),
    /// The store cannot be written.
    #[error(
        "{object}: the store cannot be written: {source}; check its permissions and whether it is mounted read-only"
    )]
    ReadOnly {
        /// What was being written.
        object: String,
        /// Why.
        source: object_store::Error,
    },
    /// No room.
    #[error("{object}: the disk of the store is full; nothing was committed: make room and try again")]
    DiskFull {
        /// What was being written.
        object: String,
        /// Why.
        source: object_store::Error,
    },
    /// The storage failed for another reason; nothing was committed.
    #[error("the storage failed: {0}; nothing was committed")]
    Object(object_store::Error),
    /// The record may or may not be there.
    #[error(
        "it is not known whether commit {commit_uuid} stands ({source}): look for it with `revfs log --json` before trying again"
    )]
    Unknown {
        /// Identity of the attempt.
        commit_uuid: uuid::Uuid,
        /// What the storage said last.
        source: object_store::Error,
    },
    /// The log is damaged.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The transaction took too long.
    #[error("the transaction is older than 24 hours, its packs may be cleaned away: begin again")]
    TooOld,
    /// The record would be refused by every reader.
    #[error("the commit record would not be readable ({what}); nothing was committed: please report it")]
    Unreadable {
        /// What a reader would say.
        what: String,
    },
    /// The record would be larger than a reader accepts.
    #[error(
        "the commit record would have {len} bytes, more than {max}: commit in several steps, or with larger blocks"
    )]
    RecordTooLarge {
        /// Bytes.
        len: u64,
        /// Limit, bytes.
        max: u64,
    },
}

impl From<object_store::Error> for CommitError {
    fn from(source: object_store::Error) -> CommitError {
        classify("the store", source)
    }
}

/// Sorts an error of the storage by what the user can do about it.
pub fn classify(object: &str, source: object_store::Error) -> CommitError {
    use std::io::ErrorKind;
    let object = object.to_owned();
    match io_kind(&source) {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => CommitError::DiskFull { object, source },
        Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            CommitError::ReadOnly { object, source }
        }
        _ => CommitError::Object(source),
    }
}

/// The operating system's error somewhere below.
fn io_kind(error: &object_store::Error) -> Option<std::io::ErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    // Bounded: chains of causes are short; a cycle would be a bug of the crate.
    for _ in 0..16 {
        let here = cause?;
        if let Some(io) = here.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = here.source();
    }
    None
}

fn conflict_text(kind: ConflictKind, blocks: &[(BlockIndex, BlockCount)]) -> String {
    match kind {
        ConflictKind::Blocks => {
            let runs: Vec<String> = blocks
                .iter()
                .take(8)
                .map(|(first, count)| match count.raw() {
                    1 => format!("{}", first.raw()),
                    more if more > u64::MAX / 2 => format!("{} and all after it", first.raw()),
                    more => format!("{}..{}", first.raw(), first.raw() + more),
                })
                .collect();
            format!("both changed blocks {}", runs.join(", "))
        }
        ConflictKind::Changed => {
            "the file was changed in between (--merge lets changes of different blocks land)".to_owned()
        }
        ConflictKind::Gone => "the file was deleted or renamed in between, or is by this one".to_owned(),
        ConflictKind::Name => "the name was taken in between".to_owned(),
        ConflictKind::Tag => "the tag was moved in between".to_owned(),
        ConflictKind::Read => "what was read has changed in between".to_owned(),
    }
}

/// Text that fits a record.
pub fn cut_text(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A file that a transaction creates, before anything is known of it.
pub fn meta_of_new(file: FileId, block_size: BlockSize) -> FileMeta {
    FileMeta {
        file,
        size: 0,
        block_size,
        rev: Tid::ZERO,
        created: Tid::ZERO,
        stored: 0,
        dir: DirId::ROOT,
        name: Vec::new(),
        deleted: None,
    }
}
