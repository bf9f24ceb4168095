//! Much data at once: a part of a large object straight to where it goes, and many small objects in the order of the file.
//!
//! Invariant: what is answered is what [`FileStorage::load`] answers. Large parts are read past the page cache, where
//! they would be a second time: the kernel keeps what is served from it anyway. Memory is one window.

use std::ops::Range;

use revfs_protocol::Tid;

use super::FileStorage;
use super::error::FileStorageError;
use super::format::{RECORD_HEADER_BYTES, RecordHeader};
use super::load::Peeked;
use super::window::DataFile;
use crate::store::zodb::Oid;

/// Takes objects that were loaded: the number of each in the question, and its serial and data, or `None` if it does not
/// exist.
pub type VisitFn<'v> = dyn FnMut(usize, Option<(Tid, &[u8])>) + 'v;

/// Bytes between two records that are read rather than jumped over.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// Most bytes that are read at once.
const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// Bytes that are read for the last record of a window, whose length is not known.
const LAST_BYTES: u64 = 8 << 10;

impl FileStorage {
    /// Reads a part of the data of an object as of `at`: `part` is given what [`FileStorage::peek`] answers, and says which
    /// bytes of the data go to the beginning of `into`. `false` if it says none, or the object does not exist.
    ///
    /// # Errors
    /// As [`FileStorage::load`].
    pub fn read_part(
        &self,
        oid: Oid,
        at: Tid,
        part: &mut dyn FnMut(&Peeked) -> Option<Range<u64>>,
        into: &mut [u8],
    ) -> Result<bool, FileStorageError> {
        let read = self.find(oid, at, |file, serial, start| {
            let peeked = start.peeked(serial);
            let len = peeked.len;
            let Some(range) = part(&peeked).filter(|range| range.start <= range.end && range.end <= len)
            else {
                return Ok(false);
            };
            let count = usize::try_from(range.end - range.start).ok();
            let Some(into) = count.and_then(|count| into.get_mut(..count)) else { return Ok(false) };
            file.read_data(start.data_pos() + range.start, into)?;
            Ok(true)
        })?;
        Ok(read == Some(true))
    }

    /// Loads many objects as of `at`, and gives each to `visit` with its number in `oids`, in any order: its serial and
    /// data, or `None` if it does not exist.
    ///
    /// # Errors
    /// As [`FileStorage::load`]; some may have been visited.
    pub fn load_each(&self, oids: &[Oid], at: Tid, visit: &mut VisitFn<'_>) -> Result<(), FileStorageError> {
        let (file, end, mut places) = self.places(oids);
        places.sort_unstable();
        let mut buffer = Vec::new();
        let mut rest = places.as_slice();
        while let Some((first, _)) = rest.first().copied() {
            let mut last = first;
            let near = |(pos, _): &&(u64, usize)| {
                let near = *pos - last <= GAP_BYTES_MAX && *pos - first < WINDOW_BYTES_MAX;
                last = if near { *pos } else { last };
                near
            };
            let count = rest.iter().take_while(near).count().max(1);
            let (group, behind) = rest.split_at(count);
            rest = behind;
            // One that does not exist has no place, and each place counts once: a window is never longer than this.
            let last = group.last().map_or(first, |(pos, _)| *pos);
            let len = (last - first + LAST_BYTES).min(end.saturating_sub(first));
            let len = usize::try_from(len).unwrap_or(0);
            buffer.resize(len, 0);
            let have = if first == 0 { 0 } else { file.read_up_to(first, &mut buffer)? };
            let window = buffer.get(..have).unwrap_or_default();
            for (pos, number) in group {
                let oid = oids.get(*number).copied().unwrap_or_default();
                match current(window, (first, end), *pos, oid, at) {
                    Some((serial, data)) => visit(*number, Some((serial, data))),
                    // Older, far longer, an undo, or damaged: all that is looked at with care.
                    None => match self.load(oid, at)? {
                        Some(loaded) => visit(*number, Some((loaded.serial, &loaded.data))),
                        None => visit(*number, None),
                    },
                }
            }
        }
        Ok(())
    }
}

/// The record of an object at `pos`, if it lies wholly in the window from `first` on, and has data of its own that are those of
/// the state `at`.
fn current(window: &[u8], (first, end): (u64, u64), pos: u64, oid: Oid, at: Tid) -> Option<(Tid, &[u8])> {
    let record = window.get(usize::try_from(pos.checked_sub(first)?).ok()?..)?;
    let header = RecordHeader::parse(record.first_chunk()?).ok()?;
    let sound = header.oid == oid && header.previous < pos && header.transaction < pos;
    if !sound || header.serial > at || header.data_len == 0 || header.end_within(pos, end).is_none() {
        return None;
    }
    let data = record.get(RECORD_HEADER_BYTES..)?.get(..usize::try_from(header.data_len).ok()?)?;
    Some((header.serial, data))
}

impl DataFile {
    /// Fills the buffer from `pos` on; past the page cache if that is worth it.
    ///
    /// # Errors
    /// The operating system fails the read, or the file ends before.
    pub(super) fn read_data(&self, pos: u64, into: &mut [u8]) -> Result<(), FileStorageError> {
        match self.read_direct(pos, into) {
            true => Ok(()),
            false => self.read_exact(pos, into),
        }
    }
}
