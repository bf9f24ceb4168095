//! The history of files in a ZODB database, against a comparison of all that was in them before and after.
//!
//! Invariant: nothing that is compared with knows of trees. Random databases come from seeds that are printed;
//! `REVFS_HISTORY_SEED=n` plays one again, `REVFS_SLOW=1` plays hundreds of thousands of commits.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "zodb/checks.rs"]
mod checks;
#[path = "zodb/manifest.rs"]
mod manifest;
#[path = "zodb_history/oracle.rs"]
mod oracle;
#[path = "zodb/python.rs"]
mod python;
#[path = "zodb_history/real.rs"]
mod real;
#[path = "zodb_history/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use revfs::delta::{ChangeIndex, Tail, TailOptions};
use revfs::store::zodb::{Database, DatabaseOptions};
use revfs::store::{BlockData, Load, ReadTxn, Store};
use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};

use zodb_writer::records::{self, Kind};
use zodb_writer::{Write, Writer};

use oracle::{Changes, block_rev, changes_block, changes_of, told};
use world::{KEYS, World};

/// Commits of one database: more make its chains of records long.
const COMMITS: usize = 400;
const WORLDS: u64 = 8;
const WORLDS_SLOW: u64 = 800;
/// So many commits are looked at together, now and then.
const WINDOW: usize = 24;

fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(Database::open(path, DatabaseOptions::default()).unwrap())
}

fn refresh(store: &Arc<dyn Store>) -> Tid {
    let Load::Ready(result) = store.refresh() else { panic!("a file is read at once") };
    result.unwrap()
}

/// Seeds to play, each said as its turn comes.
fn seeds() -> impl Iterator<Item = u64> {
    let one = std::env::var("REVFS_HISTORY_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let slow = std::env::var_os("REVFS_SLOW").is_some_and(|value| value == "1");
    let count = if slow { WORLDS_SLOW } else { WORLDS };
    one.map_or(1..count + 1, |seed| seed..seed + 1).inspect(|seed| eprintln!("REVFS_HISTORY_SEED={seed}"))
}

/// A folder in memory, if the machine has one: there are many small writes.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

/// What is known of objects is known of those of one database.
#[test]
fn a_file_in_a_database_that_took_the_place_of_another_is_told() {
    const OID: u64 = 5;
    let dir = folder();
    let [path, other] = ["Data.fs", "other.fs"].map(|name| dir.path().join(name));
    let root = || (0, Write::Data(records::root(&[])));
    let mut writer = Writer::create(&path).unwrap();
    let blk = |text: &[u8]| (OID, Write::Data(records::blk0(text)));
    writer.commit(1 << 20, &[root()]).unwrap();
    writer.commit(2 << 20, &[blk(b"a")]).unwrap();
    let store = open(&path);
    let told = |lo: u64| -> Vec<(FileId, bool)> {
        let commits =
            store.commits_of(Tid::from_raw(lo), store.head(), usize::MAX, &BTreeSet::new()).unwrap();
        commits.iter().flat_map(|commit| &commit.files).map(|change| (change.file, change.created)).collect()
    };
    assert_eq!(told(1 << 20), []);
    let mut writer = Writer::create(&other).unwrap();
    writer.commit(3 << 20, &[root()]).unwrap();
    let file = (OID, Write::Data(records::big_file(4096, 6)));
    writer.commit(4 << 20, &[file, (6, Write::Data(records::empty_tree(Kind::Long)))]).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(refresh(&store), Tid::from_raw(4 << 20));
    assert_eq!(told(3 << 20), [(FileId::from_raw(OID), true)]);
}

#[test]
fn what_commits_are_told_to_have_done_is_what_differs() {
    for seed in seeds() {
        let dir = folder();
        let path = dir.path().join("Data.fs");
        let mut world = World::new(&path, seed);
        let store = open(&path);
        let mut changes: Vec<(Tid, Changes)> = Vec::new();
        let (mut counts, mut some) = ([0; 4], Followed::new(&path));
        for commit in 0..COMMITS {
            let before = store.head();
            world.step();
            let head = refresh(&store);
            let commits = store.commits(before, head, 8).unwrap();
            assert_eq!(commits.iter().map(|commit| commit.tid).collect::<Vec<_>>(), [head]);
            let expected = changes_of(&world.done[world.done.len() - 2..]).pop().unwrap();
            assert_eq!((head, told(&commits[0])), expected, "seed {seed}, commit {commit}");
            for change in expected.1.values() {
                counts[match change {
                    oracle::Change::Created { .. } => 0,
                    oracle::Change::Deleted { .. } => 1,
                    oracle::Change::Whole { .. } => 2,
                    oracle::Change::Blocks { .. } => 3,
                }] += 1;
            }
            changes.push(expected);
            some.follow(&mut world, &changes);
            if commit % WINDOW == WINDOW - 1 {
                let from = world.random.below(changes.len() as u64 - 1) as usize;
                let from = from.max(changes.len().saturating_sub(WINDOW));
                check_back(&path, &changes[from..]);
                check_index(&path, &changes[from..]);
                check_states(&path, &world);
            }
        }
        assert!(counts.iter().all(|count| *count > 3), "seed {seed}: {counts:?}");
    }
}

/// Who asks about some files only, about others each time, and not after each commit.
struct Followed {
    store: Arc<dyn Store>,
    at: Tid,
}

impl Followed {
    fn new(path: &Path) -> Followed {
        let store = open(path);
        Followed { at: store.head(), store }
    }

    fn follow(&mut self, world: &mut World, changes: &[(Tid, Changes)]) {
        if world.random.chance(40) {
            return;
        }
        let head = refresh(&self.store);
        let since = changes.partition_point(|(tid, _)| *tid <= self.at);
        let named = changes[since..].iter().flat_map(|(_, changes)| changes.keys().copied());
        let files: BTreeSet<FileId> = (named.collect::<BTreeSet<u64>>().into_iter())
            .filter(|_| world.random.chance(50))
            .map(FileId::from_raw)
            .collect();
        let commits = self.store.commits_of(self.at, head, changes.len(), &files).unwrap();
        let found: Vec<(Tid, Changes)> = commits.iter().map(|commit| (commit.tid, told(commit))).collect();
        let mut expected = changes[since..].to_vec();
        for (_, changes) in &mut expected {
            // What is no matter of blocks is told of all.
            changes.retain(|file, change| {
                files.contains(&FileId::from_raw(*file)) || !matches!(change, oracle::Change::Blocks { .. })
            });
        }
        assert_eq!(found, expected, "of {files:?} after @{}", self.at);
        self.at = head;
    }
}

/// The tid just before the first of these, which is as good as that of the commit before it.
fn tail_of(changes: &[(Tid, Changes)]) -> Tid {
    Tid::from_raw(changes[0].0.raw() - 1)
}

/// The same, newest first, by who has seen nothing before.
fn check_back(path: &Path, changes: &[(Tid, Changes)]) {
    let store = open(path);
    let commits = store.commits_back(tail_of(changes), store.head(), changes.len() + 1).unwrap();
    let found: Vec<(Tid, Changes)> = commits.iter().rev().map(|commit| (commit.tid, told(commit))).collect();
    assert_eq!(found, changes);
}

/// Each block at each state, and slices, through the index that a server asks.
fn check_index(path: &Path, changes: &[(Tid, Changes)]) {
    let store = open(path);
    let head = ReadTxn::head(&store);
    let tail = tail_of(changes);
    let index = Tail::seed_from(&head, tail, TailOptions::default()).unwrap();
    assert_eq!(index.window(), (tail, head.at()));
    let mut files: Vec<FileId> =
        changes.iter().flat_map(|(_, changes)| changes.keys()).map(|oid| FileId::from_raw(*oid)).collect();
    files.sort_unstable();
    files.dedup();
    let states: Vec<Tid> = [tail].into_iter().chain(changes.iter().map(|(tid, _)| *tid)).collect();
    for file in &files {
        for at in &states {
            for block in 0..KEYS as u64 + 2 {
                let found = index.block_rev_at(&head, *file, BlockIndex::new(block), *at).unwrap();
                let expected = block_rev(changes, *file, block, tail, *at);
                let of_found = found.exact.then_some(found.rev);
                assert_eq!(of_found, expected, "file {file} block {block} @{at}");
                assert!(found.exact || found.rev == tail);
            }
        }
        for (from, lo) in states.iter().enumerate().step_by(3) {
            for (to, hi) in states.iter().enumerate().skip(from).step_by(2) {
                let slice = index.changed_blocks(&head, *file, *lo, *hi).unwrap();
                for block in 0..KEYS as u64 + 2 {
                    let expected = changes[from..to].iter().any(|(_, changes)| {
                        changes.get(&file.raw()).is_some_and(|change| changes_block(change, block))
                    });
                    let found = slice.contains(BlockIndex::new(block));
                    assert_eq!(found, expected, "file {file} block {block} in (@{lo}, @{hi}]: {slice:?}");
                }
            }
        }
    }
}

/// Sizes and places of blocks in some states, which shows that trees and maps are the same to begin with.
fn check_states(path: &Path, world: &World) {
    let store = open(path);
    for done in world.done.iter().rev().take(WINDOW).step_by(5) {
        let txn = ReadTxn::new(&store, Tid::from_raw(done.tid)).unwrap();
        for (oid, expected) in &done.state {
            let file = FileId::from_raw(*oid);
            assert_eq!(txn.file(file).unwrap().unwrap().size, expected.size());
            let runs = txn.blocks(file, BlockIndex::new(0), BlockCount::new(KEYS as u64)).unwrap();
            let mut found = std::collections::BTreeMap::new();
            for run in runs {
                if let BlockData::Object { oid, .. } = run.data {
                    found.insert(run.first.raw() as i64, oid.raw());
                }
            }
            assert_eq!(found, expected.blocks);
        }
    }
}
