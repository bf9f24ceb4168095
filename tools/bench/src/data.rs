//! Bytes and random numbers, the same for the same seed, and files of them.
//!
//! Invariant: bytes are incompressible and no two blocks are alike, so neither a disk nor a store can save
//! work on them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Named, Result};

/// Unit of all bulk data, bytes: the block size of a store by default.
pub const BLOCK: u64 = 2 << 20;

/// A small fast generator: xorshift64*.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator number `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Rng {
        // splitmix64, so that neighbouring seeds have nothing in common; xorshift must not start at zero.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_add(0x632b_e59b_d9b4_e019);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Rng((state ^ (state >> 31)).max(1))
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// The numbers below `count`, in random order.
    pub fn shuffled(&mut self, count: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..count).collect();
        for last in (1..numbers.len()).rev() {
            numbers.swap(last, self.below(last as u64 + 1) as usize);
        }
        numbers
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// Writes a new file of `blocks` blocks, durable at the end.
///
/// # Errors
/// The disk refuses.
pub fn write_file(path: &Path, blocks: u64, seed: u64) -> Result<()> {
    let file = File::create_new(path).named(path.display())?;
    let mut buffer = vec![0; BLOCK as usize];
    for block in 0..blocks {
        Rng::new(seed, block).fill(&mut buffer);
        file.write_all_at(&buffer, block * BLOCK).named(path.display())?;
    }
    file.sync_all().named(path.display())
}

/// Sum of all words: reads every byte.
#[inline(never)]
pub fn sum_all(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// Sum of the first word of each 4 KiB page: touches every page, and costs next to nothing itself.
#[inline(never)]
pub fn sum_pages(bytes: &[u8]) -> u64 {
    bytes
        .chunks(4096)
        .filter_map(<[u8]>::first_chunk::<8>)
        .fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_repeats_and_streams_differ() {
        let bytes = |seed, stream| {
            let mut buffer = vec![0; 100];
            Rng::new(seed, stream).fill(&mut buffer);
            buffer
        };
        assert_eq!(bytes(1, 2), bytes(1, 2));
        assert_ne!(bytes(1, 2), bytes(1, 3));
        assert_ne!(bytes(1, 2), bytes(2, 2));
        assert_ne!(bytes(0, 0)[..8], [0; 8]);
    }

    #[test]
    fn shuffled_has_each_number_once() {
        let mut numbers = Rng::new(7, 0).shuffled(100);
        assert_ne!(numbers, (0..100).collect::<Vec<_>>());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn sums_see_what_they_should() {
        let mut bytes = vec![0; 3 * 4096];
        bytes[4096] = 5;
        bytes[4096 + 8] = 7;
        assert_eq!((sum_pages(&bytes), sum_all(&bytes)), (5, 12));
    }
}
