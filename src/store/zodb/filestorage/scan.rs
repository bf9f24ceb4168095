//! Reading transactions in the order of the file, and telling a tail that is not written yet from damage.
//!
//! Invariant: a transaction is taken whole or not at all: its header, both lengths and each of its records agree, its
//! tid is above that of the one before, and it is not in progress. ZODB writes a transaction behind the end, with its
//! status "in progress", and changes that one byte when it is committed; or it cuts the transaction off again. So what
//! is not whole yet, or in progress, may still come, and only what contradicts itself is damage.

use std::sync::Arc;

use revfs_protocol::Tid;

use super::error::{Damage, FileStorageError};
use super::format::{
    FIRST_TRANSACTION, LENGTH_BYTES, RECORD_HEADER_BYTES, RecordHeader, Status, TRANSACTION_HEADER_BYTES,
    TransactionHeader,
};
use super::oid_index::OidIndex;
use super::window::{DataFile, Window};
use crate::store::zodb::Oid;

/// Most records of one transaction; each takes 16 to 24 bytes of memory while it is read.
pub const TRANSACTION_RECORDS_MAX: usize = 1 << 26;
/// Between two calls of [`ProgressFn`], bytes of the file.
const PROGRESS_STEP_BYTES: u64 = 16 << 20;

/// How far a scan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanProgress {
    /// Bytes of the file that were looked through.
    pub done: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// Is told how far a scan is.
pub type ProgressFn = Arc<dyn Fn(ScanProgress) + Send + Sync>;

/// A transaction and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it begins, bytes.
    pub pos: u64,
    /// Its header.
    pub header: TransactionHeader,
}

impl Located {
    /// Where its records end and its length is repeated, bytes.
    pub fn records_end(&self) -> u64 {
        self.pos + self.header.len
    }

    /// Where the next transaction begins, bytes.
    pub fn end(&self) -> u64 {
        self.records_end() + LENGTH_BYTES
    }
}

/// The end of what was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Where the next transaction will begin, bytes.
    pub end: u64,
    /// The last transaction.
    pub last: Option<Located>,
}

impl Cursor {
    /// Before the first transaction.
    pub const START: Cursor = Cursor { end: FIRST_TRANSACTION, last: None };

    /// The tid of the last transaction.
    pub fn last_tid(&self) -> Tid {
        self.last.map_or(Tid::ZERO, |last| last.header.tid)
    }

    /// Behind a transaction.
    pub fn after(last: Located) -> Cursor {
        Cursor { end: last.end(), last: Some(last) }
    }
}

/// What is behind the last transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Whole,
    /// A transaction in progress, or a part of one.
    Unfinished {
        /// Bytes of it so far.
        bytes: u64,
    },
    /// Something that no transaction can begin with: the state up to it is served.
    Damaged(Damage),
}

/// A record of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it begins, bytes.
    pub pos: u64,
    /// Its header.
    pub header: RecordHeader,
}

/// What is at a place where a transaction may begin.
pub enum Next {
    /// A transaction; its records are not looked at yet.
    Transaction(Located),
    /// None.
    Tail(Tail),
}

/// Looks at what begins at `cursor.end`, in a file of `size` bytes.
///
/// # Errors
/// It is damaged, or cannot be read.
pub fn next(window: &mut Window, cursor: &Cursor, size: u64) -> Result<Next, FileStorageError> {
    let pos = cursor.end;
    let bytes = size.saturating_sub(pos);
    if bytes == 0 {
        return Ok(Next::Tail(Tail::Whole));
    }
    if bytes < TRANSACTION_HEADER_BYTES as u64 {
        return Ok(Next::Tail(Tail::Unfinished { bytes }));
    }
    let header = window.bytes(pos)?;
    let header = TransactionHeader::parse(&header).map_err(|what| window.file().damaged(pos, None, what))?;
    if header.status == Status::InProgress {
        return Ok(Next::Tail(Tail::Unfinished { bytes }));
    }
    if header.tid <= cursor.last_tid() {
        return Err(window.file().damaged(pos, None, "the id of a transaction is not above the one before"));
    }
    // The header and the length that is repeated fit, as both are promised; only then is there a position of it.
    if header.len > bytes.saturating_sub(LENGTH_BYTES) {
        return Ok(Next::Tail(Tail::Unfinished { bytes }));
    }
    let at = Located { pos, header };
    if u64::from_be_bytes(window.bytes(at.records_end())?) != header.len {
        return Err(window.file().damaged(at.records_end(), None, "the two lengths of a transaction differ"));
    }
    Ok(Next::Transaction(at))
}

/// Whether the last transaction that was applied is still where it was.
///
/// # Errors
/// The file cannot be read.
pub fn still_there(file: &DataFile, cursor: &Cursor) -> Result<bool, FileStorageError> {
    let Some(last) = cursor.last else {
        return match file.check_magic() {
            Ok(()) => Ok(true),
            Err(FileStorageError::NotFileStorage { .. } | FileStorageError::Unbegun { .. }) => Ok(false),
            Err(error) => Err(error),
        };
    };
    let (mut header, mut len) = ([0; TRANSACTION_HEADER_BYTES], [0; LENGTH_BYTES as usize]);
    let whole = file.read_up_to(last.pos, &mut header)? == header.len()
        && file.read_up_to(last.records_end(), &mut len)? == len.len();
    Ok(whole
        && TransactionHeader::parse(&header) == Ok(last.header)
        && u64::from_be_bytes(len) == last.header.len)
}

/// The transaction that ends at `end`.
///
/// # Errors
/// None does, or the file cannot be read.
pub fn previous(window: &mut Window, end: u64) -> Result<Located, FileStorageError> {
    let file = Arc::clone(window.file());
    let damaged = |what| file.damaged(end, None, what);
    let records_end = end.checked_sub(LENGTH_BYTES).ok_or_else(|| damaged("no transaction ends here"))?;
    let len = u64::from_be_bytes(window.bytes(records_end)?);
    let pos = records_end.checked_sub(len).filter(|pos| *pos >= FIRST_TRANSACTION);
    let pos = pos.filter(|pos| end - pos >= TRANSACTION_HEADER_BYTES as u64 + LENGTH_BYTES);
    let pos = pos.ok_or_else(|| damaged("the length of the transaction that ends here is wrong"))?;
    let header =
        TransactionHeader::parse(&window.bytes(pos)?).map_err(|what| file.damaged(pos, None, what))?;
    if header.len != len || header.status == Status::InProgress {
        return Err(file.damaged(pos, None, "the two lengths of a transaction differ"));
    }
    Ok(Located { pos, header })
}

/// Gives each record of a transaction to `each`.
///
/// # Errors
/// One is damaged, or cannot be read.
pub fn each_record(
    window: &mut Window,
    at: &Located,
    mut each: impl FnMut(Record),
) -> Result<(), FileStorageError> {
    let file = Arc::clone(window.file());
    let end = at.records_end();
    let mut pos = at.pos + at.header.records_offset();
    let mut count = 0;
    while pos < end {
        if end - pos < RECORD_HEADER_BYTES as u64 {
            return Err(file.damaged(pos, None, "a transaction ends inside of a record"));
        }
        let header = window.bytes(pos)?;
        let header = RecordHeader::parse(&header).map_err(|what| file.damaged(pos, None, what))?;
        let damaged = |what| file.damaged(pos, Some(header.oid), what);
        let next = header.end_within(pos, end).ok_or_else(|| damaged("it is longer than its transaction"))?;
        if header.transaction != at.pos || header.serial != at.header.tid {
            return Err(damaged("it says that it belongs to another transaction"));
        }
        if header.previous >= pos {
            return Err(damaged("the record before it is behind it"));
        }
        count += 1;
        if count > TRANSACTION_RECORDS_MAX {
            return Err(damaged("its transaction has too many records"));
        }
        each(Record { pos, header });
        pos = next;
    }
    Ok(())
}

/// What applying one transaction changes.
#[derive(Debug, Default)]
pub struct Step {
    updates: Vec<(Oid, u64)>,
}

impl Step {
    /// Reads the transaction at `cursor` and its records; answers the tail if there is none.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn read(
        &mut self,
        window: &mut Window,
        cursor: &Cursor,
        size: u64,
    ) -> Result<Next, FileStorageError> {
        self.updates.clear();
        let next = next(window, cursor, size)?;
        if let Next::Transaction(at) = &next {
            each_record(window, at, |record| self.updates.push((record.header.oid, record.pos)))?;
            if at.header.status == Status::Undone {
                self.updates.clear();
            }
        }
        Ok(next)
    }

    /// Enters the records of the transaction that was read.
    pub fn apply(&mut self, index: &mut OidIndex) {
        for (oid, pos) in self.updates.drain(..) {
            index.set(oid, pos);
        }
        // One large transaction must not hold its memory for ever.
        self.updates.shrink_to(1 << 10);
    }
}

/// Enters all transactions from `cursor` on into `index`; moves `cursor`, answers what is behind it.
///
/// # Errors
/// The file cannot be read. Damage ends it, and is in the answer.
pub fn scan(
    file: &Arc<DataFile>,
    cursor: &mut Cursor,
    index: &mut OidIndex,
    progress: Option<&ProgressFn>,
) -> Result<Tail, FileStorageError> {
    let size = file.size()?;
    let tell = |done| {
        if let Some(progress) = progress {
            progress(ScanProgress { done, total: size });
        }
    };
    let mut window = Window::new(file);
    let mut step = Step::default();
    let mut told = cursor.end;
    loop {
        match step.read(&mut window, cursor, size) {
            Ok(Next::Transaction(at)) => {
                step.apply(index);
                *cursor = Cursor::after(at);
            }
            Ok(Next::Tail(tail)) => {
                tell(size);
                return Ok(tail);
            }
            Err(FileStorageError::Damaged { damage, .. }) => return Ok(Tail::Damaged(damage)),
            Err(error) => return Err(error),
        }
        if cursor.end - told >= PROGRESS_STEP_BYTES {
            told = cursor.end;
            tell(told);
        }
    }
}
