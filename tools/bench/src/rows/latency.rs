//! What one small request costs, against a filesystem that only answers.
//!
//! Both are mounted at once, each by a process of its own with the same session settings. A half is the median
//! over many requests, one after the other.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use revfs::store::BufferPool;
use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

use super::{Bench, Row, Side};
use crate::answer::Answerer;
use crate::clock::timed;
use crate::data::{self, BLOCK};
use crate::error::{Named, Result};
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit, median};

const FILE_BYTES: u64 = 64 << 20;
/// Requests of one half.
const REQUESTS: u64 = 20_000;
const READ_BYTES: usize = 4096;

const GETATTR: RowSpec = RowSpec {
    key: "getattr",
    what: "getattr of head/bigfile/x: statx with AT_STATX_FORCE_SYNC",
    against: "a FUSE filesystem that only answers",
    unit: Unit::Microseconds,
    compare: Compare::Ratio,
    target: Target::AtMost(1.5),
};
const READ: RowSpec = RowSpec { key: "read-4k", what: "read of 4 KiB of one hot block, O_DIRECT", ..GETATTR };

/// The rows of this group.
pub const ROWS: [RowSpec; 2] = [GETATTR, READ];

/// Measures the rows of this group.
///
/// # Errors
/// The mounts cannot be made.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let (plain, store) = (folder.join("plain"), folder.join("store"));
    data::write_file(&plain, FILE_BYTES / BLOCK, bench.args.seed)?;
    bench.revfs.init(&store)?;
    bench.revfs.commit(&store, "x", &plain)?;
    let (mounted, _) = bench.revfs.mount(&store, &folder.join("mnt"), &[])?;
    let answerer = Answerer::start(&folder.join("answer"))?;
    let (ours, baseline) = (mounted.join("head/bigfile/x"), answerer.file());
    let requests = bench.count(REQUESTS);
    bench.row(&GETATTR, |row| {
        measure(row, (&ours, &baseline), requests, |file| {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
            statx(file, "", flags, StatxFlags::BASIC_STATS).map(drop).named("statx")
        })
    });
    bench.row(&READ, |row| {
        let mut buffer = BufferPool::new(1, READ_BYTES).take(READ_BYTES);
        measure(row, (&ours, &baseline), requests, |file| file.read_exact_at(&mut buffer, 0).named("read"))
    });
    Ok(())
}

fn measure(
    row: &mut Row,
    paths: (&Path, &Path),
    requests: u64,
    mut request: impl FnMut(&File) -> Result<()>,
) -> Result<Vec<Pair>> {
    row.note(format!("median of {requests} requests a half"));
    let open = |path: &Path| {
        let flags = OFlags::DIRECT.bits() as i32;
        File::options().read(true).custom_flags(flags).open(path).named(path.display())
    };
    let (ours, baseline) = (open(paths.0)?, open(paths.1)?);
    row.interleave(|side, _| {
        let file = if side == Side::Ours { &ours } else { &baseline };
        let mut took = Vec::with_capacity(requests as usize);
        for _ in 0..requests {
            let (time, result) = timed(|| request(file));
            result?;
            took.push(time);
        }
        Ok(median(took.iter().map(Duration::as_secs_f64)) * 1e6)
    })
}
