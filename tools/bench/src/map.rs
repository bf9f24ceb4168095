//! Read-only mappings of files, aligned to 2 MiB so that the kernel may use huge pages.
//!
//! Invariant: a [`Mapping`] covers bytes within the file as it was when mapped; the files of a run are changed
//! by nobody else, and never cut while they are mapped.

use std::ffi::c_void;
use std::fs::File;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::error::{Named, Result};

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
            return Err(crate::error::BenchError::Wrong(what));
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
}
