//! A database by hand, with what ZODB in Python makes rarely: a file that is deleted, comes again, and gets blocks of
//! another size.
//!
//! Invariant: it is told with each state what the file has then.

#![allow(dead_code)] // each test program uses a part

use crate::maker::{Maker, Write};

const FILE: u64 = 1;
const TREE: u64 = 2;
const BLOCK: u64 = 3;
const OTHER_BLOCK: u64 = 4;

/// A database, and for each transaction that changes the file: tid, block size, and all bytes of it if it is there.
pub struct Story {
    pub bytes: Vec<u8>,
    pub expected: Vec<(u64, u64, Option<Vec<u8>>)>,
}

/// A record of an object of a class, from the opcodes of its state.
pub fn record(class: &str, state: &[u8]) -> Write {
    let (module, name) = class.split_once(' ').unwrap();
    let class = format!("c{module}\n{name}\n");
    Write::Data([b"\x80\x03", class.as_bytes(), b".\x80\x03", state, b"."].concat())
}

/// A reference to an object of a class.
pub fn reference(oid: u64, class: &str) -> Vec<u8> {
    let (module, name) = class.split_once(' ').unwrap();
    let class = format!("c{module}\n{name}\n");
    [b"(C\x08", &oid.to_be_bytes()[..], class.as_bytes(), b"tQ"].concat()
}

const FILE_CLASS: &str = "wendelin.bigfile.file_zodb ZBigFile";
const BLOCK_CLASS: &str = "wendelin.bigfile.file_zodb ZBlk0";
const TREE_CLASS: &str = "BTrees.LOBTree LOBTree";

/// A root with nothing in it.
pub fn root() -> (u64, Write) {
    (0, record("persistent.mapping PersistentMapping", b"}X\x04\0\0\0data}s"))
}

/// A file with blocks of a size.
pub fn file(oid: u64, block_size: u32, tree: u64) -> (u64, Write) {
    let size = [b"J", &block_size.to_le_bytes()[..]].concat();
    (oid, record(FILE_CLASS, &[&size[..], &reference(tree, TREE_CLASS), b"\x86"].concat()))
}

/// A tree with these blocks in it.
pub fn tree(oid: u64, blocks: &[(u32, u64)]) -> (u64, Write) {
    let entries = blocks.iter().flat_map(|(number, block)| {
        [b"J", &number.to_le_bytes()[..], &reference(*block, BLOCK_CLASS)].concat()
    });
    let entries: Vec<u8> = entries.collect();
    let state =
        if blocks.is_empty() { b"N".to_vec() } else { [b"(", &entries[..], b"t\x85\x85\x85"].concat() };
    (oid, record(TREE_CLASS, &state))
}

/// A block of these bytes.
pub fn block(oid: u64, bytes: &[u8]) -> (u64, Write) {
    (oid, record(BLOCK_CLASS, &[b"B", &(bytes.len() as u32).to_le_bytes()[..], bytes].concat()))
}

fn padded(parts: &[(usize, &[u8])], size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, part) in parts {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// See [`Story`].
pub fn story() -> Story {
    let mut maker = Maker::new();
    let mut expected = Vec::new();
    let nothing = |maker: &mut Maker, tid| drop(maker.commit(tid, &[root()]));
    nothing(&mut maker, 0x10);
    maker.commit(0x20, &[file(FILE, 4096, TREE), tree(TREE, &[(0, BLOCK)]), block(BLOCK, b"one")]);
    expected.push((0x20, 4096, Some(padded(&[(0, b"one")], 4096))));
    nothing(&mut maker, 0x30);
    // The same bytes are no change.
    maker.commit(0x40, &[block(BLOCK, b"one"), file(FILE, 4096, TREE)]);
    maker.commit(0x50, &[(FILE, Write::Back(0))]);
    expected.push((0x50, 0, None));
    // What a file that is gone had may be written.
    maker.commit(0x60, &[block(BLOCK, b"two")]);
    maker.commit(
        0x70,
        &[file(FILE, 4096, TREE), tree(TREE, &[(1, BLOCK), (2, OTHER_BLOCK)]), block(OTHER_BLOCK, b"x")],
    );
    expected.push((0x70, 4096, Some(padded(&[(4096, b"two"), (8192, b"x")], 12_288))));
    // Larger blocks, the same tree.
    maker.commit(0x80, &[file(FILE, 8192, TREE)]);
    expected.push((0x80, 8192, Some(padded(&[(8192, b"two"), (16_384, b"x")], 24_576))));
    // A hole, and the end comes nearer.
    maker.commit(0x90, &[tree(TREE, &[(0, OTHER_BLOCK)])]);
    expected.push((0x90, 8192, Some(padded(&[(0, b"x")], 8192))));
    maker.commit(0xa0, &[tree(TREE, &[(0, OTHER_BLOCK), (3, BLOCK)]), block(BLOCK, b"last")]);
    expected.push((0xa0, 8192, Some(padded(&[(0, b"x"), (24_576, b"last")], 32_768))));
    maker.commit(0xb0, &[tree(TREE, &[])]);
    expected.push((0xb0, 8192, Some(Vec::new())));
    Story { bytes: maker.bytes, expected }
}

/// Where the state of the last record of a block begins: the opcode of its bytes.
pub fn last_block_record(bytes: &[u8]) -> usize {
    let needle = b"B\x04\0\0\0last";
    bytes.windows(needle.len()).rposition(|at| at == needle).unwrap()
}
