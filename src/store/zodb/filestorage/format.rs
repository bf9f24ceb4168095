//! The layout of a FileStorage: magic, then transactions one behind the other.
//!
//! A transaction is a header of 23 bytes, user, description and extension, data records, and its length once more, so
//! that the file can be walked backwards. A data record is a header of 42 bytes, then the data; without data it is a
//! position of the record that has them, or 0 for a deletion. Numbers are big-endian. Invariant: parsing is pure and
//! total; what a header says of places is checked by who knows the file.

use revfs_protocol::Tid;

use crate::store::zodb::Oid;

/// First bytes of the file: written by Python 2, and by Python 3.
pub const MAGICS: [[u8; 4]; 2] = [*b"FS21", *b"FS30"];
/// Where the first transaction begins, bytes.
pub const FIRST_TRANSACTION: u64 = 4;
/// Length of the header of a transaction, bytes.
pub const TRANSACTION_HEADER_BYTES: usize = 23;
/// Length of the header of a data record, bytes.
pub const RECORD_HEADER_BYTES: usize = 42;
/// Length of what stands in place of data, or ends a transaction, bytes.
pub const LENGTH_BYTES: u64 = 8;
/// The smallest data record, bytes.
pub const RECORD_BYTES_MIN: u64 = RECORD_HEADER_BYTES as u64 + 1;

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Committed.
    Done,
    /// Committed, and what it wrote that was not current at the time of a pack is gone.
    Packed,
    /// Not committed yet; it may still be taken back.
    InProgress,
    /// Taken back, in the way of old versions of ZODB: its records do not count.
    Undone,
}

/// The start of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionHeader {
    /// Its id.
    pub tid: Tid,
    /// Bytes up to where the length is repeated.
    pub len: u64,
    /// What became of it.
    pub status: Status,
    /// Length of the user's name, bytes.
    pub user_len: u16,
    /// Length of the description, bytes.
    pub description_len: u16,
    /// Length of the extension, a pickle, bytes.
    pub extension_len: u16,
}

impl TransactionHeader {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8; TRANSACTION_HEADER_BYTES]) -> Result<TransactionHeader, &'static str> {
        let mut fields = Fields(bytes);
        let tid = Tid::from_raw(fields.u64());
        let len = fields.u64();
        let [status] = fields.next();
        let status = match status {
            b' ' => Status::Done,
            b'p' => Status::Packed,
            b'c' => Status::InProgress,
            b'u' => Status::Undone,
            _ => return Err("the status of a transaction is not known"),
        };
        let [user_len, description_len, extension_len] = [fields.u16(), fields.u16(), fields.u16()];
        let header = TransactionHeader { tid, len, status, user_len, description_len, extension_len };
        if len < header.records_offset() {
            return Err("a transaction is shorter than its header");
        }
        Ok(header)
    }

    /// Where the first data record is, from the start of the transaction, bytes.
    pub fn records_offset(&self) -> u64 {
        let texts = [self.user_len, self.description_len, self.extension_len].map(u64::from);
        TRANSACTION_HEADER_BYTES as u64 + texts.iter().sum::<u64>()
    }
}

/// The start of a data record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whose state it is.
    pub oid: Oid,
    /// The tid of its transaction.
    pub serial: Tid,
    /// Position of the object's record before this one, 0: none.
    pub previous: u64,
    /// Position of its transaction.
    pub transaction: u64,
    /// Length of the data; 0: a position stands in their place.
    pub data_len: u64,
}

impl RecordHeader {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<RecordHeader, &'static str> {
        let mut fields = Fields(bytes);
        let oid = Oid::from_raw(fields.u64());
        let serial = Tid::from_raw(fields.u64());
        let [previous, transaction] = [fields.u64(), fields.u64()];
        if fields.u16() != 0 {
            return Err("a record is of a version, which ZODB has not had since 3.9");
        }
        Ok(RecordHeader { oid, serial, previous, transaction, data_len: fields.u64() })
    }

    /// Length of the whole record, bytes; none if it has no end.
    pub fn record_len(&self) -> Option<u64> {
        let behind = if self.data_len == 0 { LENGTH_BYTES } else { self.data_len };
        behind.checked_add(RECORD_HEADER_BYTES as u64)
    }

    /// Where the record ends that is at `pos`; none if that is behind `limit`.
    pub fn end_within(&self, pos: u64, limit: u64) -> Option<u64> {
        pos.checked_add(self.record_len()?).filter(|end| *end <= limit)
    }
}

/// Takes fixed fields off the front of a header; one that lacks is zeros.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            debug_assert!(false, "the header is long enough for its fields");
            return [0; N];
        };
        self.0 = rest;
        *field
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.next())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.next())
    }
}
