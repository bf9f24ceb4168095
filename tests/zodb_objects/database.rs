//! A FileStorage in memory, as simple as can be: all of it is taken to be whole.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use revfs::protocol::Tid;
use revfs::store::zodb::Oid;
use revfs::store::zodb::objects::{Bucket, Class, Object, Target, Tree, decode};

/// The folder of the databases; `None`, and said, if it is not there.
pub fn folder(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/zodb");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED {test}: there is no {}", folder.display());
    None
}

/// One data record.
pub struct Record {
    pub oid: Oid,
    pub tid: Tid,
    data: Range<usize>,
}

impl Record {
    /// Where its header begins.
    pub fn place(&self) -> usize {
        self.data.start - 42
    }
}

/// All records, oldest first.
pub struct Database {
    pub name: String,
    bytes: Vec<u8>,
    pub records: Vec<Record>,
    of_object: HashMap<Oid, Vec<usize>>,
}

/// A number of `len` bytes, big-endian.
pub fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Database {
    pub fn read(path: &Path) -> Database {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(bytes.starts_with(b"FS21") || bytes.starts_with(b"FS30"), "{}", path.display());
        let (mut records, mut of_object) = (Vec::new(), HashMap::<Oid, Vec<usize>>::new());
        let mut at = 4;
        while at < bytes.len() {
            let tid = Tid::from_raw(number(&bytes, at, 8));
            let end = at + number(&bytes, at + 8, 8) as usize;
            let texts: u64 = [17, 19, 21].map(|place| number(&bytes, at + place, 2)).iter().sum();
            at += 23 + texts as usize;
            while at < end {
                let oid = Oid::from_raw(number(&bytes, at, 8));
                let len = number(&bytes, at + 34, 8) as usize;
                assert!(len > 0, "{oid} has no data of its own at {tid}");
                of_object.entry(oid).or_default().push(records.len());
                records.push(Record { oid, tid, data: at + 42..at + 42 + len });
                at += 42 + len;
            }
            assert_eq!(at, end);
            at += 8;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Database { name, bytes, records, of_object }
    }

    /// All databases of the folder, by name.
    pub fn all(folder: &Path) -> Vec<Database> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "fs"));
        paths.sort();
        assert!(paths.len() >= 6, "only {paths:?}");
        paths.iter().map(|path| Database::read(path)).collect()
    }

    /// Size of the file.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn data(&self, record: &Record) -> &[u8] {
        &self.bytes[record.data.clone()]
    }

    /// The newest record of an object at or before `at`.
    pub fn newest(&self, oid: Oid, at: Tid) -> Option<&Record> {
        let records = self.of_object.get(&oid)?.iter().map(|number| &self.records[*number]);
        records.rev().find(|record| record.tid <= at)
    }

    fn load(&self, oid: Oid, at: Tid) -> Object<'_> {
        let record = self.newest(oid, at).unwrap_or_else(|| panic!("{}: no {oid} at {at}", self.name));
        decode(self.data(record)).unwrap_or_else(|e| panic!("{}: {oid} at {at}: {e}", self.name))
    }

    /// As [`Database::load`]; the object is of the class that the reference says.
    pub fn follow(&self, target: Target, at: Tid) -> Object<'_> {
        let object = self.load(target.oid, at);
        assert_eq!(target.class.unwrap_or(object.class()), object.class(), "{} {target:?}", self.name);
        object
    }

    /// Block size of a file, and the bytes of its blocks.
    pub fn file(&self, file: Oid, at: Tid) -> Option<(usize, BTreeMap<i64, Vec<u8>>)> {
        self.newest(file, at)?;
        let Object::BigFile { block_size, tree } = self.load(file, at) else { panic!("{file} is no file") };
        let block_size = block_size as usize;
        let blocks = self.entries(Target { oid: tree, class: Some(Class::LongTree) }, at);
        let bytes = blocks.into_iter().map(|(block, target)| (block, self.block(target, block_size, at)));
        Some((block_size, bytes.collect()))
    }

    fn block(&self, target: Target, block_size: usize, at: Tid) -> Vec<u8> {
        let mut block = match self.follow(target, at) {
            Object::Blk0(bytes) => bytes.into_owned(),
            Object::Blk1 { tree } => {
                let mut block = Vec::new();
                for (offset, target) in self.entries(Target { oid: tree, class: Some(Class::IntTree) }, at) {
                    let Object::Data(bytes) = self.follow(target, at) else { panic!("{target:?}") };
                    let offset = usize::try_from(offset).unwrap();
                    assert!(offset >= block.len(), "chunks of {target:?} overlap");
                    block.resize(offset, 0);
                    block.extend_from_slice(&bytes);
                }
                block
            }
            other => panic!("{target:?} is {other:?}"),
        };
        assert!(block.len() <= block_size, "{target:?}");
        block.resize(block_size, 0);
        block
    }

    /// What a tree maps; found from above, and the same along the chain of its leaves.
    fn entries(&self, root: Target, at: Tid) -> BTreeMap<i64, Target> {
        let mut entries = BTreeMap::new();
        let mut first_bucket = None;
        let mut left = vec![(root, i64::MIN, i64::MAX)];
        while let Some((target, low, high)) = left.pop() {
            let bucket = match self.follow(target, at) {
                Object::LongTree(tree) | Object::IntTree(tree) => match tree {
                    Tree::Empty => continue,
                    Tree::Inlined(bucket) => bucket,
                    Tree::Node(node) => {
                        assert_eq!(node.keys.len() + 1, node.children.len());
                        first_bucket = first_bucket.or(node.first_bucket);
                        let lows = [low].into_iter().chain(node.keys.iter().copied());
                        let highs = node.keys.iter().copied().chain([high]);
                        let ranges = lows.zip(highs).zip(&node.children);
                        left.extend(ranges.map(|((low, high), child)| (*child, low, high)));
                        continue;
                    }
                },
                Object::LongBucket(bucket) | Object::IntBucket(bucket) => bucket,
                other => panic!("{target:?} is {other:?}"),
            };
            for (key, value) in bucket.entries {
                assert!((low..high).contains(&key), "key {key} of {target:?} is not in {low}..{high}");
                assert_eq!(entries.insert(key, value), None);
            }
        }
        if let Some(first) = first_bucket {
            assert!(self.chain(first, at).into_iter().eq(entries.clone()), "{root:?} at {at}");
        }
        entries
    }

    /// The entries of a leaf and all behind it.
    fn chain(&self, first: Target, at: Tid) -> Vec<(i64, Target)> {
        let mut entries = Vec::new();
        let mut next = Some(first);
        while let Some(target) = next {
            let (Object::LongBucket(bucket) | Object::IntBucket(bucket)) = self.follow(target, at) else {
                panic!("{target:?} is no leaf");
            };
            let Bucket { entries: mut more, next: after } = bucket;
            entries.append(&mut more);
            next = after;
        }
        entries
    }
}
