//! Committing big files, against writing the same bytes to a plain file and making them durable.
//!
//! What is written is in memory on both sides: the source lies in the page cache, and the plain file is written
//! from a mapping of it. What a half wrote is removed before the next one begins, and dirty pages of neither
//! are left to the other.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use revfs::protocol::FileId;
use revfs::store::BufferPool;
use revfs::store::native::{CommitError, NativeStore, OpenOptions};
use tokio::runtime::Runtime;

use super::{Bench, Row, Side};
use crate::clock::timed;
use crate::data::{self, BLOCK, Rng};
use crate::driver::Revfs;
use crate::error::{BenchError, Named, OfStore, Result};
use crate::map::Mapping;
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit};
use crate::system;

const FILE_BYTES: u64 = 4 << 30;
const RANDOM_BLOCKS: u64 = 100;
/// One block in so many changes: 5 %.
const CHANGED_ONE_IN: u64 = 20;

const fn rate(key: &'static str, what: &'static str, against: &'static str, target: Target) -> RowSpec {
    RowSpec { key, what, against, unit: Unit::GigabytesPerSecond, compare: Compare::Ratio, target }
}

const NEW: RowSpec = rate(
    "commit-new",
    "commit of 4 GiB new data, command line",
    "write + fdatasync of the same bytes",
    Target::AtLeast(0.7),
);
const BLOCKS: RowSpec = rate(
    "commit-blocks",
    "commit of 100 random 2 MiB blocks of a 4 GiB file, write(range)",
    "pwrite + fdatasync of the same blocks",
    Target::AtLeast(0.7),
);
const BLOCKS_SHARED: RowSpec = rate(
    "commit-blocks-shared",
    "the same with write_shared(range), which copies nothing",
    "pwrite + fdatasync of the same blocks",
    Target::None,
);
/// What a program gets that keeps the old bytes and does nothing else: the baseline writes over them.
const BLOCKS_PLAIN: RowSpec = rate(
    "commit-blocks-plain",
    "the same bytes to a new plain file, write + fsync, without revfs",
    "pwrite + fdatasync of the same blocks",
    Target::None,
);
const CHANGED: RowSpec = rate(
    "commit-changed",
    "commit of a 4 GiB file with 5 % changed blocks, command line, file not cached",
    "reading it once + write + fdatasync of the changes",
    Target::AtLeast(0.7),
);
const CHANGED_WARM: RowSpec = rate(
    "commit-changed-warm",
    "the same, file in the page cache",
    "reading it once + write + fdatasync of the changes",
    Target::None,
);

/// The rows of this group.
pub const ROWS: [RowSpec; 6] = [NEW, BLOCKS, BLOCKS_SHARED, BLOCKS_PLAIN, CHANGED, CHANGED_WARM];

/// Ways to store new blocks and keep the old ones.
#[derive(Clone, Copy)]
enum Way {
    Write,
    WriteShared,
    PlainFile,
}

/// A plain file, and a store that has it as `x`.
struct Files<'r> {
    revfs: &'r Revfs,
    source: PathBuf,
    store: PathBuf,
    /// What a half writes, and removes.
    output: PathBuf,
    blocks: u64,
    seed: u64,
}

/// Measures the rows of this group.
///
/// # Errors
/// The files cannot be made.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let files = Files {
        revfs: bench.revfs,
        source: folder.join("source"),
        store: folder.join("store"),
        output: folder.join("output"),
        blocks: bench.blocks(FILE_BYTES),
        seed: bench.args.seed,
    };
    data::write_file(&files.source, files.blocks, files.seed)?;
    bench.row(&NEW, |row| files.commit_new(row));
    if ![BLOCKS, BLOCKS_SHARED, BLOCKS_PLAIN, CHANGED, CHANGED_WARM].iter().any(|spec| bench.wants(spec)) {
        return Ok(());
    }
    files.revfs.init(&files.store)?;
    files.revfs.commit(&files.store, "x", &files.source)?;
    let count = bench.count(RANDOM_BLOCKS).min(files.blocks);
    bench.row(&BLOCKS, |row| files.commit_blocks(row, count, Way::Write));
    bench.row(&BLOCKS_SHARED, |row| files.commit_blocks(row, count, Way::WriteShared));
    bench.row(&BLOCKS_PLAIN, |row| files.commit_blocks(row, count, Way::PlainFile));
    bench.row(&CHANGED, |row| files.commit_changed(row, false));
    bench.row(&CHANGED_WARM, |row| files.commit_changed(row, true));
    Ok(())
}

fn gigabytes_per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}

impl Files<'_> {
    fn commit_new(&self, row: &Row) -> Result<Vec<Pair>> {
        let bytes = self.blocks * BLOCK;
        let file = File::open(&self.source).named(self.source.display())?;
        let mapping = Mapping::new(&file, bytes, false)?;
        row.interleave(|side, _| {
            mapping.populate()?;
            let took = match side {
                Side::Ours => {
                    self.revfs.init(&self.output)?;
                    rustix::fs::sync();
                    let took = self.revfs.commit(&self.output, "x", &self.source)?;
                    check_stored(&self.output.join("packs"), bytes)?;
                    std::fs::remove_dir_all(&self.output).named(self.output.display())?;
                    took
                }
                Side::Baseline => {
                    rustix::fs::sync();
                    let (took, result) = timed(|| write_durably(&self.output, mapping.bytes()));
                    result.named(self.output.display())?;
                    std::fs::remove_file(&self.output).named(self.output.display())?;
                    took
                }
            };
            rustix::fs::sync();
            Ok(gigabytes_per_second(bytes, took))
        })
    }

    fn commit_blocks(&self, row: &mut Row, count: u64, way: Way) -> Result<Vec<Pair>> {
        row.note(format!("{count} blocks at random places from seed {}", self.seed));
        let runtime = super::small::runtime()?;
        let store = NativeStore::open(&self.store, OpenOptions::default()).of_store("open")?;
        let plain = File::options().write(true).open(&self.source).named(self.source.display())?;
        // Aligned: write_shared copies what is not.
        let memory = BufferPool::new(0, 1);
        row.interleave(|side, number| {
            let mut rng = Rng::new(self.seed, u64::MAX - 1 - u64::from(number));
            let mut places = rng.shuffled(self.blocks);
            places.truncate(count as usize);
            let mut data = memory.take((count * BLOCK) as usize);
            rng.fill(&mut data);
            let data = Bytes::from_owner(data);
            rustix::fs::sync();
            let took = match (side, way) {
                (Side::Ours, Way::Write) => commit_ranges(&runtime, &store, &places, &data, false)?,
                (Side::Ours, Way::WriteShared) => commit_ranges(&runtime, &store, &places, &data, true)?,
                (Side::Ours, Way::PlainFile) => {
                    let (took, result) = timed(|| write_durably(&self.output, &data));
                    result.named(self.output.display())?;
                    std::fs::remove_file(&self.output).named(self.output.display())?;
                    took
                }
                (Side::Baseline, _) => {
                    let (took, result) = timed(|| write_ranges(&plain, &places, &data));
                    result.named(self.source.display())?;
                    took
                }
            };
            rustix::fs::sync();
            Ok(gigabytes_per_second(data.len() as u64, took))
        })
    }

    fn commit_changed(&self, row: &Row, warm: bool) -> Result<Vec<Pair>> {
        if !warm {
            system::check_root()?;
        }
        let count = (self.blocks / CHANGED_ONE_IN).max(1);
        // Whatever the rows before did to the file: from here on, the store has it.
        self.revfs.commit(&self.store, "x", &self.source)?;
        let mut changed = Vec::new();
        let mut changed_for = None;
        row.interleave(|side, number| {
            if changed_for != Some(number) {
                changed_for = Some(number);
                changed = self.change(u64::from(number) + if warm { 1 << 20 } else { 1 << 21 }, count)?;
            }
            if warm {
                super::reads::read_through(&self.source, self.blocks * BLOCK, BLOCK as usize)?;
                rustix::fs::sync();
            } else {
                system::drop_caches(0)?;
            }
            let took = match side {
                Side::Ours => self.revfs.commit(&self.store, "x", &self.source)?,
                Side::Baseline => {
                    let (took, result) = timed(|| read_and_write(&self.source, &self.output, &changed));
                    result.named(self.source.display())?;
                    std::fs::remove_file(&self.output).named(self.output.display())?;
                    took
                }
            };
            rustix::fs::sync();
            Ok(gigabytes_per_second(self.blocks * BLOCK, took))
        })
    }

    /// Writes new bytes to `count` blocks of the source; answers for each block whether it is one of them.
    fn change(&self, stream: u64, count: u64) -> Result<Vec<bool>> {
        let mut rng = Rng::new(self.seed, u64::MAX - stream);
        let file = File::options().write(true).open(&self.source).named(self.source.display())?;
        let mut changed = vec![false; self.blocks as usize];
        let mut buffer = vec![0; BLOCK as usize];
        for block in rng.shuffled(self.blocks).into_iter().take(count as usize) {
            rng.fill(&mut buffer);
            file.write_all_at(&buffer, block * BLOCK).named(self.source.display())?;
            changed[block as usize] = true;
        }
        file.sync_all().named(self.source.display())?;
        Ok(changed)
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = File::create_new(path)?;
    for (block, bytes) in bytes.chunks(BLOCK as usize).enumerate() {
        file.write_all_at(bytes, block as u64 * BLOCK)?;
    }
    file.sync_data()
}

fn write_ranges(file: &File, places: &[u64], data: &[u8]) -> std::io::Result<()> {
    for (block, bytes) in places.iter().zip(data.chunks(BLOCK as usize)) {
        file.write_all_at(bytes, block * BLOCK)?;
    }
    file.sync_data()
}

fn commit_ranges(
    runtime: &Runtime,
    store: &Arc<NativeStore>,
    places: &[u64],
    data: &Bytes,
    shared: bool,
) -> Result<Duration> {
    let commit = async || -> std::result::Result<u64, CommitError> {
        let mut transaction = store.begin(None)?;
        let file = transaction.lookup(b"x")?.unwrap_or(FileId::from_raw(0));
        for (block, start) in places.iter().zip((0..data.len()).step_by(BLOCK as usize)) {
            let (at, bytes) = (block * BLOCK, data.slice(start..start + BLOCK as usize));
            match shared {
                true => transaction.write_shared(file, at..at + BLOCK, bytes).await?,
                false => transaction.write(file, at..at + BLOCK, &bytes).await?,
            }
        }
        transaction.commit().await.map(|committed| committed.seq)
    };
    let (took, committed) = timed(|| runtime.block_on(commit()));
    committed.of_store("commit of blocks")?;
    Ok(took)
}

/// Reads the whole source, and writes the changed blocks of it to a new file.
fn read_and_write(source: &Path, output: &Path, changed: &[bool]) -> std::io::Result<()> {
    let (source, output) = (File::open(source)?, File::create_new(output)?);
    let mut buffer = vec![0; BLOCK as usize];
    let mut end = 0;
    for (block, changed) in changed.iter().enumerate() {
        source.read_exact_at(&mut buffer, block as u64 * BLOCK)?;
        if *changed {
            output.write_all_at(&buffer, end)?;
            end += BLOCK;
        }
    }
    output.sync_data()
}

/// Refuses a commit that stored less than it was given: then its time means nothing.
fn check_stored(packs: &Path, bytes: u64) -> Result<()> {
    let mut stored = 0;
    for folder in std::fs::read_dir(packs).named(packs.display())?.flatten() {
        for pack in std::fs::read_dir(folder.path()).named(packs.display())?.flatten() {
            stored += pack.metadata().named(packs.display())?.len();
        }
    }
    if stored >= bytes {
        return Ok(());
    }
    Err(BenchError::Wrong(format!("the commit stored {stored} of {bytes} bytes")))
}
