//! The bytes of blocks, and where the blocks of a file are.
//!
//! Invariant: a block is exactly as long as the file says; what its object lacks is zero, and an object that has more
//! is an error, never cut. The revision of a block that is told here is that of the newest record on the way to it: nothing of
//! the block changed after it, and the bytes are the same at any state from it on.

use revfs_protocol::{BlockCount, BlockIndex, Tid};

use super::Oid;
use super::error::ZodbError;
use super::nodes::{FileNode, Nodes};
use super::objects::{self, Class, Object, PlainBytes};
use super::storage::Peeked;
use crate::store::{BlockData, BlockRun, ReadBuffer};

impl Nodes {
    /// Size of a file, bytes.
    ///
    /// # Errors
    /// See [`ZodbError`]; so for all below.
    pub fn size(&self, oid: Oid, file: &FileNode, at: Tid) -> Result<u64, ZodbError> {
        let last = self.last_key(file.tree, oid, Class::LongTree, at)?;
        size_of_keys(last, file).ok_or(ZodbError::Structure { oid, at, what: "it is larger than 2^63 bytes" })
    }

    /// Where blocks `[first, first + count)` of a file are, in order and without gaps.
    pub fn runs(
        &self,
        oid: Oid,
        file: &FileNode,
        (first, count): (BlockIndex, BlockCount),
        at: Tid,
    ) -> Result<Vec<BlockRun>, ZodbError> {
        let end = first.raw().saturating_add(count.raw());
        let mut runs = Runs { next: first.raw(), rev: file.serial, runs: Vec::new() };
        let keys = key_of(first.raw())..=key_of(end.saturating_sub(1));
        self.walk((file.tree, oid, file.serial), Class::LongTree, at, keys, &mut |leaf| {
            // What lies between the keys of two leaves is under one of them.
            runs.rev = runs.rev.max(leaf.rev);
            for (key, block) in leaf.entries {
                let key = u64::try_from(*key).unwrap_or(0);
                runs.hole(key);
                let own = self.storage().peek(block.oid, at)?.map_or(Tid::ZERO, |peeked| peeked.serial);
                runs.push(1, leaf.rev.max(own), BlockData::Object { oid: block.oid, at });
                runs.rev = leaf.rev;
            }
            Ok(())
        })?;
        runs.hole(end);
        Ok(runs.runs)
    }

    /// Fills `into` with the bytes of a block from `skip` on.
    pub fn read_block(
        &self,
        oid: Oid,
        at: Tid,
        (skip, block_size): (usize, usize),
        into: &mut [u8],
    ) -> Result<(), ZodbError> {
        if let Some(bytes) = self.plain(oid, at, (skip, block_size), into.len())? {
            copy_padded(&bytes, into);
            return Ok(());
        }
        let what = "it does not exist, and a file has it as a block; check the database with ZODB's fsrefs";
        let loaded = self.storage().load(oid, at)?.ok_or(ZodbError::Structure { oid, at, what })?;
        let serial = loaded.serial;
        let object = objects::decode(&loaded.data);
        match object.map_err(|source| ZodbError::Object { oid, serial, source })? {
            Object::Blk0(bytes) if bytes.len() <= block_size => {
                copy_padded(bytes.get(skip..).unwrap_or_default(), into);
                Ok(())
            }
            Object::Blk0(_) => {
                Err(ZodbError::Structure { oid, at, what: "it has more bytes than a block of its file" })
            }
            Object::Blk1 { tree } => self.read_chunks((oid, tree, serial), at, (skip, block_size), into),
            other => {
                let (found, expected) = (other.class(), "a block");
                Err(ZodbError::WrongClass { oid, serial, found, expected, by: oid })
            }
        }
    }

    /// At most `len` bytes from `skip` on of a block whose record has them in one piece, read without the rest of it; what
    /// lacks is zero. `None` if it is another one.
    pub fn plain(
        &self,
        oid: Oid,
        at: Tid,
        (skip, block_size): (usize, usize),
        len: usize,
    ) -> Result<Option<ReadBuffer>, ZodbError> {
        let mut part = |peeked: &Peeked| {
            let (class, bytes) = objects::plain_bytes(&peeked.start, peeked.len)?;
            if class != Class::Blk0 || bytes.end - bytes.start > block_size as u64 {
                return None;
            }
            let from = (bytes.start + skip as u64).min(bytes.end);
            Some(from..bytes.end.min(from + len as u64))
        };
        Ok(self.storage().read_part(oid, at, &mut part)?)
    }

    fn read_chunks(
        &self,
        (oid, tree, serial): (Oid, Oid, Tid),
        at: Tid,
        (skip, block_size): (usize, usize),
        into: &mut [u8],
    ) -> Result<(), ZodbError> {
        let wrong = |what| ZodbError::Structure { oid, at, what };
        // By offset: walks go in the order of keys.
        let mut chunks: Vec<(usize, Oid)> = Vec::new();
        self.walk((tree, oid, serial), Class::IntTree, at, i64::MIN..=i64::MAX, &mut |leaf| {
            for (key, chunk) in leaf.entries {
                let offset = usize::try_from(*key).ok().filter(|offset| *offset < block_size);
                let offset = offset.ok_or_else(|| wrong("a chunk of it lies outside of the block"))?;
                if chunks.last().is_some_and(|(last, _)| *last >= offset) {
                    return Err(wrong("its chunks are not in order"));
                }
                chunks.push((offset, chunk.oid));
            }
            Ok(())
        })?;
        let (from, to) = (skip, skip + into.len());
        // The last one before may reach into what is asked for.
        let first = chunks.partition_point(|(offset, _)| *offset <= from).saturating_sub(1);
        let behind = chunks.partition_point(|(offset, _)| *offset < to);
        let wanted = chunks.get(first..behind).unwrap_or_default();
        let mut reader = PlainBytes::default();
        let oids: Vec<Oid> = wanted.iter().map(|(_, chunk)| *chunk).collect();
        // What each of them filled.
        let mut filled = vec![from..from; wanted.len()];
        let mut failed = None;
        self.storage().load_each(&oids, at, &mut |number, loaded| {
            let Some((offset, chunk)) = wanted.get(number).copied() else { return };
            let end = chunks.get(first + number + 1).map_or(block_size, |(next, _)| *next);
            let copied = match loaded {
                Some(loaded) => copy_chunk(&mut reader, (chunk, oid), loaded, |bytes| {
                    if offset + bytes.len() > end {
                        return Err(wrong("its chunks overlap, or go beyond the block"));
                    }
                    let (start, stop) = (offset.max(from), (offset + bytes.len()).min(to));
                    if start < stop {
                        into[start - from..stop - from]
                            .copy_from_slice(&bytes[start - offset..stop - offset]);
                        filled[number] = start..stop;
                    }
                    Ok(())
                }),
                None => Err(ZodbError::Missing { oid: chunk, at, by: oid }),
            };
            failed = failed.take().or(copied.err());
        })?;
        // Only what lies between them: to clear all first was measured to take a quarter of the time of the copying.
        let mut done = from;
        for part in filled.iter().filter(|part| !part.is_empty()) {
            into[done - from..part.start - from].fill(0);
            done = part.end;
        }
        into[done - from..].fill(0);
        failed.map_or(Ok(()), Err)
    }
}

/// Gives the bytes of a chunk to `copy`.
fn copy_chunk(
    reader: &mut PlainBytes,
    (chunk, by): (Oid, Oid),
    (serial, data): (Tid, &[u8]),
    copy: impl FnOnce(&[u8]) -> Result<(), ZodbError>,
) -> Result<(), ZodbError> {
    if let Some((Class::Data, bytes)) = reader.find(data, data.len() as u64) {
        let bytes = usize::try_from(bytes.start).ok().zip(usize::try_from(bytes.end).ok());
        if let Some(bytes) = bytes.and_then(|(start, end)| data.get(start..end)) {
            return copy(bytes);
        }
    }
    match objects::decode(data).map_err(|source| ZodbError::Object { oid: chunk, serial, source })? {
        Object::Data(bytes) => copy(&bytes),
        other => {
            let (found, expected) = (other.class(), "a chunk");
            Err(ZodbError::WrongClass { oid: chunk, serial, found, expected, by })
        }
    }
}

/// The size that a file has whose last block is this one.
pub fn size_of_keys(last: Option<i64>, file: &FileNode) -> Option<u64> {
    let blocks = last.and_then(|key| u64::try_from(key).ok()).map_or(Some(0), |key| key.checked_add(1))?;
    blocks.checked_mul(file.block_size.bytes()).filter(|size| *size <= i64::MAX as u64)
}

fn key_of(block: u64) -> i64 {
    i64::try_from(block).unwrap_or(i64::MAX)
}

fn copy_padded(bytes: &[u8], into: &mut [u8]) {
    let len = bytes.len().min(into.len());
    let (there, rest) = into.split_at_mut(len);
    there.copy_from_slice(&bytes[..len]);
    rest.fill(0);
}

/// Runs that follow each other.
struct Runs {
    next: u64,
    /// Of a hole that begins at `next`.
    rev: Tid,
    runs: Vec<BlockRun>,
}

impl Runs {
    fn hole(&mut self, until: u64) {
        if let Some(count) = until.checked_sub(self.next).filter(|count| *count > 0) {
            self.push(count, self.rev, BlockData::Hole);
        }
    }

    fn push(&mut self, count: u64, rev: Tid, data: BlockData) {
        self.runs.push(BlockRun { first: BlockIndex::new(self.next), count, rev, data });
        self.next += count;
    }
}
