//! Questions to the index. Each opens a read transaction of its own and ends it before it answers: a long
//! reader would make the file grow without bound.

use std::ops::Bound;

use heed::RoTxn;
use revfs_protocol::{BlockSize, FileId, Tid};

use super::codec::{NameValue, PackInfo, file_key, key_name, key_tid, name_key};
use super::{Index, IndexError, Reader, open_value};
use crate::store::native::record::CommitRecord;
use crate::store::{DirId, Entry, FileMeta, PackNo};

/// A key and its value, if there is one.
pub(super) type Found<'t> = Option<(&'t [u8], &'t [u8])>;

/// Last key at or before `key` within the keys that share its first `prefix` bytes.
pub(super) fn newest<'t>(table: super::Table, txn: &'t RoTxn, key: &[u8]) -> Result<Found<'t>, IndexError> {
    let prefix = key.len() - 8;
    let found = table.get_lower_than_or_equal_to(txn, key)?;
    Ok(found.filter(|(found, _)| found.len() == key.len() && found[..prefix] == key[..prefix]))
}

pub(super) fn decode_file(file: FileId, tid: Tid, mut fields: Reader) -> Result<FileMeta, IndexError> {
    let size = fields.u64()?;
    let block_log2 = fields.u8()?;
    let deleted = fields.u8()? == 1;
    let block_size = BlockSize::new(1u64.checked_shl(u32::from(block_log2)).unwrap_or(0))
        .map_err(|_| IndexError::Damaged { table: "files" })?;
    Ok(FileMeta {
        file,
        size,
        block_size,
        rev: Tid::from_raw(fields.u64()?),
        created: Tid::from_raw(fields.u64()?),
        stored: fields.u64()?,
        dir: DirId(fields.u64()?),
        name: fields.rest().to_vec(),
        deleted: deleted.then_some(tid),
    })
}

pub(super) fn encode_file(meta: &FileMeta) -> Vec<u8> {
    let mut body = Vec::with_capacity(42 + meta.name.len());
    body.extend_from_slice(&meta.size.to_le_bytes());
    body.push(meta.block_size.log2() as u8);
    body.push(u8::from(meta.deleted.is_some()));
    for number in [meta.rev.raw(), meta.created.raw(), meta.stored, meta.dir.0] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.extend_from_slice(&meta.name);
    body
}

impl Index {
    /// What a name means as of `at`.
    pub fn lookup(&self, at: Tid, dir: DirId, name: &[u8]) -> Result<Option<Entry>, IndexError> {
        let txn = self.read()?;
        match self.name_in(&txn, at, dir, name)? {
            Some(NameValue::Lives(entry)) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }

    pub(super) fn name_in(
        &self,
        txn: &RoTxn,
        at: Tid,
        dir: DirId,
        name: &[u8],
    ) -> Result<Option<NameValue>, IndexError> {
        if name.is_empty() || name.len() > crate::store::NAME_BYTES_MAX || name.contains(&0) {
            return Ok(None); // no such name can have been stored, and LMDB bounds the length of keys
        }
        let Some((key, value)) = newest(self.tables.names, txn, &name_key(dir, name, at))? else {
            return Ok(None);
        };
        NameValue::decode(open_value("names", key, value)?).map(Some)
    }

    /// All names in a directory as of `at`, in byte order.
    pub fn list(&self, at: Tid, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, IndexError> {
        let txn = self.read()?;
        let prefix = dir.0.to_be_bytes();
        let mut names: Vec<(Vec<u8>, Entry)> = Vec::new();
        let mut current: Option<(&[u8], NameValue)> = None;
        let mut keep = |current: Option<(&[u8], NameValue)>| {
            if let Some((name, NameValue::Lives(entry))) = current {
                names.push((name.to_vec(), entry));
            }
        };
        for item in self.tables.names.prefix_iter(&txn, &prefix)? {
            let (key, value) = item?;
            if key_tid(key) > at {
                continue;
            }
            let value = NameValue::decode(open_value("names", key, value)?)?;
            let name = key_name(key);
            if current.is_some_and(|(before, _)| before != name) {
                keep(current);
            }
            current = Some((name, value));
        }
        keep(current);
        Ok(names)
    }

    /// Parent and name of a directory.
    pub fn dir_name(&self, dir: DirId) -> Result<Option<(DirId, Vec<u8>)>, IndexError> {
        let txn = self.read()?;
        Ok(self.dir_in(&txn, dir)?.map(|(parent, _, name)| (parent, name)))
    }

    pub(super) fn dir_in(
        &self,
        txn: &RoTxn,
        dir: DirId,
    ) -> Result<Option<(DirId, u64, Vec<u8>)>, IndexError> {
        let key = dir.0.to_be_bytes();
        let Some(value) = self.tables.dirs.get(txn, &key)? else { return Ok(None) };
        let mut fields = open_value("dirs", &key, value)?;
        Ok(Some((DirId(fields.u64()?), fields.u64()?, fields.rest().to_vec())))
    }

    /// A file as of `at`.
    pub fn file(&self, at: Tid, file: FileId) -> Result<Option<FileMeta>, IndexError> {
        let txn = self.read()?;
        self.file_in(&txn, at, file)
    }

    pub(super) fn file_in(&self, txn: &RoTxn, at: Tid, file: FileId) -> Result<Option<FileMeta>, IndexError> {
        let Some((key, value)) = newest(self.tables.files, txn, &file_key(file, at))? else {
            return Ok(None);
        };
        decode_file(file, key_tid(key), open_value("files", key, value)?).map(Some)
    }

    /// The newest commit at or before `at`: its tid and number.
    pub fn newest_commit(&self, at: Tid) -> Result<Option<(Tid, u64)>, IndexError> {
        let txn = self.read()?;
        let key = at.raw().to_be_bytes();
        let Some((key, value)) = self.tables.tids.get_lower_than_or_equal_to(&txn, &key)? else {
            return Ok(None);
        };
        Ok(Some((key_tid(key), open_value("tids", key, value)?.u64()?)))
    }

    /// Records with `lo < tid <= hi`, ascending or newest first, at most `limit`.
    pub fn records(
        &self,
        lo: Tid,
        hi: Tid,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<CommitRecord>, IndexError> {
        let txn = self.read()?;
        let (low, high) = (lo.raw().to_be_bytes(), hi.raw().to_be_bytes());
        if lo >= hi {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Excluded(&low[..]), Bound::Included(&high[..]));
        let mut seqs = Vec::new();
        let mut take = |item: heed::Result<(&[u8], &[u8])>| -> Result<(), IndexError> {
            let (key, value) = item?;
            seqs.push(open_value("tids", key, value)?.u64()?);
            Ok(())
        };
        if newest_first {
            self.tables.tids.rev_range(&txn, &bounds)?.take(limit).try_for_each(&mut take)?;
        } else {
            self.tables.tids.range(&txn, &bounds)?.take(limit).try_for_each(&mut take)?;
        }
        seqs.into_iter().map(|seq| self.record_in(&txn, seq)).collect()
    }

    fn record_in(&self, txn: &RoTxn, seq: u64) -> Result<CommitRecord, IndexError> {
        let key = seq.to_be_bytes();
        let value = self.tables.log.get(txn, &key)?.ok_or(IndexError::Damaged { table: "log" })?;
        let mut fields = open_value("log", &key, value)?;
        let _hash: [u8; 32] = fields.take()?;
        let _inline_at = fields.u64()?;
        CommitRecord::decode_body(fields.rest()).map_err(|_| IndexError::Damaged { table: "log" })
    }

    /// Where a pack is.
    pub fn pack(&self, pack: PackNo) -> Result<Option<PackInfo>, IndexError> {
        let txn = self.read()?;
        let key = pack.0.to_be_bytes();
        let Some(value) = self.tables.packs.get(&txn, &key)? else { return Ok(None) };
        PackInfo::decode(open_value("packs", &key, value)?).map(Some)
    }

    /// All tags of the newest state.
    pub fn tags(&self) -> Result<Vec<(String, Tid)>, IndexError> {
        let txn = self.read()?;
        let mut tags = Vec::new();
        for item in self.tables.tags.iter(&txn)? {
            let (key, value) = item?;
            let target = open_value("tags", key, value)?.u64()?;
            let name = std::str::from_utf8(key).map_err(|_| IndexError::Damaged { table: "tags" })?;
            tags.push((name.to_owned(), Tid::from_raw(target)));
        }
        Ok(tags)
    }

    /// One tag of the newest state.
    pub fn tag(&self, name: &str) -> Result<Option<Tid>, IndexError> {
        if name.is_empty() || name.len() > 255 {
            return Ok(None);
        }
        let txn = self.read()?;
        let Some(value) = self.tables.tags.get(&txn, name.as_bytes())? else { return Ok(None) };
        Ok(Some(Tid::from_raw(open_value("tags", name.as_bytes(), value)?.u64()?)))
    }
}
