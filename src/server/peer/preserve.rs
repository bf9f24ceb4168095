//! Old blocks for the kernel's cache: a block that is cached in head and changes is found cached under the revision
//! that it had, so that who is told to map it there finds it in memory.
//!
//! Invariant: only what cannot change is stored, versions of files; a version that the kernel does not know yet gets its
//! blocks when it is opened. What waits for that is bounded, and is a list of numbers: the bytes are read from the store.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use revfs_protocol::{BlockIndex, BlockSize, BlockSpan, FileId, Tid};
use tracing_mutex::stdsync::Mutex;

use crate::server::{FileView, KernelCache, Server};
use crate::store::ReadError;

/// Most blocks of one commit whose old bytes are kept.
const PRESERVED_PER_HEAD_MAX: usize = 1024;
/// Most versions of files that have blocks waiting for an open.
const VERSIONS_MAX: usize = 1024;
/// Most bytes of blocks that an open waits for.
const RESTORED_BYTES_MAX: u64 = 256 << 20;

type Version = (FileId, Tid);

#[derive(Debug, Default)]
struct Waiting {
    blocks: HashMap<Version, BTreeSet<BlockIndex>>,
    /// In the order in which they came.
    order: VecDeque<Version>,
}

/// Blocks that were cached in head before they changed, by the version in which they are as they were.
#[derive(Debug, Default)]
pub(super) struct Preserved {
    // Leaf lock.
    waiting: Mutex<Waiting>,
}

impl Preserved {
    fn add(&self, version: Version, block: BlockIndex, block_size: BlockSize) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = waiting.blocks.entry(version).or_default();
        let is_new = blocks.is_empty();
        if (blocks.len() as u64 + 1).saturating_mul(block_size.bytes()) <= RESTORED_BYTES_MAX {
            blocks.insert(block);
        }
        if is_new {
            waiting.order.push_back(version);
        }
        if waiting.order.len() > VERSIONS_MAX
            && let Some(oldest) = waiting.order.pop_front()
        {
            waiting.blocks.remove(&oldest);
        }
    }

    fn take(&self, version: Version) -> BTreeSet<BlockIndex> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(blocks) = waiting.blocks.remove(&version) else { return BTreeSet::new() };
        waiting.order.retain(|other| *other != version);
        blocks
    }
}

impl Server {
    /// Before blocks of head are dropped that were read: their bytes as of `shown` go where they are as they were. On the
    /// notifier thread.
    pub(in crate::server) fn preserve(
        self: &Arc<Self>,
        kernel: &dyn KernelCache,
        changed: &[(FileId, Vec<Range<u64>>)],
    ) {
        if self.peer.is_none() {
            return;
        }
        let mut left = PRESERVED_PER_HEAD_MAX;
        for (file, ranges) in changed {
            let preserved = self.rev_file(*file, self.shown()).and_then(|old| {
                for block in self.tracking.within(*file, ranges, left) {
                    left -= 1;
                    self.preserve_block(kernel, &old, block)?;
                }
                Ok(())
            });
            match preserved {
                // It costs only speed.
                Ok(()) | Err(ReadError::NoSuchFile { .. }) => {}
                Err(error) => log::debug!("old blocks of file {file} are not kept in memory: {error}"),
            }
        }
    }

    fn preserve_block(
        self: &Arc<Self>,
        kernel: &dyn KernelCache,
        old: &FileView,
        block: BlockIndex,
    ) -> Result<(), ReadError> {
        let Some(peer) = &self.peer else { return Ok(()) };
        let unit = old.meta.block_size.bytes();
        if block.raw().saturating_mul(unit) >= old.meta.size {
            return Ok(());
        }
        for (_, rev) in self.history.pins_at(old, BlockSpan::one(block))? {
            // As the tree names it: the version that `@<rev>` shows.
            let version = self.rev_file(old.meta.file, rev)?;
            let made = version.meta.rev;
            if kernel.knows_version(old.meta.file, made) {
                let (offset, bytes) = self.load_block(&version, block)?;
                kernel.store_version(old.meta.file, made, offset, &bytes);
            } else {
                peer.preserved.add((old.meta.file, made), block, old.meta.block_size);
            }
        }
        Ok(())
    }

    /// Stores what was kept of a version that is opened, then calls `then`, maybe on another thread.
    pub fn restore_version(self: &Arc<Self>, file: FileId, rev: Tid, then: impl FnOnce() + Send + 'static) {
        let kept = self.peer.as_ref().map(|peer| peer.preserved.take((file, rev))).unwrap_or_default();
        if kept.is_empty() {
            return then();
        }
        let server = Arc::clone(self);
        drop(self.options.runtime.spawn_blocking(move || {
            if let Err(error) = server.restore(file, rev, &kept) {
                log::debug!("old blocks of file {file} @{rev} are not put into memory: {error}");
            }
            then();
        }));
    }

    fn restore(&self, file: FileId, rev: Tid, blocks: &BTreeSet<BlockIndex>) -> Result<(), ReadError> {
        let Some(kernel) = self.kernel_cache() else { return Ok(()) };
        let version = self.rev_file(file, rev)?;
        for block in blocks {
            let (offset, bytes) = self.load_block(&version, *block)?;
            kernel.store_version(file, rev, offset, &bytes);
        }
        Ok(())
    }
}
