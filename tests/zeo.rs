//! Databases behind a ZEO server: the real one, and one that lies.
//!
//! Invariant: what is compared with was read by ZODB in Python, or comes from the same file without a server. Skips loudly without
//! the Python of `.ci/run`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "zodb/checks.rs"]
mod checks;
#[path = "zeo/fake.rs"]
mod fake;
#[path = "common/live.rs"]
mod live;
#[path = "zodb/manifest.rs"]
mod manifest;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "zeo/mounted.rs"]
mod mounted;
#[path = "zodb/python.rs"]
mod python;
#[path = "zeo/server.rs"]
mod server;
#[path = "zeo/tls.rs"]
mod tls;
#[path = "zeo/wrong.rs"]
mod wrong;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use checks::{bytes_of, check, open, sha256};
use live::wait_until;
use manifest::{Manifest, folder};
use python::{Writer, python};
use revfs::store::zodb::storage::{Refreshed, Storage, StorageError};
use revfs::store::zodb::zeo::{ZeoError, ZeoStorage};
use revfs::store::zodb::{Oid, ZodbError};
use revfs::store::{ReadError, Store};
use revfs_protocol::{FileId, Tid};
use server::{CODINGS, ZeoServer, storage, store_on};

/// Longer than anything takes that goes well.
const LONG: Duration = Duration::from_secs(60);

/// A copy of a database of the samples, and what its blocks are.
fn sample(name: &str, to: &Path) -> Option<Manifest> {
    let folder = folder(name)?;
    let mut manifest = Manifest::all(&folder).remove(0);
    fs::copy(&manifest.database, to).unwrap();
    manifest.database = to.to_owned();
    Some(manifest)
}

#[test]
fn every_block_of_every_revision_is_read_through_zeo() {
    const NAME: &str = "every_block_of_every_revision_is_read_through_zeo";
    let (Some(python), Some(folder)) = (python(NAME), folder(NAME)) else { return };
    for (manifest, coding) in Manifest::all(&folder)
        .iter()
        .zip(CODINGS)
        .chain(Manifest::all(&folder).iter().zip(["msgpack", "pickle"]))
    {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("Data.fs");
        fs::copy(&manifest.database, &database).unwrap();
        let server = ZeoServer::start(&python, &database, &dir.path().join("zeo.sock"), coding);
        let store = store_on(storage(&server.url(), LONG));
        assert_eq!(Some(&store.head()), manifest.tids.last());
        let mut checked = 0;
        for at in &manifest.tids {
            for (name, (oid, _)) in &manifest.files {
                match bytes_of(&store, FileId::from(*oid), *at) {
                    Some(bytes) => checked += check(manifest, name, *at, &bytes),
                    None => assert_eq!(manifest.size(name, *at), 0, "{name} @{at}"),
                }
            }
            for other in &manifest.others {
                assert_eq!(bytes_of(&store, FileId::from(*other), *at), None);
            }
        }
        assert!(checked > 500, "{checked}");
    }
}

#[test]
fn transactions_through_zeo_are_those_of_the_file() {
    const NAME: &str = "transactions_through_zeo_are_those_of_the_file";
    let Some(python) = python(NAME) else { return };
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("Data.fs");
    let Some(manifest) = sample(NAME, &database) else { return };
    let direct = open(&database);
    let server = ZeoServer::start(&python, &database, &dir.path().join("zeo.sock"), "pickle");
    let store = store_on(storage(&server.url(), LONG));
    let (head, tids) = (store.head(), &manifest.tids);
    for (lo, hi) in
        [(Tid::ZERO, head), (tids[3], tids[9]), (Tid::from_raw(tids[3].raw() - 1), tids[3]), (head, head)]
    {
        let [found, expected] = [&store, &direct].map(|store| store.commits(lo, hi, usize::MAX).unwrap());
        assert_eq!(found, expected, "({lo}, {hi}]");
        for limit in [1, 5, usize::MAX] {
            let [found, expected] = [&store, &direct].map(|store| store.commits_back(lo, hi, limit).unwrap());
            assert_eq!(found, expected, "({lo}, {hi}] back, {limit}");
        }
    }
    for at in tids.iter().flat_map(|tid| [tid.raw() - 1, tid.raw(), tid.raw() + 1]).map(Tid::from_raw) {
        let [found, expected] = [&store, &direct].map(|store| store.newest_commit(at).unwrap());
        assert_eq!(found, expected, "@{at}");
    }
    let [found, expected] = [&store, &direct].map(|store| {
        let at = revfs::store::ReadTxn::head(store);
        at.list(revfs::store::DirId::ROOT).unwrap()
    });
    assert_eq!(found, expected);
}

/// The hashes of all blocks of all files, as Python reads them at a state.
fn hashes(writer: &mut Writer, at: &str) -> BTreeMap<FileId, Vec<String>> {
    let files = writer.ask(&format!("files {at}"), "files");
    let of = |pair: &str| {
        let (name, oid) = pair.split_once('=').unwrap();
        let size: usize = writer.ask(&format!("size {name} {at}"), "size").parse().unwrap();
        let blocks = (0..size / BLOCK).map(|block| writer.ask(&format!("sha {name} {at} {block}"), "sha"));
        (oid.parse().unwrap(), blocks.collect())
    };
    files.split_whitespace().map(of).collect()
}

const BLOCK: usize = 4096;
const OPTIONS: [&str; 8] = ["--leaf", "3", "--inner", "3", "--block-size", "4096", "--format", "mixed"];

/// Compares all files of a store as of a state with what Python reads.
fn compare(writer: &mut Writer, store: &Arc<dyn Store>, at: &str) {
    for (file, expected) in hashes(writer, at) {
        let bytes = bytes_of(store, file, at.parse().unwrap()).unwrap_or_default();
        let found: Vec<String> = bytes.chunks(BLOCK).map(sha256).collect();
        assert_eq!(found, expected, "{file} @{at}");
    }
}

/// Waits until a store has taken up a state.
fn wait_for_head(store: &Arc<dyn Store>, tid: &str) {
    let tid: Tid = tid.parse().unwrap();
    wait_until("the commit is taken up", || {
        let before = store.head();
        let head = pollster::block_on(store.refresh().wait()).unwrap();
        assert!(head >= before, "head goes back from @{before} to @{head}");
        if head < tid {
            store.wait_for_commits(Duration::from_millis(100));
        }
        head >= tid
    });
}

#[test]
fn what_is_missed_while_a_server_is_away_is_made_up() {
    let Some(python) = python("what_is_missed_while_a_server_is_away_is_made_up") else { return };
    for coding in CODINGS {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("zeo.sock");
        let mut writer =
            Writer::start(&python, &dir.path().join("Data.fs"), &[&["--seed", "5"], &OPTIONS[..]].concat());
        let start = format!("zeo start {} {coding}", socket.display());
        writer.ask(&start, "zeo");
        let zeo = storage(&format!("zeo://{}", socket.display()), LONG);
        let store = store_on(Arc::clone(&zeo));
        let first = store.head();
        let mut tids = vec![first.to_string()];
        compare(&mut writer, &store, &tids[0]);
        for round in 0..6 {
            for _ in 0..4 {
                let tid = writer.ask("commit", "tid");
                wait_for_head(&store, &tid);
                compare(&mut writer, &store, &tid);
                tids.push(tid);
            }
            writer.ask("zeo kill", "killed");
            wait_until("the loss is noticed", || store.trouble().is_some());
            // Nobody tells of these. One round none is made.
            for _ in 0..round {
                tids.push(writer.ask("commit", "tid"));
            }
            assert_eq!(store.head().to_string(), tids[tids.len() - 1 - round], "head stays");
            writer.ask(&start, "zeo");
            wait_for_head(&store, tids.last().unwrap());
            wait_until("the server is found again", || store.trouble().is_none());
            // What was kept from before is not taken for what is now.
            compare(&mut writer, &store, tids.last().unwrap());
        }
        for tid in &tids {
            compare(&mut writer, &store, tid);
        }
        // All transactions, told and missed ones, in order and with what they wrote.
        writer.ask("zeo stop", "stopped");
        let direct = open(&dir.path().join("Data.fs"));
        writer.ask(&start, "zeo");
        let found: Vec<_> = zeo.transactions(first, zeo.last_tid()).unwrap().map(Result::unwrap).collect();
        assert_eq!(found.iter().map(|t| t.tid.to_string()).collect::<Vec<_>>(), tids[1..]);
        let commits = |store: &Arc<dyn Store>| {
            let commits = store.commits(first, store.head(), usize::MAX).unwrap();
            commits.into_iter().map(|c| (c.tid, c.author, c.message, c.files)).collect::<Vec<_>>()
        };
        assert_eq!(commits(&store), commits(&direct));
    }
}

#[test]
fn blocks_are_not_loaded_to_tell_what_commits_changed() {
    let Some(python) = python("blocks_are_not_loaded_to_tell_what_commits_changed") else { return };
    let dir = tempfile::tempdir().unwrap();
    let options = ["--seed", "11", "--format", "ZBlk0", "--files", "1", "--block-size", "65536"];
    let mut writer = Writer::start(&python, &dir.path().join("Data.fs"), &options);
    let socket = dir.path().join("zeo.sock");
    writer.ask(&format!("zeo start {}", socket.display()), "zeo");
    let files = writer.ask("files", "files");
    let (name, oid) = files.split_once('=').unwrap();
    let (file, write) = (oid.parse::<FileId>().unwrap(), format!("write {name} 0"));
    // The block is there now: more writes write its object alone, mostly.
    writer.ask(&write, "tid");
    // The tree of a file that is followed; of a block that nobody follows its class is looked at, once.
    for (followed, limit) in [(vec![], 100_000), (vec![file], 10_000)] {
        let zeo = storage(&format!("zeo://{}", socket.display()), LONG);
        let store = store_on(Arc::clone(&zeo));
        let files = followed.iter().copied().collect();
        for _ in 0..10 {
            let before = store.head();
            let tid = writer.ask(&write, "tid");
            wait_for_head(&store, &tid);
            let commits = store.commits_of(before, store.head(), usize::MAX, &files).unwrap();
            let changed: Vec<FileId> =
                commits.iter().flat_map(|commit| &commit.files).map(|change| change.file).collect();
            assert_eq!(changed, followed);
        }
        let kept = zeo.cached_bytes();
        assert!((500..limit).contains(&kept), "{kept} bytes are kept, followed: {followed:?}");
    }
}

#[test]
fn a_server_that_went_back_is_not_believed() {
    const NAME: &str = "a_server_that_went_back_is_not_believed";
    let Some(python) = python(NAME) else { return };
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("Data.fs");
    let Some(manifest) = sample(NAME, &database) else { return };
    let ends = ends_of(&fs::read(&database).unwrap());
    let (old, head) = (manifest.tids[manifest.tids.len() / 2], *manifest.tids.last().unwrap());
    let restored = dir.path().join("old.fs");
    fs::write(&restored, &fs::read(&database).unwrap()[..ends[&old]]).unwrap();
    let socket = dir.path().join("zeo.sock");
    let server = ZeoServer::start(&python, &database, &socket, "pickle");
    let store = store_on(storage(&server.url(), LONG));
    let mut files = manifest.files.iter();
    let (known, (known_oid, _)) = files.next().unwrap();
    let (other, (other_oid, _)) = files.next().unwrap();
    let bytes = bytes_of(&store, FileId::from(*known_oid), head).unwrap();
    check(&manifest, known, head, &bytes);
    server.kill();
    let server = ZeoServer::start(&python, &restored, &socket, "pickle");
    wait_until("it is told", || store.trouble().is_some_and(|trouble| trouble.contains("went back")));
    assert_eq!(pollster::block_on(store.refresh().wait()).unwrap(), head, "head stays");
    // What is known is served, what both have too, and nothing else.
    assert_eq!(bytes_of(&store, FileId::from(*known_oid), head).unwrap(), bytes);
    if let Some(bytes) = bytes_of(&store, FileId::from(*other_oid), old) {
        check(&manifest, other, old, &bytes);
    }
    let error = checks::try_bytes_of(&store, FileId::from(*other_oid), head).unwrap_err();
    let is_behind = |error: &ReadError| {
        matches!(error, ReadError::Database(ZodbError::Storage(StorageError::Zeo(ZeoError::Behind { .. }))))
    };
    assert!(is_behind(&error), "{error}");
    server.kill();
    let _server = ZeoServer::start(&python, &database, &socket, "msgpack");
    wait_until("all is well again", || store.trouble().is_none());
    check(&manifest, other, head, &bytes_of(&store, FileId::from(*other_oid), head).unwrap());
}

/// Where each transaction of a FileStorage ends.
fn ends_of(bytes: &[u8]) -> BTreeMap<Tid, usize> {
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let (mut ends, mut at) = (BTreeMap::new(), 4);
    while at < bytes.len() {
        let end = at + number(at + 8) as usize + 8;
        ends.insert(Tid::from_raw(number(at)), end);
        at = end;
    }
    ends
}

#[test]
fn a_database_that_another_takes_the_place_of_is_read_anew() {
    let Some(python) = python("a_database_that_another_takes_the_place_of_is_read_anew") else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("zeo.sock");
    let paths: [PathBuf; 2] = ["a.fs", "b.fs"].map(|name| dir.path().join(name));
    let mut first = Writer::start(&python, &paths[0], &[&["--seed", "1"], &OPTIONS[..]].concat());
    first.ask(&format!("zeo start {}", socket.display()), "zeo");
    let storage = storage(&format!("zeo://{}", socket.display()), LONG);
    let before = storage.last_tid();
    assert!(storage.load(Oid::ROOT, before).unwrap().is_some());
    first.ask("zeo kill", "killed");
    drop(first);
    let mut second = Writer::start(&python, &paths[1], &[&["--seed", "2"], &OPTIONS[..]].concat());
    let after = second.ask("commit", "tid");
    second.ask(&format!("zeo start {}", socket.display()), "zeo");
    wait_until("it is found", || match storage.refresh().unwrap() {
        Refreshed::Nothing => false,
        Refreshed::Anew { from, to } => {
            assert_eq!((from, to.to_string()), (before, after.clone()));
            true
        }
        grown @ Refreshed::Grown { .. } => panic!("{grown:?}"),
    });
    // The root is what the other database has, and not what is kept of the first.
    let there = storage.load(Oid::ROOT, storage.last_tid()).unwrap().unwrap();
    assert!(there.serial > before);
}

#[test]
fn objects_that_are_not_there_are_told_apart() {
    let Some(python) = python("objects_that_are_not_there_are_told_apart") else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("zeo.sock");
    let mut writer =
        Writer::start(&python, &dir.path().join("Data.fs"), &[&["--seed", "3"], &OPTIONS[..]].concat());
    for coding in CODINGS {
        writer.ask(&format!("zeo start {} {coding}", socket.display()), "zeo");
        let storage: Arc<ZeoStorage> = storage(&format!("zeo://{}", socket.display()), LONG);
        let last = storage.last_tid();
        let absent = Oid::from_raw(1 << 60);
        assert_eq!(storage.load(absent, last).unwrap(), None);
        assert_eq!(storage.peek_last(absent).unwrap(), None);
        assert_eq!(storage.oldest_serial(absent).unwrap(), None);
        assert_eq!(storage.load(Oid::ROOT, Tid::ZERO).unwrap(), None);
        let oldest = storage.oldest_serial(Oid::ROOT).unwrap().unwrap();
        assert!(oldest > Tid::ZERO && oldest <= last);
        assert_eq!(storage.load(Oid::ROOT, oldest).unwrap().unwrap().serial, oldest);
        assert!(storage.extent().unwrap() > 1000);
        writer.ask("zeo stop", "stopped");
    }
}
