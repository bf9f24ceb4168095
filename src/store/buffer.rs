//! Page-aligned buffers for reads past the page cache, and a pool that keeps them.
//!
//! Invariant: a buffer's memory is never handed to two readers; it goes back to its pool when it is dropped.
//! Left out on purpose: clearing. A reader fills every byte that it shows; `Piece`s cover the whole buffer.

use std::sync::{Arc, PoisonError};

use aligned_vec::{AVec, ConstAlign};
use memmap2::{Advice, MmapMut};
use tracing_mutex::stdsync::Mutex;

/// Alignment that O_DIRECT asks for on every filesystem known, bytes.
pub const BUFFER_ALIGN: usize = 4096;
/// A pool keeps buffers of up to this size; larger ones are freed, bytes.
const POOLED_BYTES_MAX: usize = 4 << 20;

/// Buffers of this size or more lie in huge pages, bytes. Read into scattered 4 KiB pages, a disk gets a request of
/// hundreds of segments: measured on virtio, a third of the speed of the same read into one huge page.
const HUGE_LEN_MIN: usize = 512 << 10;
/// Size of a huge page, bytes, as on x86-64 and on arm64 with 4 KiB pages; elsewhere it is only an alignment.
const HUGE_PAGE: usize = 2 << 20;

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
        let size = Memory::size_for(len.max(self.least));
        // Not one that is far too large: it may be held for long.
        let memory = self.reuse(size, size * 2).unwrap_or_else(|| Memory::new(size));
        ReadBuffer { memory, from: 0, len, pool: Arc::clone(self) }
    }

    /// A buffer of `len` bytes with arbitrary content that is to be kept, say in a cache: it takes no more than its
    /// pages, where one that is read into may be rounded up to huge ones.
    pub fn take_to_keep(self: &Arc<Self>, len: usize) -> ReadBuffer {
        let size = len.max(self.least).next_multiple_of(BUFFER_ALIGN);
        let make = || match size.is_multiple_of(HUGE_PAGE) {
            true => Memory::new(size),
            false => Memory::in_small_pages(size),
        };
        let memory = self.reuse(size, size).unwrap_or_else(make);
        ReadBuffer { memory, from: 0, len, pool: Arc::clone(self) }
    }

    /// Memory of `least` to `most` bytes that nobody uses.
    fn reuse(&self, least: usize, most: usize) -> Option<Memory> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.iter().rposition(|memory| (least..=most).contains(&memory.len()))?;
        Some(free.swap_remove(index))
    }

    /// Frees buffers that nobody uses until the others take at most `bytes`.
    pub fn shrink_to(&self, bytes: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken: usize = free.iter().map(Memory::len).sum();
        while taken > bytes {
            let Some(memory) = free.pop() else { return };
            taken -= memory.len();
        }
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
    from: usize,
    len: usize,
    pool: Arc<BufferPool>,
}

impl ReadBuffer {
    /// Bytes of memory that it takes, with what the allocator puts around it.
    pub fn memory_bytes(&self) -> usize {
        match &self.memory {
            // An allocator that looks for an aligned place takes up to that much more. Measured with glibc: a page for
            // each buffer, twice the memory for small ones.
            Memory::Small(bytes) => bytes.len() + BUFFER_ALIGN,
            Memory::Huge { len, .. } => *len,
        }
    }

    /// Hides the first `count` of the bytes that it shows, all if it has fewer. What it shows is not aligned any more.
    pub fn skip(&mut self, count: usize) {
        let count = count.min(self.len);
        self.from += count;
        self.len -= count;
    }

    /// Shows only the first `len` bytes from now on. No effect if it has fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl std::ops::Deref for ReadBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[self.from..self.from + self.len]
    }
}

impl std::ops::DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[self.from..self.from + self.len]
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.pool.put_back(std::mem::replace(&mut self.memory, Memory::empty()));
    }
}

/// Memory of one buffer, aligned to [`BUFFER_ALIGN`] at least.
#[derive(Debug)]
enum Memory {
    Small(AVec<u8, ConstAlign<BUFFER_ALIGN>>),
    /// `len` bytes of a mapping from `skip` on, where a huge page can begin. What lies around is never touched.
    Huge {
        map: MmapMut,
        skip: usize,
        len: usize,
    },
}

impl Memory {
    /// Bytes that are taken for a buffer of `len` bytes.
    fn size_for(len: usize) -> usize {
        len.next_multiple_of(if len >= HUGE_LEN_MIN { HUGE_PAGE } else { BUFFER_ALIGN })
    }

    fn empty() -> Memory {
        Memory::Small(AVec::new(BUFFER_ALIGN))
    }

    fn new(size: usize) -> Memory {
        if size >= HUGE_LEN_MIN
            && let Ok(map) = MmapMut::map_anon(size + HUGE_PAGE)
        {
            if let Err(error) = map.advise(Advice::HugePage) {
                log::debug!("buffers lie in small pages: {error}");
            }
            let skip = map.as_ptr().align_offset(HUGE_PAGE);
            if skip <= HUGE_PAGE {
                return Memory::Huge { map, skip, len: size };
            }
        }
        // Where the address space is bounded, the allocator may still have some, or says that it has not.
        Memory::in_small_pages(size)
    }

    fn in_small_pages(size: usize) -> Memory {
        let mut bytes = AVec::with_capacity(BUFFER_ALIGN, size);
        bytes.resize(size, 0);
        Memory::Small(bytes)
    }

    fn len(&self) -> usize {
        match self {
            Memory::Small(bytes) => bytes.len(),
            Memory::Huge { len, .. } => *len,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Small(bytes) => bytes,
            Memory::Huge { map, skip, len } => &map[*skip..*skip + *len],
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Small(bytes) => bytes,
            Memory::Huge { map, skip, len } => &mut map[*skip..*skip + *len],
        }
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
    fn a_pool_keeps_as_many_bytes_as_it_is_left() {
        let pool = BufferPool::new(8, 4096);
        drop([4096, 8192, 4096].map(|len| pool.take(len)));
        for (bytes, kept) in [(1 << 20, 16384), (16384, 16384), (13000, 12288), (0, 0)] {
            pool.shrink_to(bytes);
            let taken: usize = pool.free.lock().unwrap().iter().map(Memory::len).sum();
            assert_eq!(taken, kept, "{bytes}");
        }
    }

    #[test]
    fn large_buffers_begin_where_a_huge_page_can_and_are_writable_to_their_end() {
        let pool = BufferPool::new(0, 4096);
        for len in [HUGE_LEN_MIN, HUGE_PAGE, HUGE_PAGE + 1, 2 * HUGE_PAGE] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.as_ptr() as usize % HUGE_PAGE, 0, "{len}");
            assert_eq!(buffer.memory_bytes(), len.next_multiple_of(HUGE_PAGE));
            buffer.fill(7);
            assert_eq!((buffer.len(), buffer[0], buffer[len - 1]), (len, 7, 7));
        }
        assert_eq!(pool.take(HUGE_LEN_MIN - 1).memory_bytes(), HUGE_LEN_MIN, "not rounded up to a huge page");
        assert_eq!(pool.take(100).memory_bytes(), 2 * BUFFER_ALIGN);
    }

    #[test]
    fn a_buffer_to_keep_takes_no_more_than_its_pages() {
        let pool = BufferPool::new(4, 4096);
        drop(pool.take(HUGE_PAGE));
        for len in [1, 4096, HUGE_LEN_MIN, HUGE_PAGE / 2, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1] {
            let mut buffer = pool.take_to_keep(len);
            assert_eq!(buffer.memory.len(), len.next_multiple_of(BUFFER_ALIGN), "{len}");
            buffer.fill(7);
            assert_eq!((buffer.len(), buffer[len - 1]), (len, 7));
        }
    }

    #[test]
    fn a_buffer_in_use_is_not_handed_out_again() {
        let pool = BufferPool::new(4, 4096);
        let first = pool.take(100);
        let second = pool.take(100);
        assert_ne!(first.as_ptr(), second.as_ptr());
    }
}
