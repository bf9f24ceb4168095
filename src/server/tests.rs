//! The order in which heads are published, caches dropped and `head/at` moved.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use revfs_protocol::{FileId, RevSpec, Tid};

use super::*;
use crate::env::ManualClock;
use crate::watch::Serial;
use common::{BLOCK, Edit, ScriptedStore};

#[path = "../../tests/common/store.rs"]
pub mod common;
mod interleave;
mod late;
mod opened;
mod people;
mod peer;

/// No wait of a test lasts as long, unless what it waits for never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// When the servers start, nanoseconds since 1970.
const START: u64 = 1_795_000_000_000_000_000;

/// A cache that writes down what it is asked, and may hold up the one who asks.
struct RecordingCache {
    calls: Mutex<Vec<String>>,
    arrived: Mutex<Sender<()>>,
    gate: Mutex<Option<Receiver<()>>>,
    /// Versions of files that it knows.
    versions: Mutex<BTreeSet<(FileId, Tid)>>,
    /// It knows no file under head.
    unknown: AtomicBool,
    /// Nobody takes what is asked of the server.
    crowded: AtomicBool,
}

impl RecordingCache {
    fn new(arrived: Sender<()>) -> RecordingCache {
        RecordingCache {
            calls: Mutex::default(),
            arrived: Mutex::new(arrived),
            gate: Mutex::default(),
            versions: Mutex::default(),
            unknown: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
        }
    }

    fn record(&self, call: String) {
        self.calls.lock().unwrap().push(call);
        let _ = self.arrived.lock().unwrap().send(());
        if let Some(gate) = &*self.gate.lock().unwrap() {
            let _ = gate.recv();
        }
    }
}

impl KernelCache for RecordingCache {
    fn invalidate_data(&self, file: FileId, offset: u64, len: u64) {
        let len = if len > 1 << 62 { "rest".to_owned() } else { len.to_string() };
        self.record(format!("data {} {offset} {len}", file.raw()));
    }
    fn invalidate_attributes(&self, file: FileId) {
        self.record(format!("attributes {}", file.raw()));
    }
    fn invalidate_entry(&self, dir: DirId, name: &[u8]) {
        self.record(format!("entry {} {}", dir.0, String::from_utf8_lossy(name)));
    }
    fn invalidate_number(&self, file: FileId) {
        self.record(format!("number {}", file.raw()));
    }
    fn invalidate_directory(&self, dir: DirId) {
        self.record(format!("directory {}", dir.0));
    }
    fn invalidate_root(&self) {
        self.record("root".to_owned());
    }
    fn has_requests(&self) -> bool {
        self.crowded.load(Ordering::SeqCst)
    }
    fn knows_head(&self, _file: FileId) -> bool {
        !self.unknown.load(Ordering::SeqCst)
    }
    fn knows_version(&self, file: FileId, rev: Tid) -> bool {
        self.versions.lock().unwrap().contains(&(file, rev))
    }
    fn store_head(&self, file: FileId, offset: u64, bytes: &[u8]) {
        self.record(format!("store {} {offset} {}", file.raw(), bytes.len()));
        self.calls.lock().unwrap().push("stored".to_owned());
    }
    fn store_version(&self, file: FileId, rev: Tid, offset: u64, bytes: &[u8]) {
        self.record(format!("keep {} {} {offset} {}", file.raw(), rev.raw(), bytes.len()));
    }
}

struct Fixture {
    store: Arc<ScriptedStore>,
    server: Arc<Server>,
    cache: Arc<RecordingCache>,
    arrived: Receiver<()>,
    clock: Arc<ManualClock>,
    _runtime: tokio::runtime::Runtime,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap()
}

fn options(
    runtime: &tokio::runtime::Runtime,
    clock: &Arc<ManualClock>,
    processes: Option<Arc<dyn Processes>>,
) -> ServerOptions {
    ServerOptions {
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        runtime: runtime.handle().clone(),
        poll_interval: PATIENCE,
        pin_timeout: PATIENCE,
        // Time is told to jump.
        look_gap_max: Duration::MAX,
        tracking_bytes_max: TRACKING_BYTES_MAX_DEFAULT,
        pins_max: PINS_MAX_DEFAULT,
        history: TailOptions::default(),
        processes,
        peer: None,
    }
}

fn fixture(commits: &[(u64, Vec<Edit>)]) -> Fixture {
    fixture_with(commits, None, None)
}

fn fixture_with(
    commits: &[(u64, Vec<Edit>)],
    processes: Option<Arc<dyn Processes>>,
    peer: Option<PeerManners>,
) -> Fixture {
    fixture_of(ScriptedStore::new(), commits, processes, peer)
}

fn fixture_of(
    store: Arc<ScriptedStore>,
    commits: &[(u64, Vec<Edit>)],
    processes: Option<Arc<dyn Processes>>,
    peer: Option<PeerManners>,
) -> Fixture {
    for (tid, edits) in commits {
        store.commit(*tid, edits);
    }
    let _ = store.refresh();
    let runtime = runtime();
    let clock = ManualClock::at(START);
    let options = ServerOptions { peer, ..options(&runtime, &clock, processes) };
    let server = Server::new(Arc::clone(&store) as Arc<dyn Store>, options);
    let (sender, arrived) = channel();
    let cache = Arc::new(RecordingCache::new(sender));
    assert!(server.set_kernel_cache(Arc::clone(&cache) as Arc<dyn KernelCache>));
    Fixture { store, server, cache, arrived, clock, _runtime: runtime }
}

impl Fixture {
    fn read(&self, file: FileId, offset: u64, len: usize) -> Vec<u8> {
        let view = self.server.head_file(file).unwrap();
        match self.server.read(&view, offset, len) {
            Load::Ready(bytes) => bytes.unwrap().to_vec(),
            Load::Pending(_) => panic!("the double answers at once"),
        }
    }

    fn calls(&self) -> Vec<String> {
        self.cache.calls.lock().unwrap().clone()
    }
}

fn blocks(byte: u8, count: u64) -> Vec<u8> {
    vec![byte; usize::try_from(count * BLOCK).unwrap()]
}

#[test]
fn head_at_never_moves_before_all_invalidations_returned() {
    let f = fixture(&[(10, vec![Edit::Put("a", blocks(1, 4))])]);
    let file = f.store.file_id("a");
    let (open, gate) = channel();
    *f.cache.gate.lock().unwrap() = Some(gate);
    let threads = f.server.start().unwrap();
    f.store.commit(20, &[Edit::Write("a", BLOCK, blocks(2, 2))]);

    // The notifier is held up in the data invalidation, then in that of the attributes.
    for _ in 0..2 {
        f.arrived.recv_timeout(PATIENCE).unwrap();
        assert_eq!((f.server.head(), f.server.shown()), (Tid::from_raw(20), Tid::from_raw(10)));
        assert!(!f.server.wait_shown(Tid::from_raw(20), Duration::from_millis(1)));
        // A READ does not wait for it, and is answered from the published head.
        assert_eq!(f.read(file, BLOCK, 1), [2]);
        open.send(()).unwrap();
    }
    assert!(f.server.wait_shown(Tid::from_raw(20), PATIENCE));
    let raw = file.raw();
    assert_eq!(f.calls(), [format!("data {raw} 4096 8192"), format!("attributes {raw}")]);
    threads.stop();
}

#[test]
fn later_commits_are_published_while_the_notifier_is_held_up_and_become_one_delta() {
    let f = fixture(&[(10, vec![Edit::Put("a", blocks(1, 4))])]);
    let file = f.store.file_id("a");
    let (open, gate) = channel();
    *f.cache.gate.lock().unwrap() = Some(gate);
    let threads = f.server.start().unwrap();
    f.store.commit(11, &[Edit::Write("a", 0, blocks(2, 1))]);
    f.arrived.recv_timeout(PATIENCE).unwrap();
    for tid in 12..112 {
        f.store.commit(tid, &[Edit::Write("a", (tid % 2) * BLOCK, blocks(u8::try_from(tid).unwrap(), 1))]);
    }
    while f.server.head() < Tid::from_raw(111) {
        env::sleep(Duration::from_millis(1));
    }
    assert_eq!(f.read(file, BLOCK, 1), [111]);
    assert_eq!(f.server.shown(), Tid::from_raw(10));
    drop(open);
    assert!(f.server.wait_shown(Tid::from_raw(111), PATIENCE));
    assert_eq!(f.calls().len(), 4, "two calls for each of two deltas: {:?}", f.calls());
    assert_eq!(f.calls()[2], format!("data {} 0 8192", file.raw()));
    threads.stop();
}

#[test]
fn sizes_names_and_tags_are_dropped_after_the_data() {
    let f = fixture(&[(
        10,
        vec![Edit::Put("x/y/a", blocks(1, 4)), Edit::Put("x/b", blocks(1, 1)), Edit::Put("c", blocks(1, 1))],
    )]);
    let ids = ["x/y/a", "x/b", "c"].map(|path| f.store.file_id(path).raw());
    let threads = f.server.start().unwrap();
    f.store.commit(
        20,
        &[
            Edit::Size("x/y/a", 2 * BLOCK),
            Edit::Rename("x/y/a", "x/z/a"),
            Edit::Delete("c"),
            Edit::Tag("t", Tid::from_raw(10)),
        ],
    );
    assert!(f.server.wait_shown(Tid::from_raw(20), PATIENCE));
    let [a, _, c] = ids;
    // x/y vanished, x/z appeared where nothing was cached; both are told, and a itself below x/y.
    let mut expected = vec![format!("data {a} 8192 rest")];
    let mut files = [a, c];
    files.sort_unstable();
    expected.extend(files.map(|file| format!("attributes {file}")));
    expected.extend(["entry 0 c", "entry 1 y", "entry 1 z", "entry 2 a"].map(str::to_owned));
    expected.extend(["directory 0", "directory 1", "directory 2", "root"].map(str::to_owned));
    assert_eq!(f.calls(), expected);
    threads.stop();
}

#[test]
fn a_file_that_head_has_deleted_is_read_as_it_was_just_before() {
    let f =
        fixture(&[(10, vec![Edit::Put("a", blocks(1, 2))]), (15, vec![Edit::Write("a", 0, blocks(7, 1))])]);
    let file = f.store.file_id("a");
    f.store.commit(20, &[Edit::Delete("a")]);
    let threads = f.server.start().unwrap();
    assert!(f.server.wait_shown(Tid::from_raw(20), PATIENCE));
    let view = f.server.head_file(file).unwrap();
    assert_eq!((view.txn.at(), view.meta.deleted), (Tid::from_raw(19), Some(Tid::from_raw(20))));
    assert_eq!(f.read(file, BLOCK - 1, 2), [7, 1]);
    assert!(matches!(f.server.rev_file(file, Tid::from_raw(20)), Err(ReadError::NoSuchFile { .. })));
    assert_eq!(f.server.rev_file(file, Tid::from_raw(15)).unwrap().meta.size, 2 * BLOCK);
    threads.stop();
}

#[test]
fn a_store_that_cannot_be_followed_goes_on_being_served_and_is_tried_again() {
    let f = fixture(&[(10, vec![Edit::Put("a", blocks(1, 1))])]);
    let file = f.store.file_id("a");
    f.store.broken.store(true, Ordering::SeqCst);
    let threads = f.server.start().unwrap();
    f.store.commit(20, &[Edit::Write("a", 0, blocks(2, 1))]);
    while f.server.stats().follow_errors.load(Ordering::Relaxed) < 2 {
        env::sleep(Duration::from_millis(1));
    }
    assert!(f.server.trouble().unwrap().contains("scripted damage"));
    assert_eq!((f.read(file, 0, 1), f.server.head()), (vec![1], Tid::from_raw(10)));
    f.store.broken.store(false, Ordering::SeqCst);
    assert!(f.server.wait_shown(Tid::from_raw(20), PATIENCE));
    threads.stop();
}

#[test]
fn a_server_that_is_a_hundred_thousand_commits_behind_catches_up_with_few_invalidations() {
    let f = fixture(&[(10, vec![Edit::Put("a", blocks(1, 2))])]);
    for tid in 11..100_011 {
        f.store.commit(tid, &[Edit::Write("a", (tid % 2) * BLOCK, vec![5])]);
    }
    let threads = f.server.start().unwrap();
    assert!(f.server.wait_shown(Tid::from_raw(100_010), PATIENCE));
    assert!(f.calls().len() < 200, "{}", f.calls().len());
    assert_eq!(f.server.stats().commits.load(Ordering::Relaxed), 100_000);
    threads.stop();
}

#[test]
fn stopping_ends_both_threads_also_in_a_back_off() {
    let f = fixture(&[]);
    f.store.broken.store(true, Ordering::SeqCst);
    let threads = f.server.start().unwrap();
    while f.server.trouble().is_none() {
        env::sleep(Duration::from_millis(1));
    }
    threads.stop();
}

#[test]
fn revisions_resolve_to_commits_at_or_before_head() {
    let second = 1_000_000_000;
    let now = 1_795_000_000_000_000_000;
    let tids = [now - 600 * second, now - 60 * second].map(|ns| Tid::from_unix_ns(ns).raw());
    let edits = vec![Edit::Put("a", vec![1])];
    let tag = Edit::Tag("first", Tid::from_raw(tids[0]));
    let f = fixture(&[(tids[0], edits.clone()), (tids[1], vec![Edit::Put("b", vec![1]), tag])]);
    let resolve = |text: &str| f.server.resolve(&RevSpec::parse(text).unwrap());
    let raw = |text: &str| resolve(text).unwrap().raw();
    assert_eq!((raw("head"), raw("first"), raw("2026"), raw("-1s")), (tids[1], tids[0], tids[1], tids[1]));
    assert_eq!((raw("-5min"), raw("-1h"), raw("1999")), (tids[0], 0, 0));
    let between = format!("{:016x}", tids[0] + 1);
    assert_eq!(raw(&between), tids[0] + 1);
    assert!(matches!(resolve("2027"), Err(ResolveError::InFuture { .. })));
    assert!(matches!(resolve("ffffffffffffffff"), Err(ResolveError::AheadOfHead { .. })));
    assert!(matches!(resolve("second"), Err(ResolveError::NoSuchTag { .. })));
    // The clock was turned back: nothing after it counts.
    f.clock.set_unix_ns(now - 300 * second);
    assert_eq!(raw("2026"), tids[0]);
}

/// Bytes of a READ under head, which is under way until they are dropped.
fn read_head(f: &Fixture, file: FileId, offset: u64) -> ReadBytes {
    let (reply, answer) = channel();
    f.server.read_head(file, (offset, 1), 1, move |result| reply.send(result).unwrap());
    answer.try_recv().expect("nobody has to be asked").unwrap()
}

#[test]
fn what_was_read_a_moment_ago_is_dropped_when_who_watches_has_run() {
    for has_run in [true, false] {
        let everybody = people::Everybody::default();
        let commits = [(10, vec![Edit::Put("a", blocks(1, 4))])];
        let f = fixture_with(&commits, Some(Arc::new(everybody.clone())), None);
        let file = f.store.file_id("a");
        let link = f.server.open_link(1).unwrap();
        f.server.links.register(file, Tid::from_raw(10), link.id, Serial(1));
        let ran = |ns: u64| everybody.0.lock().unwrap().waiting.insert(1, ns);
        ran(100);
        let threads = f.server.start().unwrap();
        let clock = env::SystemClock::shared();
        let answered = clock.monotonic();
        drop(read_head(&f, file, BLOCK));
        f.store.commit(20, &[Edit::Write("a", BLOCK, blocks(2, 1))]);
        let early = f.arrived.recv_timeout(tracking::ANSWER_SETTLES / 10);
        let is_over = || clock.monotonic() - answered >= tracking::ANSWER_SETTLES;
        assert!(early.is_err() || is_over(), "dropped while a client waits for a processor");
        if early.is_err() {
            let looks = || everybody.0.lock().unwrap().busy_looks;
            let before = looks();
            if has_run {
                ran(101);
            }
            f.arrived.recv_timeout(PATIENCE).unwrap();
            // One may be under way, and the next one sees it.
            assert!(
                if has_run { looks() - before <= 2 } else { is_over() },
                "{before} looks, then {}",
                looks()
            );
        }
        f.server.close_link(&link);
        threads.stop();
    }
}

#[test]
fn a_read_is_under_way_until_its_reply_was_sent_and_answered_for_a_moment() {
    let f = fixture(&[(10, vec![Edit::Put("a", blocks(1, 4))])]);
    let file = f.store.file_id("a");
    let touched = |blocks: Range<u64>| {
        let bytes = blocks.start * BLOCK..blocks.end * BLOCK;
        let (ranges, tracking) = (std::slice::from_ref(&bytes), &f.server.tracking);
        (tracking.under_way(file, ranges).len(), tracking.answered(file, ranges))
    };
    let bytes = read_head(&f, file, 2 * BLOCK - 1);
    let other = read_head(&f, file, 7 * BLOCK);
    assert_eq!([touched(0..1), touched(1..2), touched(2..7)], [(0, None), (1, None), (0, None)]);
    assert_eq!([touched(0..8), touched(7..u64::MAX / BLOCK)], [(2, None), (1, None)], "also beyond the end");
    f.clock.advance(Duration::from_secs(5));
    let then = f.clock.monotonic();
    drop(bytes);
    assert_eq!([touched(0..1), touched(1..2)], [(0, None), (0, Some(then))]);
    f.clock.advance(tracking::ANSWER_SETTLES * 2);
    drop(other);
    assert_eq!(touched(1..2), (0, None), "forgotten");
    // As many as there may be: the oldest are remembered as one.
    for block in 0..2000 {
        drop(read_head(&f, file, (10 + block) * BLOCK));
    }
    let now = Some(f.clock.monotonic());
    assert_eq!([touched(10..11), touched(1000..1001), touched(2009..2010)], [(0, now); 3]);
    assert_eq!(touched(2010..2011), (0, None));
}
