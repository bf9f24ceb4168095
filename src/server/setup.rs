//! Set-ups of watches: from "as of `at`" to the blocks that the client has to map elsewhere.
//!
//! Invariant: a set-up goes on only when `head/at` is there (rule 8); whatever can fail comes before the move (rule
//! 11); the published head is loaded after the watch is registered (rule 9). A set-up holds no lock but for moments,
//! and no thread that serves the kernel.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError};

use revfs_protocol::{BlockSize, BlockSpan, FileId, Tid, format_go_duration};
use tracing_mutex::stdsync::Mutex;

use super::links::{LinkId, WatchLink};
use super::{FileView, Server};
use crate::store::ReadError;
use crate::watch::{MovedFrom, SetupRequest, SetupStart, UNKNOWN_FILE};

/// Set-ups that wait for `head/at`.
#[derive(Debug, Default)]
pub(super) struct Setups {
    // Leaf lock.
    waiting: Mutex<BTreeMap<Tid, Vec<Waiting>>>,
}

type Waiting = (Arc<WatchLink>, SetupRequest);

impl Setups {
    /// A set-up is not wanted any more.
    pub(super) fn give_up(&self, link: LinkId, request: &SetupRequest) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut requests) = waiting.entry(request.at) {
            requests.get_mut().retain(|(of, other)| of.id != link || other.serial != request.serial);
            if requests.get().is_empty() {
                requests.remove();
            }
        }
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.values().map(Vec::len).sum()
    }

    /// A link is gone, and nobody waits for its set-ups.
    pub(super) fn forget(&self, link: LinkId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, requests| {
            requests.retain(|(of, _)| of.id != link);
            !requests.is_empty()
        });
    }
}

/// What a watch begins with.
struct Prepared {
    pins: Vec<(BlockSpan, Tid)>,
    /// Size of the file at `at`, bytes.
    size: u64,
    /// What `pins` was found with.
    head: Tid,
    tracked: u64,
}

/// Why a set-up is refused.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("too far away back from head/at (@{shown}); \u{3b4}t = {}", format_go_duration(*.back_ns))]
    TooOld { shown: Tid, back_ns: u64 },
    #[error("{UNKNOWN_FILE}")]
    Unknown,
    #[error("file epoch detected @{rev} in between (at,head=@{head}]")]
    Epoch { rev: Tid, head: Tid },
    #[error("too many pins: {count} > {max}; watch a later state, or mount with more --pins")]
    TooManyPins { count: usize, max: usize },
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Server {
    /// A client asked for a set-up.
    pub(super) fn setup_asked(self: &Arc<Self>, link: &Arc<WatchLink>, request: SetupRequest) {
        let mut waiting = self.setups.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(request.at).or_default().push((Arc::clone(link), request));
        drop(waiting);
        // Another thread of the client may have given it up before it was in the list.
        if !link.with(self, |state, _| state.setup_is_wanted(&request)) {
            self.setups.give_up(link.id, &request);
        }
        // After it is in the list: else `head/at` might come by in between.
        self.start_setups();
    }

    /// Starts all set-ups that `head/at` has reached.
    pub(super) fn start_setups(self: &Arc<Self>) {
        let shown = self.shown();
        let ready = {
            let mut waiting = self.setups.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let later = shown.next().map(|next| waiting.split_off(&next)).unwrap_or_default();
            std::mem::replace(&mut *waiting, later)
        };
        for (link, request) in ready.into_values().flatten() {
            let server = Arc::clone(self);
            drop(self.options.runtime.spawn_blocking(move || server.set_up(&link, request)));
        }
    }

    fn set_up(self: &Arc<Self>, link: &Arc<WatchLink>, request: SetupRequest) {
        let SetupRequest { file, at, serial, .. } = request;
        if link.with(self, |state, actions| state.setup_start(&request, actions)) == SetupStart::Over {
            return;
        }
        let prepared = match self.prepare(file, at) {
            Ok(prepared) => prepared,
            Err(error) => {
                if let SetupError::Read(cause) = &error {
                    log::error!("cannot set up a watch of file {file} @{at}: {cause}");
                }
                let why = error.to_string();
                return link.with(self, |state, actions| state.setup_refuse(&request, &why, actions));
            }
        };
        self.links.register(file, at, link.id, serial);
        let Some(MovedFrom(before)) = link.with(self, |state, _| state.setup_move(&request, prepared.size))
        else {
            return self.links.unregister(file, link.id, serial);
        };
        if let Some(before) = before {
            self.links.unregister(file, link.id, before);
        }
        let pins = self.pins_now(file, at, prepared);
        let now = self.options.clock.monotonic();
        link.with(self, |state, actions| state.setup_pin(now, &request, &pins, actions));
    }

    fn prepare(&self, file: FileId, at: Tid) -> Result<Prepared, SetupError> {
        let tracked = self.tracking.version(file);
        if self.history.oldest_watched().is_some_and(|oldest| at < oldest) {
            let shown = self.shown();
            let back_ns = shown.to_unix_ns().saturating_sub(at.to_unix_ns());
            return Err(SetupError::TooOld { shown, back_ns });
        }
        if self.has_peer_manners() && !self.knows_file(file) {
            return Err(SetupError::Unknown);
        }
        let view = match self.head_file(file) {
            Err(ReadError::NoSuchFile { .. }) => return Err(SetupError::Unknown),
            view => view?,
        };
        let head = view.txn.at();
        if let Some(rev) = view.meta.deleted {
            // The view of a deleted file is of the state before.
            let head = self.head();
            return Err(if rev <= at { SetupError::Unknown } else { SetupError::Epoch { rev, head } });
        }
        if view.meta.created > at {
            return Err(SetupError::Epoch { rev: view.meta.created, head });
        }
        let old = self.rev_file(file, at)?;
        let pins = self.initial_pins(&view, &old)?;
        let max = self.options.pins_max;
        if pins.len() > max {
            return Err(SetupError::TooManyPins { count: pins.len(), max });
        }
        Ok(Prepared { pins, size: old.meta.size, head, tracked })
    }

    /// What the watch, which is registered now, begins with. Nothing may fail any more.
    fn pins_now(&self, file: FileId, at: Tid, prepared: Prepared) -> Vec<(BlockSpan, Tid)> {
        // Blocks first, then the head: a block that is read later finds the watch.
        let tracked = self.tracking.version(file);
        let again = || -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
            let view = self.head_file(file)?;
            if view.txn.at() == prepared.head && tracked == prepared.tracked {
                return Ok(prepared.pins);
            }
            self.initial_pins(&view, &self.rev_file(file, at)?)
        };
        again().unwrap_or_else(|error| {
            // Every block as of `at` is always right: any revision in which it does not change up to `at` is.
            log::warn!("all blocks of file {file} that were read are pinned @{at}: {error}");
            self.tracking.spans(file).into_iter().map(|span| (span, at)).collect()
        })
    }

    /// Blocks that were read and changed between `old` and `head`, each with its revision at `old`.
    fn initial_pins(&self, head: &FileView, old: &FileView) -> Result<Vec<(BlockSpan, Tid)>, ReadError> {
        let mut pins = Vec::new();
        if head.meta.rev <= old.txn.at() {
            return Ok(pins);
        }
        // Rule 22: beyond the end of head the kernel does not ask, whatever was read. Its size as it is, not as it is
        // told while it shrinks.
        let head_size = self.meta(&head.txn, head.meta.file)?.map_or(0, |meta| meta.size);
        if let Some(cut) = blocks_between(old.meta.block_size, head_size, old.meta.size) {
            pins.extend(self.history.pins_at(old, cut)?);
        }
        let tracked = self.tracking.spans(head.meta.file);
        for changed in self.history.changed(head, old.txn.at(), tracked)? {
            pins.extend(self.history.pins_at(old, changed)?);
        }
        Ok(coarsened(pins, old.txn.at(), self.options.pins_max))
    }
}

/// Pins of blocks as of the state `at`. If they are more than `max`, neighbours are one, pinned at `at`: that shows each block as
/// well, but shares less with who works at other states.
pub(super) fn coarsened(mut pins: Vec<(BlockSpan, Tid)>, at: Tid, max: usize) -> Vec<(BlockSpan, Tid)> {
    if pins.len() <= max {
        return pins;
    }
    pins.sort_unstable_by_key(|(span, _)| span.first);
    let mut few: Vec<(BlockSpan, Tid)> = Vec::new();
    for (span, _) in pins {
        match few.last_mut() {
            Some((before, _)) if before.last.next().is_none_or(|next| span.first <= next) => {
                before.last = before.last.max(span.last);
            }
            _ => few.push((span, at)),
        }
    }
    few
}

/// The blocks that hold bytes `[from, to)` of a file.
pub(super) fn blocks_between(block_size: BlockSize, from: u64, to: u64) -> Option<BlockSpan> {
    let last = to.checked_sub(1).filter(|last| *last >= from)?;
    Some(BlockSpan { first: block_size.block_of(from), last: block_size.block_of(last) })
}

#[cfg(test)]
mod tests {
    use revfs_protocol::BlockIndex;

    use super::*;

    #[test]
    fn too_many_pins_become_few_at_the_state_itself() {
        let span = |first, last| BlockSpan { first: BlockIndex::new(first), last: BlockIndex::new(last) };
        let at = Tid::from_raw(9);
        let pins = [(7, 8, 3), (0, 2, 1), (3, 3, 2), (4, 4, 1), (8, 9, 2)];
        let pins: Vec<_> = pins.map(|(first, last, rev)| (span(first, last), Tid::from_raw(rev))).to_vec();
        assert_eq!(coarsened(pins.clone(), at, 5), pins);
        assert_eq!(coarsened(pins, at, 4), [(span(0, 4), at), (span(7, 9), at)]);
        let end = vec![(span(5, u64::MAX), Tid::ZERO), (span(u64::MAX, u64::MAX), Tid::ZERO)];
        assert_eq!(coarsened(end, at, 1), [(span(5, u64::MAX), at)]);
    }
}
