//! The state of one object: from its newest record back to the one that counts, and from there to the data.
//!
//! Invariant: each step goes strictly towards the start of the file, so each chain ends; and a record is believed only
//! if it is of the object, its serial is below that of the step before, and it lies before what pointed to it.

use revfs_protocol::Tid;

use super::error::FileStorageError;
use super::format::{
    FIRST_TRANSACTION, LENGTH_BYTES, RECORD_HEADER_BYTES, RecordHeader, Status, TRANSACTION_HEADER_BYTES,
    TransactionHeader,
};
use super::window::DataFile;
use crate::store::zodb::Oid;

/// Bytes that are read with a header: the whole record, most times.
pub(super) const RECORD_READ_BYTES: usize = 4 << 10;
/// Most data of one record, bytes.
pub const DATA_BYTES_MAX: u64 = 256 << 20;
/// Most records that lead back to data which an undo brought back.
pub const BACK_POINTERS_MAX: usize = 4096;

/// The state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The tid at which it was written.
    pub serial: Tid,
    /// Two pickles, one behind the other: the class and the state.
    pub data: Vec<u8>,
}

/// The state of an object, of which little was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// The tid at which it was written.
    pub serial: Tid,
    /// The first bytes of its data, about 4 KiB at most.
    pub start: Vec<u8>,
    /// Length of its data, bytes.
    pub len: u64,
}

/// The beginning of a record.
pub(super) struct Start {
    pos: u64,
    header: RecordHeader,
    bytes: [u8; RECORD_READ_BYTES],
    have: usize,
}

impl Start {
    /// What was read of its data, and how long they are.
    pub(super) fn peeked(&self, serial: Tid) -> Peeked {
        let len = self.header.data_len;
        let start = self.behind();
        let start = start.get(..usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or(start).to_vec();
        Peeked { serial, start, len }
    }

    /// Where its data begin, bytes.
    pub(super) fn data_pos(&self) -> u64 {
        self.pos + RECORD_HEADER_BYTES as u64
    }

    /// Where the record begins, bytes.
    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    /// What was read behind the header.
    fn behind(&self) -> &[u8] {
        self.bytes.get(RECORD_HEADER_BYTES..self.have).unwrap_or_default()
    }
}

impl DataFile {
    /// The newest state at or before `at` of an object whose newest record is at `newest`, before `end`: its serial, and
    /// the record that has the data. None if the object is deleted then; an error of its own kind if that state may have been
    /// packed away.
    pub(super) fn find(
        &self,
        oid: Oid,
        newest: u64,
        at: Tid,
        end: u64,
    ) -> Result<Option<(Tid, Start)>, FileStorageError> {
        let mut limit = end;
        let mut pos = newest;
        let mut newer = None;
        while pos != 0 {
            let start = self.start(oid, pos, limit)?;
            let serial = start.header.serial;
            if newer.is_some_and(|newer| serial >= newer) {
                return Err(self.damaged(pos, Some(oid), "an older record has a newer serial"));
            }
            if serial <= at {
                return Ok(self.with_data(oid, start)?.map(|start| (serial, start)));
            }
            (limit, newer, pos) = (pos, Some(serial), start.header.previous);
        }
        self.absent(at, end).map(|()| None)
    }

    /// The newest state of an object whose newest record is at `newest`, before `end`, or of one that was deleted the last
    /// before that.
    pub(super) fn last(&self, oid: Oid, newest: u64, end: u64) -> Result<Option<Peeked>, FileStorageError> {
        let (mut limit, mut pos) = (end, newest);
        while pos != 0 {
            let start = self.start(oid, pos, limit)?;
            let (serial, previous) = (start.header.serial, start.header.previous);
            if let Some(start) = self.with_data(oid, start)? {
                return Ok(Some(start.peeked(serial)));
            }
            (limit, pos) = (pos, previous);
        }
        Ok(None)
    }

    /// The serial of the oldest record of an object whose newest is at `newest`, before `end`.
    pub(super) fn oldest_serial(&self, oid: Oid, newest: u64, end: u64) -> Result<Tid, FileStorageError> {
        let (mut limit, mut pos, mut serial) = (end, newest, Tid::ZERO);
        while pos != 0 {
            let start = self.start(oid, pos, limit)?;
            serial = start.header.serial;
            (limit, pos) = (pos, start.header.previous);
        }
        Ok(serial)
    }

    /// Answers whether it is certain that what was not found did not exist at `at`.
    pub(super) fn absent(&self, at: Tid, end: u64) -> Result<(), FileStorageError> {
        let oldest = self.oldest(end)?;
        if at < oldest {
            return Err(FileStorageError::Packed { path: self.path().to_owned(), at, oldest });
        }
        Ok(())
    }

    /// The oldest state that is whole: that of the last transaction that was packed.
    pub(super) fn oldest(&self, end: u64) -> Result<Tid, FileStorageError> {
        if let Some(oldest) = self.oldest.get() {
            return Ok(*oldest);
        }
        let mut oldest = Tid::ZERO;
        let mut pos = FIRST_TRANSACTION;
        // A pack marks all that it leaves up to its time, so those that are marked are the first ones.
        while end - pos >= TRANSACTION_HEADER_BYTES as u64 + LENGTH_BYTES {
            let mut header = [0; TRANSACTION_HEADER_BYTES];
            self.read_exact(pos, &mut header)?;
            let header = TransactionHeader::parse(&header).map_err(|what| self.damaged(pos, None, what))?;
            match header.status {
                Status::Packed => oldest = header.tid,
                Status::Undone => {}
                Status::Done | Status::InProgress => break,
            }
            let next = header.len.checked_add(pos + LENGTH_BYTES).filter(|next| *next <= end);
            pos = next.ok_or_else(|| self.damaged(pos, None, "a transaction is longer than the file"))?;
        }
        Ok(*self.oldest.get_or_init(|| oldest))
    }

    /// Reads the beginning of the record at `pos`, which must be of `oid` and end at or before `limit`.
    fn start(&self, oid: Oid, pos: u64, limit: u64) -> Result<Start, FileStorageError> {
        let damaged = |what| self.damaged(pos, Some(oid), what);
        let first = FIRST_TRANSACTION + TRANSACTION_HEADER_BYTES as u64;
        let room = limit.checked_sub(pos).filter(|_| pos >= first);
        let room = room.ok_or_else(|| damaged("a position points to where no record can be"))?;
        let mut bytes = [0; RECORD_READ_BYTES];
        let wanted = usize::try_from(room).unwrap_or(usize::MAX).min(RECORD_READ_BYTES);
        let have = self.read_up_to(pos, &mut bytes[..wanted])?;
        let header = bytes[..have].first_chunk();
        let header = header.ok_or_else(|| damaged("a position points to where no record can be"))?;
        let header = RecordHeader::parse(header).map_err(damaged)?;
        if header.oid != oid {
            return Err(damaged("a record of another object is where the object's should be"));
        }
        if header.end_within(pos, limit).is_none() {
            return Err(damaged("it is longer than the room for it"));
        }
        if header.previous >= pos || header.transaction >= pos {
            return Err(damaged("it says that it comes before what is before it"));
        }
        Ok(Start { pos, header, bytes, have })
    }

    /// The record itself if it has data, or the one that it points back to; none if that is none.
    fn with_data(&self, oid: Oid, mut start: Start) -> Result<Option<Start>, FileStorageError> {
        for _ in 0..=BACK_POINTERS_MAX {
            if start.header.data_len > 0 {
                return Ok(Some(start));
            }
            let back = start.behind().first_chunk().copied().map(u64::from_be_bytes);
            match back {
                Some(0) => return Ok(None),
                Some(back) => start = self.start(oid, back, start.pos)?,
                None => return Err(self.damaged(start.pos, Some(oid), "it is cut off")),
            }
        }
        Err(self.damaged(start.pos, Some(oid), "too many records lead back to its data"))
    }

    /// All data of a record.
    pub(super) fn own_data(&self, oid: Oid, start: &Start) -> Result<Vec<u8>, FileStorageError> {
        let len = usize::try_from(start.header.data_len).ok().filter(|len| *len as u64 <= DATA_BYTES_MAX);
        let len = len.ok_or_else(|| self.damaged(start.pos, Some(oid), "it has over 256 MiB of data"))?;
        if let Some(data) = start.behind().get(..len) {
            return Ok(data.to_vec());
        }
        let mut data = vec![0; len];
        let (there, rest) = data.split_at_mut(start.behind().len());
        there.copy_from_slice(start.behind());
        self.read_exact(start.pos + start.have as u64, rest)?;
        Ok(data)
    }
}
