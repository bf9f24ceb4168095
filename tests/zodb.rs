//! Databases made by wendelin.core, served: each block of each revision is what ZODB in Python read.
//!
//! Invariant: what is compared with comes from the manifests beside the databases, never from revfs.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "zodb/checks.rs"]
mod checks;
#[path = "common/live.rs"]
mod live;
#[path = "zodb/manifest.rs"]
mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use checks::{
    bytes_of, check, check_bytes, check_commits, check_file_revisions, check_revisions, open, try_bytes_of,
};
use live::{Place, no_fuse, slow, wait_until};
use manifest::{Manifest, folder};
use revfs::store::zodb::filestorage::FileStorage;
use revfs::store::zodb::{Database, DatabaseOptions};
use revfs::store::{BufferPool, ReadTxn, Store};
use revfs::view;
use revfs_protocol::{FileId, Tid};

#[test]
fn every_block_of_every_revision_is_read() {
    let Some(folder) = folder("every_block_of_every_revision_is_read") else { return };
    for manifest in Manifest::all(&folder) {
        assert!(check_bytes(&manifest) > 500);
        let store = open(&manifest.database);
        let before = Tid::from_raw(1);
        assert!(
            manifest.files.values().all(|(oid, _)| bytes_of(&store, FileId::from(*oid), before).is_none())
        );
    }
}

#[test]
fn commits_tell_what_they_changed() {
    let Some(folder) = folder("commits_tell_what_they_changed") else { return };
    for manifest in Manifest::all(&folder) {
        assert!(check_commits(&manifest) > 50);
    }
}

#[test]
fn the_revision_of_a_block_has_its_bytes() {
    let Some(folder) = folder("the_revision_of_a_block_has_its_bytes") else { return };
    Manifest::all(&folder).iter().for_each(check_revisions);
}

#[test]
fn a_file_has_the_revision_of_its_last_change() {
    let Some(folder) = folder("a_file_has_the_revision_of_its_last_change") else { return };
    Manifest::all(&folder).iter().for_each(check_file_revisions);
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
        let middle = (3 * BLOCK + numbers(32_768).len() - 5, BLOCK / 2);
        let parts =
            [(3 * BLOCK, BLOCK), (3 * BLOCK + 4095, 2), (3 * BLOCK - 1, 3), (4 * BLOCK - 4097, 9000), middle];
        for (offset, len) in parts {
            // What was there before must not shine through where the block has nothing.
            pool.take(len).fill(0xff);
            let part = pollster::block_on(view::read(&txn, &meta, offset as u64, len, &pool).wait()).unwrap();
            assert!(part[..] == expected[offset..(offset + len).min(expected.len())], "{name} {offset}");
        }
    }
}

/// Threads of a server that take requests from the kernel.
fn serving_threads(pid: u32) -> usize {
    let names = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let names = names.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("fuser-")).count()
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
        // A thread names itself after it was started.
        let threads = revfs::fs::threads_default(true);
        wait_until("more threads than of a native store", || serving_threads(live.pid()) == threads);
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

/// What is damaged is an error, or read as it is; nothing else comes to harm.
#[test]
fn a_damaged_database_harms_nobody() {
    let Some(folder) = folder("a_damaged_database_harms_nobody") else { return };
    let seed = std::env::var("REVFS_ZODB_SEED").map_or(1, |seed| seed.parse::<u64>().unwrap());
    eprintln!("REVFS_ZODB_SEED={seed}");
    let mut state = seed;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let name = folder.join("deep.fs");
    let whole = fs::read(&name).unwrap();
    let intact = FileStorage::open(&name, None).unwrap();
    let transactions = intact.transactions(Tid::ZERO, Tid::MAX).unwrap().map(Result::unwrap);
    let records: Vec<usize> =
        transactions.flat_map(|t| t.records).map(|record| record.pos as usize).collect();
    let manifest = &Manifest::all(&folder)[1];
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("Data.fs");
    let (mut failed, mut right) = (0, 0);
    for round in 0..if slow() { 2000 } else { 30 } {
        let mut bytes = whole.clone();
        if round % 5 == 4 {
            bytes.truncate(4 + below(bytes.len() - 4));
        } else {
            // Headers and the beginnings of pickles, not the bytes of blocks.
            for _ in 0..3 {
                let at = (records[below(records.len())] + below(200)).min(bytes.len() - 1);
                bytes[at] ^= 1 << below(8);
            }
        }
        fs::write(&database, bytes).unwrap();
        let Ok(store) = Database::open(&database, DatabaseOptions::default()) else {
            failed += 1;
            continue;
        };
        let store: Arc<dyn Store> = Arc::new(store);
        let at = Tid::from_raw(store.head().raw().min(manifest.tids[below(manifest.tids.len())].raw()));
        for (oid, _) in manifest.files.values() {
            for at in [at, store.head()] {
                match try_bytes_of(&store, FileId::from(*oid), at) {
                    Ok(_) => right += 1,
                    Err(error) => {
                        assert!(
                            error.to_string().contains("Data.fs") || error.to_string().contains("object"),
                            "{error}"
                        );
                        failed += 1;
                    }
                }
            }
        }
        for commits in
            [store.commits(Tid::ZERO, store.head(), 1000), store.commits_back(Tid::ZERO, store.head(), 5)]
        {
            failed += usize::from(commits.is_err());
        }
    }
    assert!(failed > 0 && right > 50, "{failed} {right}");
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

#[test]
fn verify_reads_all_of_a_database_and_names_what_is_damaged() {
    let Some(folder) = folder("verify_reads_all_of_a_database") else { return };
    let place = Place::empty();
    let name = folder.join("plain.fs");
    let whole = fs::read(&name).unwrap();
    let database = place.path("Data.fs");
    fs::write(&database, &whole).unwrap();
    let said = place.ok(&["verify", "Data.fs"]);
    assert!(said.starts_with("whole: 17 transactions and ") && said.contains(", 4 files at @"), "{said}");
    assert!(place.ok(&["verify", "Data.fs", "--quick"]).contains("0 B of records read"));
    // The newest record of a file: its pickle gets an opcode that there is not.
    let storage = FileStorage::open(&name, None).unwrap();
    let transactions = storage.transactions(Tid::ZERO, Tid::MAX).unwrap().map(Result::unwrap);
    let records = transactions.flat_map(|transaction| transaction.records);
    let file = records.filter(|record| record.oid.raw() == 2).last().unwrap();
    let mut bytes = whole.clone();
    bytes[file.data_pos() as usize + 2] = 0xff;
    fs::write(&database, &bytes).unwrap();
    let damaged = place.run(&["verify", "Data.fs"]);
    let said = String::from_utf8(damaged.out.clone()).unwrap();
    assert_eq!(damaged.code(), 7, "{said}");
    assert!(said.contains("object 0000000000000002 @"), "{said}");
    assert!(said.contains("DAMAGED (1 finding): 17 transactions"), "{said}");
    // The others are served, and it is not.
    place.ok(&["cat", "Data.fs", "0000000000000001", "-o", "one"]);
    place.fails(&["cat", "Data.fs", "0000000000000002", "-o", "two"], 7, "object 0000000000000002 @");
    // A tail that is no transaction.
    bytes = whole.clone();
    bytes.extend_from_slice(&[0xee; 100]);
    fs::write(&database, &bytes).unwrap();
    let damaged = place.run(&["verify", "Data.fs"]);
    assert_eq!(damaged.code(), 7, "{}", damaged.err);
}

#[test]
fn a_database_that_went_back_is_told_and_head_stays() {
    let Some(folder) = folder("a_database_that_went_back_is_told_and_head_stays") else { return };
    let whole = fs::read(folder.join("plain.fs")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("Data.fs");
    fs::write(&database, &whole).unwrap();
    let store = open(&database);
    let (head, ends) = (store.head(), ends_of(&whole));
    assert_eq!(store.trouble(), None);
    let end = *ends.values().rev().nth(3).unwrap();
    fs::write(dir.path().join("older"), &whole[..end]).unwrap();
    fs::rename(dir.path().join("older"), &database).unwrap();
    let refreshed = pollster::block_on(store.refresh().wait()).unwrap();
    assert_eq!((refreshed, store.head()), (head, head));
    assert!(store.trouble().unwrap().contains("went back from @"));
    // It is right again when all is there again.
    fs::write(dir.path().join("newer"), &whole).unwrap();
    fs::rename(dir.path().join("newer"), &database).unwrap();
    pollster::block_on(store.refresh().wait()).unwrap();
    assert_eq!(store.trouble(), None);
}
