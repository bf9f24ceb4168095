//! A ZODB FileStorage (`Data.fs`), read only, while ZODB goes on writing and packing it.
//!
//! Invariant: what is served is the state after a whole number of committed transactions, checked as they were read;
//! the file is read by position, never mapped, and never written or locked. A state is a number: it outlives a pack,
//! for the file in its place has the same tids, and what a pack took away is an error of its own kind. Memory is 16
//! bytes an object, 33 at most, and twice that while the index is built anew beside the one in use.

mod bulk;
mod error;
mod format;
mod load;
mod oid_index;
mod saved_index;
mod scan;
mod transactions;
mod window;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use revfs_protocol::Tid;
use tracing_mutex::stdsync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Oid;
use crate::store::follow::{Follower, WatchFlags, Watched};
pub use bulk::VisitFn;
pub use error::{Damage, FileStorageError};
pub use format::{MAGICS, RecordHeader, Status, TransactionHeader};
pub use load::{BACK_POINTERS_MAX, DATA_BYTES_MAX, Loaded, Peeked};
pub use oid_index::OidIndex;
pub use saved_index::{SavedIndexError, read as read_saved_index};
use scan::{Cursor, Next, Step};
pub use scan::{ProgressFn, ScanProgress, TRANSACTION_RECORDS_MAX, Tail};
pub use transactions::{Transaction, Transactions, TransactionsBack, WrittenRecord};
use window::{DataFile, FileIdentity, Window};

/// Where the index of the objects came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexSource {
    /// ZODB's own, and a scan of what is behind it.
    Saved {
        /// Where it ended, bytes.
        end: u64,
    },
    /// A scan of the whole file.
    Scanned {
        /// Why ZODB's own was not used.
        why: String,
    },
}

/// What [`FileStorage::refresh`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// No new transaction.
    Nothing,
    /// Transactions were appended.
    Grown {
        /// The last tid before.
        from: Tid,
        /// The last tid now.
        to: Tid,
    },
    /// All was read anew. Tids up to `from` may be gone, and `to` may be before it.
    Reopened {
        /// The last tid before.
        from: Tid,
        /// The last tid now.
        to: Tid,
        /// Why.
        cause: ReopenCause,
    },
}

/// Why a file was read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReopenCause {
    /// Another file took its place, as after a pack.
    Replaced,
    /// It is shorter, or its last known transaction is not there any more.
    Rewritten,
    /// ZODB's own index turned out to be wrong.
    WrongIndex,
}

#[derive(Debug)]
struct State {
    file: Arc<DataFile>,
    index: OidIndex,
    cursor: Cursor,
    tail: Tail,
    source: IndexSource,
}

/// Notices what happens to the file.
#[derive(Debug)]
struct Watcher {
    follower: Follower,
    /// The watch of the file itself.
    watched: Mutex<Option<Watched>>,
}

impl Watcher {
    fn new(path: &Path) -> Watcher {
        let follower = Follower::new();
        if let Some(folder) = path.parent() {
            // A pack puts another file in place by a rename.
            follower.watch(folder, WatchFlags::CREATE | WatchFlags::MOVED_TO);
        }
        let watched = Mutex::new(follower.watch(path, WatchFlags::MODIFY));
        Watcher { follower, watched }
    }

    /// Watches the file that has the name now, in place of the one before.
    fn renew(&self, path: &Path) {
        let watched = self.follower.watch(path, WatchFlags::MODIFY);
        let mut current = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel gives the same number for a file that is watched already.
        if let Some(gone) = std::mem::replace(&mut *current, watched).filter(|gone| Some(*gone) != watched) {
            self.follower.unwatch(gone);
        }
    }
}

/// A FileStorage. All methods may be called from many threads at once.
pub struct FileStorage {
    path: PathBuf,
    progress: Option<ProgressFn>,
    state: RwLock<State>,
    /// The index that ZODB saved was found wrong by a load.
    doubted: AtomicBool,
    /// Nothing has the name of the file.
    missing: AtomicBool,
    refreshing: Mutex<()>,
    /// Made by the first wait: who only reads once needs none.
    watcher: OnceLock<Watcher>,
}

impl std::fmt::Debug for FileStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStorage").field("path", &self.path).field("cursor", &self.read().cursor).finish()
    }
}

impl FileStorage {
    /// Opens the file at `path`: with the index that ZODB saved beside it if that fits, else by a scan of the whole
    /// file. `progress` is told how far a scan is, now and after a pack.
    ///
    /// # Errors
    /// It is no FileStorage, or cannot be read. Damage behind its first bytes is no error: what is before it is
    /// served, and [`FileStorage::trouble`] tells.
    pub fn open(path: &Path, progress: Option<ProgressFn>) -> Result<FileStorage, FileStorageError> {
        let path = std::path::absolute(path)
            .map_err(|source| FileStorageError::Open { path: path.to_owned(), source })?;
        let state = read_state(&path, true, progress.as_ref())?;
        log_tail(&path, &state.tail);
        Ok(FileStorage {
            path,
            progress,
            state: RwLock::new(state),
            doubted: AtomicBool::new(false),
            missing: AtomicBool::new(false),
            refreshing: Mutex::new(()),
            watcher: OnceLock::new(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tid of the last transaction that was taken up; [`Tid::ZERO`] if there is none.
    pub fn last_tid(&self) -> Tid {
        self.read().cursor.last_tid()
    }

    /// Objects that have a record, deleted ones too.
    pub fn objects(&self) -> usize {
        self.read().index.len()
    }

    /// Memory that the index of the objects takes, bytes.
    pub fn index_memory(&self) -> usize {
        self.read().index.memory()
    }

    /// Where the index came from.
    pub fn index_source(&self) -> IndexSource {
        self.read().source.clone()
    }

    /// What is behind the last transaction, as of the last look.
    pub fn tail(&self) -> Tail {
        self.read().tail.clone()
    }

    /// The size of the file, bytes.
    ///
    /// # Errors
    /// The operating system fails it.
    pub fn size(&self) -> Result<u64, FileStorageError> {
        self.file().0.size()
    }

    /// Why what is behind the last transaction cannot be taken up, if that will not mend by waiting.
    pub fn trouble(&self) -> Option<String> {
        // Between the two renames of a pack it is only for a moment, so it is looked at again.
        if self.missing.load(Ordering::Relaxed) && !self.path.exists() {
            return Some(format!("{} is gone: put it back", self.path.display()));
        }
        let state = self.read();
        match &state.tail {
            Tail::Damaged(damage) => Some(format!(
                "{} is {damage}; the state up to @{} is served: restore the file from a backup",
                self.path.display(),
                state.cursor.last_tid()
            )),
            Tail::Whole | Tail::Unfinished { .. } => None,
        }
    }

    /// The oldest state that is whole: a pack takes away what was not current at its time. [`Tid::ZERO`] if there was
    /// none. May read the headers of all transactions that were packed, the first time.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn oldest(&self) -> Result<Tid, FileStorageError> {
        let (file, end) = self.file();
        file.oldest(end)
    }

    /// The newest state of an object at or before `at`, of the transactions that were taken up. None if there is no
    /// such object then. It costs a read for each newer revision.
    ///
    /// # Errors
    /// The file is damaged or cannot be read; [`FileStorageError::Packed`] if a pack may have taken it away.
    pub fn load(&self, oid: Oid, at: Tid) -> Result<Option<Loaded>, FileStorageError> {
        self.find(oid, at, |file, serial, start| Ok(Loaded { serial, data: file.own_data(oid, &start)? }))
    }

    /// The same, but of its data only what came with the header.
    ///
    /// # Errors
    /// As [`FileStorage::load`].
    pub fn peek(&self, oid: Oid, at: Tid) -> Result<Option<Peeked>, FileStorageError> {
        self.find(oid, at, |_, serial, start| Ok(start.peeked(serial)))
    }

    /// Where the record begins that has the data of that state, bytes.
    ///
    /// # Errors
    /// As [`FileStorage::load`].
    pub fn position(&self, oid: Oid, at: Tid) -> Result<Option<u64>, FileStorageError> {
        self.find(oid, at, |_, _, start| Ok(start.pos()))
    }

    fn find<T>(
        &self,
        oid: Oid,
        at: Tid,
        found: impl FnOnce(&DataFile, Tid, load::Start) -> Result<T, FileStorageError>,
    ) -> Result<Option<T>, FileStorageError> {
        let (file, cursor, newest) = {
            let state = self.read();
            (Arc::clone(&state.file), state.cursor, state.index.get(oid))
        };
        let Some(newest) = newest else {
            // A pack leaves what is current, so only an earlier state can have lost it.
            return match at < cursor.last_tid() {
                true => file.absent(at, cursor.end).map(|()| None),
                false => Ok(None),
            };
        };
        let result = match file.find(oid, newest, at, cursor.end) {
            Ok(Some((serial, start))) => found(&file, serial, start).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        if let Err(FileStorageError::Damaged { .. }) = &result {
            self.doubt_index(&file);
        }
        result
    }

    /// The newest state of an object that exists, or of one that was deleted the last before that. None if there is none.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn peek_last(&self, oid: Oid) -> Result<Option<Peeked>, FileStorageError> {
        let (file, end, newest) = self.newest(oid);
        newest.map_or(Ok(None), |newest| file.last(oid, newest, end))
    }

    /// The tid of the oldest record of an object that is left; None if it has none.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn oldest_serial(&self, oid: Oid) -> Result<Option<Tid>, FileStorageError> {
        let (file, end, newest) = self.newest(oid);
        newest.map(|newest| file.oldest_serial(oid, newest, end)).transpose()
    }

    /// The file, where the last transaction that was taken up ends, and the newest record of an object.
    fn newest(&self, oid: Oid) -> (Arc<DataFile>, u64, Option<u64>) {
        let state = self.read();
        (Arc::clone(&state.file), state.cursor.end, state.index.get(oid))
    }

    /// The file, where the last transaction that was taken up ends, and the newest record of each of some objects with
    /// its number among them; 0: it has none.
    fn places(&self, oids: &[Oid]) -> (Arc<DataFile>, u64, Vec<(u64, usize)>) {
        let state = self.read();
        let place = |(number, oid): (usize, &Oid)| (state.index.get(*oid).unwrap_or(0), number);
        (Arc::clone(&state.file), state.cursor.end, oids.iter().enumerate().map(place).collect())
    }

    /// All objects that have a record, ascending.
    pub fn oids(&self) -> Vec<Oid> {
        self.read().index.iter().map(|(oid, _)| oid).collect()
    }

    /// Transactions with `lo < tid <= hi`, ascending, of those that were taken up. The first is looked for from the
    /// end, unless `lo` is [`Tid::ZERO`].
    ///
    /// # Errors
    /// The file is damaged or cannot be read; so for each item.
    pub fn transactions(&self, lo: Tid, hi: Tid) -> Result<Transactions, FileStorageError> {
        let (file, end) = self.file();
        Transactions::new(&file, end, lo, hi)
    }

    /// Transactions with `lo < tid <= hi`, newest first, of those that were taken up.
    pub fn transactions_back(&self, lo: Tid, hi: Tid) -> TransactionsBack {
        let (file, end) = self.file();
        TransactionsBack::new(&file, end, lo, hi)
    }

    /// Takes up what was committed since. A transaction in progress or half written is left for later; damage is told
    /// by [`FileStorage::trouble`]. If the file was packed or replaced, all is read anew.
    ///
    /// # Errors
    /// The file cannot be read; what was taken up before stays, and the next call tries again.
    pub fn refresh(&self) -> Result<Refreshed, FileStorageError> {
        let _one_at_a_time = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, cursor) = {
            let state = self.read();
            (Arc::clone(&state.file), state.cursor)
        };
        match self.reopen_cause(&file, &cursor)? {
            Some(cause) => self.reopen(cursor.last_tid(), cause),
            None => self.grow(&file, cursor),
        }
    }

    /// Waits until something may have been committed, `timeout` is over, or [`FileStorage::wake_follower`] is called.
    /// May end early for nothing, as the first one does. A commit may be missed, as on some network filesystems: so
    /// `timeout` is to be a slow tick.
    pub fn wait_for_commits(&self, timeout: Duration) {
        if let Some(watcher) = self.watcher.get() {
            return watcher.follower.wait(timeout);
        }
        // Not while the file is read anew: the watch would be of the one before. What happened before the watch began
        // is found by the refresh that follows a wait, so the first one does not wait.
        let _no_refresh = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        self.watcher.get_or_init(|| Watcher::new(&self.path));
    }

    /// Ends a `wait_for_commits`.
    pub fn wake_follower(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.follower.wake();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, and where the last transaction that was taken up ends.
    fn file(&self) -> (Arc<DataFile>, u64) {
        let state = self.read();
        (Arc::clone(&state.file), state.cursor.end)
    }

    /// A load found damage: if the index was ZODB's, that may be what is wrong, and the next refresh reads the file.
    fn doubt_index(&self, file: &Arc<DataFile>) {
        let state = self.read();
        if matches!(state.source, IndexSource::Saved { .. }) && Arc::ptr_eq(&state.file, file) {
            self.doubted.store(true, Ordering::Relaxed);
            self.wake_follower();
        }
    }

    /// Whether what was read is not what is there now.
    fn reopen_cause(
        &self,
        file: &DataFile,
        cursor: &Cursor,
    ) -> Result<Option<ReopenCause>, FileStorageError> {
        let found = std::fs::metadata(&self.path);
        let missing = found.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        self.missing.store(missing, Ordering::Relaxed);
        match found {
            Ok(metadata) if FileIdentity::of(&metadata) != file.identity() => {
                return Ok(Some(ReopenCause::Replaced));
            }
            Ok(_) => {}
            // A pack renames twice, and in between there is no file; what is open is whole all the same.
            Err(_) if missing => {}
            Err(source) => return Err(FileStorageError::Open { path: self.path.clone(), source }),
        }
        if !scan::still_there(file, cursor)? {
            return Ok(Some(ReopenCause::Rewritten));
        }
        Ok(self.doubted.load(Ordering::Relaxed).then_some(ReopenCause::WrongIndex))
    }

    /// Reads the file anew and puts what is read in place of what was.
    fn reopen(&self, from: Tid, cause: ReopenCause) -> Result<Refreshed, FileStorageError> {
        // Before it is read, so that no commit is missed in between.
        if let Some(watcher) = self.watcher.get() {
            watcher.renew(&self.path);
        }
        let state = match read_state(&self.path, cause != ReopenCause::WrongIndex, self.progress.as_ref()) {
            Ok(state) => state,
            // Who copies a file into place has only begun.
            Err(FileStorageError::Unbegun { .. }) => return Ok(Refreshed::Nothing),
            Err(error) => return Err(error),
        };
        log_tail(&self.path, &state.tail);
        let to = state.cursor.last_tid();
        let old = std::mem::replace(&mut *self.write(), state);
        self.doubted.store(false, Ordering::Relaxed);
        log::info!("{}: read anew ({cause:?}), @{from} was the last, @{to} is", self.path.display());
        drop(old);
        Ok(Refreshed::Reopened { from, to, cause })
    }

    /// Takes up what is behind `cursor`.
    fn grow(&self, file: &Arc<DataFile>, mut cursor: Cursor) -> Result<Refreshed, FileStorageError> {
        let from = cursor.last_tid();
        let mut size = file.size()?;
        let mut window = Window::new(file);
        let mut step = Step::default();
        let mut again = true;
        let tail = loop {
            match step.read(&mut window, &cursor, size) {
                Ok(Next::Transaction(at)) => {
                    cursor = Cursor::after(at);
                    let mut state = self.write();
                    step.apply(&mut state.index);
                    state.cursor = cursor;
                    again = true;
                }
                Ok(Next::Tail(tail)) => break tail,
                // A transaction that is cut off and another written in its place may have been read in parts of both.
                Err(FileStorageError::Damaged { .. }) if again => {
                    again = false;
                    size = file.size()?;
                    window = Window::new(file);
                }
                Err(FileStorageError::Damaged { damage, .. }) => break Tail::Damaged(damage),
                Err(error) if cursor.last_tid() == from => return Err(error),
                Err(error) => {
                    log::warn!("{error}: it is tried again");
                    break Tail::Unfinished { bytes: size.saturating_sub(cursor.end) };
                }
            }
        };
        if self.read().tail != tail {
            log_tail(&self.path, &tail);
            self.write().tail = tail;
        }
        let to = cursor.last_tid();
        Ok(if to == from { Refreshed::Nothing } else { Refreshed::Grown { from, to } })
    }
}

fn log_tail(path: &Path, tail: &Tail) {
    if let Tail::Damaged(damage) = tail {
        log::warn!("{} is {damage}: only what is before it is served", path.display());
    }
}

/// Opens the file at `path` and reads it, up to what is not whole.
fn read_state(
    path: &Path,
    use_saved: bool,
    progress: Option<&ProgressFn>,
) -> Result<State, FileStorageError> {
    let file = Arc::new(DataFile::open(path)?);
    let (mut index, mut cursor, source) = match use_saved {
        true => saved_state(path, &file)?,
        false => scanned("it turned out to be wrong".to_owned()),
    };
    let tail = scan::scan(&file, &mut cursor, &mut index, progress)?;
    index.compact();
    Ok(State { file, index, cursor, tail, source })
}

/// What the index that ZODB saved says; nothing if it is of no use.
fn saved_state(
    path: &Path,
    file: &Arc<DataFile>,
) -> Result<(OidIndex, Cursor, IndexSource), FileStorageError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".index");
    match saved_index::load(Path::new(&name), file) {
        Ok((index, cursor)) => Ok((index, cursor, IndexSource::Saved { end: cursor.end })),
        Err(SavedIndexError::File(error)) => Err(error),
        Err(SavedIndexError::Absent) => Ok(scanned(SavedIndexError::Absent.to_string())),
        Err(error) => {
            log::warn!("{} is not used: {error}; the whole file is read", Path::new(&name).display());
            Ok(scanned(error.to_string()))
        }
    }
}

fn scanned(why: String) -> (OidIndex, Cursor, IndexSource) {
    (OidIndex::new(), Cursor::START, IndexSource::Scanned { why })
}
