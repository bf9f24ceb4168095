//! Applying records of the log to the tables.
//!
//! Invariant: a batch of records is applied in one write transaction, in the order of the log, each exactly
//! once, whichever process comes first.

use heed::RwTxn;
use revfs_protocol::{FileId, Tid};

use super::blocks::BlockWriter;
use super::codec::{NameValue, PackInfo, State, file_key, name_key, seal};
use super::query::encode_file;
use super::{Index, IndexError};
use crate::store::native::record::{CommitRecord, Extent, Place, RecordFile};
use crate::store::{BlockData, DirId, Entry, FileMeta, PackNo, ReadError};

/// A record as it was read from the log, checked and known to follow the one before it.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Decoded.
    pub record: CommitRecord,
    /// Its encoded body.
    pub body: Vec<u8>,
    /// BLAKE3 of all its bytes.
    pub hash: [u8; 32],
    /// Offset of its inline pack, bytes.
    pub inline_at: u64,
}

impl Index {
    /// Applies records that are not applied yet. They must be consecutive.
    ///
    /// # Errors
    /// [`IndexError::Diverged`] if the first of them does not follow what is applied; nothing is applied then.
    pub fn apply(&self, entries: &[LogEntry]) -> Result<(), IndexError> {
        let mut txn = self.env.write_txn()?;
        let mut state = self.state_in(&txn)?.ok_or(IndexError::Damaged { table: "meta" })?;
        let mut any = false;
        for entry in entries {
            let record = &entry.record;
            if record.seq <= state.applied_seq {
                continue; // another process was first
            }
            if record.seq != state.applied_seq + 1 || record.previous != state.applied_hash {
                return Err(IndexError::Diverged { seq: record.seq });
            }
            self.apply_one(&mut txn, &mut state, entry)?;
            state.applied_seq = record.seq;
            state.applied_hash = entry.hash;
            state.head = record.tid;
            any = true;
        }
        if any {
            self.put_state(&mut txn, &state)?;
            self.home.mark_dirty()?;
            txn.commit()?;
        }
        Ok(())
    }

    fn apply_one(&self, txn: &mut RwTxn, state: &mut State, entry: &LogEntry) -> Result<(), IndexError> {
        let record = &entry.record;
        let first_pack = state.packs;
        for pack in &record.packs {
            let base = if pack.uuid.is_none() { entry.inline_at } else { 0 };
            let info = PackInfo { seq: record.seq, base, pack: pack.clone() };
            let key = state.packs.to_be_bytes();
            self.tables.packs.put(txn, &key, &seal(&key, &info.encode()))?;
            state.packs += 1;
        }
        // Names that go make room for names that come: `mv a b` and `mv b a` in one commit.
        for file in &record.files {
            let change = &file.change;
            let gone = if change.deleted { Some(&change.path) } else { change.renamed_from.as_ref() };
            if let Some(path) = gone {
                self.unlink(txn, record.tid, path)?;
            }
        }
        for file in &record.files {
            self.apply_file(txn, state, record, first_pack, file)?;
        }
        for tag in &record.tags {
            let key = tag.name.as_bytes();
            match tag.target {
                Some(target) => self.tables.tags.put(txn, key, &seal(key, &target.raw().to_le_bytes()))?,
                None => {
                    self.tables.tags.delete(txn, key)?;
                }
            }
        }
        let key = record.seq.to_be_bytes();
        let mut body = Vec::with_capacity(40 + entry.body.len());
        body.extend_from_slice(&entry.hash);
        body.extend_from_slice(&entry.inline_at.to_le_bytes());
        body.extend_from_slice(&entry.body);
        self.tables.log.put(txn, &key, &seal(&key, &body))?;
        let key = record.tid.raw().to_be_bytes();
        self.tables.tids.put(txn, &key, &seal(&key, &record.seq.to_le_bytes()))?;
        Ok(())
    }

    fn apply_file(
        &self,
        txn: &mut RwTxn,
        state: &mut State,
        record: &CommitRecord,
        first_pack: u32,
        file: &RecordFile,
    ) -> Result<(), IndexError> {
        let (change, tid) = (&file.change, record.tid);
        let before = self.file_in(txn, Tid::MAX, change.file)?;
        let mut meta = match before {
            Some(meta) if !change.created => meta,
            _ => FileMeta {
                file: change.file,
                size: 0,
                block_size: change.block_size,
                rev: tid,
                created: tid,
                stored: 0,
                dir: DirId::ROOT,
                name: Vec::new(),
                deleted: None,
            },
        };
        if change.created || change.renamed_from.is_some() {
            (meta.dir, meta.name) = self.link(txn, state, tid, &change.path, change.file)?;
        }
        if change.deleted {
            meta.deleted = Some(tid);
            return self.put_file(txn, tid, &meta);
        }
        if !file.extents.is_empty() || change.size != meta.size || change.created {
            meta.rev = tid;
        }
        let mut blocks = BlockWriter::new(self, txn, change.file, tid);
        for extent in &file.extents {
            apply_extent(&mut blocks, meta.created == tid, first_pack, extent)?;
        }
        if change.size < meta.size {
            // Blocks from the end on are gone: a later growth must show zeros there.
            blocks.cover(meta.block_size.blocks_for(change.size).raw(), u64::MAX)?;
        }
        meta.stored = u64::try_from(i128::from(meta.stored) + blocks.finish()?).unwrap_or(0);
        meta.size = change.size;
        self.put_file(txn, tid, &meta)
    }

    fn put_file(&self, txn: &mut RwTxn, tid: Tid, meta: &FileMeta) -> Result<(), IndexError> {
        let key = file_key(meta.file, tid);
        self.tables.files.put(txn, &key, &seal(&key, &encode_file(meta)))?;
        Ok(())
    }

    /// Makes `path` mean `file`, with the directories that it needs; answers where that is.
    fn link(
        &self,
        txn: &mut RwTxn,
        state: &mut State,
        tid: Tid,
        path: &[u8],
        file: FileId,
    ) -> Result<(DirId, Vec<u8>), IndexError> {
        let mut dir = DirId::ROOT;
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(name) = parts.next() {
            if parts.peek().is_none() {
                self.put_name(txn, tid, dir, name, NameValue::Lives(Entry::File(file)))?;
                self.count_names(txn, tid, dir, 1)?;
                return Ok((dir, name.to_vec()));
            }
            let known = self.name_in(txn, Tid::MAX, dir, name)?;
            let below = match known {
                Some(NameValue::Lives(Entry::Dir(below))) => below,
                other => {
                    let below = match other {
                        Some(NameValue::Gone(Some(former))) => former,
                        _ => {
                            state.dirs += 1;
                            DirId(state.dirs)
                        }
                    };
                    self.put_name(txn, tid, dir, name, NameValue::Lives(Entry::Dir(below)))?;
                    self.put_dir(txn, below, dir, 0, name)?;
                    self.count_names(txn, tid, dir, 1)?;
                    below
                }
            };
            dir = below;
        }
        Err(IndexError::Damaged { table: "names" })
    }

    /// Makes `path` mean nothing, and with it the directories that become empty.
    fn unlink(&self, txn: &mut RwTxn, tid: Tid, path: &[u8]) -> Result<(), IndexError> {
        let mut dir = DirId::ROOT;
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(name) = parts.next() {
            if parts.peek().is_none() {
                self.put_name(txn, tid, dir, name, NameValue::Gone(None))?;
                return self.count_names(txn, tid, dir, -1);
            }
            match self.name_in(txn, Tid::MAX, dir, name)? {
                Some(NameValue::Lives(Entry::Dir(below))) => dir = below,
                _ => break,
            }
        }
        Err(IndexError::Damaged { table: "names" })
    }

    fn put_name(
        &self,
        txn: &mut RwTxn,
        tid: Tid,
        dir: DirId,
        name: &[u8],
        value: NameValue,
    ) -> Result<(), IndexError> {
        let key = name_key(dir, name, tid);
        self.tables.names.put(txn, &key, &seal(&key, &value.encode()))?;
        Ok(())
    }

    fn put_dir(
        &self,
        txn: &mut RwTxn,
        dir: DirId,
        parent: DirId,
        names: u64,
        name: &[u8],
    ) -> Result<(), IndexError> {
        let key = dir.0.to_be_bytes();
        let mut body = Vec::with_capacity(16 + name.len());
        body.extend_from_slice(&parent.0.to_le_bytes());
        body.extend_from_slice(&names.to_le_bytes());
        body.extend_from_slice(name);
        self.tables.dirs.put(txn, &key, &seal(&key, &body))?;
        Ok(())
    }

    /// Counts the names in `dir`; a directory without any is gone from its parent, and so on upwards.
    fn count_names(&self, txn: &mut RwTxn, tid: Tid, dir: DirId, by: i64) -> Result<(), IndexError> {
        let mut dir = dir;
        let mut by = by;
        while dir != DirId::ROOT {
            let Some((parent, names, name)) = self.dir_in(txn, dir)? else {
                return Err(IndexError::Damaged { table: "dirs" });
            };
            let now = names.checked_add_signed(by).ok_or(IndexError::Damaged { table: "dirs" })?;
            self.put_dir(txn, dir, parent, now, &name)?;
            if now > 0 {
                break;
            }
            self.put_name(txn, tid, parent, &name, NameValue::Gone(Some(dir)))?;
            dir = parent;
            by = -1;
        }
        Ok(())
    }
}

/// Hands over the blocks of an extent of a file, which may be new.
fn apply_extent(
    blocks: &mut BlockWriter,
    is_new: bool,
    first_pack: u32,
    extent: &Extent,
) -> Result<(), IndexError> {
    let Place::Stored { pack, offset, len, codec } = extent.place else {
        // Nothing lies there in a new file, and only what lies there needs to be covered in an old one.
        return if is_new { Ok(()) } else { blocks.cover(extent.first, extent.first + extent.count) };
    };
    for index in 0..extent.count {
        let data = BlockData::Stored {
            pack: PackNo(first_pack + pack),
            offset: offset + index * u64::from(len),
            len,
            codec,
        };
        blocks.store(extent.first + index, data)?;
    }
    Ok(())
}

impl Index {
    /// Empties the tables and applies the whole log, which `next` reads record by record, in one write
    /// transaction: readers see the old tables until then. `next` is called under LMDB's write lock, so that
    /// what another thread or process applied meanwhile is read too, and not forgotten.
    ///
    /// # Errors
    /// What `next` says, and [`ReadError::Index`]; the old tables stay then.
    pub fn rebuild(
        &self,
        store: uuid::Uuid,
        mut next: impl FnMut() -> Result<Option<LogEntry>, ReadError>,
    ) -> Result<(), ReadError> {
        let failed = |source| ReadError::Index { source };
        let mut txn = self.env.write_txn().map_err(|error| failed(error.into()))?;
        self.clear(&mut txn, store).map_err(failed)?;
        let mut state = State { store, ..State::default() };
        while let Some(entry) = next()? {
            self.apply_one(&mut txn, &mut state, &entry).map_err(failed)?;
            state.applied_seq = entry.record.seq;
            state.applied_hash = entry.hash;
            state.head = entry.record.tid;
        }
        self.put_state(&mut txn, &state).map_err(failed)?;
        self.home.mark_dirty().map_err(failed)?;
        txn.commit().map_err(|error| failed(error.into()))
    }
}
