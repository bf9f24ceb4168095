//! The change index: point queries over a window of many commits, from one thread and from two, and its memory.
//!
//! The window is made without a store: commits are handed to the index as a server would. Answers are compared
//! with what was committed before anything is timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use revfs::delta::{BlockRev, ChangeIndex, DeltaError, Tail, TailOptions};
use revfs::protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};
use revfs::store::native::{CommitError, NativeStore};
use revfs::store::{CommitInfo, FileChange, ReadTxn};

use super::{Bench, Row, Side};
use crate::clock::timed;
use crate::data::Rng;
use crate::error::{BenchError, OfStore, Result};
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit};
use crate::system;

/// Commits in the window.
const COMMITS: u64 = 100_000;
/// Blocks that each of them changes; all of them are different.
const COMMIT_BLOCKS: u64 = 10;
/// Queries of one half, and of each thread.
const QUERIES: u64 = 4_000_000;
/// Queries whose answers are compared with what was committed.
const CHECKED: u64 = 100_000;

const POINT: RowSpec = RowSpec {
    key: "block-rev-at",
    what: "block_rev_at, 1 M tracked blocks, 100,000 commits of 10 blocks in the window, one thread",
    against: "-",
    unit: Unit::MillionsPerSecond,
    compare: Compare::Ours,
    target: Target::AtLeast(5.0),
};
const POINT_TWO: RowSpec = RowSpec {
    key: "block-rev-at-2",
    what: "the same, two threads, in all",
    against: "one thread",
    compare: Compare::Ratio,
    target: Target::AtLeast(1.7),
    ..POINT
};
const POINT_WRITER: RowSpec = RowSpec {
    key: "block-rev-at-writer",
    what: "the same, one thread, while another takes up commits without pause and forgets as many",
    against: "no writer",
    compare: Compare::Ratio,
    target: Target::None,
    ..POINT
};
const MEMORY: RowSpec = RowSpec {
    key: "change-bytes",
    what: "memory of that index a changed block",
    unit: Unit::Bytes,
    target: Target::AtMost(64.0),
    ..POINT
};
const UPDATE: RowSpec = RowSpec {
    key: "change-update",
    what: "taking up those commits, changed blocks a second",
    target: Target::None,
    ..POINT
};

/// The rows of this group.
pub const ROWS: [RowSpec; 5] = [POINT, POINT_TWO, POINT_WRITER, MEMORY, UPDATE];

/// Measures the rows of this group.
///
/// # Errors
/// The index answers wrongly.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let (commits, queries, seed) = (bench.count(COMMITS), bench.count(QUERIES), bench.args.seed);
    let changes = Changes::make(&folder.join("store"), commits, seed)?;
    let before = resident()?;
    let tail = changes.index()?;
    let grown = resident()?.saturating_sub(before) as f64 / changes.blocks() as f64;
    changes.check(&tail)?;
    bench.row(&POINT, |row| row.repeat(|number| changes.ask(&tail, queries, (seed, number))));
    bench.row(&POINT_TWO, |row| {
        row.interleave(|side, number| match side {
            Side::Ours => changes.ask_twice(&tail, queries, (seed, number)),
            Side::Baseline => changes.ask(&tail, queries, (seed, number)),
        })
    });
    bench.row(&POINT_WRITER, |row| changes.ask_beside_writer(row, queries, seed));
    bench.row(&MEMORY, |row| {
        row.note(format!("RSS of the process grew by {grown:.1} bytes a changed block"));
        let bytes = tail.stats().bytes as f64;
        row.repeat(|_| Ok(bytes / changes.blocks() as f64))
    });
    bench.row(&UPDATE, |row| {
        row.repeat(|_| {
            let (took, tail) = timed(|| changes.index());
            tail?;
            Ok(changes.blocks() as f64 / took.as_secs_f64() / 1e6)
        })
    });
    Ok(())
}

fn resident() -> Result<u64> {
    system::status_bytes(rustix::process::getpid().as_raw_nonzero().get(), "VmRSS:")
}

/// Commits that change each block of one file once, in random order.
struct Changes {
    txn: ReadTxn,
    commits: Vec<CommitInfo>,
    /// The commit of each block; the first has number 1, which is its tid.
    commit_of: Vec<u32>,
}

const FILE: FileId = FileId::from_raw(1);

impl Changes {
    fn make(root: &std::path::Path, count: u64, seed: u64) -> Result<Changes> {
        let blocks = count * COMMIT_BLOCKS;
        let order = Rng::new(seed, 0).shuffled(blocks);
        let mut commit_of = vec![0; blocks as usize];
        let mut commits = Vec::new();
        for (number, changed) in (1..).zip(order.chunks(COMMIT_BLOCKS as usize)) {
            changed.iter().for_each(|block| commit_of[*block as usize] = number);
            commits.push(commit(u64::from(number), changed, blocks));
        }
        Ok(Changes { txn: context(root)?, commits, commit_of })
    }

    fn blocks(&self) -> u64 {
        self.commit_of.len() as u64
    }

    fn index(&self) -> Result<Tail> {
        let tail = Tail::new(Tid::ZERO, TailOptions::default());
        self.commits.iter().try_for_each(|commit| tail.update(commit)).of_store("update")?;
        Ok(tail)
    }

    fn draw(&self, rng: &mut Rng) -> (u64, u64) {
        (rng.below(self.blocks()), rng.below(self.commits.len() as u64 + 1))
    }

    fn check(&self, tail: &Tail) -> Result<()> {
        let mut rng = Rng::new(0, 0);
        for _ in 0..CHECKED {
            let (block, at) = self.draw(&mut rng);
            let rev = u64::from(self.commit_of[block as usize]);
            let (rev, exact) = if rev <= at { (rev, true) } else { (0, false) };
            let expected = BlockRev { rev: Tid::from_raw(rev), exact };
            let found = tail
                .block_rev_at(&self.txn, FILE, BlockIndex::new(block), Tid::from_raw(at))
                .of_store("block_rev_at")?;
            if found != expected {
                return Err(BenchError::Wrong(format!("block {block} at @{at}: {found:?}")));
            }
        }
        Ok(())
    }

    /// Millions of queries a second.
    fn ask(&self, tail: &Tail, count: u64, (seed, number): (u64, u32)) -> Result<f64> {
        let mut rng = Rng::new(seed, u64::from(number));
        let (took, found) = timed(|| {
            (0..count).try_fold(0, |found, _| {
                let (block, at) = self.draw(&mut rng);
                let rev = tail.block_rev_at(&self.txn, FILE, BlockIndex::new(block), Tid::from_raw(at))?;
                Ok::<u64, DeltaError>(found + u64::from(rev.exact))
            })
        });
        if found.of_store("block_rev_at")? == 0 {
            return Err(BenchError::Wrong("queries found no change at all".to_owned()));
        }
        Ok(count as f64 / took.as_secs_f64() / 1e6)
    }

    fn ask_twice(&self, tail: &Tail, count: u64, (seed, number): (u64, u32)) -> Result<f64> {
        let (took, results) = timed(|| {
            std::thread::scope(|scope| {
                let asks =
                    [0, 1].map(|other| scope.spawn(move || self.ask(tail, count, (seed + other, number))));
                asks.map(|ask| ask.join().map_err(|_| BenchError::Wrong("a thread panicked".to_owned())))
            })
        });
        for result in results {
            result??;
        }
        Ok(2.0 * count as f64 / took.as_secs_f64() / 1e6)
    }

    /// Queries at head while the window slides.
    fn ask_beside_writer(&self, row: &mut Row, count: u64, seed: u64) -> Result<Vec<Pair>> {
        row.note("queries at head of a window that slides; its writer does nothing else".to_owned());
        row.interleave(|side, number| {
            let tail = self.index()?;
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| match side {
                    Side::Ours => self.slide(&tail, &done),
                    Side::Baseline => Ok(()),
                });
                let asked = self.ask_at_head(&tail, count, (seed, number));
                done.store(true, Ordering::Relaxed);
                writer.join().map_err(|_| BenchError::Wrong("the writer panicked".to_owned()))??;
                asked
            })
        })
    }

    /// Takes up the same commits again and again, with later tids, until `done`.
    fn slide(&self, tail: &Tail, done: &AtomicBool) -> Result<()> {
        let count = self.commits.len() as u64;
        let mut again = self.commits.iter().cloned().cycle();
        let mut next = count;
        while !done.load(Ordering::Relaxed) {
            let Some(mut commit) = again.next() else { break };
            next += 1;
            commit.tid = Tid::from_raw(next);
            tail.update(&commit).of_store("update")?;
            tail.forget_past(Tid::from_raw(next - count));
        }
        Ok(())
    }

    fn ask_at_head(&self, tail: &Tail, count: u64, (seed, number): (u64, u32)) -> Result<f64> {
        let mut rng = Rng::new(seed, u64::from(number));
        let (took, found) = timed(|| {
            (0..count).try_fold(0, |found, _| {
                let block = BlockIndex::new(rng.below(self.blocks()));
                loop {
                    match tail.block_rev_at(&self.txn, FILE, block, tail.window().1) {
                        // A thread that waited for a processor: the whole window has slid past what it asks for.
                        Err(DeltaError::OutsideWindow { at, tail, .. }) if at < tail => {}
                        other => return Ok::<u64, DeltaError>(found + u64::from(other?.exact)),
                    }
                }
            })
        });
        found.of_store("block_rev_at")?;
        Ok(count as f64 / took.as_secs_f64() / 1e6)
    }
}

fn commit(number: u64, changed: &[u64], blocks: u64) -> CommitInfo {
    let mut changed: Vec<u64> = changed.to_vec();
    changed.sort_unstable();
    let size = blocks * BlockSize::MIN.bytes();
    let change = FileChange {
        file: FILE,
        path: b"x".to_vec(),
        renamed_from: None,
        created: false,
        deleted: false,
        replaced: false,
        old_size: size,
        size,
        block_size: BlockSize::MIN,
        blocks: changed.into_iter().map(|block| (BlockIndex::new(block), BlockCount::new(1))).collect(),
    };
    CommitInfo {
        seq: number,
        tid: Tid::from_raw(number),
        base: Tid::from_raw(number - 1),
        time_unix_ns: 0,
        author: String::new(),
        message: String::new(),
        commit_uuid: revfs::env::random_uuid(),
        files: vec![change],
        tags: Vec::new(),
        pack_bytes: 0,
    }
}

/// A read transaction that sees all those commits: that of a store with one commit of today.
fn context(root: &std::path::Path) -> Result<ReadTxn> {
    let store: Arc<NativeStore> = super::index::make_store(root)?;
    let runtime = super::small::runtime()?;
    let make = async || -> std::result::Result<(), CommitError> {
        let mut transaction = store.begin(None)?;
        transaction.create(b"x", None)?;
        transaction.commit().await.map(drop)
    };
    runtime.block_on(make()).of_store("commit")?;
    Ok(ReadTxn::head(&store.as_store()))
}
