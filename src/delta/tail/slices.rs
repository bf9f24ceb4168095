//! Gathering what changed of a file, entry by entry, in any order of blocks and from old to new in events.

use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};

use super::window::{Entry, word};
use crate::delta::{Epoch, EpochKind, FileSlice, SizeChange};
use crate::store::FileChange;

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Only the size changed.
    Resized,
    /// See [`EpochKind::Created`].
    Created,
    /// See [`EpochKind::Deleted`].
    Deleted,
}

const KIND_SHIFT: u32 = 60;

impl EventKind {
    /// As part of an entry's key.
    pub fn key(self) -> u64 {
        (self as u64) << KIND_SHIFT
    }

    fn epoch_of(key: u64) -> Option<EpochKind> {
        if key == EventKind::Created.key() {
            Some(EpochKind::Created)
        } else if key == EventKind::Deleted.key() {
            Some(EpochKind::Deleted)
        } else {
            None
        }
    }
}

/// A slice in the making.
#[derive(Debug)]
pub struct Gathering {
    slice: FileSlice,
    // [first, end), in any order.
    ranges: Vec<(u64, u64)>,
}

impl Gathering {
    /// Nothing yet.
    pub fn of(file: FileId) -> Gathering {
        Gathering { slice: FileSlice::unchanged(file), ranges: Vec::new() }
    }

    /// Adds changed blocks.
    pub fn add_blocks(&mut self, range: (u64, u64)) {
        match self.ranges.last_mut() {
            Some(last) if last.1 == range.0 => last.1 = range.1,
            Some(last) if last.0 == range.1 => last.0 = range.0,
            _ => self.ranges.push(range),
        }
    }

    /// Adds an event, which is newer than those before.
    pub fn add_event(&mut self, tid: Tid, event: &Entry<7>) {
        let (size, first) = (event.word(word::SIZE), event.word(word::FIRST));
        if first != u64::MAX {
            let rest = self.slice.rest.map_or(first, |rest| rest.raw().min(first));
            self.slice.rest = Some(BlockIndex::new(rest));
        }
        if let Some(kind) = EventKind::epoch_of(event.key()) {
            self.slice.epochs.push(Epoch { tid, kind });
        }
        let before = self.slice.size.map_or(event.word(word::OLD_SIZE), |known| known.before);
        let smallest = self.slice.size.map_or(size, |known| known.smallest.min(size));
        self.slice.size = Some(SizeChange { before, smallest, after: size });
    }

    /// The slice.
    pub fn finish(mut self) -> FileSlice {
        self.ranges.sort_unstable();
        let rest = self.slice.rest.map_or(u64::MAX, BlockIndex::raw);
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, end) in self.ranges {
            let end = end.min(rest);
            match merged.last_mut() {
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ if first < end => merged.push((first, end)),
                _ => {}
            }
        }
        let run = |(first, end)| (BlockIndex::new(first), BlockCount::new(end - first));
        self.slice.blocks = merged.into_iter().map(run).collect();
        self.slice
    }
}

/// What a commit's change of one file is beside blocks: kind, first block from which all changed, size after.
pub fn event_of(change: &FileChange) -> Option<(EventKind, u64, u64)> {
    if change.deleted {
        return Some((EventKind::Deleted, 0, 0));
    }
    if change.created {
        return Some((EventKind::Created, 0, change.size));
    }
    let first = match change.size.cmp(&change.old_size) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => u64::MAX,
        // The block that the new end cuts, or the first behind it.
        std::cmp::Ordering::Less => change.block_size.block_of(change.size).raw(),
    };
    Some((EventKind::Resized, first, change.size))
}
