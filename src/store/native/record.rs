//! Commit records: the only commit point of a native store.
//!
//! A record is `magic(8) version(4) body length(4) inline length(4) crc32c(4)`, the body (protobuf), and up to
//! [`INLINE_BYTES_MAX`] bytes of pack data with their footer. The crc covers all but itself. Numbers are
//! little-endian. Invariant: what [`CommitRecord::decode`] accepts is whole and obeys every bound named here;
//! nothing behind it checks again.

use prost::Message;
use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, TagName, Tid};

use super::FORMAT_VERSION;
use crate::store::{Codec, CommitInfo, FileChange, TagChange, check_path};

/// First bytes of each record.
const MAGIC: &[u8; 8] = b"revfsrec";
/// Bytes before the body.
pub const HEADER_BYTES: usize = 24;
/// Largest record that is read, bytes.
pub const RECORD_BYTES_MAX: u64 = 256 << 20;
/// New bytes of up to this size travel inside the record.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// New blocks up to this many travel inside the record: each has an entry of 24 bytes in the footer.
pub const INLINE_BLOCKS_MAX: usize = 2048;
/// Room for the footer behind inline bytes: the entries of the blocks, checksums, and padding.
const INLINE_FOOTER_MAX: usize = 64 << 10;
/// Largest file, bytes: the kernel's offsets are signed.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Longest message and author, bytes.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Where a pack's checksums and hashes are; all offsets count from the pack's first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRef {
    /// Name in the store; `None`: the bytes inside this record.
    pub uuid: Option<uuid::Uuid>,
    /// Bytes of blocks, before the footer.
    pub data_len: u64,
    /// Offset of the checksums: one crc32c for each 64 KiB of data.
    pub crcs_offset: u64,
    /// crc32c of the checksums.
    pub crcs_crc: u32,
    /// Offset of the hashes: (offset 8, 128-bit BLAKE3 16) for each block, ascending.
    pub hashes_offset: u64,
    /// How many hashes.
    pub hashes_count: u64,
    /// crc32c of the hashes.
    pub hashes_crc: u32,
}

/// Where a run of written blocks lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// They are zero.
    Hole,
    /// In pack number `pack` of this record, back to back.
    Stored {
        /// Index into the record's packs.
        pack: u32,
        /// Offset in the pack, bytes.
        offset: u64,
        /// Stored bytes of each block. A run of several has full raw blocks.
        len: u32,
        /// Encoding.
        codec: Codec,
    },
}

/// A run of written blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub first: u64,
    /// How many; at least 1.
    pub count: u64,
    /// Where.
    pub place: Place,
}

/// What a record says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFile {
    /// What is told to everybody. `blocks` is made from `extents`.
    pub change: FileChange,
    /// Runs of written blocks, ascending and apart.
    pub extents: Vec<Extent>,
}

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// Number in the log, from 1.
    pub seq: u64,
    /// Its tid.
    pub tid: Tid,
    /// The state it was made on.
    pub base: Tid,
    /// Identity of the attempt.
    pub commit_uuid: uuid::Uuid,
    /// BLAKE3 of record seq-1; zeros for the first.
    pub previous: [u8; 32],
    /// Wall clock of the writer, ns since 1970 UTC.
    pub time_unix_ns: u64,
    /// Who.
    pub author: String,
    /// Why.
    pub message: String,
    /// Packs that it brought.
    pub packs: Vec<PackRef>,
    /// Files that it touched.
    pub files: Vec<RecordFile>,
    /// Tags that it moved.
    pub tags: Vec<TagChange>,
}

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They were changed or cut.
    #[error("{what} (byte {offset})")]
    Damaged {
        /// Where, bytes.
        offset: u64,
        /// What.
        what: &'static str,
    },
    /// A newer revfs wrote it.
    #[error("it has format version {found}, this revfs reads version {FORMAT_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It needs what this revfs lacks.
    #[error("it needs the feature '{feature}', which this revfs does not know")]
    Needs {
        /// The feature.
        feature: String,
    },
}

#[derive(Clone, PartialEq, Message)]
struct BodyProto {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(fixed64, tag = "2")]
    tid: u64,
    #[prost(fixed64, tag = "3")]
    base: u64,
    #[prost(bytes = "vec", tag = "4")]
    commit_uuid: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    previous: Vec<u8>,
    #[prost(fixed64, tag = "6")]
    time_unix_ns: u64,
    #[prost(string, tag = "7")]
    author: String,
    #[prost(string, tag = "8")]
    message: String,
    #[prost(string, repeated, tag = "9")]
    needs: Vec<String>,
    #[prost(message, repeated, tag = "10")]
    packs: Vec<PackProto>,
    #[prost(message, repeated, tag = "11")]
    files: Vec<FileProto>,
    #[prost(message, repeated, tag = "12")]
    tags: Vec<TagProto>,
}

#[derive(Clone, PartialEq, Message)]
struct PackProto {
    #[prost(bytes = "vec", tag = "1")]
    uuid: Vec<u8>,
    #[prost(uint64, tag = "2")]
    data_len: u64,
    #[prost(uint64, tag = "3")]
    crcs_offset: u64,
    #[prost(fixed32, tag = "4")]
    crcs_crc: u32,
    #[prost(uint64, tag = "5")]
    hashes_offset: u64,
    #[prost(uint64, tag = "6")]
    hashes_count: u64,
    #[prost(fixed32, tag = "7")]
    hashes_crc: u32,
}

#[derive(Clone, PartialEq, Message)]
struct FileProto {
    #[prost(fixed64, tag = "1")]
    file: u64,
    #[prost(bytes = "vec", tag = "2")]
    path: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "3")]
    renamed_from: Option<Vec<u8>>,
    #[prost(bool, tag = "4")]
    created: bool,
    #[prost(bool, tag = "5")]
    deleted: bool,
    #[prost(uint64, tag = "6")]
    old_size: u64,
    #[prost(uint64, tag = "7")]
    size: u64,
    #[prost(uint64, tag = "8")]
    block_size: u64,
    #[prost(message, repeated, tag = "9")]
    extents: Vec<ExtentProto>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ExtentProto {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    count: u64,
    /// 0: a hole; else the index of the pack, plus one.
    #[prost(uint32, tag = "3")]
    pack: u32,
    #[prost(uint64, tag = "4")]
    offset: u64,
    #[prost(uint32, tag = "5")]
    len: u32,
    /// 0: raw; 1: zstd.
    #[prost(uint32, tag = "6")]
    codec: u32,
}

#[derive(Clone, PartialEq, Message)]
struct TagProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(fixed64, optional, tag = "2")]
    target: Option<u64>,
}

impl CommitRecord {
    /// The bytes of the record. `inline` is the pack without a name, if the record has one.
    pub fn encode(&self, inline: &[u8]) -> Vec<u8> {
        let body = self.body().encode_to_vec();
        encode_raw(&body, inline)
    }

    fn body(&self) -> BodyProto {
        BodyProto {
            seq: self.seq,
            tid: self.tid.raw(),
            base: self.base.raw(),
            commit_uuid: self.commit_uuid.as_bytes().to_vec(),
            previous: self.previous.to_vec(),
            time_unix_ns: self.time_unix_ns,
            author: self.author.clone(),
            message: self.message.clone(),
            needs: Vec::new(),
            packs: self.packs.iter().map(pack_to_proto).collect(),
            files: self.files.iter().map(file_to_proto).collect(),
            tags: self
                .tags
                .iter()
                .map(|tag| TagProto { name: tag.name.clone(), target: tag.target.map(Tid::raw) })
                .collect(),
        }
    }

    /// Reads the bytes of a record; answers also the offset of its inline pack.
    ///
    /// # Errors
    /// See [`RecordError`]. Any input is safe.
    pub fn decode(bytes: &[u8]) -> Result<(CommitRecord, u64), RecordError> {
        let body_end = check_frame(bytes)?;
        let body = &bytes[HEADER_BYTES..body_end];
        let record = CommitRecord::decode_body(body)?;
        let inline_len = (bytes.len() - body_end) as u64;
        let wants = record.packs.iter().find(|pack| pack.uuid.is_none()).map_or(0, PackRef::total_len);
        if wants != inline_len {
            return Err(damaged(body_end, "its inline bytes are not what its body says"));
        }
        Ok((record, body_end as u64))
    }

    /// Reads a body alone, as the index keeps it.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode_body(body: &[u8]) -> Result<CommitRecord, RecordError> {
        let proto = BodyProto::decode(body)
            .map_err(|_| damaged(HEADER_BYTES, "its body is not what it should be"))?;
        if let Some(feature) = proto.needs.first() {
            return Err(RecordError::Needs { feature: feature.clone() });
        }
        from_body(proto).map_err(|what| damaged(HEADER_BYTES, what))
    }

    /// The body of an encoded record, as the index keeps it.
    pub fn body_of(bytes: &[u8]) -> Option<&[u8]> {
        let end = check_frame(bytes).ok()?;
        bytes.get(HEADER_BYTES..end)
    }

    /// What is told of it to people and to the change index.
    pub fn info(&self) -> CommitInfo {
        CommitInfo {
            seq: self.seq,
            tid: self.tid,
            base: self.base,
            time_unix_ns: self.time_unix_ns,
            author: self.author.clone(),
            message: self.message.clone(),
            commit_uuid: self.commit_uuid,
            files: self.files.iter().map(|file| file.change.clone()).collect(),
            tags: self.tags.clone(),
            pack_bytes: self.packs.iter().map(PackRef::total_len).sum(),
        }
    }
}

impl PackRef {
    /// Bytes of the object: data and footer.
    pub fn total_len(&self) -> u64 {
        self.hashes_offset.saturating_add(self.hashes_count.saturating_mul(24))
    }

    /// How many checksums it has.
    pub fn crcs_count(&self) -> u64 {
        self.data_len.div_ceil(super::CHUNK_BYTES)
    }
}

fn damaged(offset: usize, what: &'static str) -> RecordError {
    RecordError::Damaged { offset: offset as u64, what }
}

fn encode_raw(body: &[u8], inline: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + inline.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(inline.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(inline);
    let crc = frame_crc(&bytes);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn frame_crc(bytes: &[u8]) -> u32 {
    let mut digest = super::Crc32c::new();
    digest.update(&bytes[..20]);
    digest.update(&bytes[HEADER_BYTES..]);
    digest.finish()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Checks lengths and crc; answers where the body ends.
fn check_frame(bytes: &[u8]) -> Result<usize, RecordError> {
    if bytes.len() < HEADER_BYTES {
        return Err(damaged(bytes.len(), "it is cut short"));
    }
    if &bytes[..8] != MAGIC {
        return Err(damaged(0, "it does not begin as a commit record"));
    }
    let version = word(bytes, 8);
    if version != FORMAT_VERSION {
        return Err(RecordError::Version { found: version });
    }
    let body_len = word(bytes, 12) as usize;
    let inline_len = word(bytes, 16) as usize;
    if inline_len > INLINE_BYTES_MAX + INLINE_FOOTER_MAX {
        return Err(damaged(16, "its inline bytes are more than a record may carry"));
    }
    let body_end = HEADER_BYTES + body_len;
    if body_end + inline_len != bytes.len() {
        return Err(damaged(12, "its length is not what its header says"));
    }
    if word(bytes, 20) != frame_crc(bytes) {
        return Err(damaged(20, "its checksum does not match"));
    }
    Ok(body_end)
}

fn pack_to_proto(pack: &PackRef) -> PackProto {
    PackProto {
        uuid: pack.uuid.map(|uuid| uuid.as_bytes().to_vec()).unwrap_or_default(),
        data_len: pack.data_len,
        crcs_offset: pack.crcs_offset,
        crcs_crc: pack.crcs_crc,
        hashes_offset: pack.hashes_offset,
        hashes_count: pack.hashes_count,
        hashes_crc: pack.hashes_crc,
    }
}

fn file_to_proto(file: &RecordFile) -> FileProto {
    FileProto {
        file: file.change.file.raw(),
        path: file.change.path.clone(),
        renamed_from: file.change.renamed_from.clone(),
        created: file.change.created,
        deleted: file.change.deleted,
        old_size: file.change.old_size,
        size: file.change.size,
        block_size: file.change.block_size.bytes(),
        extents: file.extents.iter().map(extent_to_proto).collect(),
    }
}

fn extent_to_proto(extent: &Extent) -> ExtentProto {
    let (first, count) = (extent.first, extent.count);
    match extent.place {
        Place::Hole => ExtentProto { first, count, pack: 0, offset: 0, len: 0, codec: 0 },
        Place::Stored { pack, offset, len, codec } => ExtentProto {
            first,
            count,
            pack: pack + 1,
            offset,
            len,
            codec: match codec {
                Codec::Raw => 0,
                Codec::Zstd => 1,
            },
        },
    }
}

fn uuid_from(bytes: &[u8]) -> Result<uuid::Uuid, &'static str> {
    uuid::Uuid::from_slice(bytes).map_err(|_| "a uuid has not 16 bytes")
}

fn from_body(proto: BodyProto) -> Result<CommitRecord, &'static str> {
    if proto.author.len() > TEXT_BYTES_MAX || proto.message.len() > TEXT_BYTES_MAX {
        return Err("its author or message is too long");
    }
    let packs = proto.packs.iter().map(pack_from).collect::<Result<Vec<_>, _>>()?;
    if packs.iter().filter(|pack| pack.uuid.is_none()).count() > 1 {
        return Err("it has two inline packs");
    }
    let files = proto.files.into_iter().map(|file| file_from(file, &packs)).collect::<Result<_, _>>()?;
    let tags = proto.tags.into_iter().map(tag_from).collect::<Result<_, _>>()?;
    Ok(CommitRecord {
        seq: proto.seq,
        tid: Tid::from_raw(proto.tid),
        base: Tid::from_raw(proto.base),
        commit_uuid: uuid_from(&proto.commit_uuid)?,
        previous: proto.previous.try_into().map_err(|_| "the hash of the record before has not 32 bytes")?,
        time_unix_ns: proto.time_unix_ns,
        author: proto.author,
        message: proto.message,
        packs,
        files,
        tags,
    })
}

fn tag_from(tag: TagProto) -> Result<TagChange, &'static str> {
    TagName::new(&tag.name).map_err(|_| "the name of a tag is not one")?;
    Ok(TagChange { name: tag.name, target: tag.target.map(Tid::from_raw) })
}

fn pack_from(proto: &PackProto) -> Result<PackRef, &'static str> {
    let uuid = if proto.uuid.is_empty() { None } else { Some(uuid_from(&proto.uuid)?) };
    let pack = PackRef {
        uuid,
        data_len: proto.data_len,
        crcs_offset: proto.crcs_offset,
        crcs_crc: proto.crcs_crc,
        hashes_offset: proto.hashes_offset,
        hashes_count: proto.hashes_count,
        hashes_crc: proto.hashes_crc,
    };
    let crcs_end = pack.crcs_count().checked_mul(4).and_then(|len| len.checked_add(pack.crcs_offset));
    let ordered = pack.data_len <= pack.crcs_offset
        && crcs_end.is_some_and(|end| end == pack.hashes_offset)
        && pack.total_len() < super::pack::PACK_OBJECT_BYTES_MAX;
    if ordered { Ok(pack) } else { Err("the parts of a pack do not follow each other") }
}

fn file_from(proto: FileProto, packs: &[PackRef]) -> Result<RecordFile, &'static str> {
    check_path(&proto.path).map_err(|_| "the name of a file is not one")?;
    if let Some(from) = &proto.renamed_from {
        check_path(from).map_err(|_| "the former name of a file is not one")?;
    }
    if proto.size > FILE_BYTES_MAX || proto.old_size > FILE_BYTES_MAX {
        return Err("the size of a file is too large");
    }
    let block_size = BlockSize::new(proto.block_size).map_err(|_| "the block size of a file is not one")?;
    let blocks_max = block_size.blocks_for(proto.size).raw();
    let mut extents = Vec::with_capacity(proto.extents.len());
    let mut next = 0;
    for raw in &proto.extents {
        let extent = extent_from(raw, block_size, packs)?;
        let end = extent.first.checked_add(extent.count).ok_or("a run of blocks has no end")?;
        if extent.count == 0 || extent.first < next || end > blocks_max {
            return Err("runs of blocks are not ascending within the file");
        }
        next = end;
        extents.push(extent);
    }
    let change = FileChange {
        file: FileId::from_raw(proto.file),
        path: proto.path,
        renamed_from: proto.renamed_from,
        created: proto.created,
        deleted: proto.deleted,
        replaced: false,
        old_size: proto.old_size,
        size: proto.size,
        block_size,
        blocks: merge_runs(&extents),
    };
    Ok(RecordFile { change, extents })
}

fn extent_from(raw: &ExtentProto, block_size: BlockSize, packs: &[PackRef]) -> Result<Extent, &'static str> {
    let (first, count) = (raw.first, raw.count);
    let Some(pack) = raw.pack.checked_sub(1) else {
        return Ok(Extent { first, count, place: Place::Hole });
    };
    let codec = match raw.codec {
        0 => Codec::Raw,
        1 => Codec::Zstd,
        _ => return Err("the encoding of a block is not known"),
    };
    let info = packs.get(pack as usize).ok_or("a run of blocks names a pack that is not there")?;
    let bytes = count.checked_mul(u64::from(raw.len)).ok_or("a run of blocks has no end")?;
    let inside = raw.offset.checked_add(bytes).is_some_and(|end| end <= info.data_len);
    let full = u64::from(raw.len) == block_size.bytes() && codec == Codec::Raw;
    if !inside || raw.len == 0 || (count > 1 && !full) || u64::from(raw.len) > block_size.bytes() {
        return Err("a run of blocks lies outside of its pack");
    }
    Ok(Extent { first, count, place: Place::Stored { pack, offset: raw.offset, len: raw.len, codec } })
}

/// Runs of blocks without their places, neighbours joined.
pub fn merge_runs(extents: &[Extent]) -> Vec<(BlockIndex, BlockCount)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == extent.first => *count += extent.count,
            _ => runs.push((extent.first, extent.count)),
        }
    }
    runs.into_iter().map(|(first, count)| (BlockIndex::new(first), BlockCount::new(count))).collect()
}
