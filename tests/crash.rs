//! What the store survives: power cuts at any step, storage that fails or lies, flipped bytes.
//!
//! Broken on purpose, once: without the sync of files the power-cut test must fail, and a test says so.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "crash/journal.rs"]
mod journal;

use std::collections::BTreeMap;
use std::sync::Arc;

use journal::{Journal, Step, after_power_cut, storage_of};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use revfs::env::SystemClock;
use revfs::protocol::{BlockCount, BlockIndex, BlockSize, Tid};
use revfs::store::faulty::{Faults, FaultyStore};
use revfs::store::native::{
    CommitError, InitOptions, NativeStore, OpenError, OpenOptions, VerifyOptions, init_in, open_objects,
};
use revfs::store::{BlockData, BufferPool, Codec, DirId, Piece, PieceSource, ReadError, ReadTxn};

const BLOCK: u64 = 4096;

fn run<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

fn init(storage: Arc<dyn ObjectStore>) {
    let options = InitOptions { block_size: BlockSize::new(BLOCK).unwrap(), codec: Codec::Raw, sync: true };
    init_in(storage, &options, &*SystemClock::shared()).unwrap();
}

fn open(storage: Arc<dyn ObjectStore>, index: &std::path::Path) -> Result<Arc<NativeStore>, OpenError> {
    open_objects(storage, index, OpenOptions { cache_bytes: 0, ..OpenOptions::default() })
}

/// Commits one version of `name`: `blocks` blocks of noise that depends on `seed`, and a partial one.
fn commit(store: &Arc<NativeStore>, name: &str, blocks: u64, seed: u8) -> Result<Tid, CommitError> {
    let mut txn = store.begin(None)?;
    let file = match txn.lookup(name.as_bytes())? {
        Some(file) => file,
        None => txn.create(name.as_bytes(), None)?,
    };
    let bytes = content(blocks, seed);
    run(txn.write(file, 0..bytes.len() as u64, &bytes))?;
    run(txn.commit()).map(|done| done.tid)
}

fn content(blocks: u64, seed: u8) -> Vec<u8> {
    let len = blocks * BLOCK + 100;
    (0..len).map(|index| (index % 251) as u8 ^ seed | 1).collect()
}

fn read(store: &Arc<NativeStore>, at: Tid, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
    let txn = ReadTxn::new(&store.as_store(), at)?;
    let file = txn.walk(DirId::ROOT)?.into_iter().find(|(path, _)| path == name.as_bytes());
    let Some((_, file)) = file else { return Ok(None) };
    let meta = txn.file(file)?.expect("it is listed");
    let count = meta.block_size.blocks_for(meta.size);
    let mut bytes = vec![0; (count.raw() * BLOCK) as usize];
    for block in 0..count.raw() {
        let runs = txn.blocks(file, BlockIndex::new(block), BlockCount::new(1))?;
        let BlockData::Stored { pack, offset, len, .. } = runs[0].data else { continue };
        let piece = Piece { at: 0, len: len as usize, source: PieceSource::Raw { pack, offset } };
        let buffer = BufferPool::new(1, 1).take(len as usize);
        let block_bytes = run(txn.store().read(vec![piece], buffer).wait())?;
        bytes[(block * BLOCK) as usize..][..len as usize].copy_from_slice(&block_bytes);
    }
    bytes.truncate(meta.size as usize);
    Ok(Some(bytes))
}

/// Commits of all shapes: inside the record, one pack, several parts.
const SHAPES: [u64; 6] = [0, 1, 40, 2, 3000, 7];

/// Plays all commits on a journal, then cuts the power behind each step, and answers how many cuts lost
/// something that was acknowledged or left something half.
fn power_cuts(forget_sync: bool) -> usize {
    let journal = Journal::new(forget_sync);
    init(journal.clone());
    let index = tempfile::tempdir().unwrap();
    let store = open(journal.clone(), index.path()).unwrap();
    let mut tids = Vec::new();
    for (number, blocks) in SHAPES.iter().enumerate() {
        tids.push(commit(&store, "file", *blocks, number as u8 * 8).unwrap());
        journal.acknowledge();
    }
    let steps = journal.steps();
    let mut lost = 0;
    for cut in 4..=steps.len() {
        let acknowledged = steps[..cut].iter().filter(|step| matches!(step, Step::Acknowledge)).count();
        // All that was not synced is gone; all of it survives; every third of it survives.
        for policy in 0..3u32 {
            let mut count = 0u32;
            let left = after_power_cut(&steps[..cut], || {
                count += 1;
                match policy {
                    0 => false,
                    1 => true,
                    _ => count.is_multiple_of(3),
                }
            });
            if !survives(&left, &tids, acknowledged) {
                lost += 1;
            }
        }
    }
    assert!(steps.len() > 4 * SHAPES.len());
    lost
}

fn survives(left: &BTreeMap<object_store::path::Path, Vec<u8>>, tids: &[Tid], acknowledged: usize) -> bool {
    let index = tempfile::tempdir().unwrap();
    let Ok(store) = open(storage_of(left), index.path()) else { return false };
    let options = VerifyOptions { quick: false, sample_percent: 100.0 };
    let report = run(store.verify(&options, &mut |_, _| {})).unwrap();
    let whole = tids.iter().zip(SHAPES).enumerate().all(|(number, (tid, blocks))| {
        if report.head < *tid {
            return number >= acknowledged;
        }
        let longest = SHAPES[..=number].iter().max().unwrap();
        let found = read(&store, *tid, "file").ok().flatten().unwrap_or_default();
        let expected = content(blocks, number as u8 * 8);
        found.len() as u64 == longest * BLOCK + 100 && found[..expected.len()] == expected[..]
    });
    whole && !report.is_damaged()
}

#[test]
fn each_acknowledged_commit_survives_a_power_cut_at_any_step() {
    assert_eq!(power_cuts(false), 0);
}

#[test]
fn a_store_that_forgets_to_sync_is_caught_by_the_power_cut_test() {
    assert!(power_cuts(true) > 0);
}

#[test]
fn a_create_that_reports_a_time_out_after_it_succeeded_is_a_commit_once() {
    let (faults, storage) = faulty();
    let index = tempfile::tempdir().unwrap();
    let store = open(storage, index.path()).unwrap();
    commit(&store, "file", 1, 1).unwrap();
    faults.time_out_after_success(1);
    let tid = commit(&store, "file", 1, 2).unwrap();
    assert_eq!(store.as_store().head(), tid);
    assert_eq!(store.as_store().commits(Tid::ZERO, tid, 100).unwrap().len(), 2);
}

#[test]
fn a_storage_that_stops_at_any_write_loses_no_acknowledged_commit() {
    for allowed in 0..12 {
        let (faults, storage) = faulty();
        let index = tempfile::tempdir().unwrap();
        let store = open(storage.clone(), index.path()).unwrap();
        faults.stop_after(allowed);
        let mut acknowledged = Vec::new();
        for number in 0..4u8 {
            match commit(&store, "file", 40, number) {
                Ok(tid) => acknowledged.push((tid, number)),
                Err(CommitError::Unknown { .. } | CommitError::Object(_)) => {}
                Err(other) => panic!("after {allowed} writes: {other}"),
            }
        }
        faults.stop_after(u64::MAX);
        let fresh = tempfile::tempdir().unwrap();
        let store = open(storage, fresh.path()).unwrap();
        for (tid, number) in acknowledged {
            assert_eq!(read(&store, tid, "file").unwrap().unwrap(), content(40, number));
        }
        let options = VerifyOptions { quick: false, sample_percent: 100.0 };
        assert!(!run(store.verify(&options, &mut |_, _| {})).unwrap().is_damaged());
    }
}

#[test]
fn regression_many_tiny_blocks_make_a_record_that_readers_accept() {
    // Few bytes, but a hash for each block: such a commit once went into the record and made it too long to read.
    let (_, storage) = faulty();
    let index = tempfile::tempdir().unwrap();
    let store = open(storage, index.path()).unwrap();
    let mut txn = store.begin(None).unwrap();
    let file = txn.create(b"file", None).unwrap();
    for block in 0..5000 {
        run(txn.write(file, block * BLOCK..block * BLOCK + 4, b"tiny")).unwrap();
    }
    let tid = run(txn.commit()).unwrap().tid;
    assert_eq!((store.as_store().head(), store.broken()), (tid, None));
    let bytes = read(&store, tid, "file").unwrap().unwrap();
    assert!(bytes.chunks(BLOCK as usize).all(|block| block.starts_with(b"tiny")));
}

#[test]
fn a_failed_read_is_an_error_and_the_next_one_is_right() {
    let (faults, storage) = faulty();
    let index = tempfile::tempdir().unwrap();
    let store = open(storage, index.path()).unwrap();
    let tid = commit(&store, "file", 40, 5).unwrap();
    faults.fail_reads(1);
    assert!(matches!(read(&store, tid, "file"), Err(ReadError::Object { .. })));
    assert_eq!(read(&store, tid, "file").unwrap().unwrap(), content(40, 5));
}

#[test]
fn verify_lists_what_a_writer_that_died_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions { sync: false, ..InitOptions::default() };
    NativeStore::init(dir.path(), &options, &*SystemClock::shared()).unwrap();
    let store = NativeStore::open(dir.path(), OpenOptions { sync: false, ..OpenOptions::default() }).unwrap();
    commit(&store, "file", 40, 5).unwrap();
    // The names that `object_store` gives to what it writes before it links it, and a pack without a record.
    let left = ["commits/00000000000000000002#1", "packs/ab/ab0123#17", "packs/cd/cd4567"];
    for name in left {
        std::fs::write(dir.path().join(name), b"half").unwrap();
    }
    let options = VerifyOptions { quick: true, sample_percent: 100.0 };
    let report = run(store.verify(&options, &mut |_, _| {})).unwrap();
    assert!(!report.is_damaged());
    let mut found: Vec<String> = report.findings.into_iter().map(|finding| finding.object).collect();
    found.sort();
    assert_eq!(found, left);
}

fn faulty() -> (Arc<Faults>, Arc<FaultyStore>) {
    let faults = Faults::none();
    let storage = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Arc::clone(&faults)));
    init(storage.clone());
    (faults, storage)
}

/// All files below `root` with their bytes, but those of the index, which is a cache.
fn objects_of(root: &std::path::Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path != root.join("index") {
                    open.push(path);
                }
            } else {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_flipped_byte_is_an_error_or_right_data_and_never_wrong_data() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let options = InitOptions { block_size: BlockSize::new(BLOCK).unwrap(), codec: Codec::Raw, sync: false };
    NativeStore::init(&root, &options, &*SystemClock::shared()).unwrap();
    let quick = || OpenOptions { sync: false, cache_bytes: 0, ..OpenOptions::default() };
    let mut tids = Vec::new();
    {
        let store = NativeStore::open(&root, quick()).unwrap();
        for (number, blocks) in [0, 20, 1].into_iter().enumerate() {
            let tid = commit(&store, "file", blocks, number as u8).unwrap();
            tids.push((tid, read(&store, tid, "file").unwrap().unwrap()));
        }
    }
    let slow = std::env::var_os("REVFS_SLOW").is_some();
    let mut errors = 0;
    for (path, bytes) in objects_of(&root) {
        // The slow run tries each byte. Block bytes are all alike: each 64 KiB has one checksum.
        let step = match bytes.len() {
            _ if slow => 1,
            0..2000 => 3,
            2000..20_000 => 31,
            _ => 1999,
        };
        for at in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            std::fs::remove_dir_all(root.join("index")).unwrap();
            std::fs::create_dir(root.join("index")).unwrap();
            errors += usize::from(!all_right(&root, quick(), &tids));
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(errors > 50, "only {errors} flips were noticed");
    std::fs::remove_dir_all(root.join("index")).unwrap();
    assert!(all_right(&root, quick(), &tids));
}

/// Whether all is read right; an error is fine, other data is not.
fn all_right(root: &std::path::Path, options: OpenOptions, tids: &[(Tid, Vec<u8>)]) -> bool {
    let store = match NativeStore::open(root, options) {
        Ok(store) => store,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let mut right = true;
    for (tid, expected) in tids {
        match read(&store, *tid, "file") {
            Ok(Some(found)) => assert!(found == *expected, "wrong data at {tid}"),
            Ok(None) => panic!("file vanished at {tid}"),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                right = false;
            }
        }
    }
    right
}
