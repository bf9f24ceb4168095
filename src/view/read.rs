//! Reads of byte ranges: from where the blocks of a file are to the pieces that fill a buffer.
//!
//! Invariant: the pieces of a plan stand in order, without gap or overlap, and cover exactly the bytes asked
//! for that are within the file. Left out on purpose: I/O. The store does it, in one go for all pieces.

use std::ops::Range;
use std::sync::Arc;

use revfs_protocol::{BlockCount, BlockSize};

use crate::store::{
    BlockData, BlockRun, BufferPool, Codec, FileMeta, Load, PackNo, Piece, PieceSource, ReadBuffer,
    ReadError, ReadTxn,
};

/// Most bytes that [`read_range`] holds at once.
const RANGE_STEP_BYTES: u64 = 4 << 20;

/// Reads bytes `[offset, offset + len)` of the file that `meta` describes, clipped to its size.
///
/// `meta` is the file as of `txn`. The buffer is as long as what was read: short or empty at the end.
pub fn read(
    txn: &ReadTxn,
    meta: &FileMeta,
    offset: u64,
    len: usize,
    pool: &Arc<BufferPool>,
) -> Load<Result<ReadBuffer, ReadError>> {
    match planned(txn, meta, offset, len) {
        Ok(pieces) => {
            let len = pieces.last().map_or(0, |last| last.at + last.len);
            txn.store().read(pieces, pool.take(len))
        }
        Err(error) => Load::Ready(Err(error)),
    }
}

/// Hands bytes `range` of a file, clipped to its size, to `sink`, a few MiB at a time and in order.
///
/// # Errors
/// What the store fails with, as `E`; what `sink` fails with ends it too.
pub async fn read_range<E: From<ReadError>>(
    txn: &ReadTxn,
    meta: &FileMeta,
    range: Range<u64>,
    pool: &Arc<BufferPool>,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let end = range.end.min(meta.size);
    let mut offset = range.start;
    while offset < end {
        // Steps end at multiples of the step, so that they cut no block but the first and the last.
        let step = RANGE_STEP_BYTES - offset % RANGE_STEP_BYTES;
        let len = usize::try_from(step.min(end - offset)).unwrap_or(usize::MAX);
        let bytes = read(txn, meta, offset, len, pool).wait().await?;
        if bytes.is_empty() {
            break;
        }
        sink(&bytes)?;
        offset += bytes.len() as u64;
    }
    Ok(())
}

fn planned(txn: &ReadTxn, meta: &FileMeta, offset: u64, len: usize) -> Result<Vec<Piece>, ReadError> {
    let range = clip(meta.size, offset, len);
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let first = meta.block_size.block_of(range.start);
    let last = meta.block_size.block_of(range.end - 1);
    let count = BlockCount::new(last.raw() - first.raw() + 1);
    let runs = txn.blocks(meta.file, first, count)?;
    plan(&runs, meta.block_size, range)
}

/// The bytes of `[offset, offset + len)` that a file of `size` bytes has.
fn clip(size: u64, offset: u64, len: usize) -> Range<u64> {
    let end = offset.saturating_add(len as u64).min(size);
    offset.min(end)..end
}

/// How to read bytes `range` of a file whose blocks are in `runs`, which cover them in order.
///
/// Bytes that continue each other both in a pack and in the file become one piece.
///
/// # Errors
/// [`ReadError::Damaged`] if the runs do not cover the range, or make no sense.
pub fn plan(runs: &[BlockRun], block_size: BlockSize, range: Range<u64>) -> Result<Vec<Piece>, ReadError> {
    let mut planner = Planner { range: range.clone(), next: range.start, pieces: Vec::new() };
    for run in runs {
        if planner.next >= range.end {
            break;
        }
        let damaged =
            |what| Err(ReadError::Damaged { object: "index".to_owned(), offset: run.first.raw(), what });
        let Some(start) = block_size.start_of(run.first) else {
            return damaged("a block beyond the largest offset");
        };
        let end = start.saturating_add(run.count.saturating_mul(block_size.bytes()));
        if end <= planner.next {
            continue;
        }
        if start > planner.next {
            return damaged("a gap in the table of blocks");
        }
        match run.data {
            BlockData::Hole => planner.zeros(end),
            BlockData::Stored { pack, offset, len, codec: Codec::Raw } => {
                let used = if run.count > 1 { end } else { end.min(start.saturating_add(u64::from(len))) };
                planner.raw(pack, offset, start, used);
                planner.zeros(end);
            }
            BlockData::Stored { codec: Codec::Zstd, .. } if run.count > 1 => {
                return damaged("a run of several compressed blocks");
            }
            BlockData::Stored { pack, offset, len, codec: Codec::Zstd } => {
                let block = narrow(block_size.bytes());
                let skip = narrow(planner.next - start);
                planner.push(end, PieceSource::Zstd { pack, offset, stored: len, block, skip });
            }
            BlockData::Object { .. } if run.count > 1 => return damaged("a run of several objects"),
            BlockData::Object { oid, at } => {
                let (block, skip) = (narrow(block_size.bytes()), narrow(planner.next - start));
                planner.push(end, PieceSource::Object { oid, at, skip, block });
            }
        }
    }
    if planner.next < range.end {
        let offset = block_size.block_of(planner.next).raw();
        let what = "the table of blocks ends early";
        return Err(ReadError::Damaged { object: "index".to_owned(), offset, what });
    }
    Ok(planner.pieces)
}

/// A number that is at most the largest block size.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Pieces up to the file offset `next`.
struct Planner {
    range: Range<u64>,
    next: u64,
    pieces: Vec<Piece>,
}

impl Planner {
    /// File bytes from `next` to `end` are zero.
    fn zeros(&mut self, end: u64) {
        self.push(end, PieceSource::Zero);
    }

    /// File bytes `start..end` are in a pack from `offset` on.
    fn raw(&mut self, pack: PackNo, offset: u64, start: u64, end: u64) {
        let offset = offset.saturating_add(self.next - start);
        self.push(end, PieceSource::Raw { pack, offset });
    }

    /// File bytes from `next` to `end` come from `source`; nothing if there are none.
    fn push(&mut self, end: u64, source: PieceSource) {
        let end = end.min(self.range.end);
        if end <= self.next {
            return;
        }
        // A READ has at most a few MiB, and `read_range` a few more: both fit.
        let at = usize::try_from(self.next - self.range.start).unwrap_or(usize::MAX);
        let len = usize::try_from(end - self.next).unwrap_or(usize::MAX);
        self.next = end;
        match self.pieces.last_mut() {
            Some(last) if continues(last, source) => last.len += len,
            _ => self.pieces.push(Piece { at, len, source }),
        }
    }
}

/// Whether bytes from `source` follow those of `last` where they are stored.
fn continues(last: &Piece, source: PieceSource) -> bool {
    match (last.source, source) {
        (PieceSource::Zero, PieceSource::Zero) => true,
        (PieceSource::Raw { pack, offset }, PieceSource::Raw { pack: next_pack, offset: next }) => {
            pack == next_pack && offset.checked_add(last.len as u64) == Some(next)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::zodb::Oid;
    use proptest::prelude::*;
    use revfs_protocol::{BlockIndex, Tid};

    const BLOCK: u64 = 4096;

    /// Where one byte comes from: nowhere, a byte of a pack, of a frame, or of an object.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Origin {
        Zero,
        Raw(u32, u64),
        Zstd(u32, u64, u64),
        Object(u64, Tid, u64),
    }

    /// The naive planner: byte by byte.
    fn origin(runs: &[BlockRun], byte: u64) -> Origin {
        let block = byte / BLOCK;
        let run = runs.iter().find(|run| (run.first.raw()..run.first.raw() + run.count).contains(&block));
        match run.expect("runs cover the file").data {
            BlockData::Hole => Origin::Zero,
            BlockData::Stored { pack, offset, len, codec: Codec::Raw } => {
                let first = run.map_or(0, |run| run.first.raw());
                if byte % BLOCK >= u64::from(len) {
                    return Origin::Zero;
                }
                Origin::Raw(pack.0, offset + (block - first) * BLOCK + byte % BLOCK)
            }
            BlockData::Stored { pack, offset, .. } => Origin::Zstd(pack.0, offset, byte % BLOCK),
            BlockData::Object { oid, at } => Origin::Object(oid.raw(), at, byte % BLOCK),
        }
    }

    fn origins(pieces: &[Piece]) -> Vec<Origin> {
        let mut all = Vec::new();
        for piece in pieces {
            assert_eq!(piece.at, all.len(), "in order, no gap, no overlap");
            assert!(piece.len > 0);
            all.extend((0..piece.len as u64).map(|i| match piece.source {
                PieceSource::Zero => Origin::Zero,
                PieceSource::Raw { pack, offset } => Origin::Raw(pack.0, offset + i),
                PieceSource::Zstd { pack, offset, skip, block, .. } => {
                    assert_eq!(u64::from(block), BLOCK);
                    Origin::Zstd(pack.0, offset, u64::from(skip) + i)
                }
                PieceSource::Object { oid, at, skip, block } => {
                    assert_eq!(u64::from(block), BLOCK);
                    Origin::Object(oid.raw(), at, u64::from(skip) + i)
                }
            }));
        }
        all
    }

    fn any_runs() -> impl Strategy<Value = Vec<BlockRun>> {
        // Few packs and offsets on a grid, so that runs often continue each other.
        let run = (0..5u8, 1..4u64, 0..2u32, 0..4u64, prop_oneof![Just(4096u32), 1..4096u32]);
        prop::collection::vec(run, 1..8).prop_map(|parts| {
            let mut first = 0;
            let mut runs = Vec::new();
            for (kind, count, pack, grid, len) in parts {
                let (pack, offset) = (PackNo(pack), grid * BLOCK);
                let (count, data) = match kind {
                    0 => (count, BlockData::Hole),
                    1 => (count, BlockData::Stored { pack, offset, len: 4096, codec: Codec::Raw }),
                    2 => (1, BlockData::Stored { pack, offset, len, codec: Codec::Raw }),
                    3 => (1, BlockData::Stored { pack, offset, len, codec: Codec::Zstd }),
                    _ => (1, BlockData::Object { oid: Oid::from_raw(grid), at: Tid::from_raw(7) }),
                };
                runs.push(BlockRun { first: BlockIndex::new(first), count, rev: Tid::ZERO, data });
                first += count;
            }
            runs
        })
    }

    proptest! {
        #[test]
        fn a_plan_takes_each_byte_from_where_the_naive_planner_does(
            runs in any_runs(), a: u64, len in 0..9 * BLOCK, cut in 0..BLOCK,
        ) {
            let blocks: u64 = runs.iter().map(|run| run.count).sum();
            let range = clip(blocks * BLOCK - cut, a % (blocks * BLOCK), usize::try_from(len).unwrap());
            let pieces = plan(&runs, BlockSize::MIN, range.clone()).unwrap();
            let naive: Vec<Origin> = range.map(|byte| origin(&runs, byte)).collect();
            prop_assert_eq!(origins(&pieces), naive);
            for pair in pieces.windows(2) {
                prop_assert!(!continues(&pair[0], pair[1].source), "merged: {:?}", pair);
            }
        }

        #[test]
        fn a_range_is_clipped_to_the_size(size: u64, offset: u64, len: usize) {
            let range = clip(size, offset, len);
            prop_assert!(range.start <= range.end && range.end <= size.max(range.start));
            prop_assert!(range.is_empty() || (range.start == offset && range.end <= size));
        }
    }

    #[test]
    fn blocks_of_two_commits_that_lie_side_by_side_are_one_piece() {
        let stored = |offset| BlockData::Stored { pack: PackNo(3), offset, len: 4096, codec: Codec::Raw };
        let run = |first, count, offset| BlockRun {
            first: BlockIndex::new(first),
            count,
            rev: Tid::from_raw(first + 1),
            data: stored(offset),
        };
        let runs = [run(0, 2, 8192), run(2, 1, 16384), run(3, 1, 0)];
        let pieces = plan(&runs, BlockSize::MIN, 100..4 * BLOCK).unwrap();
        let raw = |offset| PieceSource::Raw { pack: PackNo(3), offset };
        assert_eq!(
            pieces,
            [Piece { at: 0, len: 12188, source: raw(8292) }, Piece { at: 12188, len: 4096, source: raw(0) }]
        );
    }

    #[test]
    fn a_table_of_blocks_with_a_gap_is_damage_and_no_panic() {
        let hole = |first| BlockRun {
            first: BlockIndex::new(first),
            count: 1,
            rev: Tid::ZERO,
            data: BlockData::Hole,
        };
        for runs in [vec![], vec![hole(1)], vec![hole(0)], vec![hole(0), hole(2)]] {
            let result = plan(&runs, BlockSize::MIN, 0..2 * BLOCK);
            assert!(matches!(result, Err(ReadError::Damaged { .. })), "{runs:?}: {result:?}");
        }
        let far = BlockRun { first: BlockIndex::new(u64::MAX), ..hole(0) };
        assert!(plan(&[far], BlockSize::MIN, 0..BLOCK).is_err());
        let two = BlockData::Stored { pack: PackNo(0), offset: 0, len: 9, codec: Codec::Zstd };
        assert!(plan(&[BlockRun { count: 2, data: two, ..hole(0) }], BlockSize::MIN, 0..BLOCK).is_err());
    }
}
