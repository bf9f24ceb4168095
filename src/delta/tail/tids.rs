//! The tid of each entry of a window, so densely that a processor's caches hold it where they do not hold the entries.
//!
//! Entries of one commit follow each other. So a bit for each, which tells whether it is the first of its commit, and one tid
//! for each commit are enough: of a million changes by a hundred thousand commits, this takes 1 MB, and the entries 24 MB.
//! Who asks for the newest change of a block is spared a read of those, which would be half of the time.
//!
//! Invariant: what is told of a number is written before anything leads a reader to that number.

use std::sync::atomic::Ordering;

use revfs_protocol::Tid;

use super::atomics::{AtomicU32, AtomicU64};
use super::chunks::{Behind, Chunks};

/// Entries whose bits stand together.
const GROUP: u32 = if cfg!(test) { 4 } else { 64 };

/// Which of a group of entries begin a commit.
#[derive(Debug, Default)]
struct Mark {
    bits: AtomicU64,
    // Number of the first commit that begins in the group, if one does.
    commit: AtomicU32,
}

/// Tids of entries, by their numbers.
#[derive(Clone, Debug)]
pub struct Tids {
    marks: Chunks<Mark, GROUP>,
    commits: Chunks<AtomicU64, 1>,
    // Number after that of the last commit.
    end: u32,
    newest: Option<Tid>,
}

impl Tids {
    /// Of no entry; the first to come is number `at`.
    pub fn empty(at: u32) -> Tids {
        // Commits are numbered from anywhere: from there, so that these numbers too go round in tests.
        Tids { marks: Chunks::empty(at), commits: Chunks::empty(at), end: at, newest: None }
    }

    fn commit_of(&self, number: u32) -> Result<u32, Behind> {
        let mark = self.marks.get(number)?;
        // Bits of later entries may come while this is read.
        let upto = u64::MAX >> (63 - number % GROUP);
        let begun = (mark.bits.load(Ordering::Relaxed) & upto).count_ones();
        Ok(mark.commit.load(Ordering::Relaxed).wrapping_add(begun).wrapping_sub(1))
    }

    /// When the entry with this number was made.
    #[inline]
    pub fn of(&self, number: u32) -> Result<Tid, Behind> {
        let commit = self.commit_of(number)?;
        Ok(Tid::from_raw(self.commits.get(commit)?.load(Ordering::Relaxed)))
    }

    /// Whether `more` entries of one commit, from number `end` on, have places.
    pub fn has_room(&self, end: u32, more: usize) -> bool {
        more == 0 || self.marks.has_room(end, more) && self.commits.has_room(self.end, 1)
    }

    /// Makes places for `more` entries of one commit, from number `end` on.
    pub fn make_room(&mut self, end: u32, more: usize) {
        if !self.marks.has_room(end, more) {
            self.marks.make_room(end, more);
        }
        if !self.commits.has_room(self.end, 1) {
            self.commits.make_room(self.end, 1);
        }
    }

    /// Notes the next entry.
    pub fn push(&mut self, number: u32, tid: Tid) -> Result<(), Behind> {
        let mark = self.marks.get(number)?;
        if number.is_multiple_of(GROUP) || self.newest.is_none() {
            mark.commit.store(self.end, Ordering::Relaxed);
        }
        if self.newest != Some(tid) {
            self.commits.get(self.end)?.store(tid.raw(), Ordering::Relaxed);
            mark.bits.store(mark.bits.load(Ordering::Relaxed) | 1 << (number % GROUP), Ordering::Relaxed);
            (self.end, self.newest) = (self.end.wrapping_add(1), Some(tid));
        }
        Ok(())
    }

    /// Lets go of entries before number `base`; the next to come is `end`.
    pub fn forget(&mut self, base: u32, end: u32) -> Result<(), Behind> {
        let commit = if base == end { self.end } else { self.commit_of(base)? };
        self.marks.release(base);
        self.commits.release(commit);
        Ok(())
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.marks.bytes() + self.commits.bytes()
    }
}
