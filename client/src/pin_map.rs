//! Which blocks of a file are pinned, and to which revisions.
//!
//! Invariant: runs do not overlap, and neighbours with the same revision are one run, so that a pin of all blocks
//! beyond an end takes one entry and one mapping.

use revfs_protocol::{BlockIndex, BlockSpan, PinTo, Tid};
use std::collections::BTreeMap;

/// The pins of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PinMap {
    runs: BTreeMap<u64, (u64, Tid)>, // first block -> last block, revision
}

impl PinMap {
    /// Pins blocks, or takes their pins away.
    pub(crate) fn set(&mut self, blocks: BlockSpan, to: PinTo) {
        let [mut first, mut last] = [blocks.first.raw(), blocks.last.raw()];
        self.cut_out(first, last);
        let PinTo::Rev(rev) = to else {
            return;
        };
        if let Some((before, (end, same))) = self.runs.range(..first).next_back().map(|(k, v)| (*k, *v))
            && same == rev
            && end + 1 == first
        {
            self.runs.remove(&before);
            first = before;
        }
        if let Some(after) = last.checked_add(1)
            && let Some((end, same)) = self.runs.get(&after).copied()
            && same == rev
        {
            self.runs.remove(&after);
            last = end;
        }
        self.runs.insert(first, (last, rev));
    }

    /// Forgets what is known of the blocks from `first` to `last`.
    fn cut_out(&mut self, first: u64, last: u64) {
        let overlapping: Vec<(u64, u64, Tid)> = self.overlapping(first, last).collect();
        for (start, end, rev) in overlapping {
            self.runs.remove(&start);
            if start < first {
                self.runs.insert(start, (first - 1, rev));
            }
            if end > last {
                self.runs.insert(last + 1, (end, rev));
            }
        }
    }

    /// Whole runs that have a block from `first` to `last`, in order.
    fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64, Tid)> + '_ {
        // The only run that can begin before `first` and reach it is the last one that begins there.
        let before = self.runs.range(..first).next_back().filter(move |(_, (end, _))| *end >= first);
        let inside = self.runs.range(first..=last);
        before.into_iter().chain(inside).map(|(start, (end, rev))| (*start, *end, *rev))
    }

    /// The blocks of `span` in order, in runs: where each is to be mapped from.
    pub(crate) fn runs_in(&self, span: BlockSpan) -> Vec<(BlockSpan, PinTo)> {
        let mut runs = Vec::new();
        let mut push = |first: u64, last: u64, to: PinTo| {
            runs.extend(BlockSpan::new(BlockIndex::new(first), BlockIndex::new(last)).map(|span| (span, to)));
        };
        let [first, last] = [span.first.raw(), span.last.raw()];
        let mut next = Some(first);
        for (start, end, rev) in self.overlapping(first, last) {
            let start = start.max(first);
            if let Some(from) = next.filter(|from| *from < start) {
                push(from, start - 1, PinTo::Head);
            }
            push(start, end.min(last), PinTo::Rev(rev));
            next = end.checked_add(1);
        }
        if let Some(from) = next {
            push(from, last, PinTo::Head);
        }
        runs
    }

    /// Where one block is to be read from.
    pub(crate) fn get(&self, block: BlockIndex) -> PinTo {
        let found = self.overlapping(block.raw(), block.raw()).next();
        found.map_or(PinTo::Head, |(_, _, rev)| PinTo::Rev(rev))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 24;

    fn span(first: u64, last: u64) -> BlockSpan {
        BlockSpan::new(BlockIndex::new(first), BlockIndex::new(last)).unwrap()
    }

    #[test]
    fn all_blocks_can_be_pinned() {
        let mut pins = PinMap::default();
        let all = span(0, u64::MAX);
        let rev = PinTo::Rev(Tid::from_raw(7));
        pins.set(all, rev);
        assert_eq!(pins.runs_in(all), [(all, rev)]);
        pins.set(span(u64::MAX, u64::MAX), PinTo::Head);
        assert_eq!(
            pins.runs_in(all),
            [(span(0, u64::MAX - 1), rev), (span(u64::MAX, u64::MAX), PinTo::Head)]
        );
    }

    proptest! {
        #[test]
        fn it_knows_what_was_said_last_of_each_block(
            steps in proptest::collection::vec((0..BLOCKS, 0..BLOCKS, 0u64..4), 0..30),
            (a, b) in (0..BLOCKS, 0..BLOCKS),
        ) {
            let mut pins = PinMap::default();
            let mut model = [PinTo::Head; BLOCKS as usize];
            for (x, y, rev) in steps {
                let blocks = span(x.min(y), x.max(y));
                let to = if rev == 0 { PinTo::Head } else { PinTo::Rev(Tid::from_raw(rev)) };
                pins.set(blocks, to);
                blocks.blocks().for_each(|block| model[block.raw() as usize] = to);
                for (block, to) in (0..).zip(model) {
                    prop_assert_eq!(pins.get(BlockIndex::new(block)), to);
                }
            }
            let blocks = span(a.min(b), a.max(b));
            let runs = pins.runs_in(blocks);
            let flat: Vec<_> = runs.iter().flat_map(|(span, to)| span.blocks().map(move |b| (b, *to))).collect();
            let expected: Vec<_> = blocks.blocks().map(|b| (b, model[b.raw() as usize])).collect();
            prop_assert_eq!(flat, expected);
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1), "{:?}", runs);
        }
    }
}
