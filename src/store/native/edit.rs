//! What a transaction did to files, before it is committed.
//!
//! Invariant: an edit is told relative to `base`; nothing here knows of later commits. Names given or taken in
//! the transaction overlay those of base.

use std::collections::BTreeMap;

use revfs_protocol::{BlockSize, FileId};

use super::commit::CommitError;
use super::conflict::{OurFile, add_tail};
use super::extents::ExtentMap;
use crate::store::{DirId, Entry, FileMeta, ReadTxn, check_path};

/// Edits of one file.
#[derive(Debug)]
pub struct FileEdit {
    /// As of base; `None`: this transaction creates it.
    pub base: Option<FileMeta>,
    /// Full name as of base.
    pub base_path: Vec<u8>,
    /// Full name now.
    pub path: Vec<u8>,
    /// Deleted here.
    pub deleted: bool,
    /// Unit of change.
    pub block_size: BlockSize,
    /// Size now, bytes.
    pub size: u64,
    /// Written blocks that have a place.
    pub extents: ExtentMap,
    /// Written blocks that wait in memory, whole.
    pub staged: BTreeMap<u64, Vec<u8>>,
    /// Any change since base is a conflict.
    pub strict: bool,
    /// Declared reads as (first, end) of blocks, in order of declaration.
    pub reads: Vec<(u64, u64)>,
}

impl FileEdit {
    /// A file of base, not edited yet.
    pub fn of(meta: FileMeta, path: Vec<u8>) -> FileEdit {
        FileEdit {
            base_path: path.clone(),
            path,
            deleted: false,
            block_size: meta.block_size,
            size: meta.size,
            extents: ExtentMap::new(meta.block_size),
            staged: BTreeMap::new(),
            strict: false,
            reads: Vec::new(),
            base: Some(meta),
        }
    }

    /// A new file.
    pub fn new(path: &[u8], block_size: BlockSize) -> FileEdit {
        FileEdit {
            base: None,
            base_path: path.to_vec(),
            path: path.to_vec(),
            deleted: false,
            block_size,
            size: 0,
            extents: ExtentMap::new(block_size),
            staged: BTreeMap::new(),
            strict: false,
            reads: Vec::new(),
        }
    }

    /// Size as of base; 0 for a new file.
    pub fn base_size(&self) -> u64 {
        self.base.as_ref().map_or(0, |meta| meta.size)
    }

    /// Whether it was renamed.
    pub fn renamed(&self) -> bool {
        self.base.is_some() && self.path != self.base_path
    }

    /// Whether a commit has anything to say of it.
    pub fn touched(&self) -> bool {
        match &self.base {
            None => !self.deleted,
            Some(_) => {
                self.deleted || self.renamed() || self.size != self.base_size() || !self.extents.is_empty()
            }
        }
    }

    /// What it means for conflicts.
    pub fn write_set(&self) -> OurFile {
        let mut writes: Vec<(u64, u64)> =
            self.extents.runs().map(|(first, count)| (first, first + count)).collect();
        if self.size != self.base_size() {
            add_tail(&mut writes, self.block_size.block_of(self.size.min(self.base_size())).raw());
        }
        let mut reads = self.reads.clone();
        reads.sort_unstable();
        reads.dedup_by(|next, before| {
            let joins = next.0 <= before.1;
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        OurFile {
            path: self.path.clone(),
            writes,
            reads,
            moved: self.deleted || self.renamed(),
            touched: self.touched(),
            strict: self.strict,
        }
    }
}

/// Names given (`Some`) and taken (`None`) by a transaction.
#[derive(Debug, Default)]
pub struct Names {
    overlay: BTreeMap<Vec<u8>, Option<FileId>>,
}

impl Names {
    /// The file of this name, as the transaction sees it.
    pub fn file(&self, base: &ReadTxn, path: &[u8]) -> Result<Option<FileId>, CommitError> {
        match self.overlay.get(path) {
            Some(known) => Ok(*known),
            None => match base.resolve(path)? {
                Some(Entry::File(file)) => Ok(Some(file)),
                _ => Ok(None),
            },
        }
    }

    /// Takes a name away.
    pub fn remove(&mut self, path: &[u8]) {
        self.overlay.insert(path.to_vec(), None);
    }

    /// Gives a name that must be free: no file, no directory, and no file on the way to it.
    pub fn add(&mut self, base: &ReadTxn, path: &[u8], file: FileId) -> Result<(), CommitError> {
        check_path(path)?;
        self.check_free(base, path)?;
        self.overlay.insert(path.to_vec(), Some(file));
        Ok(())
    }

    /// Undoes a [`Names::remove`].
    pub fn put_back(&mut self, path: &[u8], file: FileId) {
        self.overlay.insert(path.to_vec(), Some(file));
    }

    /// All names that the transaction gave.
    pub fn given(&self) -> impl Iterator<Item = (&[u8], FileId)> {
        self.overlay.iter().filter_map(|(path, file)| file.map(|file| (path.as_slice(), file)))
    }

    /// Whether `path` can name a file in the state `at`, with this transaction's own changes on top.
    pub fn check_free(&self, at: &ReadTxn, path: &[u8]) -> Result<(), CommitError> {
        if self.file(at, path)?.is_some() {
            return Err(CommitError::Exists { path: path.to_vec() });
        }
        for (index, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if self.file(at, &path[..index])?.is_some() {
                return Err(CommitError::NotADirectory { path: path[..index].to_vec() });
            }
        }
        let mut below = path.to_vec();
        below.push(b'/');
        let mine = self.overlay.range(below.clone()..).take_while(|(name, _)| name.starts_with(&below));
        if mine.clone().any(|(_, file)| file.is_some()) {
            return Err(CommitError::IsDirectory { path: path.to_vec() });
        }
        if let Some(Entry::Dir(dir)) = at.resolve(path)?
            && self.any_left(at, dir, &below)?
        {
            return Err(CommitError::IsDirectory { path: path.to_vec() });
        }
        Ok(())
    }

    fn any_left(&self, at: &ReadTxn, dir: DirId, prefix: &[u8]) -> Result<bool, CommitError> {
        let files = at.walk(dir)?;
        Ok(files.iter().any(|(name, _)| {
            let full = [prefix, name].concat();
            self.overlay.get(&full) != Some(&None)
        }))
    }
}
