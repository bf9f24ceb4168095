//! The data of objects, as ZODB stores them: a pickle of the class, and one of the state.
//!
//! The forms are those of wendelin.core's `file_zodb` and of the `BTrees` package.

use crate::pickle::Pickle;

/// A class of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A file.
    BigFile,
    /// A block with its bytes.
    Blk0,
    /// A block in chunks.
    Blk1,
    /// A chunk.
    Data,
    /// A node of a tree of this kind.
    Tree(Kind),
    /// A leaf of a tree of this kind.
    Bucket(Kind),
}

/// Kinds of trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys of 64 bits, as of the blocks of a file.
    Long,
    /// Keys of 32 bits, as of the chunks of a block.
    Int,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::BigFile => "wendelin.bigfile.file_zodb\nZBigFile\n",
            Class::Blk0 => "wendelin.bigfile.file_zodb\nZBlk0\n",
            Class::Blk1 => "wendelin.bigfile.file_zodb\nZBlk1\n",
            Class::Data => "wendelin.bigfile.file_zodb\nZData\n",
            Class::Tree(Kind::Long) => "BTrees.LOBTree\nLOBTree\n",
            Class::Tree(Kind::Int) => "BTrees.IOBTree\nIOBTree\n",
            Class::Bucket(Kind::Long) => "BTrees.LOBTree\nLOBucket\n",
            Class::Bucket(Kind::Int) => "BTrees.IOBTree\nIOBucket\n",
        }
    }
}

/// An object, as others refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ref {
    /// Its id.
    pub oid: u64,
    /// Its class.
    pub class: Class,
}

fn record(class: Class) -> Pickle {
    Pickle::new().class(class.name()).next()
}

fn to(pickle: Pickle, target: Ref) -> Pickle {
    pickle.reference(target.oid, target.class.name())
}

/// The root of a database, with names of objects.
pub fn root(names: &[(&str, Ref)]) -> Vec<u8> {
    let pickle = Pickle::new().class("persistent.mapping\nPersistentMapping\n").next();
    let mut pickle = pickle.op(b"}").put().text("data").op(b"}").put().op(b"(");
    for (name, target) in names {
        pickle = to(pickle.text(name), *target);
    }
    pickle.op(b"us").stop()
}

/// A file.
pub fn big_file(block_size: u64, tree: u64) -> Vec<u8> {
    let size = i64::try_from(block_size).unwrap_or(i64::MAX);
    let tree = Ref { oid: tree, class: Class::Tree(Kind::Long) };
    record(Class::BigFile).tuple(2, |pickle| to(pickle.int(size), tree)).stop()
}

/// A block with its bytes. Zeros at their end are left away, as wendelin.core does.
pub fn blk0(bytes: &[u8]) -> Vec<u8> {
    record(Class::Blk0).bytes(without_zero_tail(bytes)).stop()
}

/// A chunk, without zeros at its end.
pub fn data(bytes: &[u8]) -> Vec<u8> {
    record(Class::Data).bytes(without_zero_tail(bytes)).stop()
}

fn without_zero_tail(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..len]
}

/// A block in the chunks that a tree has.
pub fn blk1(tree: u64) -> Vec<u8> {
    to(record(Class::Blk1), Ref { oid: tree, class: Class::Tree(Kind::Int) }).stop()
}

fn bucket_state(pickle: Pickle, kind: Kind, entries: &[(i64, Ref)], next: Option<u64>) -> Pickle {
    let items = |mut pickle: Pickle| {
        for (key, value) in entries {
            pickle = to(pickle.int(*key), *value);
        }
        pickle
    };
    let parts = 1 + usize::from(next.is_some());
    pickle.tuple(parts, |pickle| {
        let pickle = pickle.tuple(2 * entries.len(), items);
        match next {
            Some(oid) => to(pickle, Ref { oid, class: Class::Bucket(kind) }),
            None => pickle,
        }
    })
}

/// A leaf, and the leaf that follows it. Keys are to be ascending.
pub fn bucket(kind: Kind, entries: &[(i64, Ref)], next: Option<u64>) -> Vec<u8> {
    bucket_state(record(Class::Bucket(kind)), kind, entries, next).stop()
}

/// A tree without keys.
pub fn empty_tree(kind: Kind) -> Vec<u8> {
    record(Class::Tree(kind)).op(b"N").stop()
}

/// A tree whose only leaf is in its own record.
pub fn inlined_tree(kind: Kind, entries: &[(i64, Ref)]) -> Vec<u8> {
    let state = |pickle| bucket_state(pickle, kind, entries, None);
    record(Class::Tree(kind)).tuple(1, |pickle| pickle.tuple(1, state)).stop()
}

/// A node of a tree: its children with the least key of each, that of the first is not stored; and the tree's first leaf.
pub fn tree(kind: Kind, children: &[(i64, Ref)], first_bucket: u64) -> Vec<u8> {
    let items = |mut pickle: Pickle| {
        for (index, (key, child)) in children.iter().enumerate() {
            if index > 0 {
                pickle = pickle.int(*key);
            }
            pickle = to(pickle, *child);
        }
        pickle
    };
    let first = Ref { oid: first_bucket, class: Class::Bucket(kind) };
    let len = (2 * children.len()).saturating_sub(1);
    record(Class::Tree(kind)).tuple(2, |pickle| to(pickle.tuple(len, items), first)).stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_as_zodb_pickles_it() {
        let expected = b"\x80\x03cwendelin.bigfile.file_zodb\nZBlk0\nq\0.\x80\x03C\x02abq\x01.";
        assert_eq!(blk0(b"ab\0\0"), expected);
        let long = blk0(&[7; 300]);
        assert!(long.ends_with(b"\x07q\x01.") && long[long.len() - 308..].starts_with(b"B\x2c\x01\0\0\x07"));
    }

    #[test]
    fn a_class_is_named_once() {
        let leaf = Ref { oid: 5, class: Class::Blk0 };
        let record = bucket(Kind::Long, &[(0, leaf), (70_000, leaf), (1 << 40, leaf)], None);
        let named = record.windows(5).filter(|bytes| bytes == b"ZBlk0").count();
        assert_eq!(named, 1);
        let key = b"\x8a\x06\0\0\0\0\0\x01";
        assert!(record.windows(key.len()).any(|bytes| bytes == key));
    }
}
