//! Large databases, made quickly: a file of blocks, in a tree as BTrees leaves it when keys are appended one by one.

use std::io;

use crate::records::{self, Class, Kind, Ref};
use crate::{Write, Writer};

/// Entries of a leaf that was split in halves.
const LEAF_ENTRIES: usize = 30;
/// Children of a node that was split in halves.
const NODE_CHILDREN: usize = 250;
/// Bytes of blocks in a transaction.
const TRANSACTION_BYTES: u64 = 64 << 20;
/// Objects in a transaction, if they are small.
const TRANSACTION_OBJECTS: u64 = 100_000;

/// How the blocks of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// One object each, with this many bytes; at most the block size.
    Whole(u64),
    /// In chunks of this many bytes.
    Chunks(u64),
}

/// A file to make.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes in a block.
    pub block_size: u64,
    /// Blocks from the first on, without a hole.
    pub blocks: u64,
    /// How they are stored.
    pub stored: Blocks,
    /// Of the bytes in them.
    pub seed: u64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The file.
    pub file: u64,
    /// Its tree.
    pub tree: u64,
    /// Of each block its object.
    pub blocks: Vec<u64>,
    /// Leaves of the tree, with the first key of each.
    pub leaves: Vec<(i64, u64)>,
    /// The first id that no object has.
    pub next_oid: u64,
}

/// Bytes that no compression makes smaller; the last one is not zero.
pub fn noise(seed: u64, number: u64, len: u64) -> Vec<u8> {
    let mut state =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_add(1).wrapping_mul(0xd134_2543_de82_ef95);
    state |= 1;
    let mut bytes = Vec::with_capacity(len as usize + 8);
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len as usize);
    if let Some(last) = bytes.last_mut() {
        *last |= 1;
    }
    bytes
}

/// The bytes of a block of a file that [`file()`] made.
pub fn block_bytes(shape: &Shape, block: u64) -> Vec<u8> {
    let stored = match shape.stored {
        Blocks::Whole(len) => len.min(shape.block_size),
        Blocks::Chunks(_) => shape.block_size,
    };
    let mut bytes = noise(shape.seed, block, stored);
    bytes.resize(shape.block_size as usize, 0);
    bytes
}

/// Gathers objects, and commits them when they are many.
struct Filling<'w> {
    writer: &'w mut Writer,
    tid: &'w mut dyn FnMut() -> u64,
    next_oid: u64,
    writes: Vec<(u64, Write)>,
    bytes: u64,
}

impl Filling<'_> {
    fn oid(&mut self) -> u64 {
        self.next_oid += 1;
        self.next_oid - 1
    }

    fn add(&mut self, oid: u64, data: Vec<u8>) -> io::Result<()> {
        self.bytes += data.len() as u64;
        self.writes.push((oid, Write::Data(data)));
        match self.bytes > TRANSACTION_BYTES || self.writes.len() as u64 > TRANSACTION_OBJECTS {
            true => self.commit(),
            false => Ok(()),
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        let writes = std::mem::take(&mut self.writes);
        self.bytes = 0;
        self.writer.commit((self.tid)(), &writes).map(|_| ())
    }

    /// A tree of these entries at `root`; answers its leaves with the first key of each.
    fn tree(&mut self, kind: Kind, root: u64, entries: &[(i64, Ref)]) -> io::Result<Vec<(i64, u64)>> {
        if entries.is_empty() {
            self.add(root, records::empty_tree(kind))?;
            return Ok(Vec::new());
        }
        if entries.len() <= LEAF_ENTRIES {
            self.add(root, records::inlined_tree(kind, entries))?;
            return Ok(Vec::new());
        }
        let parts: Vec<&[(i64, Ref)]> = entries.chunks(LEAF_ENTRIES).collect();
        let leaves: Vec<(i64, u64)> = parts.iter().map(|part| (part[0].0, self.oid())).collect();
        for (number, part) in parts.iter().enumerate() {
            let next = leaves.get(number + 1).map(|(_, oid)| *oid);
            self.add(leaves[number].1, records::bucket(kind, part, next))?;
        }
        let leaf = |(key, oid): &(i64, u64)| (*key, Ref { oid: *oid, class: Class::Bucket(kind) }, *oid);
        // Each with its first leaf.
        let mut level: Vec<(i64, Ref, u64)> = leaves.iter().map(leaf).collect();
        while level.len() > NODE_CHILDREN {
            let mut above = Vec::new();
            for part in level.chunks(NODE_CHILDREN) {
                let (key, _, first) = part[0];
                let children: Vec<(i64, Ref)> = part.iter().map(|(key, child, _)| (*key, *child)).collect();
                let oid = self.oid();
                self.add(oid, records::tree(kind, &children, first))?;
                above.push((key, Ref { oid, class: Class::Tree(kind) }, first));
            }
            level = above;
        }
        let children: Vec<(i64, Ref)> = level.iter().map(|(key, child, _)| (*key, *child)).collect();
        self.add(root, records::tree(kind, &children, level[0].2))?;
        Ok(leaves)
    }

    fn block(&mut self, shape: &Shape, block: u64) -> io::Result<Ref> {
        let oid = self.oid();
        let Blocks::Chunks(chunk) = shape.stored else {
            let Blocks::Whole(len) = shape.stored else { unreachable!("there are two kinds") };
            self.add(oid, records::blk0(&noise(shape.seed, block, len.min(shape.block_size))))?;
            return Ok(Ref { oid, class: Class::Blk0 });
        };
        let tree = self.oid();
        self.add(oid, records::blk1(tree))?;
        let bytes = block_bytes(shape, block);
        let mut chunks = Vec::new();
        for (number, part) in bytes.chunks(chunk as usize).enumerate() {
            let oid = self.oid();
            self.add(oid, records::data(part))?;
            chunks.push((number as i64 * chunk as i64, Ref { oid, class: Class::Data }));
        }
        self.tree(Kind::Int, tree, &chunks)?;
        Ok(Ref { oid, class: Class::Blk1 })
    }
}

/// Writes a file with all its objects, whose ids are `oid` and those above it. `tid` gives the ids of transactions,
/// ascending. The file itself is written last.
///
/// # Errors
/// The database cannot be written.
pub fn file(writer: &mut Writer, shape: &Shape, oid: u64, tid: &mut dyn FnMut() -> u64) -> io::Result<Made> {
    let mut filling = Filling { writer, tid, next_oid: oid + 2, writes: Vec::new(), bytes: 0 };
    let tree = oid + 1;
    let mut entries = Vec::with_capacity(shape.blocks as usize);
    for block in 0..shape.blocks {
        entries.push((block as i64, filling.block(shape, block)?));
    }
    let leaves = filling.tree(Kind::Long, tree, &entries)?;
    filling.add(oid, records::big_file(shape.block_size, tree))?;
    filling.commit()?;
    let blocks = entries.iter().map(|(_, block)| block.oid).collect();
    Ok(Made { file: oid, tree, blocks, leaves, next_oid: filling.next_oid })
}
