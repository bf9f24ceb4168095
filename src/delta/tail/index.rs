//! Where the newest change of each piece of each file is: two open-addressing tables of atomics.
//!
//! The writer adds and replaces while readers read. A slot is never emptied, and is of one piece for good: one whose entry
//! is forgotten is garbage until the piece changes again, or the writer makes a new index of what is left. A reader with
//! an older state may find entries that are newer than it; it goes back from them.

use std::sync::atomic::Ordering;

use revfs_protocol::FileId;

use super::atomics::{AtomicU32, AtomicU64};
use super::chunks::Behind;
use super::window::{Blocks, Events};

/// An index is made anew when so many entries were forgotten, before their numbers come round again.
pub const AGE_MAX: u32 = if cfg!(test) { 1 << 8 } else { 1 << 30 };
const LOW: u64 = 0xffff_ffff;
const SET: u64 = 1 << 32;
const SLOTS_MIN: usize = if cfg!(test) { 32 } else { 64 };
const FILES_MIN: usize = if cfg!(test) { 4 } else { 8 };

/// Places for keys, in relation to keys: a new table is 53 % full, one that is left 80 %.
const fn slots_for(keys: usize) -> usize {
    keys + keys / 8 * 7 + SLOTS_MIN
}

const fn keys_max(slots: usize) -> usize {
    slots / 5 * 4
}

/// A change of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Number of its entry.
    pub number: u32,
    /// Whether there was one before it in the window when it was made.
    pub has_prev: bool,
}

/// The newest change of one piece: all that tells whose it is, so that nobody has to look at the entry for that.
#[derive(Debug, Default)]
#[repr(align(16))] // never in two cache lines
struct Slot {
    // Written before `newest` is, and never again.
    key: AtomicU64,
    // 0: empty; else the ordinal of the file plus 1 (31 bits: there are fewer files than entries, see `ENTRIES_LIMIT`),
    // a bit for `has_prev`, and the number of the entry.
    newest: AtomicU64,
}

const HAS_PREV: u64 = 1 << 32;
const OWNER_SHIFT: u32 = 33;

impl Newest {
    fn of(word: u64) -> Newest {
        Newest { number: (word & LOW) as u32, has_prev: word & HAS_PREV != 0 }
    }

    fn word(self, ordinal: u32) -> u64 {
        let has_prev = if self.has_prev { HAS_PREV } else { 0 };
        (u64::from(ordinal) + 1) << OWNER_SHIFT | has_prev | u64::from(self.number)
    }
}

/// What a slot says to who looks for a piece.
enum Seen {
    Empty,
    Other,
    Of(Newest),
}

impl Slot {
    #[inline]
    fn seen(&self, ordinal: u32, key: u64) -> Seen {
        let word = self.newest.load(Ordering::Acquire);
        if word == 0 {
            Seen::Empty
        } else if word >> OWNER_SHIFT == u64::from(ordinal) + 1 && self.key.load(Ordering::Relaxed) == key {
            Seen::Of(Newest::of(word))
        } else {
            Seen::Other
        }
    }

    fn set(&self, ordinal: u32, key: u64, newest: Newest) {
        self.key.store(key, Ordering::Relaxed);
        self.newest.store(newest.word(ordinal), Ordering::Release);
    }

    /// Its ordinal, key and entry, for the writer.
    fn content(&self) -> Option<(u32, u64, Newest)> {
        let word = self.newest.load(Ordering::Relaxed);
        let ordinal = (word >> OWNER_SHIFT).checked_sub(1)? as u32;
        Some((ordinal, self.key.load(Ordering::Relaxed), Newest::of(word)))
    }
}

/// The newest change of each piece.
#[derive(Debug)]
struct Table {
    slots: Box<[Slot]>,
}

impl Table {
    fn new(slots: usize) -> Table {
        Table { slots: (0..slots).map(|_| Slot::default()).collect() }
    }

    /// The slots from where a hash belongs on, all around.
    #[inline]
    fn from(&self, hash: u64) -> impl Iterator<Item = &Slot> {
        let start = (((hash >> 32) * self.slots.len() as u64) >> 32) as usize;
        let (before, after) = self.slots.split_at(start);
        after.iter().chain(before)
    }
}

/// What is known of one file.
#[derive(Debug, Default)]
pub struct FileRecord {
    id: AtomicU64,
    levels: AtomicU32,
    // 0: none; else `SET` and the number of the newest entry.
    blocks: AtomicU64,
    events: AtomicU64,
}

fn link(place: &AtomicU64) -> Option<u32> {
    let value = place.load(Ordering::Acquire);
    (value != 0).then_some((value & LOW) as u32)
}

impl FileRecord {
    /// Which file.
    pub fn id(&self) -> FileId {
        FileId::from_raw(self.id.load(Ordering::Relaxed))
    }

    /// Levels of which it has pieces, a bit each.
    pub fn levels(&self) -> u32 {
        self.levels.load(Ordering::Relaxed)
    }

    /// Its newest change of a block.
    pub fn newest_block(&self) -> Option<u32> {
        link(&self.blocks)
    }

    /// Its newest event.
    pub fn newest_event(&self) -> Option<u32> {
        link(&self.events)
    }

    /// Notes a change of a block, by the writer.
    pub fn set_newest_block(&self, number: u32, level: u32) {
        // Before the state in which it counts is published.
        self.levels.fetch_or(1 << level, Ordering::Relaxed);
        self.blocks.store(SET | u64::from(number), Ordering::Release);
    }

    /// Notes an event, by the writer.
    pub fn set_newest_event(&self, number: u32) {
        self.events.store(SET | u64::from(number), Ordering::Release);
    }

    fn lives(&self, blocks: &Blocks, events: &Events) -> bool {
        self.newest_block().is_some_and(|number| !blocks.is_old(number))
            || self.newest_event().is_some_and(|number| !events.is_old(number))
    }

    fn copy(&self) -> FileRecord {
        let copy = |place: &AtomicU64| AtomicU64::new(place.load(Ordering::Relaxed));
        FileRecord {
            id: copy(&self.id),
            levels: AtomicU32::new(self.levels()),
            blocks: copy(&self.blocks),
            events: copy(&self.events),
        }
    }
}

/// Records of files, found by their ids. The place of a record is the file's ordinal, which stays as long as the
/// file has entries in the window.
#[derive(Debug)]
struct Files {
    // 0: empty; else an ordinal plus 1.
    slots: Box<[AtomicU32]>,
    records: Box<[FileRecord]>,
}

impl Files {
    #[inline]
    fn find(&self, hash: u64, file: FileId) -> Option<(u32, &FileRecord)> {
        let start = (((hash >> 32) * self.slots.len() as u64) >> 32) as usize;
        let (before, after) = self.slots.split_at(start);
        for slot in after.iter().chain(before) {
            let ordinal = slot.load(Ordering::Acquire).checked_sub(1)?;
            let record = self.records.get(ordinal as usize)?;
            if record.id() == file {
                return Some((ordinal, record));
            }
        }
        None
    }

    fn insert(&self, hash: u64, ordinal: u32) {
        let start = (((hash >> 32) * self.slots.len() as u64) >> 32) as usize;
        let (before, after) = self.slots.split_at(start);
        if let Some(slot) = after.iter().chain(before).find(|slot| slot.load(Ordering::Relaxed) == 0) {
            slot.store(ordinal + 1, Ordering::Release);
        }
    }
}

/// Both tables.
#[derive(Debug)]
pub struct Index {
    seed: u64,
    table: Table,
    files: Files,
    // Numbers that the windows began with when it was made.
    born: (u32, u32),
}

/// What only the writer knows of the [`Index`].
#[derive(Debug, Default)]
pub struct Used {
    keys: usize,
    free: Vec<u32>,
}

/// Mixes 64 bits so that each depends on all.
fn mix(value: u64, by: u64) -> u64 {
    let product = u128::from(value) * u128::from(by);
    product as u64 ^ (product >> 64) as u64
}

impl Index {
    /// An index without files, with room for some.
    pub fn empty(seed: u64, blocks: &Blocks, events: &Events, room: Room) -> (Index, Used) {
        let none = Index {
            seed,
            table: Table::new(0),
            files: Files { slots: Box::default(), records: Box::default() },
            born: (blocks.base(), events.base()),
        };
        none.anew(blocks, events, room)
    }

    fn hash(&self, ordinal: u32, key: u64) -> u64 {
        let spread = u64::from(ordinal).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = mix(key ^ spread ^ self.seed, 0xd6e8_feb8_6659_fd93);
        mix(mixed, 0xa076_1d64_78bd_642f)
    }

    fn file_hash(&self, file: FileId) -> u64 {
        mix(mix(file.raw() ^ self.seed, 0xd6e8_feb8_6659_fd93), 0xa076_1d64_78bd_642f)
    }

    /// A file that has changes.
    #[inline]
    pub fn file(&self, file: FileId) -> Option<(u32, &FileRecord)> {
        self.files.find(self.file_hash(file), file)
    }

    /// The file with this ordinal.
    pub fn record(&self, ordinal: u32) -> Option<&FileRecord> {
        self.files.records.get(ordinal as usize)
    }

    /// The newest change of a piece, which may be newer than the window; none if it is forgotten.
    #[inline]
    pub fn newest(&self, blocks: &Blocks, ordinal: u32, key: u64) -> Option<Newest> {
        let mut seen = self.table.from(self.hash(ordinal, key)).map(|slot| slot.seen(ordinal, key));
        // Not a `for`, which would ask at each step in which of two halves it is: that costs a fifth of a question.
        match seen.find(|seen| !matches!(seen, Seen::Other)) {
            Some(Seen::Of(newest)) => (!blocks.is_old(newest.number)).then_some(newest),
            Some(Seen::Empty | Seen::Other) | None => None,
        }
    }

    /// Notes the newest change of a piece, by the writer, who has seen to it that there is room.
    pub fn set_newest(
        &self,
        used: &mut Used,
        (ordinal, key): (u32, u64),
        newest: Newest,
    ) -> Result<(), Behind> {
        for slot in self.table.from(self.hash(ordinal, key)) {
            match slot.seen(ordinal, key) {
                Seen::Empty => used.keys += 1,
                Seen::Other => continue,
                Seen::Of(_) => {}
            }
            slot.set(ordinal, key, newest);
            return Ok(());
        }
        Err(Behind)
    }

    /// The record of a file, made if it has none, by the writer, who has seen to it that there is room.
    pub fn file_or_new(&self, used: &mut Used, file: FileId) -> Result<(u32, &FileRecord), Behind> {
        if let Some(found) = self.file(file) {
            return Ok(found);
        }
        let ordinal = used.free.pop().ok_or(Behind)?;
        let record = self.record(ordinal).ok_or(Behind)?;
        record.id.store(file.raw(), Ordering::Relaxed);
        self.files.insert(self.file_hash(file), ordinal);
        Ok((ordinal, record))
    }

    /// Whether there is room, and the garbage is neither too old nor most of it all.
    pub fn suits(&self, used: &Used, blocks: &Blocks, events: &Events, room: Room) -> bool {
        let slots = self.table.slots.len();
        let is_young = blocks.base().wrapping_sub(self.born.0) < AGE_MAX
            && events.base().wrapping_sub(self.born.1) < AGE_MAX;
        let is_dense = slots <= 4 * slots_for(blocks.len() + room.keys);
        is_young && is_dense && used.keys + room.keys <= keys_max(slots) && room.files <= used.free.len()
    }

    /// An index of what the windows still have, with room for more.
    pub fn anew(&self, blocks: &Blocks, events: &Events, room: Room) -> (Index, Used) {
        let live = || {
            let known = self.table.slots.iter().filter_map(Slot::content);
            known.filter(|(_, _, newest)| !blocks.is_old(newest.number))
        };
        let keys = live().count();
        let table = Table::new(slots_for(keys + room.keys));
        for (ordinal, key, newest) in live() {
            let mut places = table.from(self.hash(ordinal, key));
            if let Some(place) = places.find(|place| place.content().is_none()) {
                place.set(ordinal, key, newest);
            }
        }
        let (files, free) = self.files_anew(blocks, events, room);
        let born = (blocks.base(), events.base());
        (Index { seed: self.seed, table, files, born }, Used { keys, free })
    }

    fn files_anew(&self, blocks: &Blocks, events: &Events, room: Room) -> (Files, Vec<u32>) {
        let old = &self.files.records;
        let lives = |ordinal: usize| old.get(ordinal).is_some_and(|record| record.lives(blocks, events));
        let count = (0..old.len()).filter(|ordinal| lives(*ordinal)).count();
        let last = (0..old.len()).rev().find(|ordinal| lives(*ordinal)).map_or(0, |last| last + 1);
        let places = last.max(2 * (count + room.files) + FILES_MIN);
        let copy = |ordinal: usize| if lives(ordinal) { old[ordinal].copy() } else { FileRecord::default() };
        let files = Files {
            slots: (0..2 * places).map(|_| AtomicU32::new(0)).collect(),
            records: (0..places).map(copy).collect(),
        };
        let mut free = Vec::new();
        for ordinal in (0..places).rev() {
            if lives(ordinal) {
                files.insert(self.file_hash(files.records[ordinal].id()), ordinal as u32);
            } else {
                free.push(ordinal as u32);
            }
        }
        (files, free)
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.table.slots.len() * size_of::<Slot>()
            + self.files.slots.len() * 4
            + self.files.records.len() * size_of::<FileRecord>()
    }
}

/// What is about to come at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// Pieces.
    pub keys: usize,
    /// Files.
    pub files: usize,
}
