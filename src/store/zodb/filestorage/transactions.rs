//! Transactions as values, in the order of the file or backwards from its end.
//!
//! Invariant: an iterator keeps the file that it began with, and ends where that was known to end then: a commit, or a
//! pack that puts another file in place, does not change what it gives. After an error it gives nothing more.

use std::sync::Arc;

use revfs_protocol::Tid;

use super::error::FileStorageError;
use super::format::{FIRST_TRANSACTION, RECORD_HEADER_BYTES, Status, TRANSACTION_HEADER_BYTES};
use super::scan::{self, Cursor, Located, Next};
use super::window::{DataFile, Window};
use crate::store::zodb::Oid;

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its id, which is its time.
    pub tid: Tid,
    /// What became of it; one that was undone has no records.
    pub status: Status,
    /// Who, as the writer said.
    pub user: Vec<u8>,
    /// Why, as the writer said.
    pub description: Vec<u8>,
    /// Where it begins, bytes.
    pub pos: u64,
    /// What it wrote, in the order of the file. An object may be there twice; the later record counts.
    pub records: Vec<WrittenRecord>,
}

impl Transaction {
    /// Its moment, nanoseconds since 1970 UTC.
    pub fn time_unix_ns(&self) -> u64 {
        self.tid.to_unix_ns()
    }
}

/// A record of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenRecord {
    /// Whose state it is.
    pub oid: Oid,
    /// Where it begins, bytes.
    pub pos: u64,
    /// Length of its data, bytes; 0: it has none of its own, as a deletion, or what an undo brought back.
    pub data_len: u64,
}

impl WrittenRecord {
    /// Where its data are, bytes.
    pub fn data_pos(&self) -> u64 {
        self.pos + RECORD_HEADER_BYTES as u64
    }
}

/// Transactions in the order of the file.
#[derive(Debug)]
pub struct Transactions {
    window: Window,
    cursor: Cursor,
    end: u64,
    hi: Tid,
}

impl Transactions {
    /// Those with `lo < tid <= hi` before `end`.
    pub(super) fn new(
        file: &Arc<DataFile>,
        end: u64,
        lo: Tid,
        hi: Tid,
    ) -> Result<Transactions, FileStorageError> {
        let mut window = Window::new(file);
        let mut cursor = Cursor::START;
        if !lo.is_zero() {
            // The last minutes are what is asked for most, so the beginning is looked for from the end.
            let mut pos = end;
            while pos > FIRST_TRANSACTION {
                let at = scan::previous(&mut window, pos)?;
                if at.header.tid <= lo {
                    cursor = Cursor::after(at);
                    break;
                }
                pos = at.pos;
            }
        }
        Ok(Transactions { window, cursor, end, hi })
    }

    fn step(&mut self) -> Result<Option<Transaction>, FileStorageError> {
        if self.cursor.end >= self.end {
            return Ok(None);
        }
        match scan::next(&mut self.window, &self.cursor, self.end)? {
            Next::Transaction(at) if at.header.tid <= self.hi => {
                self.cursor = Cursor::after(at);
                read(&mut self.window, &at).map(Some)
            }
            Next::Transaction(_) => Ok(None),
            Next::Tail(_) => {
                let what = "the transactions do not end where they did";
                Err(self.window.file().damaged(self.cursor.end, None, what))
            }
        }
    }
}

impl Iterator for Transactions {
    type Item = Result<Transaction, FileStorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.end = 0;
        }
        step.transpose()
    }
}

/// Transactions backwards from the end.
#[derive(Debug)]
pub struct TransactionsBack {
    window: Window,
    pos: u64,
    after: Option<Tid>,
    lo: Tid,
    hi: Tid,
}

impl TransactionsBack {
    /// Those with `lo < tid <= hi` before `end`.
    pub(super) fn new(file: &Arc<DataFile>, end: u64, lo: Tid, hi: Tid) -> TransactionsBack {
        TransactionsBack { window: Window::new(file), pos: end, after: None, lo, hi }
    }

    fn step(&mut self) -> Result<Option<Transaction>, FileStorageError> {
        while self.pos > FIRST_TRANSACTION {
            let at = scan::previous(&mut self.window, self.pos)?;
            if self.after.is_some_and(|after| at.header.tid >= after) {
                let what = "the id of a transaction is not below the one behind it";
                return Err(self.window.file().damaged(at.pos, None, what));
            }
            if at.header.tid <= self.lo {
                break;
            }
            (self.pos, self.after) = (at.pos, Some(at.header.tid));
            if at.header.tid <= self.hi {
                return read(&mut self.window, &at).map(Some);
            }
        }
        Ok(None)
    }
}

impl Iterator for TransactionsBack {
    type Item = Result<Transaction, FileStorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.pos = 0;
        }
        step.transpose()
    }
}

/// Reads a transaction.
fn read(window: &mut Window, at: &Located) -> Result<Transaction, FileStorageError> {
    let header = &at.header;
    let mut user = vec![0; usize::from(header.user_len)];
    let mut description = vec![0; usize::from(header.description_len)];
    let texts = at.pos + TRANSACTION_HEADER_BYTES as u64;
    window.file().read_exact(texts, &mut user)?;
    window.file().read_exact(texts + u64::from(header.user_len), &mut description)?;
    let mut records = Vec::new();
    if header.status != Status::Undone {
        scan::each_record(window, at, |record| {
            let (oid, data_len) = (record.header.oid, record.header.data_len);
            records.push(WrittenRecord { oid, pos: record.pos, data_len });
        })?;
    }
    Ok(Transaction { tid: header.tid, status: header.status, user, description, pos: at.pos, records })
}
