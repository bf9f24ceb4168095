//! What the data record of an object says: files, blocks, and the nodes of trees.
//!
//! A record is two pickles: the class, then the state. Invariant: what [`decode`] accepts is well formed: keys
//! are in order, and what they lead to are references to objects of this database; nodes of trees have children of their
//! own kind, as far as references say of which class they are. The state of an object of another class is not looked at. Left out on purpose: loading
//! what a record refers to, and joining the bytes of blocks.

mod plain;
mod tree;

use std::borrow::Cow;
use std::fmt;

use super::Oid;
use super::pickle::{ClassName, PickleError, Pickles, Reference, Value, ValueId};
pub use plain::{PlainBytes, plain_bytes};
pub use tree::{Bucket, Node, Tree};

/// The classes that files are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A file.
    BigFile,
    /// A block whose bytes are in its own record.
    Blk0,
    /// A block whose bytes are in chunks.
    Blk1,
    /// A chunk of a block.
    Data,
    /// A tree with keys of 64 bits: block number to block.
    LongTree,
    /// A leaf of such a tree.
    LongBucket,
    /// A tree with keys of 32 bits: offset in a block to chunk.
    IntTree,
    /// A leaf of such a tree.
    IntBucket,
    /// Any other.
    Other,
}

impl Class {
    /// The class of this name.
    pub fn of(name: ClassName<'_>) -> Class {
        match (name.module, name.name) {
            ("wendelin.bigfile.file_zodb", name) => match name {
                "ZBigFile" => Class::BigFile,
                // `ZBlk` is the name that old databases have.
                "ZBlk0" | "ZBlk" => Class::Blk0,
                "ZBlk1" => Class::Blk1,
                "ZData" => Class::Data,
                _ => Class::Other,
            },
            ("BTrees.LOBTree", "LOBTree") => Class::LongTree,
            ("BTrees.LOBTree", "LOBucket") => Class::LongBucket,
            ("BTrees.IOBTree", "IOBTree") => Class::IntTree,
            ("BTrees.IOBTree", "IOBucket") => Class::IntBucket,
            _ => Class::Other,
        }
    }
}

impl fmt::Display for Class {
    /// The name that it has in Python.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::BigFile => "ZBigFile",
            Class::Blk0 => "ZBlk0",
            Class::Blk1 => "ZBlk1",
            Class::Data => "ZData",
            Class::LongTree => "LOBTree",
            Class::LongBucket => "LOBucket",
            Class::IntTree => "IOBTree",
            Class::IntBucket => "IOBucket",
            Class::Other => "object of another class",
        })
    }
}

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The object.
    pub oid: Oid,
    /// Its class, if the reference names it. The object's own record says it too.
    pub class: Option<Class>,
}

/// What a record says. Bytes are borrowed from the record where it holds them as they are.
#[derive(Clone, Debug, PartialEq)]
pub enum Object<'a> {
    /// A file.
    BigFile {
        /// Bytes in a block; more than 0.
        block_size: u64,
        /// The [`Class::LongTree`] of its blocks.
        tree: Oid,
    },
    /// The bytes of a block, without its zero tail.
    Blk0(Cow<'a, [u8]>),
    /// A block in chunks.
    Blk1 {
        /// The [`Class::IntTree`] of its chunks.
        tree: Oid,
    },
    /// The bytes of a chunk, without its zero tail.
    Data(Cow<'a, [u8]>),
    /// A node of a tree of blocks.
    LongTree(Tree),
    /// A leaf of a tree of blocks.
    LongBucket(Bucket),
    /// A node of a tree of chunks.
    IntTree(Tree),
    /// A leaf of a tree of chunks.
    IntBucket(Bucket),
    /// An object of another class.
    Other(ClassName<'a>),
}

impl Object<'_> {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Object::BigFile { .. } => Class::BigFile,
            Object::Blk0(_) => Class::Blk0,
            Object::Blk1 { .. } => Class::Blk1,
            Object::Data(_) => Class::Data,
            Object::LongTree(_) => Class::LongTree,
            Object::LongBucket(_) => Class::LongBucket,
            Object::IntTree(_) => Class::IntTree,
            Object::IntBucket(_) => Class::IntBucket,
            Object::Other(_) => Class::Other,
        }
    }
}

/// Why a record is not one of an object that is read here. Who loaded it knows which object and revision it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Its bytes are no pickles.
    #[error("the record is no pickle of the kind that ZODB writes: {source}")]
    Pickle {
        /// What is wrong, and where.
        #[from]
        source: PickleError,
    },
    /// There is something behind its pickles.
    #[error("the record goes on behind its second pickle (byte {at})")]
    Trailing {
        /// Where.
        at: usize,
    },
    /// The first pickle names no class.
    #[error("the first pickle of the record names no class")]
    NoClass,
    /// The state has not the form of its class.
    #[error("{what} of this {class} is not as that class writes it")]
    State {
        /// The class.
        class: Class,
        /// What of it.
        what: &'static str,
    },
    /// A number that is not possible there.
    #[error("{what} of this {class} is {number}")]
    Number {
        /// The class.
        class: Class,
        /// What of it.
        what: &'static str,
        /// The number.
        number: i64,
    },
    /// It refers to something that cannot stand there.
    #[error("{what} of this {class} is {found}")]
    WrongTarget {
        /// The class.
        class: Class,
        /// What of it.
        what: &'static str,
        /// To what it refers.
        found: &'static str,
    },
    /// Keys are not strictly ascending.
    #[error("key {key} of this {class} comes after key {previous}")]
    KeyOrder {
        /// The class.
        class: Class,
        /// The key before it.
        previous: i64,
        /// The key.
        key: i64,
    },
}

/// Reads the data record of an object.
///
/// # Errors
/// See [`ObjectError`].
pub fn decode(record: &[u8]) -> Result<Object<'_>, ObjectError> {
    let mut pickles = Pickles::new(record);
    let first = pickles.read_next()?;
    let name = class_of(&pickles, first).ok_or(ObjectError::NoClass)?;
    let class = Class::of(name);
    if class == Class::Other {
        return Ok(Object::Other(name));
    }
    let state = pickles.read_next()?;
    if !pickles.is_at_end() {
        return Err(ObjectError::Trailing { at: pickles.at() });
    }
    let reader = StateReader { pickles: &pickles, class };
    Ok(match class {
        Class::BigFile => reader.file(state)?,
        Class::Blk0 => Object::Blk0(reader.bytes(state)?),
        Class::Blk1 => Object::Blk1 { tree: reader.tree_of(state, "the tree of chunks", Class::IntTree)? },
        Class::Data => Object::Data(reader.bytes(state)?),
        Class::LongTree => Object::LongTree(reader.tree(state)?),
        Class::LongBucket => Object::LongBucket(reader.bucket(state)?),
        Class::IntTree => Object::IntTree(reader.tree(state)?),
        Class::IntBucket => Object::IntBucket(reader.bucket(state)?),
        Class::Other => Object::Other(name),
    })
}

/// The class of the object whose data record begins like this: with its first pickle at least.
///
/// # Errors
/// See [`ObjectError`].
pub fn class_of_start(start: &[u8]) -> Result<Class, ObjectError> {
    let mut pickles = Pickles::new(start);
    let first = pickles.read_next()?;
    class_of(&pickles, first).map(Class::of).ok_or(ObjectError::NoClass)
}

/// The class that the first pickle of a record means: its names alone, or with arguments to make the object with.
pub(super) fn class_of<'a>(pickles: &Pickles<'a>, first: ValueId) -> Option<ClassName<'a>> {
    match (pickles.class(first), pickles.tuple(first)) {
        (Some(class), _) => Some(class),
        (None, Some([class, _args])) => pickles.class_name(*class),
        _ => None,
    }
}

/// The state of one object, and whose it is.
struct StateReader<'p, 'a> {
    pickles: &'p Pickles<'a>,
    class: Class,
}

impl<'a> StateReader<'_, 'a> {
    fn state(&self, what: &'static str) -> ObjectError {
        ObjectError::State { class: self.class, what }
    }

    fn file(&self, state: ValueId) -> Result<Object<'a>, ObjectError> {
        let Some([block_size, tree]) = self.pickles.tuple(state) else { return Err(self.state("the state")) };
        let what = "the block size";
        let Value::Int(number) = self.pickles.value(*block_size) else { return Err(self.state(what)) };
        let block_size = u64::try_from(number).ok().filter(|size| *size > 0);
        let block_size = block_size.ok_or(ObjectError::Number { class: self.class, what, number })?;
        Ok(Object::BigFile { block_size, tree: self.tree_of(*tree, "the tree of blocks", Class::LongTree)? })
    }

    fn bytes(&self, state: ValueId) -> Result<Cow<'a, [u8]>, ObjectError> {
        self.pickles.bytes(state).ok_or(self.state("the bytes"))
    }

    fn tree_of(&self, id: ValueId, what: &'static str, class: Class) -> Result<Oid, ObjectError> {
        Ok(self.target_of(id, what, &[class])?.oid)
    }

    /// The object that a reference leads to, which must be of one of these classes if it says of which it is.
    fn target_of(&self, id: ValueId, what: &'static str, may_be: &[Class]) -> Result<Target, ObjectError> {
        let target = self.target(id, what)?;
        match target.class {
            Some(found) if !may_be.contains(&found) => {
                Err(self.wrong_target(what, "a reference to an object of the wrong class"))
            }
            _ => Ok(target),
        }
    }

    fn target(&self, id: ValueId, what: &'static str) -> Result<Target, ObjectError> {
        match self.pickles.reference(id) {
            Some(Reference::Strong { oid, class }) => Ok(Target { oid, class: class.map(Class::of) }),
            Some(Reference::Weak { .. }) => Err(self.wrong_target(what, "a weak reference")),
            Some(Reference::Foreign { .. }) => {
                Err(self.wrong_target(what, "a reference to another database"))
            }
            None => Err(self.wrong_target(what, "no reference")),
        }
    }

    fn wrong_target(&self, what: &'static str, found: &'static str) -> ObjectError {
        ObjectError::WrongTarget { class: self.class, what, found }
    }
}

#[cfg(test)]
mod tests;
