//! By which names the files of a database are reached from its root object.
//!
//! ZODB has no names: what a site calls its arrays are keys of mappings that lead from the root to them. Invariant: only
//! mappings, lists and BTrees of well-known classes are looked into, as inert data; each object once, so that circles end; objects,
//! values and depth are bounded, so that a database of millions of other objects costs no more. A path is of one file, and a file has
//! one path, the shortest. Left out on purpose: attributes of objects of other classes, and keys that are no names.

use std::collections::{BTreeMap, HashSet, VecDeque};

use bytes::Bytes;
use revfs_protocol::Tid;

use super::Oid;
use super::database::Database;
use super::error::ZodbError;
use super::objects::{self, Class, ObjectError};
use super::pickle::{ClassName, Pickles, Reference, Value, ValueId};
use crate::store::check_path;

/// Most objects that are loaded on the way.
const OBJECTS_MAX: usize = 10_000;
/// Most values that are looked at.
const VALUES_MAX: usize = 1_000_000;
/// Most names in a path.
const DEPTH_MAX: usize = 16;
/// A record that is larger is not looked into, bytes.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// What an object holds others in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    /// A dict in the state, under one of the names that it had.
    Mapping,
    List,
    Tree,
    Bucket,
}

fn container(class: ClassName<'_>) -> Option<Container> {
    Some(match (class.module, class.name) {
        ("persistent.mapping" | "PersistentMapping", "PersistentMapping")
        | ("persistent.dict", "PersistentDict" | "PersistentMapping") => Container::Mapping,
        ("persistent.list" | "PersistentList", "PersistentList") => Container::List,
        (module, name) => {
            let family = module.strip_prefix("BTrees.")?.strip_suffix("BTree")?;
            // Keys that can be names: texts and numbers, which lead to objects.
            if !matches!(family, "OO" | "LO" | "IO" | "UO" | "QO") {
                return None;
            }
            match name.strip_prefix(family)? {
                "BTree" => Container::Tree,
                "Bucket" => Container::Bucket,
                _ => return None,
            }
        }
    })
}

impl Database {
    /// The paths of files from the root object, as of a state: the keys on the way, with `/` between them. Not all files
    /// have one.
    ///
    /// # Errors
    /// The storage does not answer. What cannot be read is passed by, and the log says so.
    pub fn root_paths(&self, at: Tid) -> Result<BTreeMap<Oid, String>, ZodbError> {
        let mut walk = Walk {
            found: BTreeMap::new(),
            taken: HashSet::new(),
            seen: HashSet::from([Oid::ROOT]),
            ahead: VecDeque::from([(Oid::ROOT, String::new())]),
            values: 0,
        };
        for _ in 0..OBJECTS_MAX {
            let Some((oid, path)) = walk.ahead.pop_front() else { break };
            match self.visit(&mut walk, oid, &path, at) {
                Err(error) if error.is_damage() || error.is_packed() => {
                    log::warn!("{error}; no root path leads through it");
                }
                other => other?,
            }
        }
        if !walk.ahead.is_empty() {
            log::info!("root paths are looked for in the first {OBJECTS_MAX} objects only");
        }
        Ok(walk.found)
    }

    fn visit(&self, walk: &mut Walk, oid: Oid, path: &str, at: Tid) -> Result<(), ZodbError> {
        let Some(peeked) = self.storage().peek(oid, at)? else { return Ok(()) };
        if peeked.len > RECORD_BYTES_MAX {
            return Ok(());
        }
        let serial = peeked.serial;
        let data = match peeked.start.len() as u64 == peeked.len {
            true => peeked.start,
            false => self.storage().load(oid, at)?.map_or_else(Bytes::new, |loaded| loaded.data),
        };
        walk.record(oid, path, &data).map_err(|source| ZodbError::Object { oid, serial, source })
    }
}

struct Walk {
    found: BTreeMap<Oid, String>,
    taken: HashSet<String>,
    seen: HashSet<Oid>,
    ahead: VecDeque<(Oid, String)>,
    values: usize,
}

impl Walk {
    /// Looks into the record of an object to which `path` leads.
    fn record(&mut self, oid: Oid, path: &str, data: &[u8]) -> Result<(), ObjectError> {
        let mut pickles = Pickles::new(data);
        let first = pickles.read_next()?;
        let class = objects::class_of(&pickles, first).ok_or(ObjectError::NoClass)?;
        if Class::of(class) == Class::BigFile {
            self.file(oid, path);
            return Ok(());
        }
        let Some(container) = container(class) else { return Ok(()) };
        let state = pickles.read_next()?;
        match container {
            Container::Mapping => self.attribute(&pickles, state, &[&b"data"[..], b"_container"], path),
            Container::List => self.attribute(&pickles, state, &[&b"data"[..]], path),
            Container::Tree => self.tree(&pickles, state, path),
            Container::Bucket => self.bucket(&pickles, state, path),
        }
        Ok(())
    }

    fn file(&mut self, oid: Oid, path: &str) {
        if !path.is_empty() && !self.found.contains_key(&oid) && self.taken.insert(path.to_owned()) {
            self.found.insert(oid, path.to_owned());
        }
    }

    /// What a state has under a name: a dict or a list.
    fn attribute(&mut self, pickles: &Pickles<'_>, state: ValueId, names: &[&[u8]], path: &str) {
        let found = pickles.dict(state).into_iter().flatten().find(|(key, _)| {
            matches!(pickles.value(*key), Value::Text(name) | Value::Str(name) if names.contains(&name))
        });
        if let Some((_, held)) = found {
            self.value(pickles, held, path.to_owned());
        }
    }

    /// Nothing; or one bucket as a tuple of its own; or children and keys in turn, and the first bucket.
    fn tree(&mut self, pickles: &Pickles<'_>, state: ValueId, path: &str) {
        let Some([parts, rest @ ..]) = pickles.tuple(state) else { return };
        let Some(parts) = pickles.tuple(*parts) else { return };
        match (parts, rest) {
            ([bucket], []) if pickles.reference(*bucket).is_none() => self.bucket(pickles, *bucket, path),
            _ => {
                for child in parts.iter().step_by(2) {
                    self.value(pickles, *child, path.to_owned());
                }
            }
        }
    }

    /// Keys and values in turn, and the next bucket.
    fn bucket(&mut self, pickles: &Pickles<'_>, state: ValueId, path: &str) {
        let Some([entries, ..]) = pickles.tuple(state) else { return };
        let (pairs, _) = pickles.tuple(*entries).unwrap_or_default().as_chunks::<2>();
        for [key, value] in pairs {
            if let Some(path) = below(pickles, path, *key) {
                self.value(pickles, *value, path);
            }
        }
    }

    /// A value to which `path` leads, and what it holds itself.
    fn value(&mut self, pickles: &Pickles<'_>, value: ValueId, path: String) {
        let mut ahead = vec![(value, path)];
        while let Some((id, path)) = ahead.pop() {
            self.values += 1;
            if self.values > VALUES_MAX {
                return;
            }
            if let Some(Reference::Strong { oid, class }) = pickles.reference(id) {
                let wanted = class
                    .is_none_or(|class| Class::of(class) == Class::BigFile || container(class).is_some());
                if wanted && self.seen.insert(oid) {
                    self.ahead.push_back((oid, path));
                }
            } else if let Some(items) = pickles.dict(id) {
                let items = items.filter_map(|(key, held)| Some((held, below(pickles, &path, key)?)));
                ahead.extend(items);
            } else if let Some(items) = pickles.list(id).or_else(|| pickles.tuple(id)) {
                let items = items.iter().enumerate();
                ahead.extend(
                    items.filter_map(|(index, held)| Some((*held, join(&path, &index.to_string())?))),
                );
            }
        }
    }
}

/// The path of what a key of something leads to; none if the key is no name.
fn below(pickles: &Pickles<'_>, path: &str, key: ValueId) -> Option<String> {
    match pickles.value(key) {
        Value::Text(name) | Value::Str(name) => {
            join(path, std::str::from_utf8(name).ok().filter(|name| !name.contains('/'))?)
        }
        Value::Int(number) => join(path, &number.to_string()),
        _ => None,
    }
}

fn join(path: &str, name: &str) -> Option<String> {
    let joined = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    let is_deep = joined.split('/').count() > DEPTH_MAX;
    (!is_deep && check_path(joined.as_bytes()).is_ok()).then_some(joined)
}

#[cfg(test)]
mod tests;
