//! The layout of a pack: immutable bytes of the blocks that one commit wrote.
//!
//! Full raw blocks lie in the order in which they were pushed, each at an offset aligned to min(block size,
//! 2 MiB), so that a pack can be mapped in place with huge pages. Partial last blocks and compressed blocks
//! follow, aligned to 8. Holes and zero tails are not stored. Behind the data, aligned to 8, stands the footer:
//! one crc32c for each 64 KiB of data, then for each block its offset and 128-bit BLAKE3. Numbers are
//! little-endian. Invariant: [`PackBuilder`] emits exactly the bytes that its `PackRef` describes.

use bytes::Bytes;
use revfs_protocol::BlockSize;

use super::record::PackRef;
use super::{CHUNK_BYTES, Crc32c, crc32c};

/// A pack takes no more blocks once it has this many bytes.
pub const PACK_DATA_BYTES_MAX: u64 = 1 << 30;
/// No pack object is larger, with its footer.
pub const PACK_OBJECT_BYTES_MAX: u64 = 1 << 32;
/// Largest alignment of a block: the size of a huge page.
const ALIGN_MAX: u64 = 2 << 20;
/// Alignment of partial and compressed blocks, and of the footer.
const PACKED_ALIGN: u64 = 8;
/// Bytes of one entry of the hashes.
pub const HASH_ENTRY_BYTES: usize = 24;

static ZEROS: [u8; ALIGN_MAX as usize] = [0; ALIGN_MAX as usize];

/// 128 bits of BLAKE3 over a block's stored form before encoding (a raw block without its zero tail).
pub type BlockHash = [u8; 16];

/// Hash of the raw bytes of a block. Zero tails are cut first, so equal blocks have equal hashes however
/// they were stored.
pub fn block_hash(raw: &[u8]) -> BlockHash {
    let hash = blake3::hash(&raw[..used_len(raw)]);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Blocks that lie in a pack already and whose hashes are owed to its footer: so that whoever writes them can compute
/// these, and not the caller of the transaction.
#[derive(Debug, Default)]
pub struct Unhashed(Vec<(usize, Bytes)>);

impl Unhashed {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hashes, for [`PackBuilder::set_hashes`].
    pub fn hash(self) -> Hashed {
        Hashed(self.0.into_iter().map(|(index, block)| (index, block_hash(&block))).collect())
    }
}

/// Hashes and whose they are.
#[derive(Debug, Default)]
pub struct Hashed(Vec<(usize, BlockHash)>);

/// Length without the zero tail.
pub fn used_len(raw: &[u8]) -> usize {
    // Words first: most blocks end in data, and a hole is all words.
    let mut end = raw.len();
    while end >= 64 && raw[end - 64..end] == ZEROS[..64] {
        end -= 64;
    }
    while end > 0 && raw[end - 1] == 0 {
        end -= 1;
    }
    end
}

/// Lays blocks out and says which bytes to write, in order.
#[derive(Debug, Default)]
pub struct PackBuilder {
    data_len: u64,
    parts: Vec<Bytes>,
    parts_len: usize,
    crcs: Vec<u8>,
    chunk: Crc32c,
    chunk_len: u64,
    hashes: Vec<(u64, BlockHash)>,
    unhashed: Unhashed,
    /// Hashes that were handed out to be computed and did not come back yet.
    owed: usize,
}

impl PackBuilder {
    /// Bytes of data so far.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Blocks so far.
    pub fn blocks(&self) -> usize {
        self.hashes.len()
    }

    /// Bytes that wait to be taken.
    pub fn pending(&self) -> usize {
        self.parts_len
    }

    /// Adds full raw blocks, back to back in `data`; answers the offset of the first. `hashes`: one for each, or `None`
    /// to compute them later.
    pub fn push_full(&mut self, data: Bytes, block_size: BlockSize, hashes: Option<&[BlockHash]>) -> u64 {
        let step = block_size.bytes();
        debug_assert_eq!(data.len() as u64 % step, 0);
        debug_assert!(hashes.is_none_or(|hashes| hashes.len() as u64 * step == data.len() as u64));
        self.align(step.min(ALIGN_MAX));
        let offset = self.data_len;
        for index in 0..data.len() / step as usize {
            let hash = hashes.and_then(|hashes| hashes.get(index)).copied();
            if hash.is_none() {
                let block = data.slice(index * step as usize..(index + 1) * step as usize);
                self.unhashed.0.push((self.hashes.len(), block));
            }
            self.hashes.push((offset + index as u64 * step, hash.unwrap_or_default()));
        }
        self.push(data);
        offset
    }

    /// Adds a partial or compressed block; answers its offset.
    pub fn push_packed(&mut self, data: Bytes, hash: BlockHash) -> u64 {
        self.align(PACKED_ALIGN);
        let offset = self.data_len;
        self.hashes.push((offset, hash));
        self.push(data);
        offset
    }

    /// Takes what is to be written next.
    pub fn take_parts(&mut self) -> Vec<Bytes> {
        self.parts_len = 0;
        std::mem::take(&mut self.parts)
    }

    /// Takes the blocks whose hashes are still to be computed. They must come back before the end.
    pub fn take_unhashed(&mut self) -> Unhashed {
        self.owed += self.unhashed.0.len();
        std::mem::take(&mut self.unhashed)
    }

    /// Brings hashes of blocks that were taken.
    pub fn set_hashes(&mut self, hashed: Hashed) {
        for (index, hash) in hashed.0 {
            if let Some(entry) = self.hashes.get_mut(index) {
                entry.1 = hash;
                self.owed -= 1;
            }
        }
    }

    /// Ends the pack: its footer is added to the parts. All hashes that were taken came back.
    pub fn finish(&mut self, uuid: Option<uuid::Uuid>) -> PackRef {
        let rest = self.take_unhashed().hash();
        self.set_hashes(rest);
        debug_assert_eq!(self.owed, 0);
        let data_len = self.data_len;
        // Checksums cover the data, not the padding before the footer.
        if self.chunk_len > 0 {
            self.close_chunk();
        }
        let crcs_offset = data_len.next_multiple_of(PACKED_ALIGN);
        let padding = Bytes::from_static(&ZEROS).slice(..(crcs_offset - data_len) as usize);
        self.parts_len += padding.len();
        self.parts.push(padding);
        let crcs = std::mem::take(&mut self.crcs);
        let mut hashes = Vec::with_capacity(self.hashes.len() * HASH_ENTRY_BYTES);
        for (offset, hash) in &self.hashes {
            hashes.extend_from_slice(&offset.to_le_bytes());
            hashes.extend_from_slice(hash);
        }
        let pack = PackRef {
            uuid,
            data_len,
            crcs_offset,
            crcs_crc: crc32c(&crcs),
            hashes_offset: crcs_offset + crcs.len() as u64,
            hashes_count: self.hashes.len() as u64,
            hashes_crc: crc32c(&hashes),
        };
        for part in [crcs, hashes] {
            self.parts_len += part.len();
            self.parts.push(Bytes::from(part));
        }
        pack
    }

    fn align(&mut self, to: u64) {
        let padding = self.data_len.next_multiple_of(to) - self.data_len;
        if padding > 0 {
            self.push(Bytes::from_static(&ZEROS).slice(..padding as usize));
        }
    }

    fn push(&mut self, data: Bytes) {
        let mut rest = &data[..];
        while !rest.is_empty() {
            let room = (CHUNK_BYTES - self.chunk_len) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.chunk.update(now);
            self.chunk_len += now.len() as u64;
            if self.chunk_len == CHUNK_BYTES {
                self.close_chunk();
            }
            rest = later;
        }
        self.data_len += data.len() as u64;
        self.parts_len += data.len();
        self.parts.push(data);
    }

    fn close_chunk(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        self.crcs.extend_from_slice(&chunk.finish().to_le_bytes());
        self.chunk_len = 0;
    }
}

/// Finds the hash of the block at `offset` in the hashes of a footer.
pub fn find_hash(hashes: &[u8], offset: u64) -> Option<BlockHash> {
    let count = hashes.len() / HASH_ENTRY_BYTES;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let entry = hashes.get(middle * HASH_ENTRY_BYTES..(middle + 1) * HASH_ENTRY_BYTES)?;
        let here = u64::from_le_bytes(*entry.first_chunk()?);
        match here.cmp(&offset) {
            std::cmp::Ordering::Equal => return entry.last_chunk().copied(),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(builder: &mut PackBuilder) -> Vec<u8> {
        builder.take_parts().concat()
    }

    #[test]
    fn full_blocks_keep_the_alignment_that_huge_pages_need() {
        let mut builder = PackBuilder::default();
        let small = BlockSize::new(4096).unwrap();
        let large = BlockSize::new(2 << 20).unwrap();
        assert_eq!(builder.push_full(Bytes::from(vec![1; 4096]), small, Some(&[[1; 16]])), 0);
        assert_eq!(builder.push_full(Bytes::from(vec![2; 2 << 20]), large, Some(&[[2; 16]])), 2 << 20);
        assert_eq!(builder.push_packed(Bytes::from_static(b"abc"), [3; 16]), 4 << 20);
        assert_eq!(builder.push_packed(Bytes::from_static(b"d"), [4; 16]), (4 << 20) + 8);
    }

    #[test]
    fn the_footer_describes_the_bytes() {
        let mut builder = PackBuilder::default();
        let data: Vec<u8> = (0..200_000u32).map(|n| n as u8 | 1).collect();
        builder.push_packed(Bytes::from(data.clone()), [7; 16]);
        let pack = builder.finish(None);
        let bytes = bytes_of(&mut builder);
        assert_eq!(bytes.len() as u64, pack.total_len());
        assert_eq!(pack.data_len, 200_000);
        let crcs = &bytes[pack.crcs_offset as usize..pack.hashes_offset as usize];
        assert_eq!(crcs.len() as u64, pack.crcs_count() * 4);
        for (chunk, crc) in bytes[..200_000].chunks(CHUNK_BYTES as usize).zip(crcs.chunks(4)) {
            assert_eq!(crc32c(chunk).to_le_bytes(), crc);
        }
        let hashes = &bytes[pack.hashes_offset as usize..];
        assert_eq!(find_hash(hashes, 0), Some([7; 16]));
        assert_eq!(find_hash(hashes, 8), None);
    }

    #[test]
    fn hashes_may_come_later_in_any_order_or_at_the_end() {
        let size = BlockSize::new(4096).unwrap();
        let blocks: Vec<Vec<u8>> = (1..8u8).map(|byte| vec![byte; 4096]).collect();
        let mut builder = PackBuilder::default();
        builder.push_full(Bytes::from(blocks[..2].concat()), size, None);
        let early = builder.take_unhashed();
        builder.push_packed(Bytes::from_static(b"known"), [9; 16]);
        builder.push_full(Bytes::from(blocks[2..4].concat()), size, None);
        let late = builder.take_unhashed();
        builder.push_full(Bytes::from(blocks[4..].concat()), size, None);
        builder.set_hashes(late.hash());
        builder.set_hashes(early.hash());
        let pack = builder.finish(None);
        let bytes = bytes_of(&mut builder);
        let hashes = &bytes[pack.hashes_offset as usize..];
        assert_eq!(find_hash(hashes, 8192), Some([9; 16]));
        for (number, block) in blocks.iter().enumerate() {
            let offset = if number < 2 { number } else { number + 1 } * 4096;
            assert_eq!(find_hash(hashes, offset as u64), Some(block_hash(block)), "{number}");
        }
    }

    #[test]
    fn a_zero_tail_does_not_count() {
        assert_eq!(used_len(&[0; 1000]), 0);
        assert_eq!(used_len(&[1, 0, 0]), 1);
        let mut block = vec![0; 4096];
        block[77] = 5;
        assert_eq!(used_len(&block), 78);
        assert_eq!(block_hash(&block), block_hash(&block[..100]));
    }
}
