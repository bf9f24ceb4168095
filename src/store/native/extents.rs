//! The blocks that a transaction has written to one file, as runs.
//!
//! Invariant: runs are apart and ascending; a later write of a block replaces an earlier one. Memory grows with
//! the number of runs, not of blocks: a dense file of terabytes is a few thousand runs.

use std::collections::BTreeMap;

use revfs_protocol::BlockSize;

use super::record::{Extent, Place};

/// Where a written block is, while the pack is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Final.
    At(Place),
    /// Among the packed blocks that get their offset when they are written out; the number is their slot.
    Slot(u64),
}

/// Written blocks of one file.
#[derive(Debug, Clone)]
pub struct ExtentMap {
    block_size: BlockSize,
    // first -> (count, place of the first block)
    runs: BTreeMap<u64, (u64, Placed)>,
}

/// The place of the block `by` blocks further on in a run.
fn shifted(placed: Placed, by: u64) -> Placed {
    match placed {
        Placed::At(Place::Stored { pack, offset, len, codec }) => {
            Placed::At(Place::Stored { pack, offset: offset + by * u64::from(len), len, codec })
        }
        other => other,
    }
}

impl ExtentMap {
    /// No blocks yet, of a file with this block size.
    pub fn new(block_size: BlockSize) -> ExtentMap {
        ExtentMap { block_size, runs: BTreeMap::new() }
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Records `count` blocks from `first` on; full raw blocks lie back to back from `placed` on.
    pub fn insert(&mut self, first: u64, count: u64, placed: Placed) {
        if count == 0 {
            return;
        }
        self.cut(first, first.saturating_add(count));
        if let Some((before, (run, place))) = self.runs.range_mut(..first).next_back() {
            let joins = *before + *run == first
                && match (*place, placed) {
                    (Placed::At(Place::Hole), Placed::At(Place::Hole)) => true,
                    (
                        Placed::At(Place::Stored { len: one, .. }),
                        Placed::At(Place::Stored { len: two, .. }),
                    ) => {
                        let full = u64::from(one) == self.block_size.bytes();
                        full && one == two && shifted(*place, *run) == placed
                    }
                    _ => false,
                };
            if joins {
                *run += count;
                return;
            }
        }
        self.runs.insert(first, (count, placed));
    }

    /// Removes blocks `[first, end)`.
    pub fn cut(&mut self, first: u64, end: u64) {
        let mut hit: Vec<(u64, u64, Placed)> = self
            .runs
            .range(..end)
            .rev()
            .take_while(|(start, (count, _))| **start + *count > first)
            .map(|(start, (count, placed))| (*start, *count, *placed))
            .collect();
        hit.reverse();
        for (start, count, placed) in hit {
            self.runs.remove(&start);
            if start < first {
                self.runs.insert(start, (first - start, placed));
            }
            if start + count > end {
                self.runs.insert(end, (start + count - end, shifted(placed, end - start)));
            }
        }
    }

    /// Where `block` was written; `None`: it was not.
    pub fn get(&self, block: u64) -> Option<Placed> {
        let (start, (count, placed)) = self.runs.range(..=block).next_back()?;
        (block < start + count).then(|| shifted(*placed, block - start))
    }

    /// Gives a packed block its final place, unless it was written anew since.
    pub fn settle(&mut self, block: u64, slot: u64, place: Place) {
        if let Some((1, placed)) = self.runs.get_mut(&block)
            && *placed == Placed::Slot(slot)
        {
            *placed = Placed::At(place);
        }
    }

    /// All runs, ascending. Slots must be settled: `None` if one is not.
    pub fn extents(&self) -> Option<Vec<Extent>> {
        self.runs
            .iter()
            .map(|(first, (count, placed))| match placed {
                Placed::At(place) => Some(Extent { first: *first, count: *count, place: *place }),
                Placed::Slot(_) => None,
            })
            .collect()
    }

    /// All runs as (first, count), ascending.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(first, (count, _))| (*first, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Codec;

    fn at(offset: u64) -> Placed {
        Placed::At(Place::Stored { pack: 0, offset, len: 4096, codec: Codec::Raw })
    }

    #[test]
    fn consecutive_blocks_are_one_run() {
        let mut map = ExtentMap::new(BlockSize::new(4096).unwrap());
        for block in 0..1000 {
            map.insert(block, 1, at(block * 4096));
        }
        assert_eq!(map.extents().unwrap().len(), 1);
    }

    #[test]
    fn a_later_write_replaces_the_middle_of_a_run() {
        let mut map = ExtentMap::new(BlockSize::new(4096).unwrap());
        map.insert(0, 10, at(0));
        map.insert(4, 2, Placed::At(Place::Hole));
        assert_eq!(map.get(3), Some(at(3 * 4096)));
        assert_eq!(map.get(4), Some(Placed::At(Place::Hole)));
        assert_eq!(map.get(6), Some(at(6 * 4096)));
        assert_eq!(map.get(10), None);
        assert_eq!(map.runs().collect::<Vec<_>>(), [(0, 4), (4, 2), (6, 4)]);
    }

    #[test]
    fn packed_blocks_of_equal_length_do_not_join() {
        let mut map = ExtentMap::new(BlockSize::new(4096).unwrap());
        let packed = |offset| Placed::At(Place::Stored { pack: 0, offset, len: 8, codec: Codec::Raw });
        map.insert(0, 1, packed(0));
        map.insert(1, 1, packed(8));
        assert_eq!(map.extents().unwrap().len(), 2);
    }
}
