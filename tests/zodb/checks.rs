//! What holds for each database with a manifest: bytes, commits, revisions of blocks.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use revfs::store::zodb::{Database, DatabaseOptions};
use revfs::store::{BufferPool, CommitInfo, FileChange, ReadError, ReadTxn, Store};
use revfs::view;
use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};
use sha2::{Digest, Sha256};

use crate::manifest::Manifest;

/// No file of a sample is larger; one of a damaged database may be told to be.
const SIZE_MAX: u64 = 64 << 20;

/// In hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(Database::open(path, DatabaseOptions::default()).unwrap())
}

/// All bytes of a file as of a state; none if it does not exist.
pub fn bytes_of(store: &Arc<dyn Store>, file: FileId, at: Tid) -> Option<Vec<u8>> {
    try_bytes_of(store, file, at).unwrap()
}

/// The same of a database that may be damaged.
pub fn try_bytes_of(store: &Arc<dyn Store>, file: FileId, at: Tid) -> Result<Option<Vec<u8>>, ReadError> {
    let txn = ReadTxn::new(store, at)?;
    let Some(meta) = txn.file(file)? else { return Ok(None) };
    let mut all = Vec::new();
    let pool = BufferPool::new(2, 1);
    let read = view::read_range(&txn, &meta, 0..SIZE_MAX, &pool, |bytes| {
        all.extend_from_slice(bytes);
        Ok::<(), ReadError>(())
    });
    pollster::block_on(read)?;
    assert_eq!(all.len() as u64, meta.size.min(SIZE_MAX));
    Ok(Some(all))
}

/// Compares a file as of a state with the manifest; answers how many blocks were no holes.
pub fn check(manifest: &Manifest, name: &str, at: Tid, bytes: &[u8]) -> usize {
    let block_size = manifest.files[name].1 as usize;
    assert_eq!(bytes.len() as u64, manifest.size(name, at), "{name} @{at}");
    let mut stored = 0;
    for (block, bytes) in bytes.chunks(block_size).enumerate() {
        let expected = manifest.hash(name, block as u64, at);
        assert_eq!(sha256(bytes), expected, "{name} block {block} @{at}");
        stored += usize::from(expected != manifest.hole);
    }
    stored
}

/// Compares all files in all states; answers how many blocks were no holes.
pub fn check_bytes(manifest: &Manifest) -> usize {
    let store = open(&manifest.database);
    assert_eq!(Some(&store.head()), manifest.tids.last());
    let mut checked = 0;
    for at in &manifest.tids {
        for (name, (oid, _)) in &manifest.files {
            let Some(bytes) = bytes_of(&store, FileId::from(*oid), *at) else {
                assert_eq!(manifest.size(name, *at), 0, "{name} @{at} is not there");
                continue;
            };
            checked += check(manifest, name, *at, &bytes);
            // A state between two transactions is that of the earlier one.
            let next = Tid::from_raw(at.raw() + 1);
            if next < store.head() {
                assert!(bytes_of(&store, FileId::from(*oid), next).unwrap() == bytes);
            }
        }
        for other in &manifest.others {
            assert_eq!(bytes_of(&store, FileId::from(*other), *at), None);
        }
    }
    checked
}

/// Blocks that a commit changed; none: all of them.
fn told(change: &FileChange) -> Option<BTreeSet<u64>> {
    let all =
        change.created || change.deleted || change.blocks.iter().any(|(_, count)| count.raw() == u64::MAX);
    let blocks = change.blocks.iter().flat_map(|(first, count)| first.raw()..first.raw() + count.raw());
    (!all).then(|| blocks.collect())
}

/// Checks what commits say that they changed: all that changed, and nothing that was not written. Answers the number of
/// blocks that changed.
pub fn check_commits(manifest: &Manifest) -> usize {
    let store = open(&manifest.database);
    let all = store.commits(Tid::ZERO, store.head(), usize::MAX).unwrap();
    let mut changed_blocks = 0;
    for commit in &all {
        for (name, (oid, _)) in &manifest.files {
            let change = commit.files.iter().find(|file| file.file == FileId::from(*oid));
            let size = manifest.size(name, commit.tid);
            assert_eq!(change.map_or(size, |file| file.size), size, "{name} @{}", commit.tid);
            let Some(told) = change.map_or(Some(BTreeSet::new()), told) else { continue };
            let (changed, written) = (manifest.changed(name, commit.tid), manifest.written(name, commit.tid));
            assert!(told.is_superset(&changed), "{name} @{}: {told:?} {changed:?}", commit.tid);
            assert!(told.is_subset(&written), "{name} @{}: {told:?} {written:?}", commit.tid);
            changed_blocks += changed.len();
        }
    }
    // Told in steps, or backwards, it is the same.
    let files = |commits: &[CommitInfo]| -> Vec<(Tid, Vec<FileChange>)> {
        commits.iter().map(|commit| (commit.tid, commit.files.clone())).collect()
    };
    let mut steps = Vec::new();
    let mut lo = Tid::ZERO;
    while let Some(commit) = store.commits(lo, store.head(), 3).unwrap().into_iter().next_back() {
        steps.extend(store.commits(lo, commit.tid, usize::MAX).unwrap());
        lo = commit.tid;
    }
    assert_eq!(files(&steps), files(&all));
    let mut back = store.commits_back(Tid::ZERO, store.head(), 7).unwrap();
    back.reverse();
    assert_eq!(files(&back), files(&all[all.len() - 7..]));
    changed_blocks
}

/// A revision that is told for a block is one from which on it has the same bytes.
pub fn check_revisions(manifest: &Manifest) {
    const BLOCKS: u64 = 1000;
    let store = open(&manifest.database);
    for at in &manifest.tids {
        let txn = ReadTxn::new(&store, *at).unwrap();
        for (name, (oid, _)) in &manifest.files {
            if txn.file(FileId::from(*oid)).unwrap().is_none() {
                continue;
            }
            let count = BlockCount::new(BLOCKS);
            let runs = txn.blocks(FileId::from(*oid), BlockIndex::new(0), count).unwrap();
            let mut next = 0;
            for run in runs {
                assert_eq!(run.first.raw(), next, "no gap");
                next += run.count;
                assert!(run.rev <= *at);
                for block in run.first.raw()..next.min(200) {
                    let (then, now) = (manifest.hash(name, block, run.rev), manifest.hash(name, block, *at));
                    assert_eq!(then, now, "{name} block {block} @{at}, of @{}", run.rev);
                }
            }
            assert_eq!(next, BLOCKS);
        }
    }
}

/// A file has the revision of its last change, once commits were told; and the same bytes as of it.
pub fn check_file_revisions(manifest: &Manifest) {
    let store = open(&manifest.database);
    // No transaction is just there.
    let from = Tid::from_raw(manifest.tids[manifest.tids.len() / 3].raw() + 1);
    store.commits(from, store.head(), usize::MAX).unwrap();
    let mut older = 0;
    for at in &manifest.tids {
        let txn = ReadTxn::new(&store, *at).unwrap();
        for (name, (oid, _)) in &manifest.files {
            let Some(meta) = txn.file(FileId::from(*oid)).unwrap() else { continue };
            assert!(meta.rev <= *at && meta.created <= meta.rev.max(*at), "{name} @{at}");
            assert!(meta.rev.is_zero() || store.newest_commit(meta.rev).unwrap() == meta.rev, "{name} @{at}");
            let changed = |tid: &&Tid| {
                let before = Tid::from_raw(tid.raw() - 1);
                !manifest.changed(name, **tid).is_empty()
                    || manifest.size(name, **tid) != manifest.size(name, before)
            };
            let last = manifest.tids.iter().filter(|tid| *tid <= at).rfind(changed);
            assert!(
                last.is_none_or(|last| meta.rev >= *last),
                "{name} @{at}: @{} is before @{last:?}",
                meta.rev
            );
            older += usize::from(*at > from && meta.rev < *at);
        }
    }
    assert!(older >= 5, "{older}");
}
