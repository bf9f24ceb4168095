//! Files that become smaller while somebody works at the larger size (rule 22).
//!
//! Beyond the end of a mapped file the kernel raises SIGBUS without asking, and the first answer that tells a smaller
//! size cuts the pages off. So no lazy pin can help. Invariant: between the publication of a smaller size and the
//! acks of all who watch an older state, requests are told the old size; bytes beyond the new end read as zeros.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use revfs_protocol::{BlockSpan, FileId, Tid};
use tracing_mutex::stdsync::Mutex;

use super::parked::NO_THREAD;
use super::setup::blocks_between;
use super::{Delta, Server, Shrunk};

/// Sizes that are told although head is smaller.
#[derive(Debug, Default)]
pub(super) struct Shrinking {
    // Leaf lock.
    sizes: Mutex<HashMap<FileId, Held>>,
    /// How many; mostly none, and then nobody takes the lock.
    count: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    size: u64,
    /// The head that made it smaller last.
    at: Tid,
}

impl Shrinking {
    /// Holds the sizes of what a head that is about to be published makes smaller.
    pub(super) fn hold(&self, delta: &Delta) {
        if delta.shrunk.is_empty() {
            return;
        }
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        for (file, shrunk) in &delta.shrunk {
            let held = sizes.entry(*file).or_insert(Held { size: shrunk.from, at: delta.at });
            *held = Held { size: held.size.max(shrunk.from), at: delta.at };
        }
        self.count.store(sizes.len(), Ordering::SeqCst);
    }

    /// The size that is told of a file, if it is held.
    pub(super) fn held(&self, file: FileId) -> Option<u64> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get(&file).map(|held| held.size)
    }

    /// Those who work at the state before `at` are safe.
    fn release(&self, file: FileId, at: Tid) {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if sizes.get(&file).is_some_and(|held| held.at <= at) {
            sizes.remove(&file);
        }
        self.count.store(sizes.len(), Ordering::SeqCst);
    }
}

impl Server {
    /// Has everybody who watches a state before `at` map what is cut off, waits for it, and lets the sizes go. On the
    /// notifier's thread, which serves nobody.
    pub(super) fn pin_shrunk(self: &Arc<Self>, at: Tid, shrunk: &BTreeMap<FileId, Shrunk>) {
        for (file, shrunk) in shrunk {
            if let Some(cut) = blocks_between(shrunk.block_size, shrunk.to, shrunk.from) {
                self.pin_cut_off(*file, at, cut);
            }
            self.shrinking.release(*file, at);
        }
    }

    fn pin_cut_off(self: &Arc<Self>, file: FileId, at: Tid, cut: BlockSpan) {
        let wait = self.parked.begin(NO_THREAD);
        for link in self.links.behind(file, at) {
            // All of it changed at `at`, for whoever is before it.
            self.ask_link(&link, file, &[(cut, at)], wait);
        }
        // Until everybody has mapped it, or is dead.
        self.parked.settle_and_wait(wait);
    }
}
