//! Much data at once: a part of a large object straight to where it goes, and many small objects in the order of the file.
//!
//! Invariant: what is answered is what [`FileStorage::load`] answers. Large parts are read past the page cache, where
//! they would be a second time: the kernel keeps what is served from it anyway. Memory is one window.

use std::ops::Range;

use revfs_protocol::Tid;

use super::FileStorage;
use super::error::FileStorageError;
use super::format::{RECORD_HEADER_BYTES, RecordHeader};
use super::load::{DATA_BYTES_MAX, Peeked, RECORD_READ_BYTES};
use crate::store::buffer::ReadBuffer;
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
    /// bytes of the data are wanted. `None` if it says none, or the object does not exist.
    ///
    /// # Errors
    /// As [`FileStorage::load`].
    pub fn read_part(
        &self,
        oid: Oid,
        at: Tid,
        part: &mut dyn FnMut(&Peeked) -> Option<Range<u64>>,
    ) -> Result<Option<ReadBuffer>, FileStorageError> {
        let read = self.find(oid, at, |file, serial, start| {
            let peeked = start.peeked(serial);
            let within = |range: &Range<u64>| range.start <= range.end && range.end <= peeked.len;
            let Some(range) = part(&peeked).filter(within) else { return Ok(None) };
            let len =
                usize::try_from(range.end - range.start).ok().filter(|len| *len as u64 <= DATA_BYTES_MAX);
            let Some(len) = len else { return Ok(None) };
            file.read_piece(start.data_pos() + range.start, len).map(Some)
        })?;
        Ok(read.flatten())
    }

    /// Has the kernel read the newest records of some objects, as far as [`FileStorage::peek`] does.
    pub fn read_ahead(&self, oids: &[Oid]) {
        let (file, _, mut places) = self.places(oids);
        places.retain(|(pos, _)| *pos != 0);
        places.sort_unstable();
        let mut spans = places.iter().map(|(pos, _)| *pos..pos + RECORD_READ_BYTES as u64).peekable();
        while let Some(mut span) = spans.next() {
            while let Some(next) = spans.next_if(|next| next.start <= span.end) {
                span.end = next.end;
            }
            file.read_ahead(span.start, span.end - span.start);
        }
    }

    /// Loads many objects as of `at`, and gives each to `visit` with its number in `oids`, in any order: its serial and
    /// data, or `None` if it does not exist.
    ///
    /// # Errors
    /// As [`FileStorage::load`]; some may have been visited.
    pub fn load_each(&self, oids: &[Oid], at: Tid, visit: &mut VisitFn<'_>) -> Result<(), FileStorageError> {
        let (file, end, mut places) = self.places(oids);
        places.sort_unstable();
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
            let window = match (first, usize::try_from(len).unwrap_or(0)) {
                (0, _) | (_, 0) => None,
                (_, len) => Some(file.read_piece(first, len)?),
            };
            let window = window.as_deref().unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;
    use zodb_writer::{Write, Writer};

    const OBJECTS: u64 = 60;
    const COMMITS: u64 = 50;
    /// Lengths of data around which something else is done.
    const LENS: [u64; 7] = [1, 60, 4054, 4055, 8192, 40_000, 300_000];

    /// A file with objects of all lengths, which are written, brought back and deleted; and all its tids.
    fn make(path: &std::path::Path) -> Vec<Tid> {
        let mut writer = Writer::create(path).unwrap();
        let mut state = 9u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let mut tids = vec![Tid::ZERO];
        for commit in 1..=COMMITS {
            let mut writes = std::collections::BTreeMap::new();
            for _ in 0..5 {
                let oid = below(OBJECTS);
                let len = LENS[below(7) as usize] + below(3);
                let write = match (below(10), writer.newest(oid)) {
                    (0, Some(_)) => Write::Deletion,
                    (1, Some(pos)) => Write::Back(pos),
                    _ => Write::Data(zodb_writer::big::noise(commit, oid, len)),
                };
                writes.insert(oid, write);
            }
            let tid = commit * 100;
            writer.commit(tid, &Vec::from_iter(writes)).unwrap();
            tids.push(Tid::from_raw(tid));
        }
        tids
    }

    #[test]
    fn what_is_loaded_at_once_is_what_is_loaded_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Data.fs");
        let tids = make(&path);
        let storage = FileStorage::open(&path, None).unwrap();
        let mut oids: Vec<Oid> = (0..OBJECTS + 2).rev().map(Oid::from_raw).collect();
        oids.push(Oid::from_raw(7));
        for at in tids {
            let mut found = vec![None; oids.len()];
            let mut visits = 0;
            storage
                .load_each(&oids, at, &mut |number, loaded| {
                    visits += 1;
                    found[number] = loaded.map(|(serial, data)| (serial, data.to_vec()));
                })
                .unwrap();
            assert_eq!(visits, oids.len());
            for (oid, found) in oids.iter().zip(found) {
                let one = storage.load(*oid, at).unwrap().map(|loaded| (loaded.serial, loaded.data));
                assert!(found == one, "{oid} @{at}");
            }
        }
    }

    #[test]
    fn a_part_is_what_it_is_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Data.fs");
        let tids = make(&path);
        let storage = FileStorage::open(&path, None).unwrap();
        let mut large = 0;
        for (oid, at) in (0..OBJECTS + 1).flat_map(|oid| tids.iter().step_by(7).map(move |at| (oid, *at))) {
            let oid = Oid::from_raw(oid);
            let whole = storage.load(oid, at).unwrap();
            let len = whole.as_ref().map_or(0, |loaded| loaded.data.len());
            for (from, to) in [(0, len), (len / 3, len / 3 * 2), (len, len), (len.saturating_sub(1), len)] {
                let range = from as u64..to as u64;
                let mut part = |peeked: &Peeked| (peeked.len == len as u64).then(|| range.clone());
                let read = storage.read_part(oid, at, &mut part).unwrap();
                assert_eq!(read.is_some(), whole.is_some());
                let (Some(read), Some(whole)) = (read, &whole) else { continue };
                assert!(read[..] == whole.data[from..to], "{oid} @{at} {range:?}");
                large += usize::from(to - from > 200_000);
            }
            let mut beyond = |peeked: &Peeked| Some(peeked.len..peeked.len + 8);
            assert!(storage.read_part(oid, at, &mut beyond).unwrap().is_none());
            assert!(storage.read_part(oid, at, &mut |_| None).unwrap().is_none());
        }
        assert!(large > 10);
    }
}
