//! Keys and values of the index's tables.
//!
//! Invariant: a value is believed only if the crc32c at its end is that of its key and itself: single flipped
//! bits in an LMDB file are otherwise silently wrong.

use revfs_protocol::{FileId, Tid};

use super::IndexError;
use crate::store::native::{Crc32c, record::PackRef};
use crate::store::{BlockData, Codec, DirId, Entry, PackNo};

/// Adds the checksum.
pub fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(body.len() + 4);
    value.extend_from_slice(body);
    value.extend_from_slice(&checksum(key, body).to_le_bytes());
    value
}

/// Checks and removes the checksum.
pub fn unseal<'v>(table: &'static str, key: &[u8], value: &'v [u8]) -> Result<&'v [u8], IndexError> {
    match value.split_last_chunk::<4>() {
        Some((body, crc)) if u32::from_le_bytes(*crc) == checksum(key, body) => Ok(body),
        _ => Err(IndexError::Damaged { table }),
    }
}

/// crc32c over key and value.
pub fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(key);
    crc.update(body);
    crc.finish()
}

/// Takes fields off a value.
pub struct Reader<'v> {
    table: &'static str,
    rest: &'v [u8],
}

impl<'v> Reader<'v> {
    /// Begins with the first field.
    pub fn new(table: &'static str, body: &'v [u8]) -> Reader<'v> {
        Reader { table, rest: body }
    }

    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(IndexError::Damaged { table: self.table })?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next 8 bytes as a number.
    pub fn u64(&mut self) -> Result<u64, IndexError> {
        self.take::<8>().map(u64::from_le_bytes)
    }

    /// The next 4 bytes as a number.
    pub fn u32(&mut self) -> Result<u32, IndexError> {
        self.take::<4>().map(u32::from_le_bytes)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, IndexError> {
        self.take::<1>().map(|[byte]| byte)
    }

    /// What is left.
    pub fn rest(self) -> &'v [u8] {
        self.rest
    }

    /// The error for a field that breaks a bound.
    pub fn damaged(&self) -> IndexError {
        IndexError::Damaged { table: self.table }
    }
}

/// How far the index is.
#[derive(Debug, Default, Clone)]
pub struct State {
    pub store: uuid::Uuid,
    pub applied_seq: u64,
    pub applied_hash: [u8; 32],
    pub head: Tid,
    pub packs: u32,
    pub dirs: u64,
}

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(80);
        body.extend_from_slice(self.store.as_bytes());
        body.extend_from_slice(&self.applied_seq.to_le_bytes());
        body.extend_from_slice(&self.applied_hash);
        body.extend_from_slice(&self.head.raw().to_le_bytes());
        body.extend_from_slice(&self.packs.to_le_bytes());
        body.extend_from_slice(&self.dirs.to_le_bytes());
        body
    }

    pub fn decode(body: &[u8]) -> Result<State, IndexError> {
        let mut fields = Reader::new("meta", body);
        Ok(State {
            store: uuid::Uuid::from_bytes(fields.take()?),
            applied_seq: fields.u64()?,
            applied_hash: fields.take()?,
            head: Tid::from_raw(fields.u64()?),
            packs: fields.u32()?,
            dirs: fields.u64()?,
        })
    }
}

/// Key of (file, tid).
pub fn file_key(file: FileId, tid: Tid) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&file.raw().to_be_bytes());
    key[8..].copy_from_slice(&tid.raw().to_be_bytes());
    key
}

/// Key of (file, group, tid).
pub fn group_key(file: FileId, group: u64, tid: Tid) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&file.raw().to_be_bytes());
    key[8..16].copy_from_slice(&group.to_be_bytes());
    key[16..].copy_from_slice(&tid.raw().to_be_bytes());
    key
}

/// The tid at the end of a key.
pub fn key_tid(key: &[u8]) -> Tid {
    key.last_chunk::<8>().map_or(Tid::ZERO, |tid| Tid::from_raw(u64::from_be_bytes(*tid)))
}

/// The group of a group key.
pub fn key_group(key: &[u8]) -> u64 {
    key.get(8..16).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Key of (dir, name, tid). A name has no zero byte, so the order of keys is that of (dir, name, tid).
pub fn name_key(dir: DirId, name: &[u8], tid: Tid) -> Vec<u8> {
    let mut key = Vec::with_capacity(17 + name.len());
    key.extend_from_slice(&dir.0.to_be_bytes());
    key.extend_from_slice(name);
    key.push(0);
    key.extend_from_slice(&tid.raw().to_be_bytes());
    key
}

/// The name within a name key.
pub fn key_name(key: &[u8]) -> &[u8] {
    key.get(8..key.len().saturating_sub(9)).unwrap_or_default()
}

/// What a name means from a tid on. `Gone` remembers a directory's id, so that it gets the same one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameValue {
    Gone(Option<DirId>),
    Lives(Entry),
}

impl NameValue {
    pub fn encode(self) -> [u8; 9] {
        let (kind, id) = match self {
            NameValue::Gone(None) => (0, 0),
            NameValue::Gone(Some(dir)) => (1, dir.0),
            NameValue::Lives(Entry::File(file)) => (2, file.raw()),
            NameValue::Lives(Entry::Dir(dir)) => (3, dir.0),
        };
        let mut body = [kind; 9];
        body[1..].copy_from_slice(&u64::to_le_bytes(id));
        body
    }

    pub fn decode(mut fields: Reader) -> Result<NameValue, IndexError> {
        let (kind, id) = (fields.u8()?, fields.u64()?);
        match kind {
            0 => Ok(NameValue::Gone(None)),
            1 => Ok(NameValue::Gone(Some(DirId(id)))),
            2 => Ok(NameValue::Lives(Entry::File(FileId::from_raw(id)))),
            3 => Ok(NameValue::Lives(Entry::Dir(DirId(id)))),
            _ => Err(fields.damaged()),
        }
    }
}

/// Bytes that say where a block is; a million of them should stay small.
pub const PLACE_BYTES: usize = 17;

/// Where a block is.
pub fn encode_block(data: BlockData) -> [u8; PLACE_BYTES] {
    let (pack, offset, len, codec) = match data {
        BlockData::Hole => (u32::MAX, 0, 0, 0),
        BlockData::Stored { pack, offset, len, codec } => {
            (pack.0, offset, len, if codec == Codec::Raw { 0 } else { 1 })
        }
        // Native stores have none: it reads back as damage.
        BlockData::Object { .. } => (0, 0, 0, u8::MAX),
    };
    let mut body = [0; PLACE_BYTES];
    body[..4].copy_from_slice(&pack.to_le_bytes());
    body[4..12].copy_from_slice(&offset.to_le_bytes());
    body[12..16].copy_from_slice(&len.to_le_bytes());
    body[16] = codec;
    body
}

/// Reads [`encode_block`].
pub fn decode_block(mut fields: Reader) -> Result<BlockData, IndexError> {
    let (pack, offset, len, codec) = (fields.u32()?, fields.u64()?, fields.u32()?, fields.u8()?);
    if pack == u32::MAX {
        return Ok(BlockData::Hole);
    }
    let codec = match codec {
        0 => Codec::Raw,
        1 => Codec::Zstd,
        _ => return Err(fields.damaged()),
    };
    Ok(BlockData::Stored { pack: PackNo(pack), offset, len, codec })
}

/// Where a pack is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// The record that brought it.
    pub seq: u64,
    /// Offset of the pack in its object, bytes: not 0 for one inside a record.
    pub base: u64,
    /// The rest.
    pub pack: PackRef,
}

impl PackInfo {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(88);
        body.extend_from_slice(&self.seq.to_le_bytes());
        body.extend_from_slice(&self.base.to_le_bytes());
        body.push(u8::from(self.pack.uuid.is_some()));
        body.extend_from_slice(self.pack.uuid.unwrap_or_default().as_bytes());
        for number in [
            self.pack.data_len,
            self.pack.crcs_offset,
            u64::from(self.pack.crcs_crc),
            self.pack.hashes_offset,
            self.pack.hashes_count,
            u64::from(self.pack.hashes_crc),
        ] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body
    }

    pub fn decode(mut fields: Reader) -> Result<PackInfo, IndexError> {
        let (seq, base) = (fields.u64()?, fields.u64()?);
        let named = fields.u8()? == 1;
        let uuid = uuid::Uuid::from_bytes(fields.take()?);
        Ok(PackInfo {
            seq,
            base,
            pack: PackRef {
                uuid: named.then_some(uuid),
                data_len: fields.u64()?,
                crcs_offset: fields.u64()?,
                crcs_crc: fields.u64()? as u32,
                hashes_offset: fields.u64()?,
                hashes_count: fields.u64()?,
                hashes_crc: fields.u64()? as u32,
            },
        })
    }
}
