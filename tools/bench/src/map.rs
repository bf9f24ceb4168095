//! Read-only mappings of files, aligned to 2 MiB so that the kernel may use huge pages.
//!
//! Invariant: a [`Mapping`] covers bytes within the file as it was when mapped; the files of a run are changed
//! by nobody else, and never cut while they are mapped. What a [`Movable`] shows may change at any time, so it
//! hands out copies only.

use std::ffi::c_void;
use std::fs::File;
use std::ops::Range;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::error::{BenchError, Named, Result};

const ALIGN: usize = 2 << 20;

/// A mapped range of a file.
#[derive(Debug)]
pub struct Mapping {
    reserved: *mut c_void,
    reserved_len: usize,
    start: *const u8,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of a file. `huge`: advises MADV_HUGEPAGE.
    ///
    /// # Errors
    /// The file is shorter, or the system refuses.
    pub fn new(file: &File, len: u64, huge: bool) -> Result<Mapping> {
        let size = file.metadata().named("fstat of a file to map")?.len();
        if size < len {
            let what = format!("a file to map has {size} bytes, {len} are needed");
            return Err(BenchError::Wrong(what));
        }
        let (len, reserved_len) = (len as usize, len as usize + ALIGN);
        // SAFETY: a fresh private range, chosen by the kernel; it is unmapped by Drop alone.
        let reserved = unsafe {
            mmap_anonymous(std::ptr::null_mut(), reserved_len, ProtFlags::empty(), MapFlags::PRIVATE)
        }
        .named("mmap of address space")?;
        let skip = (ALIGN - reserved as usize % ALIGN) % ALIGN;
        let mut mapping =
            Mapping { reserved, reserved_len, start: reserved.cast::<u8>().wrapping_add(skip), len };
        let at = mapping.start.cast_mut().cast::<c_void>();
        // SAFETY: [at, at + len) lies within the range reserved above, which nothing else uses.
        unsafe { mmap(at, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, 0) }
            .named("mmap of a file")?;
        mapping.len = len;
        if huge {
            // SAFETY: the range is ours; this advice changes no bytes.
            unsafe { madvise(at, len, Advice::LinuxHugepage) }.named("madvise(MADV_HUGEPAGE)")?;
        }
        Ok(mapping)
    }

    /// Reads all of it into the page cache and the page tables.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn populate(&self) -> Result<()> {
        let at = self.start.cast_mut().cast::<c_void>();
        // SAFETY: the range is ours; this advice changes no bytes.
        unsafe { madvise(at, self.len, Advice::LinuxPopulateRead) }.named("madvise(MADV_POPULATE_READ)")
    }

    /// The bytes. Reading them may fault in pages of the file.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as self lives; the file is not written while it is mapped, see
        // the invariant of the module.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole range was reserved by `new`, and no reference into it outlives self.
        let unmapped = unsafe { munmap(self.reserved, self.reserved_len) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// A mapped file of which parts can be mapped anew from other files, as a client of watch links does.
#[derive(Debug)]
pub struct Movable {
    start: *mut u8,
    len: usize,
}

impl Movable {
    /// Maps the first `len` bytes of a file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(file: &File, len: u64) -> Result<Movable> {
        let len = len as usize;
        // SAFETY: a new range, chosen by the kernel; it is unmapped by Drop alone.
        let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        Ok(Movable { start: start.named("mmap of a file")?.cast(), len })
    }

    /// Maps the bytes of `range`, whole pages, from the same place of another file.
    ///
    /// # Errors
    /// The range is empty or not inside, or the system refuses.
    pub fn remap(&self, range: Range<u64>, file: &File) -> Result<()> {
        if range.is_empty() || range.end > self.len as u64 {
            return Err(BenchError::Wrong(format!("{range:?} is not in a mapping of {} bytes", self.len)));
        }
        let at = self.start.wrapping_add(range.start as usize).cast::<c_void>();
        let len = (range.end - range.start) as usize;
        // SAFETY: [at, at + len) lies inside of our range, of which nobody holds a reference.
        unsafe { mmap(at, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, range.start) }
            .map(drop)
            .named("mmap(MAP_FIXED)")
    }

    /// The 8 bytes at `offset`, a multiple of 8, as they are now.
    ///
    /// # Errors
    /// They are not inside.
    pub fn word(&self, offset: u64) -> Result<u64> {
        if !offset.is_multiple_of(8) || offset + 8 > self.len as u64 {
            return Err(BenchError::Wrong(format!("{offset} is not in a mapping of {} bytes", self.len)));
        }
        // SAFETY: inside of our range and aligned; volatile, for what is shown may be exchanged meanwhile.
        Ok(u64::from_le(unsafe { self.start.wrapping_add(offset as usize).cast::<u64>().read_volatile() }))
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody holds a reference into it.
        let unmapped = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn maps_what_the_file_has_and_no_more() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let mapping = Mapping::new(&file, 9000, true).unwrap();
        mapping.populate().unwrap();
        assert_eq!(mapping.bytes(), &[7; 9000][..]);
        assert_eq!(mapping.bytes().as_ptr() as usize % ALIGN, 0);
        assert!(Mapping::new(&file, 10_001, false).is_err());
    }

    #[test]
    fn a_part_is_mapped_anew_and_the_rest_stays() {
        let files = [1u8, 2].map(|byte| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[byte; 3 * 4096]).unwrap();
            file
        });
        let movable = Movable::new(&files[0], 3 * 4096).unwrap();
        movable.remap(4096..8192, &files[1]).unwrap();
        let words = [0, 4096, 8192].map(|offset| movable.word(offset).unwrap().to_le_bytes()[0]);
        assert_eq!(words, [1, 2, 1]);
        assert!(movable.word(3 * 4096).is_err() && movable.word(4).is_err());
        assert!(movable.remap(8192..16384, &files[1]).is_err() && movable.remap(0..0, &files[1]).is_err());
    }
}
