//! Which blocks of head were read: only these may be in the kernel's cache, so only these are pinned at set-up. And
//! which are being read at this moment: these must not be dropped from that cache without care (rule 24).
//!
//! Invariant: a block is added before the READ takes the head that it is answered from (rule 2), and stays added
//! whatever becomes of that READ (rule 3). The READ counts as under way from then until its reply was sent. Memory is
//! bounded: of a file that takes too much, all blocks up to the highest one count as read. Left out on purpose: taking
//! blocks back when they leave the cache (rule 20), which the kernel does not tell.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::{BlockIndex, BlockSize, BlockSpan, FileId};
use roaring::RoaringTreemap;
use tracing_mutex::stdsync::{Mutex, MutexGuard};

use super::Server;
use super::stats::ReadTimer;
use crate::store::ReadBuffer;

/// Most answered READs of a file that are remembered one by one; older ones become one.
const ANSWERED_MAX: usize = 1024;

/// How often the memory of all sets is looked at, in blocks that were added.
const LOOK_EVERY: u64 = 1 << 16;

/// The blocks of one file.
#[derive(Debug)]
struct Tracked {
    block_size: BlockSize,
    blocks: RoaringTreemap,
    /// All blocks up to this one count as read, and `blocks` is empty.
    all_up_to: Option<u64>,
    /// Grows whenever a block is added.
    version: u64,
    /// READs that are not answered yet, by number.
    under_way: HashMap<u64, BlockSpan>,
    /// Number of the last READ.
    last: u64,
    /// READs that were answered lately, by time.
    answered: VecDeque<(Duration, BlockSpan)>,
}

impl Tracked {
    /// Adds blocks; answers how many are new.
    fn add(&mut self, blocks: RangeInclusive<u64>) -> u64 {
        let new = match &mut self.all_up_to {
            Some(last) => {
                let before = *last;
                *last = before.max(*blocks.end());
                *last - before
            }
            None => self.blocks.insert_range(blocks),
        };
        self.version += new;
        new
    }

    /// Forgets which ones, to take no memory.
    fn widen(&mut self) {
        if let Some(last) = self.blocks.max() {
            self.all_up_to = Some(last);
            self.blocks = RoaringTreemap::new();
            self.version += 1;
        }
    }

    fn count(&self) -> u64 {
        self.all_up_to.map_or(self.blocks.len(), |last| last.saturating_add(1))
    }

    /// Remembers an answer, and forgets those of more than [`ANSWER_SETTLES`] ago.
    fn answered(&mut self, now: Duration, span: BlockSpan) {
        while self.answered.front().is_some_and(|(then, _)| *then + ANSWER_SETTLES < now) {
            self.answered.pop_front();
        }
        if self.answered.len() >= ANSWERED_MAX
            && let Some((_, old)) = self.answered.pop_front()
            && let Some((_, next)) = self.answered.front_mut()
        {
            *next = BlockSpan { first: next.first.min(old.first), last: next.last.max(old.last) };
        }
        self.answered.push_back((now, span));
    }
}

/// So long after the answer of a READ the threads that waited for its pages have mapped them, even if they had to wait
/// for a processor on a busy machine. The kernel tells nobody when they have; who waits looks whether they ran.
pub(super) const ANSWER_SETTLES: Duration = Duration::from_secs(1);

/// A READ of blocks of head that is under way for as long as this exists.
#[derive(Debug)]
pub struct UnderWay {
    server: Arc<Server>,
    file: FileId,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(tracked) = self.server.tracking.files().get_mut(&self.file)
            && let Some(span) = tracked.under_way.remove(&self.number)
        {
            // Under the lock: so they are in the order of their times.
            tracked.answered(self.server.options.clock.monotonic(), span);
        }
    }
}

/// Bytes for the reply of a READ: to be dropped when that was sent.
#[derive(Debug)]
pub struct ReadBytes {
    pub(super) buffer: ReadBuffer,
    /// For a file under head.
    pub(super) _under_way: Option<UnderWay>,
    pub(super) _timer: ReadTimer,
}

impl Deref for ReadBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer
    }
}

/// Read blocks by file.
#[derive(Debug)]
pub(super) struct Tracking {
    // Leaf lock: held to look a range up or to add it, and once in many blocks to bound all.
    files: Mutex<HashMap<FileId, Tracked>>,
    bytes_max: u64,
    /// Blocks that were added since their memory was looked at.
    unseen: AtomicU64,
}

impl Tracking {
    /// Nothing yet; the sets may take about `bytes_max` bytes together.
    pub(super) fn new(bytes_max: u64) -> Tracking {
        Tracking { files: Mutex::default(), bytes_max, unseen: AtomicU64::new(0) }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<FileId, Tracked>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a READ and adds its blocks, also those beyond the end of the file. `None`: nothing of the file was read
    /// before, so its block size is not known here; say it by [`Tracking::begin`].
    pub(super) fn add(
        &self,
        server: &Arc<Server>,
        file: FileId,
        offset: u64,
        len: usize,
    ) -> Option<UnderWay> {
        let mut files = self.files();
        let tracked = files.get_mut(&file)?;
        let blocks = blocks_of(tracked.block_size, offset, len);
        let span =
            BlockSpan { first: BlockIndex::new(*blocks.start()), last: BlockIndex::new(*blocks.end()) };
        let new = tracked.add(blocks);
        tracked.last += 1;
        let number = tracked.last;
        tracked.under_way.insert(number, span);
        if new > 0 && self.unseen.fetch_add(new, Ordering::Relaxed) + new >= LOOK_EVERY {
            self.unseen.store(0, Ordering::Relaxed);
            let widened = bound(&mut files, self.bytes_max);
            drop(files);
            for file in widened {
                log::info!("all of file {file} counts as read: which blocks were takes too much memory");
            }
        }
        Some(UnderWay { server: Arc::clone(server), file, number })
    }

    /// Blocks of READs of these bytes that are under way.
    pub(super) fn under_way(&self, file: FileId, ranges: &[Range<u64>]) -> Vec<BlockSpan> {
        let files = self.files();
        let Some(tracked) = files.get(&file) else { return Vec::new() };
        let spans = tracked.under_way.values().copied();
        spans.filter(|span| meets(*span, tracked.block_size, ranges)).collect()
    }

    /// When the last READ of these bytes was answered, if one was not long ago.
    pub(super) fn answered(&self, file: FileId, ranges: &[Range<u64>]) -> Option<Duration> {
        let files = self.files();
        let tracked = files.get(&file)?;
        let meets = |span: BlockSpan| meets(span, tracked.block_size, ranges);
        tracked.answered.iter().rev().find(|(_, span)| meets(*span)).map(|(when, _)| *when)
    }

    /// Knows a file from now on.
    pub(super) fn begin(&self, file: FileId, block_size: BlockSize) {
        let unread = || Tracked {
            block_size,
            blocks: RoaringTreemap::new(),
            all_up_to: None,
            version: 0,
            under_way: HashMap::new(),
            last: 0,
            answered: VecDeque::new(),
        };
        self.files().entry(file).or_insert_with(unread);
    }

    /// Forgets a file that nobody has any more.
    pub(super) fn forget(&self, file: FileId) {
        self.files().remove(&file);
    }

    /// Unit of change of a file of which something was read.
    pub(super) fn block_size(&self, file: FileId) -> Option<BlockSize> {
        self.files().get(&file).map(|tracked| tracked.block_size)
    }

    /// Changes whenever a block of the file is added.
    pub(super) fn version(&self, file: FileId) -> u64 {
        self.files().get(&file).map_or(0, |tracked| tracked.version)
    }

    /// The read blocks of a file, as runs in order.
    pub(super) fn spans(&self, file: FileId) -> Vec<BlockSpan> {
        let blocks = match self.files().get(&file) {
            Some(Tracked { all_up_to: Some(last), .. }) => {
                return vec![BlockSpan { first: BlockIndex::new(0), last: BlockIndex::new(*last) }];
            }
            Some(tracked) => tracked.blocks.clone(),
            None => return Vec::new(),
        };
        let mut spans: Vec<BlockSpan> = Vec::new();
        for block in blocks {
            let block = BlockIndex::new(block);
            match spans.last_mut() {
                Some(span) if span.last.next() == Some(block) => span.last = block,
                _ => spans.push(BlockSpan { first: block, last: block }),
            }
        }
        spans
    }

    /// The first `max` read blocks of a file that bytes of `ranges` belong to, which are in order and apart.
    pub(super) fn within(&self, file: FileId, ranges: &[Range<u64>], max: usize) -> Vec<BlockIndex> {
        let files = self.files();
        let Some(tracked) = files.get(&file) else { return Vec::new() };
        let unit = tracked.block_size.bytes();
        let mut found = Vec::new();
        let mut read = tracked.blocks.iter();
        let mut next = read.next();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let (first, last) = (range.start / unit, (range.end - 1) / unit);
            if let Some(known) = tracked.all_up_to {
                // Two ranges may be of one block.
                let first = found.last().map_or(first, |before: &BlockIndex| first.max(before.raw() + 1));
                found.extend((first..=last.min(known)).take(max - found.len()).map(BlockIndex::new));
                continue;
            }
            if next.is_some_and(|block| block < first) {
                read.advance_to(first);
                next = read.next();
            }
            while let Some(block) = next.filter(|block| *block <= last && found.len() < max) {
                found.push(BlockIndex::new(block));
                next = read.next();
            }
        }
        found
    }

    /// How many blocks are tracked.
    pub(super) fn blocks(&self) -> u64 {
        self.files().values().map(Tracked::count).fold(0, u64::saturating_add)
    }
}

/// Lets the largest sets go until the others take at most `bytes_max`; answers whose.
fn bound(files: &mut HashMap<FileId, Tracked>, bytes_max: u64) -> Vec<FileId> {
    let size = |tracked: &Tracked| tracked.blocks.serialized_size() as u64;
    let mut taken: u64 = files.values().map(size).sum();
    let mut widened = Vec::new();
    while taken > bytes_max {
        let Some((file, largest)) = files.iter_mut().max_by_key(|(_, tracked)| size(tracked)) else { break };
        if largest.blocks.is_empty() {
            break;
        }
        taken -= size(largest);
        largest.widen();
        widened.push(*file);
    }
    widened
}

/// Whether blocks have bytes of `ranges`, which are in order and apart.
fn meets(span: BlockSpan, block_size: BlockSize, ranges: &[Range<u64>]) -> bool {
    let unit = block_size.bytes();
    let (start, end) =
        (span.first.raw().saturating_mul(unit), span.last.raw().saturating_add(1).saturating_mul(unit));
    let next = ranges.partition_point(|range| range.end <= start);
    ranges.get(next).is_some_and(|range| range.start < end)
}

/// The blocks that `[offset, offset + len)` touches; at least one.
pub(super) fn blocks_of(block_size: BlockSize, offset: u64, len: usize) -> RangeInclusive<u64> {
    let last = offset.saturating_add((len as u64).saturating_sub(1));
    block_size.block_of(offset).raw()..=block_size.block_of(last).raw()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tracked() -> Tracked {
        let tracking = Tracking::new(0);
        tracking.begin(FileId::from_raw(1), BlockSize::MIN);
        tracking.files().remove(&FileId::from_raw(1)).unwrap()
    }

    #[test]
    fn of_what_takes_too_much_memory_all_up_to_the_highest_block_counts_as_read() {
        let mut files = HashMap::new();
        for (file, step) in [(1, 2), (2, 1000), (3, 1)] {
            let mut one = tracked();
            let new: u64 = (0..50_000u64).map(|index| one.add(index * step..=index * step)).sum();
            assert_eq!((new, one.version, one.count()), (50_000, 50_000, 50_000));
            files.insert(FileId::from_raw(file), one);
        }
        let size = |file, files: &HashMap<FileId, Tracked>| {
            files[&FileId::from_raw(file)].blocks.serialized_size() as u64
        };
        let rest = size(1, &files) + size(3, &files);
        assert!(size(2, &files) > size(1, &files), "scattered blocks take most");
        assert_eq!(bound(&mut files, rest), [FileId::from_raw(2)]);
        let tracking = Tracking::new(rest);
        *tracking.files() = files;
        let last = |file: u64| tracking.spans(FileId::from_raw(file)).last().map(|span| span.last.raw());
        assert_eq!(tracking.spans(FileId::from_raw(2)).len(), 1);
        assert_eq!((last(1), last(2), last(3)), (Some(99_998), Some(49_999_000), Some(49_999)));
        assert_eq!(tracking.spans(FileId::from_raw(1)).len(), 50_000, "the others stay as they are");
        assert_eq!(tracking.version(FileId::from_raw(2)), 50_001, "a set-up that looked before looks again");
        // Later READs widen it.
        let mut files = tracking.files();
        let wide = files.get_mut(&FileId::from_raw(2)).unwrap();
        assert_eq!((wide.add(7..=7), wide.add(50_000_000..=50_000_001)), (0, 1_001));
        assert_eq!(wide.count(), 50_000_002);
        // No bound can be met: nothing to forget is no reason to go on for ever.
        bound(&mut files, 0);
        assert!(files.values().all(|tracked| tracked.blocks.is_empty()));
    }

    proptest! {
        #[test]
        fn read_blocks_within_changed_bytes_are_those_of_both(
            read in prop::collection::btree_set(0..60u64, 0..30),
            cuts in prop::collection::btree_set(0..64u64 << 10, 0..12),
            (max, far, is_wide) in (0..40usize, any::<bool>(), any::<bool>()),
        ) {
            let file = FileId::from_raw(1);
            let tracking = Tracking::new(0);
            tracking.begin(file, BlockSize::MIN);
            let unit = BlockSize::MIN.bytes();
            // Of two cuts the bytes between; the last range may go on for ever.
            let cuts: Vec<u64> = cuts.into_iter().map(|cut| (cut * unit) >> 10).collect();
            let mut ranges: Vec<Range<u64>> = cuts.chunks_exact(2).map(|cut| cut[0]..cut[1]).collect();
            if far && let Some(last) = ranges.last_mut() {
                last.end = u64::MAX;
            }
            let mut files = tracking.files();
            let tracked = files.get_mut(&file).unwrap();
            let added: u64 = read.iter().map(|block| tracked.add(*block..=*block)).sum();
            prop_assert_eq!(added, read.len() as u64);
            if is_wide {
                tracked.widen();
            }
            drop(files);
            let is_read = |block: &u64| read.contains(block) || (is_wide && read.last().is_some_and(|last| block <= last));
            let meets = |block: &u64| ranges.iter().any(|range| range.start < (block + 1) * unit && block * unit < range.end);
            let mut expected: Vec<u64> = (0..60).filter(is_read).filter(meets).collect();
            expected.truncate(max);
            let found = tracking.within(file, &ranges, max);
            let found: Vec<u64> = found.iter().map(|block| block.raw()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
