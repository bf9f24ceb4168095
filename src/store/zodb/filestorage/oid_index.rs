//! Where the newest record of each object is: a sorted list in chunks.
//!
//! Invariant: the entries are ascending by oid over all chunks, no chunk is empty, and `firsts` has the first oid of
//! each. An object takes 16 bytes in a full chunk, and 33 at most: a chunk is split in halves. Objects get ascending
//! oids in ZODB, so chunks are full but for the last.

use crate::store::zodb::Oid;

/// Entries of a full chunk: 4 KiB.
const CHUNK_ENTRIES: usize = 256;

/// An object and the position of its newest record, bytes.
type Entry = (u64, u64);

/// Positions of the newest records, by oid.
#[derive(Debug, Default)]
pub struct OidIndex {
    firsts: Vec<u64>,
    chunks: Vec<Vec<Entry>>,
    len: usize,
}

impl OidIndex {
    /// Without an object.
    pub fn new() -> OidIndex {
        OidIndex::default()
    }

    /// Objects.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that it takes, bytes.
    pub fn memory(&self) -> usize {
        let entries: usize = self.chunks.iter().map(Vec::capacity).sum();
        entries * size_of::<Entry>()
            + self.chunks.capacity() * size_of::<Vec<Entry>>()
            + self.firsts.capacity() * size_of::<u64>()
    }

    /// The position of an object's newest record.
    pub fn get(&self, oid: Oid) -> Option<u64> {
        let chunk = self.chunks.get(self.chunk_of(oid.raw()))?;
        let at = chunk.binary_search_by_key(&oid.raw(), |entry| entry.0).ok()?;
        chunk.get(at).map(|entry| entry.1)
    }

    /// The greatest oid.
    pub fn last(&self) -> Option<Oid> {
        self.chunks.last().and_then(|chunk| chunk.last()).map(|entry| Oid::from_raw(entry.0))
    }

    /// All objects and positions, ascending by oid.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, u64)> {
        self.chunks.iter().flatten().map(|entry| (Oid::from_raw(entry.0), entry.1))
    }

    /// Sets the position of an object.
    pub fn set(&mut self, oid: Oid, pos: u64) {
        let oid = oid.raw();
        let number = self.chunk_of(oid);
        let last = number + 1 >= self.chunks.len();
        let Some(chunk) = self.chunks.get_mut(number) else {
            return self.append((oid, pos));
        };
        match chunk.binary_search_by_key(&oid, |entry| entry.0) {
            Ok(at) => chunk[at].1 = pos,
            Err(at) if last && at == chunk.len() => self.append((oid, pos)),
            Err(_) => self.insert(number, (oid, pos)),
        }
    }

    /// Fills the chunks, which insertions out of order may have left half full.
    pub fn compact(&mut self) {
        if self.len.div_ceil(CHUNK_ENTRIES) == self.chunks.len() {
            return;
        }
        // Old chunks go one by one as new ones come, so that it never takes twice the memory.
        let old = std::mem::take(self);
        for entry in old.chunks.into_iter().flatten() {
            self.append(entry);
        }
    }

    /// Number of the chunk that has the oid, if any has: the last that begins at or before it.
    fn chunk_of(&self, oid: u64) -> usize {
        self.firsts.partition_point(|first| *first <= oid).saturating_sub(1)
    }

    /// Adds an entry behind all others.
    fn append(&mut self, entry: Entry) {
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK_ENTRIES) {
            Some(chunk) => chunk.push(entry),
            None => {
                let mut chunk = Vec::with_capacity(CHUNK_ENTRIES);
                chunk.push(entry);
                self.chunks.push(chunk);
                self.firsts.push(entry.0);
            }
        }
        self.len += 1;
    }

    /// Adds an entry that chunk `number` lacks.
    fn insert(&mut self, mut number: usize, entry: Entry) {
        if self.chunks[number].len() == CHUNK_ENTRIES {
            let mut right = Vec::with_capacity(CHUNK_ENTRIES);
            right.extend(self.chunks[number].drain(CHUNK_ENTRIES / 2..));
            let first = right[0].0;
            self.chunks.insert(number + 1, right);
            self.firsts.insert(number + 1, first);
            number += usize::from(first <= entry.0);
        }
        let chunk = &mut self.chunks[number];
        let at = chunk.partition_point(|other| other.0 < entry.0);
        chunk.insert(at, entry);
        self.firsts[number] = chunk[0].0;
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn same(index: &OidIndex, model: &BTreeMap<u64, u64>) {
        let entries: Vec<Entry> = index.iter().map(|(oid, pos)| (oid.raw(), pos)).collect();
        assert_eq!(entries, model.iter().map(|(oid, pos)| (*oid, *pos)).collect::<Vec<_>>());
        assert_eq!((index.len(), index.is_empty()), (model.len(), model.is_empty()));
        assert_eq!(index.last().map(Oid::raw), model.keys().next_back().copied());
        assert!(index.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.capacity() == CHUNK_ENTRIES));
        assert!(index.chunks.iter().zip(&index.firsts).all(|(chunk, first)| chunk[0].0 == *first));
    }

    #[test]
    fn ascending_oids_fill_the_chunks() {
        let mut index = OidIndex::new();
        for oid in 0..100_000 {
            index.set(Oid::from_raw(oid), oid * 10);
        }
        assert_eq!(index.len(), 100_000);
        assert_eq!(index.get(Oid::from_raw(77_777)), Some(777_770));
        assert_eq!(index.get(Oid::from_raw(100_000)), None);
        assert!(index.memory() < 100_000 * 17, "{}", index.memory());
    }

    #[test]
    fn no_order_takes_more_than_said_and_compacting_gives_it_back() {
        let mut index = OidIndex::new();
        // Descending: each split leaves a half that is never filled again.
        for oid in (0..100_000).rev() {
            index.set(Oid::from_raw(oid), 7);
        }
        assert!(index.memory() < 100_000 * 34, "{}", index.memory());
        index.compact();
        assert!(index.memory() < 100_000 * 17, "{}", index.memory());
        assert_eq!(index.len(), 100_000);
        assert!(index.iter().map(|(oid, _)| oid.raw()).eq(0..100_000));
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            sets in proptest::collection::vec((prop_oneof![0..3000u64, any::<u64>()], any::<u64>()), 0..3000),
            asked in proptest::collection::vec(0..3000u64, 50),
        ) {
            let mut index = OidIndex::new();
            let mut model = BTreeMap::new();
            for (oid, pos) in sets {
                index.set(Oid::from_raw(oid), pos);
                model.insert(oid, pos);
            }
            same(&index, &model);
            for oid in asked {
                prop_assert_eq!(index.get(Oid::from_raw(oid)), model.get(&oid).copied());
            }
            index.compact();
            same(&index, &model);
        }
    }
}
