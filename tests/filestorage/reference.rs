//! What a FileStorage holds, by the simplest way to read one: all of it at once, and trusting.
//!
//! Invariant: it is used on files that are right, and panics on others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use revfs::store::zodb::Oid;
use revfs::store::zodb::filestorage::{FileStorage, FileStorageError, Loaded};
use revfs_protocol::Tid;

/// A transaction: its tid, where it begins, and the oids and positions of its records.
pub type Written = (u64, u64, Vec<(u64, u64)>);
/// A revision of an object: its tid, and the data or none for a deletion.
pub type Revision = (u64, Option<Vec<u8>>);

/// All that a file holds.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// All transactions, in the order of the file.
    pub transactions: Vec<Written>,
    /// The revisions of each object, ascending.
    pub objects: BTreeMap<u64, Vec<Revision>>,
    /// The position of each object's newest record.
    pub newest: BTreeMap<u64, u64>,
}

fn number(bytes: &[u8], pos: usize) -> u64 {
    u64::from_be_bytes(bytes[pos..pos + 8].try_into().unwrap())
}

fn short(bytes: &[u8], pos: usize) -> usize {
    usize::from(u16::from_be_bytes(bytes[pos..pos + 2].try_into().unwrap()))
}

impl Reference {
    pub fn of(bytes: &[u8]) -> Reference {
        let mut reference = Reference::default();
        let mut pos = 4;
        while pos < bytes.len() {
            let (tid, len) = (number(bytes, pos), number(bytes, pos + 8) as usize);
            let undone = bytes[pos + 16] == b'u';
            let mut record =
                pos + 23 + short(bytes, pos + 17) + short(bytes, pos + 19) + short(bytes, pos + 21);
            let mut records = Vec::new();
            while record < pos + len && !undone {
                let (oid, data_len) = (number(bytes, record), number(bytes, record + 34) as usize);
                let data = Reference::data(bytes, record);
                let revisions = reference.objects.entry(oid).or_default();
                // The later of two records of one transaction counts.
                revisions.retain(|revision| revision.0 != tid);
                revisions.push((tid, data));
                records.push((oid, record as u64));
                reference.newest.insert(oid, record as u64);
                record += 42 + if data_len == 0 { 8 } else { data_len };
            }
            reference.transactions.push((tid, pos as u64, records));
            pos += len + 8;
        }
        reference
    }

    fn data(bytes: &[u8], record: usize) -> Option<Vec<u8>> {
        match (number(bytes, record + 34) as usize, number(bytes, record + 42) as usize) {
            (0, 0) => None,
            (0, back) => Reference::data(bytes, back),
            (len, _) => Some(bytes[record + 42..record + 42 + len].to_vec()),
        }
    }

    /// The state of an object at a tid.
    pub fn load(&self, oid: u64, at: u64) -> Option<Loaded> {
        let revisions = self.objects.get(&oid)?;
        let (serial, data) = revisions.iter().rev().find(|revision| revision.0 <= at)?;
        data.clone().map(|data| Loaded { serial: Tid::from_raw(*serial), data })
    }

    /// The last tid.
    pub fn last_tid(&self) -> u64 {
        self.transactions.last().map_or(0, |transaction| transaction.0)
    }

    /// Fails unless the storage has this content: each object at each tid, and the transactions in both directions.
    pub fn same(&self, storage: &FileStorage) {
        assert_eq!(storage.last_tid().raw(), self.last_tid());
        self.same_newest(storage);
        for at in self.transactions.iter().flat_map(|transaction| [transaction.0 - 1, transaction.0]) {
            for oid in self.objects.keys() {
                let loaded = load(storage, *oid, at).unwrap();
                assert_eq!(loaded, self.load(*oid, at), "object {oid:x} at {at:x}");
            }
        }
        let forward = storage.transactions(Tid::ZERO, Tid::MAX).unwrap();
        let forward: Vec<_> = forward.map(Result::unwrap).collect();
        let records = |transaction: &revfs::store::zodb::filestorage::Transaction| {
            transaction.records.iter().map(|record| (record.oid.raw(), record.pos)).collect::<Vec<_>>()
        };
        let seen: Vec<_> = forward.iter().map(|t| (t.tid.raw(), t.pos, records(t))).collect();
        assert_eq!(seen, self.transactions);
        let mut back: Vec<_> = storage.transactions_back(Tid::ZERO, Tid::MAX).map(Result::unwrap).collect();
        back.reverse();
        assert_eq!(back, forward);
    }

    /// Fails unless the storage has the newest state of each object.
    pub fn same_newest(&self, storage: &FileStorage) {
        assert_eq!(storage.objects(), self.objects.len());
        for oid in self.objects.keys() {
            let loaded = load(storage, *oid, u64::MAX).unwrap();
            assert_eq!(loaded, self.load(*oid, u64::MAX), "object {oid:x}");
        }
        assert_eq!(load(storage, u64::MAX, u64::MAX).unwrap(), None);
    }
}

/// Loads by plain numbers.
pub fn load(storage: &FileStorage, oid: u64, at: u64) -> Result<Option<Loaded>, FileStorageError> {
    storage.load(Oid::from_raw(oid), Tid::from_raw(at))
}

/// The real databases, if they are there.
pub fn databases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/zodb");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: {} is not there", folder.display());
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "fs")).collect();
    found.sort();
    assert!(found.len() >= 6, "{found:?}");
    found
}
