//! When blocks changed: from the change index for the recent past, from the store for all before it.
//!
//! Invariant: the index has a commit before it is published (rule 1), so it answers for every published head. Which
//! of the two answers is never seen, only felt. Every question has the read transaction that it is asked in. Of a store
//! that tells by file the index has all changes of a file from when it was opened; what was before that in the configured
//! span is asked of the store when it is needed, once, and is an index of that file alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use revfs_protocol::{BlockCount, BlockIndex, BlockSpan, FileId, Tid};
use tracing_mutex::stdsync::{Mutex, MutexGuard};

use super::FileView;
use super::opened::Opened;
use crate::delta::{BlockRev, ChangeIndex, DeltaError, FileSlice, Tail, TailOptions, TailStats};
use crate::store::{CommitInfo, ReadError, ReadTxn};

/// Blocks that are looked up in the store at once.
const BLOCKS_STEP: u64 = 1 << 16;
/// More blocks in a row are looked up in the store, which walks them in order.
const INDEXED_BLOCKS_MAX: u64 = 256;
/// The same where only the window is answered for, and revisions are to be exact.
const WINDOW_BLOCKS_MAX: u64 = 1 << 20;

/// The change index, and the way past its tail.
#[derive(Debug)]
pub(super) struct History {
    index: ArcSwap<Tail>,
    options: TailOptions,
    /// Only this window is answered for; `None`: the store answers for all before what the index has.
    only: Option<OnlyWindow>,
    /// Files that the index has, and since when.
    pub(super) opened: Opened,
    // Leaf lock: for one look-up or change; never while the store is asked.
    before_opened: Mutex<HashMap<FileId, Arc<Tail>>>,
}

/// The window where nothing before it is answered for.
#[derive(Debug)]
struct OnlyWindow {
    /// Where it began.
    start: Tid,
    /// Where it begins now, as a tid: it only moves up.
    oldest: AtomicU64,
}

impl OnlyWindow {
    fn oldest(&self) -> Tid {
        Tid::from_raw(self.oldest.load(Ordering::SeqCst))
    }
}

/// The least that stays of the window where only that is answered for, as with WCFS.
const WINDOW_SPAN_MIN: Duration = Duration::from_secs(60);

impl History {
    /// A history whose index knows nothing before `head`. Whether the store tells `by_file`, see [`Store::tells_by_file`].
    /// `window_only`: who asks about what lies before the configured span is refused, and a block of which no change is
    /// known counts as unchanged since then.
    ///
    /// [`Store::tells_by_file`]: crate::store::Store::tells_by_file
    pub(super) fn new(head: Tid, options: TailOptions, by_file: bool, window_only: bool) -> History {
        let index = ArcSwap::from_pointee(Tail::new(head, options));
        let start = span_before(head, options.span);
        let only = window_only.then(|| OnlyWindow { start, oldest: AtomicU64::new(start.raw()) });
        History { index, options, only, opened: Opened::new(by_file, head), before_opened: Mutex::default() }
    }

    /// The oldest state at which a file may be watched, if that is bounded.
    pub(super) fn oldest_watched(&self) -> Option<Tid> {
        self.only.as_ref().map(OnlyWindow::oldest)
    }

    /// Reads the recent past from the store. On the thread that updates, before its first update.
    pub(super) fn seed(&self, txn: &ReadTxn) {
        if self.opened.by_file() || self.options.span.is_zero() {
            return;
        }
        match Tail::seed(txn, self.options) {
            Ok(seeded) => self.index.store(Arc::new(seeded)),
            // The store answers for what the index does not know.
            Err(error) => log::warn!("the change index begins empty: {error}"),
        }
    }

    /// Takes up commits that lead to `head`, before that is published.
    pub(super) fn update(&self, commits: &[CommitInfo], head: &ReadTxn) {
        let index = self.index.load();
        let updated = commits.iter().try_for_each(|commit| index.update(commit));
        if let Err(error) = updated {
            // It cannot be trusted any more: it begins anew, and the store answers for the past.
            log::error!("the change index begins anew: {error}");
            self.index.store(Arc::new(Tail::new(head.at(), self.options)));
        } else {
            index.reach(head.at());
        }
    }

    /// Forgets what is older than the configured span, but nothing after `shown` (rule 12). Whoever works at an older
    /// state is served from the store; where only the window is answered for, nothing after `watched`, the oldest state
    /// that somebody works at, is forgotten either.
    pub(super) fn forget(&self, shown: Tid, watched: Tid, now_unix_ns: u64) {
        let (span, kept) = match &self.only {
            Some(_) => (self.options.span.max(WINDOW_SPAN_MIN), shown.min(watched)),
            None => (self.options.span, shown),
        };
        let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let oldest = Tid::newest_at_unix_ns(now_unix_ns.saturating_sub(span_ns)).min(kept);
        if let Some(only) = &self.only {
            only.oldest.fetch_max(oldest.raw(), Ordering::SeqCst);
        }
        self.index.load().forget_past(oldest);
        lock(&self.before_opened).retain(|_, index| index.window().1 > oldest);
    }

    /// The index of a file before it was opened at `since`, for the configured span.
    fn before_opened(&self, txn: &ReadTxn, file: FileId, since: Tid) -> Result<Arc<Tail>, DeltaError> {
        if let Some(known) = lock(&self.before_opened).get(&file) {
            return Ok(Arc::clone(known));
        }
        let lo = self.oldest_watched().unwrap_or_else(|| span_before(since, self.options.span)).min(since);
        let index = Arc::new(Tail::of_file(txn, file, (lo, since), self.options)?);
        lock(&self.before_opened).insert(file, Arc::clone(&index));
        Ok(index)
    }

    /// Blocks of `spans` that the indexes know to have changed between the state `at` and `head`.
    fn indexed_changes(
        &self,
        head: &FileView,
        at: Tid,
        spans: &[BlockSpan],
    ) -> Result<Vec<BlockSpan>, DeltaError> {
        let (txn, file) = (&head.txn, head.meta.file);
        let since = self.opened.since(file).min(txn.at());
        let recent = self.index.load().changed_blocks(txn, file, at.max(since), txn.at())?;
        let recent = common(spans, &recent);
        if at >= since {
            return Ok(recent);
        }
        let before = self.before_opened(txn, file, since)?.changed_blocks(txn, file, at, since)?;
        Ok(joined(common(spans, &before), recent))
    }

    /// When a block changed last at or before `at`, as the indexes know. Where it is not in their windows, the tail of the one
    /// that answered: the window moves meanwhile, so whoever has to know what was forgotten goes by that.
    fn indexed_rev(
        &self,
        txn: &ReadTxn,
        file: FileId,
        block: BlockIndex,
        at: Tid,
    ) -> Result<BlockRev, DeltaError> {
        let since = self.opened.since(file);
        if at > since || since == Tid::ZERO {
            let known = self.index.load().block_rev_at(txn, file, block, at)?;
            // Of the time before, this index may lack changes.
            if known.rev > since || since == Tid::ZERO {
                return Ok(known);
            }
        }
        self.before_opened(txn, file, since)?.block_rev_at(txn, file, block, at.min(since))
    }

    /// Blocks of a file in a published head with the tid at which each changed last, as runs in order; not below that, for
    /// a pin too many harms nobody.
    pub(super) fn revs(&self, head: &FileView, span: BlockSpan) -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
        let (txn, file) = (&head.txn, head.meta.file);
        let Some(only) = self.only.as_ref().filter(|only| self.knows_all(only, file)) else {
            let revs = revs_of(txn, file, span)?;
            let is_bound = self.opened.by_file() && span.count().raw() <= INDEXED_BLOCKS_MAX;
            return Ok(if is_bound { self.sharpened(txn, file, revs) } else { revs });
        };
        let mut revs = Vec::new();
        for block in span.blocks() {
            match self.indexed_rev(txn, file, block, txn.at()) {
                Ok(known) if known.exact => append(&mut revs, BlockSpan::one(block), known.rev),
                // No change of the window is missing but those up to the tail.
                Ok(known) => append(&mut revs, BlockSpan::one(block), known.rev.max(only.oldest())),
                Err(_) => return revs_of(txn, file, span),
            }
        }
        Ok(revs)
    }

    /// Revisions of blocks, where the store tells a bound: that of all blocks that stand beside one which came or went in its
    /// tree. The index knows which of them changed since the file was opened.
    fn sharpened(&self, txn: &ReadTxn, file: FileId, revs: Vec<(BlockSpan, Tid)>) -> Vec<(BlockSpan, Tid)> {
        let (index, since) = (self.index.load(), self.opened.since(file));
        let mut sharper: Vec<(BlockSpan, Tid)> = Vec::with_capacity(revs.len());
        for (block, bound) in revs.iter().flat_map(|(span, rev)| span.blocks().map(|block| (block, *rev))) {
            let known = index.block_rev_at(txn, file, block, txn.at());
            let rev = known.map_or(bound, |known| bound.min(known.rev.max(since)));
            append(&mut sharper, BlockSpan::one(block), rev);
        }
        sharper
    }

    /// Whether a block of a file of which no change is recorded has had none in the window: not before the recent past was
    /// read, nor after the bound of the index made it forget more than the window did.
    fn knows_all(&self, only: &OnlyWindow, file: FileId) -> bool {
        self.index.load().window().0 <= only.oldest().max(self.opened.since(file))
    }

    /// Whether a block of a file of which all is known since `since` may be another one in `head` than in the state `at`,
    /// before it. Asks the memory only, and takes no lock: a head is published under that of the notes of opened files.
    pub(super) fn may_differ(
        &self,
        head: &ReadTxn,
        (file, since): (FileId, Tid),
        block: BlockIndex,
        at: Tid,
    ) -> bool {
        let known = self.index.load().block_rev_at(head, file, block, head.at());
        at < since || known.map_or(true, |known| known.rev > at)
    }

    /// Tail and head of the index, and what it takes.
    pub(super) fn window(&self) -> ((Tid, Tid), TailStats) {
        let index = self.index.load();
        (index.window(), index.stats())
    }

    /// Blocks of `spans` that changed between the state `at` and `head`.
    pub(super) fn changed(
        &self,
        head: &FileView,
        at: Tid,
        spans: Vec<BlockSpan>,
    ) -> Result<Vec<BlockSpan>, ReadError> {
        match self.indexed_changes(head, at, &spans) {
            Ok(changed) => Ok(changed),
            Err(DeltaError::Store(error)) => Err(error),
            // It does not reach so far back.
            Err(_) => {
                let mut changed = Vec::new();
                for span in spans {
                    let revs = self.revs(head, span)?;
                    changed.extend(revs.into_iter().filter(|(_, rev)| *rev > at).map(|(span, _)| span));
                }
                Ok(changed)
            }
        }
    }

    /// Where a client at the state of `old` finds blocks of the file. A block that was never written then is as it
    /// was when the file was created.
    pub(super) fn pins_at(
        &self,
        old: &FileView,
        span: BlockSpan,
    ) -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
        let (at, file) = (old.txn.at(), old.meta.file);
        let of_store = |span: BlockSpan| -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
            let mut pins = revs_of(&old.txn, file, span)?;
            pins.iter_mut().for_each(|(_, rev)| *rev = (*rev).max(old.meta.created));
            Ok(pins)
        };
        if let Some(only) = &self.only {
            let begun = only.start.max(old.meta.created).min(at);
            let mut pins = Vec::new();
            if span.count().raw() > WINDOW_BLOCKS_MAX {
                let known = of_store(span)?;
                known.into_iter().for_each(|(span, rev)| append(&mut pins, span, rev.max(begun).min(at)));
                return Ok(pins);
            }
            for block in span.blocks() {
                let rev = match self.indexed_rev(&old.txn, file, block, at) {
                    Ok(known) if known.exact => known.rev,
                    // Nothing was forgotten: so it is as it was then.
                    Ok(known) if known.rev <= only.start && only.oldest() == only.start => begun,
                    _ => of_store(BlockSpan::one(block))?.first().map_or(at, |(_, rev)| begun.max(*rev)),
                };
                append(&mut pins, BlockSpan::one(block), rev.min(at));
            }
            return Ok(pins);
        }
        let before_index = !self.opened.by_file() && at < self.index.load().window().0;
        if span.count().raw() > INDEXED_BLOCKS_MAX || before_index {
            return of_store(span);
        }
        let mut pins: Vec<(BlockSpan, Tid)> = Vec::new();
        for block in span.blocks() {
            match self.indexed_rev(&old.txn, file, block, at) {
                Ok(known) if known.exact => append(&mut pins, BlockSpan::one(block), known.rev),
                // Not in the window: whatever is wrong with the index, the store knows.
                _ => {
                    let known = of_store(BlockSpan::one(block))?;
                    known.into_iter().for_each(|(span, rev)| append(&mut pins, span, rev));
                }
            }
        }
        Ok(pins)
    }
}

/// The state that a span lies before another one.
fn span_before(at: Tid, span: Duration) -> Tid {
    if span.is_zero() {
        return at;
    }
    let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Tid::newest_at_unix_ns(at.to_unix_ns().saturating_sub(span_ns)).min(at)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks that are in one or the other, in order and apart.
fn joined(one: Vec<BlockSpan>, other: Vec<BlockSpan>) -> Vec<BlockSpan> {
    let mut all = [one, other].concat();
    all.sort_unstable_by_key(|span| span.first);
    let mut joined: Vec<BlockSpan> = Vec::with_capacity(all.len());
    for span in all {
        match joined.last_mut() {
            Some(last) if span.first.raw() <= last.last.raw().saturating_add(1) => {
                last.last = last.last.max(span.last)
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// Blocks of `spans`, which are in order and apart, that a slice has.
fn common(spans: &[BlockSpan], slice: &FileSlice) -> Vec<BlockSpan> {
    let mut found = Vec::new();
    let whole = slice.rest.map(|rest| (rest, BlockCount::new(u64::MAX - rest.raw())));
    let mut runs = slice.blocks.iter().copied().chain(whole).peekable();
    for span in spans {
        while let Some((first, count)) = runs.peek().copied() {
            let last = first.raw().saturating_add(count.raw()).saturating_sub(1);
            let (from, to) = (first.raw().max(span.first.raw()), last.min(span.last.raw()));
            found.extend(
                (from <= to).then(|| BlockSpan { first: BlockIndex::new(from), last: BlockIndex::new(to) }),
            );
            // A run that goes on behind this span may touch the next one.
            if last > span.last.raw() {
                break;
            }
            runs.next();
        }
    }
    found
}

/// Adds blocks with one revision; they are one run with the ones before if these have it too.
fn append(runs: &mut Vec<(BlockSpan, Tid)>, blocks: BlockSpan, rev: Tid) {
    match runs.last_mut() {
        Some((before, same)) if *same == rev && before.last.next() == Some(blocks.first) => {
            before.last = blocks.last;
        }
        _ => runs.push((blocks, rev)),
    }
}

/// Blocks of a file with the tid at which each changed last, as runs in order.
pub(super) fn revs_of(
    txn: &ReadTxn,
    file: FileId,
    span: BlockSpan,
) -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
    let mut revs: Vec<(BlockSpan, Tid)> = Vec::new();
    let mut first = span.first.raw();
    while first <= span.last.raw() {
        let count = (span.last.raw() - first).saturating_add(1).min(BLOCKS_STEP);
        for run in txn.blocks(file, BlockIndex::new(first), BlockCount::new(count))? {
            let last = BlockIndex::new(run.first.raw() + (run.count - 1));
            append(&mut revs, BlockSpan { first: run.first, last }, run.rev);
        }
        first += count;
    }
    Ok(revs)
}

#[cfg(test)]
mod tests;
