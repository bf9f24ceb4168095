//! Small durable commits by one writer, against the least that a careful program does for one small file:
//! create, write, fsync, rename, fsync of the directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use revfs::env::SystemClock;
use revfs::protocol::{BlockSize, FileId};
use revfs::store::native::{CommitError, InitOptions, NativeStore, OpenOptions};
use tokio::runtime::Runtime;

use super::{Bench, Row, Side};
use crate::clock::timed;
use crate::data::Rng;
use crate::error::{Named, OfStore, Result};
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit};

/// Commits, and files, of one half.
const COMMITS: u64 = 200;
const CONTENT_BYTES: usize = 100;

const SMALL: RowSpec = RowSpec {
    key: "small-commits",
    what: "durable commits of 100 bytes to one file, one writer",
    against: "create + fsync + rename + directory fsync",
    unit: Unit::PerSecond,
    compare: Compare::Ratio,
    target: Target::AtLeast(0.4),
};
const SMALL_4K: RowSpec =
    RowSpec { key: "small-commits-4k", what: "the same, block size 4 KiB", target: Target::None, ..SMALL };

/// The rows of this group.
pub const ROWS: [RowSpec; 2] = [SMALL, SMALL_4K];

/// A runtime as a program that uses the library would have it.
///
/// # Errors
/// No threads can be started.
pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().named("tokio runtime")
}

/// Measures the rows of this group.
///
/// # Errors
/// Never, so far.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let (count, seed) = (bench.count(COMMITS), bench.args.seed);
    bench.row(&SMALL, |row| measure(row, &folder.join("default"), BlockSize::DEFAULT, (count, seed)));
    bench.row(&SMALL_4K, |row| measure(row, &folder.join("4k"), BlockSize::MIN, (count, seed)));
    Ok(())
}

fn measure(row: &mut Row, folder: &Path, block_size: BlockSize, work: (u64, u64)) -> Result<Vec<Pair>> {
    let (count, seed) = work;
    row.note(format!("{count} of each a half, block size {} bytes", block_size.bytes()));
    let (root, plain) = (folder.join("store"), folder.join("plain"));
    fs::create_dir_all(&plain).named(plain.display())?;
    let options = InitOptions { block_size, ..InitOptions::default() };
    NativeStore::init(&root, &options, &*SystemClock::shared()).of_store("init")?;
    let store = NativeStore::open(&root, OpenOptions::default()).of_store("open")?;
    let runtime = runtime()?;
    let file = runtime.block_on(create(&store)).of_store("create")?;
    row.interleave(|side, number| {
        let mut rng = Rng::new(seed, u64::from(number));
        let mut content = [0; CONTENT_BYTES];
        let (took, result) = timed(|| -> Result<()> {
            for _ in 0..count {
                rng.fill(&mut content);
                match side {
                    Side::Ours => runtime.block_on(commit(&store, file, &content)).of_store("commit")?,
                    Side::Baseline => replace(&plain, &content).named(plain.display())?,
                }
            }
            Ok(())
        });
        result?;
        Ok(count as f64 / took.as_secs_f64())
    })
}

async fn create(store: &Arc<NativeStore>) -> std::result::Result<FileId, CommitError> {
    let mut transaction = store.begin(None)?;
    let file = transaction.create(b"small", None)?;
    transaction.commit().await?;
    Ok(file)
}

async fn commit(
    store: &Arc<NativeStore>,
    file: FileId,
    content: &[u8],
) -> std::result::Result<(), CommitError> {
    let mut transaction = store.begin(None)?;
    transaction.write(file, 0..content.len() as u64, content).await?;
    transaction.commit().await?;
    Ok(())
}

fn replace(folder: &Path, content: &[u8]) -> std::io::Result<()> {
    let fresh = folder.join("small.new");
    let mut file = File::create_new(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join("small"))?;
    File::open(folder)?.sync_all()
}
