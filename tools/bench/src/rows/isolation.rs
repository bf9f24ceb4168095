//! Isolation: what it costs a client that its revision stays, and everybody else that there are such clients.
//!
//! Writers are in this process and commit to the store of a mount; clients are in this process, too. Whoever reads
//! compares what is seen with the words of the revision that it is to see, so a figure of a wrong answer is none.

mod link;
mod setup;
mod writer;

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use revfs::protocol::{BlockSize, Tid};
use revfs::store::BufferPool;
use revfs_client::{ClientError, Conn, Mapping};
use rustix::fs::{Advice, fadvise};

use self::link::Link;
use self::writer::{Change, Writer, Written, head_at, wait_shown};
use super::{Bench, Row, SameSum, Side};
use crate::clock::timed;
use crate::data::{self, BLOCK, Rng, sum_pages};
use crate::driver::{Mounted, Revfs};
use crate::error::{BenchError, Named, OfStore, Result};
use crate::scratch::Folder;
use crate::stats::{Compare, Pair, RowSpec, Target, Unit, median};
use crate::system;

/// Blocks that are faulted in one half.
const FAULTS: u64 = 100;
/// Halves that are tried for one that was not disturbed. One that was, as by who drops the caches of the machine, leaves in the
/// cache what the next one needs there.
const FAULT_TRIES: u32 = 3;
/// They lie so many blocks apart: the kernel reads on behind a fault.
const FAULT_STEP: u64 = 4;
/// Pins of a set-up.
const PINS: u64 = 1000;
/// Blocks of the commit that is to be shown.
const SHOWN_BLOCKS: u64 = 100;
/// Commits of one half.
const SHOWN_COMMITS: u32 = 5;
const IDLE_LINKS: u64 = 64;
const READ_BYTES: u64 = 1 << 30;
const READ_LINKS: u64 = 16;
const MANY_LINKS: u64 = 10_000;
const FEW_LINKS: u64 = 100;
/// Set-ups of one half.
const SETUPS: u64 = 500;
/// Descriptors of this process and of a server besides those of links.
const FILES_MORE: u64 = 1000;

const FAULT: RowSpec = RowSpec {
    key: "pin-fault",
    what: "fault on a block that needs one pin, faulting thread and pinner in one process, @rev cached, median",
    against: "the same fault without a pin",
    unit: Unit::Microseconds,
    compare: Compare::Difference,
    target: Target::AtMost(100.0),
};
const SETUP: RowSpec = RowSpec {
    key: "setup-pins",
    what: "watch set-up with 1,000 pins, plain protocol",
    against: "1,000 bare mmap(MAP_FIXED) in the client",
    unit: Unit::Milliseconds,
    compare: Compare::Ratio,
    target: Target::AtMost(20.0),
};
const SETUP_RANGE: RowSpec = RowSpec {
    key: "setup-pins-range",
    what: "the same with range pins, neighbouring blocks",
    target: Target::AtMost(5.0),
    ..SETUP
};
const SETUP_SCATTERED: RowSpec = RowSpec {
    key: "setup-pins-scattered",
    what: "the same with range pins, every second block",
    target: Target::None,
    ..SETUP
};
const SHOWN: RowSpec = RowSpec {
    key: "commit-shown",
    what: "commit of 100 cached blocks with 64 idle watch links, until head/at shows it, not synced",
    against: "the same without links",
    unit: Unit::Milliseconds,
    compare: Compare::Ratio,
    target: Target::AtMost(1.5),
};
const READ: RowSpec = RowSpec {
    key: "cold-read-watched",
    what: "cold sequential read, 1 GiB, with 16 watches at an earlier state that need no pin",
    against: "the same without watches",
    unit: Unit::GigabytesPerSecond,
    compare: Compare::Ratio,
    target: Target::AtLeast(0.95),
};
const LINKS_RSS: RowSpec = RowSpec {
    key: "links-rss",
    what: "RSS of a server with 10,000 open watch links",
    against: "100 links",
    unit: Unit::Mebibytes,
    compare: Compare::Ours,
    target: Target::Below(128.0),
};
const LINKS_SETUP: RowSpec = RowSpec {
    key: "links-setup",
    what: "watch set-up beside 10,000 open watch links, median",
    against: "beside 100 links",
    unit: Unit::Microseconds,
    compare: Compare::Ratio,
    target: Target::AtMost(2.0),
};

/// The rows of this group.
pub const ROWS: [RowSpec; 8] =
    [FAULT, SETUP, SETUP_RANGE, SETUP_SCATTERED, SHOWN, READ, LINKS_RSS, LINKS_SETUP];

/// A store that is written to while it is mounted.
struct Place<'r> {
    revfs: &'r Revfs,
    store: PathBuf,
    writer: Writer,
}

impl<'r> Place<'r> {
    fn new(revfs: &'r Revfs, store: PathBuf) -> Result<Place<'r>> {
        let writer = Writer::new(&store)?;
        Ok(Place { revfs, store, writer })
    }

    fn mount(&self, point: &Path) -> Result<Mounted<'r>> {
        Ok(self.revfs.mount(&self.store, point, &[])?.0)
    }

    /// Commits new words, and waits until the mount shows them.
    fn change(&self, mounted: &Mounted, written: &mut Written) -> Result<Change> {
        let change = self.writer.change(written)?;
        wait_shown(mounted, change.tid)?;
        Ok(change)
    }
}

/// Measures the rows of this group.
///
/// # Errors
/// The stores cannot be made, or not be mounted.
pub fn run(bench: &mut Bench, folder: &Folder) -> Result<()> {
    let place = Place::new(bench.revfs, folder.join("store"))?;
    {
        let mounted = place.mount(&folder.join("mnt"))?;
        let (faults, pins) = (bench.count(FAULTS), bench.count(PINS));
        let (blocks, links) = (bench.count(SHOWN_BLOCKS), bench.count(IDLE_LINKS));
        let seed = bench.args.seed;
        bench.row(&FAULT, |row| pin_fault(row, (&place, &mounted), faults, seed));
        bench.row(&SETUP, |row| setup::measure(row, (&place, &mounted), "plain", (pins, 1), false));
        bench.row(&SETUP_RANGE, |row| setup::measure(row, (&place, &mounted), "range", (pins, 1), true));
        bench.row(&SETUP_SCATTERED, |row| {
            setup::measure(row, (&place, &mounted), "scattered", (pins, 2), true)
        });
        bench.row(&SHOWN, |row| commit_shown(row, (&place, &mounted), blocks, links));
    }
    let (bytes, links) = (bench.blocks(READ_BYTES) * BLOCK, bench.count(READ_LINKS));
    let seed = bench.args.seed;
    bench.row(&READ, |row| cold_read(row, &place, folder, (bytes, seed), links));
    if bench.wants(&LINKS_RSS) || bench.wants(&LINKS_SETUP) {
        let counts = (bench.count(MANY_LINKS), bench.count(FEW_LINKS));
        let links = ManyLinks::new(&place, folder, counts)?;
        bench.row(&LINKS_RSS, |row| links.rss(row));
        let setups = bench.count(SETUPS);
        bench.row(&LINKS_SETUP, |row| links.set_up(row, setups));
    }
    Ok(())
}

fn pin_fault(
    row: &mut Row,
    (place, mounted): (&Place, &Mounted),
    faults: u64,
    seed: u64,
) -> Result<Vec<Pair>> {
    let mut written = place.writer.create("fault", BlockSize::DEFAULT, (faults, FAULT_STEP))?;
    let mut last = place.change(mounted, &mut written)?;
    row.note(format!(
        "medians of {faults} faults a half in blocks of 2 MiB that hold one word; the client library maps"
    ));
    let order = Rng::new(seed, u64::MAX).shuffled(faults);
    let mut half = |side| -> Result<f64> {
        let mut disturbed = None;
        for _ in 0..FAULT_TRIES {
            let before = last;
            // At the state before the commit, for whom each block needs a pin, or at that of the commit.
            let early = (side == Side::Ours).then(|| view(mounted, before.tid)).transpose()?;
            last = place.change(mounted, &mut written)?;
            let (seen, view) = match early {
                Some(view) => (before, view),
                None => (last, view(mounted, last.tid)?),
            };
            cache_words(mounted, &written, before)?;
            match faults_of((side, mounted), (&view, seen), &written, &order)? {
                Ok(took) => return Ok(median(took.iter().map(Duration::as_secs_f64)) * 1e6),
                Err(what) => disturbed = Some(what),
            }
        }
        let what = disturbed.unwrap_or_default();
        Err(BenchError::Wrong(format!(
            "most faults were disturbed, {FAULT_TRIES} times, the last so: {what}"
        )))
    };
    // Once for nothing: what lies between the blocks is in the cache from here on.
    half(Side::Ours)?;
    half(Side::Baseline)?;
    row.interleave(|side, _| half(side))
}

/// How long the faults took that nothing disturbed; if these are not half of them, what disturbed the last one.
fn faults_of(
    (side, mounted): (Side, &Mounted),
    (view, seen): (&Mapping, Change),
    written: &Written,
    order: &[u64],
) -> Result<std::result::Result<Vec<Duration>, String>> {
    let mut took = Vec::with_capacity(order.len());
    let mut disturbed = None;
    for number in order {
        let block = written.blocks[*number as usize];
        let address = view.as_ptr().addr() as u64 + written.start(block);
        let sources = || -> Result<_> { Ok((system::mapped_inode(address)?, reads(mounted)?)) };
        let earlier = sources()?;
        let (time, word) = timed(|| view.with_bytes(|bytes| word_at(bytes, written.start(block))));
        seen.check(block, word.of_store("a mapping")?)?;
        let later = sources()?;
        // Else it was in the cache, or pinned before, as by the fault of a neighbour after somebody dropped all caches of
        // the machine, what lies between the blocks too. Or what the kernel read ahead in the
        // half before came to a busy server only after the commit.
        if earlier.1 == later.1 || (earlier.0 != later.0) != (side == Side::Ours) {
            disturbed = Some(format!(
                "the fault on block {block}: {} READs, mapped from inode {} before and {} after",
                later.1 - earlier.1,
                earlier.0,
                later.0
            ));
            continue;
        }
        took.push(time);
    }
    Ok(match disturbed.filter(|_| took.len() < order.len().div_ceil(2)) {
        Some(what) => Err(what),
        None => Ok(took),
    })
}

/// The file of the faults, mapped as of a state.
fn view(mounted: &Mounted, at: Tid) -> Result<Mapping> {
    let open = || -> std::result::Result<Mapping, ClientError> {
        let file = Conn::open(&mounted.join(""), Some(at))?.file(b"fault")?;
        file.map(0, file.size_at())
    };
    open().of_store("a mapping as of a revision")
}

fn word_at(bytes: &[u8], offset: u64) -> u64 {
    let word = bytes.get(offset as usize..).and_then(<[u8]>::first_chunk::<8>);
    black_box(word.map_or(0, |word| u64::from_le_bytes(*word)))
}

/// Reads the words of a file as of a commit, so that their pages are cached, and checks them.
fn cache_words(mounted: &Mounted, written: &Written, change: Change) -> Result<()> {
    let path = mounted.join(&format!("@{}/by-id/{}", change.tid, written.file));
    read_words(&path, written, change)
}

/// Reads the words of a file, each for itself, and checks them.
fn read_words(path: &Path, written: &Written, change: Change) -> Result<()> {
    let file = File::open(path).named(path.display())?;
    fadvise(&file, 0, None, Advice::Random).named(path.display())?;
    for block in &written.blocks {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, written.start(*block)).named(path.display())?;
        change.check(*block, u64::from_le_bytes(word))?;
    }
    Ok(())
}

/// READs of file data that the server was asked so far.
fn reads(mounted: &Mounted) -> Result<u64> {
    let path = mounted.join(".revfs/stats");
    let text = std::fs::read_to_string(&path).named(path.display())?;
    let count = text.lines().find_map(|line| line.strip_prefix("reads ")?.parse().ok());
    count.ok_or_else(|| BenchError::Wrong(format!("{} has no number of READs", path.display())))
}

fn commit_shown(
    row: &mut Row,
    (place, mounted): (&Place, &Mounted),
    blocks: u64,
    links: u64,
) -> Result<Vec<Pair>> {
    // Every second block: else one range would be dropped from the cache, and not one for each block.
    let mut written = place.writer.create("shown", BlockSize::MIN, (blocks, 2))?;
    let mut last = place.change(mounted, &mut written)?;
    let head = mounted.join("head/bigfile/shown");
    row.note(format!("medians of {SHOWN_COMMITS} commits a half, {blocks} blocks of 4 KiB, {links} links"));
    row.interleave(|side, _| {
        let mut took = Vec::new();
        for _ in 0..SHOWN_COMMITS {
            read_words(&head, &written, last)?;
            let count = if side == Side::Ours { links } else { 0 };
            let idle = Link::open_idle(mounted, count, (written.file, last.tid))?;
            let prepared = place.writer.prepare(&mut written);
            let (time, change) = timed(|| -> Result<Change> {
                let change = place.writer.commit(&written, prepared)?;
                wait_shown(mounted, change.tid)?;
                Ok(change)
            });
            took.push(time);
            last = change?;
            Link::check_silent(&idle)?;
        }
        // What the last commit wrote is there for all.
        read_words(&head, &written, last)?;
        Ok(median(took.iter().map(Duration::as_secs_f64)) * 1e3)
    })
}

fn cold_read(
    row: &mut Row,
    place: &Place,
    folder: &Folder,
    (bytes, seed): (u64, u64),
    links: u64,
) -> Result<Vec<Pair>> {
    system::check_root()?;
    let (plain, store, point) = (folder.join("plain"), folder.join("read"), folder.join("mnt-read"));
    // One block more, which is the one that changes after the watches' state, and lies before all that is read:
    // so READs have to look who watches, and the kernel's read-ahead does not come to it.
    data::write_file(&plain, bytes / BLOCK + 1, seed)?;
    place.revfs.init(&store)?;
    place.revfs.commit(&store, "x", &plain)?;
    let first = place.revfs.mount(&store, &point, &[])?.0;
    let (file, at) = (file_id(&first.join("head/bigfile/x"))?, head_at(&first)?);
    drop(first);
    let source = File::options().write(true).open(&plain).named(plain.display())?;
    source.write_all_at(&[1; 8], 0).named(plain.display())?;
    place.revfs.commit(&store, "x", &plain)?;
    let mut same = SameSum::default();
    row.interleave(|side, _| {
        let mounted = place.revfs.mount(&store, &point, &[])?.0;
        let count = if side == Side::Ours { links } else { 0 };
        let watches = Link::open_idle(&mounted, count, (file, at))?;
        system::drop_caches(bytes)?;
        let (took, sum) = read_behind(&mounted.join("head/bigfile/x"), BLOCK, bytes)?;
        same.check(sum)?;
        Link::check_silent(&watches)?;
        Ok(bytes as f64 / took.as_secs_f64() / 1e9)
    })
}

/// Reads `bytes` bytes from `start` on.
fn read_behind(path: &Path, start: u64, bytes: u64) -> Result<(Duration, u64)> {
    let file = File::open(path).named(path.display())?;
    let mut buffer = BufferPool::new(1, BLOCK as usize).take(BLOCK as usize);
    let (took, sum) = timed(|| {
        (start..start + bytes).step_by(BLOCK as usize).try_fold(0u64, |sum, at| {
            file.read_exact_at(&mut buffer, at)?;
            Ok::<u64, std::io::Error>(sum.wrapping_add(sum_pages(&buffer)))
        })
    });
    Ok((took, sum.named(path.display())?))
}

fn file_id(path: &Path) -> Result<revfs::protocol::FileId> {
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(path, "user.revfs.file", &mut value).named(path.display())?;
    let id = std::str::from_utf8(&value[..len]).ok().and_then(|text| text.parse().ok());
    id.ok_or_else(|| BenchError::Wrong(format!("{} has no id", path.display())))
}

/// A store whose mounts get many links, or few. Each half has a mount of its own, and no other runs beside it.
struct ManyLinks<'p> {
    place: &'p Place<'p>,
    point: PathBuf,
    written: Written,
    at: Change,
    many: u64,
    few: u64,
}

impl<'p> ManyLinks<'p> {
    fn new(place: &'p Place<'p>, folder: &Folder, (many, few): (u64, u64)) -> Result<ManyLinks<'p>> {
        // One a link in this process; its server has one for the process.
        system::allow_open_files(many + FILES_MORE)?;
        let mut written = place.writer.create("links", BlockSize::MIN, (4, 1))?;
        let at = place.writer.change(&mut written)?;
        Ok(ManyLinks { place, point: folder.join("mnt-links"), written, at, many, few })
    }

    /// Lets `measure` see a mount with as many links as a side has.
    fn half(&self, side: Side, measure: impl FnOnce(&Mounted) -> Result<f64>) -> Result<f64> {
        let mounted = self.place.mount(&self.point)?;
        wait_shown(&mounted, self.at.tid)?;
        let count = if side == Side::Ours { self.many } else { self.few };
        let links = Link::open_idle(&mounted, count, (self.written.file, self.at.tid))?;
        let value = measure(&mounted)?;
        Link::check_silent(&links)?;
        Ok(value)
    }

    fn rss(&self, row: &mut Row) -> Result<Vec<Pair>> {
        row.note(format!("{} and {} links, each with a watch", self.many, self.few));
        row.interleave(|side, _| {
            self.half(side, |mounted| Ok(mounted.server_bytes("VmRSS:")? as f64 / f64::from(1 << 20)))
        })
    }

    fn set_up(&self, row: &mut Row, count: u64) -> Result<Vec<Pair>> {
        let mut opens = [Vec::new(), Vec::new()];
        let pairs = row.interleave(|side, _| {
            self.half(side, |mounted| {
                read_words(&mounted.join("head/bigfile/links"), &self.written, self.at)?;
                let mut took = Vec::new();
                // The first ones are those of a server that has just started, and count on neither side.
                for number in 0..2 * count {
                    let (opened, link) = timed(|| Link::open(mounted));
                    let mut link = link?;
                    let (time, watched) = timed(|| link.watch_idle(self.written.file, self.at.tid));
                    watched?;
                    if number >= count {
                        opens[usize::from(side == Side::Baseline)].push(opened);
                        took.push(time);
                    }
                }
                Ok(median(took.iter().map(Duration::as_secs_f64)) * 1e6)
            })
        })?;
        let [many, few] = opens.map(|took| median(took.iter().map(Duration::as_secs_f64)) * 1e6);
        row.note(format!(
            "medians of {count} set-ups a half; opening the link before took {many:.0} us beside many, {few:.0} us \
             beside few"
        ));
        Ok(pairs)
    }
}
