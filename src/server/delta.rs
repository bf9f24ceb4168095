//! What commits changed under head, in the terms of a cache: byte ranges, attributes, names.
//!
//! Invariant: a delta covers at least all that differs between its two states, and its size is bounded by the
//! number of files and names, not of commits: too many ranges of a file become one that holds them all. More
//! than what changed may be dropped from a cache at any time; less never.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use revfs_protocol::{BlockSize, FileId, Tid};

use crate::store::{CommitInfo, DirId, Entry, FileChange, ReadError, ReadTxn};

/// Most ranges that are kept of one file.
const RANGES_MAX: usize = 4096;

/// Byte ranges of a file; an end of `u64::MAX` means "to the end of the file".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range<u64>>,
    // How many ranges at the front are sorted and apart.
    tidy: usize,
}

impl RangeSet {
    /// Adds a range.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.ranges.push(range);
        if self.ranges.len() >= 2 * RANGES_MAX {
            self.tidy_up();
        }
    }

    /// The ranges in order, without overlap and without two that touch.
    pub fn into_ranges(mut self) -> Vec<Range<u64>> {
        self.tidy_up();
        self.ranges
    }

    fn tidy_up(&mut self) {
        if self.tidy == self.ranges.len() {
            return;
        }
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        if let ([first, .., last], true) = (merged.as_slice(), merged.len() > RANGES_MAX) {
            let all = first.start..last.end;
            merged = Vec::from([all]);
        }
        self.tidy = merged.len();
        self.ranges = merged;
    }
}

/// What a cache of head must drop to get from one published state to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The later state.
    pub at: Tid,
    /// The commits that lead there, ascending.
    pub tids: Vec<Tid>,
    /// Changed bytes of each file that changed. A file that was only renamed or deleted has none.
    pub files: BTreeMap<FileId, RangeSet>,
    /// Names that may mean something else than before.
    pub entries: BTreeSet<(DirId, Vec<u8>)>,
    /// Files that became others: their names by number mean something else.
    pub became: BTreeSet<FileId>,
    /// Directories in which a name appeared or vanished.
    pub dirs: BTreeSet<DirId>,
    /// Tags were moved.
    pub tags: bool,
    /// Files that became smaller.
    pub shrunk: BTreeMap<FileId, Shrunk>,
}

/// A file that became smaller, maybe to grow again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// The smallest that it was, bytes.
    pub to: u64,
    /// The largest that it was before that, bytes.
    pub from: u64,
    /// Unit of change.
    pub block_size: BlockSize,
}

impl Delta {
    /// What `commits`, which lead from `old` to `new`, changed.
    ///
    /// # Errors
    /// The store could not be asked what a name meant.
    pub fn of(commits: &[CommitInfo], old: &ReadTxn, new: &ReadTxn) -> Result<Delta, ReadError> {
        let mut delta = Delta {
            at: new.at(),
            tids: commits.iter().map(|commit| commit.tid).collect(),
            files: BTreeMap::new(),
            entries: BTreeSet::new(),
            became: BTreeSet::new(),
            dirs: BTreeSet::new(),
            tags: false,
            shrunk: BTreeMap::new(),
        };
        let mut paths: BTreeSet<&[u8]> = BTreeSet::new();
        for commit in commits {
            delta.tags |= !commit.tags.is_empty();
            for change in &commit.files {
                delta.add_bytes(change);
                if change.created || change.deleted || change.renamed_from.is_some() {
                    paths.insert(&change.path);
                    paths.extend(change.renamed_from.as_deref());
                }
            }
        }
        for path in paths {
            delta.add_path(path, old, new)?;
        }
        Ok(delta)
    }

    /// Takes note of files that become others by these commits, or did before: names of the first mean something else now
    /// though they lead to the same number, and of both nothing of the new file concerns who has the old one.
    ///
    /// # Errors
    /// The store could not be asked what a name meant.
    pub(super) fn add_epochs(
        &mut self,
        commits: &[CommitInfo],
        old: &ReadTxn,
        becomes: impl Fn(FileId) -> bool,
        became: impl Fn(FileId) -> bool,
    ) -> Result<(), ReadError> {
        self.shrunk.retain(|file, _| !becomes(*file) && !became(*file));
        for change in commits.iter().flat_map(|commit| &commit.files).filter(|c| becomes(c.file)) {
            self.became.insert(change.file);
            let mut dir = DirId::ROOT;
            for name in change.path.split(|byte| *byte == b'/') {
                match old.lookup(dir, name)? {
                    Some(Entry::Dir(below)) => dir = below,
                    Some(Entry::File(_)) | None => {
                        self.entries.insert((dir, name.to_vec()));
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what a later delta, which starts where this one ends, has.
    pub fn merge(&mut self, later: Delta) {
        self.at = later.at;
        self.tids.extend(later.tids);
        for (file, ranges) in later.files {
            let into = self.files.entry(file).or_default();
            ranges.into_ranges().into_iter().for_each(|range| into.add(range));
        }
        self.entries.extend(later.entries);
        self.became.extend(later.became);
        self.dirs.extend(later.dirs);
        self.tags |= later.tags;
        for (file, shrunk) in later.shrunk {
            self.add_shrunk(file, shrunk);
        }
    }

    fn add_shrunk(&mut self, file: FileId, shrunk: Shrunk) {
        let known = self.shrunk.entry(file).or_insert(shrunk);
        (known.to, known.from) = (known.to.min(shrunk.to), known.from.max(shrunk.from));
    }

    fn add_bytes(&mut self, change: &FileChange) {
        let ranges = self.files.entry(change.file).or_default();
        if change.created {
            ranges.add(0..u64::MAX);
            return;
        }
        if change.deleted {
            // Who has it open goes on reading what it was: its bytes did not change.
            return;
        }
        let unit = change.block_size.bytes();
        for (first, count) in &change.blocks {
            let start = first.raw().saturating_mul(unit);
            ranges.add(start..start.saturating_add(count.raw().saturating_mul(unit)));
        }
        if change.old_size != change.size {
            // The page in which the smaller size ends shows zeros behind it.
            ranges.add(change.old_size.min(change.size)..u64::MAX);
        }
        if change.size < change.old_size {
            let block_size = change.block_size;
            self.add_shrunk(change.file, Shrunk { to: change.size, from: change.old_size, block_size });
        }
    }

    /// Compares what the components of `path` mean in both states. Only names that meant something in `old` can
    /// be cached, for that something is missing is never cached; so the walk goes down where `old` goes.
    fn add_path(&mut self, path: &[u8], old: &ReadTxn, new: &ReadTxn) -> Result<(), ReadError> {
        let mut dir = DirId::ROOT;
        for name in path.split(|byte| *byte == b'/') {
            let before = old.lookup(dir, name)?;
            if before != new.lookup(dir, name)? {
                self.entries.insert((dir, name.to_vec()));
                self.dirs.insert(dir);
            }
            match before {
                Some(Entry::Dir(below)) => dir = below,
                Some(Entry::File(_)) | None => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_range_set_holds_exactly_the_bytes_that_were_added(
            added in prop::collection::vec((0..200u64, 0..20u64), 0..40),
        ) {
            let mut set = RangeSet::default();
            let mut bytes = BTreeSet::new();
            for (start, len) in added {
                set.add(start..start + len);
                bytes.extend(start..start + len);
            }
            let ranges = set.into_ranges();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let held: BTreeSet<u64> = ranges.into_iter().flatten().collect();
            prop_assert_eq!(held, bytes);
        }
    }

    #[test]
    fn too_many_ranges_become_one_that_holds_them_all() {
        let mut set = RangeSet::default();
        let last = 10 * RANGES_MAX as u64;
        (0..=last).for_each(|i| set.add(i * 8..i * 8 + 1));
        assert!(set.ranges.len() < 2 * RANGES_MAX);
        let ranges = set.into_ranges();
        assert_eq!(ranges.first().map(|range| range.start), Some(0));
        assert_eq!(ranges.last().map(|range| range.end), Some(last * 8 + 1));
    }
}
