//! Blocks: the unit in which a file changes.
//!
//! Invariant: a [`BlockSize`] is a power of two from 4 KiB to 16 MiB, so offsets and blocks convert by shifts
//! and never divide by zero; what can overflow returns an `Option`.

use crate::size::{SizeError, parse_size};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Which block of a file, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u64);

/// How many blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(u64);

impl BlockIndex {
    /// The first block.
    pub const ZERO: BlockIndex = BlockIndex(0);

    /// The block with this number.
    pub const fn new(raw: u64) -> BlockIndex {
        BlockIndex(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The block after this one; none after the last that 64 bits can name.
    pub fn next(self) -> Option<BlockIndex> {
        self.0.checked_add(1).map(BlockIndex)
    }

    /// The block `count` after this one; none if 64 bits cannot name it.
    pub fn checked_add(self, count: BlockCount) -> Option<BlockIndex> {
        self.0.checked_add(count.0).map(BlockIndex)
    }
}

impl BlockCount {
    /// No blocks.
    pub const ZERO: BlockCount = BlockCount(0);

    /// This many blocks.
    pub const fn new(raw: u64) -> BlockCount {
        BlockCount(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether there are none.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// One more; none if 64 bits cannot count it.
    pub fn next(self) -> Option<BlockCount> {
        self.0.checked_add(1).map(BlockCount)
    }

    /// The sum; none if 64 bits cannot count it.
    pub fn checked_add(self, more: BlockCount) -> Option<BlockCount> {
        self.0.checked_add(more.0).map(BlockCount)
    }

    /// Whether a file of this many blocks has block `index`.
    pub const fn contains(self, index: BlockIndex) -> bool {
        index.0 < self.0
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of the blocks of a file: a power of two, 4 KiB to 16 MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize {
    log2: u8, // always in LOG2_MIN..=LOG2_MAX
}

const LOG2_MIN: u8 = 12;
const LOG2_MAX: u8 = 24;

/// A number or text that is not a [`BlockSize`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlockSizeError {
    /// Not a power of two, or out of range.
    #[error("block size of {bytes} bytes is not a power of two from 4K to 16M: give one, as in 2M")]
    NotAllowed {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// A text that is not a size at all.
    #[error("block size: {0}")]
    Size(#[from] SizeError),
}

impl BlockSize {
    /// The smallest: 4 KiB.
    pub const MIN: BlockSize = BlockSize { log2: LOG2_MIN };
    /// The largest: 16 MiB.
    pub const MAX: BlockSize = BlockSize { log2: LOG2_MAX };
    /// What a file gets if nothing else is asked for: 2 MiB, a huge page of the kernel.
    pub const DEFAULT: BlockSize = BlockSize { log2: 21 };

    /// The block size of this many bytes; an error unless a power of two from 4 KiB to 16 MiB.
    pub fn new(bytes: u64) -> Result<BlockSize, BlockSizeError> {
        match u8::try_from(bytes.trailing_zeros()) {
            Ok(log2 @ LOG2_MIN..=LOG2_MAX) if bytes.is_power_of_two() => Ok(BlockSize { log2 }),
            _ => Err(BlockSizeError::NotAllowed { bytes }),
        }
    }

    /// Bytes in a block.
    pub const fn bytes(self) -> u64 {
        1 << self.log2
    }

    /// The exponent, 12 to 24: a block has `1 << log2` bytes.
    pub fn log2(self) -> u32 {
        u32::from(self.log2)
    }

    /// The block that holds the byte at `offset`.
    pub const fn block_of(self, offset: u64) -> BlockIndex {
        BlockIndex(offset >> self.log2)
    }

    /// The offset of a block's first byte; none if it is beyond 64 bits.
    pub fn start_of(self, block: BlockIndex) -> Option<u64> {
        block.0.checked_mul(self.bytes())
    }

    /// How many blocks hold `size` bytes; the last may be partly filled.
    pub const fn blocks_for(self, size: u64) -> BlockCount {
        BlockCount(size.div_ceil(self.bytes()))
    }
}

impl Default for BlockSize {
    fn default() -> BlockSize {
        BlockSize::DEFAULT
    }
}

impl fmt::Display for BlockSize {
    /// As `--block-size` takes it: `64K`, `2M`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.log2 {
            20.. => write!(f, "{}M", self.bytes() >> 20),
            _ => write!(f, "{}K", self.bytes() >> 10),
        }
    }
}

impl fmt::Debug for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockSize({self})")
    }
}

impl FromStr for BlockSize {
    type Err = BlockSizeError;

    /// Reads a size in the form of [`parse_size`], then checks it as [`BlockSize::new`] does.
    fn from_str(text: &str) -> Result<BlockSize, BlockSizeError> {
        BlockSize::new(parse_size(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_powers_of_two_from_4k_to_16m_are_block_sizes() {
        let allowed: Vec<u64> =
            (0..64).map(|log2| 1u64 << log2).filter(|&bytes| BlockSize::new(bytes).is_ok()).collect();
        assert_eq!(allowed, (12..=24).map(|log2| 1u64 << log2).collect::<Vec<_>>());
        for bytes in [0, 1, 4095, 4097, 12288, 2 * 1024 * 1024 + 4096, 1 << 25, u64::MAX] {
            assert_eq!(BlockSize::new(bytes), Err(BlockSizeError::NotAllowed { bytes }));
        }
        assert_eq!([BlockSize::MIN.bytes(), BlockSize::MAX.bytes()], [4096, 16 << 20]);
        assert_eq!(BlockSize::default().bytes(), 2 << 20);
    }

    #[test]
    fn text_round_trips() {
        for log2 in 12..=24 {
            let size = BlockSize::new(1 << log2).unwrap();
            assert_eq!((size.to_string().parse(), size.log2()), (Ok(size), log2));
        }
        assert_eq!(BlockSize::DEFAULT.to_string(), "2M");
        assert_eq!(BlockSize::new(65536).unwrap().to_string(), "64K");
        assert!(matches!("2X".parse::<BlockSize>(), Err(BlockSizeError::Size(_))));
        assert!(matches!("3M".parse::<BlockSize>(), Err(BlockSizeError::NotAllowed { bytes: 3_145_728 })));
    }

    #[test]
    fn what_overflows_is_none() {
        assert_eq!(BlockIndex::new(u64::MAX).next(), None);
        assert_eq!(BlockIndex::new(5).checked_add(BlockCount::new(u64::MAX)), None);
        assert_eq!(BlockIndex::new(5).checked_add(BlockCount::new(2)), Some(BlockIndex::new(7)));
        assert_eq!(BlockCount::new(u64::MAX).next(), None);
        assert_eq!(BlockCount::new(1).checked_add(BlockCount::new(2)), Some(BlockCount::new(3)));
        assert_eq!(BlockSize::DEFAULT.start_of(BlockIndex::new(1 << 43)), None);
        assert_eq!(
            BlockSize::DEFAULT.start_of(BlockIndex::new((1 << 43) - 1)),
            Some(u64::MAX - (2 << 20) + 1)
        );
        assert_eq!(BlockSize::DEFAULT.blocks_for(u64::MAX), BlockCount::new(1 << 43));
    }

    proptest! {
        #[test]
        fn a_file_has_exactly_the_blocks_of_its_bytes(size: u64, log2 in 12..=24u32) {
            let block_size = BlockSize::new(1 << log2).unwrap();
            let count = block_size.blocks_for(size);
            prop_assert!(!count.contains(block_size.block_of(size)) || size % block_size.bytes() != 0);
            if let Some(last_byte) = size.checked_sub(1) {
                let last = block_size.block_of(last_byte);
                prop_assert_eq!(last.raw() + 1, count.raw());
                let start = block_size.start_of(last).unwrap();
                prop_assert!(start <= last_byte && last_byte - start < block_size.bytes());
            } else {
                prop_assert!(count.is_zero());
            }
        }
    }
}
