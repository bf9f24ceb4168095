//! A database that changes at random, and what is in it, known without reading it.
//!
//! Files are maps from keys to blocks. They are stored in trees whose topology is random too, and changes for no reason:
//! nodes are split, merged, moved below others, taken out and brought back. Only records that differ are written, as ZODB does.
//! Invariant: the maps that are compared with come from what was done, never from a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use zodb_writer::records::{self, Class, Kind, Ref};
use zodb_writer::{Write, Writer};

/// Keys are below this.
pub const KEYS: i64 = 24;
const BLOCK_SIZES: [u64; 2] = [4096, 8192];
const FILES_MAX: usize = 4;
/// First tid of a world: some moment in 2020.
const FIRST_TID: u64 = 0x03d7_0000_0000_0000;
const TID_STEP: u64 = 0x0000_0000_1000_0000;

/// Numbers from a seed.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635_dcf9_8f21)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len() as u64) as usize).copied()
    }
}

/// A file as of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    pub block_size: u64,
    pub tree: u64,
    pub blocks: BTreeMap<i64, u64>,
}

impl FileState {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.blocks.keys().next_back().map_or(0, |last| (*last as u64 + 1) * self.block_size)
    }
}

/// All files as of a state.
pub type State = BTreeMap<u64, FileState>;

/// A commit, and all that it can be compared with.
#[derive(Clone, Debug)]
pub struct Done {
    pub tid: u64,
    pub state: State,
    /// Blocks whose records it wrote.
    pub blocks: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum Node {
    Bucket(Vec<(i64, Ref)>),
    /// A tree with its only leaf in it.
    Inlined(Vec<(i64, Ref)>),
    /// The least key of each child; that of the first does not count. Without children: an empty tree.
    Inner(Vec<(i64, u64)>),
}

/// Objects, and where the newest record of each was.
type Positions = Vec<(u64, Option<u64>)>;

/// What ZODB has in memory.
#[derive(Clone, Default)]
struct Model {
    files: BTreeMap<u64, (u64, u64)>,
    nodes: BTreeMap<u64, Node>,
    maps: BTreeMap<u64, BTreeMap<i64, Ref>>,
    stored: BTreeMap<u64, Option<Vec<u8>>>,
}

/// A database at work.
pub struct World {
    pub random: Random,
    pub done: Vec<Done>,
    writer: Writer,
    model: Model,
    /// The model before the last commit, and what that wrote, with the positions before.
    before: Option<(Model, Positions)>,
    positions: BTreeMap<u64, u64>,
    blocks: Vec<Ref>,
    unused_files: Vec<u64>,
    old_buckets: Vec<u64>,
    old_trees: Vec<u64>,
    next_oid: u64,
    leaf_max: u64,
    node_max: u64,
}

impl World {
    pub fn new(path: &Path, seed: u64) -> World {
        let mut random = Random::new(seed);
        let (leaf_max, node_max) = (2 + random.below(3), 2 + random.below(3));
        let mut world = World {
            random,
            done: Vec::new(),
            writer: Writer::create(path).unwrap(),
            model: Model::default(),
            before: None,
            positions: BTreeMap::new(),
            blocks: Vec::new(),
            unused_files: Vec::new(),
            old_buckets: Vec::new(),
            old_trees: Vec::new(),
            next_oid: 1,
            leaf_max,
            node_max,
        };
        let root = vec![(0, Write::Data(records::root(&[])))];
        world.write(root);
        world
    }

    /// Commits something.
    pub fn step(&mut self) {
        if self.random.chance(5) && self.undo() {
            return;
        }
        let before = self.model.clone();
        let mut blocks = BTreeMap::new();
        for _ in 0..1 + self.random.below(3) {
            self.edit(&mut blocks);
        }
        let mut writes: BTreeMap<u64, Option<Vec<u8>>> = blocks;
        for (oid, data) in self.records() {
            let same = self.model.stored.get(&oid).is_some_and(|stored| stored.as_ref() == Some(&data));
            if !same || self.random.chance(3) {
                writes.insert(oid, Some(data));
            }
        }
        let gone: Vec<u64> =
            before.files.keys().filter(|oid| !self.model.files.contains_key(oid)).copied().collect();
        writes.extend(gone.into_iter().map(|oid| (oid, None)));
        let positions = writes.keys().map(|oid| (*oid, self.positions.get(oid).copied())).collect();
        self.before = Some((before, positions));
        self.model.stored.extend(writes.clone());
        self.write(
            (writes.into_iter())
                .map(|(oid, data)| (oid, data.map_or(Write::Deletion, Write::Data)))
                .collect(),
        );
    }

    /// Takes the last commit back, as ZODB does it: by records that point back.
    fn undo(&mut self) -> bool {
        let Some((model, positions)) = self.before.take() else { return false };
        self.model = model;
        // Nodes may be in trees again.
        self.old_buckets.retain(|oid| !self.model.nodes.contains_key(oid));
        self.old_trees.retain(|oid| !self.model.nodes.contains_key(oid));
        let back = |pos: Option<u64>| pos.map_or(Write::Deletion, Write::Back);
        self.write(positions.into_iter().map(|(oid, pos)| (oid, back(pos))).collect());
        true
    }

    fn write(&mut self, writes: Vec<(u64, Write)>) {
        let tid = FIRST_TID + (self.done.len() as u64 + 1) * TID_STEP + self.random.below(3);
        let places = self.writer.commit(tid, &writes).unwrap();
        let known: BTreeSet<u64> = self.blocks.iter().map(|block| block.oid).collect();
        let blocks = writes.iter().map(|(oid, _)| *oid).filter(|oid| known.contains(oid)).collect();
        for ((oid, write), place) in writes.into_iter().zip(places) {
            // ZODB points at the record that has the data, or at one that points there.
            match write {
                Write::Deletion => drop(self.positions.remove(&oid)),
                Write::Data(_) | Write::Back(_) => drop(self.positions.insert(oid, place)),
            }
        }
        let state = (self.model.files.iter()).map(|(oid, (block_size, tree))| {
            let blocks = self.model.maps[tree].iter().map(|(key, block)| (*key, block.oid)).collect();
            (*oid, FileState { block_size: *block_size, tree: *tree, blocks })
        });
        self.done.push(Done { tid, state: state.collect(), blocks });
    }

    fn oid(&mut self) -> u64 {
        self.next_oid += 1 + self.random.below(3);
        self.next_oid
    }

    fn edit(&mut self, written: &mut BTreeMap<u64, Option<Vec<u8>>>) {
        let files: Vec<u64> = self.model.files.keys().copied().collect();
        let file = match self.random.pick(&files) {
            Some(file) if files.len() >= FILES_MAX || !self.random.chance(6) => file,
            _ => return self.create(written),
        };
        let (block_size, tree) = self.model.files[&file];
        match self.random.below(100) {
            0..30 => self.set_key(tree, written),
            30..50 => {
                let keys: Vec<i64> = self.model.maps[&tree].keys().copied().collect();
                if let Some(key) = self.random.pick(&keys) {
                    self.model.maps.get_mut(&tree).unwrap().remove(&key);
                    self.remove(tree, key);
                }
            }
            50..65 => self.rewrite_block(written),
            65..88 => self.reshape(tree),
            88..90 => {
                // All of it goes; the tree may come back.
                self.model.maps.insert(tree, BTreeMap::new());
                self.retire(tree, true);
                self.model.nodes.insert(tree, Node::Inner(Vec::new()));
            }
            90..93 => {
                self.model.files.remove(&file);
                self.unused_files.push(file);
            }
            93..95 => {
                let other = BLOCK_SIZES[usize::from(block_size == BLOCK_SIZES[0])];
                self.model.files.insert(file, (other, tree));
            }
            95..97 => {
                let tree = self.new_tree(written);
                self.model.files.insert(file, (block_size, tree));
            }
            _ => {
                // Two files with one tree.
                let other = self.random.pick(&files).unwrap();
                let tree = self.model.files[&other].1;
                self.model.files.insert(file, (block_size, tree));
            }
        }
    }

    fn create(&mut self, written: &mut BTreeMap<u64, Option<Vec<u8>>>) {
        let again = self.random.chance(50).then(|| self.unused_files.pop()).flatten();
        let file = again.unwrap_or_else(|| self.oid());
        let tree = self.new_tree(written);
        let block_size = self.random.pick(&BLOCK_SIZES).unwrap();
        self.model.files.insert(file, (block_size, tree));
    }

    fn new_tree(&mut self, written: &mut BTreeMap<u64, Option<Vec<u8>>>) -> u64 {
        let tree = self.oid();
        self.model.nodes.insert(tree, Node::Inner(Vec::new()));
        self.model.maps.insert(tree, BTreeMap::new());
        for _ in 0..self.random.below(8) {
            self.set_key(tree, written);
        }
        self.reshape(tree);
        tree
    }

    fn block_record(&mut self, block: Ref) -> Vec<u8> {
        match block.class {
            // The tree of its chunks is of no interest here.
            Class::Blk1 => records::blk1(block.oid + 1_000_000),
            _ => records::blk0(&[self.random.below(255) as u8 + 1; 3]),
        }
    }

    fn rewrite_block(&mut self, written: &mut BTreeMap<u64, Option<Vec<u8>>>) {
        let blocks = self.blocks.clone();
        if let Some(block) = self.random.pick(&blocks) {
            let record = self.block_record(block);
            written.insert(block.oid, Some(record));
        }
    }

    fn set_key(&mut self, tree: u64, written: &mut BTreeMap<u64, Option<Vec<u8>>>) {
        let key = self.random.below(KEYS as u64) as i64;
        let blocks = self.blocks.clone();
        let block = match self.random.pick(&blocks) {
            // Moved, or shared; it exists, for it was written by a commit that may have been undone.
            Some(block) if self.random.chance(40) => {
                if !self.positions.contains_key(&block.oid) {
                    let record = self.block_record(block);
                    written.insert(block.oid, Some(record));
                }
                block
            }
            _ => {
                let class = if self.random.chance(25) { Class::Blk1 } else { Class::Blk0 };
                let block = Ref { oid: self.oid(), class };
                self.blocks.push(block);
                let record = self.block_record(block);
                written.insert(block.oid, Some(record));
                block
            }
        };
        self.model.maps.get_mut(&tree).unwrap().insert(key, block);
        self.insert(tree, key, block);
    }

    /// The way from the root of a tree down to the node that has a key: nodes, and which child each goes on to.
    fn way(&self, tree: u64, key: i64) -> Vec<(u64, usize)> {
        let (mut way, mut at) = (Vec::new(), tree);
        while let Node::Inner(children) = &self.model.nodes[&at] {
            let child = children.iter().skip(1).take_while(|(least, _)| *least <= key).count();
            way.push((at, child));
            match children.get(child) {
                Some((_, next)) => at = *next,
                None => return way,
            }
        }
        way.push((at, 0));
        way
    }

    fn insert(&mut self, tree: u64, key: i64, block: Ref) {
        let mut way = self.way(tree, key);
        let (last, _) = way.pop().unwrap();
        let leaf_max = self.leaf_max as usize;
        let node = self.model.nodes.get_mut(&last).unwrap();
        if let Node::Inner(children) = node {
            assert!(children.is_empty());
            *node = Node::Inlined(vec![(key, block)]);
            return;
        }
        let (Node::Bucket(entries) | Node::Inlined(entries)) = node else { unreachable!() };
        match entries.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => entries[at].1 = block,
            Err(at) => entries.insert(at, (key, block)),
        }
        if entries.len() <= leaf_max {
            return;
        }
        let right = entries.split_off(entries.len() / 2);
        let (least, left) = (right[0].0, std::mem::take(entries));
        let right_oid = self.oid();
        let inlined = matches!(self.model.nodes[&last], Node::Inlined(_));
        self.model.nodes.insert(right_oid, Node::Bucket(right));
        if inlined {
            let left_oid = self.oid();
            self.model.nodes.insert(left_oid, Node::Bucket(left));
            self.model.nodes.insert(last, Node::Inner(vec![(0, left_oid), (least, right_oid)]));
            return;
        }
        self.model.nodes.insert(last, Node::Bucket(left));
        self.add_child(way, (least, right_oid));
    }

    /// Adds a child behind the one that the way leads to.
    fn add_child(&mut self, mut way: Vec<(u64, usize)>, child: (i64, u64)) {
        let Some((oid, at)) = way.pop() else { return };
        let node_max = self.node_max as usize;
        let Some(Node::Inner(children)) = self.model.nodes.get_mut(&oid) else { unreachable!() };
        children.insert(at + 1, child);
        if children.len() <= node_max {
            return;
        }
        let right = children.split_off(children.len() / 2);
        let (least, left) = (right[0].0, std::mem::take(children));
        let right_oid = self.oid();
        self.model.nodes.insert(right_oid, Node::Inner(right));
        if way.is_empty() {
            let left_oid = self.oid();
            self.model.nodes.insert(left_oid, Node::Inner(left));
            self.model.nodes.insert(oid, Node::Inner(vec![(0, left_oid), (least, right_oid)]));
        } else {
            self.model.nodes.insert(oid, Node::Inner(left));
            self.add_child(way, (least, right_oid));
        }
    }

    fn remove(&mut self, tree: u64, key: i64) {
        let mut way = self.way(tree, key);
        let (last, _) = way.pop().unwrap();
        let node = self.model.nodes.get_mut(&last).unwrap();
        let (Node::Bucket(entries) | Node::Inlined(entries)) = node else { return };
        entries.retain(|(other, _)| *other != key);
        if !entries.is_empty() {
            return;
        }
        if way.is_empty() {
            self.model.nodes.insert(last, Node::Inner(Vec::new()));
            return;
        }
        let mut gone = last;
        while let Some((oid, at)) = way.pop() {
            self.forget(gone);
            let Some(Node::Inner(children)) = self.model.nodes.get_mut(&oid) else { unreachable!() };
            children.remove(at);
            if !children.is_empty() || way.is_empty() {
                return;
            }
            gone = oid;
        }
    }

    /// A node that is in no tree any more; it may come back.
    fn forget(&mut self, oid: u64) {
        match self.model.nodes.remove(&oid) {
            Some(Node::Bucket(_)) => self.old_buckets.push(oid),
            Some(_) => self.old_trees.push(oid),
            None => {}
        }
    }

    /// Takes all nodes below one away.
    fn retire(&mut self, oid: u64, keep_itself: bool) {
        if let Node::Inner(children) = self.model.nodes[&oid].clone() {
            for (_, child) in children {
                self.retire(child, false);
            }
        }
        if !keep_itself {
            self.forget(oid);
        }
    }

    /// Builds what is below a random node anew, partly of the nodes that were there.
    fn reshape(&mut self, tree: u64) {
        let key = self.random.below(KEYS as u64) as i64;
        let inner: Vec<(u64, usize)> = self.way(tree, key);
        let depth = self.random.below(inner.len() as u64) as usize;
        let (mut low, mut high) = (0, KEYS);
        for (oid, child) in &inner[..depth] {
            let Node::Inner(children) = &self.model.nodes[oid] else { unreachable!() };
            if *child > 0 {
                low = low.max(children[*child].0);
            }
            if let Some((least, _)) = children.get(child + 1) {
                high = high.min(*least);
            }
        }
        let oid = inner[depth].0;
        if matches!(self.model.nodes[&oid], Node::Bucket(_)) {
            return;
        }
        let map = self.model.maps[&tree].range(low..high).map(|(key, block)| (*key, *block));
        let entries: Vec<(i64, Ref)> = map.collect();
        let (buckets, trees) = (std::mem::take(&mut self.old_buckets), std::mem::take(&mut self.old_trees));
        self.retire(oid, true);
        let mut pools = (std::mem::take(&mut self.old_buckets), std::mem::take(&mut self.old_trees));
        // Others that were there long ago.
        let (mut buckets, mut trees) = (buckets, trees);
        for (old, pool) in [(&mut buckets, &mut pools.0), (&mut trees, &mut pools.1)] {
            for _ in 0..2 {
                if self.random.chance(30) && !old.is_empty() {
                    let at = self.random.below(old.len() as u64) as usize;
                    pool.push(old.swap_remove(at));
                }
            }
        }
        let root = Node::Inner(Vec::new());
        self.model.nodes.insert(oid, root);
        self.fill(oid, &entries, (low, high), 0, &mut pools);
        self.old_buckets.extend(buckets.into_iter().chain(pools.0));
        self.old_trees.extend(trees.into_iter().chain(pools.1));
    }

    fn take(&mut self, pool: &mut Vec<u64>) -> u64 {
        if pool.is_empty() || self.random.chance(25) {
            return self.oid();
        }
        let at = self.random.below(pool.len() as u64) as usize;
        pool.swap_remove(at)
    }

    fn fill(
        &mut self,
        oid: u64,
        entries: &[(i64, Ref)],
        (low, high): (i64, i64),
        depth: u64,
        pools: &mut (Vec<u64>, Vec<u64>),
    ) {
        if entries.is_empty() && !self.random.chance(10) {
            self.model.nodes.insert(oid, Node::Inner(Vec::new()));
            return;
        }
        if entries.len() as u64 <= self.leaf_max && self.random.chance(60) {
            self.model.nodes.insert(oid, Node::Inlined(entries.to_vec()));
            return;
        }
        let mut cuts = BTreeSet::new();
        for _ in 0..self.random.below(self.node_max) {
            cuts.insert(low + 1 + self.random.below((high - low - 1).max(1) as u64) as i64);
        }
        cuts.retain(|cut| *cut < high);
        let mut children = Vec::new();
        let bounds: Vec<i64> = [low].into_iter().chain(cuts).collect();
        for (number, from) in bounds.iter().enumerate() {
            let to = bounds.get(number + 1).copied().unwrap_or(high);
            let part: Vec<(i64, Ref)> =
                entries.iter().filter(|(key, _)| (*from..to).contains(key)).copied().collect();
            // Empty leaves are rare: the one before covers their keys.
            if part.is_empty() && !children.is_empty() && !self.random.chance(5) {
                continue;
            }
            let is_leaf = depth >= 4 || part.len() as u64 <= self.leaf_max && self.random.chance(70);
            let child = if is_leaf {
                let child = self.take(&mut pools.0);
                self.model.nodes.insert(child, Node::Bucket(part));
                child
            } else {
                let child = self.take(&mut pools.1);
                self.fill(child, &part, (*from, to), depth + 1, pools);
                child
            };
            children.push((*from, child));
        }
        self.model.nodes.insert(oid, Node::Inner(children));
    }

    /// All records as they would be now, but those of blocks.
    fn records(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut records = BTreeMap::new();
        let mut trees = BTreeSet::new();
        for (file, (block_size, tree)) in &self.model.files {
            records.insert(*file, records::big_file(*block_size, *tree));
            trees.insert(*tree);
        }
        for tree in trees {
            let mut leaves = Vec::new();
            self.leaves(tree, &mut leaves);
            self.tree_records(tree, &leaves, &mut records);
        }
        records
    }

    fn leaves(&self, oid: u64, leaves: &mut Vec<u64>) {
        match &self.model.nodes[&oid] {
            Node::Bucket(_) => leaves.push(oid),
            Node::Inlined(_) => {}
            Node::Inner(children) => children.iter().for_each(|(_, child)| self.leaves(*child, leaves)),
        }
    }

    fn tree_records(&self, oid: u64, leaves: &[u64], records: &mut BTreeMap<u64, Vec<u8>>) {
        let record = match &self.model.nodes[&oid] {
            Node::Bucket(entries) => {
                let at = leaves.iter().position(|leaf| *leaf == oid).unwrap();
                records::bucket(Kind::Long, entries, leaves.get(at + 1).copied())
            }
            Node::Inlined(entries) => records::inlined_tree(Kind::Long, entries),
            Node::Inner(children) if children.is_empty() => records::empty_tree(Kind::Long),
            Node::Inner(children) => {
                for (_, child) in children {
                    self.tree_records(*child, leaves, records);
                }
                let class = |oid: &u64| match &self.model.nodes[oid] {
                    Node::Bucket(_) => Class::Bucket(Kind::Long),
                    _ => Class::Tree(Kind::Long),
                };
                let of = |(key, oid): &(i64, u64)| (*key, Ref { oid: *oid, class: class(oid) });
                let children: Vec<(i64, Ref)> = children.iter().map(of).collect();
                let mut below = Vec::new();
                self.leaves(oid, &mut below);
                records::tree(Kind::Long, &children, below.first().copied().unwrap_or(oid))
            }
        };
        records.insert(oid, record);
    }
}
