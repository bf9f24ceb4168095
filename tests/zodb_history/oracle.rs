//! What commits must be told to have done: the whole maps before and after, compared.

use std::collections::{BTreeMap, BTreeSet};

use revfs::store::{CommitInfo, FileChange};
use revfs_protocol::{FileId, Tid};

use crate::world::{Done, State};

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Created {
        size: u64,
    },
    Deleted {
        old_size: u64,
    },
    /// Its block size or its tree is another one.
    Whole {
        old_size: u64,
        size: u64,
    },
    Blocks {
        old_size: u64,
        size: u64,
        block_size: u64,
        blocks: BTreeSet<u64>,
    },
}

/// What differs of all files, by file.
pub type Changes = BTreeMap<u64, Change>;

/// Compares two states; `written` are the blocks whose records were written in between.
pub fn compare(before: &State, after: &State, written: &BTreeSet<u64>) -> Changes {
    let files: BTreeSet<u64> = before.keys().chain(after.keys()).copied().collect();
    let mut changes = Changes::new();
    for file in files {
        let change = match (before.get(&file), after.get(&file)) {
            (None, None) => continue,
            (None, Some(new)) => Change::Created { size: new.size() },
            (Some(old), None) => Change::Deleted { old_size: old.size() },
            (Some(old), Some(new)) if (old.block_size, old.tree) != (new.block_size, new.tree) => {
                Change::Whole { old_size: old.size(), size: new.size() }
            }
            (Some(old), Some(new)) => {
                let keys: BTreeSet<i64> = old.blocks.keys().chain(new.blocks.keys()).copied().collect();
                let is_changed = |key: &i64| {
                    let (was, is) = (old.blocks.get(key), new.blocks.get(key));
                    was != is || is.is_some_and(|block| written.contains(block))
                };
                let blocks: BTreeSet<u64> =
                    keys.into_iter().filter(is_changed).map(|key| key as u64).collect();
                if blocks.is_empty() {
                    continue;
                }
                Change::Blocks { old_size: old.size(), size: new.size(), block_size: new.block_size, blocks }
            }
        };
        changes.insert(file, change);
    }
    changes
}

/// What each commit did, but the first.
pub fn changes_of(done: &[Done]) -> Vec<(Tid, Changes)> {
    let pairs = done
        .windows(2)
        .map(|pair| (Tid::from_raw(pair[1].tid), compare(&pair[0].state, &pair[1].state, &pair[1].blocks)));
    pairs.collect()
}

/// What a commit is told to have done.
pub fn told(commit: &CommitInfo) -> Changes {
    let change = |change: &FileChange| {
        let (old_size, size) = (change.old_size, change.size);
        let is_all =
            matches!(change.blocks[..], [(first, count)] if first.raw() == 0 && count.raw() == u64::MAX);
        let blocks =
            || change.blocks.iter().flat_map(|(first, count)| first.raw()..first.raw() + count.raw());
        match (change.created, change.deleted) {
            (true, false) if is_all && old_size == 0 => Change::Created { size },
            (false, true) if size == 0 && change.blocks.is_empty() => Change::Deleted { old_size },
            (false, false) if is_all => Change::Whole { old_size, size },
            (false, false) => {
                let block_size = change.block_size.bytes();
                Change::Blocks { old_size, size, block_size, blocks: blocks().collect() }
            }
            _ => panic!("{change:?}"),
        }
    };
    commit.files.iter().map(|told| (told.file.raw(), change(told))).collect()
}

/// When a block changed last in (tail, at], by what commits did; a shrink changes what it leaves out, too.
pub fn block_rev(changes: &[(Tid, Changes)], file: FileId, block: u64, tail: Tid, at: Tid) -> Option<Tid> {
    let within = changes.iter().rev().filter(|(tid, _)| *tid > tail && *tid <= at);
    let mut found = within
        .filter(|(_, changes)| changes.get(&file.raw()).is_some_and(|change| changes_block(change, block)));
    found.next().map(|(tid, _)| *tid)
}

/// Whether what became of a file changed a block.
pub fn changes_block(change: &Change, block: u64) -> bool {
    match change {
        Change::Created { .. } | Change::Deleted { .. } | Change::Whole { .. } => true,
        Change::Blocks { old_size, size, block_size, blocks } => {
            blocks.contains(&block) || size < old_size && block >= size / block_size
        }
    }
}
