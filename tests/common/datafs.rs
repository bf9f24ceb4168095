//! A ZODB database that a test writes, with files whose blocks it knows.
//!
//! A block is one object or, if its number is odd, one in chunks; blocks stand in a LOBTree of small leaves, so that files
//! of a few blocks have nodes too. Invariant: a transaction writes what differs, as ZODB does, and a block in chunks also if
//! only its chunks do, as wendelin.core does. What is committed is in the file when that returns.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use revfs::env::{Clock, SystemClock};
use revfs::protocol::Tid;
use zodb_writer::records::{self, Class, Kind, Ref};
use zodb_writer::{Write, Writer};

/// Blocks of a leaf.
const LEAF: u64 = 4;
/// Chunks of a block that is in chunks.
const CHUNKS: usize = 4;

/// A file: where its blocks are.
#[derive(Default)]
struct Big {
    oid: u64,
    tree: u64,
    block_size: u64,
    blocks: BTreeMap<u64, Ref>,
    /// Objects of the leaves, by the first block that each may have. None: the only leaf is in the tree's own object.
    leaves: BTreeMap<u64, u64>,
    /// Of each block in chunks, its tree and its chunks.
    chunks: BTreeMap<u64, Vec<u64>>,
}

/// The database. All commits to it are made through this.
pub struct DataFs {
    writer: Writer,
    clock: Arc<dyn Clock>,
    files: BTreeMap<String, Big>,
    /// Objects of files that are no more.
    removed: BTreeMap<String, u64>,
    /// Newest data of all objects but blocks.
    stored: BTreeMap<u64, Vec<u8>>,
    /// Of the transaction that is being made.
    writes: BTreeMap<u64, Write>,
    next_oid: u64,
}

impl DataFs {
    /// A new one, without a transaction.
    pub fn create(path: &Path) -> DataFs {
        DataFs {
            writer: Writer::create(path).unwrap(),
            clock: SystemClock::shared(),
            files: BTreeMap::new(),
            removed: BTreeMap::new(),
            stored: BTreeMap::new(),
            writes: BTreeMap::new(),
            next_oid: 1,
        }
    }

    /// The name under which a mount shows a file.
    pub fn name(&self, file: &str) -> String {
        format!("{:016x}", self.files[file].oid)
    }

    /// Commits blocks of a file, which is made if need be; those without bytes are no more. The tid.
    pub fn write(&mut self, file: &str, block_size: u64, blocks: Vec<(u64, Option<Vec<u8>>)>) -> Tid {
        let mut big = self.files.remove(file).unwrap_or_else(|| Big {
            oid: self.oid(),
            tree: self.oid(),
            block_size,
            blocks: BTreeMap::new(),
            leaves: BTreeMap::new(),
            chunks: BTreeMap::new(),
        });
        for (block, bytes) in blocks {
            match bytes {
                Some(bytes) => self.write_block(&mut big, block, &bytes),
                None => {
                    assert!(big.blocks.remove(&block).is_some(), "block {block} is a hole already");
                    big.chunks.remove(&block);
                }
            }
        }
        self.write_tree(&mut big);
        self.set(big.oid, records::big_file(big.block_size, big.tree));
        self.files.insert(file.to_owned(), big);
        self.commit()
    }

    /// Commits that a file, which may be no more, has blocks of another size, and these only. The tid.
    pub fn remake(&mut self, file: &str, block_size: u64, blocks: &[Vec<u8>]) -> Tid {
        let oid = self.files.remove(file).map(|big| big.oid).or_else(|| self.removed.remove(file)).unwrap();
        let mut big = Big { oid, tree: self.oid(), block_size, ..Big::default() };
        for (block, bytes) in (0..).zip(blocks) {
            self.write_block(&mut big, block, bytes);
        }
        self.write_tree(&mut big);
        self.set(big.oid, records::big_file(big.block_size, big.tree));
        self.files.insert(file.to_owned(), big);
        self.commit()
    }

    /// Commits that a file is no more. The tid.
    pub fn remove(&mut self, file: &str) -> Tid {
        let big = self.files.remove(file).unwrap();
        self.writes.insert(big.oid, Write::Deletion);
        self.removed.insert(file.to_owned(), big.oid);
        self.commit()
    }

    fn oid(&mut self) -> u64 {
        self.next_oid += 1;
        self.next_oid - 1
    }

    /// An object has this data now; nothing is written if it has it already.
    fn set(&mut self, oid: u64, data: Vec<u8>) {
        if self.stored.get(&oid) != Some(&data) {
            self.stored.insert(oid, data.clone());
            self.writes.insert(oid, Write::Data(data));
        }
    }

    fn write_block(&mut self, big: &mut Big, block: u64, bytes: &[u8]) {
        assert_eq!(bytes.len() as u64, big.block_size);
        let class = if block.is_multiple_of(2) { Class::Blk0 } else { Class::Blk1 };
        let oid = big.blocks.get(&block).map_or_else(|| self.oid(), |there| there.oid);
        big.blocks.insert(block, Ref { oid, class });
        if class == Class::Blk0 {
            self.writes.insert(oid, Write::Data(records::blk0(bytes)));
            return;
        }
        let parts = big.chunks.entry(block).or_insert_with(|| (0..=CHUNKS).map(|_| self.oid()).collect());
        let len = bytes.len() / CHUNKS;
        let mut entries = Vec::new();
        for (number, oid) in parts[1..].iter().enumerate() {
            self.set(*oid, records::data(&bytes[number * len..(number + 1) * len]));
            entries.push(((number * len) as i64, Ref { oid: *oid, class: Class::Data }));
        }
        self.set(parts[0], records::inlined_tree(Kind::Int, &entries));
        self.writes.insert(oid, Write::Data(records::blk1(parts[0])));
    }

    fn write_tree(&mut self, big: &mut Big) {
        let mut parts: BTreeMap<u64, Vec<(i64, Ref)>> = BTreeMap::new();
        for (block, target) in &big.blocks {
            parts.entry(block / LEAF * LEAF).or_default().push((*block as i64, *target));
        }
        let record = match parts.first_key_value() {
            None => records::empty_tree(Kind::Long),
            Some((_, entries)) if parts.len() == 1 && big.leaves.is_empty() => {
                records::inlined_tree(Kind::Long, entries)
            }
            Some(_) => {
                big.leaves.retain(|first, _| parts.contains_key(first));
                for first in parts.keys() {
                    big.leaves.entry(*first).or_insert_with(|| self.oid());
                }
                for (first, entries) in &parts {
                    let next = big.leaves.range(first + 1..).next().map(|(_, oid)| *oid);
                    self.set(big.leaves[first], records::bucket(Kind::Long, entries, next));
                }
                let child = |(first, oid): (&u64, &u64)| {
                    (*first as i64, Ref { oid: *oid, class: Class::Bucket(Kind::Long) })
                };
                let children: Vec<(i64, Ref)> = big.leaves.iter().map(child).collect();
                records::tree(Kind::Long, &children, children[0].1.oid)
            }
        };
        self.set(big.tree, record);
    }

    /// Appends the transaction.
    fn commit(&mut self) -> Tid {
        let of = |(name, big): (&String, &Big)| (name.clone(), Ref { oid: big.oid, class: Class::BigFile });
        let names: Vec<(String, Ref)> = self.files.iter().map(of).collect();
        let names: Vec<(&str, Ref)> = names.iter().map(|(name, target)| (name.as_str(), *target)).collect();
        self.set(0, records::root(&names));
        let writes: Vec<(u64, Write)> = std::mem::take(&mut self.writes).into_iter().collect();
        assert!(!writes.is_empty(), "there is nothing to commit");
        let after = Tid::from_raw(self.writer.last_tid()).next().unwrap();
        let tid = Tid::from_unix_ns(self.clock.now_unix_ns()).max(after);
        self.writer.commit(tid.raw(), &writes).unwrap();
        tid
    }
}
