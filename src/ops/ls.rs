//! `ls` and `du`: the files of a state, and the room that they take.
//!
//! Invariant: `size` is what a reader sees; `stored` is what is in packs, without holes and zero tails. Blocks
//! that other revisions alone refer to are in neither; they are in `disk`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use revfs_protocol::{FileId, Tid};
use serde::Serialize;

use super::data::{Name, text, tid_time};
use super::{LookError, live_file};
use crate::store::{DirId, Entry, FileMeta, ReadError, ReadTxn};

/// A file of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LsEntry {
    /// Its full name.
    #[serde(flatten)]
    pub name: Name,
    /// The file.
    #[serde(serialize_with = "text")]
    pub file: FileId,
    /// Size, bytes.
    pub size: u64,
    /// Bytes in packs.
    pub stored: u64,
    /// Unit of change, bytes.
    pub block_size: u64,
    /// The tid of its last change.
    #[serde(serialize_with = "text")]
    pub rev: Tid,
    /// The moment of that, UTC.
    pub time: Option<String>,
    /// The keys that lead to it from the root of a database, if they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_path: Option<String>,
}

impl LsEntry {
    fn new(path: &[u8], meta: &FileMeta) -> LsEntry {
        LsEntry {
            name: Name::new(path),
            file: meta.file,
            size: meta.size,
            stored: meta.stored,
            block_size: meta.block_size.bytes(),
            rev: meta.rev,
            time: tid_time(meta.rev),
            root_path: None,
        }
    }
}

/// Files of a state.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that can be read, in byte order of their components.
    pub files: Vec<LsEntry>,
    /// What is wrong with each of the others.
    pub damaged: Vec<ReadError>,
}

/// All files of a state.
///
/// # Errors
/// See [`LookError`].
pub fn ls(txn: &ReadTxn) -> Result<Listing, LookError> {
    Ok(entries(txn, DirId::ROOT, b"")?)
}

fn entries(txn: &ReadTxn, dir: DirId, prefix: &[u8]) -> Result<Listing, ReadError> {
    let mut listing = Listing::default();
    for (path, file) in txn.walk(dir)? {
        match live_file(txn, file) {
            Ok(Some(meta)) => listing.files.push(LsEntry::new(&[prefix, &path].concat(), &meta)),
            Ok(None) => {}
            // In a database each file is a matter of its own.
            Err(ReadError::Database(error)) if error.is_damage() => listing.damaged.push(error.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(listing)
}

/// Room that files take.
#[derive(Debug, Serialize)]
pub struct Du {
    /// Each file.
    pub files: Vec<LsEntry>,
    /// Sum of their sizes, bytes.
    pub size: u64,
    /// Sum of their bytes in packs.
    pub stored: u64,
    /// What the whole store takes, all revisions; only if no name was given and the store is a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUse>,
    /// What is wrong with files that cannot be measured.
    #[serde(skip)]
    pub damaged: Vec<ReadError>,
}

/// What a store's directory takes on its disk, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// Commit records.
    pub commits: u64,
    /// Packs, of all revisions.
    pub packs: u64,
    /// The index, which can be built anew.
    pub index: u64,
    /// All of the directory.
    pub total: u64,
}

/// Room that all files take, or the one of that name, or those below the directory of that name.
///
/// # Errors
/// See [`LookError`].
pub fn du(txn: &ReadTxn, name: Option<&[u8]>) -> Result<Du, LookError> {
    let Listing { files, damaged } = match name {
        None => entries(txn, DirId::ROOT, b"")?,
        Some(name) => match txn.resolve(name)? {
            Some(Entry::Dir(dir)) => entries(txn, dir, &[name, b"/"].concat())?,
            Some(Entry::File(file)) => {
                let files = live_file(txn, file)?.iter().map(|meta| LsEntry::new(name, meta)).collect();
                Listing { files, ..Listing::default() }
            }
            None => return Err(LookError::NotFound { name: name.to_vec(), at: txn.at() }),
        },
    };
    let info = txn.store().info();
    let disk = match (name, &info.local_root) {
        // A database is not all that is in its folder.
        (None, Some(root)) if info.format_version > 0 => Some(disk_use(root)?),
        _ => None,
    };
    let sum = |of: fn(&LsEntry) -> u64| files.iter().map(of).fold(0, u64::saturating_add);
    let (size, stored) = (sum(|file| file.size), sum(|file| file.stored));
    Ok(Du { files, size, stored, disk, damaged })
}

/// What the store's directory takes.
///
/// # Errors
/// [`LookError::Measure`].
pub fn disk_use(root: &Path) -> Result<DiskUse, LookError> {
    let part = |name: &str| measure(&root.join(name));
    let [commits, packs, index] = [part("commits")?, part("packs")?, part("index")?];
    Ok(DiskUse { commits, packs, index, total: measure(root)? })
}

/// Blocks of a directory and of all below it, as `du` counts them.
fn measure(top: &Path) -> Result<u64, LookError> {
    let mut sum = 0u64;
    let mut open = vec![top.to_owned()];
    while let Some(path) = open.pop() {
        let measured = std::fs::symlink_metadata(&path).and_then(|meta| {
            sum = sum.saturating_add(meta.blocks().saturating_mul(512));
            if meta.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    open.push(entry?.path());
                }
            }
            Ok(())
        });
        match measured {
            // Gone since it was listed: a writer tidies its staging files.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(LookError::Measure { path, source }),
            Ok(()) => {}
        }
    }
    Ok(sum)
}
