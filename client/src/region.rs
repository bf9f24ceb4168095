//! A range of addresses of which each part shows a file, zeros, or nothing: the only `unsafe` code of the crate.
//!
//! Invariant: a region's addresses are reserved from `reserve` to drop, so that a part can be mapped anew at any
//! time without meeting somebody else's memory; no part can be written; a fork has none of it. Its memory is read
//! through raw pointers or in `bytes`, whose caller says why nothing moves.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use rustix::process::{Pid, getpid};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr;

/// The kernel maps with huge pages where addresses and offsets agree modulo this.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes in a page of this machine.
pub(crate) fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// `bytes`, rounded up to whole pages; none if that is beyond 64 bits.
pub(crate) fn page_ceil(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(page_bytes())
}

/// A reserved range of addresses, in whole pages.
#[derive(Debug)]
pub(crate) struct Region {
    start: *mut u8,
    len: usize,
    pid: Pid, // a fork has no region, and something else may lie at its addresses
}

// SAFETY: a region is a range of addresses without data of its own; the kernel orders changes of what they show.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves addresses whose access faults, for a file's bytes from `offset` on. `len` and `offset` are in
    /// whole pages, and `len` is not 0.
    pub(crate) fn reserve(len: usize, offset: u64) -> Result<Region, Errno> {
        let whole = len.checked_add(HUGE_PAGE_BYTES).ok_or(Errno::NOMEM)?;
        // SAFETY: new addresses, chosen by the kernel, which nothing else in this process knows.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                whole,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?
        .cast::<u8>();
        let wanted = (offset % HUGE_PAGE_BYTES as u64) as usize; // below 2 MiB
        let skip = (wanted + HUGE_PAGE_BYTES - start.addr() % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
        let region = Region { start: start.wrapping_add(skip), len, pid: getpid() };
        // SAFETY: both ends of what was just reserved, in whole pages, outside of the region.
        unsafe {
            unmap(start, skip);
            unmap(region.start.wrapping_add(len), whole - skip - len);
        }
        region.advise(&(0..len), Advice::LinuxDontFork)?;
        Ok(region)
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Address of the first byte.
    pub(crate) fn start(&self) -> *const u8 {
        self.start
    }

    /// Shows a file's bytes from `offset` on in a part of the region; in one step for those who read there.
    pub(crate) fn map_file(&self, part: Range<usize>, file: impl AsFd, offset: u64) -> Result<(), Errno> {
        let at = self.address(&part)?;
        // SAFETY: the part lies inside of the region, which only shows what is mapped through these methods.
        unsafe { mmap(at, part.len(), ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, offset) }?;
        self.advise(&part, Advice::LinuxDontFork)?;
        // A kernel without huge pages for this file says EINVAL, and maps small ones.
        let _small = self.advise(&part, Advice::LinuxHugepage);
        Ok(())
    }

    /// Shows zeros in a part of the region; costs no memory.
    pub(crate) fn map_zeros(&self, part: Range<usize>) -> Result<(), Errno> {
        self.map_anonymous(part, ProtFlags::READ)
    }

    /// Makes each access to the region a fault.
    pub(crate) fn map_nothing(&self) -> Result<(), Errno> {
        self.map_anonymous(0..self.len, ProtFlags::empty())
    }

    fn map_anonymous(&self, part: Range<usize>, access: ProtFlags) -> Result<(), Errno> {
        let at = self.address(&part)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `map_file`.
        unsafe { mmap_anonymous(at, part.len(), access, flags) }?;
        self.advise(&part, Advice::LinuxDontFork)
    }

    /// The address of a part that is not empty and lies inside.
    fn address(&self, part: &Range<usize>) -> Result<*mut c_void, Errno> {
        let inside = part.start < part.end && part.end <= self.len && self.pid == getpid();
        inside.then(|| self.start.wrapping_add(part.start).cast()).ok_or(Errno::INVAL)
    }

    fn advise(&self, part: &Range<usize>, advice: Advice) -> Result<(), Errno> {
        let at = self.address(part)?;
        // SAFETY: the part lies inside of the region, and this advice changes no contents.
        unsafe { madvise(at, part.len(), advice) }
    }

    /// A part's bytes.
    ///
    /// # Safety
    /// As long as the slice lives nothing in the part is mapped anew to other contents, and all of it can be read.
    pub(crate) unsafe fn bytes(&self, part: Range<usize>) -> &[u8] {
        assert!(part.start <= part.end && part.end <= self.len);
        // SAFETY: inside of the region, readable as the caller promises, and never written through the region.
        unsafe { std::slice::from_raw_parts(self.start.add(part.start), part.len()) }
    }
}

/// Gives addresses back.
///
/// # Safety
/// Nothing uses them any more.
unsafe fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: promised by the caller. Failing leaves addresses reserved, which is harmless.
        let _kept = unsafe { munmap(start.cast(), len) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.pid == getpid() {
            // SAFETY: the region is not used any more: slices of it borrow it.
            unsafe { unmap(self.start, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_show_what_was_mapped_last() {
        let page = page_bytes() as usize;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[[1u8].repeat(page), [2].repeat(page), [3].repeat(page)].concat()).unwrap();
        let region = Region::reserve(3 * page, page as u64).unwrap();
        assert_eq!(region.start().addr() % HUGE_PAGE_BYTES, page, "aligned as the file is");
        region.map_file(0..3 * page, &file, 0).unwrap();
        region.map_zeros(page..2 * page).unwrap();
        region.map_file(2 * page..3 * page, &file, page as u64).unwrap();
        // SAFETY: nothing is mapped anew meanwhile, and all of it shows a file or zeros.
        let bytes = unsafe { region.bytes(0..3 * page) };
        assert_eq!(
            [bytes[0], bytes[page - 1], bytes[page], bytes[2 * page], bytes[3 * page - 1]],
            [1, 1, 0, 2, 2]
        );
    }

    #[test]
    fn nothing_is_mapped_outside() {
        let page = page_bytes() as usize;
        let region = Region::reserve(page, 0).unwrap();
        for part in [0..2 * page, page..2 * page, 0..0, 5 * page..6 * page] {
            assert_eq!(region.map_zeros(part), Err(Errno::INVAL));
        }
        assert_eq!(Region::reserve(usize::MAX - 4095, 0).unwrap_err(), Errno::NOMEM);
    }
}
