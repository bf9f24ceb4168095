//! A database as a store: files by the ids of their objects, states by the ids of its transactions.
//!
//! Invariant: a state that was told as head stays readable, also when the file behind it is packed or replaced, unless
//! that took it away; head never goes back. What commits did to the blocks of a file costs its tree, so it is told of the
//! files that are asked about; that a file came, went or was replaced is told of all, at the cost of what was written.
//! All objects are looked at only for a list of all files. Left out on purpose: tags, and names but the ids of objects.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use revfs_protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};
use tracing_mutex::stdsync::{Mutex, MutexGuard, RwLock};

use super::Oid;
use super::changes::{FileTree, epochs_of};
use super::error::ZodbError;
use super::filestorage::{FileStorage, ProgressFn};
use super::nodes::Nodes;
use super::objects::Class;
use super::storage::{Refreshed, Storage, StorageError, Transaction};
use crate::store::{
    BlockRun, CommitInfo, DirId, Entry, FileChange, FileMeta, Load, Piece, PieceSource, ReadBuffer,
    ReadError, ReadTxn, Store, StoreInfo,
};

/// Decoded objects that are kept by default, bytes.
const CACHE_BYTES_DEFAULT: u64 = 64 << 20;
/// Most changes of one file that are remembered; of more, the older half is forgotten.
const RECORDED_MAX: usize = 1 << 16;
/// Most deleted files that are remembered.
const GONE_MAX: usize = 1 << 16;
/// Bytes of the hash of its place that are the identity of a database, which has none of its own.
const UUID_BYTES: usize = 16;

/// How a database is opened.
pub struct DatabaseOptions {
    /// Bound of the cache of decoded objects, bytes.
    pub cache_bytes: u64,
    /// Told how far a scan of the file is.
    pub progress: Option<ProgressFn>,
}

impl Default for DatabaseOptions {
    fn default() -> DatabaseOptions {
        DatabaseOptions { cache_bytes: CACHE_BYTES_DEFAULT, progress: None }
    }
}

/// When a file changed, in a span of commits that were told of it one after the other.
#[derive(Debug)]
struct Recorded {
    /// What it says is of the states from here on.
    base: Tid,
    /// And up to here.
    at: Tid,
    /// A state up to which there was no change since the last one before `base`.
    first: Tid,
    tids: Vec<Tid>,
}

impl Recorded {
    fn add(&mut self, tid: Tid) {
        self.tids.push(tid);
        if self.tids.len() > RECORDED_MAX {
            // Nothing is said any more of states before the second half.
            self.tids.drain(..RECORDED_MAX / 2);
            self.base = self.tids.first().copied().unwrap_or_default();
            self.first = self.base;
        }
    }

    /// The last change of the file at or before `at`, or the state from which on there was none; `None`: not known.
    fn last_change(&self, at: Tid) -> Option<Tid> {
        if at < self.base || at > self.at {
            return None;
        }
        let before = self.tids.partition_point(|tid| *tid <= at);
        let last = before.checked_sub(1).and_then(|last| self.tids.get(last));
        Some(last.map_or(self.first, |tid| self.first.max(*tid)))
    }
}

/// The files that were found.
#[derive(Debug, Default)]
struct Known {
    files: BTreeSet<Oid>,
    /// Those of the transactions up to here; `None`: nobody looked.
    at: Option<Tid>,
    /// How often all was read anew.
    round: u64,
}

/// A ZODB database.
pub struct Database {
    info: StoreInfo,
    nodes: Nodes,
    head: AtomicU64,
    /// All files, once somebody asked. Leaf lock.
    files: Mutex<Known>,
    /// Held by who looks for files, while records are read: only who looks for them too waits. Taken before `files`.
    looking: Mutex<()>,
    /// The trees of files that commits were asked of, as of the newest that was told of each. Leaf lock: who takes
    /// trees on has taken them out.
    trees: Mutex<HashMap<Oid, FileTree>>,
    /// Leaf lock.
    recorded: RwLock<HashMap<Oid, Recorded>>,
    /// The last deletion of files that were told of, so that who has one open goes on reading it. Leaf lock.
    gone: RwLock<HashMap<Oid, Tid>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("info", &self.info).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Database {
    /// Opens the FileStorage at `path`.
    ///
    /// # Errors
    /// It is none, or cannot be read.
    pub fn open(path: &Path, options: DatabaseOptions) -> Result<Database, ZodbError> {
        let storage = FileStorage::open(path, options.progress).map_err(StorageError::from)?;
        Ok(Database::on(Arc::new(storage), options.cache_bytes))
    }

    /// The database in a storage; `cache_bytes` of decoded objects are kept.
    pub fn on(storage: Arc<dyn Storage>, cache_bytes: u64) -> Database {
        let url = storage.url();
        let place = blake3::hash(url.as_bytes());
        let uuid = place.as_bytes().first_chunk::<UUID_BYTES>().copied().unwrap_or_default();
        let info = StoreInfo {
            uuid: uuid::Uuid::from_bytes(uuid),
            url,
            block_size: BlockSize::DEFAULT,
            format_version: 0,
            local_root: storage.local_root().map(Path::to_owned),
        };
        let head = AtomicU64::new(storage.last_tid().raw());
        let nodes = Nodes::new(storage, cache_bytes);
        Database {
            info,
            nodes,
            head,
            files: Mutex::default(),
            looking: Mutex::new(()),
            trees: Mutex::default(),
            recorded: RwLock::default(),
            gone: RwLock::default(),
        }
    }

    /// Where its records are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        self.nodes.storage()
    }

    /// The objects of it.
    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The oldest state that is whole: that of the last pack, or [`Tid::ZERO`].
    ///
    /// # Errors
    /// The storage does not answer.
    pub fn oldest(&self) -> Result<Tid, ZodbError> {
        Ok(self.storage().oldest()?)
    }

    /// All objects that are files, or were before they were deleted, ascending. The first call looks at each object, which
    /// takes a while; commits go on meanwhile.
    ///
    /// # Errors
    /// The storage does not answer. A record that cannot be read is no file, and the log says so.
    pub fn files(&self) -> Result<BTreeSet<Oid>, ZodbError> {
        let _one_at_a_time = lock(&self.looking);
        let (round, mut files, from) = {
            let known = lock(&self.files);
            (known.round, known.files.clone(), known.at)
        };
        let to = self.storage().last_tid();
        match from {
            None => files = self.all_files()?,
            Some(from) if from < to => {
                for transaction in self.storage().transactions(from, to)? {
                    for record in transaction?.records {
                        if !files.contains(&record.oid) && self.was_file(record.oid)? {
                            files.insert(record.oid);
                        }
                    }
                }
            }
            Some(_) => return Ok(files),
        }
        let mut known = lock(&self.files);
        // Else all was read anew meanwhile, and the next call looks again.
        if known.round == round {
            (known.files, known.at) = (files.clone(), Some(to));
        }
        Ok(files)
    }

    fn all_files(&self) -> Result<BTreeSet<Oid>, ZodbError> {
        let (mut files, mut unread) = (BTreeSet::new(), 0u64);
        for oid in self.storage().oids() {
            let oid = oid?;
            match self.nodes.last_class(oid) {
                Ok(Some(Class::BigFile)) => drop(files.insert(oid)),
                Ok(_) => {}
                Err(error) if error.is_damage() => {
                    unread += 1;
                    if unread == 1 {
                        log::warn!("{error}");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if unread > 1 {
            log::warn!("{}: {unread} objects cannot be read, `revfs verify` lists them", self.info.url);
        }
        Ok(files)
    }

    fn was_file(&self, oid: Oid) -> Result<bool, ZodbError> {
        match self.nodes.last_class(oid) {
            Ok(class) => Ok(class == Some(Class::BigFile)),
            Err(error) if error.is_damage() => {
                log::warn!("{error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn refresh_now(&self) -> Result<Tid, ZodbError> {
        if let Refreshed::Anew { .. } = self.storage().refresh()? {
            let mut known = lock(&self.files);
            *known = Known { round: known.round + 1, ..Known::default() };
            // It may be another database.
            self.nodes.forget_no_files();
        }
        let last = self.storage().last_tid().raw();
        let before = self.head.fetch_max(last, Ordering::SeqCst);
        Ok(Tid::from_raw(before.max(last)))
    }

    fn file_meta(&self, oid: Oid, at: Tid) -> Result<Option<FileMeta>, ZodbError> {
        if let Some(meta) = self.meta_of_existing(oid, at)? {
            return Ok(Some(meta));
        }
        let gone = self.gone.read().unwrap_or_else(PoisonError::into_inner).get(&oid).copied();
        let Some(deleted) = gone.filter(|deleted| *deleted <= at) else { return Ok(None) };
        let before = Tid::from_raw(deleted.raw().saturating_sub(1));
        let meta = self.meta_of_existing(oid, before)?;
        Ok(meta.map(|meta| FileMeta { deleted: Some(deleted), ..meta }))
    }

    fn meta_of_existing(&self, oid: Oid, at: Tid) -> Result<Option<FileMeta>, ZodbError> {
        let Some(file) = self.nodes.file(oid, at)? else { return Ok(None) };
        let size = self.nodes.size(oid, &file, at)?;
        let created = self.storage().oldest_serial(oid)?.unwrap_or(file.serial);
        Ok(Some(FileMeta {
            file: FileId::from(oid),
            size,
            block_size: file.block_size,
            rev: self.last_change(oid, at)?,
            created,
            // Not known without reading all of it.
            stored: size,
            dir: DirId::ROOT,
            name: oid.to_string().into_bytes(),
            deleted: None,
        }))
    }

    /// The last change of a file at or before `at`, or a later state up to which there was none.
    fn last_change(&self, oid: Oid, at: Tid) -> Result<Tid, ZodbError> {
        let recorded = self.recorded.read().unwrap_or_else(PoisonError::into_inner);
        let known = recorded.get(&oid).and_then(|recorded| recorded.last_change(at));
        drop(recorded);
        known.map_or_else(|| self.newest(at), Ok)
    }

    fn newest(&self, at: Tid) -> Result<Tid, ZodbError> {
        Ok(self.storage().newest(at)?)
    }

    /// What transactions that follow each other from `lo` on did to `files`, and which others came, went or were replaced.
    fn tell(
        &self,
        lo: Tid,
        transactions: Vec<Transaction>,
        files: &BTreeSet<Oid>,
    ) -> Result<Vec<CommitInfo>, ZodbError> {
        let mut told = Vec::with_capacity(transactions.len());
        if transactions.is_empty() {
            return Ok(told);
        }
        let mut trees = self.trees_at(lo, files)?;
        for transaction in &transactions {
            let base = told.last().map_or(lo, |commit: &CommitInfo| commit.tid);
            let written: BTreeSet<Oid> = transaction.records.iter().map(|record| record.oid).collect();
            let mut changes: BTreeMap<Oid, FileChange> = BTreeMap::new();
            for (oid, tree) in &mut trees {
                changes
                    .extend(tree.step(&self.nodes, transaction.tid, &written)?.map(|change| (*oid, change)));
            }
            let others: Vec<Oid> = written.difference(files).copied().collect();
            changes.extend(epochs_of(&self.nodes, &trees, &others, (base, transaction.tid))?);
            told.push(commit_info(transaction, base, changes.into_values().collect()));
        }
        self.record(lo, &told, files)?;
        self.keep(trees);
        Ok(told)
    }

    /// The trees of files as of a state: those that are kept, if they are of it, else read anew.
    fn trees_at(&self, at: Tid, files: &BTreeSet<Oid>) -> Result<BTreeMap<Oid, FileTree>, ZodbError> {
        let mut trees = BTreeMap::new();
        let mut kept = lock(&self.trees);
        for oid in files {
            if let Slot::Occupied(tree) = kept.entry(*oid)
                && tree.get().at() == at
            {
                trees.insert(*oid, tree.remove());
            }
        }
        drop(kept);
        for oid in files {
            if !trees.contains_key(oid) {
                trees.insert(*oid, FileTree::load(&self.nodes, *oid, at)?);
            }
        }
        Ok(trees)
    }

    /// Keeps the newest trees for the next commit.
    fn keep(&self, trees: BTreeMap<Oid, FileTree>) {
        let mut kept = lock(&self.trees);
        for (oid, tree) in trees {
            if kept.get(&oid).is_none_or(|other| other.at() <= tree.at()) {
                kept.insert(oid, tree);
            }
        }
    }

    /// Notes when files changed.
    fn record(&self, lo: Tid, told: &[CommitInfo], files: &BTreeSet<Oid>) -> Result<(), ZodbError> {
        let Some(last) = told.last() else { return Ok(()) };
        let first = self.newest(lo)?;
        for commit in told {
            for change in commit.files.iter().filter(|change| change.deleted) {
                let mut gone = self.gone.write().unwrap_or_else(PoisonError::into_inner);
                if gone.len() < GONE_MAX {
                    let known = gone.entry(Oid::from(change.file)).or_default();
                    *known = commit.tid.max(*known);
                }
            }
        }
        let mut recorded = self.recorded.write().unwrap_or_else(PoisonError::into_inner);
        for oid in files {
            let known =
                recorded.entry(*oid).or_insert(Recorded { base: lo, at: lo, first, tids: Vec::new() });
            if known.at < lo {
                *known = Recorded { base: lo, at: lo, first, tids: Vec::new() };
            }
        }
        for commit in told {
            for change in &commit.files {
                let known = recorded.get_mut(&Oid::from(change.file));
                if let Some(known) = known.filter(|known| known.at < commit.tid) {
                    known.add(commit.tid);
                }
            }
        }
        for oid in files {
            if let Some(known) = recorded.get_mut(oid) {
                known.at = known.at.max(last.tid);
            }
        }
        Ok(())
    }

    fn transactions(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<Transaction>, ZodbError> {
        let found: Result<Vec<_>, _> = self.storage().transactions(lo, hi)?.take(limit).collect();
        Ok(found?)
    }

    /// An error with the place of the record that it tells of.
    fn located(&self, error: ZodbError) -> ZodbError {
        let found = error.record().and_then(|(oid, at)| self.storage().position(oid, at).ok().flatten());
        match found {
            Some(pos) => ZodbError::Located { error: Box::new(error), pos, url: self.info.url.clone() },
            None => error,
        }
    }

    fn fill(&self, pieces: &[Piece], buffer: &mut ReadBuffer) -> Result<(), ReadError> {
        let outside = |at: usize| ReadError::Damaged {
            object: self.info.url.clone(),
            offset: at as u64,
            what: "a piece of a read lies outside of its buffer, or is none of a database",
        };
        for piece in pieces {
            let target = piece.at.checked_add(piece.len).and_then(|end| buffer.get_mut(piece.at..end));
            let target = target.ok_or_else(|| outside(piece.at))?;
            match piece.source {
                PieceSource::Zero => target.fill(0),
                PieceSource::Object { oid, at, skip, block } => {
                    let read = self.nodes.read_block(oid, at, (skip as usize, block as usize), target);
                    read.map_err(|error| self.located(error))?;
                }
                PieceSource::Raw { .. } | PieceSource::Zstd { .. } => return Err(outside(piece.at)),
            }
        }
        Ok(())
    }
}

fn commit_info(transaction: &Transaction, base: Tid, files: Vec<FileChange>) -> CommitInfo {
    CommitInfo {
        seq: 0,
        tid: transaction.tid,
        base,
        time_unix_ns: transaction.time_unix_ns(),
        author: String::from_utf8_lossy(&transaction.user).into_owned(),
        message: String::from_utf8_lossy(&transaction.description).into_owned(),
        commit_uuid: uuid::Uuid::nil(),
        files,
        tags: Vec::new(),
        pack_bytes: transaction.records.iter().map(|record| record.data_len).sum(),
    }
}

impl Store for Database {
    fn info(&self) -> &StoreInfo {
        &self.info
    }

    fn cached_bytes(&self) -> u64 {
        self.nodes.cached_bytes() + self.storage().cached_bytes()
    }

    fn head(&self) -> Tid {
        Tid::from_raw(self.head.load(Ordering::SeqCst))
    }

    fn refresh(&self) -> Load<Result<Tid, ReadError>> {
        Load::Ready(self.refresh_now().map_err(ReadError::from))
    }

    fn trouble(&self) -> Option<String> {
        let (head, last) = (self.head(), self.storage().last_tid());
        // What an earlier file of the name had is told as committed, and what takes its place may have other data.
        let back = (last < head).then(|| {
            let url = &self.info.url;
            format!("{url} went back from @{head} to @{last}, as a restored backup does: mount it anew")
        });
        self.storage().trouble().or(back)
    }

    fn wait_for_commits(&self, timeout: Duration) {
        self.storage().wait_for_commits(timeout);
    }

    fn wake_follower(&self) {
        self.storage().wake_follower();
    }

    fn is_remote(&self) -> bool {
        self.storage().is_remote()
    }

    fn give_up(&self) {
        self.storage().give_up();
    }

    fn lookup(&self, txn: &ReadTxn, dir: DirId, name: &[u8]) -> Result<Option<Entry>, ReadError> {
        let oid = std::str::from_utf8(name).ok().and_then(|name| name.parse::<Oid>().ok());
        let Some(oid) = oid.filter(|_| dir == DirId::ROOT) else { return Ok(None) };
        let file = self.nodes.file(oid, txn.at()).map_err(|error| self.located(error))?;
        Ok(file.map(|_| Entry::File(FileId::from(oid))))
    }

    fn list(&self, txn: &ReadTxn, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, ReadError> {
        if dir != DirId::ROOT {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for oid in self.files()? {
            let is_file = match self.nodes.class(oid, txn.at()) {
                Ok(class) => class == Some(Class::BigFile),
                // It is told what is wrong by whoever looks at it; the others are not its business.
                Err(error) if error.is_damage() => true,
                Err(error) => return Err(error.into()),
            };
            if is_file {
                names.push((oid.to_string().into_bytes(), Entry::File(FileId::from(oid))));
            }
        }
        Ok(names)
    }

    fn dir_name(&self, _dir: DirId) -> Result<Option<(DirId, Vec<u8>)>, ReadError> {
        Ok(None)
    }

    fn file(&self, txn: &ReadTxn, file: FileId) -> Result<Option<FileMeta>, ReadError> {
        Ok(self.file_meta(Oid::from(file), txn.at()).map_err(|error| self.located(error))?)
    }

    fn blocks(
        &self,
        txn: &ReadTxn,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<Vec<BlockRun>, ReadError> {
        let (oid, at) = (Oid::from(file), txn.at());
        let located = |error| self.located(error);
        let node = self.nodes.file(oid, at).map_err(located)?.ok_or(ReadError::NoSuchFile { file, at })?;
        Ok(self.nodes.runs(oid, &node, (first, count), at).map_err(located)?)
    }

    fn read(&self, pieces: Vec<Piece>, mut buffer: ReadBuffer) -> Load<Result<ReadBuffer, ReadError>> {
        // A part of one block, as nearly all READs are, needs no copy.
        if let [Piece { source: PieceSource::Object { oid, at, skip, block }, len, .. }] = pieces[..]
            && let Ok(Some(bytes)) = self.nodes.plain(oid, at, (skip as usize, block as usize), len)
            && bytes.len() == len
            && len == buffer.len()
        {
            return Load::Ready(Ok(bytes));
        }
        let filled = self.fill(&pieces, &mut buffer);
        Load::Ready(filled.map(|()| buffer))
    }

    fn newest_commit(&self, at: Tid) -> Result<Tid, ReadError> {
        Ok(self.newest(at)?)
    }

    fn commits(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError> {
        Ok(self.tell(lo, self.transactions(lo, hi, limit)?, &self.files()?)?)
    }

    fn tells_by_file(&self) -> bool {
        true
    }

    fn commits_of(
        &self,
        lo: Tid,
        hi: Tid,
        limit: usize,
        files: &BTreeSet<FileId>,
    ) -> Result<Vec<CommitInfo>, ReadError> {
        let files = files.iter().map(|file| Oid::from(*file)).collect();
        Ok(self.tell(lo, self.transactions(lo, hi, limit)?, &files)?)
    }

    fn commits_back(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError> {
        // What earlier ones did cannot be told: what they did it to is gone.
        let lo = lo.max(self.storage().oldest().map_err(ZodbError::from)?);
        let found: Result<Vec<_>, _> = self.storage().transactions_back(lo, hi).take(limit).collect();
        let mut found = found.map_err(ZodbError::from)?;
        let Some(oldest) = found.last().map(|transaction| transaction.tid.raw()) else {
            return Ok(Vec::new());
        };
        found.reverse();
        // What was before it is the same at each state up to it.
        let mut told = self.tell(Tid::from_raw(oldest.saturating_sub(1)), found, &self.files()?)?;
        told.reverse();
        Ok(told)
    }

    fn tags(&self) -> Result<Vec<(String, Tid)>, ReadError> {
        Ok(Vec::new())
    }

    fn tag(&self, _name: &str) -> Result<Option<Tid>, ReadError> {
        Ok(None)
    }
}
