//! Transactions: edits on a base state, and the protocol that makes them a commit.
//!
//! Invariant: a commit exists once its record was created, and is acknowledged only then; whatever outcome a
//! create had, the record is read back before anything is concluded from it. Packs are durable before the
//! record is sent, and removed only if no record was ever sent. No lock is held while waiting for the storage.

mod attempt;
mod errors;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, TagName, Tid};

use super::NativeStore;
pub use super::conflict::ConflictKind;
use super::conflict::WriteSet;
use super::edit::{FileEdit, Names};
use super::extents::Placed;
use super::pack::{BlockHash, block_hash, used_len};
use super::record::{FILE_BYTES_MAX, Place};
use super::sink::Sink;
use crate::env;
use crate::store::buffer::BUFFER_ALIGN;
use crate::store::{BlockData, BufferPool, Codec, FileMeta, Piece, PieceSource, ReadError, ReadTxn};
pub use attempt::CopyOf;
pub use errors::{CommitError, CommitWarning, Committed};

/// Blocks that wait in memory for more writes, bytes; beyond that they are written out.
const STAGED_BYTES_MAX: usize = 64 << 20;
/// Copies of blocks from this size on go through a pool; the allocator keeps smaller ones by itself.
const POOLED_BLOCK_BYTES_MIN: usize = 128 << 10;
/// Copies that are kept for reuse during a transaction; there are never more than were on their way to the disk at once.
pub(super) const COPIES_MAX: usize = 256;
/// What of them is kept for the next transaction, bytes: about as much as one has on its way.
const COPIES_KEPT_BYTES: usize = 24 << 20;
/// A writer whose first pack is older gives up: a cleaner may take unreferenced packs after twice that.
const TRANSACTION_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The store's pool of copies, for as long as one transaction uses it.
struct Copies(Arc<BufferPool>);

impl Drop for Copies {
    fn drop(&mut self) {
        self.0.shrink_to(COPIES_KEPT_BYTES);
    }
}

/// Edits on a base state. Dropping it commits nothing.
pub struct Transaction {
    store: Arc<NativeStore>,
    base: ReadTxn,
    files: BTreeMap<FileId, FileEdit>,
    names: Names,
    tags: BTreeMap<String, Option<Tid>>,
    sink: Sink,
    copies: Copies,
    author: String,
    message: String,
    allow_empty: bool,
    started: Duration,
    staged_bytes: usize,
    /// Creates that failed without a trace so far.
    retries: u32,
    /// It is a copy of a commit of another store.
    copy_of: Option<CopyOf>,
}

impl NativeStore {
    /// Begins a transaction on the state `base`, or on the newest.
    ///
    /// # Errors
    /// The log cannot be read, or `base` is ahead of head.
    pub fn begin(self: &Arc<Self>, base: Option<Tid>) -> Result<Transaction, CommitError> {
        let store = self.as_store();
        let base = match base {
            Some(at) => ReadTxn::new(&store, at)?,
            None => ReadTxn::head(&store),
        };
        Ok(Transaction {
            base,
            files: BTreeMap::new(),
            names: Names::default(),
            tags: BTreeMap::new(),
            sink: Sink::new(self.objects.clone()),
            copies: Copies(Arc::clone(&self.copies)),
            author: String::new(),
            message: String::new(),
            allow_empty: false,
            started: self.clock.monotonic(),
            staged_bytes: 0,
            retries: 0,
            copy_of: None,
            store: Arc::clone(self),
        })
    }
}

impl Transaction {
    /// The state that the edits are told relative to.
    pub fn base(&self) -> &ReadTxn {
        &self.base
    }

    /// Says why. Cut to 64 KiB.
    pub fn set_message(&mut self, text: &str) {
        self.message = errors::cut_text(text);
    }

    /// Says who. Cut to 64 KiB.
    pub fn set_author(&mut self, text: &str) {
        self.author = errors::cut_text(text);
    }

    /// Commits a record even if nothing changed.
    pub fn allow_empty(&mut self) {
        self.allow_empty = true;
    }

    /// The file of this name, own edits included.
    ///
    /// # Errors
    /// The index fails.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<FileId>, CommitError> {
        self.names.file(&self.base, path)
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// The name is refused or taken.
    pub fn create(&mut self, path: &[u8], block_size: Option<BlockSize>) -> Result<FileId, CommitError> {
        let file = loop {
            let file = FileId::from_raw(env::random_u64() >> 1);
            if file.raw() != 0 && !self.files.contains_key(&file) && self.base.file(file)?.is_none() {
                break file;
            }
        };
        self.names.add(&self.base, path, file)?;
        let block_size = block_size.unwrap_or(self.store.format.block_size);
        self.files.insert(file, FileEdit::new(path, block_size));
        Ok(file)
    }

    /// A file with its size and name as this transaction sees them; `None`: it does not exist.
    ///
    /// # Errors
    /// The index fails.
    pub fn file(&self, file: FileId) -> Result<Option<FileMeta>, CommitError> {
        match self.files.get(&file) {
            Some(edit) if edit.deleted => Ok(None),
            Some(edit) => {
                let base = edit.base.clone();
                let mut meta = base.unwrap_or_else(|| errors::meta_of_new(file, edit.block_size));
                meta.size = edit.size;
                Ok(Some(meta))
            }
            None => Ok(self.base.file(file)?.filter(|meta| meta.deleted.is_none())),
        }
    }

    fn edit(&mut self, file: FileId) -> Result<&mut FileEdit, CommitError> {
        if !self.files.contains_key(&file) {
            let known = self.base.file(file)?.filter(|meta| meta.deleted.is_none());
            let meta = known.ok_or(ReadError::NoSuchFile { file, at: self.base.at() })?;
            let path = self.base.path_of(&meta)?;
            self.files.insert(file, FileEdit::of(meta, path));
        }
        match self.files.get_mut(&file) {
            Some(edit) if !edit.deleted => Ok(edit),
            _ => Err(ReadError::NoSuchFile { file, at: self.base.at() }.into()),
        }
    }

    /// Removes a file.
    ///
    /// # Errors
    /// It does not exist.
    pub fn delete(&mut self, file: FileId) -> Result<(), CommitError> {
        let edit = self.edit(file)?;
        edit.deleted = true;
        let freed: usize = edit.staged.values().map(Vec::len).sum();
        edit.staged.clear();
        let path = edit.path.clone();
        self.staged_bytes -= freed;
        self.names.remove(&path);
        Ok(())
    }

    /// Gives a file another name; it keeps its identity and history.
    ///
    /// # Errors
    /// It does not exist, or the name is refused or taken.
    pub fn rename(&mut self, file: FileId, to: &[u8]) -> Result<(), CommitError> {
        let from = self.edit(file)?.path.clone();
        if from == to {
            return Ok(());
        }
        self.names.remove(&from);
        if let Err(error) = self.names.add(&self.base, to, file) {
            self.names.put_back(&from, file);
            return Err(error);
        }
        self.edit(file)?.path = to.to_vec();
        Ok(())
    }

    /// Any change of this file since base makes the commit fail, not only a meeting of blocks.
    ///
    /// # Errors
    /// It does not exist.
    pub fn set_strict(&mut self, file: FileId) -> Result<(), CommitError> {
        self.edit(file)?.strict = true;
        Ok(())
    }

    /// Says that bytes `range` were read: if another commit changes them first, this one conflicts.
    ///
    /// # Errors
    /// It does not exist.
    pub fn declare_read(&mut self, file: FileId, range: Range<u64>) -> Result<(), CommitError> {
        let edit = self.edit(file)?;
        if range.start < range.end {
            let first = edit.block_size.block_of(range.start).raw();
            let end = edit.block_size.block_of(range.end - 1).raw() + 1;
            edit.reads.push((first, end));
        }
        Ok(())
    }

    /// Moves a tag; `Some(Tid::MAX)` means this very commit, `None` deletes it.
    pub fn set_tag(&mut self, name: &TagName, target: Option<Tid>) {
        self.tags.insert(name.as_str().to_owned(), target);
    }

    /// Sets the size, bytes. Bytes beyond the end are zero: a shrink inside a block rewrites that block.
    ///
    /// # Errors
    /// It does not exist, or the size is more than 2^63 - 1.
    pub async fn set_size(&mut self, file: FileId, size: u64) -> Result<(), CommitError> {
        if size > FILE_BYTES_MAX {
            return Err(CommitError::FileTooLarge { size });
        }
        let edit = self.edit(file)?;
        let old = edit.size;
        if size >= old {
            edit.size = size;
            return Ok(());
        }
        let (block_size, end) = (edit.block_size.bytes(), edit.block_size.blocks_for(size).raw());
        let mut freed = 0;
        edit.staged.retain(|block, data| {
            let keep = *block < end;
            freed += if keep { 0 } else { data.len() };
            keep
        });
        // What lay there must not come back if the file grows again before the commit.
        let gone = edit.block_size.blocks_for(old).raw() - end;
        edit.extents.insert(end, gone, Placed::At(Place::Hole));
        self.staged_bytes -= freed;
        let inside = size % block_size;
        if inside > 0 {
            let block = end - 1;
            let mut data = self.block_now(file, block).await?;
            if data.iter().skip(inside as usize).any(|byte| *byte != 0) {
                data.truncate(inside as usize);
                self.stage(file, block, data).await?;
            }
        }
        self.edit(file)?.size = size;
        Ok(())
    }

    /// Writes `bytes` to `range` of a file, which grows if need be.
    ///
    /// # Errors
    /// It does not exist, lengths differ, or the storage fails.
    pub async fn write(&mut self, file: FileId, range: Range<u64>, bytes: &[u8]) -> Result<(), CommitError> {
        self.write_from(file, range, bytes, None).await
    }

    /// The same with bytes that may be kept until they are written out: whole blocks that begin at a multiple of 4096 in
    /// memory are not copied. Others are: copies are written past the page cache, which is worth more.
    ///
    /// # Errors
    /// As [`Transaction::write`].
    pub async fn write_shared(
        &mut self,
        file: FileId,
        range: Range<u64>,
        bytes: Bytes,
    ) -> Result<(), CommitError> {
        self.write_from(file, range, &bytes, Some(&bytes)).await
    }

    async fn write_from(
        &mut self,
        file: FileId,
        range: Range<u64>,
        bytes: &[u8],
        shared: Option<&Bytes>,
    ) -> Result<(), CommitError> {
        let len = range.end.checked_sub(range.start);
        if len != Some(bytes.len() as u64) || range.end > FILE_BYTES_MAX {
            return Err(CommitError::BadRange {
                start: range.start,
                end: range.end,
                len: bytes.len() as u64,
            });
        }
        let edit = self.edit(file)?;
        let block_size = edit.block_size;
        let mut done = 0usize;
        while done < bytes.len() {
            let at = range.start + done as u64;
            let block = block_size.block_of(at).raw();
            let skip = (at % block_size.bytes()) as usize;
            let len = (block_size.bytes() as usize - skip).min(bytes.len() - done);
            let part = &bytes[done..done + len];
            if len as u64 == block_size.bytes() {
                self.unstage(file, block)?;
                let shared = shared.map(|shared| shared.slice(done..done + len));
                self.place(file, block, part, shared).await?;
            } else {
                let mut data = self.block_now(file, block).await?;
                data.resize(data.len().max(skip + len), 0);
                data[skip..skip + len].copy_from_slice(part);
                self.stage(file, block, data).await?;
            }
            done += len;
        }
        let edit = self.edit(file)?;
        edit.size = edit.size.max(range.end);
        Ok(())
    }

    /// Writes full blocks from `first` on, back to back in `data`, with their hashes. The caller sets the size.
    ///
    /// # Errors
    /// It does not exist, lengths do not fit, or the storage fails.
    pub async fn put_full(
        &mut self,
        file: FileId,
        first: BlockIndex,
        data: Bytes,
        hashes: &[BlockHash],
    ) -> Result<(), CommitError> {
        let block_size = self.edit(file)?.block_size;
        let bytes = block_size.bytes();
        if data.len() as u64 != hashes.len() as u64 * bytes {
            return Err(CommitError::BadRange { start: first.raw(), end: 0, len: data.len() as u64 });
        }
        if self.store.format.codec == Codec::Zstd {
            for (index, hash) in hashes.iter().enumerate() {
                let at = index * bytes as usize;
                let block = data.slice(at..at + bytes as usize);
                self.put_packable(file, first.raw() + index as u64, block, *hash).await?;
            }
            return Ok(());
        }
        self.put_raw(file, first.raw(), data, block_size, Some(hashes)).await
    }

    /// Full blocks as they are, back to back.
    async fn put_raw(
        &mut self,
        file: FileId,
        first: u64,
        data: Bytes,
        block_size: BlockSize,
        hashes: Option<&[BlockHash]>,
    ) -> Result<(), CommitError> {
        let count = data.len() as u64 / block_size.bytes();
        for block in first..first + count {
            self.unstage(file, block)?;
        }
        let place = self.sink.put_full(data, block_size, hashes).await?;
        self.settle();
        self.edit(file)?.extents.insert(first, count, Placed::At(place));
        Ok(())
    }

    /// Writes a block of which only the first bytes are not zero.
    ///
    /// # Errors
    /// As [`Transaction::put_full`].
    pub async fn put_partial(
        &mut self,
        file: FileId,
        block: BlockIndex,
        data: Bytes,
        hash: BlockHash,
    ) -> Result<(), CommitError> {
        self.put_packable(file, block.raw(), data, hash).await
    }

    /// Makes blocks zero.
    ///
    /// # Errors
    /// The file does not exist.
    pub fn put_hole(
        &mut self,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<(), CommitError> {
        let edit = self.edit(file)?;
        let end = first.raw().saturating_add(count.raw());
        let staged: Vec<u64> = edit.staged.range(first.raw()..end).map(|(block, _)| *block).collect();
        edit.extents.insert(first.raw(), end - first.raw(), Placed::At(Place::Hole));
        for block in staged {
            self.unstage(file, block)?;
        }
        Ok(())
    }

    /// Stores one whole block, of which bytes behind `data` are zero: as a hole, as it is, or without its zero
    /// tail.
    /// `shared`: the same bytes, to be kept instead of a copy.
    async fn place(
        &mut self,
        file: FileId,
        block: u64,
        data: &[u8],
        shared: Option<Bytes>,
    ) -> Result<(), CommitError> {
        let block_size = self.edit(file)?.block_size;
        let used = used_len(data);
        if used == 0 {
            return self.put_hole(file, BlockIndex::new(block), BlockCount::new(1));
        }
        if used as u64 > block_size.bytes() / 2 {
            let kept = shared.filter(|shared| (shared.as_ptr() as usize).is_multiple_of(BUFFER_ALIGN));
            let whole = kept.unwrap_or_else(|| self.copy_of(&data[..used], block_size));
            if self.store.format.codec == Codec::Zstd {
                let hash = block_hash(&whole);
                return self.put_packable(file, block, whole, hash).await;
            }
            return self.put_raw(file, block, whole, block_size, None).await;
        }
        let (data, hash) = (Bytes::copy_from_slice(&data[..used]), block_hash(data));
        self.put_packable(file, block, data, hash).await
    }

    /// A whole block that lives until it is written out: `used` and then zeros.
    fn copy_of(&self, used: &[u8], block_size: BlockSize) -> Bytes {
        let block_size = block_size.bytes() as usize;
        if block_size < POOLED_BLOCK_BYTES_MIN {
            let mut whole = Vec::with_capacity(block_size);
            whole.extend_from_slice(used);
            whole.resize(block_size, 0);
            return Bytes::from(whole);
        }
        let mut whole = self.copies.0.take(block_size);
        let (data, tail) = whole.split_at_mut(used.len());
        data.copy_from_slice(used);
        tail.fill(0);
        Bytes::from_owner(whole)
    }

    async fn put_packable(
        &mut self,
        file: FileId,
        block: u64,
        data: Bytes,
        hash: BlockHash,
    ) -> Result<(), CommitError> {
        self.unstage(file, block)?;
        let mut codec = Codec::Raw;
        let mut data = data;
        if self.store.format.codec == Codec::Zstd
            && let Ok(packed) = zstd::bulk::compress(&data, 3)
            && packed.len() < data.len() - data.len() / 8
        {
            codec = Codec::Zstd;
            data = Bytes::from(packed);
        }
        let slot = self.sink.put_packed((file, block), data, codec, hash).await?;
        self.edit(file)?.extents.insert(block, 1, Placed::Slot(slot));
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        for settled in self.sink.take_settled() {
            if let Some(edit) = self.files.get_mut(&settled.file) {
                edit.extents.settle(settled.block, settled.slot, settled.place);
            }
        }
    }

    fn unstage(&mut self, file: FileId, block: u64) -> Result<(), CommitError> {
        if let Some(data) = self.edit(file)?.staged.remove(&block) {
            self.staged_bytes -= data.len();
        }
        Ok(())
    }

    async fn stage(&mut self, file: FileId, block: u64, data: Vec<u8>) -> Result<(), CommitError> {
        self.staged_bytes += data.len();
        let before = self.edit(file)?.staged.insert(block, data);
        self.staged_bytes -= before.map_or(0, |data| data.len());
        if self.staged_bytes > STAGED_BYTES_MAX {
            self.write_staged().await?;
        }
        Ok(())
    }

    async fn write_staged(&mut self) -> Result<(), CommitError> {
        let files: Vec<FileId> = self.files.keys().copied().collect();
        for file in files {
            while let Some((block, data)) = self.files.get_mut(&file).and_then(|e| e.staged.pop_first()) {
                self.staged_bytes -= data.len();
                self.place(file, block, &data, None).await?;
            }
        }
        Ok(())
    }

    /// Bytes of one block as this transaction sees them, at most a block; what lacks is zero. Small files in
    /// large blocks must not pay for whole blocks.
    async fn block_now(&mut self, file: FileId, block: u64) -> Result<Vec<u8>, CommitError> {
        let edit = self.edit(file)?;
        if let Some(data) = edit.staged.get(&block) {
            return Ok(data.clone());
        }
        let block_size = edit.block_size.bytes() as usize;
        if edit.extents.get(block).is_some() {
            // Written before and no longer in memory: its pack is completed, so that it can be read back.
            self.sink.complete().await?;
            self.settle();
            return match self.edit(file)?.extents.get(block) {
                Some(Placed::At(Place::Stored { pack, offset, len, codec })) => {
                    self.read_back(pack, offset..offset + u64::from(len), codec, block_size).await
                }
                _ => Ok(Vec::new()),
            };
        }
        let Some(meta) = self.edit(file)?.base.clone() else { return Ok(Vec::new()) };
        read_block(&self.base, &meta, block).await
    }

    async fn read_back(
        &self,
        pack: u32,
        range: Range<u64>,
        codec: Codec,
        block_size: usize,
    ) -> Result<Vec<u8>, CommitError> {
        let missing = || ReadError::Missing { object: format!("pack {pack} of this commit") };
        let object = self.sink.object(pack).ok_or_else(missing)?;
        let stored = self.store.objects.get_range(&object, range.start, range.end).await?;
        Ok(match codec {
            Codec::Raw => stored.to_vec(),
            Codec::Zstd => zstd::bulk::decompress(&stored, block_size).map_err(|_| missing())?,
        })
    }

    fn write_set(&self) -> WriteSet {
        WriteSet {
            files: self.files.iter().map(|(file, edit)| (*file, edit.write_set())).collect(),
            tags: self.tags.keys().cloned().collect(),
        }
    }
}

/// One block of a file as of `txn`; what lacks to a block is zero.
async fn read_block(txn: &ReadTxn, meta: &FileMeta, block: u64) -> Result<Vec<u8>, CommitError> {
    let size = meta.block_size.bytes() as usize;
    let runs = txn.blocks(meta.file, BlockIndex::new(block), BlockCount::new(1))?;
    let Some(BlockData::Stored { pack, offset, len, codec }) = runs.first().map(|run| run.data) else {
        return Ok(Vec::new());
    };
    let source = match codec {
        Codec::Raw => PieceSource::Raw { pack, offset },
        Codec::Zstd => PieceSource::Zstd { pack, offset, stored: len, block: size as u32, skip: 0 },
    };
    let stored = if codec == Codec::Raw { len as usize } else { size };
    let buffer = BufferPool::new(1, 1).take(stored);
    let read = txn.store().read(vec![Piece { at: 0, len: stored, source }], buffer).wait().await?;
    let mut data = read.to_vec();
    // Bytes beyond the size are zero by definition, whatever is stored there.
    data.truncate(meta.size.saturating_sub(block * size as u64).min(size as u64) as usize);
    Ok(data)
}
