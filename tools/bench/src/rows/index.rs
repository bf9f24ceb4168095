//! A long history: lookups of the newest version at or before a tid, and opening a store of many commits.
//!
//! The histories are built through the library without sync, once a run. Blocks hold one byte, so that the
//! index has all its entries and the packs next to nothing.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use revfs::env::SystemClock;
use revfs::protocol::{BlockCount, BlockIndex, BlockSize, FileId, Tid};
use revfs::store::native::{
    CommitError, Index, InitOptions, NativeStore, OpenOptions, Transaction, block_hash,
};
use revfs::store::{Codec, ReadTxn};
use tokio::runtime::Runtime;

use super::{Bench, Row, Side};
use crate::clock::timed;
use crate::data::Rng;
use crate::driver::Revfs;
use crate::error::{BenchError, OfStore, Result};
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit};
use crate::system;

/// Versions in the index that is looked up.
const VERSIONS: u64 = 5_000_000;
/// Commits that made them.
const LOOKUP_COMMITS: u64 = 100;
/// The file is cut into so many parts; a commit changes all blocks of one.
const PARTS: u64 = 10;
/// Lookups of one half.
const LOOKUPS: u64 = 2_000_000;
/// Lookups whose answers are compared with what was committed.
const CHECKED: u64 = 10_000;
/// Commits of the store that is mounted.
const COMMITS: u64 = 100_000;
/// Blocks that each of them changes.
const COMMIT_BLOCKS: u64 = 10;
/// Commits after which the file is changed from its start again.
const ROUND: u64 = 1_000;

const LOOKUP: RowSpec = RowSpec {
    key: "lookups",
    what: "\"newest version <= at\", 5 M versions, one thread",
    against: "-",
    unit: Unit::MillionsPerSecond,
    compare: Compare::Ours,
    target: Target::AtLeast(1.0),
};
const LOOKUP_STORE: RowSpec = RowSpec {
    key: "lookups-store",
    what: "the same through Store::blocks, which also looks up the file",
    target: Target::None,
    ..LOOKUP
};
const MOUNT: RowSpec = RowSpec {
    key: "mount-many",
    what: "mount of a store of 100,000 commits, 1 M block versions",
    against: "an empty store",
    unit: Unit::Milliseconds,
    compare: Compare::Difference,
    target: Target::AtMost(150.0),
};
const MOUNT_COLD: RowSpec =
    RowSpec { key: "mount-many-cold", what: "the same, caches dropped", target: Target::None, ..MOUNT };
const MOUNT_RSS: RowSpec = RowSpec {
    key: "mount-many-rss",
    what: "RSS of its server after the mount",
    against: "an empty store",
    unit: Unit::Mebibytes,
    compare: Compare::Ours,
    target: Target::Below(64.0),
};

/// The rows of this group.
pub const ROWS: [RowSpec; 5] = [LOOKUP, LOOKUP_STORE, MOUNT, MOUNT_COLD, MOUNT_RSS];

/// Measures the rows of this group.
///
/// # Errors
/// The stores cannot be made.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let runtime = super::small::runtime()?;
    if bench.wants(&LOOKUP) || bench.wants(&LOOKUP_STORE) {
        let part = (bench.count(VERSIONS) / LOOKUP_COMMITS).max(1);
        let history = History::make(&runtime, &folder.join("versions"), part)?;
        let (count, seed) = (bench.count(LOOKUPS), bench.args.seed);
        bench.row(&LOOKUP, |row| history.look_up(row, count, seed));
        bench.row(&LOOKUP_STORE, |row| history.look_up_in_store(row, count, seed));
    }
    if [MOUNT, MOUNT_COLD, MOUNT_RSS].iter().any(|spec| bench.wants(spec)) {
        let (many, empty) = (folder.join("many"), folder.join("empty"));
        make_many(&runtime, &many, bench.count(COMMITS))?;
        make_store(&empty)?;
        let revfs = bench.revfs;
        let mounts = Mounts { revfs, many: &many, empty: &empty, point: &folder.join("mnt") };
        bench.row(&MOUNT, |row| mounts.time(row, false));
        bench.row(&MOUNT_COLD, |row| mounts.time(row, true));
        bench.row(&MOUNT_RSS, |row| mounts.memory(row));
    }
    Ok(())
}

/// A store of 4 KiB blocks without sync: a fixture, made anew if the machine stops.
///
/// # Errors
/// The store cannot be made.
pub fn make_store(root: &Path) -> Result<Arc<NativeStore>> {
    let init = InitOptions { block_size: BlockSize::MIN, codec: Codec::Raw, sync: false };
    NativeStore::init(root, &init, &*SystemClock::shared()).of_store("init")?;
    NativeStore::open(root, OpenOptions { sync: false, ..OpenOptions::default() }).of_store("open")
}

/// Puts blocks `[first, first + count)`, each of which begins with `byte`, which is not 0.
///
/// # Errors
/// The store refuses.
pub async fn put_blocks(
    transaction: &mut Transaction,
    file: FileId,
    range: (u64, u64),
    byte: u8,
) -> std::result::Result<(), CommitError> {
    let mut whole = vec![0; BlockSize::MIN.bytes() as usize];
    whole[0] = byte;
    let hash = block_hash(&whole);
    let data = Bytes::copy_from_slice(&[byte]);
    for block in range.0..range.0 + range.1 {
        transaction.put_partial(file, BlockIndex::new(block), data.clone(), hash).await?;
    }
    Ok(())
}

/// Makes a file without bytes.
///
/// # Errors
/// The store refuses.
pub async fn create_file(store: &Arc<NativeStore>, blocks: u64) -> std::result::Result<FileId, CommitError> {
    let mut transaction = store.begin(None)?;
    let file = transaction.create(b"x", None)?;
    transaction.set_size(file, blocks * BlockSize::MIN.bytes()).await?;
    transaction.commit().await?;
    Ok(file)
}

/// A file in parts: commit `n` changed all blocks of part `n % PARTS`.
struct History {
    store: Arc<NativeStore>,
    index: Arc<Index>,
    file: FileId,
    /// Blocks of a part.
    part: u64,
    /// Tids of the commits, in their order.
    tids: Vec<Tid>,
}

impl History {
    fn make(runtime: &Runtime, root: &Path, part: u64) -> Result<History> {
        eprintln!("bench: making {} versions of blocks", part * LOOKUP_COMMITS);
        let store = make_store(root)?;
        let (file, tids) = runtime.block_on(commit_parts(&store, part)).of_store("commit of a history")?;
        // The same index that the store has open, without the store around it.
        let index = Index::open(&root.join("index"), store.format().uuid).of_store("open of the index")?;
        let history = History { store, index, file, part, tids };
        history.check()?;
        Ok(history)
    }

    /// What the index must answer for a block as of the commit `number`.
    fn expected(&self, block: u64, number: u64) -> Option<Tid> {
        let part = block / self.part;
        let last = number.checked_sub((number + PARTS - part) % PARTS)?;
        self.tids.get(last as usize).copied()
    }

    fn draw(&self, rng: &mut Rng) -> (u64, u64) {
        (rng.below(self.part * PARTS), rng.below(self.tids.len() as u64))
    }

    fn check(&self) -> Result<()> {
        let mut rng = Rng::new(0, 0);
        for _ in 0..CHECKED {
            let (block, number) = self.draw(&mut rng);
            let at = self.tids[number as usize];
            let found = self.index.block(at, self.file, BlockIndex::new(block)).of_store("lookup")?;
            if found.map(|(tid, _)| tid) != self.expected(block, number) {
                return Err(BenchError::Wrong(format!(
                    "block {block} at @{at}: the index answers {found:?}"
                )));
            }
        }
        Ok(())
    }

    fn look_up(&self, row: &Row, count: u64, seed: u64) -> Result<Vec<Pair>> {
        row.repeat(|number| {
            let mut rng = Rng::new(seed, u64::from(number));
            let (took, found) = timed(|| {
                (0..count).try_fold(0, |found, _| {
                    let (block, number) = self.draw(&mut rng);
                    let at = self.tids[number as usize];
                    let version = self.index.block(at, self.file, BlockIndex::new(block))?;
                    Ok::<u64, revfs::store::native::IndexError>(found + u64::from(version.is_some()))
                })
            });
            check_found(found.of_store("lookup")?)?;
            Ok(count as f64 / took.as_secs_f64() / 1e6)
        })
    }

    fn look_up_in_store(&self, row: &Row, count: u64, seed: u64) -> Result<Vec<Pair>> {
        let store = self.store.as_store();
        let states: Vec<ReadTxn> = self
            .tids
            .iter()
            .map(|at| ReadTxn::new(&store, *at))
            .collect::<std::result::Result<_, _>>()
            .of_store("read transaction")?;
        row.repeat(|number| {
            let mut rng = Rng::new(seed, u64::from(number));
            let (took, found) = timed(|| {
                (0..count).try_fold(0, |found, _| {
                    let (block, number) = self.draw(&mut rng);
                    let state = &states[number as usize];
                    let runs = state.blocks(self.file, BlockIndex::new(block), BlockCount::new(1))?;
                    let is_written = runs.first().is_some_and(|run| run.rev > Tid::ZERO);
                    Ok::<u64, revfs::store::ReadError>(found + u64::from(is_written))
                })
            });
            check_found(found.of_store("lookup")?)?;
            Ok(count as f64 / took.as_secs_f64() / 1e6)
        })
    }
}

fn check_found(found: u64) -> Result<()> {
    if found > 0 {
        return Ok(());
    }
    Err(BenchError::Wrong("lookups found no version at all".to_owned()))
}

async fn commit_parts(
    store: &Arc<NativeStore>,
    part: u64,
) -> std::result::Result<(FileId, Vec<Tid>), CommitError> {
    let file = create_file(store, part * PARTS).await?;
    let mut tids = Vec::new();
    for number in 0..LOOKUP_COMMITS {
        let mut transaction = store.begin(None)?;
        let first = number % PARTS * part;
        put_blocks(&mut transaction, file, (first, part), number as u8 % 255 + 1).await?;
        tids.push(transaction.commit().await?.tid);
    }
    Ok((file, tids))
}

fn make_many(runtime: &Runtime, root: &Path, commits: u64) -> Result<()> {
    eprintln!("bench: making {commits} commits");
    let store = make_store(root)?;
    let make = async || -> std::result::Result<(), CommitError> {
        let file = create_file(&store, ROUND * COMMIT_BLOCKS).await?;
        // The file was the first of them.
        for number in 1..commits {
            let mut transaction = store.begin(None)?;
            let first = number % ROUND * COMMIT_BLOCKS;
            put_blocks(&mut transaction, file, (first, COMMIT_BLOCKS), (number % 255) as u8 + 1).await?;
            transaction.commit().await?;
        }
        Ok(())
    };
    runtime.block_on(make()).of_store("commit of a history")
}

/// Two stores, mounted in turn.
struct Mounts<'a> {
    revfs: &'a Revfs,
    many: &'a Path,
    empty: &'a Path,
    point: &'a Path,
}

impl Mounts<'_> {
    fn store(&self, side: Side) -> &Path {
        if side == Side::Ours { self.many } else { self.empty }
    }

    fn time(&self, row: &Row, cold: bool) -> Result<Vec<Pair>> {
        row.interleave(|side, _| {
            if cold {
                system::drop_caches(0)?;
            }
            let (_mounted, took) = self.revfs.mount(self.store(side), self.point, &[])?;
            Ok(took.as_secs_f64() * 1e3)
        })
    }

    fn memory(&self, row: &Row) -> Result<Vec<Pair>> {
        row.interleave(|side, _| {
            let (mounted, _) = self.revfs.mount(self.store(side), self.point, &[])?;
            Ok(mounted.server_bytes("VmRSS:")? as f64 / f64::from(1 << 20))
        })
    }
}
