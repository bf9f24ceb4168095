//! The state that is served: which head is published, which one `head/at` may show, and who makes both move.
//!
//! A follower thread applies commits and publishes heads; a notifier thread drops what the kernel still caches of
//! older ones; a watchdog looks after clients that owe an ack. Rule numbers in comments are those of "The head without a stop-the-world lock" in ARCHITECTURE.md.
//!
//! Invariant: `shown <= published <= store.head()`, each only grows, and when `shown` is t no page, attribute or
//! entry older than t is in the kernel's cache of head. A READ takes the published head once and waits for no thread
//! of the server. Left out on purpose: the isolation protocol, which is the state machine `watch`, and everything that
//! knows what FUSE or a process is ([`KernelCache`] and [`Processes`] are the ports).

mod clients;
mod delta;
mod epochs;
mod follower;
mod head_read;
mod histogram;
mod history;
mod links;
mod notifier;
mod opened;
mod pace;
mod parked;
mod peer;
mod setup;
mod shrink;
mod stats;
mod tracking;
mod watchdog;

pub use clients::{BusyThread, ClientProcess, Processes};
pub use delta::{Delta, RangeSet, Shrunk};
pub use head_read::HeadReadError;
pub use histogram::{BOUNDED_BUCKETS, Histogram, Times};
pub use links::{LinkId, LinkOver, LinkRead, LinkReply, WatchLink};
pub use peer::{OnEpoch, PeerManners, TidStream};
pub use stats::{Figure, Gauges, Latencies, LinkStatus, Stats};
pub use tracking::{ReadBytes, UnderWay};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use quick_cache::sync::Cache;
use revfs_protocol::{FileId, RevSpec, Tid};
use tracing_mutex::stdsync::{Condvar, Mutex};

use self::epochs::Epochs;
use self::history::History;
use self::links::{Abandoned, Links};
use self::parked::Parked;
use self::peer::Peer;
use self::setup::Setups;
use self::shrink::Shrinking;
use self::tracking::Tracking;
use self::watchdog::Victims;
use crate::delta::{TailOptions, TailStats};
use crate::env::{self, Clock};
use crate::store::{BufferPool, DirId, FileMeta, Load, ReadBuffer, ReadError, ReadTxn, Store};
use crate::view::{self, ResolveError};

/// How long the follower waits for a hint that something was committed before it looks by itself.
pub const POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// How long a client may owe an ack, as with WCFS.
pub const PIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Of the time between two looks at who is late with an ack so much counts: if it was more, this server did not run.
pub const LOOK_GAP_MAX_DEFAULT: Duration = Duration::from_secs(1);
/// Memory for which blocks of head were read, bytes: each takes two at most, and neighbours next to nothing.
pub const TRACKING_BYTES_MAX_DEFAULT: u64 = 64 << 20;

/// Most runs of blocks that a watch is told of at once, if nothing else is said; one takes some 300 bytes until it is acked.
pub const PINS_MAX_DEFAULT: usize = 1 << 20;
/// Read buffers that are kept for reuse.
const BUFFERS_KEPT: usize = 32;
/// Descriptions of files that are kept for the next request.
const METAS_KEPT: usize = 4096;

/// What the server asks of whoever caches its answers. Each call returns when the cache holds nothing of it any
/// more; that nothing was cached is success. Calls come from threads that serve no request. What only a server with the
/// manners of WCFS asks has an answer here: nothing is known, and what is given is not kept.
pub trait KernelCache: Send + Sync {
    /// Drops bytes `[offset, offset + len)` of a file under head; to the end of the file if that overflows.
    fn invalidate_data(&self, file: FileId, offset: u64, len: u64);
    /// Drops the attributes of a file under head.
    fn invalidate_attributes(&self, file: FileId);
    /// Drops what a name in a directory under head means.
    fn invalidate_entry(&self, dir: DirId, name: &[u8]);
    /// Drops what the name of a file by its number means under head.
    fn invalidate_number(&self, file: FileId);
    /// Drops the attributes of a directory under head.
    fn invalidate_directory(&self, dir: DirId);
    /// Drops the attributes of the root, where tags are listed.
    fn invalidate_root(&self);
    /// Whether requests wait that no thread has taken yet.
    fn has_requests(&self) -> bool {
        false
    }
    /// Whether whoever caches knows a file under head, as by a lookup of it.
    fn knows_head(&self, _file: FileId) -> bool {
        false
    }
    /// Whether whoever caches knows the version of a file that was made at `rev`.
    fn knows_version(&self, _file: FileId, _rev: Tid) -> bool {
        false
    }
    /// Puts bytes of a file under head into the cache. Waits for READs of the same pages that are under way.
    fn store_head(&self, _file: FileId, _offset: u64, _bytes: &[u8]) {}
    /// Puts bytes of the version of a file that was made at `rev` into the cache. Waits as `store_head`.
    fn store_version(&self, _file: FileId, _rev: Tid, _offset: u64, _bytes: &[u8]) {}
}

/// A head that READs are answered from. A READ that has it is not disturbed by later heads.
#[derive(Clone, Debug)]
pub struct HeadState {
    /// The state.
    pub at: Tid,
    txn: ReadTxn,
}

/// A file in a state, with all that a read of it needs.
#[derive(Clone, Debug)]
pub struct FileView {
    /// The state that its bytes are read as of.
    pub txn: ReadTxn,
    /// The file in that state; for a file that head has deleted, with `deleted` set.
    pub meta: Arc<FileMeta>,
}

/// What a server is made of.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Time for spans and times in `@` names.
    pub clock: Arc<dyn Clock>,
    /// Runs loads that a storage does not answer at once.
    pub runtime: tokio::runtime::Handle,
    /// See [`POLL_INTERVAL_DEFAULT`].
    pub poll_interval: Duration,
    /// Bounds of the change index.
    pub history: TailOptions,
    /// Bound of what is remembered of reads; see [`TRACKING_BYTES_MAX_DEFAULT`].
    pub tracking_bytes_max: u64,
    /// Most runs of blocks that a watch is told of at once, by a set-up or as a file shrinks; see [`PINS_MAX_DEFAULT`].
    pub pins_max: usize,
    /// How long a client may owe an ack; see [`PIN_TIMEOUT_DEFAULT`].
    pub pin_timeout: Duration,
    /// Time without a look at who is late that counts; see [`LOOK_GAP_MAX_DEFAULT`].
    pub look_gap_max: Duration,
    /// Finds the processes of clients; without it no watch link can be opened.
    pub processes: Option<Arc<dyn Processes>>,
    /// Does as WCFS does, for its clients; `None`: what is better.
    pub peer: Option<PeerManners>,
}

/// Serves a store: a head that moves, all revisions before it, and counters.
pub struct Server {
    store: Arc<dyn Store>,
    options: ServerOptions,
    buffers: Arc<BufferPool>,
    /// Files in states that were asked for lately; a state never changes, so nothing here is ever stale.
    metas: Cache<(FileId, Tid), Arc<FileMeta>>,
    head: ArcSwap<HeadState>,
    shown: AtomicU64,
    refusing: AtomicBool,
    // Leaf lock: held to clone or set the Arc only. Emptied at the end, for a cache may refer to its server.
    kernel: Mutex<Option<Arc<dyn KernelCache>>>,
    trouble: ArcSwapOption<String>,
    stats: Stats,
    history: History,
    tracking: Tracking,
    parked: Parked,
    links: Links,
    setups: Setups,
    shrinking: Shrinking,
    epochs: Epochs,
    peer: Option<Peer>,
    to_kill: Victims,
    /// Processes that are being killed: none of their READs is answered.
    victims: ArcSwap<Vec<u32>>,
    /// Whose watches the server ended as it stops.
    abandoned: ArcSwap<Abandoned>,
    watchdog_moved: Condvar,
    // Leaf lock. Never held across a call to the kernel, the store or a wait for anything but `queue_moved`.
    queue: Mutex<Queue>,
    queue_moved: Condvar,
    // Leaf lock: guards no data, only makes "shown moved" and the wait for it one step.
    shown_lock: Mutex<()>,
    shown_moved: Condvar,
}

/// What the threads tell each other.
#[derive(Debug, Default)]
struct Queue {
    /// What was published and is not yet dropped from the kernel's cache, and since when.
    pending: Option<(Duration, Delta)>,
    /// Since when there is somebody for the watchdog to look after, as long as it has not come to rest.
    looked_after: Option<Duration>,
    stopping: bool,
}

/// The follower, the notifier and the watchdog. Dropping it leaves them running; see [`ServerThreads::stop`].
#[derive(Debug)]
pub struct ServerThreads {
    server: Arc<Server>,
    threads: Vec<JoinHandle<()>>,
}

impl ServerThreads {
    /// Ends the threads and waits for them. Returns only after a running invalidation has returned: abort the
    /// mount first if its kernel may not answer.
    pub fn stop(self) {
        self.server.ask_to_stop();
        // The notifier may wait for their acks.
        self.server.close_links("shutting down");
        self.server.end_tids();
        for thread in self.threads {
            if thread.join().is_err() {
                log::error!("a server thread had panicked: report the message that precedes this one");
            }
        }
        // Not under the lock: dropping it may drop what it refers to.
        let kernel = self.server.kernel.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(kernel);
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("head", &self.head())
            .field("shown", &self.shown())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server of `store`, at the head that it has applied. Nothing moves before [`Server::start`].
    pub fn new(store: Arc<dyn Store>, options: ServerOptions) -> Arc<Server> {
        let txn = ReadTxn::head(&store);
        let history = History::new(txn.at(), options.history, store.tells_by_file(), options.peer.is_some());
        Arc::new(Server {
            buffers: BufferPool::new(BUFFERS_KEPT, 4096),
            metas: Cache::new(METAS_KEPT),
            shown: AtomicU64::new(txn.at().raw()),
            refusing: AtomicBool::new(false),
            head: ArcSwap::from_pointee(HeadState { at: txn.at(), txn }),
            kernel: Mutex::new(None),
            trouble: ArcSwapOption::empty(),
            stats: Stats::default(),
            history,
            tracking: Tracking::new(options.tracking_bytes_max),
            parked: Parked::default(),
            links: Links::default(),
            setups: Setups::default(),
            shrinking: Shrinking::default(),
            epochs: Epochs::default(),
            peer: options.peer.clone().map(Peer::new),
            to_kill: Victims::default(),
            victims: ArcSwap::default(),
            abandoned: ArcSwap::default(),
            watchdog_moved: Condvar::new(),
            queue: Mutex::new(Queue::default()),
            queue_moved: Condvar::new(),
            shown_lock: Mutex::new(()),
            shown_moved: Condvar::new(),
            options,
            store,
        })
    }

    /// Says whose cache is to be invalidated; before it serves a request, and once. `false`: it was said before.
    pub fn set_kernel_cache(&self, kernel: Arc<dyn KernelCache>) -> bool {
        let mut set = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let first = set.is_none();
        if first {
            *set = Some(kernel);
        }
        first
    }

    fn kernel_cache(&self) -> Option<Arc<dyn KernelCache>> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts to follow the store.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(self: &Arc<Self>) -> std::io::Result<ServerThreads> {
        let mut running = ServerThreads { server: Arc::clone(self), threads: Vec::new() };
        let notifier: fn(&Arc<Server>) = notifier::run;
        for (name, body) in [("notifier", notifier), ("follower", follower::run), ("watchdog", watchdog::run)]
        {
            let server = Arc::clone(self);
            match env::spawn(name, move || body(&server)) {
                Ok(thread) => running.threads.push(thread),
                Err(error) => {
                    running.stop();
                    return Err(error);
                }
            }
        }
        Ok(running)
    }

    fn ask_to_stop(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.queue_moved.notify_all();
        self.wake_watchdog();
        self.store.give_up();
        self.store.wake_follower();
    }

    fn processes(&self) -> Result<&Arc<dyn Processes>, String> {
        self.options.processes.as_ref().ok_or_else(|| "this server looks after no processes".to_owned())
    }

    /// From now on no file is opened: the server stops. Only clients with watches may still have to, to do what they
    /// were told to map.
    pub fn refuse_opens(&self) {
        self.refusing.store(true, Ordering::SeqCst);
    }

    /// Whether the server stops and opens no files for a thread any more.
    pub fn is_refusing(&self, thread: u32) -> bool {
        self.is_stopping_service() && !self.is_client(thread)
    }

    /// Whether the server stops.
    pub fn is_stopping_service(&self) -> bool {
        self.refusing.load(Ordering::SeqCst)
    }

    /// The store that is served.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Tail and head of the change index, and what it takes.
    pub fn history_window(&self) -> ((Tid, Tid), TailStats) {
        self.history.window()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Where loads run that a storage does not answer at once.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.options.runtime
    }

    /// Why head does not move: the store cannot be followed now, or its log is broken after head.
    pub fn trouble(&self) -> Option<Arc<String>> {
        // Who follows may wait for the storage itself.
        let remote = self.store.is_remote().then(|| self.store.trouble()).flatten();
        remote.map(Arc::new).or_else(|| self.trouble.load_full())
    }

    /// The published head.
    pub fn head(&self) -> Tid {
        self.head.load().at
    }

    /// What `head/at` shows: nothing older is cached anywhere.
    pub fn shown(&self) -> Tid {
        Tid::from_raw(self.shown.load(Ordering::SeqCst))
    }

    /// The published head as a read transaction. A request takes it once and uses it for all that it answers.
    pub fn head_txn(&self) -> ReadTxn {
        self.head.load().txn.clone()
    }

    /// The state `at`.
    ///
    /// # Errors
    /// [`ReadError::AheadOfHead`] if it is not published.
    pub fn txn(&self, at: Tid) -> Result<ReadTxn, ReadError> {
        let head = self.head();
        if at > head {
            return Err(ReadError::AheadOfHead { at, head });
        }
        ReadTxn::new(&self.store, at)
    }

    /// What a revision means now, at or before the published head.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve(&self, spec: &RevSpec) -> Result<Tid, ResolveError> {
        view::resolve_within(&self.store, self.head(), spec, self.options.clock.now_unix_ns())
    }

    /// A file under head. One that becomes smaller keeps its size, with zeros behind its end, until those who work at
    /// the larger one are safe (rule 22). One that head has deleted, or that became another one (`epochs`), is shown as it was
    /// just before, for those who still have it open; its `deleted` is set.
    ///
    /// # Errors
    /// [`ReadError::NoSuchFile`] if it never existed, and what the store fails with.
    pub fn head_file(&self, file: FileId) -> Result<FileView, ReadError> {
        // One head for all blocks of a READ (rule 3). No redo is needed (rules 2, 19): a commit invalidates all
        // blocks that it changed, whether or not a READ had them, and blocks are found as of any state.
        let (txn, meta) = loop {
            let noted = self.history.opened.is_noted(file);
            let txn = self.head_txn();
            let meta = self.meta(&txn, file)?.ok_or(ReadError::NoSuchFile { file, at: txn.at() })?;
            if noted {
                break (txn, meta);
            }
            // The head that counts is taken after the note; and what never existed is not noted.
            self.history.opened.note(file);
        };
        let at = txn.at();
        let missing = || ReadError::NoSuchFile { file, at };
        // After the head was taken: an epoch is known before its head is published.
        let Some(deleted) = self.epochs.of(file).or(meta.deleted) else {
            let meta = match self.shrinking.held(file) {
                Some(size) if size > meta.size => Arc::new(FileMeta { size, ..FileMeta::clone(&meta) }),
                _ => meta,
            };
            return Ok(FileView { txn, meta });
        };
        let before = deleted.raw().checked_sub(1).ok_or_else(missing)?;
        let txn = ReadTxn::new(&self.store, Tid::from_raw(before))?;
        let meta = self.meta(&txn, file)?.ok_or_else(missing)?;
        let meta = Arc::new(FileMeta { deleted: Some(deleted), ..FileMeta::clone(&meta) });
        Ok(FileView { txn, meta })
    }

    fn meta(&self, txn: &ReadTxn, file: FileId) -> Result<Option<Arc<FileMeta>>, ReadError> {
        let key = (file, txn.at());
        if let Some(known) = self.metas.get(&key) {
            return Ok(Some(known));
        }
        let found = txn.file(file)?.map(Arc::new);
        if let Some(meta) = &found {
            self.metas.insert(key, Arc::clone(meta));
        }
        Ok(found)
    }

    /// A file as of the state `at`.
    ///
    /// # Errors
    /// [`ReadError::NoSuchFile`] if it does not exist there, and what the store fails with.
    pub fn rev_file(&self, file: FileId, at: Tid) -> Result<FileView, ReadError> {
        let txn = self.txn(at)?;
        match self.meta(&txn, file)? {
            Some(meta) if meta.deleted.is_none() => Ok(FileView { txn, meta }),
            _ => Err(ReadError::NoSuchFile { file, at }),
        }
    }

    /// Reads bytes of a file, clipped to its size. Waits for nothing but the storage.
    pub fn read(&self, view: &FileView, offset: u64, len: usize) -> Load<Result<ReadBuffer, ReadError>> {
        self.stats.reads.fetch_add(1, Ordering::Relaxed);
        view::read(&view.txn, &view.meta, offset, len, &self.buffers)
    }

    /// Waits until [`Server::shown`] is at least `at`; `false` if that took longer than `timeout`.
    pub fn wait_shown(&self, at: Tid, timeout: Duration) -> bool {
        let guard = self.shown_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = |(): &mut ()| self.shown() < at;
        let waited = self.shown_moved.wait_timeout_while(guard, timeout, behind);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn stopping(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).stopping
    }
}

#[cfg(test)]
mod tests;
