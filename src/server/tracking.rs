//! Which blocks of head were read: only these may be in the kernel's cache, so only these are pinned at set-up.
//!
//! Invariant: a block is added before the READ takes the head that it is answered from (rule 2), and stays added
//! whatever becomes of that READ (rule 3). Left out on purpose: taking blocks back when they leave the cache, which
//! the kernel does not tell.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use revfs_protocol::{BlockIndex, BlockSize, BlockSpan, FileId};
use roaring::RoaringTreemap;

/// The blocks of one file.
#[derive(Debug)]
struct Tracked {
    block_size: BlockSize,
    blocks: RoaringTreemap,
    /// Grows whenever a block is added.
    version: u64,
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

    /// Adds the blocks of a READ, also those beyond the end of the file. `false`: nothing of the file was read
    /// before, so its block size is not known here; say it by [`Tracking::begin`].
    pub(super) fn add(&self, file: FileId, offset: u64, len: usize) -> bool {
        let mut files = self.files();
        let Some(tracked) = files.get_mut(&file) else { return false };
        let blocks = blocks_of(tracked.block_size, offset, len);
        tracked.version += tracked.blocks.insert_range(blocks);
        true
    }

    /// Knows a file from now on.
    pub(super) fn begin(&self, file: FileId, block_size: BlockSize) {
        let unread = || Tracked { block_size, blocks: RoaringTreemap::new(), version: 0 };
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
