//! Entries in the order of their tids, and the part of them that a window covers.
//!
//! Entries are numbered; numbers are 32 bits and go round, which is harmless as long as no two that are compared
//! are 2^31 apart ([`super::ENTRIES_LIMIT`] and [`super::index::AGE_MAX`] see to it). An entry is written once,
//! before anything that readers see leads to it, and never again. Chunks are shared by all windows that reach
//! into them, and freed with the last.

use std::sync::atomic::Ordering;

use revfs_protocol::Tid;

use super::atomics::AtomicU64;
use super::chunks::{Behind, Chunks};
use super::tids::Tids;

const LOW: u64 = 0xffff_ffff;
const RANK_SHIFT: u32 = 54;
const RANK_MASK: u64 = 0x3f << RANK_SHIFT;

/// One change: what it is, links, file; more as its kind needs. When it was made is kept apart, in [`Tids`].
///
/// `prev` is the change before it of the same thing. `jump` skips a number of them that doubles with the rank
/// (a skew-binary list), so that the version at any tid is found in logarithmic time.
#[derive(Debug)]
pub struct Entry<const WORDS: usize>([AtomicU64; WORDS]);

/// Words of an [`Entry`].
pub mod word {
    /// What changed, and the rank.
    pub const KEY: usize = 0;
    /// `prev` and `jump`.
    pub const LINKS: usize = 1;
    /// Ordinal of the file; for blocks also the change before it of any block of the file.
    pub const FILE: usize = 2;
    /// Events: size after, bytes.
    pub const SIZE: usize = 3;
    /// Events: size before, bytes.
    pub const OLD_SIZE: usize = 4;
    /// Events: all blocks from this one on changed.
    pub const FIRST: usize = 5;
    /// Events: the least `FIRST` of those from this one to its `jump`, excluded.
    pub const LEAST: usize = 6;
}

/// Changes of blocks.
pub type Blocks = Window<3>;
/// Changes of sizes, creations and deletions.
pub type Events = Window<7>;

impl<const WORDS: usize> Default for Entry<WORDS> {
    fn default() -> Entry<WORDS> {
        Entry([const { AtomicU64::new(0) }; WORDS])
    }
}

impl<const WORDS: usize> Entry<WORDS> {
    /// A word. Whoever leads a reader here has published the entry, so no order is needed.
    pub fn word(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn fill(&self, words: [u64; WORDS]) {
        for (place, word) in self.0.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// What changed, without the rank.
    pub fn key(&self) -> u64 {
        self.word(word::KEY) & !RANK_MASK
    }

    /// Ordinal of the file.
    pub fn ordinal(&self) -> u32 {
        (self.word(word::FILE) >> 32) as u32
    }

    /// The change before it of any block of the same file.
    pub fn file_prev(&self) -> u32 {
        (self.word(word::FILE) & LOW) as u32
    }

    fn rank(&self) -> u64 {
        (self.word(word::KEY) & RANK_MASK) >> RANK_SHIFT
    }

    /// The change before it of the same thing.
    pub fn prev(&self) -> u32 {
        (self.word(word::LINKS) >> 32) as u32
    }

    /// A change further back.
    pub fn jump(&self) -> u32 {
        (self.word(word::LINKS) & LOW) as u32
    }
}

/// Links and rank of an entry to come.
#[derive(Clone, Copy, Debug)]
pub struct Skip {
    prev: u32,
    jump: u32,
    rank: u64,
}

impl Skip {
    /// The word of its links.
    pub fn links(self) -> u64 {
        u64::from(self.prev) << 32 | u64::from(self.jump)
    }

    /// The word of what changed.
    pub fn key(self, key: u64) -> u64 {
        key | self.rank << RANK_SHIFT
    }
}

/// Entries `[base, end)`.
#[derive(Clone, Debug)]
pub struct Window<const WORDS: usize> {
    base: u32,
    end: u32,
    entries: Chunks<Entry<WORDS>, 1>,
    tids: Tids,
}

impl<const WORDS: usize> Window<WORDS> {
    /// A window without entries; the first to come is number `at`.
    pub fn empty(at: u32) -> Window<WORDS> {
        Window { base: at, end: at, entries: Chunks::empty(at), tids: Tids::empty(at) }
    }

    /// Number of the first entry.
    pub fn base(&self) -> u32 {
        self.base
    }

    /// Number after the last entry.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.end.wrapping_sub(self.base) as usize
    }

    /// Bytes that its chunks take.
    pub fn bytes(&self) -> usize {
        self.entries.bytes() + self.tids.bytes()
    }

    /// A number that is of no entry of the window, nor of a later one.
    pub fn nowhere(&self) -> u32 {
        self.base.wrapping_sub(1 << 30)
    }

    /// Whether an entry is forgotten, or never was.
    pub fn is_old(&self, number: u32) -> bool {
        (number.wrapping_sub(self.base) as i32) < 0
    }

    /// The entry with this number; none if it is forgotten.
    #[inline]
    pub fn get(&self, number: u32) -> Result<Option<&Entry<WORDS>>, Behind> {
        #[cfg(test)]
        super::tests::note_step();
        if self.is_old(number) {
            return Ok(None);
        }
        self.entries.get(number).map(Some)
    }

    /// When the entry with this number, which is not forgotten, was made.
    #[inline]
    pub fn tid(&self, number: u32) -> Result<Tid, Behind> {
        #[cfg(test)]
        super::tests::note_step();
        self.tids.of(number)
    }

    /// Numbers of the entries with lo < tid <= hi.
    pub fn between(&self, lo: Tid, hi: Tid) -> Result<impl Iterator<Item = u32> + use<WORDS>, Behind> {
        let (from, until) = (self.after(lo)?, self.after(hi)?);
        let base = self.base;
        Ok((from..until).map(move |place| base.wrapping_add(place)))
    }

    /// How many entries have a tid up to this one.
    fn after(&self, tid: Tid) -> Result<u32, Behind> {
        let (mut low, mut high) = (0, self.len() as u32);
        while low < high {
            let middle = low + (high - low) / 2;
            let passed = self.tid(self.base.wrapping_add(middle))?;
            if passed <= tid { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The tid of the entry at this place of the window, counted from the oldest.
    pub fn tid_at(&self, place: usize) -> Result<Option<Tid>, Behind> {
        if place >= self.len() {
            return Ok(None);
        }
        self.tid(self.base.wrapping_add(place as u32)).map(Some)
    }

    /// Forgets all entries with a tid up to this one.
    pub fn forget(&mut self, tail: Tid) -> Result<(), Behind> {
        self.base = self.base.wrapping_add(self.after(tail)?);
        self.entries.release(self.base);
        self.tids.forget(self.base, self.end)
    }

    /// Whether `more` entries of one commit have a place.
    pub fn has_room(&self, more: usize) -> bool {
        self.entries.has_room(self.end, more) && self.tids.has_room(self.end, more)
    }

    /// Makes places for `more` entries of one commit.
    pub fn make_room(&mut self, more: usize) {
        self.entries.make_room(self.end, more);
        self.tids.make_room(self.end, more);
    }

    /// Writes the next entry; answers its number. Readers see it when something leads them there.
    pub fn push(&mut self, tid: Tid, words: [u64; WORDS]) -> Result<u32, Behind> {
        let number = self.end;
        self.get(number)?.ok_or(Behind)?.fill(words);
        self.tids.push(number, tid)?;
        self.end = number.wrapping_add(1);
        Ok(number)
    }

    /// Links for a change of what changed last at `prev`.
    pub fn skip(&self, prev: Option<u32>) -> Result<Skip, Behind> {
        let Some(prev) = prev else {
            let nowhere = self.end.wrapping_sub(1 << 30);
            return Ok(Skip { prev: nowhere, jump: nowhere, rank: 0 });
        };
        let near = Skip { prev, jump: prev, rank: 1 };
        let Some(before) = self.get(prev)? else { return Ok(near) };
        let Some(middle) = self.get(before.jump())? else { return Ok(near) };
        // Two jumps as long as each other, end to end, become one.
        if middle.rank() != before.rank() || self.is_old(middle.jump()) {
            return Ok(near);
        }
        Ok(Skip { prev, jump: middle.jump(), rank: before.rank() + 1 })
    }

    /// Of the changes of one thing that end with `newest`, the number of the last at or before `at`.
    pub fn newest_at(&self, newest: u32, at: Tid) -> Result<Option<u32>, Behind> {
        let mut number = newest;
        while let Some(entry) = self.get(number)? {
            if self.tid(number)? <= at {
                return Ok(Some(number));
            }
            let jump = entry.jump();
            let passes = !self.is_old(jump) && self.tid(jump)? > at;
            number = if passes { jump } else { entry.prev() };
        }
        Ok(None)
    }
}

impl Events {
    /// Of the events of a file that end with `newest`, the last at or before `at` that changed `block`.
    pub fn newest_of_block(&self, newest: u32, at: Tid, block: u64) -> Result<Option<Tid>, Behind> {
        let Some(mut number) = self.newest_at(newest, at)? else { return Ok(None) };
        while let Some(event) = self.get(number)? {
            if event.word(word::FIRST) <= block {
                return self.tid(number).map(Some);
            }
            // Nothing up to the jump reaches the block.
            let passes = event.word(word::LEAST) > block;
            number = if passes { event.jump() } else { event.prev() };
        }
        Ok(None)
    }

    /// [`word::LEAST`] of an event to come.
    pub fn least(&self, skip: Skip, first: u64) -> Result<u64, Behind> {
        let mut least = first;
        let mut number = skip.prev;
        while number != skip.jump {
            let Some(event) = self.get(number)? else { break };
            least = least.min(event.word(word::LEAST));
            number = event.jump();
        }
        Ok(least)
    }
}
