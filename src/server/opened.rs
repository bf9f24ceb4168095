//! Which files somebody had under head: of these the store is asked what commits do to their blocks.
//!
//! Some stores have to keep the tree of a file for that, so it is not done for files that nobody looks at. Invariant: a
//! request for a file of head notes the file before it takes the published head, and a head is published under the lock of
//! the notes, when what its commits did to all noted files is known. So whoever reads a file as of a head finds it noted in
//! time: each later head is published with its changes to that file, which are dropped from the kernel's cache. Left out
//! on purpose: taking files back, for the kernel does not tell when its cache has nothing more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use revfs_protocol::{FileId, Tid};
use tracing_mutex::stdsync::RwLock;

/// The files, and the published head.
#[derive(Debug)]
struct Notes {
    published: Tid,
    /// With the head that was published when each was noted: after it nothing is missed.
    since: BTreeMap<FileId, Tid>,
}

/// Files that somebody had under head.
#[derive(Debug)]
pub(super) struct Opened {
    /// The store tells of files that it is asked about; else all this is left out.
    by_file: bool,
    // Leaf lock, but that a head is published under it, which is a swap and one step of the change index.
    notes: RwLock<Notes>,
}

impl Opened {
    /// None yet.
    pub(super) fn new(by_file: bool, head: Tid) -> Opened {
        Opened { by_file, notes: RwLock::new(Notes { published: head, since: BTreeMap::new() }) }
    }

    /// Whether the store tells only of files that it is asked about.
    pub(super) fn by_file(&self) -> bool {
        self.by_file
    }

    /// Whether a file needs no note: it has one, or none is needed for this store.
    pub(super) fn is_noted(&self, file: FileId) -> bool {
        !self.by_file || self.notes.read().unwrap_or_else(PoisonError::into_inner).since.contains_key(&file)
    }

    /// Notes a file; before the head is taken that it is looked at in.
    pub(super) fn note(&self, file: FileId) {
        let mut notes = self.notes.write().unwrap_or_else(PoisonError::into_inner);
        let published = notes.published;
        notes.since.entry(file).or_insert(published);
    }

    /// The head after which all changes of a file are told.
    pub(super) fn since(&self, file: FileId) -> Tid {
        if !self.by_file {
            return Tid::ZERO;
        }
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        notes.since.get(&file).copied().unwrap_or(notes.published)
    }

    /// All files.
    pub(super) fn files(&self) -> BTreeSet<FileId> {
        self.notes.read().unwrap_or_else(PoisonError::into_inner).since.keys().copied().collect()
    }

    /// Publishes the head `at`, if `asked` are all files that were noted up to now; else answers those that came since.
    pub(super) fn publish(
        &self,
        at: Tid,
        asked: &BTreeSet<FileId>,
        publish: impl FnOnce(),
    ) -> Result<(), BTreeSet<FileId>> {
        let mut notes = self.notes.write().unwrap_or_else(PoisonError::into_inner);
        if notes.since.len() != asked.len() {
            return Err(notes.since.keys().filter(|file| !asked.contains(file)).copied().collect());
        }
        publish();
        notes.published = at;
        Ok(())
    }
}
