//! READs of files under head: before the bytes are answered, clients that work at an older state map the changed
//! blocks elsewhere.
//!
//! Invariant: the blocks are tracked, then the head is taken, then pins are found (rules 2 to 4), and a READ that has
//! to wait does so without a thread, a lock or a buffer (rule 15).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::channel::oneshot::Receiver;
use revfs_protocol::{BlockIndex, BlockSpan, FileId, Tid};

use super::history::revs_of;
use super::links::WatchLink;
use super::parked::{EarlySlot, Outcome};
use super::stats::ReadTimer;
use super::tracking::{ReadBytes, UnderWay, blocks_of};
use super::{FileView, Server, Stats};
use crate::store::{Load, ReadBuffer, ReadError};
use crate::watch::{ReadNeed, WaitId};

/// Why a READ under head is not answered with bytes.
#[derive(Debug, thiserror::Error)]
pub enum HeadReadError {
    /// The store.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Who asks is being killed, and can die only when it is answered (rule 16), or is not told of pins any more.
    #[error("the process that reads is being killed, or its watches ended because the server stops")]
    Barred,
}

/// A READ that is answered now or later.
pub type HeadRead = Load<Result<ReadBytes, HeadReadError>>;

type BufferRead = Load<Result<ReadBuffer, HeadReadError>>;

impl Server {
    /// Reads bytes of a file under head for a thread, clipped to the file's size.
    pub fn read_head(self: &Arc<Self>, file: FileId, offset: u64, len: usize, thread: u32) -> HeadRead {
        let timer = ReadTimer::start(self);
        let under_way = match self.track(file, offset, len) {
            Ok(under_way) => under_way,
            Err(error) => return Load::Ready(Err(error.into())),
        };
        match self.begin_head_read(file, offset, len, thread) {
            Ok(load) => answer(load, under_way, timer),
            Err(error) => Load::Ready(Err(error)),
        }
    }

    /// Tracks the blocks of a READ, before anything else is looked at.
    fn track(self: &Arc<Self>, file: FileId, offset: u64, len: usize) -> Result<Option<UnderWay>, ReadError> {
        let known = self.tracking.add(self, file, offset, len);
        if known.is_some() {
            return Ok(known);
        }
        self.tracking.begin(file, self.head_file(file)?.meta.block_size);
        Ok(self.tracking.add(self, file, offset, len))
    }

    fn begin_head_read(
        self: &Arc<Self>,
        file: FileId,
        offset: u64,
        len: usize,
        thread: u32,
    ) -> Result<BufferRead, HeadReadError> {
        let view = self.head_file(file)?;
        if self.is_barred(thread) {
            return Err(HeadReadError::Barred);
        }
        if self.links.oldest_at(file).is_none_or(|oldest| view.meta.rev <= oldest) {
            return self.load_unless_barred(&view, (offset, len), thread);
        }
        let blocks = blocks_of(view.meta.block_size, offset, len);
        let span =
            BlockSpan { first: BlockIndex::new(*blocks.start()), last: BlockIndex::new(*blocks.end()) };
        let revs = revs_of(&view.txn, file, span)?;
        let newest = revs.iter().map(|(_, rev)| *rev).max().unwrap_or(Tid::ZERO);
        let links = self.links.behind(file, newest);
        if links.is_empty() {
            return self.load_unless_barred(&view, (offset, len), thread);
        }
        let (wait, outcome) = self.parked.begin(thread);
        for link in &links {
            self.ask_link(link, file, &revs, wait);
        }
        if !self.parked.settle(wait) {
            return self.load_unless_barred(&view, (offset, len), thread);
        }
        // Between the first look and the parking it may have been barred.
        if self.is_barred(thread) {
            self.parked.end_of(|other| other == thread);
            return Err(HeadReadError::Barred);
        }
        Stats::add(&self.stats.parked_reads, 1);
        match self.parked.early_slot() {
            // The client maps the blocks meanwhile.
            Some(slot) => Ok(after(outcome, self.load(&view, offset, len), slot)),
            None => {
                let server = Arc::clone(self);
                let parked = async move {
                    match outcome.await {
                        Ok(Outcome::Go) => server.load_elsewhere(view, offset, len).await,
                        Ok(Outcome::Barred) | Err(_) => Err(HeadReadError::Barred),
                    }
                };
                Ok(Load::Pending(Box::pin(parked)))
            }
        }
    }

    /// Reads bytes of a file under a revision, clipped to the file's size. Nobody has a say in it.
    pub fn read_rev(self: &Arc<Self>, view: &FileView, offset: u64, len: usize) -> HeadRead {
        let timer = ReadTimer::start(self);
        answer(self.load(view, offset, len), None, timer)
    }

    fn load(&self, view: &FileView, offset: u64, len: usize) -> BufferRead {
        match self.read(view, offset, len) {
            Load::Ready(result) => Load::Ready(result.map_err(HeadReadError::from)),
            Load::Pending(future) => {
                Stats::add(&self.stats.pending_reads, 1);
                Load::Pending(Box::pin(async { Ok(future.await?) }))
            }
        }
    }

    /// Loads for a READ that no link has a say in. Whether it is barred is looked at after the links: those of a
    /// process that is abandoned end after it was barred.
    fn load_unless_barred(
        &self,
        view: &FileView,
        (offset, len): (u64, usize),
        thread: u32,
    ) -> Result<BufferRead, HeadReadError> {
        if self.is_barred(thread) {
            return Err(HeadReadError::Barred);
        }
        Ok(self.load(view, offset, len))
    }

    /// Loads on a thread that may wait for the disk.
    async fn load_elsewhere(
        self: Arc<Self>,
        view: FileView,
        offset: u64,
        len: usize,
    ) -> Result<ReadBuffer, HeadReadError> {
        let runtime = self.options.runtime.clone();
        let begun = runtime.spawn_blocking(move || self.load(&view, offset, len)).await;
        match begun {
            Ok(load) => load.wait().await,
            Err(error) => {
                let source = std::io::Error::other(error);
                Err(ReadError::Io { object: "a parked READ".to_owned(), source }.into())
            }
        }
    }

    /// Pins blocks for all who must not see them as they are in head, because of the changes up to `at`. `wait` counts
    /// the acks.
    pub(super) fn pin_behind(self: &Arc<Self>, file: FileId, at: Tid, span: BlockSpan, wait: WaitId) {
        let revs = self.head_file(file).and_then(|view| revs_of(&view.txn, file, span));
        let revs = revs.unwrap_or_else(|error| {
            // A pin too many harms nobody.
            log::warn!("blocks of file {file} are pinned as if all had changed: {error}");
            vec![(span, at)]
        });
        let newest = revs.iter().map(|(_, rev)| *rev).max().unwrap_or(Tid::ZERO);
        for link in self.links.behind(file, newest) {
            self.ask_link(&link, file, &revs, wait);
        }
    }

    /// Lets one link pin what its client must not see. `wait` counts the acks.
    pub(super) fn ask_link(
        self: &Arc<Self>,
        link: &Arc<WatchLink>,
        file: FileId,
        revs: &[(BlockSpan, Tid)],
        wait: WaitId,
    ) {
        loop {
            let need = link.with(self, |state, _| {
                let need = state.read_begin(file, revs, wait);
                self.parked.add(wait, need.as_ref().map_or(0, |need| need.waits));
                need
            });
            let Some(ReadNeed { at, serial, unknown, .. }) = need else { return };
            if unknown.is_empty() {
                return;
            }
            // Found without the link's mutex; it counts only if the watch does not move meanwhile (rule 5).
            let targets = self.targets(file, at, &unknown).unwrap_or_else(|error| {
                // Always right, for any revision in which a block does not change up to `at` is; only less shared.
                log::warn!("blocks of file {file} are pinned @{at}: {error}");
                unknown.iter().map(|block| (*block, at)).collect()
            });
            let now = self.options.clock.monotonic();
            let pinned = link.with(self, |state, actions| {
                let pinned = state.read_pin(now, (file, serial), &targets, wait, actions);
                self.parked.add(wait, pinned.unwrap_or(0));
                pinned
            });
            if pinned.is_ok() {
                return;
            }
        }
    }

    fn targets(
        &self,
        file: FileId,
        at: Tid,
        blocks: &[BlockIndex],
    ) -> Result<Vec<(BlockIndex, Tid)>, ReadError> {
        let old = self.rev_file(file, at)?;
        let mut targets = Vec::with_capacity(blocks.len());
        let mut rest = blocks.iter().copied().peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|block| last.next() == Some(*block)) {
                last = next;
            }
            for (span, rev) in self.history.pins_at(&old, BlockSpan { first, last })? {
                targets.extend(span.blocks().map(|block| (block, rev)));
            }
        }
        Ok(targets)
    }

    /// Whether a thread belongs to a process whose READs all fail.
    fn is_barred(&self, thread: u32) -> bool {
        let (victims, abandoned) = (self.victims.load(), self.abandoned.load());
        if victims.is_empty() && abandoned.is_empty() {
            return false;
        }
        let pid = self.processes().ok().and_then(|processes| processes.pid_of(thread));
        pid.is_some_and(|pid| victims.contains(&pid) || abandoned.contains(&pid))
    }

    /// Clients that were killed.
    pub fn kills(&self) -> u64 {
        self.stats.kills.load(Ordering::Relaxed)
    }
}

/// Bytes that are given out when all acks are there, and not before.
fn after(mut outcome: Receiver<Outcome>, load: BufferRead, slot: EarlySlot) -> BufferRead {
    if let (Load::Ready(_), Ok(Some(Outcome::Go))) = (&load, outcome.try_recv()) {
        return load;
    }
    Load::Pending(Box::pin(async move {
        let _slot = slot;
        let result = load.wait().await;
        match outcome.await {
            Ok(Outcome::Go) => result,
            Ok(Outcome::Barred) | Err(_) => Err(HeadReadError::Barred),
        }
    }))
}

/// What a READ is answered with, and what ends with its reply.
fn answer(load: BufferRead, under_way: Option<UnderWay>, timer: ReadTimer) -> HeadRead {
    let bytes = move |buffer| ReadBytes { buffer, _under_way: under_way, _timer: timer };
    match load {
        Load::Ready(result) => Load::Ready(result.map(bytes)),
        Load::Pending(future) => Load::Pending(Box::pin(async move { Ok(bytes(future.await?)) })),
    }
}
