//! Manifests: which block of which file had which bytes as of which transaction, as ZODB in Python reads it.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; a test ends at the first surprise

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use revfs::store::zodb::Oid;
use revfs_protocol::Tid;

/// What a manifest says.
pub struct Manifest {
    pub database: PathBuf,
    /// Hash of a block of zeros, in hex.
    pub hole: String,
    /// Files by name: object and block size.
    pub files: BTreeMap<String, (Oid, u64)>,
    /// Objects that are no files.
    pub others: Vec<Oid>,
    pub tids: Vec<Tid>,
    /// (name, tid) -> size from then on.
    sizes: BTreeMap<(String, Tid), u64>,
    /// (name, block, tid) -> hash from then on.
    blocks: BTreeMap<(String, u64, Tid), String>,
}

/// The folder of the databases; none: says so.
pub fn folder(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/zodb");
    if folder.exists() {
        return Some(folder);
    }
    eprintln!("SKIPPED {test}: there is no {}", folder.display());
    None
}

impl Manifest {
    /// Those of all databases that have one.
    pub fn all(folder: &Path) -> Vec<Manifest> {
        ["plain.fs", "deep.fs"].map(|name| Manifest::read(&folder.join(name))).into()
    }

    fn read(database: &Path) -> Manifest {
        let text = fs::read_to_string(format!("{}.manifest", database.display())).unwrap();
        Manifest::parse(database, &text)
    }

    /// What a text says of a database.
    pub fn parse(database: &Path, text: &str) -> Manifest {
        let mut manifest = Manifest {
            database: database.to_owned(),
            hole: String::new(),
            files: BTreeMap::new(),
            others: Vec::new(),
            tids: Vec::new(),
            sizes: BTreeMap::new(),
            blocks: BTreeMap::new(),
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["hole", hash] => manifest.hole = hash.to_owned(),
                ["file", name, oid, _, size] => {
                    let file = (oid.parse().unwrap(), size.parse().unwrap());
                    manifest.files.insert(name.to_owned(), file);
                }
                ["notfile", oid] => manifest.others.push(oid.parse().unwrap()),
                ["tid", _, tid] => manifest.tids.push(tid.parse().unwrap()),
                ["size", tid, name, bytes] => {
                    manifest.sizes.insert((name.to_owned(), tid.parse().unwrap()), bytes.parse().unwrap());
                }
                ["blk", tid, name, block, hash] => {
                    let key = (
                        name.to_owned(),
                        block.trim_start_matches('#').parse().unwrap(),
                        tid.parse().unwrap(),
                    );
                    manifest.blocks.insert(key, hash.to_owned());
                }
                _ => panic!("{}: {line}", database.display()),
            }
        }
        assert!(manifest.tids.len() > 10 && manifest.blocks.len() > 100);
        manifest
    }

    /// Size of a file as of a state.
    pub fn size(&self, name: &str, at: Tid) -> u64 {
        let name = name.to_owned();
        let known = self.sizes.range((name.clone(), Tid::ZERO)..=(name, at)).next_back();
        known.map_or(0, |(_, size)| *size)
    }

    /// Hash of a block as of a state.
    pub fn hash(&self, name: &str, block: u64, at: Tid) -> &str {
        let name = name.to_owned();
        let known = self.blocks.range((name.clone(), block, Tid::ZERO)..=(name, block, at)).next_back();
        known.map_or(self.hole.as_str(), |(_, hash)| hash)
    }

    /// Blocks of a file that were written or taken away at a tid.
    pub fn written(&self, name: &str, tid: Tid) -> BTreeSet<u64> {
        let of_it = self.blocks.keys().filter(|(file, _, at)| file == name && *at == tid);
        of_it.map(|(_, block, _)| *block).collect()
    }

    /// Blocks of a file whose bytes changed at a tid. Some were written and stayed as they were.
    pub fn changed(&self, name: &str, tid: Tid) -> BTreeSet<u64> {
        let before = Tid::from_raw(tid.raw() - 1);
        let blocks = self.written(name, tid).into_iter();
        blocks.filter(|block| self.hash(name, *block, tid) != self.hash(name, *block, before)).collect()
    }
}
