//! ZODB databases: reading them through a mount, opening them, and what a commit to a large tree costs.
//!
//! The databases are written by `zodb_writer`, so that they are large and quickly made; what ZODB in Python reads is timed
//! by itself, in the environment that `.ci/run` makes (`REVFS_PYTHON` names another one). Cold halves start as those of the
//! group `reads` do.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use revfs::delta::{ChangeIndex, Tail, TailOptions};
use revfs::protocol::{BlockIndex, FileId, Tid};
use revfs::store::native::{CommitError, NativeStore};
use revfs::store::zodb::{Database, DatabaseOptions};
use revfs::store::{BufferPool, CommitInfo, Load, ReadTxn, Store};
use rustix::fs::OFlags;
use zodb_writer::big::{self, Blocks, Made, Shape};
use zodb_writer::records::{self, Class, Kind, Ref};
use zodb_writer::{Write, Writer};

use super::reads::read_through;
use super::{Bench, Row, SameSum, Side};
use crate::clock::timed;
use crate::data::{BLOCK, Rng, sum_pages};
use crate::driver::Revfs;
use crate::error::{BenchError, Named, OfStore, Result};
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit};
use crate::system;

/// Size of the databases that are read and opened, bytes of blocks.
const BYTES: u64 = 1 << 30;
/// Of these so much is read in chunks.
const CHUNKS_BYTES: u64 = 256 << 20;
const CHUNK: u64 = 4096;
/// Threads that read past the cache, as many as serve a native store on two processors.
const DIRECT_THREADS: usize = 4;
/// Blocks of the large tree.
const TREE_BLOCKS: u64 = 1_000_000;
/// Blocks that a commit changes: half of them are written anew, for the others another object takes the place.
const COMMIT_BLOCKS: u64 = 100;
/// Commits in the window of point queries.
const WINDOW_COMMITS: u64 = 100;
/// Point queries of one half.
const QUERIES: u64 = 2_000_000;
/// The file of each database.
const FILE: u64 = 1;
/// A moment in 2020.
const FIRST_TID: u64 = 0x03d7_0000_0000_0000;
const TID_STEP: u64 = 0x1000_0000;
/// How long a mount may take to show a commit.
const PATIENCE: Duration = Duration::from_secs(60);

const COLD: RowSpec = RowSpec {
    key: "zodb-read",
    what: "ZODB, ZBlk0: cold sequential read, 1 GiB, reads of 2 MiB",
    against: "cold pread of the .fs file",
    unit: Unit::GigabytesPerSecond,
    compare: Compare::Ratio,
    target: Target::AtLeast(0.7),
};
const CHUNKS: RowSpec = RowSpec {
    key: "zodb-chunks",
    what: "ZODB, ZBlk1 with chunks of 4 KiB: cold sequential read, 256 MiB",
    against: "ZODB in Python reading the same blocks",
    target: Target::AtLeast(10.0),
    ..COLD
};
const CHUNKS_DISK: RowSpec = RowSpec {
    key: "zodb-chunks-disk",
    what: "the same",
    against: "the part of the .fs file that has these blocks, read past the cache, 2 MiB at once by four threads",
    target: Target::None,
    ..CHUNKS
};
const OPEN: RowSpec = RowSpec {
    key: "zodb-open",
    what: "ZODB: cold opening of 1 GiB in chunks of 4 KiB, with its index",
    against: "cold pread of the whole file",
    unit: Unit::Milliseconds,
    compare: Compare::Ratio,
    target: Target::AtMost(0.2),
};
const OPEN_SCAN: RowSpec = RowSpec {
    key: "zodb-open-scan",
    what: "the same, without an index",
    target: Target::AtMost(1.2),
    ..OPEN
};
const HISTORY: RowSpec = RowSpec {
    key: "zodb-history",
    what: "ZODB: what a commit of 100 blocks did to a tree of 1 M, all tracked",
    against: "reading the tree before it, which is half of a full comparison",
    target: Target::AtMost(0.02),
    ..OPEN
};
const MEMORY: RowSpec = RowSpec {
    key: "zodb-memory",
    what: "ZODB: memory of a server that tracks a file of 1 M blocks",
    against: "the same before it tracks any",
    unit: Unit::Mebibytes,
    compare: Compare::Ours,
    target: Target::AtMost(200.0),
};

const POINT: RowSpec = RowSpec {
    key: "zodb-block-rev",
    what: "ZODB: block_rev_at in a window of 100 commits of 100 blocks, a tree of 1 M, one thread",
    against: "the same history in a native store",
    unit: Unit::MillionsPerSecond,
    compare: Compare::Ratio,
    target: Target::AtLeast(0.3),
};

/// The rows of this group.
pub const ROWS: [RowSpec; 8] = [COLD, CHUNKS, CHUNKS_DISK, OPEN, OPEN_SCAN, HISTORY, MEMORY, POINT];

/// A database that may grow.
struct Base {
    path: PathBuf,
    writer: Writer,
    shape: Shape,
    made: Made,
}

impl Base {
    fn make(path: PathBuf, shape: Shape) -> Result<Base> {
        eprintln!("bench: making {} with {} blocks", path.display(), shape.blocks);
        let named = || path.display();
        let mut writer = Writer::create(&path).named(named())?;
        let mut tid = FIRST_TID;
        let mut next = || {
            tid += TID_STEP;
            tid
        };
        let root = records::root(&[("file", Ref { oid: FILE, class: Class::BigFile })]);
        let made = big::file(&mut writer, &shape, FILE, &mut next).named(named())?;
        writer.commit(next(), &[(0, Write::Data(root))]).named(named())?;
        writer.save_index().named(named())?;
        Ok(Base { path, writer, shape, made })
    }

    fn in_mount() -> String {
        format!("head/bigfile/{}", FileId::from_raw(FILE))
    }

    /// Changes scattered blocks.
    fn commit(&mut self, seed: u64) -> Result<Tid> {
        let tid = self.writer.last_tid() + TID_STEP;
        let mut rng = Rng::new(seed, tid);
        let count = self.made.blocks.len() as u64;
        let mut writes = Vec::new();
        let mut leaves = BTreeSet::new();
        let mut changed = BTreeSet::new();
        while (changed.len() as u64) < COMMIT_BLOCKS.min(count) {
            let block = rng.below(count);
            if !changed.insert(block) {
                continue;
            }
            let oid = &mut self.made.blocks[block as usize];
            if changed.len() % 2 == 0 {
                *oid = self.made.next_oid;
                self.made.next_oid += 1;
                leaves.insert(self.made.leaves.partition_point(|(first, _)| *first <= block as i64) - 1);
            }
            writes.push((*oid, Write::Data(records::blk0(&big::noise(seed, tid, 8)))));
        }
        for leaf in leaves {
            let (first, oid) = self.made.leaves[leaf];
            let next = self.made.leaves.get(leaf + 1);
            let end = next.map_or(count as i64, |(first, _)| *first);
            let entry = |key: i64| (key, Ref { oid: self.made.blocks[key as usize], class: Class::Blk0 });
            let entries: Vec<(i64, Ref)> = (first..end).map(entry).collect();
            let record = records::bucket(Kind::Long, &entries, next.map(|(_, oid)| *oid));
            writes.push((oid, Write::Data(record)));
        }
        self.writer.commit(tid, &writes).named(self.path.display())?;
        Ok(Tid::from_raw(tid))
    }
}

/// Measures the rows of this group.
///
/// # Errors
/// The databases cannot be made.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let blocks = bench.blocks(BYTES);
    let seed = bench.args.seed;
    let shape = |stored| Shape { block_size: BLOCK, blocks, stored, seed };
    if bench.wants(&COLD) {
        let base = Base::make(folder.join("whole.fs"), shape(Blocks::Whole(BLOCK)))?;
        let revfs = bench.revfs;
        bench.row(&COLD, |row| cold(row, &base, &folder.join("mnt"), revfs));
    }
    if [CHUNKS, CHUNKS_DISK, OPEN, OPEN_SCAN].iter().any(|spec| bench.wants(spec)) {
        let base = Base::make(folder.join("chunks.fs"), shape(Blocks::Chunks(CHUNK)))?;
        let read = bench.blocks(CHUNKS_BYTES).min(base.shape.blocks);
        let revfs = bench.revfs;
        bench.row(&CHUNKS, |row| chunks(row, &base, read, &folder.join("mnt"), revfs));
        bench.row(&CHUNKS_DISK, |row| chunks_disk(row, &base, read, &folder.join("mnt"), revfs));
        bench.row(&OPEN, |row| opening(row, &base.path));
        if bench.wants(&OPEN_SCAN) {
            let mut index = base.path.as_os_str().to_owned();
            index.push(".index");
            std::fs::remove_file(&index).named(Path::new(&index).display())?;
        }
        bench.row(&OPEN_SCAN, |row| opening(row, &base.path));
    }
    if [HISTORY, MEMORY, POINT].iter().any(|spec| bench.wants(spec)) {
        let blocks = bench.count(TREE_BLOCKS);
        let shape = Shape { block_size: 4096, blocks, stored: Blocks::Whole(8), seed };
        let mut base = Base::make(folder.join("tree.fs"), shape)?;
        let revfs = bench.revfs;
        bench.row(&HISTORY, |row| history(row, &mut base, seed));
        bench.row(&MEMORY, |row| memory(row, &mut base, seed, &folder.join("mnt"), revfs));
        let queries = bench.count(QUERIES);
        bench.row(&POINT, |row| point_queries(row, &mut base, seed, &folder.join("native"), queries));
    }
    Ok(())
}

fn cold(row: &Row, base: &Base, point: &Path, revfs: &Revfs) -> Result<Vec<Pair>> {
    system::check_root()?;
    let bytes = base.shape.blocks * BLOCK;
    let size = std::fs::metadata(&base.path).named(base.path.display())?.len();
    // The file has headers between the blocks, so its sum is another one.
    let (mut ours, mut theirs) = (SameSum::default(), SameSum::default());
    let expected = (0..base.shape.blocks).map(|block| sum_pages(&big::block_bytes(&base.shape, block)));
    ours.check(expected.fold(0, u64::wrapping_add))?;
    row.interleave(|side, _| {
        if side == Side::Baseline {
            system::drop_caches(size)?;
            let (took, sum) = read_through(&base.path, size, BLOCK as usize)?;
            theirs.check(sum)?;
            return Ok(size as f64 / took.as_secs_f64() / 1e9);
        }
        let (mounted, _) = revfs.mount(&base.path, point, &[])?;
        system::drop_caches(bytes)?;
        let (took, sum) = read_through(&mounted.join(&Base::in_mount()), bytes, BLOCK as usize)?;
        ours.check(sum)?;
        Ok(bytes as f64 / took.as_secs_f64() / 1e9)
    })
}

fn chunks(row: &Row, base: &Base, blocks: u64, point: &Path, revfs: &Revfs) -> Result<Vec<Pair>> {
    system::check_root()?;
    let bytes = blocks * BLOCK;
    let mut same = SameSum::default();
    row.interleave(|side, _| {
        let (seconds, sum) = if side == Side::Baseline {
            system::drop_caches(bytes)?;
            read_in_python(&base.path, blocks)?
        } else {
            read_mounted(base, blocks, point, revfs)?
        };
        same.check(sum)?;
        Ok(bytes as f64 / seconds / 1e9)
    })
}

/// How much of what the disk gives comes through: it is the machine, not revfs, that bounds the row before on a slow one.
fn chunks_disk(row: &Row, base: &Base, blocks: u64, point: &Path, revfs: &Revfs) -> Result<Vec<Pair>> {
    system::check_root()?;
    let size = std::fs::metadata(&base.path).named(base.path.display())?.len();
    // All blocks take the same, in their order.
    let stored = (size * blocks / base.shape.blocks).next_multiple_of(BLOCK).min(size / BLOCK * BLOCK);
    row.interleave(|side, _| {
        if side == Side::Baseline {
            system::drop_caches(stored)?;
            return Ok(stored as f64 / read_direct(&base.path, stored)?.as_secs_f64() / 1e9);
        }
        let (seconds, _) = read_mounted(base, blocks, point, revfs)?;
        Ok((blocks * BLOCK) as f64 / seconds / 1e9)
    })
}

/// Seconds and sum of the first blocks, read cold through a mount.
fn read_mounted(base: &Base, blocks: u64, point: &Path, revfs: &Revfs) -> Result<(f64, u64)> {
    let bytes = blocks * BLOCK;
    let (mounted, _) = revfs.mount(&base.path, point, &[])?;
    system::drop_caches(bytes)?;
    let (took, sum) = read_through(&mounted.join(&Base::in_mount()), bytes, BLOCK as usize)?;
    Ok((took.as_secs_f64(), sum))
}

/// How long the first `bytes` of a file take that are read past the page cache by several threads, a block at once.
fn read_direct(path: &Path, bytes: u64) -> Result<Duration> {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).named(path.display())?;
    let (pool, next) = (BufferPool::new(DIRECT_THREADS, BLOCK as usize), AtomicU64::new(0));
    let read = || -> std::io::Result<()> {
        let mut buffer = pool.take(BLOCK as usize);
        loop {
            let at = next.fetch_add(BLOCK, Ordering::Relaxed);
            if at >= bytes {
                return Ok(());
            }
            file.read_exact_at(&mut buffer, at)?;
        }
    };
    let (took, done) = timed(|| {
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..DIRECT_THREADS).map(|_| scope.spawn(read)).collect();
            readers.into_iter().map(|reader| reader.join()).collect::<Vec<_>>()
        })
    });
    for result in done {
        let result = result.map_err(|_| BenchError::Wrong("a thread panicked".to_owned()))?;
        result.named(path.display())?;
    }
    Ok(took)
}

/// Seconds and sum of the first blocks, as ZODB in Python reads them.
fn read_in_python(path: &Path, blocks: u64) -> Result<(f64, u64)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("REVFS_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| root.join("target/ci-venv/bin/python"));
    if !python.exists() {
        return Err(BenchError::NotPossible {
            what: format!("{}: there is no Python with ZODB", python.display()),
            remedy: "let .ci/run make it, or name one in REVFS_PYTHON",
        });
    }
    let mut command = Command::new(&python);
    command.arg(root.join("tools/bench/zodb_read.py")).arg(root.join("tools/zodb_fixture")).arg(path);
    command.args([FILE, blocks].map(|number| number.to_string()));
    let done = command.output().named(python.display())?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    if let [seconds, sum] = words[..]
        && let (Ok(seconds), Ok(sum)) = (seconds.parse(), sum.parse())
    {
        return Ok((seconds, sum));
    }
    let output = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(BenchError::Command { command: "zodb_read.py".to_owned(), status: done.status.to_string(), output })
}

fn open(path: &Path) -> Result<Arc<dyn Store>> {
    let database = Database::open(path, DatabaseOptions::default()).of_store("open of a database")?;
    Ok(Arc::new(database))
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn opening(row: &Row, path: &Path) -> Result<Vec<Pair>> {
    system::check_root()?;
    let size = std::fs::metadata(path).named(path.display())?.len();
    row.interleave(|side, _| {
        system::drop_caches(size)?;
        if side == Side::Baseline {
            return Ok(milliseconds(read_through(path, size, BLOCK as usize)?.0));
        }
        let (took, database) = timed(|| open(path));
        let file = ReadTxn::head(&database?).file(FileId::from_raw(FILE)).of_store("file of a database")?;
        match file {
            Some(_) => Ok(milliseconds(took)),
            None => Err(BenchError::Wrong("the file is not there".to_owned())),
        }
    })
}

/// What the commits in (lo, hi] did to the file.
fn commits(store: &Arc<dyn Store>, lo: Tid, hi: Tid) -> Result<Vec<CommitInfo>> {
    let files = BTreeSet::from([FileId::from_raw(FILE)]);
    store.commits_of(lo, hi, 2, &files).of_store("commits of a database")
}

fn count_blocks(commits: &[CommitInfo]) -> u64 {
    let files = commits.iter().flat_map(|commit| &commit.files);
    files.flat_map(|file| &file.blocks).map(|(_, count)| count.raw()).sum()
}

fn history(row: &Row, base: &mut Base, seed: u64) -> Result<Vec<Pair>> {
    let refresh = |store: &Arc<dyn Store>| match store.refresh() {
        Load::Ready(tid) => tid.of_store("refresh of a database"),
        Load::Pending(_) => Err(BenchError::Wrong("a file is read at once".to_owned())),
    };
    // One commit, so that the tree is there.
    let tracking = open(&base.path)?;
    let before = tracking.head();
    base.commit(seed)?;
    let mut shown = refresh(&tracking)?;
    commits(&tracking, before, shown)?;
    // The same question to both, each in its turn.
    let (mut asked, mut sides) = (shown, 0);
    row.interleave(|side, _| {
        if sides % 2 == 0 {
            shown = refresh(&tracking)?;
            asked = base.commit(seed)?;
        }
        sides += 1;
        let (took, told) = if side == Side::Ours {
            refresh(&tracking)?;
            timed(|| commits(&tracking, shown, asked))
        } else {
            let fresh = open(&base.path)?;
            timed(|| commits(&fresh, shown, asked))
        };
        match count_blocks(&told?) {
            COMMIT_BLOCKS => Ok(milliseconds(took)),
            other => Err(BenchError::Wrong(format!("{other} blocks are told, {COMMIT_BLOCKS} changed"))),
        }
    })
}

fn memory(row: &Row, base: &mut Base, seed: u64, point: &Path, revfs: &Revfs) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    row.repeat(|_| {
        let (mounted, _) = revfs.mount(&base.path, point, &[])?;
        let before = mounted.server_bytes("RssAnon:")?;
        read_through(&mounted.join(&Base::in_mount()), 4096, 4096)?;
        let tid = base.commit(seed)?;
        let end = crate::clock::now() + PATIENCE;
        let shown = mounted.join("head/at");
        while std::fs::read_to_string(&shown).named(shown.display())?.trim() != tid.to_string() {
            if crate::clock::now() > end {
                return Err(BenchError::Wrong(format!("@{tid} is not shown")));
            }
            std::thread::yield_now();
        }
        let after = mounted.server_bytes("RssAnon:")?;
        pairs.push(Pair { ours: mib(after), baseline: Some(mib(before)) });
        Ok(mib(after))
    })?;
    Ok(pairs)
}

/// A window of commits, and what is asked of it.
struct Window {
    txn: ReadTxn,
    index: Tail,
    file: FileId,
}

impl Window {
    fn of(store: Arc<dyn Store>, lo: Tid, file: FileId) -> Result<Window> {
        let txn = ReadTxn::head(&store);
        let index = Tail::of_file(&txn, file, (lo, txn.at()), TailOptions::default()).of_store("history")?;
        Ok(Window { txn, index, file })
    }

    /// Asks for blocks that changed and for others, at states of the whole window; answers how many were in it.
    fn ask(&self, queries: u64, changed: &[u64], states: &[Tid], seed: u64) -> Result<u64> {
        let mut rng = Rng::new(seed, 77);
        let mut exact = 0;
        for _ in 0..queries {
            let block = changed[rng.below(changed.len() as u64) as usize];
            let at = states[rng.below(states.len() as u64) as usize];
            let found = self.index.block_rev_at(&self.txn, self.file, BlockIndex::new(block), at);
            exact += u64::from(found.of_store("block_rev_at")?.exact);
        }
        Ok(exact)
    }
}

fn point_queries(row: &Row, base: &mut Base, seed: u64, native: &Path, queries: u64) -> Result<Vec<Pair>> {
    let lo = Tid::from_raw(base.writer.last_tid());
    for _ in 0..WINDOW_COMMITS {
        base.commit(seed)?;
    }
    let ours = Window::of(open(&base.path)?, lo, FileId::from_raw(FILE))?;
    let commits =
        ours.txn.store().commits_of(lo, ours.txn.at(), WINDOW_COMMITS as usize, &BTreeSet::from([ours.file]));
    let changes: Vec<Vec<u64>> = (commits.of_store("commits of a database")?.iter())
        .map(|commit| {
            let runs = commit.files.iter().flat_map(|file| &file.blocks);
            runs.flat_map(|(first, count)| first.raw()..first.raw() + count.raw()).collect()
        })
        .collect();
    let runtime = super::small::runtime()?;
    let store = super::index::make_store(native)?;
    let blocks = base.shape.blocks;
    let (file, theirs_lo) = runtime.block_on(commit_same(&store, blocks, &changes)).of_store("commit")?;
    let theirs = Window::of(store.as_store(), theirs_lo, file)?;
    let changed = changes.concat();
    let states = |window: &Window, lo: Tid| -> Result<Vec<Tid>> {
        let asked = BTreeSet::from([window.file]);
        let commits = window.txn.store().commits_of(lo, window.txn.at(), usize::MAX, &asked);
        Ok(commits.of_store("commits")?.iter().map(|commit| commit.tid).collect())
    };
    let (our_states, their_states) = (states(&ours, lo)?, states(&theirs, theirs_lo)?);
    let mut same = SameSum::default();
    row.interleave(|side, _| {
        let (took, exact) = match side {
            Side::Ours => timed(|| ours.ask(queries, &changed, &our_states, seed)),
            Side::Baseline => timed(|| theirs.ask(queries, &changed, &their_states, seed)),
        };
        same.check(exact?)?;
        Ok(queries as f64 / took.as_secs_f64() / 1e6)
    })
}

/// A native store with the same changes; answers the file and the state before them.
async fn commit_same(
    store: &Arc<NativeStore>,
    blocks: u64,
    changes: &[Vec<u64>],
) -> std::result::Result<(FileId, Tid), CommitError> {
    let file = super::index::create_file(store, blocks).await?;
    let lo = store.head();
    for blocks in changes {
        let mut transaction = store.begin(None)?;
        for block in blocks {
            super::index::put_blocks(&mut transaction, file, (*block, 1), 7).await?;
        }
        transaction.commit().await?;
    }
    Ok((file, lo))
}
