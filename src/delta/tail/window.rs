//! Entries in the order of their tids, and the part of them that a window covers.
//!
//! Entries are numbered; numbers are 32 bits and go round, which is harmless as long as no two that are compared
//! are 2^31 apart ([`super::ENTRIES_LIMIT`] and [`super::index::AGE_MAX`] see to it). An entry is written once,
//! before anything that readers see leads to it, and never again. Chunks are shared by all windows that reach
//! into them, and freed with the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use revfs_protocol::Tid;

/// Entries of a chunk; a power of two. Tests cross from one to the next all the time.
const CHUNK: u32 = if cfg!(test) { 8 } else { 4096 };

const LOW: u64 = 0xffff_ffff;
const RANK_SHIFT: u32 = 54;
const RANK_MASK: u64 = 0x3f << RANK_SHIFT;

/// One change: 8 bytes of tid, of what it is, of links, of file; more as its kind needs.
///
/// `prev` is the change before it of the same thing. `jump` skips a number of them that doubles with the rank
/// (a skew-binary list), so that the version at any tid is found in logarithmic time.
#[derive(Debug)]
#[repr(align(32))] // an entry of 32 bytes never lies in two cache lines
pub struct Entry<const WORDS: usize>([AtomicU64; WORDS]);

/// Words of an [`Entry`].
pub mod word {
    /// Its tid.
    pub const TID: usize = 0;
    /// What changed, and the rank.
    pub const KEY: usize = 1;
    /// `prev` and `jump`.
    pub const LINKS: usize = 2;
    /// Ordinal of the file; for blocks also the change before it of any block of the file.
    pub const FILE: usize = 3;
    /// Events: size after, bytes.
    pub const SIZE: usize = 4;
    /// Events: size before, bytes.
    pub const OLD_SIZE: usize = 5;
    /// Events: all blocks from this one on changed.
    pub const FIRST: usize = 6;
    /// Events: the least `FIRST` of those from this one to its `jump`, excluded.
    pub const LEAST: usize = 7;
}

impl<const WORDS: usize> Entry<WORDS> {
    fn empty() -> Entry<WORDS> {
        Entry([const { AtomicU64::new(0) }; WORDS])
    }

    /// A word. Whoever leads a reader here has published the entry, so no order is needed.
    pub fn word(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn fill(&self, words: [u64; WORDS]) {
        for (place, word) in self.0.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// When.
    pub fn tid(&self) -> Tid {
        Tid::from_raw(self.word(word::TID))
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

/// The index was changed since the reader took its state; a newer one is there already.
#[derive(Debug)]
pub struct Behind;

/// Entries `[base, end)`.
#[derive(Clone, Debug)]
pub struct Window<const WORDS: usize> {
    base: u32,
    end: u32,
    // Number of the first entry of the first chunk; a multiple of CHUNK.
    origin: u32,
    chunks: Arc<[Arc<[Entry<WORDS>]>]>,
}

impl<const WORDS: usize> Window<WORDS> {
    /// A window without entries; the first to come is number `at`.
    pub fn empty(at: u32) -> Window<WORDS> {
        Window { base: at, end: at, origin: at & !(CHUNK - 1), chunks: Arc::default() }
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
        let chunk = CHUNK as usize * size_of::<Entry<WORDS>>() + size_of::<Arc<[Entry<WORDS>]>>();
        self.chunks.len() * chunk
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
        let offset = number.wrapping_sub(self.origin);
        let chunk = self.chunks.get((offset / CHUNK) as usize).ok_or(Behind)?;
        chunk.get((offset % CHUNK) as usize).map(Some).ok_or(Behind)
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
            let entry = self.get(self.base.wrapping_add(middle))?.ok_or(Behind)?;
            if entry.tid() <= tid { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The tid of the entry at this place of the window, counted from the oldest.
    pub fn tid_at(&self, place: usize) -> Result<Option<Tid>, Behind> {
        if place >= self.len() {
            return Ok(None);
        }
        Ok(self.get(self.base.wrapping_add(place as u32))?.map(Entry::tid))
    }

    /// Forgets all entries with a tid up to this one.
    pub fn forget(&mut self, tail: Tid) -> Result<(), Behind> {
        self.base = self.base.wrapping_add(self.after(tail)?);
        let gone = (self.base.wrapping_sub(self.origin) / CHUNK).min(self.chunks.len() as u32);
        if gone > 0 {
            self.chunks = self.chunks.iter().skip(gone as usize).cloned().collect();
            self.origin = self.origin.wrapping_add(gone * CHUNK);
        }
        Ok(())
    }

    /// Whether `more` entries have a place.
    pub fn has_room(&self, more: usize) -> bool {
        let used = self.end.wrapping_sub(self.origin) as usize;
        used + more <= self.chunks.len() * CHUNK as usize
    }

    /// Makes places for `more` entries.
    pub fn make_room(&mut self, more: usize) {
        let used = self.end.wrapping_sub(self.origin) as usize;
        let wanted = (used + more).div_ceil(CHUNK as usize);
        let fresh = (self.chunks.len()..wanted).map(|_| (0..CHUNK).map(|_| Entry::empty()).collect());
        self.chunks = self.chunks.iter().cloned().chain(fresh).collect();
    }

    /// Writes the next entry; answers its number. Readers see it when something leads them there.
    pub fn push(&mut self, words: [u64; WORDS]) -> Result<u32, Behind> {
        let number = self.end;
        self.get(number)?.ok_or(Behind)?.fill(words);
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

    /// Of the changes of one thing that end with `newest`, the last at or before `at`.
    #[inline]
    pub fn newest_at(&self, newest: u32, at: Tid) -> Result<Option<&Entry<WORDS>>, Behind> {
        let mut number = newest;
        while let Some(entry) = self.get(number)? {
            if entry.tid() <= at {
                return Ok(Some(entry));
            }
            number = match self.get(entry.jump())? {
                Some(far) if far.tid() > at => entry.jump(),
                _ => entry.prev(),
            };
        }
        Ok(None)
    }
}

impl Window<8> {
    /// Of the events of a file that end with `newest`, the last at or before `at` that changed `block`.
    pub fn newest_of_block(&self, newest: u32, at: Tid, block: u64) -> Result<Option<Tid>, Behind> {
        let mut found = self.newest_at(newest, at)?;
        while let Some(event) = found {
            if event.word(word::FIRST) <= block {
                return Ok(Some(event.tid()));
            }
            // Nothing up to the jump reaches the block.
            let passes = event.word(word::LEAST) > block;
            found = self.get(if passes { event.jump() } else { event.prev() })?;
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
