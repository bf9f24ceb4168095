//! Open directories and open text files: what was fixed when they were opened.
//!
//! Invariant: a directory handle shows one revision from first to last, and its cookies are positions in one
//! list. Data files have no handle: a READ finds all that it needs by its inode.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use tracing_mutex::stdsync::{Mutex, MutexGuard};

use super::inodes::Key;
use super::tree::Listed;
use crate::server::{TidStream, WatchLink};
use crate::store::ReadTxn;

/// What a handle is.
#[derive(Debug)]
pub(super) enum Handle {
    /// An open directory.
    Dir(DirHandle),
    /// An open text.
    Text(TextHandle),
    /// An open of `head/watch`.
    Link(Arc<WatchLink>),
    /// An open of `.wcfs/debug/zhead`.
    Tids(Arc<TidStream>),
}

/// An open directory.
#[derive(Debug)]
pub(super) struct DirHandle {
    /// Which.
    pub(super) key: Key,
    /// The state that it shows, for those under head or a revision.
    pub(super) txn: Option<ReadTxn>,
    /// What is in it; loaded when it is read first.
    pub(super) listing: OnceLock<Vec<Listed>>,
}

/// An open text file. A READ at 0 takes its text anew; READs further on continue in that text.
#[derive(Debug)]
pub(super) struct TextHandle {
    // Leaf lock: held to swap or clone an Arc only.
    text: Mutex<Arc<Vec<u8>>>,
}

impl TextHandle {
    /// A handle that begins with `text`.
    pub(super) fn new(text: Vec<u8>) -> TextHandle {
        TextHandle { text: Mutex::new(Arc::new(text)) }
    }

    /// The text that reads go on in.
    pub(super) fn text(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on in `text` from now on.
    pub(super) fn renew(&self, text: Vec<u8>) -> Arc<Vec<u8>> {
        let text = Arc::new(text);
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&text);
        text
    }
}

/// All handles of a mount.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: AtomicU64,
    // Leaf lock: held for a few instructions.
    open: Mutex<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for `handle`; never 0.
    pub(super) fn add(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open().insert(number, Arc::new(handle));
        number
    }

    /// The handle with this number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Handle>> {
        self.open().get(&number).cloned()
    }

    /// Closes it, and answers what it was.
    pub(super) fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        self.open().remove(&number)
    }
}
