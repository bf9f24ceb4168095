//! FileStorage: real databases, and files made byte by byte, against a reader of the simplest kind.
//!
//! Invariant: a file that is wrong gives an error or the right data, never a panic; what bytes no check can tell (data,
//! oids) is not asserted. Waiting has a limit, and no test depends on how long anything takes.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "filestorage/ahead.rs"]
mod ahead;
#[path = "filestorage/damage.rs"]
mod damage;
#[path = "filestorage/follow.rs"]
mod follow;
#[path = "filestorage/maker.rs"]
mod maker;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "filestorage/pack.rs"]
mod pack;
#[path = "filestorage/reference.rs"]
mod reference;
#[path = "filestorage/saved.rs"]
mod saved;
#[path = "filestorage/zodb.rs"]
mod zodb;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use maker::{Maker, Write};
use reference::{Reference, databases, load};
use revfs::store::zodb::Oid;
use revfs::store::zodb::filestorage::{
    FileStorage, FileStorageError, IndexSource, ScanProgress, Status, Tail,
};
use revfs_protocol::Tid;
use tempfile::TempDir;

/// A folder with a `Data.fs`.
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// One with these bytes.
    pub fn new(bytes: &[u8]) -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.put(bytes);
        place
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("Data.fs")
    }

    /// Where ZODB saves its index.
    pub fn index_path(&self) -> PathBuf {
        self.folder.path().join("Data.fs.index")
    }

    /// Writes the file over.
    pub fn put(&self, bytes: &[u8]) {
        fs::write(self.path(), bytes).unwrap();
    }

    /// Appends what the file lacks of `bytes`, in one write.
    pub fn put_tail(&self, bytes: &[u8]) {
        let have = usize::try_from(fs::metadata(self.path()).unwrap().len()).unwrap();
        self.put_at(have, &bytes[have..]);
    }

    /// Writes some bytes of the file.
    pub fn put_at(&self, pos: usize, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, pos as u64).unwrap();
    }

    /// Puts another file in its place, as a pack does.
    pub fn replace(&self, bytes: &[u8]) {
        let packed = self.folder.path().join("Data.fs.pack");
        fs::write(&packed, bytes).unwrap();
        fs::rename(self.path(), self.folder.path().join("Data.fs.old")).unwrap();
        fs::rename(packed, self.path()).unwrap();
    }

    /// Opens the file.
    pub fn open(&self) -> FileStorage {
        FileStorage::open(&self.path(), None).unwrap()
    }
}

/// Data for a record.
pub fn data(text: &str) -> Write {
    Write::Data(text.as_bytes().to_vec())
}

/// What a load gave, as text.
pub fn text_of(storage: &FileStorage, oid: u64, at: u64) -> Option<String> {
    let loaded = load(storage, oid, at).unwrap()?;
    Some(format!("{:x} {}", loaded.serial.raw(), String::from_utf8(loaded.data).unwrap()))
}

/// A file with all that a FileStorage may hold.
pub fn rich() -> Maker {
    let mut maker = Maker::new();
    let first = maker.commit(0x10, &[(0, data("root")), (1, data("one")), (0x1_0002, data("two"))]);
    maker.commit(0x20, &[(1, data("one again")), (7, Write::Data(vec![b'x'; 10_000]))]);
    // The first state again, as an undo writes it; and that again.
    let undo = maker.commit(0x30, &[(1, Write::Back(first[1]))]);
    maker.commit(0x40, &[(7, Write::Back(0)), (1, Write::Back(undo[0]))]);
    maker.append(0x50, b'u', &[(1, data("undone"))]);
    maker.commit(0x60, &[]);
    maker.commit(0x70, &[(7, data("back")), (7, data("twice"))]);
    maker
}

#[test]
fn a_file_with_all_that_may_be_in_one() {
    let maker = rich();
    let place = Place::new(&maker.bytes);
    let storage = place.open();
    Reference::of(&maker.bytes).same(&storage);
    let one: Vec<_> = [0x0f, 0x10, 0x1f, 0x20, 0x30, 0x40, 0x55, 0x70]
        .map(|at| text_of(&storage, 1, at).unwrap_or_default())
        .to_vec();
    assert_eq!(one, ["", "10 one", "10 one", "20 one again", "30 one", "40 one", "40 one", "40 one"]);
    assert_eq!(text_of(&storage, 7, 0x4f), None);
    assert_eq!(text_of(&storage, 7, u64::MAX).as_deref(), Some("70 twice"));
    assert_eq!((storage.tail(), storage.trouble()), (Tail::Whole, None));
    assert_eq!(storage.oldest().unwrap(), Tid::ZERO);
    assert_eq!(storage.index_source(), IndexSource::Scanned { why: "there is none".to_owned() });

    let seen: Vec<_> = storage.transactions(Tid::ZERO, Tid::MAX).unwrap().map(Result::unwrap).collect();
    let status: Vec<Status> = seen.iter().map(|transaction| transaction.status).collect();
    let (done, undone) = (Status::Done, Status::Undone);
    assert_eq!(status, [done, done, done, done, undone, done, done]);
    assert_eq!((&seen[1].user[..], &seen[1].description[..]), (&b"user 20"[..], &b"why 20"[..]));
    let large = seen[1].records[1];
    let at = usize::try_from(large.data_pos()).unwrap();
    assert_eq!((large.oid, large.data_len, maker.bytes[at]), (Oid::from_raw(7), 10_000, b'x'));
    assert_eq!(maker.bytes[at - 1], 0x10, "the data begin right there");
}

#[test]
fn transactions_of_a_span_in_both_directions() {
    let maker = rich();
    let storage = Place::new(&maker.bytes).open();
    let all = [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70];
    for lo in (0..=0x80).step_by(8) {
        for hi in (0..=0x80).step_by(8) {
            let wanted: Vec<u64> = all.into_iter().filter(|tid| *tid > lo && *tid <= hi).collect();
            let (lo, hi) = (Tid::from_raw(lo), Tid::from_raw(hi));
            let forward = storage.transactions(lo, hi).unwrap();
            let forward: Vec<u64> = forward.map(|transaction| transaction.unwrap().tid.raw()).collect();
            assert_eq!(forward, wanted, "({lo}, {hi}]");
            let back = storage.transactions_back(lo, hi);
            let mut back: Vec<u64> = back.map(|transaction| transaction.unwrap().tid.raw()).collect();
            back.reverse();
            assert_eq!(back, wanted, "({lo}, {hi}] backwards");
        }
    }
}

#[test]
fn an_empty_database_is_one() {
    for magic in [b"FS21", b"FS30"] {
        let storage = Place::new(magic).open();
        assert_eq!((storage.last_tid(), storage.objects()), (Tid::ZERO, 0));
        assert_eq!(load(&storage, 0, u64::MAX).unwrap(), None);
        assert_eq!(storage.transactions(Tid::ZERO, Tid::MAX).unwrap().count(), 0);
        assert_eq!(storage.transactions_back(Tid::ZERO, Tid::MAX).count(), 0);
        assert_eq!(storage.oldest().unwrap(), Tid::ZERO);
    }
}

#[test]
fn what_is_no_file_storage_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| FileStorage::open(path, None).unwrap_err();
    let shown = |path: &Path| refused(path).to_string();
    assert!(matches!(refused(&folder.path().join("absent")), FileStorageError::Open { .. }));
    assert!(shown(folder.path()).contains("it is no file"));
    let path = folder.path().join("x");
    for (bytes, what) in [
        (&b""[..], "has 0 bytes"),
        (b"FS2", "has 3 bytes"),
        (b"FS22", "does not begin"),
        (b"x", "does not begin"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(shown(&path).contains(what), "{}", shown(&path));
    }
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    // Somebody has it open, so that even who opens it does not wait.
    let _held = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    assert!(shown(&fifo).contains("it is no file"));
}

#[test]
fn real_databases_with_and_without_their_indexes() {
    for path in databases() {
        let bytes = fs::read(&path).unwrap();
        let reference = Reference::of(&bytes);
        let place = Place::new(&bytes);
        reference.same(&place.open());
        let saved = path.with_extension("fs.index");
        if saved.exists() {
            fs::copy(saved, place.index_path()).unwrap();
            let storage = place.open();
            assert_eq!(storage.index_source(), IndexSource::Saved { end: bytes.len() as u64 });
            reference.same(&storage);
        }
    }
}

#[test]
fn real_databases_have_the_transactions_of_their_manifests() {
    for path in databases() {
        let Ok(manifest) = fs::read_to_string(path.with_extension("fs.manifest")) else { continue };
        let storage = FileStorage::open(&path, None).unwrap();
        let listed = manifest.lines().filter_map(|line| line.strip_prefix("tid "));
        let listed: Vec<&str> = listed.map(|rest| rest.split_whitespace().last().unwrap()).collect();
        let seen = storage.transactions(Tid::ZERO, Tid::MAX).unwrap();
        let seen: Vec<_> = seen.map(Result::unwrap).collect();
        let tids: Vec<String> = seen.iter().map(|transaction| transaction.tid.to_string()).collect();
        // The two that set the database up are not in the manifest.
        assert_eq!(tids[2..], listed, "{}", path.display());
        let records: usize = seen.iter().map(|transaction| transaction.records.len()).sum();
        let counts = if path.ends_with("plain.fs") { (17, 994, 831) } else { (46, 2001, 1187) };
        assert_eq!((seen.len(), records, storage.objects()), counts, "{}", path.display());
        // Where a file was changed at a tid its object, or one that it leads to, was written then.
        assert!(seen[2..].iter().all(|transaction| !transaction.records.is_empty()));
    }
}

#[test]
fn a_scan_tells_how_far_it_is() {
    let place = Place::new(&rich().bytes);
    let told: Arc<Mutex<Vec<ScanProgress>>> = Arc::default();
    let teller = Arc::clone(&told);
    let progress = move |progress| teller.lock().unwrap().push(progress);
    let storage = FileStorage::open(&place.path(), Some(Arc::new(progress))).unwrap();
    assert_eq!(storage.last_tid(), Tid::from_raw(0x70));
    let told = told.lock().unwrap();
    let total = fs::metadata(place.path()).unwrap().len();
    assert_eq!(told.last(), Some(&ScanProgress { done: total, total }));
    assert!(told.is_sorted_by_key(|progress| progress.done));
}
