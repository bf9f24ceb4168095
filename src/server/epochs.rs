//! Files that became others under their number: a ZODB object that gets another block size.
//!
//! After that no block number means what it did, so a mapping from before cannot be told to show anything newer. Invariant:
//! who has such a file open goes on with it as it was just before, as with a file that is deleted, and so do watches, which
//! move no more; its name is refused until nobody has it any more, and leads to the new one then. So one inode never
//! shows two block sizes.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use revfs_protocol::{FileId, Tid};
use tracing_mutex::stdsync::{Mutex, MutexGuard};

use super::Server;
use crate::store::{CommitInfo, ReadError};

/// Files of which somebody may have the one from before.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    // Held while it is looked whether anybody has one: takes leaves (inodes, watches by file, tracked blocks).
    began: Mutex<BTreeMap<FileId, Tid>>,
    /// How many; mostly none, and then nobody takes the lock.
    count: AtomicUsize,
}

impl Epochs {
    fn began(&self) -> MutexGuard<'_, BTreeMap<FileId, Tid>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tid at which a file became another one, if somebody may have the one from before.
    pub(super) fn of(&self, file: FileId) -> Option<Tid> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.began().get(&file).copied()
    }

    /// From now on these are as they were before; of one that became another one twice the first time counts.
    pub(super) fn begin(&self, found: &BTreeMap<FileId, Tid>) {
        let mut began = self.began();
        for (file, rev) in found {
            began.entry(*file).or_insert(*rev);
        }
        self.count.store(began.len(), Ordering::SeqCst);
    }
}

impl Server {
    /// Files that commits, which follow the published head, make others, and when each stops to be what it was.
    ///
    /// # Errors
    /// The store could not be asked what a file was.
    pub(super) fn epochs_in(&self, commits: &[CommitInfo]) -> Result<BTreeMap<FileId, Tid>, ReadError> {
        let mut found = BTreeMap::new();
        let opened = &self.history.opened;
        for change in commits.iter().flat_map(|commit| &commit.files) {
            // Numbers of a store that tells of all files are never given again. What nobody had open has no inode.
            let may_be = change.replaced || (change.created && opened.by_file());
            if !may_be || !opened.is_noted(change.file) || self.epochs.of(change.file).is_some() {
                continue;
            }
            let old = match self.head_file(change.file) {
                Err(ReadError::NoSuchFile { .. }) => continue,
                old => old?,
            };
            if old.meta.block_size != change.block_size {
                let ends = |commit: &&CommitInfo| {
                    let of_file = |other: &&crate::store::FileChange| other.file == change.file;
                    commit.files.iter().find(of_file).is_some_and(|c| c.created || c.deleted || c.replaced)
                };
                let in_these = commits.iter().find(ends).map(|commit| commit.tid);
                found.extend(old.meta.deleted.or(in_these).map(|rev| (change.file, rev)));
            }
        }
        for (file, rev) in &found {
            log::warn!(
                "file {file} has another block size since @{rev}: who has it open under head goes on seeing it as it was, and \
                 its name there is refused until they have closed it"
            );
        }
        Ok(found)
    }

    /// Whether a name may lead to a file as it is in head: nobody has the one that it was before.
    pub fn may_look_up(&self, file: FileId) -> bool {
        if self.epochs.of(file).is_none() {
            return true;
        }
        let mut began = self.epochs.began();
        if began.contains_key(&file) {
            if self.knows_file(file) || self.links.oldest_at(file).is_some() {
                return false;
            }
            // Its blocks are counted anew.
            self.tracking.forget(file);
            began.remove(&file);
            self.epochs.count.store(began.len(), Ordering::SeqCst);
        }
        true
    }
}
