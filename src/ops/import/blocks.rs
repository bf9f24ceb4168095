//! Blocks of two states of a file, a few MiB at a time: those that are no holes in one of them.
//!
//! Invariant: memory is bounded whatever the sizes, and what is a hole in both costs no read.

use std::collections::VecDeque;
use std::sync::Arc;

use revfs_protocol::{BlockCount, BlockIndex};

use crate::ops::runs::RunWindows;
use crate::store::{BlockData, BlockRun, BufferPool, FileMeta, ReadBuffer, ReadError, ReadTxn};
use crate::view;

/// Bytes of a file that are read at once, if its blocks are not larger.
pub(super) const SPAN_BYTES: usize = 4 << 20;

/// Runs of blocks as (first, end).
pub(super) type Runs = Vec<(u64, u64)>;

/// All blocks that a file may have.
pub(super) fn all() -> Runs {
    vec![(0, u64::MAX)]
}

/// Walks through some blocks of two states of a file.
pub(super) struct Pair<'a> {
    is: (&'a ReadTxn, &'a FileMeta),
    /// `None`: all holes.
    was: Option<(&'a ReadTxn, &'a FileMeta)>,
    runs: VecDeque<(u64, u64)>,
    windows: Option<RunWindows<'a>>,
    ready: VecDeque<(u64, u64)>,
}

/// Blocks that follow each other, with their bytes in both states.
pub(super) struct Span {
    first: u64,
    is: ReadBuffer,
    was: Option<ReadBuffer>,
}

impl<'a> Pair<'a> {
    /// The blocks `runs` of the state `is`, up to its end; compared with what they are in `was`.
    pub(super) fn new(
        is: (&'a ReadTxn, &'a FileMeta),
        was: Option<(&'a ReadTxn, &'a FileMeta)>,
        runs: Runs,
    ) -> Pair<'a> {
        Pair { is, was, runs: runs.into(), windows: None, ready: VecDeque::new() }
    }

    /// The next blocks.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub(super) async fn next(&mut self, pool: &Arc<BufferPool>) -> Result<Option<Span>, ReadError> {
        let Some((first, end)) = self.next_run()? else { return Ok(None) };
        let is = read(self.is, (first, end), pool).await?;
        let was = match self.was {
            Some(was) => Some(read(was, (first, end), pool).await?),
            None => None,
        };
        Ok(Some(Span { first, is, was }))
    }

    fn next_run(&mut self) -> Result<Option<(u64, u64)>, ReadError> {
        let block_size = self.is.1.block_size;
        let most = (SPAN_BYTES as u64 / block_size.bytes()).max(1);
        loop {
            if let Some((first, end)) = self.ready.pop_front() {
                let now = end.min(first.saturating_add(most));
                if now < end {
                    self.ready.push_front((now, end));
                }
                return Ok(Some((first, now)));
            }
            match self.windows.as_mut().and_then(Iterator::next) {
                Some(runs) => self.ready = self.stored(&runs?)?.into(),
                None => match self.runs.pop_front() {
                    Some((first, end)) => {
                        let end = end.min(block_size.blocks_for(self.is.1.size).raw());
                        self.windows = Some(RunWindows::new(self.is.0, self.is.1.file, first, end));
                    }
                    None => return Ok(None),
                },
            }
        }
    }

    /// Where blocks of these runs are stored in either state.
    fn stored(&self, runs: &[BlockRun]) -> Result<Runs, ReadError> {
        let mut found = stored_in(runs);
        if let (Some((txn, meta)), Some(first), Some(last)) = (self.was, runs.first(), runs.last()) {
            let end = last.first.raw().saturating_add(last.count);
            let end = end.min(meta.block_size.blocks_for(meta.size).raw());
            if let Some(count) = end.checked_sub(first.first.raw()).filter(|count| *count > 0) {
                let (first, count) = (BlockIndex::new(first.first.raw()), BlockCount::new(count));
                found.extend(stored_in(&txn.blocks(meta.file, first, count)?));
            }
        }
        found.sort_unstable();
        found.dedup_by(|next, before| {
            let joins = next.0 <= before.1;
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        Ok(found)
    }
}

fn stored_in(runs: &[BlockRun]) -> Runs {
    let stored = runs.iter().filter(|run| run.data != BlockData::Hole);
    stored.map(|run| (run.first.raw(), run.first.raw().saturating_add(run.count))).collect()
}

async fn read(
    (txn, meta): (&ReadTxn, &FileMeta),
    (first, end): (u64, u64),
    pool: &Arc<BufferPool>,
) -> Result<ReadBuffer, ReadError> {
    let size = meta.block_size.bytes();
    let len = usize::try_from((end - first).saturating_mul(size)).unwrap_or(usize::MAX);
    view::read(txn, meta, first.saturating_mul(size), len, pool).wait().await
}

impl Span {
    /// Its bytes in the state that is.
    pub(super) fn bytes(&self) -> u64 {
        self.is.len() as u64
    }

    /// Blocks of `size` bytes that are not what they were, and their bytes.
    pub(super) fn differing(&self, size: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let step = usize::try_from(size).unwrap_or(usize::MAX).max(1);
        let blocks = self.is.chunks(step).enumerate();
        blocks.filter_map(move |(index, bytes)| {
            let at = index.saturating_mul(step);
            let was = self.was.as_deref().and_then(|was| was.get(at..)).unwrap_or_default();
            let was = was.get(..bytes.len()).unwrap_or(was);
            (!is_same(bytes, was)).then_some((self.first + index as u64, bytes))
        })
    }
}

/// Whether bytes are the same, if what the shorter one lacks is zero.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let both = one.len().min(other.len());
    let (same, rest) = one.split_at(both);
    same == &other[..both] && rest.iter().chain(&other[both..]).all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_is_zero() {
        assert!(is_same(b"ab\0", b"ab") && is_same(b"", b"\0\0") && is_same(b"", b""));
        assert!(!is_same(b"ab\x01", b"ab") && !is_same(b"ab", b"ac") && !is_same(b"", b"\0x"));
    }
}
