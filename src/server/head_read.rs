//! READs of files under head: before the bytes are answered, clients that work at an older state map the changed
//! blocks elsewhere.
//!
//! Invariant: the blocks are tracked, then the head is taken, then pins are found (rules 2 to 4), and a READ that has
//! to wait does so without a thread, a lock or, but for a few, a buffer (rule 15).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::channel::oneshot;
use revfs_protocol::{BlockIndex, BlockSpan, FileId, Tid};

use super::links::WatchLink;
use super::parked::{EarlySlot, OnEnd, Outcome};
use super::peer::Upload;
use super::setup::coarsened;
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
    /// Who asks is being killed, and can die only when it is answered (rule 16), or somebody who must not see the bytes is
    /// not told of pins any more.
    #[error("the process that reads is being killed, or watches of the file ended because the server stops")]
    Barred,
}

type BufferRead = Load<Result<ReadBuffer, HeadReadError>>;

/// What a READ is answered with, and what ends with its reply.
struct Answer<F> {
    reply: F,
    under_way: Option<UnderWay>,
    timer: ReadTimer,
    /// What is to be cached besides, when it was answered.
    upload: Option<Upload>,
}

impl<F: FnOnce(Result<ReadBytes, HeadReadError>) + Send + 'static> Answer<F> {
    fn give(self, result: Result<ReadBuffer, HeadReadError>) {
        let (under_way, timer) = (self.under_way, self.timer);
        let upload = self.upload.filter(|_| result.is_ok());
        (self.reply)(result.map(|buffer| ReadBytes { buffer, _under_way: under_way, _timer: timer }));
        if let Some(upload) = upload {
            upload.start();
        }
    }

    /// Now, or from the runtime.
    fn give_load(self, server: &Server, load: BufferRead) {
        match load {
            Load::Ready(result) => self.give(result),
            Load::Pending(future) => {
                drop(server.options.runtime.spawn(async move { self.give(future.await) }));
            }
        }
    }
}

/// How a READ goes on.
enum Begun {
    Load(BufferRead, FileView),
    /// When a wait is over.
    Parked(WaitId, FileView),
}

impl Server {
    /// Reads bytes of a file under head for a thread, clipped to the file's size. `reply` is called with them before
    /// this returns or later, on any thread; it must not wait.
    pub fn read_head<F>(self: &Arc<Self>, file: FileId, (offset, len): (u64, usize), thread: u32, reply: F)
    where
        F: FnOnce(Result<ReadBytes, HeadReadError>) + Send + 'static,
    {
        let (timer, begun) = (ReadTimer::start(self), self.stores_begun());
        let under_way = match self.track(file, offset, len) {
            Ok(under_way) => under_way,
            Err(error) => return reply(Err(error.into())),
        };
        let mut answer = Answer { reply, under_way, timer, upload: None };
        match self.begin_head_read(file, offset, len, thread) {
            Ok(Begun::Load(load, view)) => {
                answer.upload = Upload::of_head(self, &view, (offset, len), begun);
                answer.give_load(self, load);
            }
            Ok(Begun::Parked(wait, view)) => {
                answer.upload = Upload::of_head(self, &view, (offset, len), begun);
                self.park(wait, view, (offset, len), answer);
            }
            Err(error) => answer.give(Err(error)),
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
    ) -> Result<Begun, HeadReadError> {
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
        let revs = self.history.revs(&view, span)?;
        let newest = revs.iter().map(|(_, rev)| *rev).max().unwrap_or(Tid::ZERO);
        let links = self.links.behind(file, newest);
        if links.is_empty() {
            return self.load_unless_barred(&view, (offset, len), thread);
        }
        let wait = self.parked.begin(thread);
        // A stop that comes from here on ends the wait; links that ended before would not be asked.
        if self.is_kept_from(file, newest) {
            self.parked.end_of(|other| other == thread);
        }
        for link in &links {
            self.ask_link(link, file, &revs, wait);
        }
        if !self.parked.settle(wait) {
            return self.load_unless_barred(&view, (offset, len), thread);
        }
        // Between the first look and the parking it may have been barred.
        if self.is_barred(thread) {
            self.parked.end_of(|other| other == thread);
        }
        Stats::add(&self.stats.parked_reads, 1);
        Ok(Begun::Parked(wait, view))
    }

    /// Answers a READ when its wait is over. A few load meanwhile, while the client maps the blocks.
    fn park<F>(self: &Arc<Self>, wait: WaitId, view: FileView, range: (u64, usize), answer: Answer<F>)
    where
        F: FnOnce(Result<ReadBytes, HeadReadError>) + Send + 'static,
    {
        let early = self.parked.early_slot().map(|slot| (slot, self.load(&view, range.0, range.1)));
        let then: OnEnd = match early {
            Some((slot, Load::Ready(result))) => Box::new(move |outcome| {
                let _slot = slot;
                answer.give(if_let_go(outcome, result));
            }),
            Some((slot, Load::Pending(loading))) => {
                let (ended, outcome) = oneshot::channel();
                drop(self.options.runtime.spawn(async move {
                    let _slot: EarlySlot = slot;
                    let result = loading.await;
                    answer.give(if_let_go(outcome.await.unwrap_or(Outcome::Barred), result));
                }));
                // Nobody takes it if the runtime ends.
                Box::new(move |outcome| {
                    let _ = ended.send(outcome);
                })
            }
            None => {
                let server = Arc::clone(self);
                Box::new(move |outcome| match outcome {
                    Outcome::Barred => answer.give(Err(HeadReadError::Barred)),
                    // Who acks does not wait for the disk.
                    Outcome::Go => {
                        let runtime = server.options.runtime.clone();
                        drop(runtime.spawn_blocking(move || {
                            let load = server.load(&view, range.0, range.1);
                            answer.give_load(&server, load);
                        }));
                    }
                })
            }
        };
        self.parked.on_end(wait, then);
    }

    /// Reads bytes of the version of a file that was made at `rev`, clipped to the file's size. Nobody has a say in it. `reply` is called
    /// with them before this returns or later, on any thread; it must not wait.
    pub fn read_rev<F>(self: &Arc<Self>, (view, rev): (&FileView, Tid), (offset, len): (u64, usize), reply: F)
    where
        F: FnOnce(Result<ReadBytes, HeadReadError>) + Send + 'static,
    {
        let upload = Upload::of_version(self, view, rev, (offset, len));
        let answer = Answer { reply, under_way: None, timer: ReadTimer::start(self), upload };
        answer.give_load(self, self.load(view, offset, len));
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
    /// process that is abandoned end after that was said.
    fn load_unless_barred(
        &self,
        view: &FileView,
        (offset, len): (u64, usize),
        thread: u32,
    ) -> Result<Begun, HeadReadError> {
        if self.is_barred(thread) {
            return Err(HeadReadError::Barred);
        }
        if self.is_kept_from(view.meta.file, view.meta.rev) {
            let blocks = blocks_of(view.meta.block_size, offset, len);
            let (first, last) = (BlockIndex::new(*blocks.start()), BlockIndex::new(*blocks.end()));
            let revs = self.history.revs(view, BlockSpan { first, last })?;
            if revs.iter().any(|(_, rev)| self.is_kept_from(view.meta.file, *rev)) {
                return Err(HeadReadError::Barred);
            }
        }
        Ok(Begun::Load(self.load(view, offset, len), view.clone()))
    }

    /// Whether bytes that changed at `rev` may be seen by nobody any more: the server stops, and a client that works at an
    /// older state was left with its mapping.
    fn is_kept_from(&self, file: FileId, rev: Tid) -> bool {
        self.abandoned.load().oldest_at.get(&file).is_some_and(|oldest| *oldest < rev)
    }

    /// Pins blocks for all who must not see them as they are in head, because of the changes up to `at`. `wait` counts
    /// the acks.
    pub(super) fn pin_behind(self: &Arc<Self>, file: FileId, at: Tid, span: BlockSpan, wait: WaitId) {
        let revs = self.head_file(file).and_then(|view| self.history.revs(&view, span));
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
        let pid = link.process.pid();
        loop {
            let need = link.with(self, |state, _| {
                let need = state.read_begin(file, revs, wait);
                self.parked.add(wait, need.as_ref().map_or(0, |need| need.waits), pid);
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
                unknown.iter().map(|blocks| (*blocks, at)).collect()
            });
            let targets = coarsened(targets, at, self.options.pins_max);
            let now = self.options.clock.monotonic();
            let pinned = link.with(self, |state, actions| {
                let pinned = state.read_pin(now, (file, serial), &targets, wait, actions);
                self.parked.add(wait, pinned.unwrap_or(0), pid);
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
        blocks: &[BlockSpan],
    ) -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
        let old = self.rev_file(file, at)?;
        let mut targets = Vec::with_capacity(blocks.len());
        for span in blocks {
            targets.extend(self.history.pins_at(&old, *span)?);
        }
        Ok(targets)
    }

    /// Whether a thread belongs to a process whose READs all fail.
    fn is_barred(&self, thread: u32) -> bool {
        let (victims, abandoned) = (self.victims.load(), self.abandoned.load());
        if victims.is_empty() && abandoned.pids.is_empty() {
            return false;
        }
        let pid = self.processes().ok().and_then(|processes| processes.pid_of(thread));
        pid.is_some_and(|pid| victims.contains(&pid) || abandoned.pids.contains(&pid))
    }

    /// Clients that were killed.
    pub fn kills(&self) -> u64 {
        self.stats.kills.load(Ordering::Relaxed)
    }
}

fn if_let_go(
    outcome: Outcome,
    result: Result<ReadBuffer, HeadReadError>,
) -> Result<ReadBuffer, HeadReadError> {
    match outcome {
        Outcome::Go => result,
        Outcome::Barred => Err(HeadReadError::Barred),
    }
}
