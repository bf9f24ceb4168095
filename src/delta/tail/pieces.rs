//! Runs of blocks, cut into pieces that a table can find by any of their blocks.
//!
//! A piece of level `n` is 16^n blocks, aligned to as many. Short runs are single blocks (level 0); a run of any
//! length has at most 30 pieces of each level, so that its length costs next to nothing. Who looks for a block
//! looks once for each level that its file has.

use revfs_protocol::{BlockCount, BlockIndex};

/// Blocks have numbers below 2^52: offsets in a file have 64 bits, and a block has 4 KiB at least.
const BLOCK_BITS: u32 = 52;
/// Bits that a level adds.
const LEVEL_BITS: u32 = 4;
const LEVEL_SHIFT: u32 = 60;
const LEVEL_MAX: u32 = BLOCK_BITS / LEVEL_BITS;

/// The piece of a level that has this block; none for a block beyond all files.
#[inline]
pub fn key_of(block: BlockIndex, level: u32) -> Option<u64> {
    let raw = block.raw();
    (raw >> BLOCK_BITS == 0).then(|| u64::from(level) << LEVEL_SHIFT | raw >> (level * LEVEL_BITS))
}

/// Level of a piece.
pub fn level_of(key: u64) -> u32 {
    (key >> LEVEL_SHIFT) as u32
}

/// First block of a piece, and the block after its last.
pub fn blocks_of(key: u64) -> (u64, u64) {
    let shift = level_of(key) * LEVEL_BITS;
    let place = key & ((1 << LEVEL_SHIFT) - 1);
    (place << shift, (place + 1) << shift)
}

/// The pieces of a run, ascending.
pub fn pieces(run: (BlockIndex, BlockCount)) -> impl Iterator<Item = u64> {
    let mut next = run.0.raw();
    let end = next.saturating_add(run.1.raw()).min(1 << BLOCK_BITS);
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let aligned = (next.trailing_zeros() / LEVEL_BITS).min(LEVEL_MAX);
        let fits = (end - next).ilog2() / LEVEL_BITS;
        let level = aligned.min(fits);
        let key = u64::from(level) << LEVEL_SHIFT | next >> (level * LEVEL_BITS);
        next += 1 << (level * LEVEL_BITS);
        Some(key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(first: u64, count: u64) -> (BlockIndex, BlockCount) {
        (BlockIndex::new(first), BlockCount::new(count))
    }

    proptest! {
        #[test]
        fn pieces_cover_a_run_exactly(first in 0..1u64 << 52, spread in 0..52u32, count: u64) {
            let count = count >> (63 - spread) >> 1;
            let end = (first + count).min(1 << 52);
            let mut next = first;
            let mut known = 0;
            for piece in pieces(run(first, count)) {
                let (from, until) = blocks_of(piece);
                prop_assert_eq!(from, next);
                for block in [from, from + (until - from) / 2, until - 1] {
                    prop_assert_eq!(key_of(BlockIndex::new(block), level_of(piece)), Some(piece));
                }
                next = until;
                known += 1;
            }
            prop_assert_eq!(next, end.max(first));
            prop_assert!(known <= 30 * 14);
        }
    }

    #[test]
    fn a_short_run_is_its_blocks_and_what_no_file_has_is_left_out() {
        assert_eq!(pieces(run(5, 3)).collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!(pieces(run(0, u64::MAX)).map(level_of).collect::<Vec<_>>(), [13]);
        assert_eq!(pieces(run(1 << 52, 7)).count() + pieces(run(u64::MAX, u64::MAX)).count(), 0);
        assert_eq!(key_of(BlockIndex::new(1 << 52), 0), None);
    }
}
