//! `revfs import`: the history of a database in a native store is that of the database, block by block and tid by tid.
//!
//! Invariant: what is compared with comes from manifests and from ZODB in Python, never from revfs. The moments of kills
//! follow from a seed that is printed; `REVFS_SEED=n` replays it, `REVFS_SLOW=1` plays many more.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "zodb/checks.rs"]
mod checks;
#[path = "import/hand.rs"]
mod hand;
#[path = "common/live.rs"]
mod live;
#[path = "filestorage/maker.rs"]
mod maker;
#[path = "zodb/manifest.rs"]
mod manifest;
#[path = "zodb/python.rs"]
mod python;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use checks::{bytes_of, check, open, sha256};
use live::{Guarded, Place, slow, wait_until};
use manifest::{Manifest, folder};
use python::{Writer, python, run};
use revfs::env::sleep;
use revfs::ops::import::{Chosen, Import, ImportError};
use revfs::store::native::{CommitError, CopyOf, NativeStore};
use revfs::store::zodb::filestorage::{FileStorage, WrittenRecord};
use revfs::store::zodb::objects::{Class, class_of_start};
use revfs::store::{CommitInfo, Entry, FileChange, ReadTxn, Store};
use revfs_protocol::{BlockSize, FileId, Tid};
use std::time::Duration;

/// All commits of a store.
fn history(store: &Arc<dyn Store>) -> Vec<CommitInfo> {
    store.commits(Tid::ZERO, store.head(), usize::MAX).unwrap()
}

/// All bytes of a name as of a state; none if it does not exist.
fn bytes_at(store: &Arc<dyn Store>, name: &str, at: Tid) -> Option<Vec<u8>> {
    match ReadTxn::new(store, at.min(store.head())).unwrap().resolve(name.as_bytes()).unwrap() {
        Some(Entry::File(file)) => bytes_of(store, file, at.min(store.head())),
        None => None,
        Some(Entry::Dir(_)) => panic!("{name} is a directory"),
    }
}

/// Blocks that a commit wrote.
fn blocks_of(change: &FileChange) -> BTreeSet<u64> {
    change.blocks.iter().flat_map(|(first, count)| first.raw()..first.raw() + count.raw()).collect()
}

/// Compares a store with all that the manifest says; answers how many blocks were no holes.
fn check_store(store: &Arc<NativeStore>, manifest: &Manifest) -> usize {
    let store = store.as_store();
    let source = open(&manifest.database);
    let mut stored = 0;
    for at in &manifest.tids {
        for (name, (oid, block_size)) in &manifest.files {
            match bytes_at(&store, &oid.to_string(), *at) {
                Some(bytes) => stored += check(manifest, name, *at, &bytes),
                None => assert_eq!(manifest.size(name, *at), 0, "{name} @{at} is not there"),
            }
            let there = bytes_of(&source, FileId::from(*oid), *at).is_some();
            assert_eq!(bytes_at(&store, &oid.to_string(), *at).is_some(), there, "{name} @{at}");
            let txn = ReadTxn::new(&store, (*at).min(store.head())).unwrap();
            if let Some(Entry::File(file)) = txn.resolve(oid.to_string().as_bytes()).unwrap() {
                assert_eq!(txn.file(file).unwrap().unwrap().block_size.bytes(), *block_size);
            }
        }
    }
    check_history(&store, &source, manifest);
    stored
}

/// Each transaction that changed a file is a commit of the same tid, author and message, and wrote just what changed.
fn check_history(store: &Arc<dyn Store>, source: &Arc<dyn Store>, manifest: &Manifest) {
    let (made, told) = (history(store), history(source));
    let first = manifest.tids[0];
    let mut expected = BTreeSet::new();
    for tid in manifest.tids.iter().skip(1) {
        let before = Tid::from_raw(tid.raw() - 1);
        for (name, (oid, _)) in &manifest.files {
            let oid = FileId::from(*oid);
            let resized = manifest.size(name, *tid) != manifest.size(name, before);
            let there = |at| bytes_of(source, oid, at).is_some();
            if resized || !manifest.changed(name, *tid).is_empty() || there(*tid) != there(before) {
                expected.insert(*tid);
            }
        }
    }
    let found: BTreeSet<Tid> = made.iter().map(|commit| commit.tid).filter(|tid| *tid > first).collect();
    assert_eq!(found, expected);
    for commit in &made {
        let of = told.iter().find(|told| told.tid == commit.tid).unwrap();
        assert_eq!((&commit.author, &commit.message), (&of.author, &of.message), "@{}", commit.tid);
        assert_eq!(commit.time_unix_ns, commit.tid.to_unix_ns());
        for change in commit.files.iter().filter(|change| !change.deleted) {
            let is_it = |(_, (oid, _)): &(&String, &(_, u64))| change.path == format!("{oid}").into_bytes();
            let (name, (_, block_size)) = manifest.files.iter().find(is_it).unwrap();
            let inside = |block: &u64| block * block_size < change.size;
            let changed: BTreeSet<u64> =
                manifest.changed(name, commit.tid).into_iter().filter(inside).collect();
            if manifest.tids.contains(&commit.tid) {
                assert_eq!(blocks_of(change), changed, "{name} @{}", commit.tid);
            }
        }
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn every_block_of_every_revision_is_imported() {
    let Some(folder) = folder("every_block_of_every_revision_is_imported") else { return };
    for manifest in Manifest::all(&folder) {
        let place = Place::new();
        let database = manifest.database.to_str().unwrap();
        let done = json(&place.ok(&["import", database, "s", "--json"]));
        let head = manifest.tids.last().unwrap().to_string();
        assert_eq!((done["tid"].as_str(), done["source_tid"].as_str()), (Some(&*head), Some(&*head)));
        let store = place.open();
        let commits = history(&store.as_store()).len() as u64;
        assert!(
            commits > 10 && done["commits"].as_u64() == Some(commits) && done["verified"] == done["commits"]
        );
        assert!(check_store(&store, &manifest) > 500);
        // Again: nothing is left to do, and all is compared.
        let again = json(&place.ok(&["import", database, "s", "--verify", "--json"]));
        assert_eq!((again["commits"].as_u64(), again["verified"].as_u64()), (Some(0), Some(commits)));
        let said = place.ok(&["import", database, "s"]);
        assert!(
            said.starts_with(&format!("imported 0 commits after {commits} that were there, 0 B")),
            "{said}"
        );
        assert!(place.ok(&["verify", "s"]).starts_with("whole: "));
    }
}

/// Where each transaction of a FileStorage ends.
fn ends_of(file: &[u8]) -> Vec<usize> {
    let mut ends = vec![4];
    while let Some(at) = ends.last().copied().filter(|at| *at < file.len()) {
        ends.push(at + u64::from_be_bytes(file[at + 8..at + 16].try_into().unwrap()) as usize + 8);
    }
    ends
}

#[test]
fn it_goes_on_where_it_ended_and_makes_the_same_commits() {
    let Some(folder) = folder("it_goes_on_where_it_ended") else { return };
    let manifest = &Manifest::all(&folder)[1];
    let (place, whole) = (Place::new(), fs::read(&manifest.database).unwrap());
    for end in ends_of(&whole).into_iter().step_by(7).chain([whole.len()]) {
        fs::write(place.path("Data.fs"), &whole[..end]).unwrap();
        place.ok(&["import", "Data.fs", "s"]);
    }
    let store = place.open();
    check_store(&store, manifest);
    place.ok(&["init", "t", "--block-size", "4K"]);
    place.ok(&["import", "Data.fs", "t"]);
    let at_once = NativeStore::open(&place.path("t"), Default::default()).unwrap();
    let identities = |store: &Arc<NativeStore>| -> Vec<_> {
        history(&store.as_store()).iter().map(|commit| (commit.tid, commit.commit_uuid)).collect()
    };
    assert_eq!(identities(&store), identities(&at_once));
    // The source went back to before what is imported.
    let half = ends_of(&whole)[20];
    fs::write(place.path("Data.fs"), &whole[..half]).unwrap();
    place.fails(&["import", "Data.fs", "s"], 4, "ends before that");
}

#[test]
fn it_may_be_killed_at_any_moment() {
    let Some(folder) = folder("it_may_be_killed_at_any_moment") else { return };
    let seed = std::env::var("REVFS_SEED").map_or(1, |seed| seed.parse::<u64>().unwrap());
    eprintln!("REVFS_SEED={seed}");
    let mut state = seed;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let manifest = &Manifest::all(&folder)[1];
    let database = manifest.database.to_str().unwrap();
    for _ in 0..if slow() { 20 } else { 2 } {
        let place = Place::new();
        let commits = || fs::read_dir(place.path("s/commits")).unwrap().count() as u64;
        let mut midway = 0;
        loop {
            let (before, wanted) = (commits(), commits() + 1 + below(8));
            let mut child = Guarded(place.command(&["import", database, "s"]).spawn().unwrap());
            let mut ended = None;
            wait_until("it imports", || {
                ended = child.0.try_wait().unwrap();
                ended.is_some() || commits() >= wanted
            });
            sleep(Duration::from_micros(below(5000)));
            drop(child);
            if let Some(ended) = ended {
                assert!(ended.success());
                break;
            }
            midway += u32::from(commits() > before);
            assert!(place.ok(&["verify", "s", "--quick"]).contains("whole: "), "after {}", commits());
        }
        assert!(midway >= 3, "{midway}");
        check_store(&place.open(), manifest);
    }
}

#[test]
fn a_store_with_anything_else_in_it_is_refused() {
    let Some(folder) = folder("a_store_with_anything_else_in_it_is_refused") else { return };
    let all = Manifest::all(&folder);
    let [plain, deep] = [0, 1].map(|index| all[index].database.to_str().unwrap());
    let place = Place::new();
    place.commit("a", b"mine");
    place.fails(&["import", deep, "s"], 4, "is not of an import: import into a store of its own");
    assert_eq!(place.ok(&["log", "s", "--json"]).lines().count(), 1);
    // One behind what was imported.
    place.ok(&["init", "t"]);
    place.ok(&["import", deep, "t"]);
    let file = all[1].files.values().next().unwrap().0.to_string();
    place.fails(&["import", deep, "t", &file], 4, "is of an import of other files, or under other names");
    place.fails(&["import", deep, "t", "--name", &format!("{file}=a")], 4, "under other names");
    place.fails(&["import", plain, "t"], 4, "it is another database, or was restored");
    fs::write(place.path("source"), b"mine").unwrap();
    place.ok(&["commit", "t", "a=source"]);
    place.fails(&["import", deep, "t"], 4, "is not of an import");
    // Neither a store of another kind, nor none.
    place.fails(&["import", "s", "t"], 6, "is no ZODB database");
    place.fails(&["import", deep, deep], 6, "written through ZODB");
    place.fails(&["import", deep, "none"], 3, "revfs init");
}

#[test]
fn a_copy_has_its_tid_or_is_refused() {
    let place = Place::new();
    let store = place.open();
    let block = BlockSize::new(4096).unwrap();
    let begin = |name: &str, tid: u64| {
        let mut txn = store.begin(None).unwrap();
        txn.create(name.as_bytes(), Some(block)).unwrap();
        txn.set_copy_of(CopyOf { tid: Tid::from_raw(tid), uuid: uuid_of(tid) });
        txn
    };
    let done = pollster::block_on(begin("a", 1000).commit()).unwrap();
    assert_eq!((done.tid, done.seq), (Tid::from_raw(1000), 1));
    assert_eq!(history(&store.as_store())[0].commit_uuid, uuid_of(1000));
    // Not before head, nor at it.
    for tid in [999, 1000] {
        let refused = pollster::block_on(begin("b", tid).commit()).unwrap_err();
        assert!(matches!(refused, CommitError::CopyTooLate { .. }), "{refused}");
    }
    // Not if somebody else was first, though the tid would do and no name meets.
    let late = begin("b", Tid::MAX.raw() - 10);
    let mut other = store.begin(None).unwrap();
    other.create(b"c", Some(block)).unwrap();
    let other = pollster::block_on(other.commit()).unwrap();
    let refused = pollster::block_on(late.commit()).unwrap_err();
    assert!(matches!(refused, CommitError::CopyTooLate { head, .. } if head == other.tid), "{refused}");
    // Others go on behind a copy as behind any commit, also if it is ahead of their clock.
    let ahead = Tid::from_raw(other.tid.raw() + (1 << 40));
    pollster::block_on(begin("d", ahead.raw()).commit()).unwrap();
    let mut next = store.begin(None).unwrap();
    next.create(b"e", Some(block)).unwrap();
    assert_eq!(Some(pollster::block_on(next.commit()).unwrap().tid), ahead.next());
}

fn uuid_of(tid: u64) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(tid))
}

#[test]
fn a_source_that_lacks_what_was_imported_is_refused() {
    let place = Place::new();
    let database = |last: u64| {
        let mut maker = maker::Maker::new();
        let first = [hand::root(), hand::file(1, 4096, 2), hand::tree(2, &[(0, 3)]), hand::block(3, b"one")];
        maker.commit(0x10, &first);
        maker.commit(last, &[hand::block(3, b"two")]);
        maker.commit(0x50, &[hand::block(3, b"three")]);
        let end = *ends_of(&maker.bytes).iter().rev().nth(1).unwrap();
        (maker.bytes[..end].to_vec(), maker.bytes)
    };
    fs::write(place.path("Data.fs"), database(0x20).0).unwrap();
    place.ok(&["import", "Data.fs", "s"]);
    fs::write(place.path("Data.fs"), database(0x30).1).unwrap();
    place.fails(&["import", "Data.fs", "s"], 4, "has no such transaction: it is another database");
    fs::write(place.path("Data.fs"), database(0x20).1).unwrap();
    place.ok(&["import", "Data.fs", "s"]);
}

#[test]
fn a_commit_of_somebody_else_in_between_ends_it() {
    let place = Place::new();
    fs::write(place.path("Data.fs"), hand::story().bytes).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    // Each call tells of bytes that were written, or compared.
    for moment in 1..8 {
        let name = format!("t{moment}");
        place.ok(&["init", &name]);
        let target = NativeStore::open(&place.path(&name), Default::default()).unwrap();
        let (source, chosen) = (open(&place.path("Data.fs")), Chosen::default());
        let what = Import {
            source: &source,
            oldest: Tid::ZERO,
            target: &target,
            chosen: &chosen,
            verify_all: false,
        };
        let calls = std::sync::atomic::AtomicU64::new(0);
        let progress = |_: u64| {
            if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == moment {
                fs::write(place.path("source"), b"mine").unwrap();
                place.ok(&["commit", &name, "a=source"]);
            }
        };
        let ended = runtime.block_on(revfs::ops::import::import(&what, &progress)).unwrap_err();
        assert!(matches!(ended, ImportError::Commit(CommitError::CopyTooLate { .. })), "{moment}: {ended}");
        let last = place.ok(&["log", &name, "--limit", "1", "--json"]);
        assert!(last.contains("\"name\":\"a\""), "{last}");
        place.fails(&["import", "Data.fs", &name], 4, "is not of an import");
    }
}

#[test]
fn files_may_be_chosen_and_named() {
    let Some(folder) = folder("files_may_be_chosen_and_named") else { return };
    let manifest = &Manifest::all(&folder)[1];
    let database = manifest.database.to_str().unwrap();
    let place = Place::new();
    // The keys of the root are the names of the manifest.
    let names: Vec<&String> = manifest.files.keys().collect();
    let one = manifest.files[names[0]].0.to_string();
    let name = format!("{}=dir/one", names[0]);
    place.ok(&["import", database, "s", &one, names[1], "--name", &name]);
    let store = place.open().as_store();
    let listed: Vec<Vec<u8>> = ReadTxn::head(&store)
        .walk(revfs::store::DirId::ROOT)
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let two = manifest.files[names[1]].0.to_string();
    let expected = BTreeSet::from([b"dir/one".to_vec(), two.clone().into_bytes()]);
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
    for at in &manifest.tids {
        for (name, path) in [(names[0], "dir/one"), (names[1], two.as_str())] {
            let bytes = bytes_at(&store, path, *at).unwrap_or_default();
            check(manifest, name, *at, &bytes);
        }
    }
    let other = manifest.others[0].to_string();
    place.fails(&["import", database, "s", &other], 3, "is no ZBigFile of");
    place.fails(&["import", database, "s", "no/such"], 3, "is no ZBigFile of");
    place.fails(&["import", database, "s", &one, "--name", &format!("{two}=x")], 2, "is not among the files");
    place.fails(&["import", database, "s", "--name", &format!("{one}={two}")], 2, "is given to two files");
    place.fails(&["import", database, "s", "--name", "x"], 2, "it has no '='");
}

#[test]
fn what_differs_is_found_when_all_is_compared() {
    let Some(folder) = folder("what_differs_is_found_when_all_is_compared") else { return };
    let manifest = &Manifest::all(&folder)[1];
    let place = Place::new();
    let mut bytes = fs::read(&manifest.database).unwrap();
    // The format has no checksums: a byte in a block that differs is another database to nobody.
    let storage = FileStorage::open(&manifest.database, None).unwrap();
    let transactions = storage.transactions(Tid::ZERO, Tid::MAX).unwrap().map(Result::unwrap);
    let is_block = |record: &WrittenRecord| {
        let at = record.data_pos() as usize;
        record.data_len > 4096 && class_of_start(&bytes[at..]) == Ok(Class::Blk0)
    };
    let block = transactions.flat_map(|transaction| transaction.records).find(is_block).unwrap();
    bytes[(block.data_pos() + block.data_len / 2) as usize] ^= 0x55;
    fs::write(place.path("Data.fs"), &bytes).unwrap();
    place.ok(&["import", "Data.fs", "s"]);
    let database = manifest.database.to_str().unwrap();
    place.ok(&["import", database, "s"]);
    place.fails(&["import", database, "s", "--verify"], 7, "is not what the source has");
    place.ok(&["import", "Data.fs", "s", "--verify"]);
}

#[test]
fn files_come_go_come_again_and_change_the_size_of_their_blocks() {
    let place = Place::new();
    let story = hand::story();
    fs::write(place.path("Data.fs"), &story.bytes).unwrap();
    for files in [&[][..], &["0000000000000001"]] {
        let store = if files.is_empty() { "s" } else { "t" };
        if store == "t" {
            place.ok(&["init", "t"]);
        }
        place.ok(&[&["import", "Data.fs", store], files].concat());
        let opened = NativeStore::open(&place.path(store), Default::default()).unwrap().as_store();
        let tids: Vec<u64> = history(&opened).iter().map(|commit| commit.tid.raw()).collect();
        assert_eq!(tids, story.expected.iter().map(|(tid, ..)| *tid).collect::<Vec<_>>());
        for (tid, block_size, bytes) in &story.expected {
            let at = Tid::from_raw(*tid);
            assert_eq!(bytes_at(&opened, "0000000000000001", at), *bytes, "@{at}");
            if let Some(Entry::File(file)) =
                ReadTxn::new(&opened, at).unwrap().resolve(b"0000000000000001").unwrap()
            {
                let meta = ReadTxn::new(&opened, at).unwrap().file(file).unwrap().unwrap();
                assert_eq!(meta.block_size.bytes(), *block_size, "@{at}");
            }
        }
        place.ok(&["import", "Data.fs", store, "--verify"].iter().chain(files).copied().collect::<Vec<_>>());
    }
}

#[test]
fn what_is_damaged_in_the_source_ends_it_there() {
    let place = Place::new();
    let story = hand::story();
    let mut bytes = story.bytes.clone();
    let at = hand::last_block_record(&bytes);
    bytes[at] = 0xff;
    fs::write(place.path("Data.fs"), &bytes).unwrap();
    place.fails(
        &["import", "Data.fs", "s"],
        7,
        "0000000000000001 @00000000000000a0 of the source: object 000000",
    );
    let before = story.expected.iter().filter(|(tid, ..)| *tid < 0xa0).count();
    assert_eq!(place.ok(&["log", "s", "--json"]).lines().count(), before);
    fs::write(place.path("Data.fs"), &story.bytes).unwrap();
    place.ok(&["import", "Data.fs", "s", "--verify"]);
}

const BLOCK: usize = 4096;

/// Compares all files as of a state with what Python reads there.
fn compare(writer: &mut Writer, store: &Arc<dyn Store>, at: &str) {
    let tid: Tid = at.parse().unwrap();
    let files = writer.ask(&format!("files {at}"), "files");
    let mut there = BTreeSet::new();
    for file in files.split_whitespace() {
        let (name, oid) = file.split_once('=').unwrap();
        let size: usize = writer.ask(&format!("size {name} {at}"), "size").parse().unwrap();
        let bytes = bytes_at(store, oid, tid).unwrap();
        assert_eq!(bytes.len(), size, "{name} @{at}");
        for (block, bytes) in bytes.chunks(BLOCK).enumerate() {
            let hash = writer.ask(&format!("sha {name} {at} {block}"), "sha");
            assert_eq!(sha256(bytes), hash, "{name} block {block} @{at}");
        }
        there.insert(oid.as_bytes().to_vec());
    }
    let txn = ReadTxn::new(store, tid.min(store.head())).unwrap();
    let names = txn.walk(revfs::store::DirId::ROOT).unwrap().into_iter().map(|(name, _)| name);
    assert_eq!(names.collect::<BTreeSet<_>>(), there, "@{at}");
}

#[test]
fn it_follows_a_database_that_zodb_writes_undoes_and_packs() {
    let Some(python) = python("it_follows_a_database_that_zodb_writes") else { return };
    let place = Place::new();
    let database = place.path("Data.fs");
    let options = "--seed 3 --files 4 --leaf 3 --inner 3 --block-size 4096";
    let options: Vec<&str> = options.split(' ').collect();
    let mut writer = Writer::start(&python, &database, &options);
    let mut tids = Vec::new();
    let mut rounds = 0;
    for round in 0..if slow() { 30 } else { 4 } {
        // While it runs ZODB goes on.
        let mut child = Guarded(place.command(&["import", "Data.fs", "s"]).spawn().unwrap());
        for number in 0..12 {
            let command = if number % 5 == 4 { "undo" } else { "commit" };
            tids.push(writer.ask(command, "tid"));
        }
        wait_until("it ends", || child.0.try_wait().unwrap().is_some());
        assert!(child.0.wait().unwrap().success());
        rounds += round;
    }
    assert!(rounds > 0);
    place.ok(&["import", "Data.fs", "s", "--verify"]);
    let store = place.open().as_store();
    assert!(history(&store).len() > 20);
    for at in &tids {
        compare(&mut writer, &store, at);
    }
    // A pack takes away what is imported; what comes after goes on behind it.
    writer.ask("pack", "packed");
    place.ok(&["import", "Data.fs", "s"]);
    tids.push(writer.ask("commit", "tid"));
    place.ok(&["import", "Data.fs", "s"]);
    compare(&mut writer, &place.open().as_store(), tids.last().unwrap());
    // And what was not imported yet when it was taken away is one commit.
    for _ in 0..5 {
        tids.push(writer.ask("commit", "tid"));
    }
    let before = writer.ask("head", "tid");
    writer.ask("pack", "packed");
    tids.push(writer.ask("commit", "tid"));
    let done = json(&place.ok(&["import", "Data.fs", "s", "--verify", "--json"]));
    assert!(done["not_verified"].as_u64() > Some(20), "{done}");
    place.ok(&["init", "t"]);
    let fresh = json(&place.ok(&["import", "Data.fs", "t", "--verify", "--json"]));
    assert!(fresh["commits"].as_u64() == fresh["verified"].as_u64() && fresh["commits"].as_u64() >= Some(1));
    for store in ["s", "t"] {
        let opened = NativeStore::open(&place.path(store), Default::default()).unwrap().as_store();
        for at in [&before, tids.last().unwrap()] {
            compare(&mut writer, &opened, at);
        }
    }
}

#[test]
fn random_databases_are_imported() {
    let Some(python) = python("random_databases_are_imported") else { return };
    for seed in 1..=if slow() { 60 } else { 3 } {
        eprintln!("seed {seed}");
        let place = Place::new();
        let database = place.path("Data.fs");
        let format = ["mixed", "ZBlk0", "ZBlk1"][seed as usize % 3];
        let options = format!(
            "--seed {seed} --format {format} --leaf 2 --inner 3 --commits 40 --undo-every 6 --block-size 4096"
        );
        run(&python, "make", &database, &options.split(' ').collect::<Vec<_>>());
        let manifest = Manifest::parse(&database, &run(&python, "manifest", &database, &[]));
        place.ok(&["import", "Data.fs", "s", "--verify"]);
        assert!(check_store(&place.open(), &manifest) > 100);
    }
}

#[test]
fn a_database_behind_a_server_is_imported() {
    let Some(python) = python("a_database_behind_a_server_is_imported") else { return };
    let place = Place::new();
    let options = ["--seed", "5", "--files", "3", "--leaf", "3", "--inner", "3", "--block-size", "4096"];
    let mut writer = Writer::start(&python, &place.path("Data.fs"), &options);
    let socket = place.path("zeo.sock");
    writer.ask(&format!("zeo start {}", socket.display()), "zeo");
    let url = format!("zeo://{}", socket.display());
    let mut tids = Vec::new();
    for _ in 0..3 {
        tids.extend((0..4).map(|_| writer.ask("commit", "tid")));
        place.ok(&["import", &url, "s"]);
    }
    place.ok(&["import", &url, "s", "--verify"]);
    let store = place.open().as_store();
    for at in &tids {
        compare(&mut writer, &store, at);
    }
    // The same database without its server.
    let last = writer.ask("head", "tid");
    drop(writer);
    place.ok(&["import", "Data.fs", "s", "--verify"]);
    assert!(history(&place.open().as_store()).iter().all(|commit| commit.tid.to_string() <= last));
}

/// The database is never touched.
#[test]
fn nothing_is_written_beside_the_database() {
    let place = Place::new();
    fs::create_dir(place.path("d")).unwrap();
    fs::write(place.path("d/Data.fs"), hand::story().bytes).unwrap();
    let listing =
        |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    let before = listing(&place.path("d"));
    place.ok(&["import", "d/Data.fs", "s"]);
    assert_eq!(listing(&place.path("d")), before);
}
