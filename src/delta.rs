//! Which blocks of which files changed at which tid, for the recent past: the window (tail, head].
//!
//! Invariant: an answer is exact or says that it is not; outside [tail, head] there is none, only an `Err`. An
//! epoch (creation, deletion) changes all blocks of its file, a shrink those that the new end cuts or leaves
//! out; a growth changes no block: what a file did not reach was zero already. A rename changes nothing.
//! Left out on purpose: what blocks hold, and who asks. What lies before tail is known to the store alone.

pub mod tail;
#[cfg(test)]
pub(crate) mod turns;

use std::fmt::Debug;

use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};

use crate::store::{CommitInfo, ReadError, ReadTxn};

pub use tail::{Tail, TailOptions, TailStats};

/// The tid at which a block changed last, as far as the window tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRev {
    /// Where `exact`, the tid of the change; else the tail, and the change is at or before it.
    pub rev: Tid,
    /// Whether the change lies in the window.
    pub exact: bool,
}

/// What breaks the history of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochKind {
    /// The file appeared, with whatever blocks.
    Created,
    /// The file is gone.
    Deleted,
}

/// A break in the history of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// When.
    pub tid: Tid,
    /// What.
    pub kind: EpochKind,
}

/// How the size of a file moved between two states; a file that does not exist has size 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeChange {
    /// In the older state, bytes.
    pub before: u64,
    /// The least that it was after any of the changes in between, bytes.
    pub smallest: u64,
    /// In the newer state, bytes.
    pub after: u64,
}

/// What changed of one file between two states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSlice {
    /// The file.
    pub file: FileId,
    /// Changed blocks before `rest`, each once: runs, ascending and apart.
    pub blocks: Vec<(BlockIndex, BlockCount)>,
    /// From this block on, all changed: by an epoch or a shrink.
    pub rest: Option<BlockIndex>,
    /// Epochs, oldest first.
    pub epochs: Vec<Epoch>,
    /// How its size moved; `None`: nothing set it.
    pub size: Option<SizeChange>,
}

impl FileSlice {
    /// A file of which nothing changed.
    pub fn unchanged(file: FileId) -> FileSlice {
        FileSlice { file, blocks: Vec::new(), rest: None, epochs: Vec::new(), size: None }
    }

    /// Whether nothing changed.
    pub fn is_unchanged(&self) -> bool {
        self.blocks.is_empty() && self.rest.is_none() && self.epochs.is_empty() && self.size.is_none()
    }

    /// Whether a block changed.
    pub fn contains(&self, block: BlockIndex) -> bool {
        let until = self.blocks.partition_point(|(first, _)| *first <= block);
        let in_run = until.checked_sub(1).is_some_and(|last| {
            let (first, count) = self.blocks[last];
            block.raw() - first.raw() < count.raw()
        });
        in_run || self.rest.is_some_and(|rest| rest <= block)
    }
}

/// Why a change index does not answer.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The window does not reach there.
    #[error(
        "@{at} is outside the change index, which covers @{tail} to @{head}: ask for a revision in it, or mount \
         with a longer --keep-history"
    )]
    OutsideWindow {
        /// Asked for.
        at: Tid,
        /// Oldest that is answered.
        tail: Tid,
        /// Newest that is answered.
        head: Tid,
    },
    /// The read transaction does not see what is asked about.
    #[error("a read transaction at @{txn} does not see changes up to @{at}: give one at @{at} or later")]
    TxnTooOld {
        /// Where it is.
        txn: Tid,
        /// Asked for.
        at: Tid,
    },
    /// The bounds of a slice stand the wrong way round.
    #[error("changes after @{lo} up to @{hi} are none: give the older revision first")]
    BoundsSwapped {
        /// Exclusive lower bound.
        lo: Tid,
        /// Inclusive upper bound.
        hi: Tid,
    },
    /// A commit that does not follow what is indexed.
    #[error("commit @{tid} does not come after @{head}, which is indexed: give commits in ascending order")]
    NotAscending {
        /// Of the commit.
        tid: Tid,
        /// Newest that is indexed.
        head: Tid,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] ReadError),
}

/// Knows which blocks changed when, for the window (tail, head].
///
/// All methods may be called from many threads at once. One thread at a time changes the index; those that ask
/// never wait for it, nor it for them.
///
/// `txn` is the context for an index that must go to the store for an answer; it sees the newest state asked about.
pub trait ChangeIndex: Send + Sync + Debug {
    /// Tail and head of one and the same moment.
    fn window(&self) -> (Tid, Tid);

    /// When `block` changed last, at or before `at`, which is in [tail, head]. If nothing is recorded, it is the
    /// tail, not exact.
    ///
    /// # Errors
    /// [`DeltaError::OutsideWindow`], [`DeltaError::TxnTooOld`], [`DeltaError::Store`].
    fn block_rev_at(
        &self,
        txn: &ReadTxn,
        file: FileId,
        block: BlockIndex,
        at: Tid,
    ) -> Result<BlockRev, DeltaError>;

    /// What changed of one file in (lo, hi].
    ///
    /// # Errors
    /// As for [`ChangeIndex::block_rev_at`], and [`DeltaError::BoundsSwapped`].
    fn changed_blocks(&self, txn: &ReadTxn, file: FileId, lo: Tid, hi: Tid) -> Result<FileSlice, DeltaError>;

    /// What changed in (lo, hi] of all files that changed, in the order of their ids.
    ///
    /// # Errors
    /// As for [`ChangeIndex::changed_blocks`].
    fn changes(&self, txn: &ReadTxn, lo: Tid, hi: Tid) -> Result<Vec<FileSlice>, DeltaError>;

    /// Moves tail up to `cut`, but not beyond head. What was recorded up to there is forgotten.
    fn forget_past(&self, cut: Tid);

    /// Takes up the next commit: head becomes its tid. If a limit of the index is reached, tail moves up too.
    ///
    /// # Errors
    /// [`DeltaError::NotAscending`]; nothing is taken up then.
    fn update(&self, commit: &CommitInfo) -> Result<(), DeltaError>;
}
