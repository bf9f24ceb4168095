//! The change index in memory, for stores whose commits name the blocks that they change.
//!
//! Invariant: one writer at a time (a mutex) and any number of readers, who take no lock: a reader takes the
//! published `State` once, an `Arc` swap, and answers from it. What leads to entries (tables, newest links) is
//! shared with later states, so a reader may meet entries that are newer than its state, and goes back from
//! them; if such an entry is in a chunk that its state does not have, a newer state has been published, and
//! it starts again with that (`Behind`). What leads to an entry that was made after others were forgotten does not
//! lead on to those, which an older state still has: so who finds in the end that the tail has moved starts again too.
//! Memory is bounded by [`TailOptions::entries_max`]; what is forgotten is freed chunk by chunk, and the tables are
//! made anew when too much of them is garbage.

mod atomics;
mod chunks;
mod index;
mod pieces;
mod slices;
#[cfg(test)]
mod tests;
mod tids;
mod window;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use revfs_protocol::{BlockIndex, FileId, Tid};
use tracing_mutex::stdsync::Mutex;

use self::atomics::{ArcSwap, AtomicU64};
use self::chunks::Behind;
use self::index::{Index, Newest};
use self::pieces::{blocks_of, key_of};
use self::slices::Gathering;
use self::window::{Blocks, Events, Window};
use self::writer::Writer;
use super::{BlockRev, ChangeIndex, DeltaError, FileSlice};
use crate::env;
use crate::store::{CommitInfo, ReadTxn};

/// Most entries by default: about 1 GiB with its tables.
pub const ENTRIES_MAX_DEFAULT: usize = 16 << 20;
/// Most entries at all: entries are numbered by 32 bits.
pub const ENTRIES_LIMIT: usize = 1 << 28;
/// How far back history is read at start-up by default.
pub const SPAN_DEFAULT: Duration = Duration::from_secs(600);
/// Commits that are asked of the store at once while seeding.
const SEED_COMMITS: usize = 1024;

/// Bounds of a [`Tail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailOptions {
    /// Most entries, at most [`ENTRIES_LIMIT`]; more move the tail up. A changed block, or a piece of a long run
    /// of them, is one; a new size, a creation and a deletion too.
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
    /// Memory, bytes. While tables are made anew, those before them come on top.
    pub bytes: usize,
}

/// All that a question needs, as of one moment.
#[derive(Clone)]
struct State {
    tail: Tid,
    head: Tid,
    blocks: Blocks,
    events: Events,
    index: Arc<Index>,
}

/// The change index in memory.
pub struct Tail {
    entries_max: usize,
    state: ArcSwap<State>,
    // Tail of the published state, written after that and before any entry that is made without what it forgot.
    tail: AtomicU64,
    // Taken by those who change the index only, for the whole of a change; nothing else is locked under it.
    writer: Mutex<Writer>,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tail, head) = self.window();
        f.debug_struct("Tail")
            .field("tail", &tail)
            .field("head", &head)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Tail {
    /// An index that knows nothing before `head`: its window is (head, head].
    pub fn new(head: Tid, options: TailOptions) -> Tail {
        // Drawn, so that nobody can choose blocks that fall on each other in the tables.
        Tail::numbered_from(0, env::random_u64(), head, options)
    }

    /// The same, with entries numbered from `number` on, and this seed of hashes.
    fn numbered_from(number: u32, seed: u64, head: Tid, options: TailOptions) -> Tail {
        let (blocks, events) = (Window::empty(number), Window::empty(number));
        let (index, writer) = Writer::new(seed, &blocks, &events);
        let state = State { tail: head, head, blocks, events, index: Arc::new(index) };
        Tail {
            entries_max: options.entries_max.min(ENTRIES_LIMIT),
            tail: AtomicU64::new(state.tail.raw()),
            state: ArcSwap::from_pointee(state),
            writer: Mutex::new(writer),
        }
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

    /// An index of what commits in (lo, hi] did to one file: that is its window, if no limit is reached.
    ///
    /// # Errors
    /// The store's log cannot be read.
    pub fn of_file(
        txn: &ReadTxn,
        file: FileId,
        (lo, hi): (Tid, Tid),
        options: TailOptions,
    ) -> Result<Tail, DeltaError> {
        let tail = Tail::new(lo.min(hi), options);
        let asked = BTreeSet::from([file]);
        loop {
            let (_, head) = tail.window();
            let mut commits = txn.store().commits_of(head, hi, SEED_COMMITS, &asked)?;
            for commit in &mut commits {
                commit.files.retain(|change| change.file == file);
                tail.update(commit)?;
            }
            if commits.len() < SEED_COMMITS {
                break;
            }
        }
        tail.reach(hi);
        Ok(tail)
    }

    /// What it takes.
    pub fn stats(&self) -> TailStats {
        let state = self.state.load();
        TailStats {
            entries: state.entries(),
            bytes: state.blocks.bytes() + state.events.bytes() + state.index.bytes(),
        }
    }

    /// Answers from the newest state, which ends: each new attempt is the fault of another step of the writer.
    fn ask<T>(
        &self,
        question: impl Fn(&State) -> Result<Result<T, DeltaError>, Behind>,
    ) -> Result<T, DeltaError> {
        loop {
            let state = self.state.load();
            if let Ok(answer) = question(&state)
                && self.tail.load(Ordering::Acquire) <= state.tail.raw()
            {
                return answer;
            }
        }
    }
}

impl State {
    fn entries(&self) -> usize {
        self.blocks.len() + self.events.len()
    }

    #[inline]
    fn check(&self, txn: &ReadTxn, at: Tid) -> Result<(), DeltaError> {
        let answers = at >= self.tail && at <= self.head && at <= txn.at();
        if answers { Ok(()) } else { Err(self.refusal(txn, at)) }
    }

    #[cold]
    fn refusal(&self, txn: &ReadTxn, at: Tid) -> DeltaError {
        if at < self.tail || at > self.head {
            return DeltaError::OutsideWindow { at, tail: self.tail, head: self.head };
        }
        DeltaError::TxnTooOld { txn: txn.at(), at }
    }

    fn check_bounds(&self, txn: &ReadTxn, lo: Tid, hi: Tid) -> Result<(), DeltaError> {
        self.check(txn, hi)?;
        if lo > hi {
            return Err(DeltaError::BoundsSwapped { lo, hi });
        }
        self.check(txn, lo)
    }

    #[inline]
    fn block_rev(&self, file: FileId, block: BlockIndex, at: Tid) -> Result<BlockRev, Behind> {
        // Whatever is recorded is after it.
        let mut rev = self.tail;
        if let Some((ordinal, record)) = self.index.file(file) {
            let mut levels = record.levels();
            while levels != 0 {
                let level = levels.trailing_zeros();
                levels &= levels - 1;
                let Some(key) = key_of(block, level) else { break };
                if let Some(newest) = self.index.newest(&self.blocks, ordinal, key) {
                    rev = rev.max(self.version_at(newest, at)?);
                }
            }
            if let Some(number) = record.newest_event() {
                rev = rev.max(self.events.newest_of_block(number, at, block.raw())?.unwrap_or(self.tail));
            }
        }
        Ok(BlockRev { rev, exact: rev > self.tail })
    }

    /// When a piece changed last at or before `at`; the tail if it did not. Of the newest change, all is known without
    /// its entry.
    #[inline]
    fn version_at(&self, newest: Newest, at: Tid) -> Result<Tid, Behind> {
        let tid = self.blocks.tid(newest.number)?;
        // In this order: a processor foresees what most blocks of a file have in common, but not which is asked for.
        if newest.has_prev && tid > at {
            return self.older_version_at(newest.number, at);
        }
        Ok(if tid <= at { tid } else { self.tail })
    }

    // Apart, and never inlined: what is done for each question must be short, so that a processor that waits for the
    // memory of one begins with the next.
    #[cold]
    #[inline(never)]
    fn older_version_at(&self, newest: u32, at: Tid) -> Result<Tid, Behind> {
        let found = self.blocks.newest_at(newest, at)?;
        found.map_or(Ok(self.tail), |number| self.blocks.tid(number))
    }

    fn slice(&self, file: FileId, lo: Tid, hi: Tid) -> Result<FileSlice, Behind> {
        let mut gathering = Gathering::of(file);
        let Some((_, record)) = self.index.file(file) else { return Ok(gathering.finish()) };
        let mut block = record.newest_block();
        while let Some(number) = block
            && let Some(entry) = self.blocks.get(number)?
        {
            let tid = self.blocks.tid(number)?;
            if tid <= lo {
                break;
            }
            if tid <= hi {
                gathering.add_blocks(blocks_of(entry.key()));
            }
            block = Some(entry.file_prev());
        }
        let mut events = Vec::new();
        let mut event = match record.newest_event() {
            Some(newest) => self.events.newest_at(newest, hi)?,
            None => None,
        };
        while let Some(number) = event
            && let Some(entry) = self.events.get(number)?
        {
            let tid = self.events.tid(number)?;
            if tid <= lo {
                break;
            }
            events.push((tid, entry));
            event = Some(entry.prev());
        }
        events.into_iter().rev().for_each(|(tid, event)| gathering.add_event(tid, event));
        Ok(gathering.finish())
    }

    fn slices(&self, lo: Tid, hi: Tid) -> Result<Vec<FileSlice>, Behind> {
        let mut files: BTreeMap<u32, Gathering> = BTreeMap::new();
        let new =
            |ordinal: u32| Gathering::of(self.index.record(ordinal).map_or_else(FileId::default, |r| r.id()));
        for number in self.blocks.between(lo, hi)? {
            if let Some(entry) = self.blocks.get(number)? {
                let ordinal = entry.ordinal();
                let range = blocks_of(entry.key());
                files.entry(ordinal).or_insert_with(|| new(ordinal)).add_blocks(range);
            }
        }
        for number in self.events.between(lo, hi)? {
            if let Some(event) = self.events.get(number)? {
                let (ordinal, tid) = (event.ordinal(), self.events.tid(number)?);
                files.entry(ordinal).or_insert_with(|| new(ordinal)).add_event(tid, event);
            }
        }
        let mut slices: Vec<FileSlice> = files.into_values().map(Gathering::finish).collect();
        slices.sort_unstable_by_key(|slice| slice.file);
        Ok(slices)
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
        self.ask(|state| {
            if let Err(error) = state.check(txn, at) {
                return Ok(Err(error));
            }
            state.block_rev(file, block, at).map(Ok)
        })
    }

    fn changed_blocks(&self, txn: &ReadTxn, file: FileId, lo: Tid, hi: Tid) -> Result<FileSlice, DeltaError> {
        self.ask(|state| match state.check_bounds(txn, lo, hi) {
            Ok(()) => state.slice(file, lo, hi).map(Ok),
            Err(error) => Ok(Err(error)),
        })
    }

    fn changes(&self, txn: &ReadTxn, lo: Tid, hi: Tid) -> Result<Vec<FileSlice>, DeltaError> {
        self.ask(|state| match state.check_bounds(txn, lo, hi) {
            Ok(()) => state.slices(lo, hi).map(Ok),
            Err(error) => Ok(Err(error)),
        })
    }

    fn forget_past(&self, cut: Tid) {
        self.forget(cut);
    }

    fn update(&self, commit: &CommitInfo) -> Result<(), DeltaError> {
        self.take_up(commit)
    }
}
