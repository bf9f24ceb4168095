//! Where the bytes of blocks are: questions to the `blocks` table, and what a commit changes in it.
//!
//! Invariant: a commit puts each group of blocks once. Whoever wants the newest version of a block looks into one
//! segment, the last at or before `at`; no other one is read, and none is walked.

use heed::{RoTxn, RwTxn};
use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};

use super::codec::{group_key, key_group};
use super::query::newest;
use super::segment::{Changes, GROUP_BLOCKS, Segment, bits_of, group_of, numbers};
use super::{Index, IndexError};
use crate::store::{BlockData, BlockRun, Codec};

impl Index {
    /// The newest version of one block at or before `at`.
    pub fn block(
        &self,
        at: Tid,
        file: FileId,
        block: BlockIndex,
    ) -> Result<Option<(Tid, BlockData)>, IndexError> {
        let txn = self.read()?;
        self.block_in(&txn, at, file, block)
    }

    fn block_in(
        &self,
        txn: &RoTxn,
        at: Tid,
        file: FileId,
        block: BlockIndex,
    ) -> Result<Option<(Tid, BlockData)>, IndexError> {
        match self.segment_in(txn, at, file, group_of(block.raw()))? {
            Some(segment) => segment.newest(block.raw(), at),
            None => Ok(None),
        }
    }

    /// The last segment of a group at or before `at`.
    fn segment_in<'t>(
        &self,
        txn: &'t RoTxn,
        at: Tid,
        file: FileId,
        group: u64,
    ) -> Result<Option<Segment<'t>>, IndexError> {
        match newest(self.tables.blocks, txn, &group_key(file, group, at))? {
            Some((key, value)) => Segment::open(key, value).map(Some),
            None => Ok(None),
        }
    }

    /// The first group of a file, from `group` on, that has any segment.
    fn next_group(&self, txn: &RoTxn, file: FileId, group: u64) -> Result<Option<u64>, IndexError> {
        let low = group_key(file, group, Tid::ZERO);
        let found = self.tables.blocks.get_greater_than_or_equal_to(txn, &low)?;
        Ok(found
            .filter(|(key, _)| key.len() == low.len() && key[..8] == low[..8])
            .map(|(key, _)| key_group(key)))
    }

    /// Where blocks `[first, first + count)` of a file are as of `at`; `None`: there is no such file.
    pub fn blocks(
        &self,
        at: Tid,
        file: FileId,
        range: (BlockIndex, BlockCount),
    ) -> Result<Option<Vec<BlockRun>>, IndexError> {
        let txn = self.read()?;
        let Some(meta) = self.file_in(&txn, at, file)? else { return Ok(None) };
        let first = range.0.raw();
        let end = first.saturating_add(range.1.raw());
        let mut runs = Runs { block_size: meta.block_size, next: first, runs: Vec::new() };
        if end == first + 1 {
            runs.push(first, self.block_in(&txn, at, file, range.0)?);
        } else {
            self.walk_blocks(&txn, (at, file), (first, end), &mut runs)?;
        }
        runs.gap(end);
        Ok(Some(runs.runs))
    }

    /// Newest versions at or before `at` of all blocks in `[first, end)` that have one.
    fn walk_blocks(
        &self,
        txn: &RoTxn,
        (at, file): (Tid, FileId),
        (first, end): (u64, u64),
        runs: &mut Runs,
    ) -> Result<(), IndexError> {
        let mut group = group_of(first);
        while bits_of(group, (first, end)) != 0 {
            if let Some(segment) = self.segment_in(txn, at, file, group)? {
                for number in numbers(segment.present() & bits_of(group, (first, end))) {
                    let block = group * GROUP_BLOCKS + u64::from(number);
                    runs.push(block, segment.newest(block, at)?);
                }
                group += 1;
            } else {
                let Some(next) = self.next_group(txn, file, group + 1)? else { break };
                group = next;
            }
        }
        Ok(())
    }
}

/// Puts what one commit changes in the blocks of one file. Blocks come in ascending order: those of one group
/// are put together.
pub struct BlockWriter<'i, 't, 'e> {
    index: &'i Index,
    txn: &'t mut RwTxn<'e>,
    file: FileId,
    tid: Tid,
    changes: Option<Changes>,
    grown: i128,
}

impl<'i, 't, 'e> BlockWriter<'i, 't, 'e> {
    /// Nothing is changed yet.
    pub fn new(index: &'i Index, txn: &'t mut RwTxn<'e>, file: FileId, tid: Tid) -> BlockWriter<'i, 't, 'e> {
        BlockWriter { index, txn, file, tid, changes: None, grown: 0 }
    }

    /// A block gets a version.
    pub fn store(&mut self, block: u64, data: BlockData) -> Result<(), IndexError> {
        self.of_group(group_of(block))?.store(block, data);
        Ok(())
    }

    /// Makes blocks `[first, end)` holes, but for what this very commit stores there.
    pub fn cover(&mut self, first: u64, end: u64) -> Result<(), IndexError> {
        let mut from = group_of(first);
        // What is not put yet is of this commit, so it is enough to look at what is.
        while let Some(group) = self.index.next_group(self.txn, self.file, from)? {
            let bits = bits_of(group, (first, end));
            if bits == 0 {
                break;
            }
            self.of_group(group)?.cover(bits);
            from = group + 1;
        }
        Ok(())
    }

    /// Puts the rest; answers by how much the stored bytes grew.
    pub fn finish(mut self) -> Result<i128, IndexError> {
        self.put()?;
        Ok(self.grown)
    }

    /// The changes of a group; those of another one are put before.
    fn of_group(&mut self, group: u64) -> Result<&mut Changes, IndexError> {
        if self.changes.as_ref().is_some_and(|changes| changes.group() != group) {
            self.put()?;
        }
        let (tid, file) = (self.tid, self.file);
        Ok(self.changes.get_or_insert_with(|| Changes::new(tid, file, group)))
    }

    fn put(&mut self) -> Result<(), IndexError> {
        let Some(changes) = self.changes.take() else { return Ok(()) };
        let last = self.index.segment_in(self.txn, Tid::MAX, self.file, changes.group())?;
        if let Some(update) = changes.put_on(last.as_ref())? {
            self.index.tables.blocks.put(self.txn, &update.key, &update.value)?;
            self.grown += update.grown;
        }
        Ok(())
    }
}

/// Joins versions of blocks into runs, with holes where nothing was ever written.
struct Runs {
    block_size: BlockSize,
    next: u64,
    runs: Vec<BlockRun>,
}

impl Runs {
    fn push(&mut self, block: u64, version: Option<(Tid, BlockData)>) {
        let Some((rev, data)) = version else { return };
        self.gap(block);
        self.add(1, rev, data);
    }

    fn gap(&mut self, end: u64) {
        if end > self.next {
            self.add(end - self.next, Tid::ZERO, BlockData::Hole);
        }
    }

    fn add(&mut self, count: u64, rev: Tid, data: BlockData) {
        let first = self.next;
        self.next += count;
        if let Some(last) = self.runs.last_mut()
            && last.rev == rev
            && continues(last, data, self.block_size)
        {
            last.count += count;
            return;
        }
        self.runs.push(BlockRun { first: BlockIndex::new(first), count, rev, data });
    }
}

fn continues(run: &BlockRun, data: BlockData, block_size: BlockSize) -> bool {
    match (run.data, data) {
        (BlockData::Hole, BlockData::Hole) => true,
        (
            BlockData::Stored { pack, offset, len, codec: Codec::Raw },
            BlockData::Stored { pack: other, offset: next, len: other_len, codec: Codec::Raw },
        ) => {
            let full = u64::from(len) == block_size.bytes();
            pack == other && full && len == other_len && offset + run.count * u64::from(len) == next
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use revfs_protocol::BlockSize;

    use super::super::LogEntry;
    use super::*;
    use crate::store::native::record::{CommitRecord, Extent, Place, RecordFile};
    use crate::store::{FileChange, PackNo};

    const FILE: FileId = FileId::from_raw(77);
    const BLOCK: u64 = 4096;

    /// An index, and all versions that its file has.
    struct Pair {
        index: std::sync::Arc<Index>,
        _dir: tempfile::TempDir,
        seq: u64,
        size: u64,
        model: BTreeMap<u64, BTreeMap<Tid, BlockData>>,
    }

    impl Pair {
        fn new() -> Pair {
            let dir = tempfile::tempdir().unwrap();
            let index = Index::open(dir.path(), uuid::Uuid::from_u128(7)).unwrap();
            Pair { index, _dir: dir, seq: 0, size: 0, model: BTreeMap::new() }
        }

        /// Of the file; its neighbour has one more.
        fn entries(&self) -> u64 {
            self.index.tables.blocks.len(&self.index.read().unwrap()).unwrap() - 1
        }

        /// Commits the file with so many blocks and these extents.
        fn commit(&mut self, size: u64, extents: Vec<Extent>) -> Tid {
            self.seq += 1;
            let tid = Tid::from_raw(self.seq * 10);
            for extent in &extents {
                self.expect(tid, extent);
            }
            if size < self.size {
                self.expect(tid, &Extent { first: size, count: self.size - size, place: Place::Hole });
            }
            let (_, previous, base) = self.index.applied().unwrap();
            let change = FileChange {
                file: FILE,
                path: b"x".to_vec(),
                renamed_from: None,
                created: self.seq == 1,
                deleted: false,
                replaced: false,
                old_size: self.size * BLOCK,
                size: size * BLOCK,
                block_size: BlockSize::MIN,
                blocks: Vec::new(),
            };
            let mut files = vec![RecordFile { change, extents }];
            if self.seq == 1 {
                files.push(Pair::neighbour());
            }
            let record = CommitRecord {
                seq: self.seq,
                tid,
                base,
                commit_uuid: uuid::Uuid::from_u128(self.seq.into()),
                previous,
                time_unix_ns: 0,
                author: String::new(),
                message: String::new(),
                packs: Vec::new(),
                files,
                tags: Vec::new(),
            };
            let hash = [self.seq as u8; 32];
            self.index.apply(&[LogEntry { record, body: Vec::new(), hash, inline_at: 0 }]).unwrap();
            self.size = size;
            tid
        }

        /// A file whose groups come next in the table, at numbers that this one has too.
        fn neighbour() -> RecordFile {
            let place = Place::Stored { pack: 0, offset: 0, len: 7, codec: Codec::Raw };
            let change = FileChange {
                file: FileId::from_raw(FILE.raw() + 1),
                path: b"y".to_vec(),
                renamed_from: None,
                created: true,
                deleted: false,
                replaced: false,
                old_size: 0,
                size: BLOCK,
                block_size: BlockSize::MIN,
                blocks: Vec::new(),
            };
            RecordFile { change, extents: vec![Extent { first: 0, count: 1, place }] }
        }

        fn expect(&mut self, tid: Tid, extent: &Extent) {
            let range = extent.first..extent.first + extent.count;
            if extent.place == Place::Hole {
                for (_, versions) in self.model.range_mut(range) {
                    if *versions.last_key_value().unwrap().1 != BlockData::Hole {
                        versions.insert(tid, BlockData::Hole);
                    }
                }
                return;
            }
            for block in range {
                let data = self.data(extent, block);
                self.model.entry(block).or_default().insert(tid, data);
            }
        }

        fn data(&self, extent: &Extent, block: u64) -> BlockData {
            let Place::Stored { pack, offset, len, codec } = extent.place else { return BlockData::Hole };
            let offset = offset + (block - extent.first) * u64::from(len);
            BlockData::Stored { pack: PackNo(pack), offset, len, codec }
        }

        fn newest(&self, block: u64, at: Tid) -> Option<(Tid, BlockData)> {
            let (tid, data) = self.model.get(&block)?.range(..=at).next_back()?;
            Some((*tid, *data))
        }

        fn check(&self, at: Tid, first: u64, end: u64) -> Result<(), TestCaseError> {
            let range = (BlockIndex::new(first), BlockCount::new(end - first));
            let runs = self.index.blocks(at, FILE, range).unwrap().unwrap();
            let mut next = first;
            for run in runs {
                prop_assert_eq!(run.first.raw(), next);
                for number in 0..run.count {
                    let mut data = run.data;
                    if let BlockData::Stored { offset, len, .. } = &mut data {
                        *offset += number * u64::from(*len);
                    }
                    let expected = self.newest(next, at).unwrap_or((Tid::ZERO, BlockData::Hole));
                    prop_assert_eq!((run.rev, data), expected, "block {} at {:?}", next, at);
                    next += 1;
                }
            }
            prop_assert_eq!(next, end);
            for block in [first, end - 1] {
                let found = self.index.block(at, FILE, BlockIndex::new(block)).unwrap();
                prop_assert_eq!(found, self.newest(block, at));
            }
            Ok(())
        }

        fn stored(&self) -> u64 {
            self.index.file(Tid::MAX, FILE).unwrap().unwrap().stored
        }
    }

    fn stored(pack: u32, first: u64, count: u64) -> Extent {
        let place = Place::Stored { pack, offset: first * BLOCK, len: BLOCK as u32, codec: Codec::Raw };
        Extent { first, count, place }
    }

    /// Blocks of the file, and extents: a gap before, how many, and whether they are a hole.
    type Drawn = (u64, Vec<(u64, u64, bool)>);

    fn drawn() -> impl Strategy<Value = Drawn> {
        let size = prop_oneof![3 => Just(3000), 2 => 1u64..300, 1 => 1u64..3000, 1 => Just(0)];
        let gap = prop_oneof![3 => 0u64..4, 2 => 0u64..90, 1 => 0u64..2000];
        let count = prop_oneof![3 => 1u64..4, 2 => 1u64..200, 1 => Just(2000)];
        (size, prop::collection::vec((gap, count, prop::bool::weighted(0.3)), 0..6))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn blocks_are_those_of_a_map_of_all_versions(
            commits in prop::collection::vec(drawn(), 1..16),
            ranges in prop::collection::vec((0u64..3000, 1u64..400), 8),
        ) {
            let mut pair = Pair::new();
            for (pack, (size, drawn)) in (0..).zip(commits) {
                let (mut extents, mut next) = (Vec::new(), 0);
                for (gap, count, is_hole) in drawn {
                    let first = next + gap;
                    let count = count.min(size.saturating_sub(first));
                    if count > 0 {
                        let bytes = stored(pack, first, count);
                        extents.push(if is_hole { Extent { place: Place::Hole, ..bytes } } else { bytes });
                    }
                    next = first + count;
                }
                let tid = pair.commit(size, extents);
                let live = pair.model.keys().filter(|block| {
                    pair.newest(**block, tid).is_some_and(|(_, data)| data != BlockData::Hole)
                });
                prop_assert_eq!(pair.stored(), live.count() as u64 * BLOCK);
            }
            for at in 1..=pair.seq {
                let at = Tid::from_raw(at * 10 + at % 2);
                pair.check(at, 0, 3100)?;
                for (first, count) in &ranges {
                    pair.check(at, *first, first + count)?;
                }
            }
        }
    }

    #[test]
    fn a_commit_may_store_cover_and_cut_in_one_group() {
        let mut pair = Pair::new();
        pair.commit(200, vec![stored(0, 0, 200)]);
        assert_eq!(pair.entries(), 4);
        let hole = Extent { place: Place::Hole, ..stored(0, 2, 3) };
        let tid = pair.commit(70, vec![stored(1, 0, 1), hole, stored(1, 6, 60)]);
        assert_eq!((pair.entries(), pair.stored()), (4, (70 - 3) * BLOCK));
        pair.check(tid, 0, 200).unwrap();
        assert_eq!(pair.newest(70, tid), Some((tid, BlockData::Hole)));
    }

    #[test]
    fn versions_of_one_block_share_segments() {
        let mut pair = Pair::new();
        pair.commit(300_000, vec![stored(0, 123_456, 1)]);
        for pack in 1..1000 {
            pair.commit(300_000, vec![stored(pack, 123_456, 1)]);
        }
        // 162 versions go into 4,080 bytes, and each segment but the first begins with one that was carried.
        assert_eq!(pair.entries(), 7);
        for at in [0, 9, 10, 5_555, 9_999, 20_000].map(Tid::from_raw) {
            if at >= Tid::from_raw(10) {
                pair.check(at, 0, 300_000).unwrap();
            }
            let found = pair.index.block(at, FILE, BlockIndex::new(123_456)).unwrap();
            assert_eq!(found, pair.newest(123_456, at));
        }
        assert_eq!(pair.stored(), BLOCK);
    }

    #[test]
    fn neither_another_file_nor_another_group_answers() {
        let mut pair = Pair::new();
        let tid = pair.commit(1000, vec![stored(0, 64, 64), stored(0, 512, 1)]);
        for block in [0, 63, 128, 511, 513, 576] {
            assert_eq!(pair.index.block(tid, FILE, BlockIndex::new(block)).unwrap(), None, "{block}");
        }
        for file in [FILE.raw() - 1, FILE.raw() + 1].map(FileId::from_raw) {
            assert_eq!(pair.index.block(tid, file, BlockIndex::new(64)).unwrap(), None);
        }
    }
}
