//! Reading through the mount: hot and cold, by read and by mmap, from a slow store, and what it keeps in memory.
//!
//! Each cold half starts on a fresh mount and after the kernel's caches were dropped: neither the kernel nor the
//! server has any of the bytes (of a slow store, which is one in memory with a delay, the mount has none). Cold halves touch one word of each page, so that adding up bytes does not hide
//! what the filesystem costs; the hot scan adds up all of them. Both sides must come to the same sum.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use revfs::store::BufferPool;

use super::{Bench, Row, SameSum, Side};
use crate::clock::timed;
use crate::data::{self, BLOCK, Rng, sum_all, sum_pages};
use crate::driver::{Mounted, Revfs};
use crate::error::{BenchError, Named, Result};
use crate::map::Mapping;
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit, median};
use crate::system;

const GIB: u64 = 1 << 30;
/// How often it is looked how much the page cache grew: at the same time others may shrink it.
const CACHE_TRIES: u32 = 5;
/// Size of the file that is read.
const FILE_BYTES: u64 = 4 * GIB;
const HOT_BYTES: u64 = GIB;
const SLOW_BYTES: u64 = GIB;
const RESIDENT_BYTES: u64 = 2 * GIB;
/// Scans of a hot file in one half: one alone is over too soon.
const HOT_SCANS: u32 = 4;
/// Where the file is in the mount.
const IN_MOUNT: &str = "head/bigfile/x";
const SLOW: [&str; 2] = ["--fault-read-delay", "1ms"];
const SMALL_READS: [&str; 6] = ["--threads", "1", "--read-ahead", "128K", "--max-read", "128K"];

const fn rate(key: &'static str, what: &'static str, against: &'static str, target: Target) -> RowSpec {
    RowSpec { key, what, against, unit: Unit::GigabytesPerSecond, compare: Compare::Ratio, target }
}

const HOT: RowSpec = rate(
    "hot-mmap",
    "hot mmap scan of head/bigfile/x, 1 GiB, all bytes, touched before",
    "the same file on disk",
    Target::AtLeast(0.95),
);
const HOT_PAGES: RowSpec =
    rate("hot-mmap-pages", "the same, one word of each page", "the same file on disk", Target::None);
const COLD: RowSpec = rate(
    "cold-read",
    "cold sequential read, 4 GiB, reads of 2 MiB, checksums on",
    "cold pread of a plain file",
    Target::AtLeast(0.9),
);
const COLD_128K: RowSpec = rate(
    "cold-read-128k",
    "cold sequential read, 4 GiB, reads of 128 KiB, checksums on",
    "cold pread of a plain file",
    Target::None,
);
const MMAP: RowSpec =
    rate("cold-mmap", "cold mmap sequential, 4 GiB", "cold mmap of a plain file", Target::AtLeast(0.8));
const MMAP_RANDOM: RowSpec = rate(
    "cold-mmap-random",
    "cold mmap, random 2 MiB blocks, MADV_HUGEPAGE, 4 GiB",
    "cold mmap of a plain file",
    Target::AtLeast(0.75),
);
const SLOW_MMAP: RowSpec = rate(
    "slow-store-mmap",
    "cold mmap sequential, 1 GiB, 1 ms added to each store read, the store in memory",
    "one thread, READs of 128 KiB",
    Target::AtLeast(15.0),
);
const RESIDENT: RowSpec = RowSpec {
    key: "resident",
    what: "memory after a cold read of 2 GiB: server + page cache growth",
    against: "2 GiB",
    unit: Unit::Mebibytes,
    compare: Compare::Ratio,
    target: Target::AtMost(1.15),
};

/// The rows of this group.
pub const ROWS: [RowSpec; 8] = [HOT, HOT_PAGES, COLD, COLD_128K, MMAP, MMAP_RANDOM, SLOW_MMAP, RESIDENT];

/// One file, plain and in a store.
struct Files<'r> {
    revfs: &'r Revfs,
    plain: PathBuf,
    store: PathBuf,
    point: PathBuf,
    seed: u64,
}

/// How one cold read goes: how long it took, and a sum over what was read.
type Reader<'f> = dyn Fn(&Path) -> Result<(Duration, u64)> + 'f;

impl Files<'_> {
    fn mount(&self, options: &[&str]) -> Result<Mounted<'_>> {
        Ok(self.revfs.mount(&self.store, &self.point, options)?.0)
    }

    /// Pairs of cold reads of `bytes` bytes. `slow`: of a slow store whose bytes are in memory, and the baseline is a mount of it, too, one
    /// with one thread and small READs.
    fn cold(&self, row: &Row, bytes: u64, slow: bool, read: &Reader) -> Result<Vec<Pair>> {
        system::check_root()?;
        let mut same = SameSum::default();
        if slow {
            // What is measured is how the time of each read is hidden, not the disk: the store's bytes stay in the
            // page cache from here on. Each half has a mount of its own, which has none of the file's.
            system::drop_caches(2 * bytes)?;
            same.check(read(&self.mount(&SLOW)?.join(IN_MOUNT))?.1)?;
        }
        row.interleave(|side, _| {
            let options: Vec<&str> = match (slow, side) {
                (false, _) => Vec::new(),
                (true, Side::Ours) => SLOW.to_vec(),
                (true, Side::Baseline) => SLOW.iter().chain(&SMALL_READS).copied().collect(),
            };
            let mounted = if slow || side == Side::Ours { Some(self.mount(&options)?) } else { None };
            let path = mounted.as_ref().map_or_else(|| self.plain.clone(), |mount| mount.join(IN_MOUNT));
            if slow {
                system::touch_memory(bytes)?;
            } else {
                system::drop_caches(bytes)?;
            }
            let (took, sum) = read(&path)?;
            same.check(sum)?;
            Ok(bytes as f64 / took.as_secs_f64() / 1e9)
        })
    }
}

/// Measures the rows of this group.
///
/// # Errors
/// The files cannot be made.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let size = |bytes| bench.blocks(bytes) * BLOCK;
    let (file, hot, slow, resident) =
        (size(FILE_BYTES), size(HOT_BYTES), size(SLOW_BYTES), size(RESIDENT_BYTES));
    let files = Files {
        revfs: bench.revfs,
        plain: folder.join("plain"),
        store: folder.join("store"),
        point: folder.join("mnt"),
        seed: bench.args.seed,
    };
    data::write_file(&files.plain, file / BLOCK, files.seed)?;
    files.revfs.init(&files.store)?;
    files.revfs.commit(&files.store, "x", &files.plain)?;

    bench.row(&HOT, |row| hot_scan(row, &files, hot, sum_all));
    bench.row(&HOT_PAGES, |row| hot_scan(row, &files, hot, sum_pages));
    for (spec, chunk) in [(&COLD, BLOCK as usize), (&COLD_128K, 128 << 10)] {
        bench.row(spec, |row| files.cold(row, file, false, &|path| read_through(path, file, chunk)));
    }
    bench.row(&MMAP, |row| files.cold(row, file, false, &|path| scan_cold(path, file)));
    bench.row(&MMAP_RANDOM, |row| {
        row.note(format!("order of blocks from seed {}, the same in each half", files.seed));
        let order = Rng::new(files.seed, u64::MAX).shuffled(file / BLOCK);
        files.cold(row, file, false, &|path| scan_blocks(path, file, &order))
    });
    bench.row(&SLOW_MMAP, |row| files.cold(row, slow, true, &|path| scan_cold(path, slow)));
    bench.row(&RESIDENT, |row| resident_after(row, &files, resident));
    Ok(())
}

fn hot_scan(row: &Row, files: &Files, bytes: u64, sum: fn(&[u8]) -> u64) -> Result<Vec<Pair>> {
    let mounted = files.mount(&[])?;
    let map = |path: &Path| {
        let file = File::open(path).named(path.display())?;
        Mapping::new(&file, bytes, false)
    };
    let (ours, plain) = (map(&mounted.join(IN_MOUNT))?, map(&files.plain)?);
    let mut same = SameSum::default();
    for mapping in [&ours, &plain] {
        mapping.populate()?;
        same.check(sum(mapping.bytes()))?;
    }
    row.interleave(|side, _| {
        let mapping = if side == Side::Ours { &ours } else { &plain };
        let (took, sums) = timed(|| [(); HOT_SCANS as usize].map(|()| sum(mapping.bytes())));
        sums.into_iter().try_for_each(|sum| same.check(sum))?;
        Ok(bytes as f64 * f64::from(HOT_SCANS) / took.as_secs_f64() / 1e9)
    })
}

/// Reads the first `bytes` bytes by `read`s of `chunk` bytes.
pub fn read_through(path: &Path, bytes: u64, chunk: usize) -> Result<(Duration, u64)> {
    let file = File::open(path).named(path.display())?;
    let mut buffer = BufferPool::new(1, chunk).take(chunk);
    let (took, result) = timed(|| -> std::io::Result<u64> {
        let (mut at, mut sum) = (0, 0u64);
        while at < bytes {
            let len = (bytes - at).min(chunk as u64) as usize;
            file.read_exact_at(&mut buffer[..len], at)?;
            sum = sum.wrapping_add(sum_pages(&buffer[..len]));
            at += len as u64;
        }
        Ok(sum)
    });
    Ok((took, result.named(path.display())?))
}

fn scan_cold(path: &Path, bytes: u64) -> Result<(Duration, u64)> {
    let file = File::open(path).named(path.display())?;
    let (took, result) = timed(|| -> Result<(Mapping, u64)> {
        let mapping = Mapping::new(&file, bytes, false)?;
        let sum = sum_pages(mapping.bytes());
        Ok((mapping, sum))
    });
    Ok((took, result?.1))
}

fn scan_blocks(path: &Path, bytes: u64, order: &[u64]) -> Result<(Duration, u64)> {
    let file = File::open(path).named(path.display())?;
    let (took, result) = timed(|| -> Result<(Mapping, u64)> {
        let mapping = Mapping::new(&file, bytes, true)?;
        let mut sum = 0u64;
        for block in order {
            let at = (block * BLOCK) as usize;
            sum = sum.wrapping_add(sum_pages(&mapping.bytes()[at..at + BLOCK as usize]));
        }
        Ok((mapping, sum))
    });
    Ok((took, result?.1))
}

/// Anonymous and shared memory of the server, and how much the page cache grew.
fn resident_after(row: &mut Row, files: &Files, bytes: u64) -> Result<Vec<Pair>> {
    system::check_root()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut parts = Vec::new();
    let pairs = row.interleave(|side, _| {
        if side == Side::Baseline {
            return Ok(mib(bytes));
        }
        let mut cache = 0;
        for _ in 0..CACHE_TRIES {
            let mounted = files.mount(&[])?;
            system::drop_caches(bytes)?;
            let before = system::page_cache_bytes()?;
            read_through(&mounted.join(IN_MOUNT), bytes, BLOCK as usize)?;
            cache = system::page_cache_bytes()?.saturating_sub(before);
            // Shared memory (a memfd of the server) counts as page cache already.
            let server = mounted.server_bytes("RssAnon:")?;
            if cache >= bytes / 2 {
                parts.push((mib(server), mib(cache)));
                return Ok(mib(cache + server));
            }
        }
        let what =
            format!("the page cache grew by {cache} bytes only, {CACHE_TRIES} times: others shrank it");
        Err(BenchError::Wrong(what))
    })?;
    let server = median(parts.iter().map(|(server, _)| *server));
    let cache = median(parts.iter().map(|(_, cache)| *cache));
    row.note(format!("medians: server {server:.0} MiB, page cache {cache:.0} MiB"));
    Ok(pairs)
}
