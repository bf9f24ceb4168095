//! Which blocks of a file a transaction changed.
//!
//! A [`FileTree`] is the tree of one file as of one state, and is taken to the next state. Only what a transaction wrote, and
//! what that refers to for the first time, is loaded: the rest is known to be as it was. Invariant: after a step a tree here
//! equals the one in the database, and a step tells exactly the blocks that mean another object, or one that was written. A
//! tree that cannot be read is told as changed wholly, at each step until it can be. Memory is about 50 bytes a block, 80 while
//! it grows: 16 in a leaf, and a slot in a table that leads from a written block to where it stands.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};

use super::Oid;
use super::blocks::size_of_keys;
use super::error::ZodbError;
use super::nodes::{FileNode, Node, Nodes};
use super::objects::{Class, Tree};
use crate::store::FileChange;

/// Blocks of a file that changed, as (first, count) in order.
type BlockRuns = Vec<(BlockIndex, BlockCount)>;

/// Objects that a server is asked for at once, of which each may have the bytes of a block.
const AHEAD_MAX: usize = 32;

/// Keys and the blocks that they mean.
type Placed = Vec<(i64, Oid)>;

/// A node of a tree, as of the state.
#[derive(Clone, Debug)]
struct Known {
    parent: Option<Oid>,
    what: Part,
}

#[derive(Clone, Debug)]
enum Part {
    Inner(Box<[Oid]>),
    Leaf(Box<[(i64, Oid)]>),
}

/// Where in its file each block stands: mostly in one place.
#[derive(Debug, Default)]
struct Places {
    first: HashMap<Oid, i64>,
    more: HashMap<Oid, Vec<i64>>,
}

impl Places {
    fn add(&mut self, block: Oid, key: i64) {
        match self.first.entry(block) {
            Entry::Vacant(free) => drop(free.insert(key)),
            Entry::Occupied(_) => self.more.entry(block).or_default().push(key),
        }
    }

    fn remove(&mut self, block: Oid, key: i64) {
        if let Entry::Occupied(mut more) = self.more.entry(block) {
            let keys = more.get_mut();
            match keys.iter().position(|other| *other == key) {
                Some(at) => drop(keys.swap_remove(at)),
                // It is the first that goes: another takes its place.
                None => {
                    if let Some(other) = keys.pop() {
                        self.first.insert(block, other);
                    }
                }
            }
            if keys.is_empty() {
                more.remove();
            }
        } else {
            self.first.remove(&block);
        }
    }

    fn of(&self, block: Oid) -> impl Iterator<Item = i64> {
        let more = self.more.get(&block).into_iter().flatten();
        self.first.get(&block).into_iter().chain(more).copied()
    }
}

/// A tree that could be read.
#[derive(Debug, Default)]
struct Parts {
    nodes: HashMap<Oid, Known>,
    places: Places,
}

/// One file with its tree, as of one state.
#[derive(Debug)]
pub struct FileTree {
    oid: Oid,
    at: Tid,
    /// `None`: it does not exist, or is no file.
    file: Option<FileNode>,
    size: u64,
    /// `None`: it could not be read.
    parts: Option<Parts>,
}

/// What differs between two states of a tree.
struct TreeDelta {
    /// Nodes that are not what they were, or are there no more.
    gone: Vec<Oid>,
    /// Nodes that are new, or not what they were.
    come: HashMap<Oid, Known>,
    /// Nodes that are as they were, below another node now.
    moved: Vec<(Oid, Option<Oid>)>,
    /// Where blocks were, and are, under all these; in the order of keys.
    before: Placed,
    after: Placed,
}

impl TreeDelta {
    /// Blocks that are no more where they were, and those that came: each with its key, in order.
    fn moves(&self) -> (Placed, Placed) {
        let lacks = |all: &[(i64, Oid)], entry: &(i64, Oid)| all.binary_search(entry).is_err();
        let gone = self.before.iter().filter(|entry| lacks(&self.after, entry)).copied().collect();
        let come = self.after.iter().filter(|entry| lacks(&self.before, entry)).copied().collect();
        (gone, come)
    }
}

impl FileTree {
    /// The tree of a file at `at`, wholly read.
    ///
    /// If that was packed away, it is not known.
    ///
    /// # Errors
    /// The storage does not answer.
    pub fn load(nodes: &Nodes, oid: Oid, at: Tid) -> Result<FileTree, ZodbError> {
        let mut tree = FileTree { oid, at, file: file_or_warn(nodes, oid, at)?, size: 0, parts: None };
        tree.read(nodes)?;
        Ok(tree)
    }

    /// The state that it is of.
    pub fn at(&self) -> Tid {
        self.at
    }

    /// Whether an object is a node of the tree, or a block in it.
    pub fn has(&self, oid: Oid) -> bool {
        let has = |parts: &Parts| parts.nodes.contains_key(&oid) || parts.places.first.contains_key(&oid);
        self.parts.as_ref().is_some_and(has)
    }

    /// Goes on to the state `tid`, in which `written` were written; tells what that did to the file, if anything.
    ///
    /// # Errors
    /// The storage does not answer. Then it is good for nothing more.
    pub fn step(
        &mut self,
        nodes: &Nodes,
        tid: Tid,
        written: &BTreeSet<Oid>,
    ) -> Result<Option<FileChange>, ZodbError> {
        self.at = tid;
        if written.contains(&self.oid) {
            let old = self.file;
            self.file = file_or_warn(nodes, self.oid, tid)?;
            if old.map(|old| (old.block_size, old.tree)) != self.file.map(|new| (new.block_size, new.tree)) {
                return self.epoch(nodes, old);
            }
        }
        let Some(file) = self.file else { return Ok(None) };
        let Some(parts) = &mut self.parts else { return self.whole(nodes) };
        let old_size = self.size;
        let mut changed = BTreeSet::new();
        if written.iter().any(|oid| parts.nodes.contains_key(oid)) {
            match tree_delta(nodes, (self.oid, file.tree), &parts.nodes, tid, written) {
                Ok(delta) => {
                    changed.extend(parts.apply(delta));
                    self.size = parts.size(&file).unwrap_or(old_size);
                }
                Err(error) if !is_lost(&error) => return Err(error),
                Err(error) => {
                    // From its beginning: maybe only what is kept here is wrong.
                    log::warn!("file {}: {error}", self.oid);
                    return self.whole(nodes);
                }
            }
        }
        // As the tree is now: a block that is used no more has no bytes that changed.
        for oid in written {
            changed.extend(parts.places.of(*oid));
        }
        changed.retain(|key| *key >= 0);
        if changed.is_empty() {
            return Ok(None);
        }
        let mut change = bare_change(self.oid, old_size, self.size, file.block_size);
        change.blocks = runs_of(&changed);
        Ok(Some(change))
    }

    /// What it is that the file became another one.
    fn epoch(&mut self, nodes: &Nodes, old: Option<FileNode>) -> Result<Option<FileChange>, ZodbError> {
        let old_size = self.size;
        self.read(nodes)?;
        let change =
            epoch_change(self.oid, old.map(|old| (old, old_size)), self.file.map(|new| (new, self.size)));
        Ok(change)
    }

    /// Reads it anew and tells all of it as changed.
    fn whole(&mut self, nodes: &Nodes) -> Result<Option<FileChange>, ZodbError> {
        let Some(file) = self.file else { return Ok(None) };
        let old_size = self.size;
        self.read(nodes)?;
        let mut change = bare_change(self.oid, old_size, self.size, file.block_size);
        change.blocks = all_blocks();
        Ok(Some(change))
    }

    /// Reads the whole tree.
    fn read(&mut self, nodes: &Nodes) -> Result<(), ZodbError> {
        (self.size, self.parts) = (0, None);
        let Some(file) = self.file else { return Ok(()) };
        match tree_delta(nodes, (self.oid, file.tree), &HashMap::new(), self.at, &BTreeSet::new()) {
            Ok(delta) => {
                let mut parts = Parts::default();
                parts.apply(delta);
                self.size = parts.size(&file).unwrap_or(0);
                self.parts = Some(parts);
                Ok(())
            }
            Err(error) if is_lost(&error) => {
                log::warn!("file {}: {error}", self.oid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Parts {
    /// Makes it what it is after these changes; answers the keys that mean something else now.
    fn apply(&mut self, delta: TreeDelta) -> Vec<i64> {
        let (gone, come) = delta.moves();
        for oid in &delta.gone {
            self.nodes.remove(oid);
        }
        for (key, block) in &gone {
            self.places.remove(*block, *key);
        }
        self.places.first.reserve(come.len());
        for (key, block) in &come {
            self.places.add(*block, *key);
        }
        for (oid, parent) in delta.moved {
            if let Some(node) = self.nodes.get_mut(&oid) {
                node.parent = parent;
            }
        }
        self.nodes.extend(delta.come);
        gone.into_iter().chain(come).map(|(key, _)| key).collect()
    }

    /// The size that the greatest key gives.
    fn size(&self, file: &FileNode) -> Option<u64> {
        let mut ahead = vec![file.tree];
        while let Some(oid) = ahead.pop() {
            match self.nodes.get(&oid).map(|node| &node.what) {
                Some(Part::Inner(children)) => ahead.extend(children),
                Some(Part::Leaf(entries)) => {
                    if let Some((key, _)) = entries.last() {
                        return size_of_keys(Some(*key), file);
                    }
                }
                None => {}
            }
        }
        Some(0)
    }
}

/// What a transaction after `lo` did to those of its objects that are files whose trees nobody keeps; `trees` are of the
/// state that it made.
///
/// # Errors
/// The storage does not answer.
pub fn epochs_of(
    nodes: &Nodes,
    trees: &BTreeMap<Oid, FileTree>,
    written: &[Oid],
    (lo, tid): (Tid, Tid),
) -> Result<Vec<(Oid, FileChange)>, ZodbError> {
    let is_known = |oid: Oid| nodes.is_no_file(oid) || trees.values().any(|tree| tree.has(oid));
    let unknown: Vec<Oid> = written.iter().copied().filter(|oid| !is_known(*oid)).collect();
    let mut changes = Vec::new();
    for some in unknown.chunks(AHEAD_MAX) {
        nodes.storage().prefetch(some, tid);
        for oid in some {
            changes.extend(epoch_of(nodes, *oid, lo, tid)?.map(|change| (*oid, change)));
        }
    }
    Ok(changes)
}

/// What a transaction did to a file whose tree nobody keeps: whether it came, went, or became another one. `None` too if
/// only blocks of it may have changed. An object keeps its class, so one that is no file is asked about once.
///
/// # Errors
/// The storage does not answer.
fn epoch_of(nodes: &Nodes, oid: Oid, lo: Tid, tid: Tid) -> Result<Option<FileChange>, ZodbError> {
    if nodes.is_no_file(oid) {
        return Ok(None);
    }
    match class_or_none(nodes, oid, tid)? {
        Some(Class::BigFile) => {}
        Some(_) => {
            nodes.note_no_file(oid);
            return Ok(None);
        }
        None if class_or_none(nodes, oid, lo)? != Some(Class::BigFile) => return Ok(None),
        None => {}
    }
    let of = |at| -> Result<Option<(FileNode, u64)>, ZodbError> {
        let Some(file) = file_or_warn(nodes, oid, at)? else { return Ok(None) };
        match nodes.size(oid, &file, at) {
            Err(error) if is_lost(&error) => Ok(Some((file, 0))),
            size => Ok(Some((file, size?))),
        }
    };
    Ok(epoch_change(oid, of(lo)?, of(tid)?))
}

/// What it is that a file with its size became another one; nothing, if it has the tree and the block size that it had.
fn epoch_change(oid: Oid, old: Option<(FileNode, u64)>, new: Option<(FileNode, u64)>) -> Option<FileChange> {
    let (old_size, size) = (old.map_or(0, |(_, size)| size), new.map_or(0, |(_, size)| size));
    match (old, new) {
        (None, None) => None,
        (Some((old, _)), None) => {
            let mut change = bare_change(oid, old_size, 0, old.block_size);
            change.deleted = true;
            Some(change)
        }
        (Some((old, _)), Some((new, _))) if (old.block_size, old.tree) == (new.block_size, new.tree) => None,
        (old, Some((new, _))) => {
            let mut change = bare_change(oid, old_size, size, new.block_size);
            change.created = old.is_none();
            change.replaced = old.is_some();
            change.blocks = all_blocks();
            Some(change)
        }
    }
}

/// All nodes that are below one are read at once, but those that are kept.
fn fetch(nodes: &Nodes, children: &[Oid], at: Tid, is_kept: impl Fn(&Oid) -> bool) {
    let read: Vec<Oid> = children.iter().copied().filter(|child| !is_kept(child)).collect();
    nodes.prefetch(&read, at);
}

/// What differs between the tree that is known and the one at `at`, in which `written` were written last. Only nodes
/// that were written or are new are loaded.
fn tree_delta(
    nodes: &Nodes,
    (file, root): (Oid, Oid),
    known: &HashMap<Oid, Known>,
    at: Tid,
    written: &BTreeSet<Oid>,
) -> Result<TreeDelta, ZodbError> {
    let mut delta = TreeDelta {
        gone: Vec::new(),
        come: HashMap::new(),
        moved: Vec::new(),
        before: Vec::new(),
        after: Vec::new(),
    };
    let stale = stale_nodes(known, written);
    let mut kept: HashSet<Oid> = HashSet::new();
    let twice = |oid| ZodbError::Structure { oid, at, what: "it stands in its tree twice" };
    let mut ahead = vec![(root, None)];
    while let Some((oid, parent)) = ahead.pop() {
        if known.contains_key(&oid) && !stale.contains(&oid) {
            if !kept.insert(oid) {
                return Err(twice(oid));
            }
            if known.get(&oid).is_some_and(|node| node.parent != parent) {
                delta.moved.push((oid, parent));
            }
            continue;
        }
        let (_, node) = nodes.of_tree(oid, parent.unwrap_or(file), Class::LongTree, at)?;
        let what = match &*node {
            Node::Leaf(_, leaf) | Node::Tree(_, Tree::Inlined(leaf)) => {
                Part::Leaf(leaf.entries.iter().map(|(key, block)| (*key, block.oid)).collect())
            }
            Node::Tree(_, Tree::Node(inner)) => {
                let children: Box<[Oid]> = inner.children.iter().map(|child| child.oid).collect();
                fetch(nodes, &children, at, |child| known.contains_key(child) && !stale.contains(child));
                ahead.extend(children.iter().map(|child| (*child, Some(oid))));
                Part::Inner(children)
            }
            _ => Part::Leaf(Box::default()),
        };
        if let Part::Leaf(entries) = &what {
            delta.after.extend(entries);
        }
        match delta.come.entry(oid) {
            Entry::Vacant(free) => drop(free.insert(Known { parent, what })),
            Entry::Occupied(_) => return Err(twice(oid)),
        }
    }
    // What was there and is not kept.
    let mut behind = Vec::from_iter(known.contains_key(&root).then_some(root));
    while let Some(oid) = behind.pop() {
        if kept.contains(&oid) {
            continue;
        }
        let Some(node) = known.get(&oid) else { continue };
        delta.gone.push(oid);
        match &node.what {
            Part::Inner(children) => behind.extend(children),
            Part::Leaf(entries) => delta.before.extend(entries),
        }
    }
    delta.before.sort_unstable();
    delta.after.sort_unstable();
    if delta.after.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        let what = "a block stands in its tree twice";
        return Err(ZodbError::Structure { oid: root, at, what });
    }
    Ok(delta)
}

/// All nodes on the way from the root to what was written.
fn stale_nodes(known: &HashMap<Oid, Known>, written: &BTreeSet<Oid>) -> HashSet<Oid> {
    let mut stale: HashSet<Oid> = HashSet::new();
    for oid in written {
        let mut next = known.contains_key(oid).then_some(*oid);
        while let Some(oid) = next.filter(|oid| stale.insert(*oid)) {
            next = known.get(&oid).and_then(|node| node.parent);
        }
    }
    stale
}

/// Whether what was asked for is not there to be read, and will not be if it is asked for again.
fn is_lost(error: &ZodbError) -> bool {
    error.is_damage() || error.is_packed()
}

/// The class of an object; a record that cannot be read has none. Of a state that was packed away: the one that it has now.
fn class_or_none(nodes: &Nodes, oid: Oid, at: Tid) -> Result<Option<Class>, ZodbError> {
    match nodes.class(oid, at) {
        Err(error) if error.is_packed() => nodes.class(oid, nodes.storage().last_tid()),
        Err(error) if error.is_damage() => Ok(None),
        class => class,
    }
}

/// A file; one that cannot be read is none, and the log says why. In a state that was packed away it was as it is now.
fn file_or_warn(nodes: &Nodes, oid: Oid, at: Tid) -> Result<Option<FileNode>, ZodbError> {
    let file = match nodes.file(oid, at) {
        Err(error) if error.is_packed() => nodes.file(oid, nodes.storage().last_tid()),
        file => file,
    };
    match file {
        Err(error) if is_lost(&error) => {
            log::warn!("file {oid}: {error}");
            Ok(None)
        }
        other => other,
    }
}

fn bare_change(oid: Oid, old_size: u64, size: u64, block_size: BlockSize) -> FileChange {
    FileChange {
        file: FileId::from(oid),
        path: oid.to_string().into_bytes(),
        renamed_from: None,
        created: false,
        deleted: false,
        replaced: false,
        old_size,
        size,
        block_size,
        blocks: Vec::new(),
    }
}

fn all_blocks() -> BlockRuns {
    vec![(BlockIndex::new(0), BlockCount::new(u64::MAX))]
}

fn runs_of(keys: &BTreeSet<i64>) -> BlockRuns {
    let mut runs: BlockRuns = Vec::new();
    for key in keys.iter().filter_map(|key| u64::try_from(*key).ok()) {
        match runs.last_mut() {
            Some((first, count)) if first.raw() + count.raw() == key => {
                *count = BlockCount::new(count.raw() + 1)
            }
            _ => runs.push((BlockIndex::new(key), BlockCount::new(1))),
        }
    }
    runs
}
