//! Bytes of packs, each checked against its crc32c before anybody sees it.
//!
//! Invariant: a byte that leaves this module was covered by a checksum that matched. A local pack is read past
//! the page cache into the reader's own buffer, so its bytes are in memory once: in the page cache of whoever
//! asked. What the block cache holds are chunks of which a reader wanted a part, and decoded blocks; whole
//! chunks that stream through are not kept.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::format::{pack_object, record_object};
use super::index::PackInfo;
use super::objects::Objects;
use super::pack::BlockHash;
use super::{CHUNK_BYTES, crc32c};
use crate::store::buffer::BUFFER_ALIGN;
use crate::store::{BufferPool, PackNo, Piece, PieceSource, ReadBuffer, ReadError};

/// Checksums of packs that are kept in memory, bytes; each pack counts as at least
/// [`OPEN_PACK_WEIGHT_MIN`], which bounds the open files too.
const OPEN_PACKS_WEIGHT: u64 = 32 << 20;
/// Least weight of an open pack, bytes.
const OPEN_PACK_WEIGHT_MIN: u64 = 64 << 10;
/// Hashes of packs that are kept in memory, bytes.
const HASHES_WEIGHT: u64 = 16 << 20;
/// A piece up to this size goes through the block cache, bytes: its neighbours are likely wanted next.
const CACHED_PIECE_MAX: usize = CHUNK_BYTES as usize;
/// Loads of one READ that are under way at once: enough to hide the time that each takes to begin.
const LOADS_AT_ONCE: usize = 16;
/// Buffers kept for whole chunks and for reads that are not aligned.
const BUFFERS_KEPT: usize = 32;

/// A pack that is ready to be read.
#[derive(Debug)]
pub struct OpenPack {
    object: ObjectPath,
    info: PackInfo,
    crcs: Vec<u32>,
    access: Access,
}

#[derive(Debug)]
enum Access {
    /// A file; `direct`: opened with O_DIRECT.
    Local { file: File, direct: bool },
    /// Through the object storage.
    Remote,
}

/// What a cached chunk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CacheKey {
    /// 64 KiB of a pack, by number.
    Chunk(PackNo, u64),
    /// The block that the frame at this offset decodes to.
    Decoded(PackNo, u64),
}

#[derive(Clone)]
struct ByLen;

impl Weighter<CacheKey, Arc<ReadBuffer>> for ByLen {
    fn weight(&self, _key: &CacheKey, value: &Arc<ReadBuffer>) -> u64 {
        value.memory_bytes() as u64
    }
}

impl Weighter<PackNo, Arc<OpenPack>> for ByLen {
    fn weight(&self, _key: &PackNo, value: &Arc<OpenPack>) -> u64 {
        OPEN_PACK_WEIGHT_MIN.max(value.crcs.len() as u64 * 4)
    }
}

impl Weighter<PackNo, Arc<Vec<u8>>> for ByLen {
    fn weight(&self, _key: &PackNo, value: &Arc<Vec<u8>>) -> u64 {
        1 + value.len() as u64
    }
}

/// Tells where a pack is.
type Find<'f> = dyn Fn(PackNo) -> Result<PackInfo, ReadError> + Send + Sync + 'f;

/// Reads packs.
#[derive(Debug)]
pub struct Reader {
    objects: Objects,
    packs: Cache<PackNo, Arc<OpenPack>, ByLen>,
    hashes: Cache<PackNo, Arc<Vec<u8>>, ByLen>,
    cache: Cache<CacheKey, Arc<ReadBuffer>, ByLen>,
    buffers: Arc<BufferPool>,
}

impl Reader {
    /// A reader with a block cache of at most `cache_bytes`.
    pub fn new(objects: Objects, cache_bytes: u64) -> Reader {
        let items = |weight: u64, each: u64| usize::try_from(weight / each).unwrap_or(usize::MAX).max(16);
        Reader {
            objects,
            packs: Cache::with_weighter(
                items(OPEN_PACKS_WEIGHT, OPEN_PACK_WEIGHT_MIN),
                OPEN_PACKS_WEIGHT,
                ByLen,
            ),
            hashes: Cache::with_weighter(64, HASHES_WEIGHT, ByLen),
            cache: Cache::with_weighter(items(cache_bytes, CHUNK_BYTES), cache_bytes, ByLen),
            buffers: BufferPool::new(BUFFERS_KEPT, BUFFER_ALIGN),
        }
    }

    /// Bytes that the block cache holds.
    pub fn cached_bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Forgets all that is known by the numbers of packs, which may change when the index is built anew.
    pub fn clear(&self) {
        self.packs.clear();
        self.hashes.clear();
        self.cache.clear();
    }

    /// Whether `read_now` serves.
    pub fn is_local(&self) -> bool {
        self.objects.local_root().is_some()
    }

    /// Fills `buffer` by `pieces` on this thread. `find` tells where a pack is.
    pub fn read_now(
        &self,
        pieces: &[Piece],
        buffer: &mut ReadBuffer,
        find: &dyn Fn(PackNo) -> Result<PackInfo, ReadError>,
    ) -> Result<(), ReadError> {
        for piece in pieces {
            let target = piece_target(buffer, piece)?;
            match piece.source {
                PieceSource::Zero => target.fill(0),
                PieceSource::Raw { pack, offset } => {
                    let open = self.open_now(pack, find)?;
                    self.fill_now(pack, &open, offset, target)?;
                }
                PieceSource::Zstd { pack, offset, stored, block, skip } => {
                    let key = CacheKey::Decoded(pack, offset);
                    let decoded = match self.cache.get(&key) {
                        Some(decoded) => decoded,
                        None => {
                            let open = self.open_now(pack, find)?;
                            open.end_of(offset, u64::from(stored))?;
                            let mut frame = self.buffers.take(stored as usize);
                            self.fill_now(pack, &open, offset, &mut frame)?;
                            self.decode(&open, key, &frame, block)?
                        }
                    };
                    copy_decoded(&decoded, skip, target);
                }
                PieceSource::Object { .. } => return Err(foreign(piece.at)),
            }
        }
        Ok(())
    }

    /// Fills `buffer` by `pieces`, waiting for the object storage: for up to [`LOADS_AT_ONCE`] pieces at once.
    pub async fn read_later(
        &self,
        pieces: &[Piece],
        buffer: &mut ReadBuffer,
        find: &Find<'_>,
    ) -> Result<(), ReadError> {
        let mut loads = Vec::with_capacity(pieces.len());
        let (mut rest, mut done) = (&mut buffer[..], 0);
        for piece in pieces {
            // Pieces stand in order without gaps, so what is left of the buffer begins where the next one does.
            let target = match rest.split_at_mut_checked(piece.len) {
                Some((target, behind)) if piece.at == done => {
                    (rest, done) = (behind, done + piece.len);
                    target
                }
                _ => return Err(outside(piece)),
            };
            match piece.source {
                PieceSource::Zero => target.fill(0),
                _ => loads.push(self.fill_later(piece.source, target, find)),
            }
        }
        futures::stream::iter(loads).buffer_unordered(LOADS_AT_ONCE).try_collect().await
    }

    /// Fills `target` from the object storage.
    async fn fill_later(
        &self,
        source: PieceSource,
        target: &mut [u8],
        find: &Find<'_>,
    ) -> Result<(), ReadError> {
        match source {
            PieceSource::Zero => target.fill(0),
            PieceSource::Raw { pack, offset } => self.load(pack, offset, target, find).await?,
            PieceSource::Zstd { pack, offset, stored, block, skip } => {
                let key = CacheKey::Decoded(pack, offset);
                let decoded = match self.cache.get(&key) {
                    Some(decoded) => decoded,
                    None => {
                        let open = self.open_later(pack, find).await?;
                        open.end_of(offset, u64::from(stored))?;
                        let mut frame = self.buffers.take(stored as usize);
                        self.load(pack, offset, &mut frame, find).await?;
                        self.decode(&open, key, &frame, block)?
                    }
                };
                copy_decoded(&decoded, skip, target);
            }
            PieceSource::Object { .. } => return Err(foreign(0)),
        }
        Ok(())
    }

    fn decode(
        &self,
        open: &OpenPack,
        key: CacheKey,
        frame: &[u8],
        block: u32,
    ) -> Result<Arc<ReadBuffer>, ReadError> {
        let mut decoded = self.buffers.take_to_keep(block as usize);
        let len = zstd::bulk::decompress_to_buffer(frame, &mut decoded[..]).map_err(|_| {
            open.damaged(if let CacheKey::Decoded(_, at) = key { at } else { 0 }, "a block does not decode")
        })?;
        decoded.truncate(len);
        let decoded = Arc::new(decoded);
        self.cache.insert(key, Arc::clone(&decoded));
        Ok(decoded)
    }

    /// Checks that a pack is there, whole and undamaged; for `verify`. Answers its data bytes.
    pub async fn check_pack(&self, pack: PackNo, quick: bool, find: &Find<'_>) -> Result<u64, ReadError> {
        let open = self.open_later(pack, find).await?;
        self.hashes(pack, find).await?;
        let len = open.info.pack.data_len;
        if !quick {
            const STEP: u64 = 4 << 20;
            for start in (0..len).step_by(STEP as usize) {
                let len = STEP.min(len - start);
                match open.access {
                    Access::Local { .. } => drop(self.read_span(&open, start, len)?),
                    Access::Remote => drop(self.load_bytes(&open, start, len).await?),
                }
            }
        }
        Ok(len)
    }

    /// The hashes of a pack.
    pub async fn hashes(&self, pack: PackNo, find: &Find<'_>) -> Result<Arc<Vec<u8>>, ReadError> {
        if let Some(hashes) = self.hashes.get(&pack) {
            return Ok(hashes);
        }
        let info = find(pack)?;
        let object = object_of(&info);
        let start = info.base + info.pack.hashes_offset;
        let end = info.base + info.pack.total_len();
        let bytes = self.objects.get_range(&object, start, end).await?;
        if crc32c(&bytes) != info.pack.hashes_crc {
            return Err(damaged(&object, start, "the hashes of its blocks do not match their checksum"));
        }
        let hashes = Arc::new(bytes.to_vec());
        self.hashes.insert(pack, Arc::clone(&hashes));
        Ok(hashes)
    }

    /// Hash of the block at `offset`.
    pub async fn block_hash(
        &self,
        pack: PackNo,
        offset: u64,
        find: &Find<'_>,
    ) -> Result<BlockHash, ReadError> {
        let hashes = self.hashes(pack, find).await?;
        super::pack::find_hash(&hashes, offset).ok_or_else(|| ReadError::Damaged {
            object: format!("pack {}", pack.0),
            offset,
            what: "it has no hash for a block that lies there",
        })
    }

    fn open_now(
        &self,
        pack: PackNo,
        find: &dyn Fn(PackNo) -> Result<PackInfo, ReadError>,
    ) -> Result<Arc<OpenPack>, ReadError> {
        if let Some(open) = self.packs.get(&pack) {
            return Ok(open);
        }
        let info = find(pack)?;
        // A directory answers at once, so this does not wait for anything but the disk.
        let open = Arc::new(pollster::block_on(self.open_pack(info))?);
        self.packs.insert(pack, Arc::clone(&open));
        Ok(open)
    }

    async fn open_later(&self, pack: PackNo, find: &Find<'_>) -> Result<Arc<OpenPack>, ReadError> {
        if let Some(open) = self.packs.get(&pack) {
            return Ok(open);
        }
        let open = Arc::new(self.open_pack(find(pack)?).await?);
        self.packs.insert(pack, Arc::clone(&open));
        Ok(open)
    }

    async fn open_pack(&self, info: PackInfo) -> Result<OpenPack, ReadError> {
        let object = object_of(&info);
        let start = info.base + info.pack.crcs_offset;
        let end = info.base + info.pack.hashes_offset;
        let (bytes, access) = match self.objects.local_file(&object) {
            Some(path) => {
                let io = |source: std::io::Error| match source.kind() {
                    std::io::ErrorKind::NotFound => ReadError::Missing { object: object.to_string() },
                    _ => ReadError::Io { object: object.to_string(), source },
                };
                let file = File::open(&path).map_err(io)?;
                if file.metadata().map_err(io)?.len() < info.base + info.pack.total_len() {
                    return Err(damaged(&object, start, "it is cut short"));
                }
                let mut bytes = vec![0; (end - start) as usize];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, start).map_err(io)?;
                (bytes, local_access(&path, file, info.base))
            }
            None if start == end => (Vec::new(), Access::Remote),
            None => (self.objects.get_range(&object, start, end).await?.to_vec(), Access::Remote),
        };
        if crc32c(&bytes) != info.pack.crcs_crc {
            return Err(damaged(&object, start, "its checksums do not match their own"));
        }
        let crcs = bytes
            .chunks_exact(4)
            .map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        Ok(OpenPack { object, info, crcs, access })
    }

    /// Fills `target` from `offset` on, on this thread.
    fn fill_now(
        &self,
        pack: PackNo,
        open: &OpenPack,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), ReadError> {
        let end = open.end_of(offset, target.len() as u64)?;
        let Access::Local { file, direct } = &open.access else {
            return Err(open.damaged(offset, "it is not a local file"));
        };
        // Whole chunks go straight to where the reader wants them, if the memory is aligned as O_DIRECT asks.
        let whole_start = offset.next_multiple_of(CHUNK_BYTES).min(end);
        let whole_end = (end - end % CHUNK_BYTES).max(whole_start);
        let skip = (whole_start - offset) as usize;
        let aligned = (target.as_ptr() as usize + skip).is_multiple_of(BUFFER_ALIGN);
        if whole_end > whole_start && (aligned || !direct) {
            let (head, rest) = target.split_at_mut(skip);
            let (middle, tail) = rest.split_at_mut((whole_end - whole_start) as usize);
            read_at(file, *direct, open, whole_start, middle)?;
            open.verify(whole_start, middle)?;
            self.copy_chunks(pack, open, offset, head)?;
            return self.copy_chunks(pack, open, whole_end, tail);
        }
        self.copy_chunks(pack, open, offset, target)
    }

    /// Copies bytes out of chunks; few of them through the cache, many in one read of their own.
    fn copy_chunks(
        &self,
        pack: PackNo,
        open: &OpenPack,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), ReadError> {
        if target.is_empty() {
            return Ok(());
        }
        if target.len() > CACHED_PIECE_MAX {
            let span = self.read_span(open, offset, target.len() as u64)?;
            let skip = (offset % CHUNK_BYTES) as usize;
            target.copy_from_slice(&span[skip..skip + target.len()]);
            return Ok(());
        }
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let key = CacheKey::Chunk(pack, at / CHUNK_BYTES);
            let chunk = match self.cache.get(&key) {
                Some(chunk) => chunk,
                None => {
                    let chunk = Arc::new(self.read_span(open, at, 1)?);
                    self.cache.insert(key, Arc::clone(&chunk));
                    chunk
                }
            };
            let skip = (at % CHUNK_BYTES) as usize;
            let len = (chunk.len() - skip).min(target.len() - done);
            target[done..done + len].copy_from_slice(&chunk[skip..skip + len]);
            done += len;
        }
        Ok(())
    }

    /// All chunks that `[offset, offset + len)` touches, checked.
    fn read_span(&self, open: &OpenPack, offset: u64, len: u64) -> Result<ReadBuffer, ReadError> {
        let Access::Local { file, direct } = &open.access else {
            return Err(open.damaged(offset, "it is not a local file"));
        };
        let start = offset - offset % CHUNK_BYTES;
        let end = (offset + len).next_multiple_of(CHUNK_BYTES).min(open.info.pack.data_len);
        let wanted = (end - start) as usize;
        // O_DIRECT reads whole sectors; what comes behind the data is the footer and is cut off.
        let mut span = self.buffers.take(wanted.next_multiple_of(BUFFER_ALIGN));
        if *direct {
            read_at(file, true, open, start, &mut span)?;
        } else {
            read_at(file, false, open, start, &mut span[..wanted])?;
        }
        span.truncate(wanted);
        open.verify(start, &span)?;
        Ok(span)
    }

    /// Fills `target` from `offset` of a pack on; what lies in one chunk goes through the block cache.
    async fn load(
        &self,
        pack: PackNo,
        offset: u64,
        target: &mut [u8],
        find: &Find<'_>,
    ) -> Result<(), ReadError> {
        let open = self.open_later(pack, find).await?;
        let end = open.end_of(offset, target.len() as u64)?;
        let skip = (offset % CHUNK_BYTES) as usize;
        let wanted = skip..skip + target.len();
        let chunk = offset / CHUNK_BYTES;
        if end.div_ceil(CHUNK_BYTES) != chunk + 1 {
            let span = self.load_bytes(&open, offset, target.len() as u64).await?;
            target.copy_from_slice(&span[wanted]);
            return Ok(());
        }
        let key = CacheKey::Chunk(pack, chunk);
        let span = match self.cache.get(&key) {
            Some(span) => span,
            None => {
                let bytes = self.load_bytes(&open, offset, target.len() as u64).await?;
                let mut span = self.buffers.take_to_keep(bytes.len());
                span.copy_from_slice(&bytes);
                let span = Arc::new(span);
                self.cache.insert(key, Arc::clone(&span));
                span
            }
        };
        target.copy_from_slice(&span[wanted]);
        Ok(())
    }

    /// All chunks that `[offset, offset + len)` touches, checked, as the object storage handed them out.
    async fn load_bytes(&self, open: &OpenPack, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        let start = offset - offset % CHUNK_BYTES;
        let end = (offset + len).next_multiple_of(CHUNK_BYTES).min(open.info.pack.data_len);
        let base = open.info.base;
        let bytes = self.objects.get_range(&open.object, base + start, base + end).await?;
        open.verify(start, &bytes)?;
        Ok(bytes)
    }
}

impl OpenPack {
    fn damaged(&self, offset: u64, what: &'static str) -> ReadError {
        damaged(&self.object, self.info.base + offset, what)
    }

    fn end_of(&self, offset: u64, len: u64) -> Result<u64, ReadError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.info.pack.data_len => Ok(end),
            _ => Err(self.damaged(offset, "a block lies beyond its end")),
        }
    }

    /// Checks bytes that begin with the chunk at `start`; the last chunk may be short only at the end of data.
    fn verify(&self, start: u64, bytes: &[u8]) -> Result<(), ReadError> {
        let first = (start / CHUNK_BYTES) as usize;
        for (index, chunk) in bytes.chunks(CHUNK_BYTES as usize).enumerate() {
            if self.crcs.get(first + index) != Some(&crc32c(chunk)) {
                let at = start + index as u64 * CHUNK_BYTES;
                return Err(self.damaged(at, "64 KiB of it do not match their checksum"));
            }
        }
        Ok(())
    }
}

fn damaged(object: &ObjectPath, offset: u64, what: &'static str) -> ReadError {
    ReadError::Damaged { object: object.to_string(), offset, what }
}

fn object_of(info: &PackInfo) -> ObjectPath {
    match info.pack.uuid {
        Some(uuid) => pack_object(uuid),
        None => record_object(info.seq),
    }
}

/// Opens a pack past the page cache; inside a record nothing is aligned, so that is read through it.
fn local_access(path: &std::path::Path, buffered: File, base: u64) -> Access {
    if base == 0 {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        if let Ok(file) = File::options().read(true).custom_flags(flags).open(path) {
            return Access::Local { file, direct: true };
        }
    }
    Access::Local { file: buffered, direct: false }
}

/// Reads at `offset` of the pack. With O_DIRECT the end of the file may cut the last sector short.
fn read_at(
    file: &File,
    direct: bool,
    open: &OpenPack,
    offset: u64,
    target: &mut [u8],
) -> Result<(), ReadError> {
    use std::os::unix::fs::FileExt;
    let io = |source| ReadError::Io { object: open.object.to_string(), source };
    let start = open.info.base + offset;
    let needed = target.len().min((open.info.pack.data_len - offset) as usize);
    let mut done = 0;
    while done < needed {
        match file.read_at(&mut target[done..], start + done as u64) {
            Ok(0) => return Err(open.damaged(offset + done as u64, "it is cut short")),
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
    if !direct {
        // Its bytes live on in the reader's page cache; a second copy here would only push others out.
        let len = std::num::NonZeroU64::new(needed as u64);
        if let Err(error) = rustix::fs::fadvise(file, start, len, rustix::fs::Advice::DontNeed) {
            log::debug!("fadvise on {}: {error}", open.object);
        }
    }
    Ok(())
}

fn piece_target<'b>(buffer: &'b mut ReadBuffer, piece: &Piece) -> Result<&'b mut [u8], ReadError> {
    let range = piece.at..piece.at.saturating_add(piece.len);
    buffer.get_mut(range).ok_or_else(|| outside(piece))
}

fn outside(piece: &Piece) -> ReadError {
    ReadError::Damaged {
        object: "read plan".to_owned(),
        offset: piece.at as u64,
        what: "a piece lies outside of the buffer",
    }
}

fn foreign(at: usize) -> ReadError {
    let what = "a piece is of another kind of store";
    ReadError::Damaged { object: "read plan".to_owned(), offset: at as u64, what }
}

fn copy_decoded(decoded: &[u8], skip: u32, target: &mut [u8]) {
    let from = decoded.get(skip as usize..).unwrap_or_default();
    let len = from.len().min(target.len());
    target[..len].copy_from_slice(&from[..len]);
    target[len..].fill(0);
}
