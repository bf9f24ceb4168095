//! Inode numbers: which number means what, for as long as the kernel may ask.
//!
//! Invariant: a number means one thing for ever and is never given again. An inode lives while the kernel has
//! looked it up more often than it has forgotten it, or has it open; the fixed ones live always.

use std::collections::HashMap;
use std::sync::PoisonError;

use revfs_protocol::{FileId, Tid};
use tracing_mutex::stdsync::{Mutex, MutexGuard};

use super::face::FaceFile;
use super::peer::PeerFile;
use crate::store::DirId;

/// The root of the mount, as FUSE fixes it.
pub const ROOT_INO: u64 = 1;
/// First number that is given to what is looked up.
const FIRST_DYNAMIC_INO: u64 = 64;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The mount's root.
    Root,
    /// `head`.
    Head,
    /// `head/at`.
    HeadAt,
    /// `head/watch`.
    HeadWatch,
    /// `head/by-id`.
    HeadById,
    /// The directory of the face, `.revfs`.
    FaceDir,
    /// A file in it.
    Face(FaceFile),
    /// The directory of the face of WCFS, `.wcfs`.
    PeerDir,
    /// `.wcfs/debug`.
    PeerDebug,
    /// A file in one of these.
    Peer(PeerFile),
    /// A directory under `head/bigfile`, or that itself.
    HeadDir(DirId),
    /// A file under head, by whichever name.
    HeadFile(FileId),
    /// `@<16 hex>`.
    RevRoot(Tid),
    /// `@<16 hex>/by-id`.
    RevById(Tid),
    /// A directory under `@<16 hex>/bigfile`, or that itself.
    RevDir(Tid, DirId),
    /// The version of a file that was made at this tid; all `@` directories that show it share it.
    RevFile(FileId, Tid),
    /// An `@` name that is a symlink.
    Link(Box<str>),
}

/// The fixed inodes, numbered from [`ROOT_INO`] in this order.
const FIXED: [Key; 8] = [
    Key::Root,
    Key::Head,
    Key::HeadAt,
    Key::HeadById,
    Key::FaceDir,
    Key::HeadWatch,
    Key::PeerDir,
    Key::PeerDebug,
];

/// Those and the files of both faces.
fn fixed() -> impl Iterator<Item = Key> {
    FIXED.into_iter().chain(FaceFile::ALL.map(Key::Face)).chain(PeerFile::ALL.map(Key::Peer))
}

#[derive(Debug)]
struct Inode {
    key: Key,
    lookups: u64,
    opens: u64,
}

#[derive(Debug, Default)]
struct Table {
    inodes: HashMap<u64, Inode>,
    numbers: HashMap<Key, u64>,
    next: u64,
}

/// All inodes of a mount.
#[derive(Debug)]
pub struct Inodes {
    // Leaf lock: held for a few instructions, never across a call to the store, the kernel or a wait.
    table: Mutex<Table>,
}

impl Default for Inodes {
    fn default() -> Inodes {
        Inodes::new()
    }
}

impl Inodes {
    /// The fixed inodes only.
    pub fn new() -> Inodes {
        let mut table = Table { next: ROOT_INO, ..Table::default() };
        for key in fixed() {
            table.insert(key, 1);
        }
        table.next = FIRST_DYNAMIC_INO;
        Inodes { table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of `key`, which the kernel is told: one more lookup that it will forget.
    pub fn look_up(&self, key: Key) -> u64 {
        let mut table = self.table();
        if let Some(ino) = table.numbers.get(&key).copied() {
            if let Some(inode) = table.inodes.get_mut(&ino) {
                inode.lookups += 1;
            }
            return ino;
        }
        table.insert(key, 1)
    }

    /// What `ino` is.
    pub fn key(&self, ino: u64) -> Option<Key> {
        self.table().inodes.get(&ino).map(|inode| inode.key.clone())
    }

    /// The number that `key` has now, if it has one.
    pub fn number(&self, key: &Key) -> Option<u64> {
        self.table().numbers.get(key).copied()
    }

    /// The kernel forgets `count` lookups.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut table = self.table();
        if let Some(inode) = table.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(count);
        }
        table.drop_if_unused(ino);
    }

    /// It is opened once more.
    pub fn opened(&self, ino: u64) {
        if let Some(inode) = self.table().inodes.get_mut(&ino) {
            inode.opens += 1;
        }
    }

    /// It is closed once.
    pub fn released(&self, ino: u64) {
        let mut table = self.table();
        if let Some(inode) = table.inodes.get_mut(&ino) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        table.drop_if_unused(ino);
    }

    /// Files under head that the kernel knows, ascending.
    pub fn head_files(&self) -> Vec<FileId> {
        let mut files: Vec<FileId> = (self.table().numbers.keys())
            .filter_map(|key| if let Key::HeadFile(file) = key { Some(*file) } else { None })
            .collect();
        files.sort_unstable();
        files
    }

    /// How many `@<16 hex>` the kernel knows.
    pub fn rev_roots(&self) -> u64 {
        self.table().numbers.keys().filter(|key| matches!(key, Key::RevRoot(_))).count() as u64
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.table().inodes.len() as u64
    }
}

impl Table {
    fn insert(&mut self, key: Key, lookups: u64) -> u64 {
        let ino = self.next;
        self.next += 1;
        self.numbers.insert(key.clone(), ino);
        self.inodes.insert(ino, Inode { key, lookups, opens: 0 });
        ino
    }

    fn drop_if_unused(&mut self, ino: u64) {
        let unused = |inode: &Inode| inode.lookups == 0 && inode.opens == 0;
        if ino < FIRST_DYNAMIC_INO || !self.inodes.get(&ino).is_some_and(unused) {
            return;
        }
        if let Some(inode) = self.inodes.remove(&ino) {
            self.numbers.remove(&inode.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(raw: u64) -> Key {
        Key::HeadFile(FileId::from_raw(raw))
    }

    #[test]
    fn a_number_stays_while_the_kernel_knows_it_and_is_never_given_again() {
        let inodes = Inodes::new();
        let fixed = inodes.count();
        let first = inodes.look_up(file(1));
        assert_eq!((inodes.look_up(file(1)), inodes.key(first)), (first, Some(file(1))));
        inodes.forget(first, 1);
        assert_eq!(inodes.number(&file(1)), Some(first));
        inodes.forget(first, 1);
        assert_eq!((inodes.number(&file(1)), inodes.key(first), inodes.count()), (None, None, fixed));
        assert!(inodes.look_up(file(1)) > first);
    }

    #[test]
    fn what_is_open_outlives_its_names() {
        let inodes = Inodes::new();
        let ino = inodes.look_up(file(1));
        inodes.opened(ino);
        inodes.forget(ino, 1);
        assert_eq!(inodes.key(ino), Some(file(1)));
        inodes.released(ino);
        assert_eq!(inodes.key(ino), None);
    }

    #[test]
    fn the_root_is_1_and_fixed_inodes_are_never_forgotten() {
        let inodes = Inodes::new();
        assert_eq!(inodes.key(ROOT_INO), Some(Key::Root));
        for key in fixed() {
            let ino = inodes.number(&key).unwrap();
            inodes.forget(ino, u64::MAX);
            assert!(ino < FIRST_DYNAMIC_INO && inodes.key(ino) == Some(key));
        }
    }

    #[test]
    fn unknown_numbers_and_too_many_forgets_do_no_harm() {
        let inodes = Inodes::new();
        let ino = inodes.look_up(file(1));
        inodes.forget(ino, 5);
        inodes.forget(ino, 1);
        inodes.released(ino);
        inodes.opened(999_999);
        assert_eq!(inodes.key(999_999), None);
    }
}
