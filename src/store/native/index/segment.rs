//! Segments: the values of the `blocks` table.
//!
//! A group is 64 consecutive blocks of a file. A segment holds the versions of all its blocks from one tid on,
//! that of its key, until it is full; then another segment begins with the newest version of each block. So
//! the last segment at or before `at` answers alone for each block of the group, and a version can be in
//! two segments. What is in a segment, numbers little-endian:
//!
//! * 8 bytes: bit `n` is set if block `n` of the group has versions here. Such a block is present.
//! * 1 byte for each present block: how many versions it and the present blocks before it have.
//! * crc32c of the key and all before.
//! * For each present block: its tids (8 bytes each, ascending), where the bytes of each version are (17 bytes
//!   each), and the crc32c of file, block and both.
//! * Zeros, which nobody reads.
//!
//! Invariant: nothing is believed that no right checksum covers, and a look-up checks the header and its own
//! block alone.

use std::ops::Range;

use revfs_protocol::{FileId, Tid};

use super::IndexError;
use super::codec::{PLACE_BYTES, Reader, checksum, decode_block, encode_block, group_key};
use crate::store::BlockData;

/// Blocks of a group.
pub const GROUP_BLOCKS: u64 = 64;
/// Largest segment, bytes: with LMDB's header of 16 bytes it fills one overflow page of 4 KiB.
const SEGMENT_BYTES_MAX: usize = 4080;
/// From this size on a segment is padded to [`PADDED_BYTES`].
const PAD_FROM_BYTES: usize = 1200;
/// LMDB moves a value of this size out of the leaf to a page of its own. Leaves of keys alone are few and stay
/// in the processor's caches.
const PADDED_BYTES: usize = 2040;
const TID_BYTES: usize = 8;
const VERSION_BYTES: usize = TID_BYTES + PLACE_BYTES;
const CRC_BYTES: usize = 4;
const TABLE: &str = "blocks";

// A new segment has at most one version of each block from before its tid, and gets at most one more by the
// commit of that tid: it is never full within one commit, which would need two segments of one key.
const _: () = assert!(used_bytes(64, 128) <= SEGMENT_BYTES_MAX);
// Counts of versions fit into their byte.
const _: () = assert!(SEGMENT_BYTES_MAX / VERSION_BYTES <= u8::MAX as usize);

/// Bytes of a segment before it is padded.
const fn used_bytes(present: usize, versions: usize) -> usize {
    8 + present + CRC_BYTES + versions * VERSION_BYTES + present * CRC_BYTES
}

/// Bytes of a segment as it is stored.
fn stored_bytes(used: usize) -> usize {
    if (PAD_FROM_BYTES..PADDED_BYTES).contains(&used) { PADDED_BYTES } else { used }
}

fn damaged() -> IndexError {
    IndexError::Damaged { table: TABLE }
}

/// The group of a block.
pub fn group_of(block: u64) -> u64 {
    block / GROUP_BLOCKS
}

/// The blocks of `[first, end)` that lie in `group`, as bits.
pub fn bits_of(group: u64, (first, end): (u64, u64)) -> u64 {
    let start = group.saturating_mul(GROUP_BLOCKS);
    let below = |block: u64| match block.saturating_sub(start) {
        number @ 0..GROUP_BLOCKS => (1 << number) - 1,
        _ => u64::MAX,
    };
    below(end) & !below(first)
}

/// The numbers of the bits that are set, ascending.
pub fn numbers(bits: u64) -> impl Iterator<Item = u32> {
    let mut rest = bits;
    std::iter::from_fn(move || {
        let number = rest.trailing_zeros();
        (number < u64::BITS).then(|| {
            rest &= rest - 1;
            number
        })
    })
}

/// A segment whose header is whole.
#[derive(Clone, Copy)]
pub struct Segment<'v> {
    file: FileId,
    group: u64,
    /// The tid of its key.
    first: Tid,
    present: u64,
    ends: &'v [u8],
    slots: &'v [u8],
}

impl<'v> Segment<'v> {
    /// Checks the header.
    pub fn open(key: &[u8], value: &'v [u8]) -> Result<Segment<'v>, IndexError> {
        let (present, rest) = value.split_first_chunk::<8>().ok_or_else(damaged)?;
        let present = u64::from_le_bytes(*present);
        let count = present.count_ones() as usize;
        let (ends, rest) = rest.split_at_checked(count).ok_or_else(damaged)?;
        let (crc, slots) = rest.split_first_chunk::<CRC_BYTES>().ok_or_else(damaged)?;
        let covered = value.get(..8 + count).ok_or_else(damaged)?;
        if u32::from_le_bytes(*crc) != checksum(key, covered) {
            return Err(damaged());
        }
        let versions = ends.last().map_or(0, |end| usize::from(*end));
        if value.len() != stored_bytes(used_bytes(count, versions)) {
            return Err(damaged());
        }
        let (numbers, &[]) = key.as_chunks::<8>() else { return Err(damaged()) };
        let &[file, group, first] = numbers else { return Err(damaged()) };
        Ok(Segment {
            file: FileId::from_raw(u64::from_be_bytes(file)),
            group: u64::from_be_bytes(group),
            first: Tid::from_raw(u64::from_be_bytes(first)),
            present,
            ends,
            slots,
        })
    }

    /// Bits of the blocks that are present.
    pub fn present(&self) -> u64 {
        self.present
    }

    /// The newest version at or before `at` of `block`, which lies in this group, if this is the last segment at
    /// or before `at`.
    pub fn newest(&self, block: u64, at: Tid) -> Result<Option<(Tid, BlockData)>, IndexError> {
        match self.slot((block % GROUP_BLOCKS) as u32)? {
            Some(slot) => slot.newest(at),
            None => Ok(None),
        }
    }

    /// Checks the versions of block `number` of the group.
    fn slot(&self, number: u32) -> Result<Option<Slot<'v>>, IndexError> {
        let Some((range, count)) = self.find(number)? else { return Ok(None) };
        let bytes = self.slots.get(range).ok_or_else(damaged)?;
        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or_else(damaged)?;
        if u32::from_le_bytes(*crc) != checksum(&slot_key(self.file, self.group, number), body) {
            return Err(damaged());
        }
        let (tids, places) = body.split_at_checked(count * TID_BYTES).ok_or_else(damaged)?;
        Ok(Some(Slot { tids: tids.as_chunks().0, places: places.as_chunks().0 }))
    }

    /// The bytes of block `number` of the group, checksum and all, and how many versions they are.
    fn find(&self, number: u32) -> Result<Option<(Range<usize>, usize)>, IndexError> {
        if self.present & (1 << number) == 0 {
            return Ok(None);
        }
        let rank = (self.present & ((1 << number) - 1)).count_ones() as usize;
        let ends = |rank: usize| self.ends.get(rank).map(|end| usize::from(*end)).ok_or_else(damaged);
        let end = ends(rank)?;
        let start = rank.checked_sub(1).map_or(Ok(0), ends)?;
        let count = end.checked_sub(start).filter(|count| *count > 0).ok_or_else(damaged)?;
        let from = start * VERSION_BYTES + rank * CRC_BYTES;
        Ok(Some((from..from + count * VERSION_BYTES + CRC_BYTES, count)))
    }

    fn versions(&self) -> usize {
        self.ends.last().map_or(0, |end| usize::from(*end))
    }
}

/// What the checksum of a block's versions covers besides them.
fn slot_key(file: FileId, group: u64, number: u32) -> [u8; 16] {
    let block = group.wrapping_mul(GROUP_BLOCKS) | u64::from(number);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&file.raw().to_be_bytes());
    key[8..].copy_from_slice(&block.to_be_bytes());
    key
}

/// The versions of one block, ascending.
#[derive(Clone, Copy, Default)]
struct Slot<'v> {
    tids: &'v [[u8; TID_BYTES]],
    places: &'v [[u8; PLACE_BYTES]],
}

impl<'v> Slot<'v> {
    fn newest(&self, at: Tid) -> Result<Option<(Tid, BlockData)>, IndexError> {
        let until = self.tids.partition_point(|tid| u64::from_le_bytes(*tid) <= at.raw());
        let Some(last) = until.checked_sub(1) else { return Ok(None) };
        let (Some(tid), Some(place)) = (self.tids.get(last), self.places.get(last)) else {
            return Err(damaged());
        };
        let data = decode_block(Reader::new(TABLE, place))?;
        Ok(Some((Tid::from_raw(u64::from_le_bytes(*tid)), data)))
    }

    fn last_tid(&self) -> Option<Tid> {
        self.tids.last().map(|tid| Tid::from_raw(u64::from_le_bytes(*tid)))
    }

    /// The last version alone.
    fn tail(self) -> Slot<'v> {
        let from = self.tids.len().saturating_sub(1);
        Slot { tids: &self.tids[from..], places: self.places.get(from..).unwrap_or_default() }
    }

    /// All versions but one of `tid`, which is replaced if it is there.
    fn before(self, tid: Tid) -> Slot<'v> {
        let kept = self.tids.len() - usize::from(self.last_tid() == Some(tid));
        Slot { tids: &self.tids[..kept], places: self.places.get(..kept).unwrap_or_default() }
    }
}

/// What one commit changes in a group.
pub struct Changes {
    /// The commit.
    tid: Tid,
    file: FileId,
    group: u64,
    stored: u64,
    covered: u64,
    /// By number; holes but for what is stored.
    places: [BlockData; GROUP_BLOCKS as usize],
}

impl Changes {
    /// None yet.
    pub fn new(tid: Tid, file: FileId, group: u64) -> Changes {
        Changes { tid, file, group, stored: 0, covered: 0, places: [BlockData::Hole; GROUP_BLOCKS as usize] }
    }

    /// The group.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// Block `block`, which lies in this group, gets a version.
    pub fn store(&mut self, block: u64, data: BlockData) {
        let number = block % GROUP_BLOCKS;
        self.stored |= 1 << number;
        self.places[number as usize] = data;
    }

    /// The blocks of these bits get holes where bytes lie that this commit did not bring.
    pub fn cover(&mut self, bits: u64) {
        self.covered |= bits;
    }

    /// What is to be put so that the changes are there; `old` is the last segment of the group. `None`: they
    /// change nothing.
    ///
    /// # Errors
    /// A block has a version that is newer than the commit, or `old` is damaged.
    pub fn put_on(&self, old: Option<&Segment>) -> Result<Option<Update>, IndexError> {
        let plan = self.plan(old)?;
        if plan.changed == 0 {
            return Ok(None);
        }
        let present = plan.changed | old.map_or(0, Segment::present);
        let versions = old.map_or(0, Segment::versions) + plan.added;
        let fits = used_bytes(present.count_ones() as usize, versions) <= SEGMENT_BYTES_MAX;
        let (first, slots) = match old {
            Some(old) if fits => (old.first, Slots::Appended(old)),
            Some(old) if old.first < self.tid => (self.tid, Slots::Carried(old)),
            Some(_) => return Err(damaged()), // see the assertion above
            None => (self.tid, Slots::Fresh),
        };
        let mut writer = Writer::new(present);
        for number in numbers(present) {
            let change = (plan.changed & (1 << number) != 0).then(|| self.place(number));
            self.put_slot(&mut writer, &slots, number, change)?;
        }
        let key = group_key(self.file, self.group, first);
        Ok(Some(Update { value: writer.finish(&key)?, key, grown: plan.grown }))
    }

    fn put_slot(
        &self,
        writer: &mut Writer,
        slots: &Slots,
        number: u32,
        change: Option<BlockData>,
    ) -> Result<(), IndexError> {
        let kept = match (slots, change) {
            (Slots::Appended(old), None) => {
                // Its checksum goes with it, unchecked: whoever asks for this block finds the damage.
                let (range, count) = old.find(number)?.ok_or_else(damaged)?;
                return writer.copy(old.slots.get(range).ok_or_else(damaged)?, count);
            }
            (Slots::Appended(old), Some(_)) => old.slot(number)?.unwrap_or_default().before(self.tid),
            (Slots::Carried(old), None) => {
                let last = old.slot(number)?.unwrap_or_default().tail();
                if last.last_tid() > Some(self.tid) {
                    return Err(damaged());
                }
                last
            }
            (Slots::Carried(_), Some(_)) | (Slots::Fresh, _) => Slot::default(),
        };
        let change = change.map(|data| (self.tid, data));
        writer.put(&slot_key(self.file, self.group, number), kept, change)
    }

    fn place(&self, number: u32) -> BlockData {
        self.places.get(number as usize).copied().unwrap_or(BlockData::Hole)
    }

    /// Which blocks get which version, and what that does to the stored bytes.
    fn plan(&self, old: Option<&Segment>) -> Result<Plan, IndexError> {
        let mut plan = Plan { changed: 0, added: 0, grown: 0 };
        let covered = self.covered & !self.stored & old.map_or(0, Segment::present);
        for number in numbers(self.stored | covered) {
            let before = match old {
                Some(old) => old.newest(u64::from(number), Tid::MAX)?,
                None => None,
            };
            if before.is_some_and(|(tid, _)| tid > self.tid) || old.is_some_and(|old| old.first > self.tid) {
                return Err(damaged());
            }
            let is_replaced = before.is_some_and(|(tid, _)| tid == self.tid);
            let before = stored_len(before);
            if covered & (1 << number) != 0 && (before == 0 || is_replaced) {
                continue;
            }
            plan.changed |= 1 << number;
            plan.added += usize::from(!is_replaced);
            let after = stored_len(Some((self.tid, self.place(number))));
            plan.grown += i128::from(after) - i128::from(before);
        }
        Ok(plan)
    }
}

struct Plan {
    changed: u64,
    /// Versions more than before.
    added: usize,
    /// Stored bytes more than before.
    grown: i128,
}

/// What becomes of the last segment.
enum Slots<'o, 'v> {
    /// There is none.
    Fresh,
    /// It gets more versions.
    Appended(&'o Segment<'v>),
    /// It is full: another one begins with the newest versions.
    Carried(&'o Segment<'v>),
}

/// An entry that is to be put, in place of one of the same key.
#[derive(Debug)]
pub struct Update {
    /// Its key.
    pub key: [u8; 24],
    /// Its value.
    pub value: Vec<u8>,
    /// How many more bytes the newest versions have than before.
    pub grown: i128,
}

fn stored_len(version: Option<(Tid, BlockData)>) -> u32 {
    match version {
        Some((_, BlockData::Stored { len, .. })) => len,
        _ => 0,
    }
}

/// Makes a segment, block after block.
struct Writer {
    value: Vec<u8>,
    present: usize,
    rank: usize,
    versions: usize,
}

impl Writer {
    fn new(present: u64) -> Writer {
        let count = present.count_ones() as usize;
        let mut value = Vec::with_capacity(SEGMENT_BYTES_MAX);
        value.extend_from_slice(&present.to_le_bytes());
        value.resize(8 + count + CRC_BYTES, 0);
        Writer { value, present: count, rank: 0, versions: 0 }
    }

    fn count(&mut self, versions: usize) -> Result<(), IndexError> {
        self.versions += versions;
        let end = self.value.get_mut(8 + self.rank).ok_or_else(damaged)?;
        *end = u8::try_from(self.versions).map_err(|_| damaged())?;
        self.rank += 1;
        Ok(())
    }

    fn copy(&mut self, bytes: &[u8], versions: usize) -> Result<(), IndexError> {
        self.value.extend_from_slice(bytes);
        self.count(versions)
    }

    fn put(&mut self, key: &[u8], kept: Slot, added: Option<(Tid, BlockData)>) -> Result<(), IndexError> {
        let start = self.value.len();
        self.value.extend_from_slice(kept.tids.as_flattened());
        if let Some((tid, _)) = added {
            self.value.extend_from_slice(&tid.raw().to_le_bytes());
        }
        self.value.extend_from_slice(kept.places.as_flattened());
        if let Some((_, data)) = added {
            self.value.extend_from_slice(&encode_block(data));
        }
        let crc = checksum(key, &self.value[start..]);
        self.value.extend_from_slice(&crc.to_le_bytes());
        self.count(kept.tids.len() + usize::from(added.is_some()))
    }

    fn finish(mut self, key: &[u8]) -> Result<Vec<u8>, IndexError> {
        let covered = 8 + self.present;
        let crc = checksum(key, &self.value[..covered]);
        self.value[covered..covered + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.value.resize(stored_bytes(self.value.len()), 0);
        Ok(self.value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::{Codec, PackNo};

    const FILE: FileId = FileId::from_raw(0x1234_5678_9abc_def0);
    const GROUP: u64 = 5;

    type Entries = BTreeMap<[u8; 24], Vec<u8>>;

    fn at(number: u64) -> Tid {
        Tid::from_raw(number)
    }

    fn bytes(pack: u32, block: u64) -> BlockData {
        BlockData::Stored { pack: PackNo(pack), offset: block, len: 1 + pack, codec: Codec::Zstd }
    }

    fn changes(tid: u64, blocks: impl IntoIterator<Item = u64>) -> Changes {
        let mut changes = Changes::new(at(tid), FILE, GROUP);
        for block in blocks {
            changes.store(block, bytes(tid as u32, block));
        }
        changes
    }

    fn last(entries: &Entries, at: Tid) -> Option<Segment<'_>> {
        let (key, value) = entries.range(..=group_key(FILE, GROUP, at)).next_back()?;
        Some(Segment::open(key, value).unwrap())
    }

    fn put(entries: &mut Entries, changes: &Changes) -> i128 {
        let Some(update) = changes.put_on(last(entries, Tid::MAX).as_ref()).unwrap() else { return 0 };
        entries.insert(update.key, update.value);
        update.grown
    }

    /// Entries of commits 1 to `commits`, each of which changes all blocks.
    fn dense(commits: u64) -> Entries {
        let mut entries = Entries::new();
        for tid in 1..=commits {
            put(&mut entries, &changes(tid, 0..64));
        }
        entries
    }

    /// One segment, not padded: three blocks, one of them with three versions.
    fn small() -> ([u8; 24], Vec<u8>) {
        let mut entries = Entries::new();
        put(&mut entries, &changes(1, [0, 7, 63]));
        put(&mut entries, &changes(2, [7]));
        put(&mut entries, &changes(3, [7]));
        entries.pop_first().unwrap()
    }

    /// What the blocks of the segment `small` answer.
    fn answers(segment: &Segment) -> Vec<Result<Option<(Tid, BlockData)>, String>> {
        [0, 7, 63].map(|block| segment.newest(block, at(2)).map_err(|error| error.to_string())).to_vec()
    }

    #[test]
    fn each_flipped_bit_is_found_by_who_needs_the_byte() {
        let (key, value) = small();
        let whole = answers(&Segment::open(&key, &value).unwrap());
        assert!(whole.iter().all(|answer| matches!(answer, Ok(Some(_)))), "{whole:?}");
        let header = 8 + 3 + 4;
        let ends = [header + 29, header + 29 + 79, header + 29 + 79 + 29];
        assert_eq!(value.len(), ends[2]);
        for bit in 0..value.len() * 8 {
            let mut value = value.clone();
            value[bit / 8] ^= 1 << (bit % 8);
            let Ok(segment) = Segment::open(&key, &value) else {
                assert!(bit / 8 < header, "bit {bit}");
                continue;
            };
            assert!(bit / 8 >= header, "bit {bit} of the header");
            let hit = ends.iter().filter(|end| **end <= bit / 8).count();
            for (slot, answer) in answers(&segment).into_iter().enumerate() {
                assert_eq!(answer.is_err(), slot == hit, "bit {bit}, slot {slot}");
                assert!(answer.is_err() || answer == whole[slot]);
            }
        }
        for bit in 0..key.len() * 8 {
            let mut key = key;
            key[bit / 8] ^= 1 << (bit % 8);
            assert!(Segment::open(&key, &value).is_err(), "bit {bit} of the key");
        }
    }

    #[test]
    fn a_segment_of_another_length_is_refused() {
        for (key, value) in [small(), dense(1).pop_first().unwrap(), dense(2).pop_first().unwrap()] {
            for len in 0..value.len() {
                assert!(Segment::open(&key, &value[..len]).is_err(), "{len} of {} bytes", value.len());
            }
            assert!(Segment::open(&key, &[&value[..], &[0]].concat()).is_err());
            assert!(Segment::open(&key[..23], &value).is_err());
        }
    }

    #[test]
    fn counts_and_lengths_that_a_right_checksum_covers_are_checked_too() {
        let (key, value) = small();
        let sealed = |ends: [u8; 3], len: usize| {
            let mut value = value.clone();
            value[8..11].copy_from_slice(&ends);
            let crc = checksum(&key, &value[..11]);
            value[11..15].copy_from_slice(&crc.to_le_bytes());
            value.resize(len, 0);
            value
        };
        for ends in [[1, 0, 5], [200, 4, 5], [5, 5, 5], [0, 4, 5]] {
            let value = sealed(ends, value.len());
            let segment = Segment::open(&key, &value).unwrap();
            assert!(answers(&segment).iter().any(Result::is_err), "{ends:?}");
        }
        assert!(Segment::open(&key, &sealed([1, 4, 6], value.len())).is_err());
        assert!(Segment::open(&key, &sealed([1, 4, 255], 4080)).is_err());
    }

    #[test]
    fn a_full_segment_stays_and_the_next_one_begins_with_the_newest_versions() {
        let before = dense(2);
        assert_eq!(before.len(), 1);
        let mut entries = before.clone();
        put(&mut entries, &changes(3, [9]));
        put(&mut entries, &changes(4, (0..64).step_by(2)));
        assert_eq!(
            entries.keys().copied().collect::<Vec<_>>(),
            [1, 4].map(|tid| group_key(FILE, GROUP, at(tid)))
        );
        let first = last(&entries, at(3)).unwrap();
        assert_eq!((first.versions(), first.newest(9, at(3)).unwrap()), (129, Some((at(3), bytes(3, 9)))));
        let second = last(&entries, at(4)).unwrap();
        assert_eq!((second.versions(), second.present()), (64, u64::MAX));
        for block in 0..64 {
            let tid = if block % 2 == 0 {
                4
            } else if block == 9 {
                3
            } else {
                2
            };
            assert_eq!(second.newest(block, at(4)).unwrap(), Some((at(tid), bytes(tid as u32, block))));
        }
    }

    #[test]
    fn a_commit_that_comes_back_to_a_group_replaces_and_never_fills_it() {
        // 131 versions; the commit changes all blocks and begins a segment.
        let mut entries = dense(2);
        for part in [0..20, 10..64, 0..64] {
            put(&mut entries, &changes(3, part));
        }
        assert_eq!(entries.len(), 2);
        let second = last(&entries, at(3)).unwrap();
        assert!(second.versions() <= 128, "{}", second.versions());
        for block in 0..64 {
            assert_eq!(second.newest(block, at(3)).unwrap(), Some((at(3), bytes(3, block))));
            assert_eq!(last(&entries, at(2)).unwrap().newest(block, at(2)).unwrap().unwrap().0, at(2));
        }
    }

    #[test]
    fn versions_that_do_not_ascend_are_refused() {
        let entries = dense(2);
        let segment = last(&entries, Tid::MAX).unwrap();
        assert!(changes(1, [3]).put_on(Some(&segment)).is_err(), "older than the block");
        let mut entries = Entries::new();
        put(&mut entries, &changes(5, [3]));
        let segment = last(&entries, Tid::MAX).unwrap();
        assert!(changes(4, [4]).put_on(Some(&segment)).is_err(), "older than the segment");
        // Full, and block 9 is newer than the commit that would carry it.
        let mut entries = dense(2);
        put(&mut entries, &changes(9, 9..30));
        let segment = last(&entries, Tid::MAX).unwrap();
        assert!(changes(8, [0]).put_on(Some(&segment)).is_err(), "older than what it would carry");
    }

    #[test]
    fn a_cover_makes_holes_of_bytes_alone_and_spares_those_of_its_own_commit() {
        let mut entries = Entries::new();
        put(&mut entries, &changes(1, [0, 1, 2]));
        let mut both = changes(2, [1, 5]);
        both.cover(u64::MAX);
        assert_eq!(put(&mut entries, &both), 3 + 3 - 2 * 3);
        let segment = last(&entries, at(2)).unwrap();
        let hole = |block| segment.newest(block, at(2)).unwrap() == Some((at(2), BlockData::Hole));
        assert_eq!([0, 1, 2].map(hole), [true, false, true]);
        assert_eq!((segment.present(), segment.versions()), (0b10_0111, 7));
        let mut again = Changes::new(at(2), FILE, GROUP);
        again.cover(u64::MAX);
        assert!(again.put_on(Some(&segment)).unwrap().is_none(), "nothing is left to cover");
    }

    #[test]
    fn a_segment_fits_the_pages_of_lmdb() {
        let mut sparse = Entries::new();
        put(&mut sparse, &changes(1, [8]));
        assert_eq!(sparse.values().map(Vec::len).collect::<Vec<_>>(), [8 + 1 + 4 + 8 + 17 + 4]);
        assert_eq!(dense(1).values().map(Vec::len).collect::<Vec<_>>(), [PADDED_BYTES]);
        assert_eq!(dense(2).values().map(Vec::len).collect::<Vec<_>>(), [8 + 64 + 4 + 64 * (2 * 25 + 4)]);
    }

    #[test]
    fn bits_are_those_of_the_blocks_in_the_range() {
        assert_eq!(bits_of(1, (0, 64)), 0);
        assert_eq!(bits_of(1, (64, 65)), 1);
        assert_eq!(bits_of(1, (66, 128)), u64::MAX << 2);
        assert_eq!(bits_of(1, (3, u64::MAX)), u64::MAX);
        assert_eq!(bits_of(group_of(u64::MAX), (u64::MAX - 1, u64::MAX)), 1 << 62);
        assert_eq!(numbers(1 << 63 | 0b101).collect::<Vec<_>>(), [0, 2, 63]);
    }

    /// A commit: blocks that it stores, blocks that it covers, and whether it comes back for the half of them.
    fn commit() -> impl Strategy<Value = (u64, u64, bool)> {
        let bits = prop_oneof![
            4 => (0u32..64).prop_map(|block| 1u64 << block),
            2 => any::<u64>(),
            1 => Just(u64::MAX),
            1 => Just(0),
        ];
        let covered = prop_oneof![3 => Just(0), 1 => any::<u64>()];
        (bits, covered, prop::bool::weighted(0.2))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn segments_answer_as_a_map_of_all_versions(commits in prop::collection::vec(commit(), 1..40)) {
            let mut entries = Entries::new();
            let mut model = vec![BTreeMap::<Tid, BlockData>::new(); 64];
            let (mut grown, end) = (0, at(10 * commits.len() as u64 + 9));
            for (number, (stored, covered, again)) in (1..).zip(commits) {
                let tid = at(number * 10);
                for pass in 0..=u64::from(again) {
                    let stored = if pass == 1 { stored & 0x5555_5555_5555_5555 } else { stored };
                    let mut changes = Changes::new(tid, FILE, GROUP);
                    for block in numbers(stored) {
                        let data = bytes(pass as u32, number * 64 + u64::from(block));
                        changes.store(u64::from(block), data);
                        model[block as usize].insert(tid, data);
                    }
                    changes.cover(covered);
                    for versions in numbers(covered & !stored).map(|block| block as usize) {
                        let newest = model[versions].last_key_value().map(|(tid, data)| (*tid, *data));
                        if newest.is_some_and(|(at, data)| data != BlockData::Hole && at < tid) {
                            model[versions].insert(tid, BlockData::Hole);
                        }
                    }
                    grown += put(&mut entries, &changes);
                }
            }
            let newest = |block: usize, at: Tid| model[block].range(..=at).next_back().map(|(t, d)| (*t, *d));
            let kept: i128 = (0..64).map(|block| i128::from(stored_len(newest(block, end)))).sum();
            prop_assert_eq!(grown, kept);
            prop_assert!(entries.values().all(|value| value.len() <= SEGMENT_BYTES_MAX));
            for tid in (0..=end.raw()).step_by(5).map(at) {
                let segment = last(&entries, tid);
                for block in 0..64 {
                    let found = segment.as_ref().and_then(|segment| segment.newest(block as u64, tid).unwrap());
                    prop_assert_eq!(found, newest(block, tid), "block {} at {:?}", block, tid);
                }
            }
        }
    }
}
