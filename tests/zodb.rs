//! Databases made by wendelin.core, served: each block of each revision is what ZODB in Python read.
//!
//! Invariant: what is compared with comes from the manifests beside the databases, never from revfs.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/live.rs"]
mod live;
#[path = "zodb/manifest.rs"]
mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use live::{Place, no_fuse};
use manifest::{Manifest, folder};
use revfs::store::zodb::{Database, DatabaseOptions};
use revfs::store::{BufferPool, ReadTxn, Store};
use revfs::view;
use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(Database::open(path, DatabaseOptions::default()).unwrap())
}

/// All bytes of a file as of a state.
fn bytes_of(store: &Arc<dyn Store>, file: FileId, at: Tid) -> Option<Vec<u8>> {
    let txn = ReadTxn::new(store, at).unwrap();
    let meta = txn.file(file).unwrap()?;
    let mut all = Vec::new();
    let pool = BufferPool::new(2, 1);
    let read = view::read_range(&txn, &meta, 0..u64::MAX, &pool, |bytes| {
        all.extend_from_slice(bytes);
        Ok::<(), revfs::store::ReadError>(())
    });
    pollster::block_on(read).unwrap();
    assert_eq!(all.len() as u64, meta.size);
    Some(all)
}

/// Compares a file as of a state with the manifest; answers how many blocks were no holes.
fn check(manifest: &Manifest, name: &str, at: Tid, bytes: &[u8]) -> usize {
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

#[test]
fn every_block_of_every_revision_is_read() {
    let Some(folder) = folder("every_block_of_every_revision_is_read") else { return };
    for manifest in Manifest::all(&folder) {
        let store = open(&manifest.database);
        assert_eq!(Some(&store.head()), manifest.tids.last());
        let mut checked = 0;
        for at in &manifest.tids {
            for (name, (oid, _)) in &manifest.files {
                let bytes = bytes_of(&store, FileId::from(*oid), *at).unwrap();
                checked += check(&manifest, name, *at, &bytes);
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
        assert!(checked > 500, "{checked}");
        let before = Tid::from_raw(1);
        assert!(
            manifest.files.values().all(|(oid, _)| bytes_of(&store, FileId::from(*oid), before).is_none())
        );
    }
}

#[test]
fn the_samples_of_all_pickle_protocols_are_read() {
    let Some(folder) = folder("the_samples_of_all_pickle_protocols_are_read") else { return };
    const BLOCK: usize = 2 << 20;
    let numbers = |count: u32| (0..count).flat_map(u32::to_be_bytes).collect::<Vec<u8>>();
    for name in ["py2_pickle1", "py2_pickle2", "py2_pickle3", "py3_pickle3"] {
        let store = open(&folder.join(format!("zblk-{name}.fs")));
        let bytes = bytes_of(&store, FileId::from_raw(1), store.head()).unwrap();
        let mut expected = vec![0; 4 * BLOCK];
        expected[BLOCK..BLOCK + 16_384].copy_from_slice(&numbers(4096));
        let mut ends = numbers(32_768);
        expected[3 * BLOCK..3 * BLOCK + ends.len()].copy_from_slice(&ends);
        ends.reverse();
        expected[4 * BLOCK - ends.len()..].copy_from_slice(&ends);
        assert!(bytes == expected, "{name}");
        // Parts of a block in chunks, at odd places.
        let txn = ReadTxn::head(&store);
        let meta = txn.file(FileId::from_raw(1)).unwrap().unwrap();
        let pool = BufferPool::new(1, 1);
        for (offset, len) in [(3 * BLOCK + 4095, 2), (3 * BLOCK - 1, 3), (4 * BLOCK - 4097, 9000)] {
            let part = pollster::block_on(view::read(&txn, &meta, offset as u64, len, &pool).wait()).unwrap();
            assert!(part[..] == expected[offset..(offset + len).min(expected.len())], "{name} {offset}");
        }
    }
}

/// Blocks that the store says a commit changed, by file.
fn told(commit: &revfs::store::CommitInfo) -> BTreeMap<FileId, BTreeSet<u64>> {
    let blocks = |change: &revfs::store::FileChange| {
        let blocks = change.blocks.iter();
        let few = blocks.flat_map(|(first, count)| {
            let end = first.raw().saturating_add(count.raw());
            first.raw()..end.min(1 << 20)
        });
        few.collect()
    };
    commit.files.iter().map(|change| (change.file, blocks(change))).collect()
}

#[test]
fn commits_tell_what_they_changed() {
    let Some(folder) = folder("commits_tell_what_they_changed") else { return };
    for manifest in Manifest::all(&folder) {
        let store = open(&manifest.database);
        let all = store.commits(Tid::ZERO, store.head(), usize::MAX).unwrap();
        let mut told_blocks = 0;
        let mut changed_blocks = 0;
        for commit in &all {
            let told = told(commit);
            for (name, (oid, _)) in &manifest.files {
                let none = BTreeSet::new();
                let told = told.get(&FileId::from(*oid)).unwrap_or(&none);
                let created = commit.files.iter().any(|file| file.file == FileId::from(*oid) && file.created);
                let changed = manifest.changed(name, commit.tid);
                assert!(
                    created || told.is_superset(&changed),
                    "{name} @{}: {told:?} {changed:?}",
                    commit.tid
                );
                told_blocks += if created { 0 } else { told.len() };
                changed_blocks += if created { 0 } else { changed.len() };
                let size = commit.files.iter().find(|file| file.file == FileId::from(*oid));
                assert_eq!(
                    size.map_or(manifest.size(name, commit.tid), |file| file.size),
                    manifest.size(name, commit.tid)
                );
            }
        }
        assert!(changed_blocks > 50);
        // An object may be saved again as it was; not many are.
        assert!(told_blocks <= changed_blocks + changed_blocks / 10, "{told_blocks} of {changed_blocks}");
        // Told in steps, or backwards, it is the same.
        let mut steps = Vec::new();
        let mut lo = Tid::ZERO;
        while let Some(commit) = store.commits(lo, store.head(), 3).unwrap().into_iter().next_back() {
            steps.extend(store.commits(lo, commit.tid, usize::MAX).unwrap());
            lo = commit.tid;
        }
        let files = |commits: &[revfs::store::CommitInfo]| {
            commits.iter().map(|commit| (commit.tid, commit.files.clone())).collect::<Vec<_>>()
        };
        assert_eq!(files(&steps), files(&all));
        let mut back = store.commits_back(Tid::ZERO, store.head(), 7).unwrap();
        back.reverse();
        assert_eq!(files(&back), files(&all[all.len() - 7..]));
    }
}

/// A revision that is told for a block is one from which on it has the same bytes.
#[test]
fn the_revision_of_a_block_has_its_bytes() {
    let Some(folder) = folder("the_revision_of_a_block_has_its_bytes") else { return };
    for manifest in Manifest::all(&folder) {
        let store = open(&manifest.database);
        for at in &manifest.tids {
            let txn = ReadTxn::new(&store, *at).unwrap();
            for (name, (oid, _)) in &manifest.files {
                let runs = txn.blocks(FileId::from(*oid), BlockIndex::new(0), BlockCount::new(1000)).unwrap();
                let mut next = 0;
                for run in runs {
                    assert_eq!(run.first.raw(), next, "no gap");
                    next += run.count;
                    assert!(run.rev <= *at);
                    for block in run.first.raw()..next.min(200) {
                        let (then, now) =
                            (manifest.hash(name, block, run.rev), manifest.hash(name, block, *at));
                        assert_eq!(then, now, "{name} block {block} @{at}, of @{}", run.rev);
                    }
                }
                assert_eq!(next, 1000);
            }
        }
    }
}

#[test]
fn a_mount_serves_a_database_while_it_grows() {
    if no_fuse("a_mount_serves_a_database_while_it_grows") {
        return;
    }
    let Some(folder) = folder("a_mount_serves_a_database_while_it_grows") else { return };
    for manifest in Manifest::all(&folder) {
        let place = Place::empty();
        let whole = fs::read(&manifest.database).unwrap();
        let (half, rest) = manifest.tids.split_at(manifest.tids.len() / 2);
        // Where the transaction after the last of the first half begins: by the length that ends each.
        let end = ends_of(&whole)[half.last().unwrap()];
        let database = place.path("Data.fs");
        fs::write(&database, &whole[..end]).unwrap();
        let live = place.mount_store("Data.fs", "m", &[]);
        assert_eq!(live.at(), half.last().unwrap().to_string());
        let listed: BTreeSet<String> = fs::read_dir(live.path("head/bigfile"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(listed, manifest.files.values().map(|(oid, _)| oid.to_string()).collect());
        let check_all = |at: Tid, root: &str| {
            for (name, (oid, _)) in &manifest.files {
                let bytes = fs::read(live.path(&format!("{root}/bigfile/{oid}"))).unwrap();
                check(&manifest, name, at, &bytes);
            }
        };
        check_all(*half.last().unwrap(), "head");
        // What was read is in the page cache, and what changes must leave it.
        let ends = ends_of(&whole);
        let mut written = end;
        for tid in rest {
            let bytes = &whole[written..ends[tid]];
            written = ends[tid];
            let mut file = fs::OpenOptions::new().append(true).open(&database).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            live.wait(&tid.to_string());
            check_all(*tid, "head");
        }
        for at in &manifest.tids {
            check_all(*at, &format!("@{at}"));
        }
        for other in &manifest.others {
            let found = fs::metadata(live.path(&format!("head/bigfile/{other}")));
            assert_eq!(found.unwrap_err().raw_os_error(), Some(rustix::io::Errno::NOENT.raw_os_error()));
        }
        place.ok(&["umount", "m"]);
        place.expect_nothing_left();
    }
}

/// Where each transaction of a FileStorage ends.
fn ends_of(file: &[u8]) -> BTreeMap<Tid, usize> {
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let mut ends = BTreeMap::new();
    let mut at = 4;
    while at < file.len() {
        let end = at + number(at + 8) as usize + 8;
        ends.insert(Tid::from_raw(number(at)), end);
        at = end;
    }
    ends
}
