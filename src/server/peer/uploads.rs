//! Whole blocks for the kernel's cache: after a READ of a part of a block, the rest is stored there too.
//!
//! Invariant (rule 21): a block is stored into head only as of the state of the READ that asked, for which pins were sent, and
//! only if it is unchanged up to the published head; that is decided in one step with publishing. Before the pages of a
//! block are dropped, stores of it that began have ended. A store waits for READs of the same pages, so it never runs on a
//! thread that serves requests, and holds no lock. Of a READ that came while a store ran, nobody knows whether it found
//! pages gone that this store had brought: so its block is stored once more, unless another store begins after it came.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use revfs_protocol::{BlockIndex, FileId, Tid};
use tracing_mutex::stdsync::{Condvar, Mutex, MutexGuard};

use crate::server::tracking::blocks_of;
use crate::server::{FileView, Server};
use crate::store::{Load, ReadError};

/// Most blocks that are loaded and stored at once; beyond it a block stays cached in part.
const UPLOADS_MAX: usize = 64;

/// Which inode a block is stored into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Target {
    Head(FileId),
    Version(FileId, Tid),
}

type Key = (Target, BlockIndex);

/// Stores of one block that are under way.
#[derive(Debug, Default)]
struct Storing {
    count: u32,
    /// Number of the newest of them.
    newest: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that are being loaded, or wait for that: their stores have not begun. With the newest state that one was read in.
    queued: HashMap<Key, FileView>,
    /// Blocks that are being stored.
    storing: BTreeMap<Key, Storing>,
    /// Of both.
    count: usize,
}

/// What becomes of a block that was loaded.
#[derive(Debug)]
enum Decision {
    /// Its store has begun.
    Store,
    /// It changed, and was read again in this later state.
    LoadAgain(FileView),
    /// It may not be stored.
    Leave,
}

/// Stores that are under way.
#[derive(Debug, Default)]
pub(in crate::server) struct Uploads {
    /// How many stores have begun.
    begun: AtomicU64,
    // Held while a head is published, and for the decision whether a block may still be stored; no wait under it.
    state: Mutex<State>,
    /// A store has ended.
    ended: Condvar,
}

impl Uploads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `publish` in one step with the decisions of stores.
    pub(in crate::server) fn while_none_decides(&self, publish: impl FnOnce()) {
        let _decisions_wait = self.state();
        publish();
    }

    /// Waits until no store into blocks of a file is under way that began before this. On the notifier thread.
    pub(in crate::server) fn wait_for_stores(&self, file: FileId, first: BlockIndex, last: BlockIndex) {
        let blocks = (Target::Head(file), first)..=(Target::Head(file), last);
        let busy = |state: &mut State| state.storing.range(blocks.clone()).next().is_some();
        drop(self.ended.wait_while(self.state(), busy).unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether somebody is to load a block for a READ that came when so many stores had begun; it is queued then.
    fn queue(&self, key: Key, view: &FileView, begun: u64) -> bool {
        let mut state = self.state();
        if state.storing.get(&key).is_some_and(|storing| storing.newest > begun) {
            return false;
        }
        let has_room = state.count < UPLOADS_MAX;
        let joins = match state.queued.entry(key) {
            Entry::Vacant(place) if has_room => {
                place.insert(view.clone());
                true
            }
            Entry::Vacant(_) => false,
            Entry::Occupied(mut queued) => {
                if queued.get().txn.at() < view.txn.at() {
                    queued.insert(view.clone());
                }
                false
            }
        };
        state.count += usize::from(joins);
        joins
    }

    /// What is to be done with a queued block that was loaded as of `at`, and that still may be stored if `may_still`.
    fn decide(&self, key: Key, at: Tid, may_still: impl FnOnce() -> bool) -> Decision {
        let mut state = self.state();
        let begins = may_still();
        if !begins && let Some(newer) = state.queued.get(&key).filter(|view| view.txn.at() > at) {
            return Decision::LoadAgain(newer.clone());
        }
        state.queued.remove(&key);
        if !begins {
            state.count -= 1;
            return Decision::Leave;
        }
        let storing = state.storing.entry(key).or_default();
        storing.count += 1;
        storing.newest = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        Decision::Store
    }

    fn end_store(&self, key: Key) {
        let mut state = self.state();
        state.count -= 1;
        if let Some(storing) = state.storing.get_mut(&key) {
            storing.count -= 1;
            if storing.count == 0 {
                state.storing.remove(&key);
            }
        }
        drop(state);
        self.ended.notify_all();
    }
}

/// A READ whose blocks are to be cached whole when it was answered.
#[derive(Debug)]
pub(in crate::server) struct Upload {
    server: Arc<Server>,
    view: FileView,
    target: Target,
    range: (u64, usize),
    // How many stores had begun when the READ came.
    begun: u64,
}

impl Upload {
    /// For a READ of a file under head, which came when [`Server::stores_begun`] was `begun`; `None` if the server has not
    /// these manners.
    pub(in crate::server) fn of_head(
        server: &Arc<Server>,
        view: &FileView,
        range: (u64, usize),
        begun: Option<u64>,
    ) -> Option<Upload> {
        Some(Upload::of(server, view, range, Target::Head(view.meta.file), begun?))
    }

    /// For a READ of the version of a file that was made at `rev`, which comes now.
    pub(in crate::server) fn of_version(
        server: &Arc<Server>,
        view: &FileView,
        rev: Tid,
        range: (u64, usize),
    ) -> Option<Upload> {
        Some(Upload::of(server, view, range, Target::Version(view.meta.file, rev), server.stores_begun()?))
    }

    fn of(server: &Arc<Server>, view: &FileView, range: (u64, usize), target: Target, begun: u64) -> Upload {
        Upload { server: Arc::clone(server), view: view.clone(), target, range, begun }
    }

    /// Begins it, on other threads. Call it when the READ was answered: a store waits for that.
    pub(in crate::server) fn start(self) {
        let Some(peer) = &self.server.peer else { return };
        let (unit, (offset, len)) = (self.view.meta.block_size.bytes(), self.range);
        let end = offset.saturating_add(len as u64).min(self.view.meta.size);
        if offset >= end {
            return;
        }
        for block in blocks_of(self.view.meta.block_size, offset, (end - offset) as usize) {
            let start = block.saturating_mul(unit);
            let whole = offset <= start && start.saturating_add(unit).min(self.view.meta.size) <= end;
            if whole {
                continue;
            }
            let key = (self.target, BlockIndex::new(block));
            if !peer.uploads.queue(key, &self.view, self.begun) {
                continue;
            }
            let (server, view) = (Arc::clone(&self.server), self.view.clone());
            drop(self.server.options.runtime.spawn_blocking(move || {
                if let Err(error) = server.upload(view, key) {
                    // Who maps the rest asks for it, and is told then.
                    log::debug!("block {} of {:?} is not cached whole: {error}", key.1, key.0);
                }
            }));
        }
    }
}

impl Server {
    /// How many stores of whole blocks have begun; `None` if the server has not these manners.
    pub(in crate::server) fn stores_begun(&self) -> Option<u64> {
        self.peer.as_ref().map(|peer| peer.uploads.begun.load(Ordering::Relaxed))
    }

    /// Blocks that are being loaded or stored.
    #[cfg(test)]
    pub(in crate::server) fn uploads_under_way(&self) -> usize {
        self.peer.as_ref().map_or(0, |peer| peer.uploads.state().count)
    }

    fn upload(self: &Arc<Self>, mut view: FileView, key: Key) -> Result<(), ReadError> {
        let Some(peer) = &self.peer else { return Ok(()) };
        let (target, block) = key;
        // Before the decision: publishing takes the lock of these notes first. A file that is read is noted, once.
        let since = self.history.opened.since(view.meta.file);
        let (offset, bytes) = loop {
            let loaded = self.load_block(&view, block);
            let is_head = matches!(target, Target::Head(_));
            let may_still = || loaded.is_ok() && !(is_head && self.changed_since(&view, since, block));
            match peer.uploads.decide(key, view.txn.at(), may_still) {
                Decision::Store => break loaded?,
                Decision::LoadAgain(newer) => view = newer,
                Decision::Leave => return loaded.map(drop),
            }
        };
        if let Some(kernel) = self.kernel_cache() {
            match target {
                Target::Head(file) => kernel.store_head(file, offset, &bytes),
                Target::Version(file, rev) => kernel.store_version(file, rev, offset, &bytes),
            }
        }
        peer.uploads.end_store(key);
        Ok(())
    }

    /// A block of a file, clipped to its size, and where it begins, bytes. Waits for a slow storage.
    pub(super) fn load_block(
        &self,
        view: &FileView,
        block: BlockIndex,
    ) -> Result<(u64, crate::store::ReadBuffer), ReadError> {
        let unit = view.meta.block_size.bytes();
        let offset = block.raw().saturating_mul(unit);
        let loaded = match self.read(view, offset, usize::try_from(unit).unwrap_or(usize::MAX)) {
            Load::Ready(result) => result?,
            Load::Pending(future) => self.options.runtime.block_on(future)?,
        };
        Ok((offset, loaded))
    }

    /// Whether a block may be another one in the published head. Asks the memory only.
    fn changed_since(&self, view: &FileView, since: Tid, block: BlockIndex) -> bool {
        let head = self.head_txn();
        if head.at() == view.txn.at() {
            return false;
        }
        self.history.may_differ(&head, (view.meta.file, since), block, view.txn.at())
    }
}
