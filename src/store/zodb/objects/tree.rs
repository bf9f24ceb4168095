//! Nodes and leaves of BTrees.
//!
//! The state of a tree is `None` (empty), `((state of a bucket,),)` (one leaf that has no record of its own), or
//! `((child, key, child, key, .., child), first bucket)`. That of a bucket is `((key, value, key, value, ..),)`, with
//! the next bucket behind it unless it is the last.

use super::{Class, ObjectError, StateReader, Target};
use crate::store::zodb::pickle::{Value, ValueId};

/// A node of a tree; each node is the root of a tree of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// It has no keys.
    Empty,
    /// It is so small that its only leaf is in its own record.
    Inlined(Bucket),
    /// It has children.
    Node(Node),
}

/// A node with children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Keys below `keys[i]` are under `children[i]` or before it, all others behind it. Ascending, one less than children.
    pub keys: Vec<i64>,
    /// Nodes or leaves; at least one.
    pub children: Vec<Target>,
    /// The leaf with the smallest keys, if the record says it.
    pub first_bucket: Option<Target>,
}

/// A leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Keys, ascending, and what they mean. That may be of any class: a wrong one harms its own key alone.
    pub entries: Vec<(i64, Target)>,
    /// The leaf with the next keys.
    pub next: Option<Target>,
}

impl StateReader<'_, '_> {
    /// The classes of nodes and leaves of this kind of tree.
    fn nodes(&self) -> &'static [Class] {
        match self.class {
            Class::LongTree | Class::LongBucket => &[Class::LongTree, Class::LongBucket],
            _ => &[Class::IntTree, Class::IntBucket],
        }
    }

    fn leaves(&self) -> &'static [Class] {
        self.nodes().get(1..).unwrap_or_default()
    }

    pub(super) fn tree(&self, state: ValueId) -> Result<Tree, ObjectError> {
        if self.pickles.value(state) == Value::None {
            return Ok(Tree::Empty);
        }
        let (children, first_bucket) = match self.pickles.tuple(state) {
            Some([children]) => (*children, None),
            Some([children, first]) => (*children, Some(*first)),
            _ => return Err(self.state("the state")),
        };
        let items = self.pickles.tuple(children).ok_or(self.state("the children"))?;
        match (items, first_bucket) {
            ([only], None) if self.pickles.tuple(*only).is_some() => Ok(Tree::Inlined(self.bucket(*only)?)),
            _ => Ok(Tree::Node(self.node(items, first_bucket)?)),
        }
    }

    fn node(&self, items: &[ValueId], first_bucket: Option<ValueId>) -> Result<Node, ObjectError> {
        let Some((first, rest)) = items.split_first() else { return Err(self.state("the list of children")) };
        let (pairs, []) = rest.as_chunks::<2>() else { return Err(self.state("the list of children")) };
        let mut keys = Vec::with_capacity(pairs.len());
        let mut children = Vec::with_capacity(pairs.len() + 1);
        children.push(self.target_of(*first, "a child", self.nodes())?);
        for [key, child] in pairs {
            keys.push(self.key(*key, keys.last().copied())?);
            children.push(self.target_of(*child, "a child", self.nodes())?);
        }
        let first_bucket =
            first_bucket.map(|first| self.target_of(first, "the first bucket", self.leaves())).transpose()?;
        Ok(Node { keys, children, first_bucket })
    }

    pub(super) fn bucket(&self, state: ValueId) -> Result<Bucket, ObjectError> {
        let (items, next) = match self.pickles.tuple(state) {
            Some([items]) => (*items, None),
            Some([items, next]) => (*items, Some(*next)),
            _ => return Err(self.state("the state of a bucket")),
        };
        let items = self.pickles.tuple(items).ok_or(self.state("the list of entries"))?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err(self.state("the list of entries")) };
        let mut entries: Vec<(i64, Target)> = Vec::with_capacity(pairs.len());
        for [key, value] in pairs {
            let key = self.key(*key, entries.last().map(|(key, _)| *key))?;
            entries.push((key, self.target(*value, "a value")?));
        }
        let next = next.map(|next| self.target_of(next, "the next bucket", self.leaves())).transpose()?;
        Ok(Bucket { entries, next })
    }

    fn key(&self, id: ValueId, previous: Option<i64>) -> Result<i64, ObjectError> {
        let Value::Int(key) = self.pickles.value(id) else { return Err(self.state("a key")) };
        match previous {
            Some(previous) if key <= previous => {
                Err(ObjectError::KeyOrder { class: self.class, previous, key })
            }
            _ => Ok(key),
        }
    }
}
