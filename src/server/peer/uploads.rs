//! Whole blocks for the kernel's cache: after a READ of a part of a block, the rest is stored there too.
//!
//! Invariant (rule 21): a block is stored into head only as of the state of the READ that asked, for which pins were sent, and
//! only if it is unchanged up to the published head; that is decided in one step with publishing. Before the pages of a
//! block are dropped, stores of it that began have ended. A store waits for READs of the same pages, so it never runs on a
//! thread that serves requests, and holds no lock.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use revfs_protocol::{BlockIndex, FileId, Tid};

use crate::server::tracking::blocks_of;
use crate::server::{FileView, Server};
use crate::store::{Load, ReadError};

/// Most blocks that are loaded and stored at once; beyond it a block stays cached in part.
const UPLOADS_MAX: usize = 64;

/// Which inode a block is stored into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    Head(FileId),
    Version(FileId, Tid),
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that are being loaded, or stored.
    queued: HashSet<(Target, BlockIndex)>,
    /// Blocks of head that are being stored, and how often.
    storing: BTreeMap<(FileId, BlockIndex), u32>,
}

/// Stores that are under way.
#[derive(Debug, Default)]
pub(in crate::server) struct Uploads {
    // Held while a head is published, and for the decision whether a block may still be stored; no wait under it.
    state: Mutex<State>,
    /// A store into head has ended.
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
        let busy = |state: &mut State| state.storing.range((file, first)..=(file, last)).next().is_some();
        drop(self.ended.wait_while(self.state(), busy).unwrap_or_else(PoisonError::into_inner));
    }

    fn end_store(&self, file: FileId, block: BlockIndex) {
        let mut state = self.state();
        if let Some(count) = state.storing.get_mut(&(file, block)) {
            *count -= 1;
            if *count == 0 {
                state.storing.remove(&(file, block));
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
}

impl Upload {
    /// For a READ of a file under head; `None` if the server has not these manners.
    pub(in crate::server) fn of_head(
        server: &Arc<Server>,
        view: &FileView,
        range: (u64, usize),
    ) -> Option<Upload> {
        let (server, view) = (server.peer.is_some().then(|| Arc::clone(server))?, view.clone());
        Some(Upload { target: Target::Head(view.meta.file), server, view, range })
    }

    /// For a READ of the version of a file that was made at `rev`.
    pub(in crate::server) fn of_version(
        server: &Arc<Server>,
        view: &FileView,
        rev: Tid,
        range: (u64, usize),
    ) -> Option<Upload> {
        let (server, view) = (server.peer.is_some().then(|| Arc::clone(server))?, view.clone());
        Some(Upload { target: Target::Version(view.meta.file, rev), server, view, range })
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
            let mut state = peer.uploads.state();
            if state.queued.len() >= UPLOADS_MAX || !state.queued.insert(key) {
                continue;
            }
            drop(state);
            let (server, view) = (Arc::clone(&self.server), self.view.clone());
            drop(self.server.options.runtime.spawn_blocking(move || {
                if let Err(error) = server.upload(&view, key.0, key.1) {
                    // Who maps the rest asks for it, and is told then.
                    log::debug!("block {} of file {} is not cached whole: {error}", key.1, view.meta.file);
                }
                if let Some(peer) = &server.peer {
                    peer.uploads.state().queued.remove(&key);
                }
            }));
        }
    }
}

impl Server {
    /// Blocks that are being loaded or stored.
    #[cfg(test)]
    pub(in crate::server) fn uploads_under_way(&self) -> usize {
        self.peer.as_ref().map_or(0, |peer| peer.uploads.state().queued.len())
    }

    fn upload(self: &Arc<Self>, view: &FileView, target: Target, block: BlockIndex) -> Result<(), ReadError> {
        let (Some(peer), Some(kernel)) = (&self.peer, self.kernel_cache()) else { return Ok(()) };
        let (offset, bytes) = self.load_block(view, block)?;
        let file = view.meta.file;
        match target {
            Target::Version(_, rev) => kernel.store_version(file, rev, offset, &bytes),
            Target::Head(_) => {
                let mut state = peer.uploads.state();
                if self.changed_since(view, block) {
                    return Ok(());
                }
                *state.storing.entry((file, block)).or_default() += 1;
                drop(state);
                kernel.store_head(file, offset, &bytes);
                peer.uploads.end_store(file, block);
            }
        }
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
    fn changed_since(&self, view: &FileView, block: BlockIndex) -> bool {
        let head = self.head_txn();
        if head.at() == view.txn.at() {
            return false;
        }
        self.history.may_differ(&head, view.meta.file, block, view.txn.at())
    }
}
