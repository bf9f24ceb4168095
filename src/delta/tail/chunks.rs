//! Numbered items in chunks, which all states that reach into them share; a chunk is freed with the last of them.
//!
//! Numbers are 32 bits and go round: only their distance from the first chunk counts.

use std::sync::Arc;

/// Numbers of a chunk; a power of two. Tests cross from one to the next all the time.
pub const CHUNK: u32 = if cfg!(test) { 8 } else { 4096 };

/// The index was changed since the reader took its state; a newer one is there already.
#[derive(Debug)]
pub struct Behind;

/// One item for every `EACH` numbers, which is a power of two up to [`CHUNK`].
#[derive(Debug)]
pub struct Chunks<T, const EACH: u32> {
    // First number of the first chunk; a multiple of CHUNK.
    origin: u32,
    list: Arc<[Arc<[T]>]>,
}

impl<T, const EACH: u32> Clone for Chunks<T, EACH> {
    fn clone(&self) -> Self {
        Chunks { origin: self.origin, list: Arc::clone(&self.list) }
    }
}

impl<T: Default, const EACH: u32> Chunks<T, EACH> {
    /// No chunks; the first number to come is `at`.
    pub fn empty(at: u32) -> Self {
        Chunks { origin: at & !(CHUNK - 1), list: Arc::default() }
    }

    /// The item of this number, which was not released.
    #[inline]
    pub fn get(&self, number: u32) -> Result<&T, Behind> {
        let offset = number.wrapping_sub(self.origin);
        let chunk = self.list.get((offset / CHUNK) as usize).ok_or(Behind)?;
        chunk.get((offset % CHUNK / EACH) as usize).ok_or(Behind)
    }

    /// Whether the `more` numbers from `end` on have items.
    pub fn has_room(&self, end: u32, more: usize) -> bool {
        end.wrapping_sub(self.origin) as usize + more <= self.list.len() * CHUNK as usize
    }

    /// Makes items for the `more` numbers from `end` on.
    pub fn make_room(&mut self, end: u32, more: usize) {
        let wanted = (end.wrapping_sub(self.origin) as usize + more).div_ceil(CHUNK as usize);
        let fresh = (self.list.len()..wanted).map(|_| (0..CHUNK / EACH).map(|_| T::default()).collect());
        self.list = self.list.iter().cloned().chain(fresh).collect();
    }

    /// Lets go of the chunks that lie wholly before `base`.
    pub fn release(&mut self, base: u32) {
        let gone = (base.wrapping_sub(self.origin) / CHUNK).min(self.list.len() as u32);
        if gone > 0 {
            self.list = self.list.iter().skip(gone as usize).cloned().collect();
            self.origin = self.origin.wrapping_add(gone * CHUNK);
        }
    }

    /// Bytes that its chunks take.
    pub fn bytes(&self) -> usize {
        self.list.len() * ((CHUNK / EACH) as usize * size_of::<T>() + size_of::<Arc<[T]>>())
    }
}
