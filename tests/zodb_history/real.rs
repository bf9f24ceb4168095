//! Databases that `zodb_writer` makes, read by ZODB in Python.

use std::path::Path;

use revfs::store::zodb::filestorage::{FileStorage, IndexSource};
use revfs_protocol::Tid;
use zodb_writer::big::{self, Blocks, Shape};
use zodb_writer::records::{self, Class, Ref};
use zodb_writer::{Write, Writer};

use super::checks::{check_bytes, sha256};
use super::manifest::Manifest;
use super::python::{python, run};

const FIRST_TID: u64 = 0x03d7_0000_0000_0000;
const BLOCK: u64 = 4096;

/// Two files, then changes of each kind. Answers the tid at which both are there and as they were made.
fn make(path: &Path) -> (Vec<(Shape, big::Made)>, Tid) {
    let mut writer = Writer::create(path).unwrap();
    let mut next = FIRST_TID;
    let mut tid = move || {
        next += 0x1000_0000;
        next
    };
    let names = [("whole", 1), ("chunks", 100_000)];
    let refs = names.map(|(name, oid)| (name, Ref { oid, class: Class::BigFile }));
    writer.commit(tid(), &[(0, Write::Data(records::root(&[])))]).unwrap();
    let shapes = [Blocks::Whole(BLOCK - 100), Blocks::Chunks(512)].map(|stored| Shape {
        block_size: BLOCK,
        blocks: 80,
        stored,
        seed: 5,
    });
    let made: Vec<(Shape, big::Made)> = shapes
        .iter()
        .zip(names)
        .map(|(shape, (_, oid))| (*shape, big::file(&mut writer, shape, oid, &mut tid).unwrap()))
        .collect();
    writer.commit(tid(), &[(0, Write::Data(records::root(&refs)))]).unwrap();
    let filled = Tid::from_raw(writer.last_tid());
    let (blocks, tree) = (made[0].1.blocks.clone(), made[0].1.tree);
    for round in 0..12u64 {
        let block = blocks[round as usize * 5];
        let before = writer.newest(block).unwrap();
        let new = records::blk0(&big::noise(9, round, 300 + round));
        writer.commit(tid(), &[(block, Write::Data(new))]).unwrap();
        if round % 3 == 0 {
            writer.commit(tid(), &[(block, Write::Back(before))]).unwrap();
        }
    }
    // A tree of each other form.
    let one = [(7, Ref { oid: blocks[3], class: Class::Blk0 })];
    for record in [records::inlined_tree(records::Kind::Long, &one), records::empty_tree(records::Kind::Long)]
    {
        writer.commit(tid(), &[(tree, Write::Data(record))]).unwrap();
    }
    writer.commit(tid(), &[(blocks[3], Write::Deletion)]).unwrap();
    writer.save_index().unwrap();
    (made, filled)
}

#[test]
fn a_written_database_has_the_index_that_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("Data.fs");
    make(&path);
    let end = std::fs::metadata(&path).unwrap().len();
    let storage = FileStorage::open(&path, None).unwrap();
    assert_eq!(storage.index_source(), IndexSource::Saved { end });
}

#[test]
fn zodb_reads_what_is_written() {
    let Some(python) = python("zodb_reads_what_is_written") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("Data.fs");
    let (made, filled) = make(&path);
    let manifest = Manifest::parse(&path, &run(&python, "manifest", &path, &[]));
    assert_eq!(manifest.files.len(), 2);
    // As Python has it, and as it was meant to be.
    assert!(check_bytes(&manifest) > 100);
    for ((shape, _), name) in made.iter().zip(["whole", "chunks"]) {
        for block in 0..shape.blocks {
            let expected = sha256(&big::block_bytes(shape, block));
            assert_eq!(manifest.hash(name, block, filled), expected, "{name} {block}");
        }
    }
}
