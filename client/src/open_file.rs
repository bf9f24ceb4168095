//! One file of a connection: its pins, and the regions that show it.
//!
//! Invariant: what a region shows is a function of the pins and the size, painted under one lock. Blocks that are
//! pinned show `@<rev>`, others head, and whole pages beyond the size as of the view are zeros whatever head has
//! grown to. A region whose part could not be painted shows nothing at all: faults, never wrong bytes.

use crate::error::ClientError;
use crate::mount_dir::MountDir;
use crate::pin_map::PinMap;
use crate::region::{Region, page_ceil};
use crate::shared::lock;
use revfs_protocol::{BlockSize, BlockSpan, FileId, PinTo, Tid};
use rustix::io::{Errno, pread, retry_on_intr};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tracing_mutex::stdsync::Mutex;

/// A file that is watched.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) id: FileId,
    pub(crate) head: OwnedFd,
    pub(crate) block_size: BlockSize,
    /// Whether `watch <file> -` was sent: then nothing may be asked any more. Held across a send, before all other
    /// locks; no pinner thread takes it.
    pub(crate) asking: Mutex<bool>,
    state: Mutex<State>, // pinner threads take it: whoever holds it touches no mapping
}

#[derive(Debug)]
struct State {
    pins: PinMap,
    size: u64,   // bytes as of the view
    newest: Tid, // the latest state that was asked for; no pin is beyond
    regions: Vec<Placed>,
    lost: Option<ClientError>,
}

/// A region, and the offset of its first byte in the file.
#[derive(Clone, Debug)]
struct Placed {
    region: Arc<Region>,
    offset: u64,
}

/// What a pin made of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PinOutcome {
    /// The mappings show what was asked for, or nothing.
    Done,
    /// The pin is to a state that nobody asked for.
    Beyond,
    /// The mappings still show something else.
    Stuck(Errno),
}

impl OpenFile {
    pub(crate) fn new(id: FileId, head: OwnedFd, block_size: BlockSize, at: Tid) -> OpenFile {
        let state = State { pins: PinMap::default(), size: 0, newest: at, regions: Vec::new(), lost: None };
        OpenFile { id, head, block_size, asking: Mutex::new(false), state: Mutex::new(state) }
    }

    /// Why the file cannot be used any more.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        lock(&self.state).lost.clone().map_or(Ok(()), Err)
    }

    /// Bytes as of the view.
    pub(crate) fn size(&self) -> u64 {
        lock(&self.state).size
    }

    /// Allows pins up to `at`, before it is asked for.
    pub(crate) fn expect(&self, at: Tid) {
        let mut state = lock(&self.state);
        state.newest = state.newest.max(at);
    }

    /// Carries out a pin. A region that cannot show it shows nothing from then on.
    pub(crate) fn pin(&self, mount: &MountDir, blocks: BlockSpan, to: PinTo) -> PinOutcome {
        // Opened before the lock, so that other pins of the file go on; a failure shows again in `paint`.
        let _kept = match to {
            PinTo::Rev(rev) => mount.rev_file(self.id, rev).ok(),
            PinTo::Head => None,
        };
        let mut state = lock(&self.state);
        if matches!(to, PinTo::Rev(rev) if rev > state.newest) {
            return PinOutcome::Beyond;
        }
        state.pins.set(blocks, to);
        let start = self.block_size.start_of(blocks.first).unwrap_or(u64::MAX);
        let end = blocks.last.next().and_then(|next| self.block_size.start_of(next)).unwrap_or(u64::MAX);
        match self.repaint(mount, &mut state, start..end) {
            Ok(()) => PinOutcome::Done,
            Err(cause) => PinOutcome::Stuck(cause),
        }
    }

    /// Shows the file with `size` bytes from now on.
    pub(crate) fn resize(&self, mount: &MountDir, size: u64) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        let old = std::mem::replace(&mut state.size, size);
        let changed = old.min(size)..page_ceil(old.max(size)).unwrap_or(u64::MAX);
        if old == size { Ok(()) } else { self.repaint(mount, &mut state, changed) }
    }

    /// Paints a range of the file in all regions; if that fails, all of them show nothing. An error: not even that.
    fn repaint(&self, mount: &MountDir, state: &mut State, bytes: Range<u64>) -> Result<(), Errno> {
        if state.lost.is_some() {
            return Ok(());
        }
        let painted = state.regions.iter().try_for_each(|placed| self.paint(mount, state, placed, &bytes));
        painted.or_else(|cause| lose(state, ClientError::Remap { file: self.id, cause }))
    }

    /// Paints a range of the file in one region.
    fn paint(
        &self,
        mount: &MountDir,
        state: &State,
        placed: &Placed,
        bytes: &Range<u64>,
    ) -> Result<(), Errno> {
        let page_floor = |at: u64| at - at % crate::region::page_bytes();
        let region_end = placed.offset + placed.region.len() as u64; // checked when it was made
        let start = page_floor(bytes.start).max(placed.offset);
        let end = page_ceil(bytes.end).unwrap_or(u64::MAX).min(region_end);
        let data_end = page_ceil(state.size).unwrap_or(u64::MAX).min(end);
        if start < data_end {
            let blocks =
                BlockSpan::new(self.block_size.block_of(start), self.block_size.block_of(data_end - 1));
            for (run, to) in blocks.map_or_else(Vec::new, |blocks| state.pins.runs_in(blocks)) {
                let run_start = self.block_size.start_of(run.first).unwrap_or(u64::MAX).max(start);
                let run_end = run.last.next().and_then(|next| self.block_size.start_of(next));
                self.paint_run(mount, placed, run_start..run_end.unwrap_or(u64::MAX).min(data_end), to)?;
            }
        }
        zeros(placed, start.max(data_end)..end)
    }

    fn paint_run(
        &self,
        mount: &MountDir,
        placed: &Placed,
        bytes: Range<u64>,
        to: PinTo,
    ) -> Result<(), Errno> {
        let rev = match to {
            PinTo::Head => return map(placed, bytes, &self.head),
            PinTo::Rev(rev) => rev,
        };
        let file = mount.rev_file(self.id, rev).map_err(|error| match error {
            ClientError::Path { cause, .. } => cause,
            _ => Errno::IO,
        })?;
        // A block that did not exist at its revision is zeros until now: nothing changed it.
        let end = page_ceil(file.size).unwrap_or(u64::MAX).clamp(bytes.start, bytes.end);
        map(placed, bytes.start..end, &file.fd)?;
        zeros(placed, end..bytes.end)
    }

    /// A new region that shows the file's bytes from `offset` on; both in whole pages.
    pub(crate) fn add_region(&self, mount: &MountDir, offset: u64, len: usize) -> Result<Arc<Region>, Errno> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len)).ok_or(Errno::OVERFLOW)?;
        let region = Arc::new(Region::reserve(len, offset)?);
        let placed = Placed { region: Arc::clone(&region), offset };
        let mut state = lock(&self.state);
        if state.lost.is_none() {
            self.paint(mount, &state, &placed, &(offset..end))?;
        }
        state.regions.push(placed);
        Ok(region)
    }

    /// Forgets a region, which is about to go.
    pub(crate) fn remove_region(&self, region: &Arc<Region>) {
        lock(&self.state).regions.retain(|placed| !Arc::ptr_eq(&placed.region, region));
    }

    /// Makes all regions fault, for good. The first cause stays.
    pub(crate) fn lose(&self, cause: ClientError) -> Result<(), Errno> {
        lose(&mut lock(&self.state), cause)
    }

    /// Reads bytes as of the view; beyond the end of the file they are zeros.
    ///
    /// It reads through descriptors, not through a mapping: what cannot be read is an error and no signal.
    pub(crate) fn read(
        &self,
        mount: &MountDir,
        mut offset: u64,
        mut buf: &mut [u8],
    ) -> Result<(), ClientError> {
        while !buf.is_empty() {
            let block = self.block_size.block_of(offset);
            let block_end = block.next().and_then(|next| self.block_size.start_of(next)).unwrap_or(u64::MAX);
            let len = usize::try_from(block_end - offset).unwrap_or(usize::MAX).min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            read_settled(
                || self.source_of(offset),
                |(to, size)| match to {
                    PinTo::Head => self.read_part(&self.head, offset, part, size),
                    PinTo::Rev(rev) => {
                        let file = mount.rev_file(self.id, rev)?;
                        self.read_part(&file.fd, offset, part, file.size.min(size))
                    }
                },
            )?;
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    fn source_of(&self, offset: u64) -> Result<(PinTo, u64), ClientError> {
        let state = lock(&self.state);
        let to = state.pins.get(self.block_size.block_of(offset));
        state.lost.clone().map_or(Ok((to, state.size)), Err)
    }

    /// Fills `part` with a file's bytes before `size`, then zeros.
    fn read_part(&self, fd: &OwnedFd, offset: u64, part: &mut [u8], size: u64) -> Result<(), ClientError> {
        let data_len = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(part.len());
        let (data, after) = part.split_at_mut(data_len);
        after.fill(0);
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let read = retry_on_intr(|| pread(fd, &mut data[done..], at));
            done += match read {
                // Bytes before the size exist.
                Ok(0) => return Err(ClientError::Read { file: self.id, offset: at, cause: Errno::IO }),
                Ok(len) => len,
                Err(cause) => return Err(ClientError::Read { file: self.id, offset: at, cause }),
            };
        }
        Ok(())
    }
}

/// Reads a block from where it is to be read. What came from head counts only if the block is not pinned afterwards:
/// the server answers a READ of a block that changed only after the pin.
fn read_settled(
    mut source: impl FnMut() -> Result<(PinTo, u64), ClientError>,
    mut read: impl FnMut((PinTo, u64)) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    loop {
        let from = source()?;
        let result = read(from);
        if from.0 != PinTo::Head || source()?.0 == PinTo::Head {
            return result;
        }
    }
}

fn lose(state: &mut State, cause: ClientError) -> Result<(), Errno> {
    state.lost.get_or_insert(cause);
    // Each is tried, also after one that failed.
    state.regions.iter().map(|placed| placed.region.map_nothing()).fold(Ok(()), Result::and)
}

/// Maps a range of a file where it belongs in a region; an empty one is nothing to do.
fn map(placed: &Placed, bytes: Range<u64>, file: &OwnedFd) -> Result<(), Errno> {
    let part = part_of(placed, &bytes)?;
    if part.is_empty() { Ok(()) } else { placed.region.map_file(part, file, bytes.start) }
}

fn zeros(placed: &Placed, bytes: Range<u64>) -> Result<(), Errno> {
    let part = part_of(placed, &bytes)?;
    if part.is_empty() { Ok(()) } else { placed.region.map_zeros(part) }
}

/// Where in the region a range of the file lies.
fn part_of(placed: &Placed, bytes: &Range<u64>) -> Result<Range<usize>, Errno> {
    let within = |at: u64| at.checked_sub(placed.offset).and_then(|at| usize::try_from(at).ok());
    match bytes.is_empty() {
        true => Ok(0..0),
        false => Ok(within(bytes.start).ok_or(Errno::OVERFLOW)?..within(bytes.end).ok_or(Errno::OVERFLOW)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_was_read_from_head_is_dropped_if_the_block_is_pinned_meanwhile() {
        let rev = PinTo::Rev(Tid::from_raw(7));
        for (pinned_while_read, expected) in [(true, vec![PinTo::Head, rev]), (false, vec![PinTo::Head])] {
            let to = Cell::new(PinTo::Head);
            let mut read = Vec::new();
            let result = read_settled(
                || Ok((to.get(), 1)),
                |(from, _)| {
                    read.push(from);
                    if pinned_while_read {
                        to.set(rev);
                    }
                    // What head says of a block that has left it is of no interest either.
                    match from == PinTo::Head && pinned_while_read {
                        true => Err(ClientError::Forked),
                        false => Ok(()),
                    }
                },
            );
            assert_eq!((result, read), (Ok(()), expected));
        }
    }
}
