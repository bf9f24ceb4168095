//! A file of a database that is opened for the first time in the midst of a commit, at each access of the follower to
//! the store and at each call to the kernel's cache; and a commit in the midst of the first READs of a file, at each of
//! their accesses to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Condvar;

use revfs_protocol::{BlockCount, BlockIndex, BlockSpan};
use zodb_writer::big::{self, Blocks, Made, Shape};
use zodb_writer::records::{Kind, Ref};
use zodb_writer::{Write, Writer, records};

use super::*;
use crate::store::zodb::{Database, DatabaseOptions};
use crate::store::{BlockRun, CommitInfo, Entry, Piece, StoreInfo};

const BLOCK_SIZE: u64 = 4096;
const BLOCKS: u64 = 4;
/// Seconds after `START` at which each transaction is.
const STEP: u64 = 1_000_000_000;

/// What is done, once, at some access.
struct Plan {
    /// Whose accesses count: a name of a thread.
    who: &'static str,
    /// Accesses until then.
    left: u64,
    act: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone, Default)]
struct Meddler(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    /// The follower is done with what there was, and waits for commits.
    waits: bool,
}

impl Meddler {
    /// From now on accesses count. Those of the follower begin with the one that looks for what is not committed yet:
    /// one that is under way could see the commit, and have fewer accesses left.
    fn plan(&self, who: &'static str, left: u64, act: impl FnOnce() + Send + 'static) {
        let (state, moved) = &*self.0;
        let state = state.lock().unwrap();
        let (mut state, waited) = moved.wait_timeout_while(state, PATIENCE, |state| !state.waits).unwrap();
        assert!(!waited.timed_out(), "the follower waits for commits");
        state.plan = Some(Plan { who, left, act: Some(Box::new(act)) });
    }

    /// The follower waits for commits from now on, or no longer.
    fn waits(&self, waits: bool) {
        let (state, moved) = &*self.0;
        state.lock().unwrap().waits = waits;
        moved.notify_all();
    }

    /// An access.
    fn meet(&self) {
        let mut state = self.0.0.lock().unwrap();
        let thread = std::thread::current();
        let Some(known) = state.plan.as_mut().filter(|plan| thread.name() == Some(plan.who)) else { return };
        match known.left.checked_sub(1) {
            Some(left) => known.left = left,
            None => {
                let act = known.act.take();
                state.plan = None;
                drop(state);
                act.into_iter().for_each(|act| act());
            }
        }
    }
}

#[derive(Debug)]
struct Met {
    inner: Database,
    meddler: Meddler,
}

impl std::fmt::Debug for Meddler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddler")
    }
}

impl Met {
    /// Something happens before the one who asks has the answer, or after.
    fn ask<T>(&self, question: impl FnOnce(&Database) -> T) -> T {
        self.meddler.meet();
        let answer = question(&self.inner);
        self.meddler.meet();
        answer
    }
}

impl Store for Met {
    fn info(&self) -> &StoreInfo {
        self.inner.info()
    }
    fn head(&self) -> Tid {
        self.inner.head()
    }
    fn refresh(&self) -> Load<Result<Tid, ReadError>> {
        self.ask(|inner| inner.refresh())
    }
    fn wait_for_commits(&self, timeout: Duration) {
        self.meddler.waits(true);
        self.inner.wait_for_commits(timeout);
        self.meddler.waits(false);
    }
    fn wake_follower(&self) {
        self.inner.wake_follower();
    }
    fn lookup(&self, txn: &ReadTxn, dir: DirId, name: &[u8]) -> Result<Option<Entry>, ReadError> {
        self.ask(|inner| inner.lookup(txn, dir, name))
    }
    fn list(&self, txn: &ReadTxn, dir: DirId) -> Result<Vec<(Vec<u8>, Entry)>, ReadError> {
        self.ask(|inner| inner.list(txn, dir))
    }
    fn dir_name(&self, dir: DirId) -> Result<Option<(DirId, Vec<u8>)>, ReadError> {
        self.inner.dir_name(dir)
    }
    fn file(&self, txn: &ReadTxn, file: FileId) -> Result<Option<FileMeta>, ReadError> {
        self.ask(|inner| inner.file(txn, file))
    }
    fn blocks(
        &self,
        txn: &ReadTxn,
        file: FileId,
        first: BlockIndex,
        count: BlockCount,
    ) -> Result<Vec<BlockRun>, ReadError> {
        self.ask(|inner| inner.blocks(txn, file, first, count))
    }
    fn read(&self, pieces: Vec<Piece>, buffer: ReadBuffer) -> Load<Result<ReadBuffer, ReadError>> {
        self.ask(|inner| inner.read(pieces, buffer))
    }
    fn newest_commit(&self, at: Tid) -> Result<Tid, ReadError> {
        self.inner.newest_commit(at)
    }
    fn commits(&self, _: Tid, _: Tid, _: usize) -> Result<Vec<CommitInfo>, ReadError> {
        panic!("that reads the trees of all files");
    }
    fn tells_by_file(&self) -> bool {
        self.inner.tells_by_file()
    }
    fn commits_of(
        &self,
        lo: Tid,
        hi: Tid,
        limit: usize,
        files: &BTreeSet<FileId>,
    ) -> Result<Vec<CommitInfo>, ReadError> {
        self.ask(|inner| inner.commits_of(lo, hi, limit, files))
    }
    fn commits_back(&self, _: Tid, _: Tid, _: usize) -> Result<Vec<CommitInfo>, ReadError> {
        panic!("that reads the trees of all files");
    }
    fn tags(&self) -> Result<Vec<(String, Tid)>, ReadError> {
        self.inner.tags()
    }
    fn tag(&self, name: &str) -> Result<Option<Tid>, ReadError> {
        self.inner.tag(name)
    }
}

/// Blocks of one file, as a kernel has them.
#[derive(Clone)]
struct Pages {
    meddler: Meddler,
    file: FileId,
    blocks: Arc<Mutex<BTreeMap<u64, Page>>>,
}

/// A block of the cache.
#[derive(Debug, PartialEq, Eq)]
enum Page {
    /// Its READ is under way. If it is to be dropped, it is as soon as that is answered.
    Awaited {
        dropped: bool,
    },
    Read(Vec<u8>),
}

impl KernelCache for Pages {
    fn invalidate_data(&self, file: FileId, offset: u64, len: u64) {
        self.meddler.meet();
        if file == self.file {
            let dropped = offset..offset.saturating_add(len);
            self.blocks.lock().unwrap().retain(|block, page| match page {
                Page::Awaited { dropped: also } => {
                    *also |= dropped.contains(&(block * BLOCK_SIZE));
                    true
                }
                Page::Read(_) => !dropped.contains(&(block * BLOCK_SIZE)),
            });
        }
        self.meddler.meet();
    }
    fn invalidate_attributes(&self, _: FileId) {
        self.meddler.meet();
    }
    fn invalidate_entry(&self, _: DirId, _: &[u8]) {}
    fn invalidate_number(&self, _file: FileId) {}
    fn invalidate_directory(&self, _: DirId) {}
    fn invalidate_root(&self) {}
}

fn read_block(server: &Server, view: &FileView, block: u64) -> Vec<u8> {
    match server.read(view, block * BLOCK_SIZE, BLOCK_SIZE as usize) {
        Load::Ready(bytes) => bytes.unwrap().to_vec(),
        Load::Pending(_) => panic!("a file is read at once"),
    }
}

/// A READ of each block of head, whose answers are kept.
fn read_all(server: &Server, pages: &Pages) {
    for block in 0..BLOCKS {
        pages.blocks.lock().unwrap().insert(block, Page::Awaited { dropped: false });
        let view = server.head_file(pages.file).unwrap();
        let bytes = read_block(server, &view, block);
        let mut blocks = pages.blocks.lock().unwrap();
        if blocks.remove(&block) == Some(Page::Awaited { dropped: false }) {
            blocks.insert(block, Page::Read(bytes));
        }
    }
}

struct Scene {
    writer: Arc<Mutex<Writer>>,
    made: [Made; 2],
    server: Arc<Server>,
    threads: Option<ServerThreads>,
    pages: Pages,
    meddler: Meddler,
    tids: Vec<Tid>,
    changed: Vec<u64>,
    _runtime: tokio::runtime::Runtime,
}

fn tid(number: u64) -> Tid {
    Tid::newest_at_unix_ns(START - 60 * STEP + number * STEP)
}

impl Scene {
    fn new(path: &Path) -> Scene {
        let mut writer = Writer::create(path).unwrap();
        let mut number = 0;
        let mut next = || {
            number += 1;
            tid(number).raw()
        };
        writer.commit(next(), &[(0, Write::Data(records::root(&[])))]).unwrap();
        let shape = Shape { block_size: BLOCK_SIZE, blocks: BLOCKS, stored: Blocks::Whole(900), seed: 1 };
        let made = [1, 1000].map(|oid| big::file(&mut writer, &shape, oid, &mut next).unwrap());
        let meddler = Meddler::default();
        let inner = Database::open(path, DatabaseOptions::default()).unwrap();
        let store = Arc::new(Met { inner, meddler: meddler.clone() });
        let (runtime, clock) = (runtime(), ManualClock::at(START));
        let server = Server::new(store as Arc<dyn Store>, options(&runtime, &clock, None));
        let file = FileId::from_raw(made[0].file);
        let pages = Pages { meddler: meddler.clone(), file, blocks: Arc::default() };
        assert!(server.set_kernel_cache(Arc::new(pages.clone())));
        let threads = Some(server.start().unwrap());
        let (tids, writer) = (vec![server.head()], Arc::new(Mutex::new(writer)));
        Scene { writer, made, server, threads, pages, meddler, tids, changed: vec![], _runtime: runtime }
    }

    /// What commits a block of both files, and waits until that is shown.
    fn committing(&mut self, block: u64) -> impl FnOnce() + Send + use<> {
        let tid = tid(10 + self.tids.len() as u64);
        let bytes = big::noise(7, tid.raw(), 1000);
        let write = |made: &Made| (made.blocks[block as usize], Write::Data(records::blk0(&bytes)));
        let writes: Vec<(u64, Write)> = self.made.iter().map(write).collect();
        self.tids.push(tid);
        self.changed.push(block);
        let (writer, server) = (Arc::clone(&self.writer), Arc::clone(&self.server));
        move || {
            writer.lock().unwrap().commit(tid.raw(), &writes).unwrap();
            assert!(server.wait_shown(tid, PATIENCE));
        }
    }

    fn commit(&mut self, block: u64) {
        self.committing(block)();
    }

    /// Whether the plan was carried out.
    fn was_met(&self) -> bool {
        self.meddler.0.0.lock().unwrap().plan.take().is_none()
    }

    /// Nothing older than head is kept; and the history has what changed, and nothing else.
    fn check(&self, what: &str, indexed: bool) {
        let view = self.server.head_file(self.pages.file).unwrap();
        for (block, page) in self.pages.blocks.lock().unwrap().iter() {
            let Page::Read(bytes) = page else { panic!("{what}: no READ is under way") };
            assert!(*bytes == read_block(&self.server, &view, *block), "{what}: block {block} is stale");
        }
        let all = BlockSpan { first: BlockIndex::new(0), last: BlockIndex::new(BLOCKS - 1) };
        for (number, at) in self.tids.iter().enumerate() {
            let found = self.server.history.changed(&view, *at, vec![all]).unwrap();
            let found: BTreeSet<u64> =
                found.iter().flat_map(|span| span.blocks()).map(BlockIndex::raw).collect();
            let expected: BTreeSet<u64> = self.changed[number..].iter().copied().collect();
            assert!(
                found == expected || !indexed && found.is_superset(&expected),
                "{what}: after @{at}: {found:?}"
            );
            let old = self.server.rev_file(self.pages.file, *at).unwrap();
            for (span, rev) in self.server.history.pins_at(&old, all).unwrap() {
                let pinned = self.server.rev_file(self.pages.file, rev).unwrap();
                for block in span.blocks().map(BlockIndex::raw) {
                    let last = self.changed[..number].iter().rposition(|changed| *changed == block);
                    // What changed while it was followed is known exactly; what did not, by a bound.
                    assert!(
                        last.is_none_or(|last| rev == self.tids[last + 1]),
                        "{what}: block {block} @{rev}"
                    );
                    let same =
                        read_block(&self.server, &pinned, block) == read_block(&self.server, &old, block);
                    assert!(same && rev <= *at, "{what}: block {block} @{at} is pinned @{rev}");
                }
            }
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.threads.take().into_iter().for_each(ServerThreads::stop);
    }
}

/// Whether the file was opened in the midst of the first commit, at access number `access` of the follower or notifier.
fn open_at(who: &'static str, access: u64, other_opened: bool) -> bool {
    let what = format!("opened at access {access} of the {who}, other file opened: {other_opened}");
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&dir.path().join("Data.fs"));
    if other_opened {
        scene.server.head_file(FileId::from_raw(scene.made[1].file)).unwrap();
    }
    let (server, pages) = (Arc::clone(&scene.server), scene.pages.clone());
    let (sender, opened) = channel();
    scene.meddler.plan(who, access, move || {
        read_all(&server, &pages);
        sender.send(()).unwrap();
    });
    scene.commit(1);
    let met = scene.was_met();
    if met {
        // It may have come after the commit was shown, and be in the midst of it.
        opened.recv_timeout(PATIENCE).unwrap();
    }
    go_on(&mut scene, &what);
    met
}

/// Whether a commit came in the midst of the first READs, at their access number `access`.
fn commit_at(access: u64) -> bool {
    let what = format!("commit at access {access} of the first READs");
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&dir.path().join("Data.fs"));
    // Of the block that is read first: the others are read after the file was noted.
    let (act, who) = (scene.committing(0), "reader");
    scene.meddler.plan(who, access, act);
    let (server, pages) = (Arc::clone(&scene.server), scene.pages.clone());
    env::spawn(who, move || read_all(&server, &pages)).unwrap().join().unwrap();
    let met = scene.was_met();
    if met {
        go_on(&mut scene, &what);
    }
    met
}

/// Whatever came in the midst of what, all is as it must be after it, and stays so.
fn go_on(scene: &mut Scene, what: &str) {
    scene.check(what, true);
    scene.commit(2);
    scene.check(what, true);
    read_all(&scene.server, &scene.pages);
    scene.commit(1);
    scene.check(what, true);
    // What is forgotten is made up for by the store.
    let all_past = START + 1_000_000 * STEP;
    scene.server.history.forget(scene.tids[2], scene.tids[2], all_past);
    scene.check(what, false);
    scene.server.history.forget(scene.server.shown(), scene.server.shown(), all_past);
    scene.check(what, false);
}

/// How many accesses there are before `play` says that there are no more.
fn points(play: impl Fn(u64) -> bool) -> u64 {
    let points = (0..1000).take_while(|access| play(*access)).count() as u64;
    assert!(points < 1000);
    points
}

#[test]
fn a_file_that_is_opened_in_the_midst_of_a_commit_shows_nothing_stale() {
    for other_opened in [false, true] {
        let found = ["follower", "notifier"].map(|who| points(|access| open_at(who, access, other_opened)));
        // A refresh and the commits; what is dropped of the other file.
        assert!(found[0] >= 4 && found[1] >= 2 * u64::from(other_opened), "{found:?}");
    }
}

#[test]
fn a_commit_in_the_midst_of_the_first_reads_leaves_nothing_stale() {
    let found = points(commit_at);
    // The file once, then for each block where it is, and its bytes.
    assert!(found >= 2 + 4 * BLOCKS, "{found}");
}

#[test]
fn a_block_that_came_changes_none_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&dir.path().join("Data.fs"));
    // Of this the index is not told.
    scene.commit(2);
    let opened = scene.server.head();
    read_all(&scene.server, &scene.pages);
    scene.commit(1);
    let changed = *scene.tids.last().unwrap();
    // A block that is new in the tree: what holds it is written, and with that stand all others.
    let made = &scene.made[0];
    let entry = |(block, oid): (usize, &u64)| (block as i64, Ref { oid: *oid, class: records::Class::Blk0 });
    let mut entries: Vec<_> = made.blocks.iter().enumerate().map(entry).collect();
    entries.push((BLOCKS as i64, Ref { oid: 5000, class: records::Class::Blk0 }));
    let grown = tid(50);
    let writes = [
        (5000, Write::Data(records::blk0(&big::noise(9, 9, 1000)))),
        (made.tree, Write::Data(records::inlined_tree(Kind::Long, &entries))),
    ];
    scene.writer.lock().unwrap().commit(grown.raw(), &writes).unwrap();
    assert!(scene.server.wait_shown(grown, PATIENCE));
    let view = scene.server.head_file(scene.pages.file).unwrap();
    let all = BlockSpan { first: BlockIndex::new(0), last: BlockIndex::new(BLOCKS) };
    let revs = |revs: Vec<(BlockSpan, Tid)>| -> Vec<Tid> {
        revs.iter().flat_map(|(span, rev)| span.blocks().map(|_| *rev)).collect()
    };
    assert_eq!(revs(super::super::history::revs_of(&view.txn, scene.pages.file, all).unwrap()), [grown; 5]);
    let found = revs(scene.server.history.revs(&view, all).unwrap());
    assert_eq!(found[1], changed);
    assert_eq!(found[BLOCKS as usize], grown);
    assert!([0, 3].iter().all(|block| found[*block] <= opened), "{found:?}");
    assert_eq!(found[2], opened);
    // What was forgotten is told by a bound: no lower than where the index begins, no higher than what the store says.
    scene.server.history.forget(grown, grown, START + 1_000_000 * STEP);
    assert_eq!(revs(scene.server.history.revs(&view, all).unwrap()), [grown; 5]);
}
