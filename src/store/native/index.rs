//! The index of a native store: answers "newest version at or before `at`" from LMDB.
//!
//! Invariant: it is a cache of the log and never the truth. It is thrown away and built again when its schema,
//! store, boot or last applied record does not match, or when a value does not carry the right checksum.
//! Several processes of one machine share it; whoever sees a new record first applies it. Left out on purpose:
//! durability. It is written without sync; another boot id means rebuild unless it was closed cleanly.

mod apply;
mod blocks;
mod codec;
mod home;
mod query;
mod segment;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};
use revfs_protocol::Tid;
use tracing_mutex::stdsync::Mutex;

pub use apply::LogEntry;
pub use codec::PackInfo;
use codec::{Reader, State, seal, unseal};
use home::Home;

/// Version of the tables; part of the folder's name.
pub const INDEX_SCHEMA: u32 = 2;
/// Address space for the tables, bytes: sparse, so as large as the address space comfortably allows.
const MAP_BYTES: usize = 1 << 40;
/// How many read transactions may be open at once, over all processes.
const READERS_MAX: u32 = 1024;

type Table = Database<'static, Bytes, Bytes>;

/// Why the index failed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// LMDB failed.
    #[error("LMDB: {0}")]
    Lmdb(#[from] heed::Error),
    /// A file of it cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value does not carry the right checksum, or breaks a bound. The cure is a rebuild.
    #[error("table {table} holds a damaged value")]
    Damaged {
        /// The table.
        table: &'static str,
    },
    /// A record does not follow the last applied one. The cure is a rebuild.
    #[error("record {seq} does not follow the applied ones")]
    Diverged {
        /// The record.
        seq: u64,
    },
}

/// The tables. Keys are big-endian, so that their order is the order of numbers; each value ends in a crc32c
/// over key and value, but that of `blocks`, which has one for each block.
#[derive(Debug, Clone, Copy)]
struct Tables {
    /// `state` -> [`State`].
    meta: Table,
    /// seq -> hash of the record (32), offset of its inline pack (8), body.
    log: Table,
    /// tid -> seq.
    tids: Table,
    /// (file, tid) -> what changed about it.
    files: Table,
    /// (file, block / 64, tid) -> a segment: where the versions of 64 blocks are, from the tid on.
    blocks: Table,
    /// (dir, name, 0, tid) -> what the name means.
    names: Table,
    /// dir -> parent, how many names live in it at head, name.
    dirs: Table,
    /// pack -> object and footer.
    packs: Table,
    /// tag -> target.
    tags: Table,
}

/// An open index.
#[derive(Debug)]
pub struct Index {
    env: Env<WithoutTls>,
    tables: Tables,
    // Keeps the folder from being wiped under us.
    home: Home,
}

/// Indexes that this process has open: LMDB forbids to open one twice.
static OPEN: Mutex<Option<HashMap<PathBuf, Weak<Index>>>> = Mutex::new(None);

impl Index {
    /// Opens or makes the index in `folder` for the store with this identity.
    ///
    /// # Errors
    /// The folder cannot be written, or LMDB refuses.
    pub fn open(folder: &Path, store: uuid::Uuid) -> Result<Arc<Index>, IndexError> {
        let folder = folder.join(format!("v{INDEX_SCHEMA}"));
        let io = |source| IndexError::Io { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(io)?;
        let folder = folder.canonicalize().map_err(io)?;
        // Held while opening: two threads must not open one folder at once. Nothing below takes it.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.get_or_insert_with(HashMap::new);
        known.retain(|_, index| index.strong_count() > 0);
        // A folder that was deleted under us and made anew is another one: who has the old one keeps it.
        if let Some(index) = known.get(&folder).and_then(Weak::upgrade)
            && index.home.is_in_place()
        {
            return Ok(index);
        }
        let home = Home::enter(&folder)?;
        let index = Arc::new(Index::open_in(home, store)?);
        known.insert(folder, Arc::downgrade(&index));
        Ok(index)
    }

    fn open_in(home: Home, store: uuid::Uuid) -> Result<Index, IndexError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_BYTES).max_readers(READERS_MAX).max_dbs(16);
        // SAFETY: NO_SYNC and NO_META_SYNC give up durability only; `Home` rebuilds after an unclean end of
        // the machine. NO_READ_AHEAD is a hint.
        unsafe {
            options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC | EnvFlags::NO_READ_AHEAD);
        }
        // LMDB makes its file by itself: what it writes there is not synced either.
        if !home.has_tables() {
            home.mark_dirty()?;
        }
        // SAFETY: the files of the map are changed by LMDB alone: they lie in a folder of ours, and `Home`
        // wipes it only while nobody has it open.
        let env = unsafe { options.open(home.folder())? };
        env.clear_stale_readers()?;
        let tables = open_tables(&env)?;
        let index = Index { tables, home, env: env.clone() };
        let mut txn = env.write_txn()?;
        let fresh = match index.state_in(&txn) {
            Ok(Some(state)) => state.store != store,
            Ok(None) | Err(IndexError::Damaged { .. }) => true,
            Err(other) => return Err(other),
        };
        if fresh {
            index.clear(&mut txn, store)?;
            index.home.mark_dirty()?;
        }
        txn.commit()?;
        Ok(index)
    }

    fn clear(&self, txn: &mut RwTxn, store: uuid::Uuid) -> Result<(), IndexError> {
        let t = &self.tables;
        for table in [t.meta, t.log, t.tids, t.files, t.blocks, t.names, t.dirs, t.packs, t.tags] {
            table.clear(txn)?;
        }
        let state = State { store, ..State::default() };
        self.put_state(txn, &state)
    }

    /// Makes what is there survive a restart of the machine, so that it need not be built again.
    ///
    /// # Errors
    /// The disk fails; the index stays usable.
    pub fn close_cleanly(&self) -> Result<(), IndexError> {
        // The write lock keeps other processes from writing between the sync and the mark.
        let txn = self.env.write_txn()?;
        self.env.force_sync()?;
        self.home.mark_clean()?;
        txn.abort();
        Ok(())
    }

    fn read(&self) -> Result<RoTxn<'_, WithoutTls>, IndexError> {
        Ok(self.env.read_txn()?)
    }

    fn state_in(&self, txn: &RoTxn) -> Result<Option<State>, IndexError> {
        let Some(value) = self.tables.meta.get(txn, b"state")? else { return Ok(None) };
        let body = unseal("meta", b"state", value)?;
        State::decode(body).map(Some)
    }

    fn put_state(&self, txn: &mut RwTxn, state: &State) -> Result<(), IndexError> {
        let value = seal(b"state", &state.encode());
        self.tables.meta.put(txn, b"state", &value)?;
        Ok(())
    }

    /// Last applied record: its number, its hash, its tid.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn applied(&self) -> Result<(u64, [u8; 32], Tid), IndexError> {
        let txn = self.read()?;
        let state = self.state_in(&txn)?.ok_or(IndexError::Damaged { table: "meta" })?;
        Ok((state.applied_seq, state.applied_hash, state.head))
    }
}

fn open_tables(env: &Env<WithoutTls>) -> Result<Tables, IndexError> {
    const NAMES: [&str; 9] = ["meta", "log", "tids", "files", "blocks", "names", "dirs", "packs", "tags"];
    let txn = env.write_txn()?;
    let opened = env.create_databases_and_commit(txn, |opener, txn| {
        let mut tables = Vec::with_capacity(NAMES.len());
        for name in NAMES {
            tables.push(opener.create_database::<Bytes, Bytes>(txn, Some(name))?);
        }
        let tables: [Database<Bytes, Bytes>; 9] =
            tables.try_into().map_err(|_| IndexError::Damaged { table: "meta" })?;
        Ok::<_, IndexError>(CommitOrAbort::<_, IndexError>::Commit(tables))
    })?;
    match opened {
        CommitOrAbort::Commit([meta, log, tids, files, blocks, names, dirs, packs, tags]) => {
            Ok(Tables { meta, log, tids, files, blocks, names, dirs, packs, tags })
        }
        CommitOrAbort::Abort(error) => Err(error),
    }
}

/// Reads one sealed value and hands its fields over.
fn open_value<'v>(table: &'static str, key: &[u8], value: &'v [u8]) -> Result<Reader<'v>, IndexError> {
    Ok(Reader::new(table, unseal(table, key, value)?))
}

#[cfg(test)]
impl Index {
    /// Flips a bit in each value of all tables.
    pub fn spoil(&self) {
        let mut txn = self.env.write_txn().unwrap();
        let t = &self.tables;
        for table in [t.meta, t.log, t.tids, t.files, t.blocks, t.names, t.dirs, t.packs, t.tags] {
            let values: Vec<(Vec<u8>, Vec<u8>)> = table
                .iter(&txn)
                .unwrap()
                .map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
                .collect();
            for (key, mut value) in values {
                value[0] ^= 1;
                table.put(&mut txn, &key, &value).unwrap();
            }
        }
        txn.commit().unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_before_the_first_record_is_applied_costs_no_more_than_a_rebuild() {
        let dir = tempfile::tempdir().unwrap();
        let store = uuid::Uuid::from_u128(7);
        drop(Index::open(dir.path(), store).unwrap());
        // Of tables that were never synced any part may be left.
        let folder = dir.path().join(format!("v{INDEX_SCHEMA}"));
        let tables = std::fs::read(folder.join("data.mdb")).unwrap();
        std::fs::write(folder.join("data.mdb"), vec![0; tables.len()]).unwrap();
        let unsynced = folder.join("unsynced");
        if unsynced.exists() {
            std::fs::write(unsynced, "another boot").unwrap();
        }
        assert_eq!(Index::open(dir.path(), store).unwrap().applied().unwrap(), (0, [0; 32], Tid::ZERO));
    }

    #[test]
    fn tables_of_another_store_are_marked_before_they_are_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path(), uuid::Uuid::from_u128(7)).unwrap();
        index.close_cleanly().unwrap();
        drop(index);
        let unsynced = dir.path().join(format!("v{INDEX_SCHEMA}/unsynced"));
        assert!(!unsynced.exists());
        drop(Index::open(dir.path(), uuid::Uuid::from_u128(7)).unwrap());
        assert!(!unsynced.exists(), "an open alone writes nothing");
        drop(Index::open(dir.path(), uuid::Uuid::from_u128(8)).unwrap());
        assert!(unsynced.exists());
    }
}
