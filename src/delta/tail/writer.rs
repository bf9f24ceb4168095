//! Changing the index: taking up commits, and forgetting.
//!
//! Invariant: the order of steps is what readers rely on. Chunks and tables are published, in a state with the
//! old head, before an entry is written into them; an entry is written before a link leads to it; and the
//! state with the new head comes last. A tail that has moved is published, and noted for those who have answered
//! already, before an entry is made without what it forgot. An entry that a state does not count has a tid above its head.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use revfs_protocol::{FileId, Tid};
use tracing_mutex::stdsync::MutexGuard;

use super::chunks::Behind;
use super::index::{Index, Newest, Room, Used};
use super::pieces::{level_of, pieces};
use super::slices::event_of;
use super::window::{Blocks, Events, Window};
use super::{State, Tail};
use crate::delta::DeltaError;
use crate::store::{CommitInfo, FileChange};

/// What only those who change the index know of it.
#[derive(Debug)]
pub struct Writer {
    seed: u64,
    used: Used,
}

impl Writer {
    /// For a new index, and that index.
    pub fn new(seed: u64, blocks: &Blocks, events: &Events) -> (Index, Writer) {
        let (index, used) = Index::empty(seed, blocks, events, Room::default());
        (index, Writer { seed, used })
    }
}

/// What a commit adds.
struct Cost {
    blocks: usize,
    events: usize,
    files: usize,
}

impl Cost {
    fn of(commit: &CommitInfo) -> Cost {
        Cost {
            blocks: commit.files.iter().map(|change| listed(change).count()).sum(),
            events: commit.files.iter().filter(|change| event_of(change).is_some()).count(),
            files: commit.files.len(),
        }
    }

    fn room(&self) -> Room {
        Room { keys: self.blocks, files: self.files }
    }
}

/// The pieces that are recorded one by one: an epoch stands for all blocks.
fn listed(change: &FileChange) -> impl Iterator<Item = u64> {
    let runs: &[_] = if change.created || change.deleted { &[] } else { &change.blocks };
    runs.iter().copied().flat_map(pieces)
}

/// The writer has all chunks, and makes room before it writes; otherwise the index is broken.
fn held<T>(result: Result<T, Behind>) -> T {
    result.unwrap_or_else(|Behind| unreachable!("the writer of the change index lacks a chunk or a slot"))
}

impl Tail {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, next: State) {
        let tail = next.tail.raw();
        self.state.store(Arc::new(next));
        self.tail.store(tail, Ordering::Release);
    }

    /// Moves head up to `head`: nothing was committed in between.
    pub fn reach(&self, head: Tid) {
        let _writer = self.writer();
        let mut next = State::clone(&self.state.load());
        next.head = next.head.max(head);
        self.publish(next);
    }

    /// See `ChangeIndex::forget_past`.
    pub(super) fn forget(&self, cut: Tid) {
        let mut writer = self.writer();
        let mut next = State::clone(&self.state.load());
        let tail = cut.min(next.head);
        if tail <= next.tail {
            return;
        }
        held(next.forget(tail));
        next.renew_index(&mut writer, Room::default());
        self.publish(next);
    }

    /// See `ChangeIndex::update`.
    pub(super) fn take_up(&self, commit: &CommitInfo) -> Result<(), DeltaError> {
        let mut writer = self.writer();
        let mut next = State::clone(&self.state.load());
        if commit.tid <= next.head {
            return Err(DeltaError::NotAscending { tid: commit.tid, head: next.head });
        }
        let cost = Cost::of(commit);
        let entries = cost.blocks + cost.events;
        if entries > self.entries_max {
            next.start_again(&mut writer, commit.tid);
        } else {
            let excess = (next.entries() + entries).saturating_sub(self.entries_max);
            if held(next.make_room(&mut writer, &cost, excess)) {
                self.publish(next.clone());
            }
            held(next.append(&mut writer, commit));
        }
        next.head = commit.tid;
        self.publish(next);
        Ok(())
    }
}

impl State {
    /// Forgets everything: the window begins anew at `tid`.
    fn start_again(&mut self, writer: &mut Writer, tid: Tid) {
        self.tail = tid;
        self.blocks = Window::empty(self.blocks.end());
        self.events = Window::empty(self.events.end());
        let (index, used) = Index::empty(writer.seed, &self.blocks, &self.events, Room::default());
        (self.index, writer.used) = (Arc::new(index), used);
    }

    fn forget(&mut self, tail: Tid) -> Result<(), Behind> {
        self.tail = tail;
        self.blocks.forget(tail)?;
        self.events.forget(tail)
    }

    /// The tid up to which whole commits are to be forgotten so that `excess` entries go, or more.
    fn cut_for(&self, excess: usize) -> Result<Tid, Behind> {
        let (mut blocks, mut events, mut cut) = (0, 0, self.tail);
        while blocks + events < excess {
            let (block, event) = (self.blocks.tid_at(blocks)?, self.events.tid_at(events)?);
            let Some(tid) = [block, event].into_iter().flatten().min() else { break };
            blocks += usize::from(block == Some(tid));
            events += usize::from(event == Some(tid));
            cut = tid;
        }
        Ok(cut)
    }

    fn renew_index(&mut self, writer: &mut Writer, room: Room) -> bool {
        let suits = self.index.suits(&writer.used, &self.blocks, &self.events, room);
        if !suits {
            let (index, used) = self.index.anew(&self.blocks, &self.events, room);
            (self.index, writer.used) = (Arc::new(index), used);
        }
        !suits
    }

    /// Sees to it that all entries of a commit have places; answers whether the state is to be published for it.
    fn make_room(&mut self, writer: &mut Writer, cost: &Cost, excess: usize) -> Result<bool, Behind> {
        let mut moved = excess > 0;
        if moved {
            let cut = self.cut_for(excess)?;
            self.forget(cut)?;
        }
        moved |= self.renew_index(writer, cost.room());
        if !self.blocks.has_room(cost.blocks) {
            self.blocks.make_room(cost.blocks);
            moved = true;
        }
        if !self.events.has_room(cost.events) {
            self.events.make_room(cost.events);
            moved = true;
        }
        Ok(moved)
    }

    fn append(&mut self, writer: &mut Writer, commit: &CommitInfo) -> Result<(), Behind> {
        let index = Arc::clone(&self.index);
        for change in &commit.files {
            for key in listed(change) {
                self.append_block(&index, writer, (commit.tid, change.file), key)?;
            }
            self.append_event(&index, writer, commit.tid, change)?;
        }
        Ok(())
    }

    fn append_block(
        &mut self,
        index: &Index,
        writer: &mut Writer,
        (tid, file): (Tid, FileId),
        key: u64,
    ) -> Result<(), Behind> {
        let (ordinal, record) = index.file_or_new(&mut writer.used, file)?;
        let prev = index.newest(&self.blocks, ordinal, key);
        let skip = self.blocks.skip(prev.map(|prev| prev.number))?;
        let newest = record.newest_block().filter(|number| !self.blocks.is_old(*number));
        let file_prev = newest.unwrap_or_else(|| self.blocks.nowhere());
        let file = u64::from(ordinal) << 32 | u64::from(file_prev);
        let number = self.blocks.push(tid, [skip.key(key), skip.links(), file])?;
        let newest = Newest { number, has_prev: prev.is_some() };
        index.set_newest(&mut writer.used, (ordinal, key), newest)?;
        record.set_newest_block(number, level_of(key));
        Ok(())
    }

    fn append_event(
        &mut self,
        index: &Index,
        writer: &mut Writer,
        tid: Tid,
        change: &FileChange,
    ) -> Result<(), Behind> {
        let Some((kind, first, size)) = event_of(change) else { return Ok(()) };
        let (ordinal, record) = index.file_or_new(&mut writer.used, change.file)?;
        let newest = record.newest_event().filter(|number| !self.events.is_old(*number));
        let skip = self.events.skip(newest)?;
        let least = self.events.least(skip, first)?;
        let file = u64::from(ordinal) << 32;
        let words = [skip.key(kind.key()), skip.links(), file, size, change.old_size, first, least];
        let number = self.events.push(tid, words)?;
        record.set_newest_event(number);
        Ok(())
    }
}
