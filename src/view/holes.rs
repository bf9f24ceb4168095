//! Where a file has data and where it has holes, for SEEK_DATA and SEEK_HOLE.
//!
//! Invariant: a hole is reported only where all bytes are zero; bounded work a call. When a call has looked at its
//! share it answers "data here" or "no hole before the end", which is always allowed.

use revfs_protocol::BlockCount;

use crate::store::{BlockData, FileMeta, ReadError, ReadTxn};

/// Blocks that are asked for at first; more if they turn out to be few runs.
const WINDOW_BLOCKS_MIN: u64 = 4096;
/// Runs of blocks that one call looks at, about.
const RUNS_MAX: usize = 1 << 16;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that may be other than zero.
    Data,
    /// The next byte of a hole; the end of the file counts as one.
    Hole,
}

/// First offset at or after `offset` where there is what is looked for; `None` if there is none before the end, or
/// if `offset` is not before the end.
///
/// # Errors
/// See [`ReadError`].
pub fn seek(txn: &ReadTxn, meta: &FileMeta, offset: u64, what: Seek) -> Result<Option<u64>, ReadError> {
    if offset >= meta.size {
        return Ok(None);
    }
    let end = meta.block_size.blocks_for(meta.size).raw();
    let mut next = meta.block_size.block_of(offset);
    let mut window = WINDOW_BLOCKS_MIN;
    let mut runs_left = RUNS_MAX;
    while next.raw() < end {
        let count = window.min(end - next.raw());
        let runs = txn.blocks(meta.file, next, BlockCount::new(count))?;
        let wanted = |data| (data == BlockData::Hole) == (what == Seek::Hole);
        if let Some(run) = runs.iter().find(|run| wanted(run.data)) {
            // A stored block is data up to its end, also where its bytes are zero.
            return Ok(meta.block_size.start_of(run.first).map(|start| start.max(offset)));
        }
        if runs.len() < 64 {
            window = window.saturating_mul(8);
        }
        next = revfs_protocol::BlockIndex::new(next.raw() + count);
        runs_left = runs_left.saturating_sub(runs.len());
        if runs_left == 0 {
            break;
        }
    }
    let at = meta.block_size.start_of(next).map_or(meta.size, |start| start.max(offset));
    Ok(match what {
        Seek::Hole => Some(meta.size),
        Seek::Data if next.raw() < end => Some(at),
        Seek::Data => None,
    })
}
