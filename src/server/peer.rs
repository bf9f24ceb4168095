//! What a server does in the way of WCFS, because clients that were written for it count on it: the whole block is in
//! the page cache after any part of it was read, what a commit changes is found cached under the revision before it,
//! each transaction is told on a stream, only the window of history is answered for, and an epoch ends the service.
//!
//! Invariant: none of it weakens what the server promises without it: bytes are put into the cache of head only as of the
//! state of a READ that pinned for them (rule 21), and a block's pages are dropped only when no such store is under way.
//! A server without these manners never comes here.

mod preserve;
mod tids;
mod uploads;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use revfs_protocol::{FileId, Tid};
use tracing_mutex::stdsync::Mutex;

use self::preserve::Preserved;
pub use self::tids::TidStream;
use self::tids::TidStreams;
pub(super) use self::uploads::{Upload, Uploads};
use super::{HeadState, Server};
use crate::store::{CommitInfo, FileMeta};

/// What is done when a file that the kernel knows has an epoch; it is told why.
pub type OnEpoch = Arc<dyn Fn(&str) + Send + Sync>;

/// How far a server goes in the way of WCFS.
#[derive(Clone, Default)]
pub struct PeerManners {
    /// Ends the service. `None`: what happens to one file concerns that file alone.
    pub on_epoch: Option<OnEpoch>,
}

impl std::fmt::Debug for PeerManners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerManners").field("on_epoch", &self.on_epoch.is_some()).finish()
    }
}

/// What a server with these manners keeps.
#[derive(Debug, Default)]
pub(super) struct Peer {
    manners: PeerManners,
    pub(super) uploads: Uploads,
    preserved: Preserved,
    tids: TidStreams,
    /// The last change of each file since the server started. Leaf lock.
    changed: Mutex<HashMap<FileId, Tid>>,
}

impl Peer {
    pub(super) fn new(manners: PeerManners) -> Peer {
        Peer { manners, ..Peer::default() }
    }
}

impl Server {
    /// Whether it has the manners of WCFS.
    pub fn has_peer_manners(&self) -> bool {
        self.peer.is_some()
    }

    /// The tid whose time a file has for clients of WCFS: that of its last change since the server started, else that of
    /// its object.
    pub fn peer_time(&self, meta: &FileMeta) -> Tid {
        let changed = self.peer.as_ref().and_then(|peer| {
            peer.changed.lock().unwrap_or_else(PoisonError::into_inner).get(&meta.file).copied()
        });
        changed.unwrap_or(meta.created)
    }

    /// Whether the kernel knows a file under head: somebody looked it up, and maybe has it open.
    pub(super) fn knows_file(&self, file: FileId) -> bool {
        self.kernel_cache().is_some_and(|kernel| kernel.knows_head(file))
    }

    /// Publishes a head; in one step with the decisions of stores, if there are any.
    pub(super) fn publish(&self, head: HeadState) {
        let head = Arc::new(head);
        match &self.peer {
            Some(peer) => peer.uploads.while_none_decides(|| self.head.store(head)),
            None => self.head.store(head),
        }
    }

    /// Waits for stores into blocks that are about to be dropped.
    pub(super) fn wait_for_stores(&self, file: FileId, ranges: &[Range<u64>]) {
        let Some(peer) = &self.peer else { return };
        // Nothing was read of it: then nothing is stored.
        let Some(block_size) = self.tracking.block_size(file) else { return };
        for range in ranges {
            let last = block_size.block_of(range.end.saturating_sub(1));
            peer.uploads.wait_for_stores(file, block_size.block_of(range.start), last);
        }
    }

    /// Takes note of commits that are about to be published. An epoch of a file that somebody has open ends the service: its
    /// clients would go on with block numbers that mean something else.
    pub(super) fn note_commits(&self, commits: &[CommitInfo]) {
        let Some(peer) = &self.peer else { return };
        for commit in commits {
            for change in &commit.files {
                let epoch = change.created || change.deleted || change.replaced;
                if let Some(end) =
                    peer.manners.on_epoch.as_ref().filter(|_| epoch && self.knows_file(change.file))
                {
                    end(&format!("file {} has an epoch @{}", change.file, commit.tid));
                }
                let mut changed = peer.changed.lock().unwrap_or_else(PoisonError::into_inner);
                changed.insert(change.file, commit.tid);
            }
        }
    }
}
