//! The change index in memory, for stores whose commits name the blocks that they change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};

use super::{BlockRev, ChangeIndex, DeltaError, Epoch, EpochKind, FileSlice, SizeChange};
use crate::store::{CommitInfo, FileChange, ReadTxn};

/// Most entries by default: about 1 GiB.
pub const ENTRIES_MAX_DEFAULT: usize = 16 << 20;
/// How far back history is read at start-up by default.
pub const SPAN_DEFAULT: Duration = Duration::from_secs(600);
/// Commits that are asked of the store at once while seeding.
const SEED_COMMITS: usize = 1024;

/// Bounds of a [`Tail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailOptions {
    /// Most entries; more move the tail up. A changed block or a piece of a long run is one, a new size, a
    /// creation or a deletion too.
    pub entries_max: usize,
    /// How far back from head history is read at start-up.
    pub span: Duration,
}

impl Default for TailOptions {
    fn default() -> TailOptions {
        TailOptions { entries_max: ENTRIES_MAX_DEFAULT, span: SPAN_DEFAULT }
    }
}

/// What a [`Tail`] takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TailStats {
    /// Entries in the window.
    pub entries: usize,
    /// Memory, bytes, what is to be freed soon included.
    pub bytes: usize,
}

#[derive(Debug)]
struct State {
    tail: Tid,
    head: Tid,
    commits: Vec<Arc<CommitInfo>>,
}

/// The change index in memory.
#[derive(Debug)]
pub struct Tail {
    options: TailOptions,
    state: ArcSwap<State>,
    writing: Mutex<()>,
}

impl Tail {
    /// An index that knows nothing before `head`: its window is (head, head].
    pub fn new(head: Tid, options: TailOptions) -> Tail {
        let state = State { tail: head, head, commits: Vec::new() };
        Tail { options, state: ArcSwap::from_pointee(state), writing: Mutex::new(()) }
    }

    /// An index of the last [`TailOptions::span`] before `txn`.
    ///
    /// # Errors
    /// The store's log cannot be read.
    pub fn seed(txn: &ReadTxn, options: TailOptions) -> Result<Tail, DeltaError> {
        let span_ns = u64::try_from(options.span.as_nanos()).unwrap_or(u64::MAX);
        let from_ns = txn.at().to_unix_ns().saturating_sub(span_ns);
        Tail::seed_from(txn, Tid::newest_at_unix_ns(from_ns), options)
    }

    /// An index of all commits in (lo, txn.at()]: that is its window, if no limit is reached.
    ///
    /// # Errors
    /// The store's log cannot be read.
    pub fn seed_from(txn: &ReadTxn, lo: Tid, options: TailOptions) -> Result<Tail, DeltaError> {
        let tail = Tail::new(lo.min(txn.at()), options);
        loop {
            let (_, head) = tail.window();
            let commits = txn.store().commits(head, txn.at(), SEED_COMMITS)?;
            for commit in &commits {
                tail.update(commit)?;
            }
            if commits.len() < SEED_COMMITS {
                break;
            }
        }
        tail.reach(txn.at());
        Ok(tail)
    }

    /// Moves head up to `head`: nothing was committed in between.
    fn reach(&self, head: Tid) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load();
        let head = state.head.max(head);
        self.state.store(Arc::new(State { tail: state.tail, head, commits: state.commits.clone() }));
    }

    /// What it takes.
    pub fn stats(&self) -> TailStats {
        TailStats { entries: self.state.load().commits.len(), bytes: 0 }
    }
}

fn first_of_rest(change: &FileChange) -> Option<u64> {
    if change.created || change.deleted {
        return Some(0);
    }
    (change.size < change.old_size).then(|| change.block_size.block_of(change.size).raw())
}

impl State {
    fn check(&self, txn: &ReadTxn, at: Tid) -> Result<(), DeltaError> {
        if at < self.tail || at > self.head {
            return Err(DeltaError::OutsideWindow { at, tail: self.tail, head: self.head });
        }
        if txn.at() < at {
            return Err(DeltaError::TxnTooOld { txn: txn.at(), at });
        }
        Ok(())
    }

    fn slices(&self, lo: Tid, hi: Tid) -> BTreeMap<FileId, FileSlice> {
        let mut slices: BTreeMap<FileId, FileSlice> = BTreeMap::new();
        let mut blocks: BTreeMap<FileId, BTreeSet<u64>> = BTreeMap::new();
        for commit in self.commits.iter().filter(|commit| commit.tid > lo && commit.tid <= hi) {
            for change in &commit.files {
                let slice = slices.entry(change.file).or_insert_with(|| FileSlice::unchanged(change.file));
                let known = blocks.entry(change.file).or_default();
                for (first, count) in &change.blocks {
                    known.extend(first.raw()..first.raw() + count.raw());
                }
                if let Some(first) = first_of_rest(change).map(BlockIndex::new) {
                    slice.rest = Some(slice.rest.map_or(first, |rest| rest.min(first)));
                }
                let kind = if change.created { EpochKind::Created } else { EpochKind::Deleted };
                if change.created || change.deleted {
                    slice.epochs.push(Epoch { tid: commit.tid, kind });
                }
                let after = if change.deleted { 0 } else { change.size };
                if after != change.old_size || change.created {
                    let before = slice.size.map_or(change.old_size, |size| size.before);
                    let smallest = slice.size.map_or(after, |size| size.smallest.min(after));
                    slice.size = Some(SizeChange { before, smallest, after });
                }
            }
        }
        for (file, blocks) in blocks {
            let slice = slices.entry(file).or_insert_with(|| FileSlice::unchanged(file));
            let rest = slice.rest.map_or(u64::MAX, BlockIndex::raw);
            for block in blocks.into_iter().filter(|block| *block < rest) {
                match slice.blocks.last_mut() {
                    Some((first, count)) if first.raw() + count.raw() == block => {
                        *count = BlockCount::new(count.raw() + 1);
                    }
                    _ => slice.blocks.push((BlockIndex::new(block), BlockCount::new(1))),
                }
            }
        }
        slices.retain(|_, slice| !slice.is_unchanged());
        slices
    }

    fn checked_slices(
        &self,
        txn: &ReadTxn,
        lo: Tid,
        hi: Tid,
    ) -> Result<BTreeMap<FileId, FileSlice>, DeltaError> {
        self.check(txn, lo)?;
        self.check(txn, hi)?;
        if lo > hi {
            return Err(DeltaError::BoundsSwapped { lo, hi });
        }
        Ok(self.slices(lo, hi))
    }
}

impl ChangeIndex for Tail {
    fn window(&self) -> (Tid, Tid) {
        let state = self.state.load();
        (state.tail, state.head)
    }

    fn block_rev_at(
        &self,
        txn: &ReadTxn,
        file: FileId,
        block: BlockIndex,
        at: Tid,
    ) -> Result<BlockRev, DeltaError> {
        let state = self.state.load();
        state.check(txn, at)?;
        let changes = |change: &FileChange| {
            let has = |(first, count): &(BlockIndex, BlockCount)| {
                *first <= block && block.raw() - first.raw() < count.raw()
            };
            change.file == file
                && (change.blocks.iter().any(has)
                    || first_of_rest(change).is_some_and(|first| first <= block.raw()))
        };
        let mut older = state.commits.iter().rev().skip_while(|commit| commit.tid > at);
        let found = older.find(|commit| commit.files.iter().any(changes));
        Ok(match found {
            Some(commit) => BlockRev { rev: commit.tid, exact: true },
            None => BlockRev { rev: state.tail, exact: false },
        })
    }

    fn changed_blocks(&self, txn: &ReadTxn, file: FileId, lo: Tid, hi: Tid) -> Result<FileSlice, DeltaError> {
        let mut slices = self.state.load().checked_slices(txn, lo, hi)?;
        Ok(slices.remove(&file).unwrap_or_else(|| FileSlice::unchanged(file)))
    }

    fn changes(&self, txn: &ReadTxn, lo: Tid, hi: Tid) -> Result<Vec<FileSlice>, DeltaError> {
        Ok(self.state.load().checked_slices(txn, lo, hi)?.into_values().collect())
    }

    fn forget_past(&self, cut: Tid) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load();
        let tail = state.tail.max(cut.min(state.head));
        let commits = state.commits.iter().filter(|commit| commit.tid > tail).cloned().collect();
        self.state.store(Arc::new(State { tail, head: state.head, commits }));
    }

    fn update(&self, commit: &CommitInfo) -> Result<(), DeltaError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load();
        if commit.tid <= state.head {
            return Err(DeltaError::NotAscending { tid: commit.tid, head: state.head });
        }
        let mut commits = state.commits.clone();
        commits.push(Arc::new(commit.clone()));
        let excess = commits.len().saturating_sub(self.options.entries_max);
        let tail = commits.drain(..excess).next_back().map_or(state.tail, |last| last.tid);
        self.state.store(Arc::new(State { tail, head: commit.tid, commits }));
        Ok(())
    }
}
