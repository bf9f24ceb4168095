//! Which blocks of head were read: only these may be in the kernel's cache, so only these are pinned at set-up. And
//! which are being read at this moment: these must not be dropped from that cache without care (rule 24).
//!
//! Invariant: a block is added before the READ takes the head that it is answered from (rule 2), and stays added
//! whatever becomes of that READ (rule 3). The READ counts as under way from then until its reply was sent. Left out
//! on purpose: taking blocks back when they leave the cache, which the kernel does not tell.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, Range, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use revfs_protocol::{BlockIndex, BlockSize, BlockSpan, FileId};
use roaring::RoaringTreemap;

use super::Server;
use super::stats::ReadTimer;
use crate::store::ReadBuffer;

/// Most answered READs of a file that are remembered one by one; older ones become one.
const ANSWERED_MAX: usize = 1024;

/// The blocks of one file.
#[derive(Debug)]
struct Tracked {
    block_size: BlockSize,
    blocks: RoaringTreemap,
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

/// So long after the answer of a READ the threads that waited for its pages have mapped them. The kernel tells nobody
/// when they have; it takes microseconds, unless a thread finds no processor.
pub(super) const ANSWER_SETTLES: Duration = Duration::from_millis(20);

/// A READ of blocks of head that is under way for as long as this exists.
#[derive(Debug)]
pub struct UnderWay {
    server: Arc<Server>,
    file: FileId,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.server.options.clock.monotonic();
        if let Some(tracked) = self.server.tracking.files().get_mut(&self.file)
            && let Some(span) = tracked.under_way.remove(&self.number)
        {
            tracked.answered(now, span);
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

/// READs of some bytes of a file, now and a moment ago.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Blocks whose READs are under way.
    pub(super) under_way: Vec<BlockSpan>,
    /// When the last one was answered, if one was not long ago.
    pub(super) answered: Option<Duration>,
}

/// Read blocks by file.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    // Leaf lock: held to look a range up or to add it.
    files: Mutex<HashMap<FileId, Tracked>>,
}

impl Tracking {
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
        tracked.version += tracked.blocks.insert_range(blocks);
        tracked.last += 1;
        let number = tracked.last;
        tracked.under_way.insert(number, span);
        Some(UnderWay { server: Arc::clone(server), file, number })
    }

    /// What was being read of these bytes until a moment ago.
    pub(super) fn touched(&self, file: FileId, ranges: &[Range<u64>]) -> Touched {
        let files = self.files();
        let Some(tracked) = files.get(&file) else { return Touched::default() };
        let unit = tracked.block_size.bytes();
        let meets = |span: &BlockSpan| {
            let (start, end) = (
                span.first.raw().saturating_mul(unit),
                span.last.raw().saturating_add(1).saturating_mul(unit),
            );
            // They are in order and apart.
            let next = ranges.partition_point(|range| range.end <= start);
            ranges.get(next).is_some_and(|range| range.start < end)
        };
        Touched {
            under_way: tracked.under_way.values().copied().filter(meets).collect(),
            answered: tracked.answered.iter().filter(|(_, span)| meets(span)).map(|(when, _)| *when).max(),
        }
    }

    /// Knows a file from now on.
    pub(super) fn begin(&self, file: FileId, block_size: BlockSize) {
        let unread = || Tracked {
            block_size,
            blocks: RoaringTreemap::new(),
            version: 0,
            under_way: HashMap::new(),
            last: 0,
            answered: VecDeque::new(),
        };
        self.files().entry(file).or_insert_with(unread);
    }

    /// Changes whenever a block of the file is added.
    pub(super) fn version(&self, file: FileId) -> u64 {
        self.files().get(&file).map_or(0, |tracked| tracked.version)
    }

    /// The read blocks of a file, as runs in order.
    pub(super) fn spans(&self, file: FileId) -> Vec<BlockSpan> {
        let blocks = match self.files().get(&file) {
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

    /// How many blocks are tracked.
    pub(super) fn blocks(&self) -> u64 {
        self.files().values().map(|tracked| tracked.blocks.len()).sum()
    }
}

/// The blocks that `[offset, offset + len)` touches; at least one.
pub(super) fn blocks_of(block_size: BlockSize, offset: u64, len: usize) -> RangeInclusive<u64> {
    let last = offset.saturating_add((len as u64).saturating_sub(1));
    block_size.block_of(offset).raw()..=block_size.block_of(last).raw()
}
