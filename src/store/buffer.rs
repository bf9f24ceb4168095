//! Page-aligned buffers for reads past the page cache, and a pool that keeps them.
//!
//! Invariant: a buffer's memory is never handed to two readers; it goes back to its pool when it is dropped.
//! Left out on purpose: clearing. A reader fills every byte that it shows; `Piece`s cover the whole buffer.

use std::sync::{Arc, Mutex, PoisonError};

use aligned_vec::{AVec, ConstAlign};

/// Alignment that O_DIRECT asks for on every filesystem known, bytes.
pub const BUFFER_ALIGN: usize = 4096;
/// A pool keeps buffers of up to this size; larger ones are freed, bytes.
const POOLED_BYTES_MAX: usize = 4 << 20;

type Memory = AVec<u8, ConstAlign<BUFFER_ALIGN>>;

/// Keeps buffers for reuse: a fresh 2 MiB costs 512 page faults, as much as reading them.
#[derive(Debug)]
pub struct BufferPool {
    // Leaf lock: nothing is locked or waited for under it.
    free: Mutex<Vec<Memory>>,
    keep: usize,
    least: usize,
}

impl BufferPool {
    /// A pool that keeps up to `keep` buffers that nobody uses, each of at least `least` bytes.
    pub fn new(keep: usize, least: usize) -> Arc<BufferPool> {
        Arc::new(BufferPool { free: Mutex::new(Vec::new()), keep, least })
    }

    /// A buffer of `len` bytes with arbitrary content.
    pub fn take(self: &Arc<Self>, len: usize) -> ReadBuffer {
        let reused = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            // Not one that is far too large: it may be kept for long, in a cache.
            let wanted = len.max(self.least).next_multiple_of(BUFFER_ALIGN);
            let fits = |memory: &Memory| memory.len() >= wanted && memory.len() / 2 <= wanted;
            free.iter().rposition(fits).map(|index| free.swap_remove(index))
        };
        let memory = reused.unwrap_or_else(|| {
            let size = len.max(self.least).next_multiple_of(BUFFER_ALIGN);
            let mut memory = Memory::with_capacity(BUFFER_ALIGN, size);
            memory.resize(size, 0);
            memory
        });
        ReadBuffer { memory, len, pool: Arc::clone(self) }
    }

    fn put_back(&self, memory: Memory) {
        if memory.len() > POOLED_BYTES_MAX {
            return;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The newest sizes are the ones that are wanted; the longest unused buffer goes.
        if free.len() >= self.keep && !free.is_empty() {
            free.remove(0);
        }
        if self.keep > 0 {
            free.push(memory);
        }
    }
}

/// A page-aligned buffer that goes back to its pool when dropped.
#[derive(Debug)]
pub struct ReadBuffer {
    memory: Memory,
    len: usize,
    pool: Arc<BufferPool>,
}

impl ReadBuffer {
    /// Bytes of memory that it takes.
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Shows only the first `len` bytes from now on. No effect if it has fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl std::ops::Deref for ReadBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl std::ops::DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let empty = Memory::new(BUFFER_ALIGN);
        self.pool.put_back(std::mem::replace(&mut self.memory, empty));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let pool = BufferPool::new(1, 4096);
        let first = pool.take(2 << 20);
        assert_eq!(first.as_ptr() as usize % BUFFER_ALIGN, 0);
        let place = first.as_ptr();
        drop(first);
        let small = pool.take(4096);
        assert_ne!(small.as_ptr(), place, "far too large for it");
        let second = pool.take((2 << 20) - 5000);
        assert_eq!((second.len(), second.as_ptr()), ((2 << 20) - 5000, place));
    }

    #[test]
    fn a_buffer_in_use_is_not_handed_out_again() {
        let pool = BufferPool::new(4, 4096);
        let first = pool.take(100);
        let second = pool.take(100);
        assert_ne!(first.as_ptr(), second.as_ptr());
    }
}
