//! Which blocks of which files a transaction changed.
//!
//! It keeps the trees of all files as of one state, and takes them to the next. Of a tree only what a transaction wrote, and
//! what that refers to for the first time, is loaded: the rest is known to be as it was. Invariant: after a step each tree here
//! equals the one in the database, and a step tells at least each block whose bytes differ between its two states. A
//! tree that cannot be read is told as changed wholly, at each step until it can be.

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

/// A node of a tree, as of the state.
#[derive(Clone, Debug)]
struct Known {
    parent: Option<Oid>,
    what: Part,
}

#[derive(Clone, Debug)]
enum Part {
    Inner(Vec<Oid>),
    Leaf(Vec<(i64, Oid)>),
}

/// What an object is to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Node(Oid),
    Block(Oid, i64),
}

#[derive(Debug)]
struct FileTree {
    file: FileNode,
    size: u64,
    /// `None`: it could not be read.
    nodes: Option<HashMap<Oid, Known>>,
}

/// The trees of all files as of one state.
#[derive(Debug)]
pub struct Changes {
    at: Tid,
    files: BTreeMap<Oid, FileTree>,
    uses: HashMap<Oid, Vec<Use>>,
}

/// What differs between two states of a tree.
struct TreeDelta {
    /// Nodes that are not what they were, or are there no more.
    gone: Vec<Oid>,
    /// Nodes that are new, or not what they were.
    come: HashMap<Oid, Known>,
    /// Nodes that are as they were, below another node maybe.
    moved: Vec<(Oid, Option<Oid>)>,
    /// Where blocks were, and are, under all these.
    before: BTreeMap<i64, Oid>,
    after: BTreeMap<i64, Oid>,
}

impl Changes {
    /// The trees of these files at `at`.
    pub fn new(nodes: &Nodes, files: &BTreeSet<Oid>, at: Tid) -> Result<Changes, ZodbError> {
        let mut changes = Changes { at, files: BTreeMap::new(), uses: HashMap::new() };
        for oid in files {
            if let Some(file) = file_or_warn(nodes, *oid, at)? {
                changes.add(nodes, *oid, file, at)?;
            }
        }
        Ok(changes)
    }

    /// The state that they are of.
    pub fn at(&self) -> Tid {
        self.at
    }

    /// Goes on to the state `tid`, in which `written` were written; tells what that did to files.
    ///
    /// # Errors
    /// The storage does not answer. Then it is good for nothing more.
    pub fn step(
        &mut self,
        nodes: &Nodes,
        tid: Tid,
        written: &BTreeSet<Oid>,
    ) -> Result<Vec<FileChange>, ZodbError> {
        let mut told: BTreeMap<Oid, FileChange> = BTreeMap::new();
        let mut trees: BTreeSet<Oid> = BTreeSet::new();
        let mut blocks: BTreeMap<Oid, BTreeSet<i64>> = BTreeMap::new();
        for oid in written {
            if let Some(change) = self.step_file(nodes, *oid, tid)? {
                told.insert(*oid, change);
            }
            for used in self.uses.get(oid).into_iter().flatten() {
                match used {
                    Use::Node(file) => drop(trees.insert(*file)),
                    Use::Block(..) => {}
                }
            }
        }
        trees.extend(self.files.iter().filter(|(_, tree)| tree.nodes.is_none()).map(|(oid, _)| *oid));
        for oid in &trees {
            if told.contains_key(oid) {
                continue;
            }
            if let Some(change) = self.step_tree(nodes, *oid, tid, written, &mut blocks)? {
                told.insert(*oid, change);
            }
        }
        // As the trees are now: a block that is used no more has no bytes that changed.
        for oid in written {
            for used in self.uses.get(oid).into_iter().flatten() {
                if let Use::Block(file, key) = used {
                    blocks.entry(*file).or_default().insert(*key);
                }
            }
        }
        for (oid, keys) in blocks {
            let Some(tree) = self.files.get(&oid) else { continue };
            let change = told.entry(oid).or_insert_with(|| change_of(oid, tree.size, tree));
            if !change.created && !is_all(&change.blocks) {
                change.blocks = runs_of(&keys);
            }
        }
        self.at = tid;
        Ok(told.into_values().collect())
    }

    /// What became of the record of a file itself.
    fn step_file(&mut self, nodes: &Nodes, oid: Oid, tid: Tid) -> Result<Option<FileChange>, ZodbError> {
        let known = self.files.get(&oid).map(|tree| (tree.file, tree.size));
        if known.is_none() && !is_file(nodes, oid, tid)? {
            return Ok(None);
        }
        let file = file_or_warn(nodes, oid, tid)?;
        match (known, file) {
            (None, None) => Ok(None),
            (Some((old, old_size)), None) => {
                self.remove(oid);
                let mut change = bare_change(oid, old_size, 0, old.block_size);
                change.deleted = true;
                Ok(Some(change))
            }
            (Some((old, _)), Some(new)) if (old.block_size, old.tree) == (new.block_size, new.tree) => {
                if let Some(tree) = self.files.get_mut(&oid) {
                    tree.file = new;
                }
                Ok(None)
            }
            (known, Some(new)) => {
                self.remove(oid);
                self.add(nodes, oid, new, tid)?;
                let size = self.files.get(&oid).map_or(0, |tree| tree.size);
                let mut change = bare_change(oid, known.map_or(0, |(_, size)| size), size, new.block_size);
                change.created = known.is_none();
                change.replaced = known.is_some();
                change.blocks = all_blocks();
                Ok(Some(change))
            }
        }
    }

    /// Takes the tree of a file to the state `tid`, and adds the keys that came to mean something else.
    fn step_tree(
        &mut self,
        nodes: &Nodes,
        oid: Oid,
        tid: Tid,
        written: &BTreeSet<Oid>,
        blocks: &mut BTreeMap<Oid, BTreeSet<i64>>,
    ) -> Result<Option<FileChange>, ZodbError> {
        let Some(tree) = self.files.get(&oid) else { return Ok(None) };
        let (file, old_size) = (tree.file, tree.size);
        let delta = match &tree.nodes {
            Some(known) => tree_delta(nodes, (oid, file.tree), known, tid, written),
            None => Err(unknown_tree(oid, tid)),
        };
        let delta = match delta {
            Ok(delta) => delta,
            Err(error) if !error.is_damage() => return Err(error),
            Err(error) => {
                // From its beginning: maybe only what is kept here is wrong.
                log::warn!("file {oid}: {error}");
                self.remove(oid);
                self.add(nodes, oid, file, tid)?;
                let size = self.files.get(&oid).map_or(0, |tree| tree.size);
                let mut change = bare_change(oid, old_size, size, file.block_size);
                change.blocks = all_blocks();
                return Ok(Some(change));
            }
        };
        let changed: BTreeSet<i64> = (delta.before.iter())
            .chain(&delta.after)
            .map(|(key, _)| *key)
            .filter(|key| *key >= 0 && delta.before.get(key) != delta.after.get(key))
            .collect();
        self.apply(oid, delta);
        let Some(tree) = self.files.get_mut(&oid) else { return Ok(None) };
        tree.size = size_now(tree).unwrap_or(old_size);
        if changed.is_empty() {
            return Ok(None);
        }
        blocks.entry(oid).or_default().extend(changed);
        Ok(Some(change_of(oid, old_size, tree)))
    }

    fn apply(&mut self, file: Oid, delta: TreeDelta) {
        let Some(known) = self.files.get_mut(&file).and_then(|tree| tree.nodes.as_mut()) else { return };
        for oid in &delta.gone {
            known.remove(oid);
            forget(&mut self.uses, *oid, Use::Node(file));
        }
        for (key, block) in &delta.before {
            forget(&mut self.uses, *block, Use::Block(file, *key));
        }
        for (key, block) in &delta.after {
            self.uses.entry(*block).or_default().push(Use::Block(file, *key));
        }
        for (oid, parent) in delta.moved {
            if let Some(node) = known.get_mut(&oid) {
                node.parent = parent;
            }
        }
        for (oid, node) in delta.come {
            self.uses.entry(oid).or_default().push(Use::Node(file));
            known.insert(oid, node);
        }
    }

    /// Reads the whole tree of a file.
    fn add(&mut self, nodes: &Nodes, oid: Oid, file: FileNode, at: Tid) -> Result<(), ZodbError> {
        let nothing = HashMap::new();
        match tree_delta(nodes, (oid, file.tree), &nothing, at, &BTreeSet::new()) {
            Ok(delta) => {
                self.files.insert(oid, FileTree { file, size: 0, nodes: Some(HashMap::new()) });
                self.apply(oid, delta);
                if let Some(tree) = self.files.get_mut(&oid) {
                    tree.size = size_now(tree).unwrap_or(0);
                }
            }
            Err(error) if error.is_damage() && !error.is_packed() => {
                log::warn!("file {oid}: {error}");
                self.files.insert(oid, FileTree { file, size: 0, nodes: None });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn remove(&mut self, oid: Oid) {
        let Some(nodes) = self.files.remove(&oid).and_then(|tree| tree.nodes) else { return };
        for (node, known) in nodes {
            forget(&mut self.uses, node, Use::Node(oid));
            if let Part::Leaf(entries) = known.what {
                for (key, block) in entries {
                    forget(&mut self.uses, block, Use::Block(oid, key));
                }
            }
        }
    }
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
        before: BTreeMap::new(),
        after: BTreeMap::new(),
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
            delta.moved.push((oid, parent));
            continue;
        }
        let (_, node) = nodes.of_tree(oid, parent.unwrap_or(file), Class::LongTree, at)?;
        let what = match &*node {
            Node::Leaf(_, leaf) | Node::Tree(_, Tree::Inlined(leaf)) => {
                Part::Leaf(leaf.entries.iter().map(|(key, block)| (*key, block.oid)).collect())
            }
            Node::Tree(_, Tree::Node(inner)) => {
                let children: Vec<Oid> = inner.children.iter().map(|child| child.oid).collect();
                ahead.extend(children.iter().map(|child| (*child, Some(oid))));
                Part::Inner(children)
            }
            _ => Part::Leaf(Vec::new()),
        };
        if let Part::Leaf(entries) = &what {
            for (key, block) in entries {
                if delta.after.insert(*key, *block).is_some() {
                    let what = "a block stands in its tree twice";
                    return Err(ZodbError::Structure { oid: root, at, what });
                }
            }
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
            Part::Leaf(entries) => delta.before.extend(entries.iter().copied()),
        }
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

fn unknown_tree(oid: Oid, at: Tid) -> ZodbError {
    ZodbError::Structure { oid, at, what: "its tree could not be read before" }
}

/// The size that the greatest key of a known tree gives.
fn size_now(tree: &FileTree) -> Option<u64> {
    let known = tree.nodes.as_ref()?;
    let mut ahead = vec![tree.file.tree];
    while let Some(oid) = ahead.pop() {
        match known.get(&oid).map(|node| &node.what) {
            Some(Part::Inner(children)) => ahead.extend(children),
            Some(Part::Leaf(entries)) => {
                if let Some((key, _)) = entries.last() {
                    return size_of_keys(Some(*key), &tree.file);
                }
            }
            None => {}
        }
    }
    Some(0)
}

fn forget(uses: &mut HashMap<Oid, Vec<Use>>, oid: Oid, used: Use) {
    if let Entry::Occupied(mut known) = uses.entry(oid) {
        known.get_mut().retain(|other| *other != used);
        if known.get().is_empty() {
            known.remove();
        }
    }
}

/// Whether an object is a file; a record that cannot be read is not.
fn is_file(nodes: &Nodes, oid: Oid, at: Tid) -> Result<bool, ZodbError> {
    match nodes.class(oid, at) {
        Ok(class) => Ok(class == Some(Class::BigFile)),
        Err(error) if error.is_damage() && !error.is_packed() => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file; one that cannot be read is none, and the log says why.
fn file_or_warn(nodes: &Nodes, oid: Oid, at: Tid) -> Result<Option<FileNode>, ZodbError> {
    match nodes.file(oid, at) {
        Err(error) if error.is_damage() && !error.is_packed() => {
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

fn change_of(oid: Oid, old_size: u64, tree: &FileTree) -> FileChange {
    bare_change(oid, old_size, tree.size, tree.file.block_size)
}

fn all_blocks() -> BlockRuns {
    vec![(BlockIndex::new(0), BlockCount::new(u64::MAX))]
}

fn is_all(blocks: &BlockRuns) -> bool {
    blocks.first().is_some_and(|(_, count)| count.raw() == u64::MAX)
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
