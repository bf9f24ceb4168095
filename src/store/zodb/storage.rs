//! Where the records of a database are: a file, or a server.
//!
//! Invariant: each question says the state that it is of, and a storage answers of the transactions that it took up alone: what
//! it told as its last tid never goes back but by [`Refreshed::Anew`]. Left out on purpose: how long an answer takes. One that
//! [`Storage::is_remote`] may be waited for, so it is asked by threads that may wait.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use revfs_protocol::Tid;

use super::Oid;
use super::filestorage::{self, FileStorage, FileStorageError};
use super::zeo::ZeoError;
use crate::store::buffer::ReadBuffer;

/// The state of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The tid at which it was written.
    pub serial: Tid,
    /// Two pickles, one behind the other: the class and the state. Shared with a cache, maybe.
    pub data: Bytes,
}

/// The state of an object, of which little was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// The tid at which it was written.
    pub serial: Tid,
    /// The first bytes of its data, about 4 KiB at most.
    pub start: Bytes,
    /// Length of its data, bytes.
    pub len: u64,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its id, which is its time.
    pub tid: Tid,
    /// Who, as the writer said.
    pub user: Vec<u8>,
    /// Why, as the writer said.
    pub description: Vec<u8>,
    /// What it wrote, in the order of the storage. An object may be there twice; the later record counts.
    pub records: Vec<Written>,
    /// About how much of [`Storage::extent`] lies before it, bytes.
    pub done: u64,
}

impl Transaction {
    /// Its moment, nanoseconds since 1970 UTC.
    pub fn time_unix_ns(&self) -> u64 {
        self.tid.to_unix_ns()
    }
}

/// A record of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Whose state it is.
    pub oid: Oid,
    /// Length of its data, bytes; 0: it has none of its own, as a deletion, or what an undo brought back; or a server did not say.
    pub data_len: u64,
}

/// What [`Storage::refresh`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// No new transaction.
    Nothing,
    /// Transactions were added.
    Grown {
        /// The last tid before.
        from: Tid,
        /// The last tid now.
        to: Tid,
    },
    /// Nothing that was known of objects need hold any more. Tids up to `from` may be gone, and `to` may be before it.
    Anew {
        /// The last tid before.
        from: Tid,
        /// The last tid now.
        to: Tid,
    },
}

/// Why a storage does not answer, or not what it should.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A FileStorage.
    #[error(transparent)]
    File(#[from] FileStorageError),
    /// A ZEO server.
    #[error(transparent)]
    Zeo(#[from] ZeoError),
}

impl StorageError {
    /// Whether the state is older than what a pack left.
    pub fn is_packed(&self) -> bool {
        matches!(self, StorageError::File(FileStorageError::Packed { .. }))
    }

    /// Whether what is stored is not what was written, as opposed to a storage that does not answer.
    pub fn is_damage(&self) -> bool {
        match self {
            StorageError::File(error) => error.damage().is_some(),
            StorageError::Zeo(error) => error.is_damage(),
        }
    }
}

/// Objects, in some order.
pub type Oids<'s> = Box<dyn Iterator<Item = Result<Oid, StorageError>> + Send + 's>;
/// Transactions in an order of their tids; after an error there is nothing more.
pub type Transactions<'s> = Box<dyn Iterator<Item = Result<Transaction, StorageError>> + Send + 's>;

/// The records of a database. All methods may be called from many threads at once, and each may fail for a storage that
/// does not answer.
pub trait Storage: Send + Sync + Debug {
    /// How users name it.
    fn url(&self) -> String;

    /// Its directory, if it is one of this machine.
    fn local_root(&self) -> Option<&Path> {
        None
    }

    /// Whether a question may wait for a network.
    fn is_remote(&self) -> bool {
        false
    }

    /// Memory that its own caches of records take, bytes.
    fn cached_bytes(&self) -> u64 {
        0
    }

    /// The tid of the last transaction that was taken up; [`Tid::ZERO`] if there is none.
    fn last_tid(&self) -> Tid;

    /// Why what is behind the last transaction cannot be taken up, if anything is wrong.
    fn trouble(&self) -> Option<String>;

    /// About how much it holds, bytes: what [`Transaction::done`] comes to in the end.
    ///
    /// # Errors
    /// The storage does not answer; so for all below.
    fn extent(&self) -> Result<u64, StorageError>;

    /// The newest state of an object at or before `at`. None if there is no such object then.
    ///
    /// # Errors
    /// Also where a pack may have taken it away.
    fn load(&self, oid: Oid, at: Tid) -> Result<Option<Loaded>, StorageError>;

    /// The same, but of its data only the beginning.
    ///
    /// # Errors
    /// As [`Storage::load`].
    fn peek(&self, oid: Oid, at: Tid) -> Result<Option<Peeked>, StorageError>;

    /// Reads a part of the data of an object as of `at`, without the rest: `part` is given what [`Storage::peek`] answers, and
    /// says which bytes of the data are wanted. `None` if it says none, there is no such object, or the storage has no
    /// such way: then it is to be loaded.
    ///
    /// # Errors
    /// As [`Storage::load`].
    fn read_part(
        &self,
        _oid: Oid,
        _at: Tid,
        _part: &mut dyn FnMut(&Peeked) -> Option<Range<u64>>,
    ) -> Result<Option<ReadBuffer>, StorageError> {
        Ok(None)
    }

    /// Loads many objects as of `at`, and gives each to `visit` with its number in `oids`, in any order: its serial and
    /// data, or `None` if it does not exist.
    ///
    /// # Errors
    /// As [`Storage::load`]; some may have been visited.
    fn load_each(
        &self,
        oids: &[Oid],
        at: Tid,
        visit: &mut filestorage::VisitFn<'_>,
    ) -> Result<(), StorageError> {
        self.prefetch(oids, at);
        for (number, oid) in oids.iter().enumerate() {
            match self.load(*oid, at)? {
                Some(loaded) => visit(number, Some((loaded.serial, &loaded.data))),
                None => visit(number, None),
            }
        }
        Ok(())
    }

    /// These are asked for next, as of `at`: what has to be fetched from a server, or from a disk, is fetched at once. What fails
    /// is told by the load that follows.
    fn prefetch(&self, _oids: &[Oid], _at: Tid) {}

    /// Where the record is that has the data of that state, bytes; none if the storage has no such places.
    ///
    /// # Errors
    /// As [`Storage::load`].
    fn position(&self, _oid: Oid, _at: Tid) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }

    /// The newest state of an object that exists, or of one that was deleted the last before that. None if there is none.
    ///
    /// # Errors
    /// The storage does not answer.
    fn peek_last(&self, oid: Oid) -> Result<Option<Peeked>, StorageError>;

    /// The tid of the oldest record of an object that is left; None if it has none.
    ///
    /// # Errors
    /// The storage does not answer.
    fn oldest_serial(&self, oid: Oid) -> Result<Option<Tid>, StorageError>;

    /// The oldest state that is whole; [`Tid::ZERO`] if all are, or it is not known.
    ///
    /// # Errors
    /// The storage does not answer.
    fn oldest(&self) -> Result<Tid, StorageError>;

    /// All objects that have a record, each once. Deleted ones too, if the storage knows them. It may be slow: a server has
    /// to be asked for each, and sends its data.
    fn oids(&self) -> Oids<'_>;

    /// Transactions with `lo < tid <= hi`, ascending, of those that were taken up.
    ///
    /// # Errors
    /// The storage does not answer; so for each item.
    fn transactions(&self, lo: Tid, hi: Tid) -> Result<Transactions<'_>, StorageError>;

    /// Transactions with `lo < tid <= hi`, newest first, of those that were taken up.
    fn transactions_back(&self, lo: Tid, hi: Tid) -> Transactions<'_>;

    /// The id of the last transaction at or before `at`, of those that were taken up; [`Tid::ZERO`] if there is none.
    ///
    /// # Errors
    /// The storage does not answer.
    fn newest(&self, at: Tid) -> Result<Tid, StorageError> {
        let last = self.last_tid();
        if at >= last {
            return Ok(last);
        }
        let newest = self.transactions_back(Tid::ZERO, at).next().transpose()?;
        Ok(newest.map_or(Tid::ZERO, |transaction| transaction.tid))
    }

    /// Takes up what was committed since.
    ///
    /// # Errors
    /// The storage does not answer; what was taken up before stays, and the next call tries again.
    fn refresh(&self) -> Result<Refreshed, StorageError>;

    /// Waits until something may have been committed, `timeout` is over, or [`Storage::wake_follower`] is called. May end
    /// early for nothing.
    fn wait_for_commits(&self, timeout: Duration);

    /// Ends a `wait_for_commits`.
    fn wake_follower(&self);

    /// Ends all waits for a storage that does not answer, and lets what would wait fail from now on.
    fn give_up(&self) {}
}

impl From<filestorage::Loaded> for Loaded {
    fn from(other: filestorage::Loaded) -> Loaded {
        Loaded { serial: other.serial, data: other.data.into() }
    }
}

impl From<filestorage::Peeked> for Peeked {
    fn from(other: filestorage::Peeked) -> Peeked {
        Peeked { serial: other.serial, start: other.start.into(), len: other.len }
    }
}

impl From<filestorage::Transaction> for Transaction {
    fn from(other: filestorage::Transaction) -> Transaction {
        let filestorage::Transaction { tid, user, description, pos, records, .. } = other;
        let written =
            |record: filestorage::WrittenRecord| Written { oid: record.oid, data_len: record.data_len };
        Transaction { tid, user, description, records: records.into_iter().map(written).collect(), done: pos }
    }
}

fn told(item: Result<filestorage::Transaction, FileStorageError>) -> Result<Transaction, StorageError> {
    Ok(item?.into())
}

impl Storage for FileStorage {
    fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    fn local_root(&self) -> Option<&Path> {
        self.path().parent()
    }

    fn last_tid(&self) -> Tid {
        self.last_tid()
    }

    fn trouble(&self) -> Option<String> {
        self.trouble()
    }

    fn extent(&self) -> Result<u64, StorageError> {
        Ok(self.size()?)
    }

    fn load(&self, oid: Oid, at: Tid) -> Result<Option<Loaded>, StorageError> {
        Ok(self.load(oid, at)?.map(Loaded::from))
    }

    fn peek(&self, oid: Oid, at: Tid) -> Result<Option<Peeked>, StorageError> {
        Ok(self.peek(oid, at)?.map(Peeked::from))
    }

    fn read_part(
        &self,
        oid: Oid,
        at: Tid,
        part: &mut dyn FnMut(&Peeked) -> Option<Range<u64>>,
    ) -> Result<Option<ReadBuffer>, StorageError> {
        let mut part = |peeked: &filestorage::Peeked| part(&Peeked::from(peeked.clone()));
        Ok(self.read_part(oid, at, &mut part)?)
    }

    fn load_each(
        &self,
        oids: &[Oid],
        at: Tid,
        visit: &mut filestorage::VisitFn<'_>,
    ) -> Result<(), StorageError> {
        Ok(self.load_each(oids, at, visit)?)
    }

    /// Of an older state the newest records may be read in vain.
    fn prefetch(&self, oids: &[Oid], _at: Tid) {
        self.read_ahead(oids);
    }

    fn position(&self, oid: Oid, at: Tid) -> Result<Option<u64>, StorageError> {
        Ok(self.position(oid, at)?)
    }

    fn peek_last(&self, oid: Oid) -> Result<Option<Peeked>, StorageError> {
        Ok(self.peek_last(oid)?.map(Peeked::from))
    }

    fn oldest_serial(&self, oid: Oid) -> Result<Option<Tid>, StorageError> {
        Ok(self.oldest_serial(oid)?)
    }

    fn oldest(&self) -> Result<Tid, StorageError> {
        Ok(self.oldest()?)
    }

    fn oids(&self) -> Oids<'_> {
        Box::new(self.oids().into_iter().map(Ok))
    }

    fn transactions(&self, lo: Tid, hi: Tid) -> Result<Transactions<'_>, StorageError> {
        Ok(Box::new(self.transactions(lo, hi)?.map(told)))
    }

    fn transactions_back(&self, lo: Tid, hi: Tid) -> Transactions<'_> {
        Box::new(self.transactions_back(lo, hi).map(told))
    }

    fn refresh(&self) -> Result<Refreshed, StorageError> {
        Ok(match self.refresh()? {
            filestorage::Refreshed::Nothing => Refreshed::Nothing,
            filestorage::Refreshed::Grown { from, to } => Refreshed::Grown { from, to },
            filestorage::Refreshed::Reopened { from, to, .. } => Refreshed::Anew { from, to },
        })
    }

    fn wait_for_commits(&self, timeout: Duration) {
        self.wait_for_commits(timeout);
    }

    fn wake_follower(&self) {
        self.wake_follower();
    }
}
