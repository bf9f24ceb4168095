//! A mapping of a file under head whose blocks can be moved to revisions.

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

/// The mapping. It stays for the life of the process.
pub struct Mapping {
    mount: PathBuf,
    id: String,
    start: *mut u8,
    block: usize,
    blocks: usize,
}

// SAFETY: read by volatile reads only, of memory that stays mapped, whatever it shows.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all of a file. `random`: a page fault reads one page, and its thread cannot be killed while it does.
    pub fn new(mount: &Path, name: &str, id: String, random: bool) -> Result<Mapping> {
        let file = File::open(mount.join("head/bigfile").join(name))?;
        let meta = file.metadata()?;
        let block = usize::try_from(meta.blksize()).unwrap_or(usize::MAX);
        let blocks = usize::try_from(meta.size()).unwrap_or(usize::MAX).div_ceil(block);
        let (prot, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping, which nothing else in this process knows.
        let start = unsafe { mmap(std::ptr::null_mut(), block * blocks, prot, flags, &file, 0)?.cast() };
        if random {
            let start: *mut u8 = start;
            // SAFETY: the mapping that was just made; what it shows stays the same.
            unsafe { madvise(start.cast(), block * blocks, Advice::Random)? };
        }
        Ok(Mapping { mount: mount.to_owned(), id, start, block, blocks })
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Maps a block from a place: `@head` or `@<rev>`. One beyond the end is nothing to do for.
    pub fn follow(&self, block: u64, to: &str) -> Result<()> {
        let Some(index) = usize::try_from(block).ok().filter(|index| *index < self.blocks) else {
            return Ok(());
        };
        let under = if to == "@head" { "head" } else { to };
        let file = File::open(self.mount.join(under).join("by-id").join(&self.id))?;
        let (prot, flags) = (ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED);
        let offset = index * self.block;
        // SAFETY: replaces one block of a mapping of ours.
        unsafe { mmap(self.start.add(offset).cast(), self.block, prot, flags, &file, offset as u64)? };
        Ok(())
    }

    /// The byte at the start of a block, as it is now.
    pub fn first_byte(&self, index: usize) -> u8 {
        let index = index.min(self.blocks - 1);
        // SAFETY: inside of the mapping; others change it, so it is read volatile.
        unsafe { self.start.add(index * self.block).read_volatile() }
    }
}
