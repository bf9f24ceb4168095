//! Mappings of files, and which of their pages are in the page cache.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::ffi::{c_int, c_uchar, c_void};
use std::fs::File;
use std::path::Path;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a page.
pub const PAGE: usize = 4096;

unsafe extern "C" {
    fn mincore(addr: *mut c_void, length: usize, vec: *mut c_uchar) -> c_int;
}

/// A shared mapping of the first bytes of a file. The file itself is not kept open.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: only read, by volatile reads inside of the mapping, which lives as long as the value.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is changed through it.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn new(path: &Path, len: usize) -> Mapping {
        let file = File::open(path).unwrap();
        // SAFETY: a new mapping, which nothing else in this process knows.
        let start = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap().cast::<u8>()
        };
        Mapping { start, len }
    }

    /// The byte at an offset, as it is now. Beyond the end of the file that is a SIGBUS.
    pub fn at(&self, offset: usize) -> u8 {
        assert!(offset < self.len);
        // SAFETY: inside of the mapping; others change it, so it is read volatile.
        unsafe { self.start.add(offset).read_volatile() }
    }

    /// All bytes, as they are now.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: each is inside of the mapping and aligned; others change them, so each is read volatile.
        let word = |index| unsafe { self.start.cast::<u64>().add(index).read_volatile() };
        let mut bytes: Vec<u8> = (0..self.len / 8).flat_map(|index| word(index).to_ne_bytes()).collect();
        bytes.extend((self.len / 8 * 8..self.len).map(|offset| self.at(offset)));
        bytes
    }

    /// For each page, whether it is in the page cache.
    pub fn cached(&self) -> Vec<bool> {
        let mut pages = vec![0u8; self.len.div_ceil(PAGE)];
        // SAFETY: the mapping is whole, and there is a byte for each of its pages.
        let result = unsafe { mincore(self.start.cast(), self.len, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        pages.into_iter().map(|page| page & 1 == 1).collect()
    }

    /// Numbers of the blocks, each of `pages` pages, of which a page is not in the page cache.
    pub fn blocks_not_cached(&self, pages: usize) -> Vec<usize> {
        let cached = self.cached();
        let blocks = cached.chunks(pages).enumerate();
        blocks.filter(|(_, block)| block.contains(&false)).map(|(index, _)| index).collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
