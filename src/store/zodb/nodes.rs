//! Objects as of a state: files, and the nodes and leaves of their trees.
//!
//! Invariant: each load says the state that it is of. What was decoded is kept by object and serial, so it serves all
//! states and is never wrong. Walks are bounded: in depth by [`DEPTH_MAX`], in breadth by the keys that are asked for,
//! for each node covers keys of its own. Left out on purpose: the links from leaf to leaf, which say nothing new.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use revfs_protocol::{BlockSize, Tid};

use super::Oid;
use super::error::ZodbError;
use super::objects::{self, Bucket, Class, Object, ObjectError, Target, Tree};
use super::pickle::PickleError;
use super::storage::{Peeked, Storage};

/// Deepest tree, in nodes. BTrees of the usual sizes have five levels for 10^12 keys.
pub const DEPTH_MAX: usize = 64;
/// Most empty leaves that are passed on the way to the last key.
const EMPTY_LEAVES_MAX: usize = 100_000;
/// Serials that are kept, 24 bytes each.
const SERIALS_KEPT: usize = 1 << 16;
/// Objects that are known to be no files, about 32 bytes each.
const NO_FILES_KEPT: usize = 1 << 18;
/// About what a decoded record takes beside its entries, bytes.
const NODE_OVERHEAD_BYTES: u64 = 128;

/// What of an object is kept: all but the bytes of blocks.
#[derive(Debug)]
pub enum Node {
    /// A file.
    File {
        /// Bytes in a block.
        block_size: u64,
        /// The tree of its blocks.
        tree: Oid,
    },
    /// A node of a tree, and of which kind.
    Tree(Class, Tree),
    /// A leaf of a tree, and of which kind.
    Leaf(Class, Bucket),
    /// Any other object.
    Other(Class),
}

impl Node {
    fn class(&self) -> Class {
        match self {
            Node::File { .. } => Class::BigFile,
            Node::Tree(class, _) | Node::Leaf(class, _) | Node::Other(class) => *class,
        }
    }

    fn entries(&self) -> usize {
        match self {
            Node::Tree(_, Tree::Node(node)) => node.children.len() * 2,
            Node::Tree(_, Tree::Inlined(leaf)) | Node::Leaf(_, leaf) => leaf.entries.len(),
            Node::Tree(_, Tree::Empty) | Node::File { .. } | Node::Other(_) => 0,
        }
    }
}

#[derive(Clone, Debug)]
struct ByEntries;

impl Weighter<(Oid, Tid), Arc<Node>> for ByEntries {
    fn weight(&self, _key: &(Oid, Tid), node: &Arc<Node>) -> u64 {
        NODE_OVERHEAD_BYTES + (node.entries() * size_of::<(i64, Target)>()) as u64
    }
}

/// A file as of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNode {
    /// The tid at which its own record was written.
    pub serial: Tid,
    /// Unit of change.
    pub block_size: BlockSize,
    /// The tree of its blocks.
    pub tree: Oid,
}

/// A leaf as a walk meets it.
pub struct LeafView<'a> {
    /// The newest serial on the way to it: none of its keys came to mean something else after that.
    pub rev: Tid,
    /// Those of its entries that are asked for.
    pub entries: &'a [(i64, Target)],
}

/// The objects of a database.
#[derive(Debug)]
pub struct Nodes {
    storage: Arc<dyn Storage>,
    decoded: Cache<(Oid, Tid), Arc<Node>, ByEntries>,
    /// Serials of objects that were looked at as of a state, so that a look at the same needs no read.
    serials: Cache<(Oid, Tid), Tid>,
    /// Objects that are no files in any state.
    no_files: Cache<Oid, ()>,
}

/// A node that a walk has still to visit.
struct Ahead {
    oid: Oid,
    by: Oid,
    keys: RangeInclusive<i64>,
    rev: Tid,
    depth: usize,
}

impl Nodes {
    /// The objects of a storage; `cache_bytes` of decoded ones are kept.
    pub fn new(storage: Arc<dyn Storage>, cache_bytes: u64) -> Nodes {
        let items = usize::try_from(cache_bytes / 1024).unwrap_or(usize::MAX).max(16);
        let decoded = Cache::with_weighter(items, cache_bytes, ByEntries);
        let (serials, no_files) = (Cache::new(SERIALS_KEPT), Cache::new(NO_FILES_KEPT));
        Nodes { storage, decoded, serials, no_files }
    }

    /// Where the records are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Bytes that decoded objects take.
    pub fn cached_bytes(&self) -> u64 {
        self.decoded.weight()
    }

    /// Whether an object was found to be no file, see [`Nodes::note_no_file`].
    pub fn is_no_file(&self, oid: Oid) -> bool {
        self.no_files.get(&oid).is_some()
    }

    /// Keeps in mind that an object is no file, in no state.
    pub fn note_no_file(&self, oid: Oid) {
        self.no_files.insert(oid, ());
    }

    /// Forgets what [`Nodes::note_no_file`] noted.
    pub fn forget_no_files(&self) {
        self.no_files.clear();
    }

    /// The class of an object; None if it does not exist.
    ///
    /// # Errors
    /// See [`ZodbError`]; so for all below.
    pub fn class(&self, oid: Oid, at: Tid) -> Result<Option<Class>, ZodbError> {
        self.storage.peek(oid, at)?.map(|peeked| class_of(oid, &peeked)).transpose()
    }

    /// The class of an object, or the one that it had before it was deleted.
    pub fn last_class(&self, oid: Oid) -> Result<Option<Class>, ZodbError> {
        self.storage.peek_last(oid)?.map(|peeked| class_of(oid, &peeked)).transpose()
    }

    /// An object and its serial; None if it does not exist.
    pub fn node(&self, oid: Oid, at: Tid) -> Result<Option<(Tid, Arc<Node>)>, ZodbError> {
        if let Some(serial) = self.serials.get(&(oid, at))
            && let Some(known) = self.decoded.get(&(oid, serial))
        {
            return Ok(Some((serial, known)));
        }
        let Some(peeked) = self.storage.peek(oid, at)? else { return Ok(None) };
        let serial = peeked.serial;
        self.serials.insert((oid, at), serial);
        if let Some(known) = self.decoded.get(&(oid, serial)) {
            return Ok(Some((serial, known)));
        }
        let node = Arc::new(self.decode(oid, peeked)?);
        self.decoded.insert((oid, serial), Arc::clone(&node));
        Ok(Some((serial, node)))
    }

    fn decode(&self, oid: Oid, peeked: Peeked) -> Result<Node, ZodbError> {
        let serial = peeked.serial;
        let failed = |source| ZodbError::Object { oid, serial, source };
        // The bytes of blocks are not for keeping.
        let class = class_of(oid, &peeked)?;
        if matches!(class, Class::Blk0 | Class::Blk1 | Class::Data | Class::Other) {
            return Ok(Node::Other(class));
        }
        let data = match peeked.start.len() as u64 == peeked.len {
            true => peeked.start,
            false => self.storage.load(oid, serial)?.map_or_else(Bytes::new, |loaded| loaded.data),
        };
        Ok(match objects::decode(&data).map_err(failed)? {
            Object::BigFile { block_size, tree } => Node::File { block_size, tree },
            Object::LongTree(tree) | Object::IntTree(tree) => Node::Tree(class, tree),
            Object::LongBucket(leaf) | Object::IntBucket(leaf) => Node::Leaf(class, leaf),
            other => Node::Other(other.class()),
        })
    }

    /// A file; None if there is no object of this id, or it is no file.
    pub fn file(&self, oid: Oid, at: Tid) -> Result<Option<FileNode>, ZodbError> {
        let Some((serial, node)) = self.node(oid, at)? else { return Ok(None) };
        let Node::File { block_size, tree } = *node else { return Ok(None) };
        let known = BlockSize::new(block_size);
        let block_size = known.map_err(|_| ZodbError::BlockSize { oid, serial, bytes: block_size })?;
        Ok(Some(FileNode { serial, block_size, tree }))
    }

    /// Nodes that are asked for next, as of `at`: those that are not at hand are read at once.
    pub fn prefetch(&self, oids: &[Oid], at: Tid) {
        let is_at_hand = |oid: Oid| {
            let serial = self.serials.get(&(oid, at));
            serial.is_some_and(|serial| self.decoded.get(&(oid, serial)).is_some())
        };
        let absent: Vec<Oid> = oids.iter().copied().filter(|oid| !is_at_hand(*oid)).collect();
        // Of one alone the load is as good.
        if absent.len() > 1 {
            self.storage.prefetch(&absent, at);
        }
    }

    /// A node or leaf of a tree of a kind, which `by` refers to.
    pub fn of_tree(&self, oid: Oid, by: Oid, kind: Class, at: Tid) -> Result<(Tid, Arc<Node>), ZodbError> {
        let (serial, node) = self.node(oid, at)?.ok_or(ZodbError::Missing { oid, at, by })?;
        let leaf = if kind == Class::LongTree { Class::LongBucket } else { Class::IntBucket };
        if ![kind, leaf].contains(&node.class()) {
            let (found, expected) = (node.class(), "a part of its tree");
            return Err(ZodbError::WrongClass { oid, serial, found, expected, by });
        }
        Ok((serial, node))
    }

    /// Visits the leaves of a tree that can have keys of `keys`, in their order. `rev`: that of who refers to the tree.
    pub fn walk(
        &self,
        (root, by, rev): (Oid, Oid, Tid),
        kind: Class,
        at: Tid,
        keys: RangeInclusive<i64>,
        visit: &mut dyn FnMut(LeafView<'_>) -> Result<(), ZodbError>,
    ) -> Result<(), ZodbError> {
        let mut ahead = vec![Ahead { oid: root, by, keys, rev, depth: 0 }];
        while let Some(next) = ahead.pop() {
            let (serial, node) = self.of_tree(next.oid, next.by, kind, at)?;
            let rev = next.rev.max(serial);
            match &*node {
                Node::Leaf(_, leaf) | Node::Tree(_, Tree::Inlined(leaf)) => {
                    visit(LeafView { rev, entries: within(leaf, &next.keys) })?;
                }
                Node::Tree(_, Tree::Node(inner)) => {
                    if next.depth >= DEPTH_MAX {
                        let what = "its tree is deeper than any that BTrees makes";
                        return Err(ZodbError::Structure { oid: root, at, what });
                    }
                    let (first, last) = (*next.keys.start(), *next.keys.end());
                    let behind = ahead.len();
                    for (index, child) in inner.children.iter().enumerate().rev() {
                        // Keys below the first are under the first child.
                        let low = index.checked_sub(1).and_then(|before| inner.keys.get(before));
                        let low = low.map_or(first, |key| first.max(*key));
                        let high = inner.keys.get(index).map_or(last, |key| last.min(key.saturating_sub(1)));
                        if low <= high {
                            let (by, depth) = (next.oid, next.depth + 1);
                            ahead.push(Ahead { oid: child.oid, by, keys: low..=high, rev, depth });
                        }
                    }
                    let children: Vec<Oid> = ahead[behind..].iter().map(|child| child.oid).collect();
                    self.prefetch(&children, at);
                }
                _ => visit(LeafView { rev, entries: &[] })?,
            }
        }
        Ok(())
    }

    /// The greatest key of a tree; None if it is empty.
    pub fn last_key(&self, root: Oid, by: Oid, kind: Class, at: Tid) -> Result<Option<i64>, ZodbError> {
        let mut ahead = vec![(root, by, 0)];
        let mut empty = 0;
        while let Some((oid, by, depth)) = ahead.pop() {
            let (_, node) = self.of_tree(oid, by, kind, at)?;
            let what = match &*node {
                Node::Leaf(_, leaf) | Node::Tree(_, Tree::Inlined(leaf)) if !leaf.entries.is_empty() => {
                    return Ok(leaf.entries.last().map(|(key, _)| *key));
                }
                Node::Tree(_, Tree::Node(inner)) if depth < DEPTH_MAX => {
                    ahead.extend(inner.children.iter().map(|child| (child.oid, oid, depth + 1)));
                    continue;
                }
                Node::Tree(_, Tree::Node(_)) => "its tree is deeper than any that BTrees makes",
                _ if empty < EMPTY_LEAVES_MAX => {
                    empty += 1;
                    continue;
                }
                _ => "its tree has too many empty leaves",
            };
            return Err(ZodbError::Structure { oid: root, at, what });
        }
        Ok(None)
    }
}

fn class_of(oid: Oid, peeked: &Peeked) -> Result<Class, ZodbError> {
    match objects::class_of_start(&peeked.start) {
        // No class that is known here takes so much to name.
        Err(ObjectError::Pickle { source: PickleError::Cut { .. } })
            if (peeked.start.len() as u64) < peeked.len =>
        {
            Ok(Class::Other)
        }
        class => class.map_err(|source| ZodbError::Object { oid, serial: peeked.serial, source }),
    }
}

/// The entries of a leaf whose keys are in `keys`.
fn within<'l>(leaf: &'l Bucket, keys: &RangeInclusive<i64>) -> &'l [(i64, Target)] {
    let from = leaf.entries.partition_point(|(key, _)| key < keys.start());
    let to = leaf.entries.partition_point(|(key, _)| key <= keys.end());
    leaf.entries.get(from..to).unwrap_or_default()
}
