//! When two commits that were made on one state cannot both stand.
//!
//! Invariant: pure. A size change counts as a write of [min(old, new size), infinity), so that an append and a
//! write into the last block meet. Comparing a whole file with its base is not a read.

use std::collections::BTreeMap;

use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};

use crate::store::{CommitInfo, FileChange};

/// What kind of meeting it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// Both wrote the same blocks, or one changed the size across what the other wrote.
    Blocks,
    /// The file changed at all, and the commit was told not to merge.
    Changed,
    /// One deleted or renamed what the other touched.
    Gone,
    /// Both gave the same name to something, or a name is a file in one and a directory in the other.
    Name,
    /// Both moved one tag.
    Tag,
    /// The other changed what this one read.
    Read,
}

/// A conflict with one earlier commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Kind.
    pub kind: ConflictKind,
    /// Name of the file or tag, as this commit knows it.
    pub path: Vec<u8>,
    /// The file; zero for tags and names.
    pub file: FileId,
    /// Blocks that meet; empty if it is not about blocks.
    pub blocks: Vec<(BlockIndex, BlockCount)>,
    /// The commit that came first.
    pub tid: Tid,
}

/// What a transaction did to one file.
#[derive(Clone, Debug, Default)]
pub struct OurFile {
    /// Its name in this transaction.
    pub path: Vec<u8>,
    /// Written runs as (first, end), ascending; a size change included, its end is `u64::MAX`.
    pub writes: Vec<(u64, u64)>,
    /// Declared reads as (first, end).
    pub reads: Vec<(u64, u64)>,
    /// Deleted or renamed.
    pub moved: bool,
    /// Touched at all, beyond reads.
    pub touched: bool,
    /// Any change of it since base is a conflict.
    pub strict: bool,
}

/// What a transaction did.
#[derive(Clone, Debug, Default)]
pub struct WriteSet {
    /// By file.
    pub files: BTreeMap<FileId, OurFile>,
    /// Tags that it moves.
    pub tags: Vec<String>,
}

/// Runs that a change wrote, a size change included, as (first, end).
pub fn runs_of(change: &FileChange) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> =
        change.blocks.iter().map(|(first, count)| (first.raw(), first.raw() + count.raw())).collect();
    if change.old_size != change.size {
        let from = change.block_size.block_of(change.old_size.min(change.size)).raw();
        add_tail(&mut runs, from);
    }
    runs
}

/// Adds `[from, infinity)` to ascending runs.
pub fn add_tail(runs: &mut Vec<(u64, u64)>, from: u64) {
    let mut start = from;
    while let Some((first, end)) = runs.last().copied()
        && end >= start
    {
        start = start.min(first);
        runs.pop();
    }
    runs.push((start, u64::MAX));
}

/// Where two ascending sets of runs meet.
fn meet(ours: &[(u64, u64)], theirs: &[(u64, u64)]) -> Vec<(BlockIndex, BlockCount)> {
    let mut common = Vec::new();
    let (mut our, mut their) = (0, 0);
    while let (Some((first, end)), Some((other_first, other_end))) = (ours.get(our), theirs.get(their)) {
        let (low, high) = ((*first).max(*other_first), (*end).min(*other_end));
        if low < high {
            common.push((BlockIndex::new(low), BlockCount::new(high - low)));
        }
        if end <= other_end { our += 1 } else { their += 1 }
    }
    common
}

/// Whether `ours` can stand after `winner`.
pub fn check(ours: &WriteSet, winner: &CommitInfo) -> Option<Found> {
    let found = |kind, file: FileId, path: &[u8], blocks| {
        Some(Found { kind, path: path.to_vec(), file, blocks, tid: winner.tid })
    };
    for change in &winner.files {
        let Some(our) = ours.files.get(&change.file) else { continue };
        let their_runs = runs_of(change);
        let read = meet(&our.reads, &their_runs);
        if !read.is_empty() || (change.deleted && !our.reads.is_empty()) {
            return found(ConflictKind::Read, change.file, &our.path, read);
        }
        if !our.touched {
            continue;
        }
        if change.deleted || change.renamed_from.is_some() || our.moved {
            return found(ConflictKind::Gone, change.file, &our.path, Vec::new());
        }
        let blocks = meet(&our.writes, &their_runs);
        if !blocks.is_empty() {
            return found(ConflictKind::Blocks, change.file, &our.path, blocks);
        }
        if our.strict {
            return found(ConflictKind::Changed, change.file, &our.path, change.blocks.clone());
        }
    }
    for tag in &winner.tags {
        if ours.tags.contains(&tag.name) {
            return found(ConflictKind::Tag, FileId::from_raw(0), tag.name.as_bytes(), Vec::new());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use revfs_protocol::BlockSize;

    fn change(blocks: &[(u64, u64)], old_size: u64, size: u64) -> FileChange {
        FileChange {
            file: FileId::from_raw(1),
            path: b"f".to_vec(),
            renamed_from: None,
            created: false,
            deleted: false,
            replaced: false,
            old_size,
            size,
            block_size: BlockSize::new(4096).unwrap(),
            blocks: blocks.iter().map(|(f, c)| (BlockIndex::new(*f), BlockCount::new(*c))).collect(),
        }
    }

    fn winner(file: FileChange) -> CommitInfo {
        CommitInfo {
            seq: 2,
            tid: Tid::from_raw(2),
            base: Tid::from_raw(1),
            time_unix_ns: 0,
            author: String::new(),
            message: String::new(),
            commit_uuid: uuid::Uuid::nil(),
            files: vec![file],
            tags: Vec::new(),
            pack_bytes: 0,
        }
    }

    fn ours(writes: &[(u64, u64)]) -> WriteSet {
        let file =
            OurFile { path: b"f".to_vec(), writes: writes.to_vec(), touched: true, ..OurFile::default() };
        WriteSet { files: BTreeMap::from([(FileId::from_raw(1), file)]), tags: Vec::new() }
    }

    #[test]
    fn disjoint_blocks_stand_together() {
        assert_eq!(check(&ours(&[(0, 3)]), &winner(change(&[(3, 2)], 40960, 40960))), None);
    }

    #[test]
    fn one_block_written_by_both_is_a_conflict_that_names_it() {
        let found = check(&ours(&[(0, 4)]), &winner(change(&[(3, 2)], 40960, 40960))).unwrap();
        assert_eq!(found.blocks, [(BlockIndex::new(3), BlockCount::new(1))]);
    }

    #[test]
    fn growth_meets_a_write_into_the_last_partial_block() {
        let grown = winner(change(&[(1, 1)], 4100, 8192));
        assert_eq!(check(&ours(&[(0, 1)]), &grown), None);
        assert_eq!(check(&ours(&[(1, 2)]), &grown).unwrap().kind, ConflictKind::Blocks);
    }

    #[test]
    fn a_strict_file_conflicts_with_any_change() {
        let mut set = ours(&[(0, 1)]);
        set.files.get_mut(&FileId::from_raw(1)).unwrap().strict = true;
        let found = check(&set, &winner(change(&[(9, 1)], 40960, 40960))).unwrap();
        assert_eq!(found.kind, ConflictKind::Changed);
    }

    #[test]
    fn a_deletion_meets_anything() {
        let mut gone = change(&[], 100, 100);
        gone.deleted = true;
        assert_eq!(check(&ours(&[(0, 1)]), &winner(gone)).unwrap().kind, ConflictKind::Gone);
    }

    #[test]
    fn a_declared_read_of_what_changed_is_a_conflict() {
        let mut set = ours(&[]);
        let file = set.files.get_mut(&FileId::from_raw(1)).unwrap();
        file.touched = false;
        file.reads = vec![(5, 6)];
        assert_eq!(check(&set, &winner(change(&[(4, 1)], 40960, 40960))), None);
        assert_eq!(check(&set, &winner(change(&[(5, 1)], 40960, 40960))).unwrap().kind, ConflictKind::Read);
    }
}
