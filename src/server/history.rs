//! When blocks changed: from the change index for the recent past, from the store for all before it.
//!
//! Invariant: the index has a commit before it is published (rule 1), so it answers for every published head. Which
//! of the two answers is never seen, only felt. Every question has the read transaction that it is asked in. Of a store
//! that tells by file the index has all changes of a file from when it was opened; what was before that in the configured
//! span is asked of the store when it is needed, once, and is an index of that file alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use revfs_protocol::{BlockCount, BlockIndex, BlockSpan, FileId, Tid};

use super::FileView;
use super::opened::Opened;
use crate::delta::{BlockRev, ChangeIndex, DeltaError, FileSlice, Tail, TailOptions, TailStats};
use crate::store::{CommitInfo, ReadError, ReadTxn};

/// Blocks that are looked up in the store at once.
const BLOCKS_STEP: u64 = 1 << 16;
/// More blocks in a row are looked up in the store, which walks them in order.
const INDEXED_BLOCKS_MAX: u64 = 256;

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

    /// When a block changed last at or before `at`, as the indexes know; `None`: not in their windows.
    fn indexed_rev(
        &self,
        txn: &ReadTxn,
        file: FileId,
        block: BlockIndex,
        at: Tid,
    ) -> Result<Option<Tid>, DeltaError> {
        let since = self.opened.since(file);
        let of = |known: BlockRev| known.exact.then_some(known.rev);
        if at > since || since == Tid::ZERO {
            // Of the time before, this index may lack changes.
            let index = self.index.load();
            let known = of(index.block_rev_at(txn, file, block, at)?).filter(|rev| *rev > since);
            // Looked at after the question, for the tail only grows: what it has passed may be missing between the two.
            let forgotten = index.window().0 > since;
            if known.is_some() || since == Tid::ZERO || forgotten {
                return Ok(known);
            }
        }
        Ok(of(self.before_opened(txn, file, since)?.block_rev_at(txn, file, block, at.min(since))?))
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
                Ok(rev) => revs.push((BlockSpan::one(block), rev.unwrap_or_else(|| only.oldest()))),
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
            match sharper.last_mut() {
                Some((before, same)) if *same == rev && before.last.next() == Some(block) => {
                    before.last = block;
                }
                _ => sharper.push((BlockSpan::one(block), rev)),
            }
        }
        sharper
    }

    /// Whether a block of a file of which no change is recorded has had none in the window: not before the recent past was
    /// read, nor after the bound of the index made it forget more than the window did.
    fn knows_all(&self, only: &OnlyWindow, file: FileId) -> bool {
        self.index.load().window().0 <= only.oldest().max(self.opened.since(file))
    }

    /// Whether a block may be another one in `head` than in the state `at`, before it. Asks the memory only.
    pub(super) fn may_differ(&self, head: &ReadTxn, file: FileId, block: BlockIndex, at: Tid) -> bool {
        let known = self.index.load().block_rev_at(head, file, block, head.at());
        at < self.opened.since(file) || known.map_or(true, |known| known.rev > at)
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
            let whole = only.oldest() == only.start && self.knows_all(only, file);
            let mut pins = Vec::new();
            for block in span.blocks() {
                let rev = match self.indexed_rev(&old.txn, file, block, at) {
                    Ok(Some(rev)) => rev,
                    // Nothing was forgotten: so it is as it was then.
                    Ok(None) if whole => begun,
                    _ => of_store(BlockSpan::one(block))?.first().map_or(at, |(_, rev)| begun.max(*rev)),
                };
                pins.push((BlockSpan::one(block), rev.min(at)));
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
                Ok(Some(rev)) => pins.push((BlockSpan::one(block), rev)),
                // Not in the window: whatever is wrong with the index, the store knows.
                _ => pins.extend(of_store(BlockSpan::one(block))?),
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
            match revs.last_mut() {
                Some((before, rev)) if *rev == run.rev && before.last.next() == Some(run.first) => {
                    before.last = last;
                }
                _ => revs.push((BlockSpan { first: run.first, last }, run.rev)),
            }
        }
        first += count;
    }
    Ok(revs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;
    use crate::store::native::{InitOptions, NativeStore, OpenOptions};
    use revfs_protocol::BlockSize;
    use std::collections::{BTreeMap, BTreeSet};

    /// Each block of runs with its revision.
    fn by_block(pins: &[(BlockSpan, Tid)]) -> BTreeMap<BlockIndex, Tid> {
        pins.iter().flat_map(|(span, rev)| span.blocks().map(|block| (block, *rev))).collect()
    }

    #[test]
    fn the_index_and_the_store_tell_the_same() {
        const BLOCK: u64 = 4096;
        const BLOCKS: u64 = 12;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let init =
            InitOptions { sync: false, block_size: BlockSize::new(BLOCK).unwrap(), ..InitOptions::default() };
        NativeStore::init(&root, &init, &*SystemClock::shared()).unwrap();
        let store = NativeStore::open(&root, OpenOptions { sync: false, ..OpenOptions::default() }).unwrap();
        let mut state = 3u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let mut tids = Vec::new();
        let mut file = None;
        for round in 0..60u8 {
            let mut txn = store.begin(None).unwrap();
            let id = *file.get_or_insert_with(|| txn.create(b"f", None).unwrap());
            if below(5) == 0 {
                pollster::block_on(txn.set_size(id, below(BLOCKS * BLOCK))).unwrap();
            }
            for _ in 0..1 + below(3) {
                let (first, count) = (below(BLOCKS), 1 + below(3));
                let bytes = vec![round + 1; (count * BLOCK) as usize];
                let start = first * BLOCK;
                pollster::block_on(txn.write(id, start..start + count * BLOCK, &bytes)).unwrap();
            }
            tids.push(pollster::block_on(txn.commit()).unwrap().tid);
        }
        let file = file.unwrap();
        let shared = store.as_store();
        let view = |at: Tid| {
            let txn = ReadTxn::new(&shared, at).unwrap();
            let meta = txn.file(file).unwrap().unwrap();
            FileView { txn, meta: Arc::new(meta) }
        };
        let newest = *tids.last().unwrap();
        let (indexed, plain) = (
            History::new(
                newest,
                TailOptions { span: Duration::from_secs(3600), ..TailOptions::default() },
                false,
                false,
            ),
            History::new(newest, TailOptions::default(), false, false),
        );
        indexed.seed(&view(newest).txn);
        assert!(indexed.window().0.0 < tids[0], "the index has all of it");
        // It answers for the window, but has not read it yet.
        let unread = History::new(newest, TailOptions::default(), false, true);
        let all = || vec![span(0, BLOCKS + 4)];
        for (older, at) in tids.iter().enumerate() {
            let found = by_block(&indexed.pins_at(&view(*at), span(0, BLOCKS + 4)).unwrap());
            for (block, rev) in by_block(&plain.pins_at(&view(*at), span(0, BLOCKS + 4)).unwrap()) {
                // A shrink counts as a change of holes too; that is as good.
                let same =
                    |rev: &Tid| view(*rev).txn.blocks(file, block, BlockCount::new(1)).unwrap()[0].data;
                assert!(found[&block] >= rev && found[&block] <= *at, "block {block} @{at}");
                assert_eq!(same(&found[&block]), same(at), "block {block} @{at}");
            }
            for (block, rev) in by_block(&unread.pins_at(&view(*at), span(0, BLOCKS + 4)).unwrap()) {
                let same =
                    |rev: &Tid| view(*rev).txn.blocks(file, block, BlockCount::new(1)).unwrap()[0].data;
                assert!(rev <= *at && same(&rev) == same(at), "block {block} @{at} is pinned @{rev}");
            }
            for head in &tids[older..] {
                let blocks = |spans: Vec<BlockSpan>| -> BTreeSet<_> {
                    spans.iter().flat_map(|s| s.blocks()).collect()
                };
                let by_index = blocks(indexed.changed(&view(*head), *at, all()).unwrap());
                let by_store = blocks(plain.changed(&view(*head), *at, all()).unwrap());
                assert!(by_index.is_superset(&by_store), "@{at} to @{head}: {by_index:?} {by_store:?}");
                let by_unread = blocks(unread.changed(&view(*head), *at, all()).unwrap());
                assert!(by_unread.is_superset(&by_store), "@{at} to @{head}: {by_unread:?} {by_store:?}");
                for block in by_index.difference(&by_store) {
                    let data =
                        |at: &Tid| view(*at).txn.blocks(file, *block, BlockCount::new(1)).unwrap()[0].data;
                    assert_eq!(data(at), data(head), "more than what changed is told for holes only");
                }
            }
        }
    }

    fn span(first: u64, last: u64) -> BlockSpan {
        BlockSpan { first: BlockIndex::new(first), last: BlockIndex::new(last) }
    }

    #[test]
    fn what_is_common_is_what_both_have() {
        let mut state = 7u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for _ in 0..2000 {
            let mut runs = |most: u64| {
                let (mut next, mut runs) = (below(4), Vec::new());
                for _ in 0..below(most) {
                    let count = 1 + below(4);
                    runs.push((next, count));
                    next += count + 1 + below(4);
                }
                runs
            };
            let (spans, changed) = (runs(6), runs(6));
            let rest = below(3).checked_sub(1).map(|_| BlockIndex::new(below(30)));
            let before_rest = |first: u64, count: u64| match rest {
                Some(rest) if first >= rest.raw() => 0,
                Some(rest) => count.min(rest.raw() - first),
                None => count,
            };
            let kept = changed.iter().map(|(first, count)| (*first, before_rest(*first, *count)));
            let kept = kept.filter(|(_, count)| *count > 0);
            let blocks =
                kept.map(|(first, count)| (BlockIndex::new(first), BlockCount::new(count))).collect();
            let slice = FileSlice { blocks, rest, ..FileSlice::unchanged(FileId::from_raw(1)) };
            let spans: Vec<_> = spans.iter().map(|(first, count)| span(*first, first + count - 1)).collect();
            let all = spans.iter().flat_map(|span| span.blocks());
            let expected: BTreeSet<_> = all.filter(|block| slice.contains(*block)).collect();
            let found: BTreeSet<_> = common(&spans, &slice).iter().flat_map(|span| span.blocks()).collect();
            assert_eq!(found, expected, "{spans:?} {slice:?}");
        }
    }
}
