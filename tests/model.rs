//! The store against a pure reference: random commits, conflicts, renames, reopens and deleted indexes.
//!
//! Each run prints its seed on failure; `REVFS_SEED=n` replays one, `REVFS_SLOW=1` runs many more.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "model/play.rs"]
mod play;
#[path = "model/reference.rs"]
mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;

use play::{draw_and_play, run, seeds};
use reference::{BLOCK, Model, Rng, State, conflicts, touched};
use revfs::env::SystemClock;
use revfs::protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};
use revfs::store::native::{
    CommitError, INDEX_SCHEMA, InitOptions, NativeStore, OpenOptions, VerifyOptions, open_objects,
};
use revfs::store::{BlockData, BufferPool, Codec, DirId, Piece, PieceSource, ReadTxn};

/// Where the store under test lives.
enum Place {
    Directory(tempfile::TempDir),
    Memory(Arc<object_store::memory::InMemory>, tempfile::TempDir),
}

impl Place {
    fn new(memory: bool, codec: Codec) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions { block_size: BlockSize::new(BLOCK).unwrap(), codec, sync: false };
        let clock = SystemClock::shared();
        if !memory {
            NativeStore::init(dir.path().join("store").as_path(), &options, &*clock).unwrap();
            return Place::Directory(dir);
        }
        let objects = Arc::new(object_store::memory::InMemory::new());
        revfs::store::native::init_in(objects.clone(), &options, &*clock).unwrap();
        Place::Memory(objects, dir)
    }

    fn open(&self) -> Arc<NativeStore> {
        let options = OpenOptions { sync: false, cache_bytes: 1 << 20, ..OpenOptions::default() };
        match self {
            Place::Directory(dir) => NativeStore::open(&dir.path().join("store"), options).unwrap(),
            Place::Memory(objects, dir) => open_objects(objects.clone(), dir.path(), options).unwrap(),
        }
    }

    fn delete_index(&self) {
        match self {
            Place::Directory(dir) => std::fs::remove_dir_all(dir.path().join("store/index")).unwrap(),
            Place::Memory(_, dir) => {
                std::fs::remove_dir_all(dir.path().join(format!("v{INDEX_SCHEMA}"))).unwrap()
            }
        }
    }
}

/// All bytes of a file, block by block, as the store says where they are.
fn bytes_of(txn: &ReadTxn, file: FileId) -> Vec<u8> {
    let meta = txn.file(file).unwrap().expect("it is listed");
    let block = meta.block_size.bytes();
    let mut bytes = vec![0; (meta.block_size.blocks_for(meta.size).raw() * block) as usize];
    let runs = txn.blocks(file, BlockIndex::ZERO, meta.block_size.blocks_for(meta.size)).unwrap();
    let mut next = 0;
    for run_of in runs {
        assert_eq!(run_of.first.raw(), next, "runs leave no gap");
        next += run_of.count;
        assert!(run_of.rev <= txn.at());
        let BlockData::Stored { pack, offset, len, codec } = run_of.data else { continue };
        for index in 0..run_of.count {
            let at = offset + index * u64::from(len);
            let (size, source) = match codec {
                Codec::Raw => (len as usize, PieceSource::Raw { pack, offset: at }),
                Codec::Zstd => (
                    block as usize,
                    PieceSource::Zstd { pack, offset: at, stored: len, block: block as u32, skip: 0 },
                ),
            };
            let buffer = BufferPool::new(1, 1).take(size);
            let piece = Piece { at: 0, len: size, source };
            let read = run(txn.store().read(vec![piece], buffer).wait()).unwrap();
            let start = ((run_of.first.raw() + index) * block) as usize;
            bytes[start..start + size].copy_from_slice(&read);
        }
    }
    assert_eq!(BlockCount::new(next), meta.block_size.blocks_for(meta.size));
    bytes.truncate(meta.size as usize);
    bytes
}

fn state_of(store: &Arc<NativeStore>, at: Tid) -> State {
    let txn = ReadTxn::new(&store.as_store(), at).unwrap();
    let files = txn.walk(DirId::ROOT).unwrap();
    let mut state = BTreeMap::new();
    for (name, file) in files {
        let meta = txn.file(file).unwrap().expect("it is listed");
        assert_eq!(txn.path_of(&meta).unwrap(), name);
        state.insert(name, (file, bytes_of(&txn, file)));
    }
    state
}

fn compare(store: &Arc<NativeStore>, at: Tid, expected: &State, seed: u64) {
    let found = state_of(store, at);
    let names = |state: &State| state.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "names at {at}, seed {seed}");
    for (name, (file, bytes)) in expected {
        let name_text = String::from_utf8_lossy(name);
        assert_eq!(found[name].0, *file, "identity of {name_text} at {at}, seed {seed}");
        assert!(found[name].1 == *bytes, "bytes of {name_text} at {at}, seed {seed}");
    }
}

/// Applies edits to a state in which the files may have been changed by others in between.
fn replay(head: &State, base: &State, end: &State, ours: &reference::Touched) -> State {
    let mut state = head.clone();
    state.retain(|_, (file, _)| !ours.moved.contains(file));
    for (name, (file, bytes)) in end {
        let old = base.values().find(|(other, _)| other == file);
        match old {
            None => {
                state.insert(name.clone(), (*file, bytes.clone()));
            }
            Some(_) if ours.moved.contains(file) => {
                state.insert(name.clone(), (*file, bytes.clone()));
            }
            Some((_, old_bytes)) => {
                let Some(blocks) = ours.blocks.get(file) else { continue };
                let now = &mut state.get_mut(name).expect("not moved").1;
                if old_bytes.len() != bytes.len() {
                    now.resize(bytes.len(), 0);
                }
                for block in blocks {
                    let start = (block * BLOCK) as usize;
                    let stop = (start + BLOCK as usize).min(bytes.len()).min(now.len());
                    if start < stop {
                        now[start..stop].copy_from_slice(&bytes[start..stop]);
                    }
                }
            }
        }
    }
    state
}

fn scenario(seed: u64, steps: u64, memory: bool, codec: Codec) {
    let mut rng = Rng::new(seed);
    let place = Place::new(memory, codec);
    let mut store = place.open();
    let mut model = Model::default();
    for _ in 0..steps {
        match rng.below(12) {
            0 => {
                drop(store);
                store = place.open();
            }
            1 => {
                drop(store);
                place.delete_index();
                store = place.open();
            }
            2..=5 => race(&mut rng, &store, &mut model, seed),
            _ => {
                let base = model.at(model.head());
                let mut txn = store.begin(None).unwrap();
                let (_, end) = draw_and_play(&mut rng, &mut txn, &base);
                let done = run(txn.commit()).unwrap();
                if !done.empty {
                    assert!(done.tid > model.head());
                    model.states.insert(done.tid, end.clone());
                }
                compare(&store, done.tid, &end, seed);
            }
        }
        let tids: Vec<Tid> = model.states.keys().copied().collect();
        if !tids.is_empty() {
            let at = tids[rng.below(tids.len() as u64) as usize];
            compare(&store, at, &model.at(at), seed);
            let between = Tid::from_raw(at.raw() - 1);
            compare(&store, between, &model.at(between), seed);
        }
    }
    for (at, state) in &model.states {
        compare(&store, *at, state, seed);
    }
    let options = VerifyOptions { quick: false, sample_percent: 100.0 };
    let report = run(store.verify(&options, &mut |_, _| {})).unwrap();
    assert!(report.findings.iter().all(|finding| !finding.damage), "seed {seed}: {:?}", report.findings);
}

/// Two transactions on one base: the second stands exactly if the rules say so.
fn race(rng: &mut Rng, store: &Arc<NativeStore>, model: &mut Model, seed: u64) {
    let base = model.at(model.head());
    let (mut first, mut second) = (store.begin(None).unwrap(), store.begin(None).unwrap());
    let (first_edits, first_end) = draw_and_play(rng, &mut first, &base);
    let (second_edits, second_end) = draw_and_play(rng, &mut second, &base);
    let theirs = touched(&base, &first_edits, &first_end);
    let ours = touched(&base, &second_edits, &second_end);
    let done = run(first.commit()).unwrap();
    if !done.empty {
        model.states.insert(done.tid, first_end.clone());
    }
    let expected = conflicts(&ours, &theirs, &first_end);
    match run(second.commit()) {
        Ok(done) => {
            assert!(!expected, "seed {seed}: no conflict between {first_edits:?} and {second_edits:?}");
            if !done.empty {
                let state = replay(&first_end, &base, &second_end, &ours);
                compare(store, done.tid, &state, seed);
                model.states.insert(done.tid, state);
            }
        }
        Err(CommitError::Conflict { kind, .. }) => {
            assert!(expected, "seed {seed}: {kind:?} between {first_edits:?} and {second_edits:?}");
        }
        Err(other) => panic!("seed {seed}: {other}"),
    }
}

#[test]
fn a_directory_behaves_as_the_model() {
    for seed in seeds(12) {
        scenario(seed, 40, false, Codec::Raw);
    }
}

#[test]
fn memory_behaves_as_the_model() {
    for seed in seeds(12) {
        scenario(1000 + seed, 40, true, Codec::Raw);
    }
}

#[test]
fn compressed_blocks_behave_as_the_model() {
    for seed in seeds(6) {
        scenario(2000 + seed, 40, seed % 2 == 0, Codec::Zstd);
    }
}
