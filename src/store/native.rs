//! The native store: a log of commit records and packs of block bytes, in a directory or any object storage.
//!
//! Invariant: a commit exists if and only if its record in `commits/` was created; everything else is either
//! immutable and referred to by a record, or a cache. Left out on purpose: deleting published objects.

mod commit;
mod conflict;
mod edit;
mod extents;
mod format;
mod index;
mod init;
mod log;
mod objects;
pub mod pack;
mod reader;
mod record;
mod sink;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use object_store::ObjectStore;
use revfs_protocol::{BlockCount, BlockIndex, FileId, Tid};
use tracing_mutex::stdsync::Mutex;

use self::log::{LogEnd, Next};
use super::faulty::{Faults, FaultyStore};
use super::follow::Follower;
use super::{
    BlockData, BlockRun, BufferPool, CommitInfo, DirId, Entry, FileMeta, Load, PackNo, Piece, ReadBuffer,
    ReadError, ReadTxn, Store, StoreInfo,
};
use crate::env::{Clock, SystemClock};
pub use commit::{CommitError, CommitWarning, Committed, ConflictKind, CopyOf, Transaction};
pub use format::{FORMAT_VERSION, Format, FormatError};
pub use index::{INDEX_SCHEMA, Index, IndexError};
pub use init::{InitOptions, OpenError};
pub use log::Broken;
use objects::Objects;
pub use pack::{BlockHash, block_hash, used_len};
use reader::Reader;
pub use verify::{VerifyOptions, VerifyReport};

/// Bytes that one crc32c covers.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// Records applied to the index in one write transaction.
const APPLY_BATCH_RECORDS: usize = 1000;
/// Bytes of records applied to the index in one write transaction, about.
const APPLY_BATCH_BYTES: usize = 32 << 20;

/// crc32c (Castagnoli) of bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A crc32c that is computed piece by piece.
#[derive(Debug)]
pub struct Crc32c(crc_fast::Digest);

impl Crc32c {
    /// Of nothing yet.
    pub fn new() -> Crc32c {
        Crc32c(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes added.
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Crc32c {
        Crc32c::new()
    }
}

/// How far a long job is.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// The index is being built: records applied, of how many.
    Index {
        /// Applied so far.
        done: u64,
        /// In all.
        total: u64,
    },
}

/// Told about progress; called from the thread that does the work.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to open a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// Bound of the block cache, bytes.
    pub cache_bytes: u64,
    /// Make each commit durable before it is acknowledged. Off only for fixtures.
    pub sync: bool,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Told when the index has to be built.
    pub progress: Option<ProgressFn>,
    /// Folder of the index, instead of the one that fits the store.
    pub index_dir: Option<PathBuf>,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            cache_bytes: 256 << 20,
            sync: true,
            clock: SystemClock::shared(),
            progress: None,
            index_dir: None,
        }
    }
}

/// A native store, open.
pub struct NativeStore {
    info: StoreInfo,
    format: Format,
    objects: Objects,
    index: Arc<Index>,
    reader: Arc<Reader>,
    clock: Arc<dyn Clock>,
    progress: Option<ProgressFn>,
    follower: Follower,
    /// Blocks on their way into packs.
    copies: Arc<BufferPool>,
    /// Newest tid applied, as the number of a [`Tid`]; only grows.
    head: AtomicU64,
    /// Where the log was found to be broken, until it is applied beyond that. Leaf lock; never held across a wait.
    broken: Mutex<Option<Broken>>,
    /// Serialises refreshes of this process. Held while records are read and applied; before LMDB's own lock.
    refreshing: tokio::sync::Mutex<()>,
    /// Lets one thread cure a damaged index for all that meet the damage. Before LMDB's own lock.
    rebuilding: Mutex<()>,
}

impl std::fmt::Debug for NativeStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeStore").field("url", &self.info.url).finish_non_exhaustive()
    }
}

impl NativeStore {
    /// As the trait, for readers.
    pub fn as_store(self: &Arc<Self>) -> Arc<dyn Store> {
        Arc::clone(self) as Arc<dyn Store>
    }

    /// What `init` fixed.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Where the log is broken, if it is: then the store is not written.
    pub fn broken(&self) -> Option<Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that the block cache holds.
    pub fn cached_bytes(&self) -> u64 {
        self.reader.cached_bytes()
    }

    /// Makes the index survive a restart of the machine. For a server that stops.
    ///
    /// # Errors
    /// The disk fails; nothing is lost but time at the next start.
    pub fn close_cleanly(&self) -> Result<(), IndexError> {
        self.index.close_cleanly()
    }

    /// Stored hash of block `index` of a run; `None` for a hole.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn block_hash(&self, run: &BlockRun, index: u64) -> Result<Option<BlockHash>, ReadError> {
        let BlockData::Stored { pack, offset, len, .. } = run.data else { return Ok(None) };
        let at = offset + index * u64::from(len);
        self.reader.block_hash(pack, at, &|pack| self.find_pack(pack)).await.map(Some)
    }

    fn find_pack(&self, pack: PackNo) -> Result<index::PackInfo, ReadError> {
        self.ask(|index| index.pack(pack))?
            .ok_or_else(|| ReadError::Missing { object: format!("pack number {} of the index", pack.0) })
    }

    /// Asks the index; if it holds a damaged value, builds it anew and asks again.
    fn ask<T>(&self, question: impl Fn(&Index) -> Result<T, IndexError>) -> Result<T, ReadError> {
        let mut answer = question(&self.index);
        if is_damaged(&answer) {
            let _one_at_a_time = self.rebuilding.lock().unwrap_or_else(PoisonError::into_inner);
            // Many threads meet one damaged value at once: the first of them cures it for all.
            answer = question(&self.index);
            if let (true, Err(error)) = (is_damaged(&answer), &answer) {
                ::log::warn!("the index of {} is damaged ({error}): building it anew", self.info.url);
                self.rebuild()?;
                answer = question(&self.index);
            }
        }
        answer.map_err(|source| ReadError::Index { source })
    }

    /// Builds the index anew from the log. Readers see the old one until then.
    fn rebuild(&self) -> Result<(), ReadError> {
        let mut end = LogEnd { seq: 0, hash: [0; 32], tid: Tid::ZERO };
        let rebuilt = self.index.rebuild(self.info.uuid, || {
            let Next::Entry(entry) = pollster::block_on(log::read_next(&self.objects, &end))? else {
                return Ok(None);
            };
            end = end_of(&entry);
            Ok(Some(*entry))
        });
        self.reader.clear();
        rebuilt
    }

    /// The last record that the index has applied.
    fn applied(&self) -> Result<LogEnd, ReadError> {
        let (seq, hash, tid) = self.ask(Index::applied)?;
        Ok(LogEnd { seq, hash, tid })
    }

    /// Reads and applies all records that came since; `full`: also looks for gaps behind the end of the log.
    async fn refresh_async(&self, full: bool) -> Result<Tid, ReadError> {
        let _one_at_a_time = self.refreshing.lock().await;
        let index_error = |source| ReadError::Index { source };
        let seqs = if full { self.objects.record_seqs().await? } else { Vec::new() };
        let total = seqs.last().copied().unwrap_or(0);
        if let Some(gap) = log::first_gap(&self.objects, &seqs).await? {
            self.set_broken(Broken::missing(gap));
        }
        loop {
            let mut end = self.applied()?;
            let mut batch = Vec::new();
            let mut bytes = 0;
            let mut more = false;
            let mut later_exists = false;
            loop {
                match log::read_next(&self.objects, &end).await? {
                    Next::Entry(entry) => {
                        later_exists = false;
                        end = end_of(&entry);
                        bytes += entry.body.len();
                        batch.push(*entry);
                    }
                    // Both may have come in between: only what is still absent then is missing.
                    Next::Absent if !later_exists && self.has_record(end.seq + 2) => {
                        later_exists = true;
                        continue;
                    }
                    Next::Absent => {
                        if later_exists {
                            self.set_broken(Broken::missing(end.seq + 1));
                        }
                        break;
                    }
                    Next::Broken(broken) => {
                        self.set_broken(broken);
                        break;
                    }
                }
                if batch.len() >= APPLY_BATCH_RECORDS || bytes >= APPLY_BATCH_BYTES {
                    more = true;
                    break;
                }
            }
            if !batch.is_empty() {
                match self.index.apply(&batch) {
                    Err(IndexError::Diverged { .. } | IndexError::Damaged { .. }) => self.rebuild()?,
                    other => other.map_err(index_error)?,
                }
                if let (Some(progress), true) = (&self.progress, more || total > end.seq) {
                    progress(Progress::Index { done: end.seq, total: total.max(end.seq) });
                }
            }
            if !more {
                let end = self.applied()?;
                self.clear_broken(end.seq);
                self.head.fetch_max(end.tid.raw(), Ordering::SeqCst);
                return Ok(Tid::from_raw(self.head.load(Ordering::SeqCst)));
            }
        }
    }

    /// Whether there is a record of this number. Asked on a local disk only, where it costs next to nothing.
    fn has_record(&self, seq: u64) -> bool {
        self.objects.local_file(&format::record_object(seq)).is_some_and(|file| file.exists())
    }

    /// Records up to `seq` are applied: what was broken before it has been repaired.
    fn clear_broken(&self, seq: u64) {
        let mut slot = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(broken) = slot.take_if(|broken| broken.seq <= seq) {
            ::log::info!("{}: commits/{:020} has been repaired", self.info.url, broken.seq);
        }
    }

    fn set_broken(&self, broken: Broken) {
        let mut slot = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            ::log::error!("{}: {broken}", self.info.url);
            *slot = Some(broken);
        }
    }
}

/// Whether an answer of the index is one that a rebuild cures.
fn is_damaged<T>(answer: &Result<T, IndexError>) -> bool {
    matches!(answer, Err(IndexError::Damaged { .. } | IndexError::Diverged { .. }))
}

fn end_of(entry: &index::LogEntry) -> LogEnd {
    LogEnd { seq: entry.record.seq, hash: entry.hash, tid: entry.record.tid }
}

impl Store for NativeStore {
    fn info(&self) -> &StoreInfo {
        &self.info
    }

    fn cached_bytes(&self) -> u64 {
        NativeStore::cached_bytes(self)
    }

    fn head(&self) -> Tid {
        Tid::from_raw(self.head.load(Ordering::SeqCst))
    }

    fn refresh(&self) -> Load<Result<Tid, ReadError>> {
        // The log of other storages is read here as well: their futures need no reactor of ours.
        Load::Ready(pollster::block_on(self.refresh_async(false)))
    }

    fn trouble(&self) -> Option<String> {
        self.broken().map(|broken| broken.to_string())
    }

    fn wait_for_commits(&self, timeout: Duration) {
        self.follower.wait(timeout);
    }

    fn wake_follower(&self) {
        self.follower.wake();
    }

    fn lookup(&self, txn: &ReadTxn, dir: DirId, name: &[u8]) -> Result<Option<Entry>, ReadError> {
        self.ask(|index| index.lookup(txn.at(), dir, name))
    }

    fn list(&self, txn: &ReadTxn, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, ReadError> {
        self.ask(|index| index.list(txn.at(), dir))
    }

    fn dir_name(&self, dir: DirId) -> Result<Option<(DirId, Vec<u8>)>, ReadError> {
        self.ask(|index| index.dir_name(dir))
    }

    fn file(&self, txn: &ReadTxn, file: FileId) -> Result<Option<FileMeta>, ReadError> {
        self.ask(|index| index.file(txn.at(), file))
    }

    fn blocks(
        &self,
        txn: &ReadTxn,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<Vec<BlockRun>, ReadError> {
        let runs = self.ask(|index| index.blocks(txn.at(), file, (first, count)))?;
        runs.ok_or(ReadError::NoSuchFile { file, at: txn.at() })
    }

    fn read(&self, pieces: Vec<Piece>, mut buffer: ReadBuffer) -> Load<Result<ReadBuffer, ReadError>> {
        if self.reader.is_local() {
            let filled = self.reader.read_now(&pieces, &mut buffer, &|pack| self.find_pack(pack));
            return Load::Ready(filled.map(|()| buffer));
        }
        let (reader, index) = (Arc::clone(&self.reader), Arc::clone(&self.index));
        Load::Pending(Box::pin(async move {
            let find = |pack: PackNo| {
                index.pack(pack).map_err(|source| ReadError::Index { source })?.ok_or_else(|| {
                    ReadError::Missing { object: format!("pack number {} of the index", pack.0) }
                })
            };
            reader.read_later(&pieces, &mut buffer, &find).await?;
            Ok(buffer)
        }))
    }

    fn newest_commit(&self, at: Tid) -> Result<Tid, ReadError> {
        let newest = self.ask(|index| index.newest_commit(at))?;
        Ok(newest.map_or(Tid::ZERO, |(tid, _)| tid))
    }

    fn commits(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError> {
        let records = self.ask(|index| index.records(lo, hi, limit, false))?;
        Ok(records.iter().map(record::CommitRecord::info).collect())
    }

    fn commits_back(&self, lo: Tid, hi: Tid, limit: usize) -> Result<Vec<CommitInfo>, ReadError> {
        let records = self.ask(|index| index.records(lo, hi, limit, true))?;
        Ok(records.iter().map(record::CommitRecord::info).collect())
    }

    fn tags(&self) -> Result<Vec<(String, Tid)>, ReadError> {
        self.ask(Index::tags)
    }

    fn tag(&self, name: &str) -> Result<Option<Tid>, ReadError> {
        self.ask(|index| index.tag(name))
    }
}

impl NativeStore {
    /// Opens the store in a directory with faults in between; its reads go through the object storage.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_faulty(
        root: &Path,
        faults: &Arc<Faults>,
        options: OpenOptions,
    ) -> Result<Arc<NativeStore>, OpenError> {
        let url = root.display().to_string();
        let inner =
            Objects::local_storage(root, options.sync).map_err(|source| OpenError::Object { url, source })?;
        let index_dir = options.index_dir.clone().unwrap_or_else(|| root.join("index"));
        open_objects(Arc::new(FaultyStore::new(inner, Arc::clone(faults))), &index_dir, options)
    }
}

/// Opens a store over any object storage; see [`NativeStore::open`] for directories.
///
/// # Errors
/// See [`OpenError`].
pub fn open_objects(
    inner: Arc<dyn ObjectStore>,
    index_dir: &Path,
    options: OpenOptions,
) -> Result<Arc<NativeStore>, OpenError> {
    let options = OpenOptions { index_dir: Some(index_dir.to_owned()), ..options };
    let url = inner.to_string();
    pollster::block_on(init::open(Objects::new(inner), url, None, options))
}

/// Makes a store over any object storage.
///
/// # Errors
/// See [`OpenError`].
pub fn init_in(
    inner: Arc<dyn ObjectStore>,
    options: &InitOptions,
    clock: &dyn Clock,
) -> Result<(), OpenError> {
    let url = inner.to_string();
    pollster::block_on(init::init_objects(&Objects::new(inner), &url, options, clock))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_store() -> (tempfile::TempDir, Arc<NativeStore>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let options = InitOptions { sync: false, ..InitOptions::default() };
        NativeStore::init(&root, &options, &*SystemClock::shared()).unwrap();
        let store = NativeStore::open(&root, OpenOptions { sync: false, ..OpenOptions::default() }).unwrap();
        (dir, store)
    }

    #[test]
    fn index_values_with_a_wrong_checksum_rebuild_the_index() {
        let (_dir, store) = empty_store();
        let mut txn = store.begin(None).unwrap();
        let file = txn.create(b"dir/f", None).unwrap();
        pollster::block_on(txn.write(file, 0..5, b"bytes")).unwrap();
        let tid = pollster::block_on(txn.commit()).unwrap().tid;
        let at = ReadTxn::new(&store.as_store(), tid).unwrap();
        // Each question meets the damage first, once.
        let read = || {
            let runs = at.blocks(file, BlockIndex::ZERO, BlockCount::new(1)).unwrap();
            let BlockData::Stored { pack, offset, .. } = runs[0].data else { panic!("{runs:?}") };
            let source = crate::store::PieceSource::Raw { pack, offset };
            let buffer = BufferPool::new(1, 1).take(5);
            let piece = Piece { at: 0, len: 5, source };
            pollster::block_on(at.store().read(vec![piece], buffer).wait()).unwrap().to_vec()
        };
        store.index.spoil();
        assert_eq!(at.resolve(b"dir/f").unwrap(), Some(Entry::File(file)));
        store.index.spoil();
        assert_eq!(at.file(file).unwrap().map(|meta| meta.size), Some(5));
        store.index.spoil();
        assert_eq!(read(), b"bytes");
        store.index.spoil();
        assert_eq!(pollster::block_on(store.refresh().wait()).unwrap(), tid);
        store.index.spoil();
        assert_eq!(store.newest_commit(tid).unwrap(), tid);
        store.index.spoil();
        assert_eq!(store.commits(Tid::ZERO, tid, 9).unwrap().len(), 1);
        let before = store.index.applied().unwrap();
        assert_eq!((before.0, before.2), (1, tid), "built anew, whole");
    }

    #[test]
    fn a_commit_on_a_log_that_shrank_ends_and_names_the_lost_record() {
        let (dir, store) = empty_store();
        let commit = || {
            let mut txn = store.begin(None).unwrap();
            txn.allow_empty();
            pollster::block_on(txn.commit()).unwrap()
        };
        commit();
        commit();
        let mut txn = store.begin(None).unwrap();
        txn.allow_empty();
        std::fs::remove_file(dir.path().join(format!("store/commits/{:020}", 2))).unwrap();
        store.rebuild().unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        // A commit that looks for its head for ever is left behind and ends with the tests.
        let attempt = move || drop(done.send(pollster::block_on(txn.commit())));
        crate::env::spawn("attempt", attempt).unwrap();
        let refused = ended.recv_timeout(Duration::from_secs(60)).expect("it ends").unwrap_err();
        assert!(refused.to_string().contains(&Broken::removed(2).what), "{refused:?}");
    }

    #[test]
    fn what_is_committed_while_the_index_is_built_anew_stays_in_it() {
        let (_dir, store) = empty_store();
        let commit = || {
            let mut txn = store.begin(None).unwrap();
            txn.allow_empty();
            pollster::block_on(txn.commit()).unwrap().tid
        };
        commit();
        let mut end = LogEnd { seq: 0, hash: [0; 32], tid: Tid::ZERO };
        let newest = std::thread::scope(|scope| {
            let mut other = None;
            let next = || {
                if let Next::Entry(entry) = pollster::block_on(log::read_next(&store.objects, &end))? {
                    end = end_of(&entry);
                    return Ok(Some(*entry));
                }
                // The end of the log was read, and now another commit comes: it must not be applied before the
                // index that lacks it is there. So it does not end in time, and nothing is waited for in vain.
                let (done, ended) = std::sync::mpsc::channel();
                other = Some(scope.spawn(move || {
                    let tid = commit();
                    let _nobody_waits_any_more = done.send(());
                    tid
                }));
                let _in_vain = ended.recv_timeout(Duration::from_millis(200));
                Ok(None)
            };
            store.index.rebuild(store.info.uuid, next).unwrap();
            other.unwrap().join().unwrap()
        });
        assert_eq!(store.head(), newest);
        let (seq, _, applied) = store.index.applied().unwrap();
        assert_eq!((seq, applied), (2, newest), "what is served is in the index");
    }
}
